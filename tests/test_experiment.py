"""The store of finished work, the grid, the command line and its one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import REPOSITORY, alspeech

from alspeech.config import UserError, load_settings
from alspeech.experiment import grid, stored, table1, write_text

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


def test_whoever_finishes_first_wins(tmp_path, monkeypatch):
    def overtaken(folder):
        fill(folder)
        monkeypatch.setattr("os.getpid", lambda: 1)  # as another process would
        stored(tmp_path, "x", CONFIG, fill)
        monkeypatch.undo()

    folder = stored(tmp_path, "x", CONFIG, overtaken)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_grid_has_every_cell_once():
    settings = load_settings("laptop")
    cells = grid(settings)
    assert len(cells) == len(set(cells)) == settings.seeds * (4 * 4 + 2)


def test_table1_has_ours_beside_the_papers():
    curves = pd.DataFrame(
        [("egl", 20, s, 5.0, 10.0 + s, 20.0) for s in range(3)],
        columns=["strategy", "query_percent", "seed", "ctc", "cer", "wer"],
    )
    row = table1(curves, pd.read_csv(REPOSITORY / "results" / "paper_table1.csv")).iloc[0]
    assert row["cer"] == 11 and row["cer_low"] < 11 < row["cer_high"] and row["wer_paper"] == 23.63


def test_files_are_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"


def tables(root) -> dict:
    return {path.name: path.read_bytes() for path in (root / "results").rglob("*.csv")}


def test_equal_seeds_give_equal_tables_even_after_a_kill(root, tmp_path_factory):
    """Two runs from nothing, one of them killed on the way: the same bytes."""
    first = alspeech(root, "run", "--preset", "tiny")
    assert first.returncode == 0, first.stderr
    other = tmp_path_factory.mktemp("other")
    (other / "configs").symlink_to(root / "configs")
    killed = subprocess.Popen(
        [sys.executable, "-m", "alspeech", "run", "--preset", "tiny"],
        env={**os.environ, "ALSPEECH_ROOT": str(other)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list((other / "build" / "cells").glob("[a-z]*-*"))) < 5:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not tables(other)
    again = alspeech(other, "run", "--preset", "tiny")
    assert again.returncode == 0, again.stderr
    assert tables(root).keys() == {"error_curves.csv", "scores.csv"}
    assert tables(root) == tables(other)
    assert not list((other / "build" / "cells").glob(".*")), "leftovers of the killed run"


# ---------------------------------------------------------------- bad input: one line each


@pytest.mark.parametrize("arguments, words", [
    (["--preset", "lapdog"], ["unknown preset 'lapdog'", "laptop", "smoke"]),
    (["--corpus", "timit"], ["unknown corpus 'timit'", "synthetic", "fsdd"]),
    (["--preset", "smoke", "--corpus", "fsdd"], ["needs DATA", "github.com"]),
    (["--preset", "smoke", "--corpus", "fsdd", "--data", "gone"], ["no folder", "github.com"]),
])  # fmt: skip
def test_bad_input_is_one_line_that_names_what_is_valid(root, arguments, words):
    done = alspeech(root, "run", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words)


@pytest.mark.parametrize("line, words", [
    ("strategies: [random, elg]", ["unknown strategy 'elg'", "entropy, pctc, egl"]),
    ("query_percents: [10, 140]", ["140 is outside (0, 100]"]),
    ("seeds: 0", ["seeds is 0"]),
    ("sedes: 3", ["unknown key 'sedes'", "seeds"]),
    ("training: {rat: 1}", ["training: unknown key 'rat'", "rate"]),
    ("build: {pool: 0}", ["build: pool is 0", "at least one"]),
    ("build: {alphabet: greek}", ["unknown alphabet 'greek'", "english, learned"]),
    ("build: {min_seconds: 9, max_seconds: 3}", ["min_seconds 9", "below the second"]),
])  # fmt: skip
def test_a_bad_preset_file_is_one_line(root, line, words):
    (root / "configs" / "bad.yaml").write_text(line + "\n")
    done = alspeech(root, "run", "--preset", "bad")
    assert done.returncode == 2
    (message,) = done.stderr.strip().splitlines()
    assert all(word in message for word in words)
    assert not (root / "results").exists()


def test_a_missing_notebook_is_one_line(root):
    done = alspeech(root, "notebook", "notebooks/9.ipynb", "--preset", "tiny")
    assert done.returncode == 2 and "no notebook 'notebooks/9.ipynb'" in done.stderr
