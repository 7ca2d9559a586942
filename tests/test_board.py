"""The leaderboard: strangers' functions run confined, equal ones get equal numbers, and no seed
leaks."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import alspeech, tiny_batch, tiny_model

from alspeech.acquisition import entropy
from alspeech.course import board
from alspeech.course.isolation import Isolation, Limits, Refused
from alspeech.course.page import page
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError

ENTROPY = """
from alspeech.acquisition import mean_entropy as _mean

def score(model, batch):
    return _mean(model(batch.features).log_softmax(-1))
"""


@pytest.fixture(scope="module")
def isolated():
    limits = Limits(seconds=1, memory=2**29)
    with Isolation(limits) as isolation:
        try:
            isolation.score("entropy", ENTROPY, tiny_model(), [tiny_batch()])
        except UserError as error:  # macOS, an old kernel, a container that forbids it
            pytest.skip(str(error))
        yield isolation


def body(*lines, imports=""):
    told = "\n    ".join(lines)
    return f"import torch\n{imports}\ndef score(model, batch):\n    {told}\n"


SECRET = "the transcript that nobody may read"
ATTACKS = {
    "endless loop": (body("while True: pass"), "processor time"),
    "closed pipe": (body("os.close(3)", "while True: pass", imports="import os"), ""),
    "memory": (body("x = [bytearray(10**8) for _ in range(1000)]"), "more memory"),
    "memory of tensors": (body("x = torch.zeros(10**10)"), "more memory"),
    "exception": (body("raise ValueError('first\\nsecond')"), r"ValueError: first\nsecond"),
    "exit": (body("os._exit(3)", imports="import os"), "ended by itself (3)"),
    "crash": (body("ctypes.string_at(0)", imports="import ctypes"), "ended by itself (SIGSEGV)"),
    "NaN": (body("return torch.full((len(batch),), float('nan'))"), "6 of 6 scores are NaN"),
    "infinite": (body("return torch.full((len(batch),), float('inf'))"), "6 of 6 scores"),
    "shape": (body("return torch.zeros(len(batch), 1)"), "shape (3, 1) where (3,)"),
    "nothing": (body("pass"), "refused"),
    "words": (body("return ['a'] * len(batch)"), "refused"),
    "store": (body("return open({file!r}).read()"), "PermissionError"),
    "folders": (body("return os.listdir('/')", imports="import os"), "PermissionError"),
    "proc": (body("return open('/proc/1/environ').read()"), "PermissionError"),
    "own parent": (body("return os.listdir(f'/proc/{{os.getppid()}}')", imports="import os"),
                   "PermissionError"),
    "write": (body("open({file!r}, 'a')"), "PermissionError"),
    "write to /tmp": (body("open('/tmp/alspeech-leak', 'w').write('x')"), "PermissionError"),
    "socket": (body("socket.socket()", imports="import socket"), "PermissionError"),
    "socket pair": (body("socket.socketpair()", imports="import socket"), "PermissionError"),
    "fork": (body("os.fork()", imports="import os"), "PermissionError"),
    "another program": (body("subprocess.run(['true'])", imports="import subprocess"),
                        "PermissionError"),
    "signal": (body("os.kill(os.getppid(), 9)", imports="import os"), "PermissionError"),
    "more for itself": (body("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
                             imports="import resource"), "ValueError"),
    "a gigabyte of print": (body("for _ in range(10**6): print('x' * 1000)"), "prints more"),
    "forged answer": (body("os.write(3, b'S' + bytes(10**6))", imports="import os"), "pipe"),
    "forged scores": (body("os.write(3, b'S' + bytes(48))", "os._exit(0)", imports="import os"),
                      None),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_submission_may_not_do_is_refused_in_a_line_and_survived(attack, isolated, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    source, told = ATTACKS[attack]
    source = source.replace("{file!r}", repr(str(tmp_path / "secret"))).replace("{{", "{")
    source = source.replace("}}", "}")
    model, batches = tiny_model().float(), [tiny_batch(dtype=torch.float32)] * 2
    if told is None:  # whoever writes his own scores past the function has scores, and no more
        assert (isolated.score(attack, source, model, batches).scores == 0).all()
    else:
        with pytest.raises(Refused) as refused:
            isolated.score(attack, source, model, batches)
        assert told in str(refused.value) or told == "refused"
        assert "\n" not in str(refused.value) and SECRET not in str(refused.value)
    assert (tmp_path / "secret").read_text() == SECRET
    # and the next one is served as if nothing had been
    found = isolated.score("entropy", ENTROPY, model, batches)
    assert np.allclose(found.scores[:3], entropy(model, batches[0]).detach(), rtol=1e-5)


def test_what_a_submission_does_to_itself_ends_with_it(isolated):
    """Seeds, global state, the package's own functions."""
    model, batches = tiny_model().float(), [tiny_batch(dtype=torch.float32)]
    spoil = body(
        "acquisition.mean_entropy = None",
        "torch.manual_seed(5); torch.set_default_dtype(torch.float16)",
        "model.layers[-1].weight.data.zero_()",
        "return torch.zeros(len(batch))",
        imports="from alspeech import acquisition",
    )
    before = isolated.score("entropy", ENTROPY, model, batches).scores
    assert (isolated.score("spoil", spoil, model, batches).scores == 0).all()
    assert (isolated.score("entropy", ENTROPY, model, batches).scores == before).all()


