"""Finished work, in folders found by the content of their configuration and never half written.

A folder is filled under the name ``.<name>.unfinished`` by the one process that holds
``.<name>.lock``, and renamed last; so a killed run leaves an unfinished folder that the next one
goes on from or begins anew, and of two runs at once the second waits for the first.
``checksums.json`` tells later whether a finished folder is still what was written.

Where the file system has no locks (``flock`` fails), every process fills a folder of its own and
the first to finish wins: nothing is harmed, but work is done twice and killed work begins anew.
Network file systems that only pretend to lock (NFS mounted ``nolock``) want one machine at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

from .errors import UserError, cut

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKSUMS = "checksums.json"
CHECKPOINT = "checkpoint"  # the file that interrupted work goes on from; gone when it is finished
# seconds of work that a kill may cost, at most; None: what checkpoint_seconds() says
CHECKPOINT_SECONDS: float | None = None

# ---------------------------------------------------------------- configurations


def plain(config: dict) -> dict:
    """A configuration as JSON has it: dataclasses become objects, tuples lists."""
    return json.loads(json.dumps(config, default=dataclasses.asdict))


def fingerprint(config: dict) -> str:
    """Ten hex digits that stand for a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


# ---------------------------------------------------------------- folders

# folders whose checksums this process, or its parent, has compared: they are not read again
intact: set[Path] = set()


def stored(parent: Path, name: str, config: dict, compute, resume: bool = False) -> Path | None:
    """The folder ``parent/name-<fingerprint>``; ``compute(folder)`` fills it if it is missing.

    With ``compute`` None a missing folder is only told, by returning None. With ``resume``,
    ``compute`` finds in its folder what a killed run had put there, else it finds it empty. A
    folder that no longer matches its checksums is computed again, and a line on standard error
    says so. Raises ``UserError`` for a folder whose config.json is another configuration.
    """
    folder = parent / f"{name}-{fingerprint(config)}"
    if _damage(folder, config) is None:
        return folder
    if compute is None:
        return None
    parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder) as unfinished:
        damage = _damage(folder, config)  # another process may have finished it meanwhile
        if damage is None:
            return folder
        if folder.exists():
            print(f"{folder} is damaged ({damage}): computing it again", file=sys.stderr)
            shutil.rmtree(folder)
        if not resume:
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(exist_ok=True)
        remove_half_written(unfinished)
        try:
            compute(unfinished)
            write_json(unfinished / "config.json", config)
            (unfinished / CHECKSUMS).unlink(missing_ok=True)  # of a run killed before the renaming
            files = sorted(path for path in unfinished.rglob("*") if path.is_file())
            sums = {path.relative_to(unfinished).as_posix(): checksum(path) for path in files}
            write_json(unfinished / CHECKSUMS, sums)
            try:
                unfinished.rename(folder)
            except OSError:
                if _damage(folder, config) is not None:  # else another process finished it first
                    raise
        finally:
            if not resume or folder.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
    intact.add(folder)
    return folder


def remove_half_written(folder: Path) -> None:
    """Remove files that a killed process was writing."""
    for path in folder.rglob(".*"):
        path.unlink()


def _damage(folder: Path, config: dict) -> str | None:
    """What is wrong with a finished folder, None if nothing is; the first look reads it all."""
    if not folder.exists():
        return "missing"
    name = "config.json"
    try:
        if json.loads((folder / name).read_text()) != config:
            raise UserError(f"{folder} holds another configuration: remove it and run again")
        if folder in intact:
            return None
        name = CHECKSUMS
        for name, written in json.loads((folder / CHECKSUMS).read_text()).items():
            if checksum(folder / name) != written:
                return f"{name} has changed"
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return f"{name} is missing"
    except (ValueError, AttributeError):
        return f"{name} cannot be read"
    intact.add(folder)
    return None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- one process at a time


