"""What must hold of whatever comes in, for cases that hypothesis draws: the same ones every time.

As many more as are wanted: ``make fuzz`` (malformed corpora), ``make soak`` (killed runs).
"""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path

import fuzz
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_decoding import all_labelings

from alspeech.acquisition import expected_squared_norm
from alspeech.ctc import best_path, ctc_losses, labelings_gradients, labelings_log_p
from alspeech.decoding import n_best
from alspeech.querying import query
from alspeech.speech import readers
from alspeech.speech.text import Alphabet, learn_alphabet, normalise, words
from alspeech.statistics import interval, spearman
from alspeech.workshop import config, store
from alspeech.workshop.config import CorpusConfig, Settings, load_settings
from alspeech.workshop.errors import UserError, explain

settings.register_profile("suite", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("suite")
TEXTS = st.text(max_size=30)

# ---------------------------------------------------------------- transcripts


@given(TEXTS)
def test_a_normalised_transcript_is_normal_and_unchanged_where_no_step_is_named(text):
    normal, steps = normalise(text)
    assert normalise(normal)[0] == normal
    assert bool(steps) == (normal != text)
    assert normal == " ".join(normal.split())


@given(st.lists(TEXTS, max_size=5))
def test_a_learned_alphabet_has_what_can_be_said_and_nothing_else(texts):
    texts = [normalise(text)[0] for text in texts]
    alphabet = learn_alphabet(texts)
    whole = [text for text in texts if not alphabet.lacks(text)]
    assert set(alphabet.characters) == set("".join(whole))
    assert [alphabet.decode(alphabet.encode(text)) for text in whole] == whole


@st.composite
def paths(draw, symbols=4):
    """A labeling, and a path that stands for it: each label some times, blanks where they must be
    and wherever else."""
    labels = draw(st.lists(st.integers(1, symbols), max_size=6))
    path, last = [0] * draw(st.integers(0, 2)), None
    for label in labels:
        path += [0] * draw(st.integers(int(label == last), 2)) + [label] * draw(st.integers(1, 3))
        last = label
    return labels, path + [0] * draw(st.integers(0, 2))


@given(paths())
def test_every_path_of_a_labeling_collapses_to_it(drawn):
    labels, path = drawn
    alphabet = Alphabet("abcd")
    assert alphabet.collapse(path) == alphabet.decode(labels)
    log_probs = torch.nn.functional.one_hot(torch.tensor([path or [0]]), 5).double().log()
    assert alphabet.collapse(best_path(log_probs)[0]) == alphabet.decode(labels)


@given(st.lists(st.text(st.sampled_from("ab'一二かカ"), min_size=1, max_size=4), max_size=5))
def test_words_are_what_stands_between_spaces_and_each_character_that_needs_none(parts):
    found = words(" ".join(parts))
    assert "".join(found) == "".join(parts)
    assert all(len(word) == 1 or set(word) <= set("ab'") for word in found)
    assert [w for part in parts for w in words(part)] == found


# ---------------------------------------------------------------- CTC and beam search


@st.composite
def posteriors(draw):
    """Log posteriors [1, T, V] of all shapes that brute force can take: flat, sharp, with equal
    values, and with symbols that are impossible."""
    T, V = draw(st.sampled_from([(1, 2), (1, 5), (2, 4), (3, 3), (4, 3), (5, 2), (5, 3), (6, 2)]))
    logit = st.sampled_from([0.0, 0.0, 1.0, -1.0, 3.0, -30.0]) | st.floats(-6, 6)
    logits = torch.tensor(draw(st.lists(logit, min_size=T * V, max_size=T * V)), dtype=torch.double)
    return logits.view(1, T, V).log_softmax(-1)


@given(posteriors(), st.integers(1, 400))
def test_n_best_are_the_most_probable_labelings_of_all(log_probs, k):
    truth = all_labelings(log_probs[0])
    found = n_best(log_probs, k, beam=400)
    count = min(k, len(truth))
    p = found.log_p[0, :count].exp().tolist()
    best = sorted(truth.values(), reverse=True)[:count]
    assert p == pytest.approx(best, rel=1e-9, abs=1e-300)
    labelings = [tuple(found.labeling(0, i)) for i in range(count)]
    assert len(set(labelings)) == count and found.impossible().item() == k - count
    assert [truth[y] for y in labelings] == pytest.approx(p, rel=1e-9, abs=1e-300)


@given(posteriors(), st.integers(1, 6), st.integers(0, 3))
def test_a_narrow_beam_misses_labelings_but_misreports_none(log_probs, k, more):
    truth = all_labelings(log_probs[0])
    found = n_best(log_probs, k, beam=k + more)
    possible = k - int(found.impossible())
    labelings = [tuple(found.labeling(0, i)) for i in range(possible)]
    assert possible and len(set(labelings)) == possible
    for labeling, log_p in zip(labelings, found.log_p[0].tolist(), strict=False):
        assert math.exp(log_p) == pytest.approx(truth[labeling], rel=1e-9, abs=1e-300)
    assert found.mass().item() <= 1 + 1e-9
    assert (found.log_p[0].diff()[: possible - 1] <= 0).all()


@given(posteriors(), st.data())
def test_ctc_and_its_gradient_equal_the_sum_over_all_paths(log_probs, data):
    T, V = log_probs.shape[1:]
    labels = data.draw(st.lists(st.integers(1, V - 1), max_size=T + 1))
    logits = log_probs.clone().requires_grad_()
    symbols = torch.tensor(list(product(range(V), repeat=T)))  # [V^T, T]
    ends = [i for i, path in enumerate(symbols.tolist()) if collapsed(path) == labels]
    ours = ctc_losses(log_probs, [labels])[0].item()
    padded = torch.tensor([[labels or [0]]])
    lengths = torch.tensor([[len(labels)]])
    log_p = labelings_log_p(log_probs, padded, lengths).item()
    gradient = labelings_gradients(log_probs, padded, lengths)[0, 0]
    if not ends:
        assert ours == math.inf and log_p == -math.inf and not gradient.any()
        return
    frames = logits.log_softmax(-1)[0]
    loss = -frames[torch.arange(T), symbols[ends]].sum(dim=1).logsumexp(0)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)
    assert log_p == pytest.approx(-loss.item(), rel=1e-9, abs=1e-9)
    assert torch.allclose(gradient, logits.grad[0], atol=1e-9)