def test_a_board_says_what_confined_submissions(isolated):
    found = isolated.score("entropy", ENTROPY, tiny_model(), [tiny_batch()])
    assert {"limits", "Landlock", "seccomp"} <= set(found.layers)
    with (
        pytest.raises(UserError, match="cannot confine strangers' code .a wall missing."),
        Isolation(needed=("a wall",)) as demanding,
    ):
        demanding.score("entropy", ENTROPY, tiny_model(), [tiny_batch()])


# ---------------------------------------------------------------- a board


def submissions(folder, **sources):
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return str(folder)


BY_COMPANY = body("return torch.arange(len(batch)).double()")
RANDOM = """
from alspeech.acquisition import uniform as _uniform

def score(model, batch):
    return _uniform(batch.utt_ids, 7)
"""


SPY = """
import gc, hashlib, sys

KNOWN = set("{digests}".split())

def score(model, batch):
    seen, frame = list(gc.get_objects()), sys._getframe()
    while frame:
        seen += list(frame.f_locals.values())
        frame = frame.f_back
    texts = {{x for x in seen if isinstance(x, str)}}
    for each in seen:
        if isinstance(each, (list, tuple, set, frozenset)):
            texts |= {{x for x in each if isinstance(x, str)}}
        if isinstance(each, dict):
            texts |= {{x for pair in each.items() for x in pair if isinstance(x, str)}}
    found = {{hashlib.sha256(x.encode(errors="replace")).hexdigest() for x in texts}} & KNOWN
    raise LookupError(f"{{len(found)}} secrets among {{'many' if len(texts) > 9999 else 'few'}}")
"""


def spying_on(root) -> str:
    """A submission that looks for transcripts, for the utterances' ids and for words of its own."""
    manifest = next((root / "data").glob("synthetic-even-*")) / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    secrets = {row["text"] for row in rows if row["text"].count(" ") > 2}
    secrets |= {row["utt_id"] for row in rows}
    digests = " ".join(hashlib.sha256(x.encode()).hexdigest() for x in secrets)
    return SPY.format(digests=digests)