@contextlib.contextmanager
def _only_one(folder: Path):
    """Yields the name to fill ``folder`` under, once no other process fills it."""
    path = folder.with_name(f".{folder.name}.lock")
    while (lock := _locked(path)) and not _is(lock, path):
        lock.close()  # its last owner has removed it: take the one that is there now
    if lock is None:
        yield folder.with_name(f".{folder.name}.{_owner()}")
        return
    with lock:
        try:
            yield folder.with_name(f".{folder.name}.unfinished")
        finally:
            path.unlink(missing_ok=True)  # before the lock is given back


def _locked(path: Path, wait: bool = True):
    """The file at ``path``, open and locked; None where there are no locks, or ``wait`` is
    False and another process holds it."""
    if fcntl is None:
        return None
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            file.close()
            return None
        _say_waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # this file system has none
        file.close()
        path.unlink(missing_ok=True)
        return None
    return file


def _is(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@functools.cache  # once a process
def _say_waiting() -> None:
    print("another run computes the same: waiting for what it has begun", file=sys.stderr)


def _owner() -> str:
    return f"{platform.node()}.{os.getpid()}"


def sweep(parent: Path) -> None:
    """Remove what killed processes of this machine left behind and nobody will go on from."""
    for path in parent.glob(f".*.{platform.node()}.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isdigit() and not _alive(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    for path in parent.glob(".*.lock"):
        if lock := _locked(path, wait=False):
            with lock:
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # somebody else's
    return True


# ---------------------------------------------------------------- files


def write_bytes(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file whole or not at all; with ``sync`` it outlives a power cut, too."""
    temporary = path.with_name(f".{path.name}.{_owner()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no UTF-8 in a file's name is spelled out."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, record: dict) -> None:
    """Write a record whole or not at all, for people to read."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_csv(path: Path, frame) -> None:
    """Write a DataFrame whole or not at all, six significant digits."""
    write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_csv(path: Path):
    """A table with every bit of its numbers, and ids (and alphabets) as they were written: "007",
    "NA"."""
    import pandas as pd

    written = dict.fromkeys(("utt_id", "alphabet"), str)
    return pd.read_csv(path, dtype=written, keep_default_na=False, na_values=[""])


def torch_bytes(state: dict) -> bytes:
    """What ``torch.save`` would write of tensors and plain values."""
    import torch

    buffer = io.BytesIO()  # torch.save to a file hides a full disk behind an error of its own
    torch.save(state, buffer)
    return buffer.getvalue()


def checkpoint_seconds() -> float:
    """``ALSPEECH_CHECKPOINT_SECONDS``, else five: a checkpoint a few times as often is as cheap.
    Raises ``UserError`` for what are no seconds."""
    value = os.environ.get("ALSPEECH_CHECKPOINT_SECONDS") or "5"
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nan is not, either
        raise UserError(f"ALSPEECH_CHECKPOINT_SECONDS={cut(value)}: a number of seconds, 0 or more")
    return seconds


class Checkpoint:
    """What interrupted work in a folder goes on from: tensors and plain values, with a checksum."""

    def __init__(self, folder: Path):
        self.path = folder / CHECKPOINT
        self._written, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Is the last one older than ``CHECKPOINT_SECONDS``, and than twenty times what it took to
        write (a large model's is gigabytes)?"""
        least = checkpoint_seconds() if CHECKPOINT_SECONDS is None else CHECKPOINT_SECONDS
        if least > 0:
            least = max(least, 20 * self._took)
        return time.monotonic() - self._written >= least

    def save(self, state: dict) -> None:
        begun = time.monotonic()
        data = torch_bytes(state)
        write_bytes(self.path, hashlib.sha256(data).digest() + data)
        self._written = time.monotonic()
        self._took = self._written - begun

    def load(self) -> dict | None:
        """What was saved last; None if there is nothing, or (said in a line) it is damaged."""
        import torch

        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            print(f"{self.path} is damaged: beginning anew", file=sys.stderr)
            return None
        return torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