def collapsed(path) -> list[int]:
    return [v for t, v in enumerate(path) if v and (t == 0 or v != path[t - 1])]


NUMBERS = st.floats(0, 1e6)


@given(st.lists(st.tuples(st.floats(1e-6, 1.0), NUMBERS), min_size=1, max_size=6), st.booleans())
def test_expected_squared_norm_is_a_mean_weighted_by_probability(pairs, renormalise):
    total = sum(p for p, _ in pairs)
    p = [p / total / (1 if renormalise else 2) for p, _ in pairs]
    norms = [norm for _, norm in pairs]
    both = (torch.tensor([p], dtype=torch.double).log(), torch.tensor([norms], dtype=torch.double))
    found = expected_squared_norm(*both, renormalise=renormalise).item()
    expected = sum(map(float.__mul__, p, norms)) / (sum(p) if renormalise else 1)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert not renormalise or min(norms) * (1 - 1e-9) <= found <= max(norms) * (1 + 1e-9)


# ---------------------------------------------------------------- statistics

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10)


@given(VALUES, st.floats(-100, 100), st.floats(0.1, 10))
def test_an_interval_moves_with_its_values_and_widens_with_its_level(values, shift, scale):
    mean, low, high = interval(values)
    assert low <= mean <= high and mean - low == pytest.approx(high - mean, abs=1e-6)
    moved = interval([scale * value + shift for value in values])
    assert moved == pytest.approx([scale * x + shift for x in (mean, low, high)], abs=1e-6)
    _, lower, higher = interval(values, 0.99)
    assert lower <= low and high <= higher
    assert interval(sorted(values)) == pytest.approx((mean, low, high), abs=1e-6)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=10))
