"""The store of finished work: never half written, never computed twice, damage is noticed."""

import errno
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alspeech.workshop import store
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import read_csv, stored, sweep, write_text

CONFIG = {"step": "test", "seed": 1}


def fill(folder):
    (folder / "metrics.json").write_text("{}")


def test_finished_work_is_not_computed_twice(tmp_path):
    calls = []
    for _ in range(2):
        folder = stored(tmp_path, "x", CONFIG, lambda f: (calls.append(1), fill(f)))
    assert calls == [1] and json.loads((folder / "config.json").read_text()) == CONFIG


def test_looking_computes_nothing(tmp_path):
    assert stored(tmp_path, "x", CONFIG, None) is None and not list(tmp_path.iterdir())
    assert stored(tmp_path, "x", CONFIG, fill) == stored(tmp_path, "x", CONFIG, None)


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    folder = stored(tmp_path, "x", CONFIG, fill)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "seed": 2}))
    with pytest.raises(UserError, match="another configuration: remove it"):
        stored(tmp_path, "x", CONFIG, fill)


def test_a_failed_computation_leaves_nothing(tmp_path):
    def fail(folder):
        fill(folder)
        raise RuntimeError("lights out")

    with pytest.raises(RuntimeError):
        stored(tmp_path, "x", CONFIG, fail)
    assert not list(tmp_path.iterdir())


def test_files_are_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"


def folders(path):
    return sorted(p.name for p in path.iterdir())


def anew(monkeypatch):
    """As a new process, which has compared no checksums yet."""
    monkeypatch.setattr(store, "intact", set())


def fill_two(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "a.csv").write_text("one,two\n")
    (folder / "metrics.json").write_text("{}")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["deep/a.csv", "metrics.json", "checksums.json"])
@pytest.mark.parametrize("harm", [
    flip, Path.unlink, lambda p: os.truncate(p, 1), lambda p: p.write_bytes(b""),
], ids=["flipped", "deleted", "truncated", "emptied"])  # fmt: skip
def test_damage_is_said_in_one_line_and_mended(tmp_path, monkeypatch, capsys, name, harm):
    folder = stored(tmp_path, "x", CONFIG, fill_two)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    harm(folder / name)
    anew(monkeypatch)
    assert stored(tmp_path, "x", CONFIG, None) is None
    assert stored(tmp_path, "x", CONFIG, fill_two) == folder
    (line,) = capsys.readouterr().err.splitlines()
    assert folder.name in line and "computing it again" in line
    assert name in line or (name, harm) == ("checksums.json", flip)  # then it belies another file
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert folders(tmp_path) == [folder.name]


def test_an_unreadable_configuration_is_damage_another_one_is_refused(tmp_path, monkeypatch):
    folder = stored(tmp_path, "x", CONFIG, fill)
    (folder / "config.json").write_text("{")
    anew(monkeypatch)
    assert stored(tmp_path, "x", CONFIG, fill) == folder
    assert json.loads((folder / "config.json").read_text()) == CONFIG


def test_an_intact_folder_is_read_once_a_process(tmp_path, monkeypatch):
    folder = stored(tmp_path, "x", CONFIG, fill_two)
    anew(monkeypatch)
    assert stored(tmp_path, "x", CONFIG, None) == folder
    monkeypatch.setattr(store, "checksum", lambda path: pytest.fail("read again"))
    assert stored(tmp_path, "x", CONFIG, None) == folder


def test_a_kill_between_the_checksums_and_the_renaming_harms_nothing(tmp_path, monkeypatch, capsys):
    def fill(folder):
        (folder / "a").write_text("a")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path, "x", {}, fill, resume=True)
    assert list(tmp_path.glob(".*/checksums.json"))  # they were written
    folder = stored(tmp_path, "x", {}, fill, resume=True)
    store.intact.clear()
    assert stored(tmp_path, "x", {}, None) == folder and not capsys.readouterr().err


def test_a_folder_is_gone_on_from_only_where_that_is_asked_for(tmp_path):
    def half(folder):
        assert folders(folder) == []
        (folder / "half").write_text("")
        (folder / ".table.csv.host.123").write_text("a file that was being written")
        raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path, "x", CONFIG, half, resume=resume)
        assert len(folders(tmp_path)) == resume
    sweep(tmp_path)
    found = []
    stored(tmp_path, "x", CONFIG, lambda f: (found.extend(folders(f)), fill(f)), resume=True)
    assert found == ["half"] and len(folders(tmp_path)) == 1


# ---------------------------------------------------------------- several processes


def count_and_fill(folder):
    with open(folder.parent / "calls", "a") as file:
        file.write("called\n")
    time.sleep(0.3)
    fill(folder)


def several(tmp_path, count=4):
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=stored, args=(tmp_path, "x", CONFIG, count_and_fill, True))
        for _ in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    calls = (tmp_path / "calls").read_text().count("called")
    (tmp_path / "calls").unlink()
    (folder,) = folders(tmp_path)  # and neither a lock nor anything unfinished
    assert stored(tmp_path, "x", CONFIG, None) == tmp_path / folder
    return calls


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path):
    assert several(tmp_path) == 1


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(store.fcntl, "flock", refuse)
    assert several(tmp_path) == 4


def test_leftovers_of_dead_processes_are_swept_and_those_of_live_ones_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = store.platform.node()
    (tmp_path / f".x-1234567890.{host}.{dead.pid}").mkdir()
    (tmp_path / f".a.csv.{host}.{dead.pid}").write_text("half")
    (tmp_path / ".x-1234567890.lock").write_text("")
    kept = [f".x-1234567890.{host}.{os.getpid()}", f".x-1234567890.another.{dead.pid}",
            ".y-1234567890.lock", ".y-1234567890.unfinished"]  # fmt: skip
    for name in kept:
        (tmp_path / name).touch()
    with store._locked(tmp_path / ".y-1234567890.lock"):
        sweep(tmp_path)
    assert folders(tmp_path) == sorted(kept)


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """The kernel refuses to let files grow beyond 4 kB, in the middle of a write."""
    write_text(tmp_path / "table.csv", "old")

    def big(folder):
        write_text(folder / "scores.csv", "x" * 100_000)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(tmp_path / "table.csv", "x" * 100_000)
        with pytest.raises(OSError, match="File too large"):
            stored(tmp_path, "x", CONFIG, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert folders(tmp_path) == ["table.csv"] and (tmp_path / "table.csv").read_text() == "old"
    assert stored(tmp_path, "x", CONFIG, big)


def test_ids_and_alphabets_are_read_as_they_were_written(tmp_path):
    (tmp_path / "x.csv").write_text("utt_id,alphabet,wer\n007,0123,1.5\nNA,null,\n")
    found = read_csv(tmp_path / "x.csv")
    assert list(found["utt_id"]) == ["007", "NA"] and list(found["alphabet"]) == ["0123", "null"]
    assert found["wer"].iloc[0] == 1.5 and found["wer"].isna().iloc[1]
