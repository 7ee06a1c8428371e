"""Draw every picture at the width of a journal's column, to be looked at, then approve them.

python tests/analysis/gallery_look.py FOLDER             # draws FOLDER/NAME.png
python tests/analysis/gallery_look.py FOLDER --approve   # and writes their hashes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gallery import PICTURES, figure_of
from test_gallery import APPROVED, COLUMN, as_text, difference_hash, pixels

from pyro_fcr.analysis import plots


def main(folder: Path, *, approve: bool) -> None:
    """Draw, and write the hashes where the pictures are approved."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, draw in sorted(PICTURES.items()):
        hashes[name] = as_text(difference_hash(pixels(figure_of(draw()))))
        figure = figure_of(draw())
        with plots.house_style():
            figure.savefig(folder / f"{name}.png", dpi=220 * COLUMN / figure.get_figwidth())
    if approve:
        APPROVED.write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), approve="--approve" in sys.argv)
