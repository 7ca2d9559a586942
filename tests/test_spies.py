"""What a training sees: what is labelled, and nothing else; what is not queried stays sealed."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from companion import FIGURES, LOSS_PREDICTION, PSEUDO_LABELS, STUDIES
from test_aloe import blobs

from alspeech import experiment, studies, training
from alspeech.sisters import few_labels, pseudo_labels, slimipl
from alspeech.speech import corpus
from alspeech.speech.features import FeatureStore
from alspeech.workshop.store import read_csv

SYSTEMS = {**FIGURES, **STUDIES, **LOSS_PREDICTION, **PSEUDO_LABELS}


class Spy:
    """What every batch of utterances was asked for, and which of them a training masked: whatever
    a model learns from is masked (SpecAugment) first."""

    def __init__(self, patch):
        self.batches, self.trained, made = [], [], {}
        batch, masks = FeatureStore.batch, training.spec_augment

        def asked(store, utterances, encode=None):
            found = batch(store, utterances, encode)
            made[id(found.features)] = found
            self.batches.append(found)
            return found

        def masked(features, *what):
            self.trained.append(made[id(features)])
            return masks(features, *what)

        patch.setattr(FeatureStore, "batch", asked)
        for module in (training, slimipl):
            patch.setattr(module, "spec_augment", masked)

    def learned(self) -> Counter:
        """(utterance, its labels; None where it came without) and how often a model was taught."""
        return Counter(
            (utt_id, tuple(labels) if labels is not None else None)
            for part in self.trained
            for utt_id, labels in zip(part.utt_ids, part.labels or [None] * len(part), strict=True)
        )


def again(house, name, folder: Path) -> dict:
    """Compute a step once more, into another folder: what its compute returns."""
    folder.mkdir()
    return house.step(name).compute(folder)


def truth(data, ids) -> set:
    texts = dict(zip(data.manifest["utt_id"], data.manifest["text"], strict=True))
    return {(utt_id, tuple(data.alphabet.encode(texts[utt_id]))) for utt_id in ids}


def chosen_by(house, name) -> list[str]:
    """What of the pool a step has labels of, by its folder and its scores'."""
    make, *what = SYSTEMS[name]
    settings = house.settings[name]
    if make is experiment.cell:
        return experiment.queried(settings, *what)
    if make is studies.longer:
        return experiment.queried(settings, *what[2:])
    if make is pseudo_labels.pseudo_labelled:
        return pseudo_labels.queried(settings, *what[2:])
    if make is studies.leg or name in ("round", "next round", "oracle's round", "whole pool"):
        return list(read_csv(house.step(name).folder() / "queried.csv")["utt_id"])
    return []


# what each is trained on of the pool, and for how many updates (in companion.PRESET)
BASE, AFTER, LEG = 8, 9, 9 // 2
TRAINED = {"base": (0, BASE), "cell": (0.2, AFTER), "all": (1, AFTER),
           "from scratch": (0.2, BASE + AFTER), "first round": (0.1, LEG),
           "second round": (0.2, LEG), "batch": (0.2, LEG), "joint": (0, BASE),
           "ctc_only": (0, BASE), "round": (0.2, AFTER), "next round": (0.5, AFTER),
           "whole pool": (1, AFTER)}  # fmt: skip


@pytest.mark.parametrize("name, share, updates", [(n, *told) for n, told in TRAINED.items()])
def test_a_cell_trains_on_base_and_queried_and_on_nothing_else(
    house, tmp_path, name, share, updates
):
    data, chosen = corpus.prepare(house.settings[name]), chosen_by(house, name)
    pool, base = set(data.split("pool")["utt_id"]), list(data.split("base")["utt_id"])
    assert len(set(chosen)) == len(chosen) == round(share * len(pool)) and set(chosen) <= pool
    spy = Spy(house.patch)
    metrics = again(house, name, tmp_path / "again")
    # as many updates as told, whatever there is to learn from
    assert len(spy.trained) == metrics["updates"] == updates
    batches = len(data.store.groups(data.labelled(chosen), 16))
    passes, learned = updates // batches, spy.learned()
    seen = {pair for pair in learned if learned[pair] in (passes, passes + 1)}
    everything = truth(data, base + chosen)
    assert learned.keys() == seen <= everything and (passes == 0 or seen == everything)
    assert metrics["train_utterances"] == len(base) + len(chosen)
    # of the pool's other utterances no batch has labels, to validate by or for anything else
    labelled = {utt_id for part in spy.batches if part.labels for utt_id in part.utt_ids}
    assert labelled & pool <= set(chosen)


