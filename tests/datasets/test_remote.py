import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pyro_fcr.datasets import download
from pyro_fcr.errors import LoadError

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/slow":
            time.sleep(1.0)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path != "/slow":
            self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page", ["/file", "/moved", "/unsized"])
def test_download_writes_the_file(server, tmp_path, page):
    path = download(server.url + page, SHA256.upper(), tmp_path / "new" / "a.bin")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    assert download(f"{server.url}/file", SHA256, path) == path
    assert server.asked == []


def test_another_file_that_is_there_is_replaced(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    download(f"{server.url}/file", SHA256, str(path))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "sha256", "match"),
    [
        ("/missing", SHA256, "the server refused.*404"),
        ("/file", "0" * 64, f"another file than was meant.*expected sha256 0000.*{SHA256}"),
        ("/short", SHA256, "broke off.*2560000 bytes|download failed.*IncompleteRead"),
        ("/slow", SHA256, "the download failed.*[Tt]ime"),
        ("/file", "abc", "not a SHA-256.*64 hexadecimal digits, got 'abc'"),
    ],
)
def test_a_failed_download_leaves_everything_as_it_was(server, tmp_path, page, sha256, match):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(LoadError, match=match):
        # A busy machine may take its time over every page but the one that is to be late.
        download(server.url + page, sha256, path, timeout=0.2 if page == "/slow" else 30)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_server_that_is_not_there(tmp_path, server):
    server.server_close()
    with pytest.raises(LoadError, match="the download failed"):
        download(f"{server.url}/file", SHA256, tmp_path / "a.bin", timeout=0.2)


def test_unusable_addresses_and_places(tmp_path):
    with pytest.raises(LoadError, match="not a web address"):
        download("file:///etc/hosts", SHA256, tmp_path / "a.bin")
    with pytest.raises(LoadError, match="a folder is in the way"):
        download("http://127.0.0.1/", SHA256, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="cannot write"):
        download("http://127.0.0.1/", SHA256, tmp_path / "file" / "a.bin")
