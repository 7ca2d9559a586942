"""The grid, the command line and its one-line errors."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPOSITORY, alspeech

from alspeech.config import load_settings
from alspeech.experiment import grid, table1


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


# ---------------------------------------------------------------- bad input: one line each


@pytest.mark.parametrize("arguments, words", [
    (["--preset", "lapdog"], ["unknown preset 'lapdog'", "laptop", "smoke"]),
    (["--corpus", "timit"], ["unknown corpus 'timit'", "synthetic", "fsdd"]),
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


# ---------------------------------------------------------------- starting from another model

BASE_LOSSES = """
import os
import subprocess
import sys

import pandas as pd
from alspeech.config import load_settings
from alspeech.experiment import base_model
for preset in ("tiny", "warm"):
    folder = base_model(load_settings(preset), seed=0)
    print(pd.read_csv(folder / "history.csv")["train_loss"].iloc[0])
"""


def test_base_training_can_go_on_from_the_embedded_corpus(root):
    tiny = (root / "configs" / "tiny.yaml").read_text()
    (root / "configs" / "warm.yaml").write_text(tiny + "start: tiny\n")
    environment = {**os.environ, "ALSPEECH_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", BASE_LOSSES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cold, warm = map(float, done.stdout.split())
    assert warm < cold - 1  # nats an utterance, in the first pass


@pytest.mark.parametrize("text, words", [
    ("start: lapdog\n", ["mine.yaml: start", "unknown preset 'lapdog'", "laptop"]),
    ("start: tiny\nbuild: {base: 8, pool: 8, validation: 4, test: 4}\n", ["take over its 'model'"]),
])  # fmt: skip
def test_a_start_that_does_not_fit_is_one_line(root, text, words):
    (root / "configs" / "mine.yaml").write_text(text)
    done = alspeech(root, "run", "--preset", "mine")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words)
