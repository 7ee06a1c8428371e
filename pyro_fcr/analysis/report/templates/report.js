document.querySelectorAll("table.sheet").forEach(function (table) {
  var body = table.tBodies[0], rows = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
  var number = function (text) {
    var value = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
    return isNaN(value) ? -Infinity : value;
  };
  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.title = (head.title ? head.title + ". " : "") + "Click to sort.";
    head.removeAttribute("title");
    head.textContent = "";
    head.append(button);
    button.addEventListener("click", function () {
      var numeric = head.classList.contains("n"), now = head.getAttribute("aria-sort");
      var down = now ? now === "ascending" : numeric;
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort(function (a, b) {
        var x = a.cells[column].textContent, y = b.cells[column].textContent;
        var order = numeric ? number(x) - number(y) : x.localeCompare(y);
        return (down ? -order : order) || 0;
      });
      rows.forEach(function (row) { body.append(row); });
    });
  });
  if (rows.length < 8) { return; }
  var label = document.createElement("label"), field = document.createElement("input"), said = document.createElement("span");
  label.className = "filter";
  field.type = "search";
  field.placeholder = table.dataset.hint || "";
  said.setAttribute("role", "status");
  label.append("Filter ", field, said);
  table.parentElement.before(label);
  field.addEventListener("input", function () {
    var words = field.value.toLowerCase().split(/\s+/).filter(Boolean), shown = 0;
    rows.forEach(function (row) {
      var text = row.textContent.toLowerCase();
      row.hidden = !words.every(function (word) { return text.includes(word); });
      shown += row.hidden ? 0 : 1;
    });
    said.textContent = words.length ? shown + " of " + rows.length + " rows" : "";
  });
});
