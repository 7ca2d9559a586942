"""Corpora from their official addresses: ``make data CORPUS=librispeech SUBSET=train-clean-100``.

A download that breaks off goes on where it was; an archive is unpacked only after its checksum, and
nothing in it can reach outside its folder. Where no official checksum is known, the one that was
found is recorded beside the corpus.

(torch.hub and pooch download with a checksum, but from the start every time; torchaudio unpacks
what an archive says, wherever it says. The addresses and checksums are torchaudio's.)
"""

from __future__ import annotations

import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..workshop.config import ROOT
from ..workshop.errors import UserError, cut, cut_path, one_of
from ..workshop.store import checksum, write_json

CHUNK = 1 << 20  # bytes
FSDD = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
SPEECHOCEAN = "https://www.openslr.org/resources/101/speechocean762.tar.gz"


@dataclass(frozen=True)
class Source:
    """An archive, the corpus that reads it, and the folder under ``data/`` that it is read from."""

    url: str
    corpus: str
    data: str
    sha256: str | None = None


def sources() -> dict[str, dict[str, Source]]:
    """``{corpus: {subset: source}}``; a corpus's first subset is its default."""
    from torchaudio.datasets import librispeech, speechcommands  # slow to import

    table = {
        "librispeech": {},
        "speechcommands": {},
        "fsdd": {"master": Source(FSDD, "fsdd", "fsdd/free-spoken-digit-dataset-master")},
        "speechocean762": {
            "speechocean762": Source(SPEECHOCEAN, "kaldi", "speechocean762/speechocean762")
        },
    }
    for url, sha256 in librispeech._CHECKSUMS.items():
        name = url.rpartition("/")[2].removesuffix(".tar.gz")
        table["librispeech"][name] = Source(url, "librispeech", "librispeech", sha256)
    for url, sha256 in sorted(speechcommands._CHECKSUMS.items(), reverse=True):
        name = url.rpartition("speech_commands_")[2].removesuffix(".tar.gz")
        folder = f"speechcommands/{name}"
        table["speechcommands"][name] = Source(url, "speechcommands", folder, sha256)
    return table


def get(corpus: str, subset: str = "") -> tuple[str, Path]:
    """Download and unpack a corpus under ``data/``; what is there already is left alone.

    Returns the corpus's name for ``CORPUS=`` and the folder for ``DATA=``. Raises ``UserError``
    for an unknown name, a download that broke off or did not match its checksum, a bad archive.
    """
    table = sources()
    one_of("corpus to download", corpus, table)
    subset = subset or next(iter(table[corpus]))
    one_of(f"subset of {corpus}", subset, table[corpus])
    source = table[corpus][subset]
    data = ROOT / "data" / source.data
    # archives of speechcommands have no folder of their own
    folder = data if source.corpus == "speechcommands" else ROOT / "data" / corpus
    archive = folder / source.url.rpartition("/")[2]
    record = folder / f"{archive.name}.json"
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            download(source.url, archive, source.sha256)
        found = {"url": source.url, "bytes": archive.stat().st_size, "sha256": checksum(archive)}
        unpack(archive, folder)
        write_json(record, found)
        archive.unlink()
    return source.corpus, data


def download(url: str, target: Path, sha256: str | None = None) -> None:
    """Fetch a file with a progress bar; what an earlier call left in ``<target>.part`` is kept.

    Raises ``UserError`` where the connection fails or ends early (the same call goes on from
    there), and where the checksum is another (the file is removed).
    """
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "alspeech"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # the server sends the whole file, whatever was asked
                have = 0
            total = None if response.length is None else have + response.length
            bar = {"total": total, "initial": have, "unit": "B", "unit_scale": True}
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm.wrapattr(response, "read", bytes=False, desc=target.name, **bar) as stream,
            ):
                shutil.copyfileobj(stream, file, CHUNK)
            if response.length:  # so much is missing
                raise ConnectionError(f"broke off before {total / 1e6:.1f} MB were there")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing lies beyond what we have
            raise UserError(f"{url}: the server says {error.code} {cut(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        kept = part.stat().st_size / 1e6 if part.exists() else 0
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UserError(
            f"{url}: {cut(reason, 120)}; {kept:.1f} MB are kept, the same command goes on from "
            "there"
        ) from None
    found = checksum(part)
    if sha256 and found != sha256:
        part.unlink()
        raise UserError(
            f"{url}: checksum {found[:16]}… instead of {sha256[:16]}…: it was damaged, or is "
            "another file; it is removed, the same command starts again"
        )
    part.replace(target)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into ``folder``, all of it or nothing.

    Members that lie outside the folder, links that lead out of it and device files are refused
    (tarfile's ``data`` filter): ``UserError``.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python unpacks archives unsafely: use 3.11.4 or a later one")
    unfinished = folder / f".{archive.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(unfinished, tqdm(tar, "unpack", unit="file"), filter="data")
        _move_into(unfinished, folder)
    except tarfile.FilterError as error:
        raise UserError(
            f"{cut_path(archive)}: unsafe archive, not unpacked: {cut(error, 120)}"
        ) from None
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(
            f"{cut_path(archive)}: broken archive ({cut(error, 80)}): remove it and run again"
        ) from None
    except OSError as error:
        raise UserError(f"{cut_path(archive)}: cannot be unpacked: {cut(error, 120)}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move_into(source: Path, target: Path) -> None:
    """Move everything below ``source``; folders that are there already are filled up."""
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and not path.is_symlink() and there.is_dir():
            _move_into(path, there)
        else:
            path.replace(there)