def test_most_of_these_trainings_are_whole_passes(house):
    """Else little would be claimed of them above."""
    whole = set()
    for name, (_, updates) in TRAINED.items():
        data = corpus.prepare(house.settings[name])
        batches = len(data.store.groups(data.labelled(chosen_by(house, name)), 16))
        whole |= {name} if updates >= batches else set()
    assert len(whole) > 8, whole


@pytest.mark.parametrize("name", [n for n in PSEUDO_LABELS if n != "its scores"])
def test_a_pseudo_labelled_run_has_labels_of_its_lot_and_of_what_was_queried(house, tmp_path, name):
    settings, chosen = house.settings[name], chosen_by(house, name)
    data, config = corpus.prepare(settings), settings.pseudo_labels
    base, pool = (set(data.split(split)["utt_id"]) for split in ("base", "pool"))
    spy = Spy(house.patch)
    metrics = again(house, name, tmp_path / "again")
    learned = spy.learned()
    known = {utt_id for utt_id, labels in learned if labels is not None}
    unknown = {utt_id for utt_id, labels in learned if labels is None}
    # the lot: always the same utterances of the base split, as many as the preset says
    lots = Spy(house.patch)
    again(house, "warm-up", tmp_path / "warm-up")
    data_of_base = [p for p in lots.batches if p.labels and set(p.utt_ids) & base]
    lot = {utt_id for part in data_of_base for utt_id in part.utt_ids}
    assert lot <= base and len(lot) <= config.labelled < len(base)
    assert metrics["labelled"] == config.labelled + len(chosen)
    assert known <= base | set(chosen) and len(known & base) <= config.labelled
    assert len(known & base | lot) <= config.labelled
    assert {pair for pair in learned if pair[1] is not None} == truth(data, known)
    assert unknown <= pool - set(chosen)
    assert bool(unknown) == (name in ("hard", "prior", "ema", "sampled", "joined"))
    labelled = {utt_id for part in spy.batches if part.labels for utt_id in part.utt_ids}
    assert labelled & pool <= set(chosen)


# ---------------------------------------------------------------- sealed transcripts


class Sealed(str):
    """A transcript that nobody may open; who gets round this finds another text."""

    def opened(self, *_):
        raise AssertionError("a transcript was opened that nobody has paid for")

    __iter__ = __len__ = __eq__ = __ne__ = __getitem__ = __contains__ = __add__ = opened
    __hash__ = split = strip = lower = translate = encode = replace = opened


@pytest.fixture
def seal(house):
    """``seal(name, chosen, kind)``: from here on the pool has its ``chosen`` transcripts only."""

    def sealed(name, chosen, kind=Sealed):
        data = corpus.prepare(house.settings[name])
        manifest = data.manifest.astype({"text": object})
        closed = (manifest["split"] == "pool") & ~manifest["utt_id"].isin(chosen)
        assert closed.sum() == 30 - len(chosen)
        # what is silent stays so, see slimipl.Monitor
        texts = [kind("zz zz z" if text else "") for text in manifest["text"][closed]]
        manifest.loc[closed, "text"] = np.array(texts, dtype=object)
        for module in (corpus, pseudo_labels):
            house.patch.setattr(module, "prepare", lambda _: replace(data, manifest=manifest))

    return sealed


def content(folder: Path) -> dict[str, bytes]:
    told = {"config.json", "checksums.json", "metrics.json", "checkpoint"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in told}


SEALED = ["base", "scores", "entropy", "clusters", "cell", "from scratch", "first round",
          "second round", "batch", "joint", "ctc_only", "predicted", "round", "next round",
          "its scores"]  # fmt: skip


@pytest.mark.parametrize("name", SEALED)
def test_a_step_comes_out_the_same_where_the_unqueried_transcripts_are_sealed(
    house, seal, tmp_path, name
):
    chosen, before = chosen_by(house, name), house.step(name).folder()
    seal(name, chosen)
    metrics = again(house, name, tmp_path / "again")
    assert content(tmp_path / "again") == content(before)
    written = json.loads((before / "metrics.json").read_text())
    assert json.loads(json.dumps(metrics)).items() <= written.items()