def test_a_board_pairs_with_random_and_egl_and_leaks_no_seed(spoken_root, tmp_path, isolated):
    preset = spoken_root / "configs" / "tiny.yaml"
    preset.write_text(preset.read_text().replace("[20, 50]", "[20]"))
    folder = submissions(
        tmp_path / "handed in", like_entropy=ENTROPY, chance=RANDOM, company=BY_COMPANY,
        spy=spying_on(spoken_root), broken="def f(:\n", two=f"{ENTROPY}\n{ENTROPY}".replace(
            "score", "other", 1),
    )  # fmt: skip
    command = ("leaderboard", "--preset", "tiny", "--submissions", folder)
    done = alspeech(spoken_root, *command, ALSPEECH_JOBS="1")
    assert done.returncode == 0, done.stderr
    refused = dict(re.findall(r"^refused: (\w+): (.*)$", done.stdout, re.M))
    assert refused.keys() == {"company", "broken", "two", "spy"}
    assert "LookupError: 0 secrets among many" in refused["spy"]
    assert "no Python, line 1" in refused["broken"] and "other, score" in refused["two"]
    assert "change with the batches" in refused["company"]
    out = spoken_root / "build" / "course" / "synthetic-tiny" / "board"
    rows = pd.read_csv(out / "board.csv").set_index("name")
    own = [x for x in rows if x not in ("submitted", "forward_passes")]
    assert rows.loc["like_entropy", own].equals(rows.loc["entropy", own])
    assert rows.loc["random", ["difference_random", "low_random", "high_random"]].eq(0).all()
    assert rows.loc["oracle_loss", ["rank_from", "rank_to"]].isna().all()
    assert (rows["rank_from"].dropna() <= rows["rank_to"].dropna()).all()
    assert rows["forward_passes"].drop(["oracle_loss", "oracle_gradient"]).notna().all()
    html = (out / "index.html").read_text()
    assert "Landlock" in html and "like_entropy" in html and "public seeds" in html
    cells = {p.name: p.stat().st_mtime for p in (spoken_root / "build" / "cells").iterdir()}
    assert alspeech(spoken_root, *command, ALSPEECH_JOBS="1").returncode == 0
    again = {p.name: p.stat().st_mtime for p in (spoken_root / "build" / "cells").iterdir()}
    assert again == cells  # nothing is computed twice


# ---------------------------------------------------------------- ranks, as far as intervals go