def test_rank_correlation_asks_for_order_alone(values):
    assume(len(set(values)) > 1)
    x = np.array(values)
    assert spearman(x, x**3) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert spearman(np.exp(x), x[::-1]) == pytest.approx(spearman(x[::-1], x))


# ---------------------------------------------------------------- budgets


@given(
    st.lists(st.tuples(st.floats(0.1, 30), st.floats(0, 1)), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_a_budget_in_seconds_is_spent_to_within_one_utterance(pool, share):
    ids = [f"u{i}" for i in range(len(pool))]
    seconds, scores = (pd.Series(column, ids) for column in zip(*pool, strict=True))
    budget = seconds.min() + share * (seconds.sum() - seconds.min())
    bought, order = query(scores, budget, seconds), query(scores, 100)
    assert bought and len(set(bought)) == len(bought)
    spent = seconds.loc[bought].sum()
    assert spent <= budget + 1e-6
    if seconds[order[0]] > budget:  # the first that can be paid for, and nothing before it
        assert bought == next([x] for x in order if seconds[x] <= budget)
    else:  # the longest prefix that fits
        assert bought == order[: len(bought)]
        following = order[len(bought) : len(bought) + 1]
        assert all(spent + seconds[x] > budget for x in following)
    # to within one utterance
    assert budget - spent < seconds.max() or len(bought) == len(pool)


# ---------------------------------------------------------------- keys of the store

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.dictionaries(TEXTS, JSON, max_size=4)


@given(CONFIGS, CONFIGS)
def test_keys_are_equal_for_equal_configurations_alone(a, b):
    text = [json.dumps(config, sort_keys=True) for config in (a, b)]
    assert (store.fingerprint(a) == store.fingerprint(b)) == (text[0] == text[1])
    assert store.plain(a) == a and store.fingerprint(store.plain(a)) == store.fingerprint(a)


@given(CONFIGS, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter_and_that_of_a_list_does(config, rng):
    names = list(config)
    rng.shuffle(names)
    assert store.fingerprint({name: config[name] for name in names}) == store.fingerprint(config)
    values = list(config.values())
    if values != values[::-1]:
        assert store.fingerprint({"": values}) != store.fingerprint({"": values[::-1]})


@given(st.sampled_from([item.name for item in fields(CorpusConfig)]), st.integers(1, 10**6))
def test_every_field_of_a_section_is_in_its_key(name, value):
    plain = store.plain({"build": CorpusConfig()})
    other = plain["build"] | {name: value}
    assume(plain["build"] != other)
    assert store.fingerprint(plain) != store.fingerprint({"build": other})


def test_keys_are_the_same_in_every_process():
    drawn = [{"a": [1, 0.1, -0.0], "é\n": None, "b": {"z": True, "": "x" * 99}}, {"c": 10**30}]
    program = (
        "import json, sys; from alspeech.workshop.store import fingerprint; "
        "print(*map(fingerprint, json.load(sys.stdin)))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(drawn), capture_output=True,
            text=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [*map(store.fingerprint, drawn)]


# ---------------------------------------------------------------- presets


def names_of(kind, above=()) -> list[tuple]:
    """(section, key) of every setting."""
    found = []
    for item in fields(kind):
        inner = getattr(item, "default_factory", None)
        if is_dataclass(inner):
            found += names_of(inner, (*above, item.name))
        else:
            found.append((*above, item.name))
    return found


SETTINGS = names_of(Settings)
NEAR = st.sampled_from([10**30, -1, 0, 1, 0.5, 100, "laptop", "random", "egl", "cmn"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | fuzz.ODD | NEAR
YAML = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A folder with nothing but ``configs/``, where presets are looked for."""
    root = tmp_path_factory.mktemp("presets")
    (root / "configs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "ROOT", root)
        yield root / "configs" / "drawn.yaml"


def said(error: UserError) -> str:
    """The line that a person sees."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert explain(error, Path("none")) == 2
    (line,) = err.getvalue().splitlines()
    return line


@settings(max_examples=120)
@given(where=st.sampled_from(SETTINGS) | st.tuples(fuzz.ODD), value=YAML)
def test_a_value_of_a_preset_is_taken_as_it_is_or_refused_in_one_short_line(presets, where, value):
    *section, name = where
    written = {section[0]: {name: value}} if section else {name: value}
    presets.write_text(yaml.safe_dump(written), encoding="utf-8")
    try:
        found = load_settings("drawn")
    except UserError as error:
        line = said(error)
        assert line.startswith("error: drawn.yaml: ") and len(line) <= fuzz.LONGEST
        return
    for step in section:
        found = getattr(found, step)
    taken = store.plain({"": getattr(found, name)})[""]
    assert taken == value or str(taken) == str(value) or float(taken) == float(value)


@given(st.binary(max_size=60) | fuzz.ODD.map(lambda text: text.encode("utf-8", "replace")))
def test_whatever_stands_in_a_preset_is_settings_or_one_short_line(presets, content):
    presets.write_bytes(content)
    try:
        load_settings("drawn")
    except UserError as error:
        assert len(said(error)) <= fuzz.LONGEST


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("layout", fuzz.LAYOUTS)
def test_a_whole_corpus_is_read_so_that_only_damage_can_be_what_is_wrong(layout, tmp_path):
    corpus = fuzz.LAYOUTS[layout][0]
    for split in fuzz.SPLITS:
        folder = tmp_path / split
        fuzz.write(folder, fuzz.LAYOUTS[layout][2](split))
        if corpus in readers.READERS:
            rows = readers.read(corpus, str(folder)).rows
            assert len(rows) >= 10 and rows["path"].map(os.path.isfile).all()


WRITTEN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(WRITTEN, WRITTEN, st.floats(0, 1e6), st.booleans()), min_size=1,
                max_size=5))  # fmt: skip
def test_json_lines_say_what_was_written_into_them(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("jsonl")
    records = [
        {"audio_filepath": f"{i}.wav", "text": text, "speaker": who, "offset": offset, "more": flag}
        for i, (text, who, offset, flag) in enumerate(drawn)
    ]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / "m.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    rows = readers.read("jsonl", str(folder)).rows
    for row, (text, who, offset, flag) in zip(rows.to_dict("records"), drawn, strict=True):
        assert (row["text"], row["speaker"], row["offset"], row["more"]) == (
            text,
            who,
            offset,
            flag,
        )


FIELD = st.text(st.sampled_from("abc019_-é一."), min_size=1, max_size=6)


@given(
    st.dictionaries(FIELD, st.tuples(st.lists(FIELD, max_size=3), FIELD), min_size=1, max_size=5)
)
def test_kaldi_tables_say_what_was_written_into_them(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("kaldi")
    tables = {"wav.scp": "", "text": "", "utt2spk": ""}
    for utt_id, (text, who) in drawn.items():
        tables["wav.scp"] += f"{utt_id} audio/{utt_id}.wav\n"
        tables["text"] += f"{utt_id}\t{' '.join(text)}\n"
        tables["utt2spk"] += f"{utt_id} {who}\n"
    for name, content in tables.items():
        (folder / name).write_text(content, encoding="utf-8")
    rows = readers.read("kaldi", str(folder)).rows.set_index("utt_id")
    assert rows["text"].to_dict() == {utt_id: " ".join(text) for utt_id, (text, _) in drawn.items()}
    assert rows["speaker"].to_dict() == {utt_id: who for utt_id, (_, who) in drawn.items()}


# ---------------------------------------------------------------- a little of make fuzz and soak


def test_a_few_malformed_corpora_and_a_few_kills_end_as_they_must():
    commands = (
        ["fuzz.py", "--number", "60"],
        ["soak.py", "--kills", "6", "--system", "map"],
    )
    running = [
        subprocess.Popen(
            [sys.executable, REPOSITORY / "tests" / command[0], *command[1:]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "ALSPEECH_JOBS": "1"},
        )
        for command in commands
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert "malformed corpora in" in said[0] and "with the bytes of an undisturbed" in said[1]
