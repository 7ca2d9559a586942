"""The grid, the command line and its one-line errors."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPOSITORY, alspeech

from alspeech.experiment import grid
from alspeech.tables import table1
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError


def test_the_grid_has_every_cell_once():
    settings = load_settings("laptop")
    cells = grid(settings)
    assert len(cells) == len(set(cells)) == settings.seeds * (4 * 2 + 2)


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


@pytest.mark.parametrize("text, words", [
    # keys
    ("sedes: 3", ["unknown key 'sedes'", "seeds"]),
    ("training: {rat: 1}", ["training: unknown key 'rat'", "rate"]),
    ("pseudo_labels: {warmup: 1}", ["pseudo_labels: unknown key 'warmup'", "warm_up"]),
    ("3: 4", ["unknown key '3'"]),
    ("corpus: fsdd", ["corpus is no key of a preset"]),
    # kinds of values
    ("seeds: three", ["seeds is three", "whole number"]),
    ("seeds: 2.5", ["seeds is 2.5", "whole number"]),
    ("seeds: yes", ["seeds is True", "whole number"]),
    ("query_percents: [yes]", ["query_percents is True", "number"]),
    ("build: {seed: -1}", ["build: seed is -1", "greater than or equal to 0"]),
    ("strategies: random", ["strategies is random", "a list"]),
    ("query_percents: [10, ten]", ["query_percents is ten", "number"]),
    ("model: [3, 4]", ["model is [3, 4]", "keys and values"]),
    ("training: {rate: fast}", ["training: rate is fast", "number"]),
    ("aloe: {encoders: 3}", ["aloe: encoders is 3", "a list"]),
    ("build: {pool: 1600 utterances}", ["build: pool is 1600 utterances", "whole number"]),
    ("loss_prediction: {hybrid: perhaps}", ["loss_prediction: hybrid is perhaps", "boolean"]),
    # ranges, in every section
    ("query_percents: [10, 140]", ["query_percents is 140", "less than or equal to 100"]),
    ("seeds: 0", ["seeds is 0", "greater than or equal to 1"]),
    ("egl_method: guess", ["egl_method is guess", "'rank'", "'exact'"]),
    ("build: {pool: 0}", ["build: pool is 0", "greater than or equal to 1"]),
    ("build: {alphabet: greek}", ["build: alphabet is greek", "'english' or 'learned'"]),
    ("build: {language: la}", ["build: language is la", "'en' or 'cmn'"]),
    ("build: {min_seconds: 9, max_seconds: 3}", ["min_seconds 9 must be below max_seconds 3"]),
    ("build: {language: cmn}", ["alphabet english with language cmn", "alphabet: learned"]),
    ("model: {cell: gruu}", ["model: cell is gruu", "'lstm'"]),
    ("model: {kernels: [[5, 5]]}", ["model: kernels and strides"]),
    ("training: {rate: 0}", ["training: rate is 0", "greater than 0"]),
    ("training: {rate: .nan}", ["training: rate is nan", "finite"]),
    ("training: {weight_decay: -1}", ["training: weight_decay is -1", "greater than or equal"]),
    ("loss_prediction: {detach: 2}", ["loss_prediction: detach is 2", "less than or equal to 1"]),
    ("loss_prediction: {rounds: [20, 10]}", ["loss_prediction: rounds must be rising"]),
    ("loss_prediction: {variants: [joint]}", ["loss_prediction: variants must name joint, no_p"]),
    ("pseudo_labels: {dropout: 1}", ["pseudo_labels: dropout is 1", "less than 1"]),
    ("pseudo_labels: {query_percents: [100]}", ["pseudo_labels: query_percents is 100"]),
    ("aloe: {runs: 0}", ["aloe: runs is 0", "greater than or equal to 1"]),
    ("aloe: {encoders: []}", ["aloe: encoders is []", "at least 1"]),
    ("aloe: {strategies: [margin]}", ["aloe: strategies must name random"]),
    # files
    ("seeds: [1, 2", ["not to be read as YAML: line 1"]),
    ("seeds: 1\n  pool: 3\n", ["not to be read as YAML: line 2"]),
    ("", ["nothing in it", "keys and values"]),
    ("- seeds\n- pool\n", ["['seeds', 'pool']", "no mapping", "keys and values"]),
    ("\xff: 3".encode("latin1"), ["not to be read as YAML"]),
    ("egl_method: " + "a" * 10_000, ["egl_method is aaa"]),
])  # fmt: skip
def test_a_bad_preset_file_is_one_short_line(root, monkeypatch, text, words):
    monkeypatch.setattr("alspeech.workshop.config.ROOT", root)
    content = text if isinstance(text, bytes) else text.encode()
    (root / "configs" / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_settings("bad")
    message = str(error.value)
    assert message.startswith("bad.yaml: ") and all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


def test_numbers_are_read_as_people_write_them(root, monkeypatch):
    monkeypatch.setattr("alspeech.workshop.config.ROOT", root)
    (root / "configs" / "mine.yaml").write_text("training: {rate: 1e-3, clip: 5}\n")
    assert load_settings("mine").training.rate == 0.001  # for YAML 1.1 that is a string


@pytest.mark.parametrize("line, words", [
    ("strategies: [random, elg]", ["unknown strategy 'elg'", "entropy, pctc, egl"]),
    ("seeds: three", ["bad.yaml: seeds is three"]),
])  # fmt: skip
def test_a_bad_preset_ends_the_command_with_one_line(root, line, words):
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
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError
from alspeech.experiment import base_model
for preset in ("tiny", "warm"):
    folder = base_model(load_settings(preset), seed=0).folder()
    print(pd.read_csv(folder / "history.csv")["train_loss"].iloc[0])
"""


def test_base_training_can_go_on_from_the_embedded_corpus(spoken_root):
    root = spoken_root
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
    done = alspeech(root, "run", "--preset", "mine", ALSPEECH_JOBS="1")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words)