def curves(**errors):
    rows = [
        {"strategy": name, "query_percent": 10, "seed": seed, "macro_wer": value}
        for name, values in errors.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_ranks_are_told_as_far_as_intervals_allow_them():
    seed = np.random.default_rng(0).normal(0, 3, 10)  # is in all of them alike
    up = np.tile([0.2, -0.2], 5)
    late = np.repeat([0.2, -0.2], 5)
    table = curves(**{
        "random": 30 + seed, "egl": 30 + seed + up, "board-good": 27 + seed + late,
        "board-bad": 33 + seed + up, "board-same": 30 + seed + late,
    })  # fmt: skip
    names = list(table["strategy"].unique())
    rows = board.ranked(table, 10, names, {"board-good": 2.0}).set_index("name")
    ranks = {name: (row.rank_from, row.rank_to) for name, row in rows.iterrows()}
    assert ranks["good"] == (1, 1) and ranks["bad"] == (5, 5)
    assert ranks["same"] == ranks["random"] == ranks["egl"] == (2, 4)
    assert rows.loc["good", "high_random"] < 0 < rows.loc["bad", "low_egl"]


def test_names_and_reasons_are_escaped():
    table = curves(**{"random": [1.0, 2], "egl": [2.0, 1], "board-<b>": [1.0, 1]})
    rows = board.ranked(table, 10, list(table["strategy"].unique()), {})
    found = board.Board(rows, table, {"<i>": "<script>"}, (), 10, board.Seeds((1, 2)))
    html = page(load_settings("smoke"), found)
    assert "<script>" not in html and "&lt;script&gt;" in html and "&lt;b&gt;" in html


# ---------------------------------------------------------------- seeds


SALT = "salt 0123456789abcdef"


@pytest.mark.parametrize("text, told", [
    (f"{SALT}\nseed 4\n", "1 seed: a difference without an interval"),
    (f"{SALT}\n", "0 seed"),
    ("seed 4\nseed 5\n", "one line 'salt …'"),
    ("salt abc\nseed 4\nseed 5\n", "one line 'salt …'"),
    (f"{SALT}\nseed 4\nseed 4\n", "seed 4 stands there twice"),
    (f"{SALT}\nseed four\nseed 5\n", "line 2: 'seed four'"),
    (f"{SALT}\nseed -1\nseed 5\n", "line 2"),
    (f"{SALT}\nhello\n", "line 2: 'hello'"),
    (b"\xff\xfe", "SEEDS="),
])  # fmt: skip
def test_seeds_that_are_none_are_a_line(tmp_path, text, told):
    path = tmp_path / "hidden.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(told)) as error:
        board.read_seeds(path)
    assert "\n" not in str(error.value)


def test_hidden_seeds_are_made_once_and_committed_to(root, tmp_path):
    path = tmp_path / "hidden.txt"
    told = [alspeech(root, "leaderboard", "--seeds", str(path)).stdout for _ in range(2)]
    assert told[0] == told[1] and hashlib.sha256(path.read_bytes()).hexdigest() in told[0]
    seeds = board.read_seeds(path)
    assert len(seeds.seeds) == 10 and path.stat().st_mode & 0o077 == 0
    assert not any(str(seed) in told[0] for seed in (*seeds.seeds, seeds.corpus))
    settings = load_settings("smoke")
    assert board.of_board(settings, seeds).build.seed == seeds.corpus
    table = curves(random=[1.0, 2], egl=[2.0, 1])
    rows = board.ranked(table, 10, ["random", "egl"], {})
    html = page(settings, board.Board(rows, table, {}, (), 10, seeds))
    assert seeds.commitment in html
    assert not any(str(seed) in html for seed in (*seeds.seeds, seeds.corpus))


@pytest.mark.parametrize("files, told", [
    ({}, "no file that ends in .py"),
    ({"a/x.py": ENTROPY, "b/X.py": ENTROPY}, "two submissions are called X"),
])  # fmt: skip
def test_a_folder_that_is_none_is_a_line(tmp_path, files, told):
    for name, source in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(source)
    with pytest.raises(UserError, match=re.escape(told)):
        board.read_submissions(str(tmp_path))
    with pytest.raises(UserError, match="name the folder"):
        board.read_submissions(str(tmp_path / "none"))


@pytest.mark.parametrize("name, source, told", [
    ("bad", "def f(:\n", "no Python, line 1"),
    ("none", "x = 1\n", "defines none"),
    ("bytes", "\0", "no Python"),
    ("spaced name", ENTROPY, "letters, digits"),
    ("large", "#" * 100_001, "more than 100,000 bytes"),
    ("deep", "(" * 500 + ")" * 500, ""),
])  # fmt: skip
def test_a_file_that_is_no_submission_is_refused_in_a_line(tmp_path, name, source, told):
    (tmp_path / f"{name}.py").write_text(source)
    found, refused = board.read_submissions(str(tmp_path))
    assert not found and told in refused[name] and "\n" not in refused[name]


def test_utterances_have_other_names_for_each_seed_and_no_transcripts(spoken_root):
    from alspeech.speech import corpus

    manifest = next((spoken_root / "data").glob("synthetic-even-*")) / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    pool = pd.DataFrame([row for row in rows if row["split"] == "pool"])
    folder = next((spoken_root / "data").glob("synthetic-features-*"))
    store = corpus.FeatureStore(folder)
    data = corpus.Corpus(manifest.parent, pool, store, corpus.Alphabet("ab"))
    seen = []
    for seed in (0, 1):
        batches, utt_ids = board.batches_of(data, tiny_model(seed=seed), 8)
        assert sorted(utt_ids) == sorted(pool["utt_id"])
        assert all(not batch.labels for batch in batches)
        seen.append({name for batch in batches for name in batch.utt_ids})
    assert not seen[0] & seen[1] and not (seen[0] | seen[1]) & set(pool["utt_id"])
    other = board.batches_of(data, tiny_model(seed=0), 5, np.random.default_rng(0))[0]
    assert {name for batch in other for name in batch.utt_ids} == seen[0]


def test_scores_come_back_in_the_order_of_the_batches(isolated):
    """In double precision, whatever the model's."""
    model, batches = tiny_model().float(), [tiny_batch(2, 16, torch.float32, s) for s in (1, 2)]
    found = isolated.score("entropy", ENTROPY, model, batches)
    expected = torch.cat([entropy(model, batch) for batch in batches]).detach().double()
    assert np.array_equal(found.scores, expected.numpy())
    assert 0 < found.forward_passes < 1000
