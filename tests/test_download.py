"""Downloads, from a server on this machine: resumed, checked, unpacked without harm."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import alspeech

from alspeech.speech import download
from alspeech.workshop.errors import UserError

TRANSCRIPT = b"1-10-0000 YES\n"


def archive(*members) -> bytes:
    """A tar.gz of ``(name, content)`` and of TarInfo objects."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path; ``breaks`` bytes at most, then hangs up."""

    content, breaks, ranges, honours_ranges = b"", None, (), True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/corpus.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.content
        asked = self.headers.get("Range")
        server.ranges = (*server.ranges, asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not content:
            self.send_error(404)
            return
        if asked and start >= len(content):
            self.send_error(416)
            return
        partial = asked and server.honours_ranges
        start = start if partial else 0
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : None if server.breaks is None else start + server.breaks])

    def log_message(self, *_):
        """The tests' output is theirs."""


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_download_is_whole_and_checked(server, tmp_path):
    server.content = bytes(range(256)) * 5000
    download.download(server.url, tmp_path / "a", sha256(server.content))
    assert (tmp_path / "a").read_bytes() == server.content
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("honours_ranges", [True, False])
def test_a_download_that_broke_off_goes_on_where_it_was(server, tmp_path, honours_ranges):
    server.content, server.breaks = bytes(range(256)) * 5000, 500_000
    server.honours_ranges = honours_ranges
    with pytest.raises(UserError, match="broke off before 1.3 MB .*; 0.5 MB are kept, .* goes on"):
        download.download(server.url, tmp_path / "a", sha256(server.content))
    assert not (tmp_path / "a").exists()
    server.breaks = None
    download.download(server.url, tmp_path / "a", sha256(server.content))
    assert server.ranges == (None, "bytes=500000-")
    assert (tmp_path / "a").read_bytes() == server.content


def test_a_download_that_was_complete_but_unchecked_is_only_checked(server, tmp_path):
    server.content = b"corpus" * 1000
    (tmp_path / "a.part").write_bytes(server.content)
    download.download(server.url, tmp_path / "a", sha256(server.content))
    assert (tmp_path / "a").read_bytes() == server.content


def test_a_damaged_download_is_removed_and_said(server, tmp_path):
    server.content = b"corpus" * 1000
    with pytest.raises(UserError, match="checksum .* instead of .* starts again"):
        download.download(server.url, tmp_path / "a", sha256(b"another"))
    assert not list(tmp_path.iterdir())


def test_no_file_and_no_server_are_one_line(server, tmp_path):
    with pytest.raises(UserError, match="the server says 404"):
        download.download(server.url, tmp_path / "a")
    with pytest.raises(UserError, match="refused; 0.0 MB are kept"):
        download.download("http://127.0.0.1:9/a.tar.gz", tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("member", [
    ("../escaped", b"x"),
    link("leads_out", "../../escaped"),
    link("leads_out", "/etc/passwd"),
    link("hard", "../../escaped", tarfile.LNKTYPE),
    link("device", "", tarfile.CHRTYPE),
], ids=["above", "link", "absolute link", "hard link", "device"])  # fmt: skip
def test_an_archive_that_reaches_out_of_its_folder_is_refused_whole(tmp_path, member):
    (tmp_path / "in").mkdir()
    (tmp_path / "bad.tar.gz").write_bytes(archive(("good", b"x"), member))
    with pytest.raises(UserError, match="unsafe archive, not unpacked"):
        download.unpack(tmp_path / "bad.tar.gz", tmp_path / "in")
    assert not list((tmp_path / "in").iterdir()) and not (tmp_path / "escaped").exists()


def test_an_absolute_path_in_an_archive_stays_in_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    absolute = str(tmp_path / "escaped")
    (tmp_path / "a.tar.gz").write_bytes(archive((absolute, b"x")))
    download.unpack(tmp_path / "a.tar.gz", tmp_path / "in")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("content", [b"<html>", archive(("a", b"x" * 99999))[:60]],
                         ids=["no archive", "cut short"])  # fmt: skip
def test_a_broken_archive_is_one_line_and_leaves_nothing(tmp_path, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "bad.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="broken archive"):
        download.unpack(tmp_path / "bad.tar.gz", tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_subsets_fill_one_corpus_folder_and_are_fetched_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ROOT", tmp_path)
    found = {
        name: download.Source(server.url.replace("corpus", name), "librispeech", "librispeech")
        for name in ("dev-clean", "test-clean")
    }
    monkeypatch.setattr(download, "sources", lambda: {"librispeech": found})
    archives = {
        name: archive((f"LibriSpeech/{name}/1/10/1-10.trans.txt", TRANSCRIPT)) for name in found
    }
    for name in (*found, *found):
        server.content = archives[name]
        assert download.get("librispeech", name) == ("librispeech", tmp_path / "data/librispeech")
    assert len(server.ranges) == 2, "what is there is not fetched again"
    folder = tmp_path / "data" / "librispeech"
    assert {path.name for path in (folder / "LibriSpeech").iterdir()} == set(found)
    assert {path.name for path in folder.iterdir()} == {
        "LibriSpeech", "dev-clean.tar.gz.json", "test-clean.tar.gz.json"
    }  # fmt: skip
    # the checksum that was found is on record where no official one is known
    assert sha256(server.content) in (folder / "test-clean.tar.gz.json").read_text()


def test_every_official_address_is_a_tar_archive_and_the_large_ones_have_checksums():
    table = download.sources()
    assert {"librispeech", "speechcommands", "fsdd", "speechocean762"} == set(table)
    for corpus, subsets in table.items():
        assert all(source.url.endswith(".tar.gz") for source in subsets.values())
        if corpus in ("librispeech", "speechcommands"):
            assert all(len(source.sha256) == 64 for source in subsets.values())
    assert next(iter(table["speechcommands"])) == "v0.02"


def test_an_unknown_subset_is_one_line_that_names_the_others(root):
    done = alspeech(root, "data", "--corpus", "librispeech", "--subset", "train")
    assert done.returncode == 2 and "unknown subset of librispeech 'train'" in done.stderr
    assert "train-clean-100" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in root.iterdir()) == ["configs"]