@pytest.mark.parametrize(
    "name", ["cell", "first round", "round", "whole pool", "oracle", "oracle's round"]
)
def test_the_seal_holds_where_it_is_tried(house, seal, tmp_path, name):
    seal(name, chosen_by(house, name)[1:])
    with pytest.raises(AssertionError, match="nobody has paid for"):
        again(house, name, tmp_path / "again")


MEASURED = ["pseudo_cer", "pseudo_wer", "length_ratio"]  # by transcripts that only we know


@pytest.mark.parametrize("name", [n for n in PSEUDO_LABELS if n != "its scores"])
def test_a_pseudo_labelled_run_comes_out_the_same_with_other_transcripts_of_the_pool(
    house, seal, tmp_path, name
):
    """Its monitor measures by them, and decides nothing by them."""
    before = house.step(name).folder()
    seal(name, chosen_by(house, name), str)
    metrics = again(house, name, tmp_path / "again")
    old, new = content(before), content(tmp_path / "again")
    old.pop("monitor.csv"), new.pop("monitor.csv")
    assert new == old
    tables = [pd.read_csv(folder / "monitor.csv") for folder in (before, tmp_path / "again")]
    old, new = (table.drop(columns=MEASURED, errors="ignore") for table in tables)
    pd.testing.assert_frame_equal(old, new)
    written = json.loads((before / "metrics.json").read_text())
    assert json.loads(json.dumps(metrics)).items() <= written.items()


# ---------------------------------------------------------------- ALOE


CONFIG = few_labels.AloeConfig(runs=2, steps=4, seed_clips=2, epochs=3, batch=4)
LEARNERS = ([0, 1], ("random", "margin", "entropy"), few_labels.MODES, CONFIG)


def test_a_linear_classifier_trains_on_the_clips_that_were_queried(monkeypatch):
    task, X = blobs(pool=150)
    fitted, fit = [], few_labels.fit

    def spied(W, b, X, y, rows, counts, *rest):
        fitted.append([rows[r, :count].tolist() for r, count in enumerate(counts)])
        return fit(W, b, X, y, rows, counts, *rest)

    monkeypatch.setattr(few_labels, "fit", spied)
    _, queried = few_labels.simulate(task, X, *LEARNERS)
    learners = [(m, s, r) for r in LEARNERS[0] for m in LEARNERS[2] for s in LEARNERS[1]]
    bounds, steps = fitted[:2], fitted[2:]  # first those with all labels of the pool, a run each
    assert [sorted(rows) for (rows,) in bounds] == [list(task.rows("pool"))] * 2
    assert len(steps) == CONFIG.steps + 1
    for step, learned in enumerate(steps):
        for rows, (mode, strategy, run) in zip(learned, learners, strict=True):
            own = queried[(queried["mode"] == mode) & (queried["strategy"] == strategy)]
            own = own[(own["run"] == run) & (own["step"] <= step)]["row"]
            assert sorted(rows) == sorted(own) and own.is_unique
            assert set(rows) <= set(task.rows("pool"))


def test_labels_of_clips_that_nobody_queried_change_nothing(monkeypatch):
    task, X = blobs(pool=150)
    curves, queried = few_labels.simulate(task, X, *LEARNERS)
    seeds = {run: few_labels.seed_set(task, run, CONFIG.seed_clips) for run in LEARNERS[0]}
    # whoever collected the seed set knew its labels, and who trains on all labels knows all
    monkeypatch.setattr(few_labels, "seed_set", lambda _, run, __: seeds[run])
    monkeypatch.setattr(
        few_labels, "_bound", lambda *_: (few_labels.ALL, few_labels.ALL, 0, 0, 0, 0, 0)
    )
    paid = queried["row"].unique()
    others = np.setdiff1d(task.rows("pool"), paid)
    assert len(others) > 3
    wrong = task.clips["label"].to_numpy().copy()
    wrong[others] = (wrong[others] + 1) % 3
    labelled = lambda labels: replace(task, clips=task.clips.assign(label=labels))  # noqa: E731
    again, asked = few_labels.simulate(labelled(wrong), X, *LEARNERS)
    own = lambda table: table[table["mode"] != few_labels.ALL].reset_index(drop=True)  # noqa: E731
    pd.testing.assert_frame_equal(own(again), own(curves))
    pd.testing.assert_frame_equal(asked, queried)
    wrong[seeds[0]] = (wrong[seeds[0]] + 1) % 3  # of some that were paid for they do
    other, _ = few_labels.simulate(labelled(wrong), X, *LEARNERS)
    assert not own(other).equals(own(curves))
