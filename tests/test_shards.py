"""The pool in shards, and what is chosen before a base training; cheap, on simulated features."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alspeech import experiment, plan
from alspeech import shards as shards_module
from alspeech.acquisition import ACQUISITIONS
from alspeech.querying import rank, score
from alspeech.shards import BATCH, joined, pool_ids, shards_of
from alspeech.speech import validation
from alspeech.speech.features import group_by_length
from alspeech.workshop.config import load_scenario, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import stored, write_json


class Store:
    """Lengths only: as many utterances of a length as make batches of unequal sizes."""

    def __init__(self, lengths):
        self.frames = lengths

    def groups(self, utterances, size, rng=None):
        return group_by_length([self.frames[x] for x in utterances["utt_id"]], size, rng)


def a_pool(count: int = 2000, seed: int = 0):
    lengths = np.random.default_rng(seed).choice([32, 48, 64, 80], count, p=[0.6, 0.3, 0.09, 0.01])
    ids = [f"pool-{i:05d}" for i in range(count)]
    return pd.DataFrame({"utt_id": ids}), Store(dict(zip(ids, lengths.tolist(), strict=True)))


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("utterances", [1, 33, 2000])
def test_every_utterance_is_in_one_shard_and_in_the_batch_that_it_is_in_without(count, utterances):
    pool, store = a_pool(utterances)
    ids = pool["utt_id"].to_numpy()
    whole = {tuple(ids[index]) for index in store.groups(pool, BATCH)}
    found, parts = shards_of(store, pool, count), []
    for number in range(count):
        part = pool[found == number]
        own = part["utt_id"].to_numpy()
        parts += [tuple(own[index]) for index in store.groups(part, BATCH)]
    assert len(parts) == len(whole) and set(parts) == whole
    if utterances == 2000:  # of about equal sizes
        assert np.bincount(found, minlength=count).min() > utterances / count / 3


def test_the_score_s_batches_are_those_that_shards_keep_together():
    import inspect

    assert inspect.signature(score).parameters["batch"].default == BATCH


def shards(tmp_path, *parts):
    files = []
    for number, text in enumerate(parts):
        folder = tmp_path / f"shard{number}"
        folder.mkdir()
        (folder / "scores.csv").write_text("utt_id,egl\n" + text)
        write_json(folder / "metrics.json", {"utterances": text.count("\n")})
        files.append(folder / "scores.csv")
    return files


def test_scores_are_joined_digit_for_digit_in_the_order_of_the_pool(tmp_path):
    files = shards(tmp_path, "007,0.30000000000000004\nNA,1e-17\n", '"a,b",\nb,5.0\n')
    found = joined(files, ["b", "a,b", "NA", "007"])
    found.to_csv(tmp_path / "scores.csv")
    told = 'utt_id,egl\nb,5.0\n"a,b",\nNA,1e-17\n007,0.30000000000000004\n'
    assert (tmp_path / "scores.csv").read_text() == told
    assert list(rank(experiment.read_scores(tmp_path))) == [0, 3, 2, 1]


@pytest.mark.parametrize("cut, ids, words", [
    (True, ["a", "b", "c"], ["shard0", "1 scores of 2", "cut short", "remove"]),
    (False, ["a", "b", "c", "d"], ["3 scores", "4 utterances", "remove"]),
    (False, ["a", "b", "d"], ["not one for each"]),
])  # fmt: skip
def test_a_shard_that_was_cut_short_is_one_line(tmp_path, cut, ids, words):
    files = shards(tmp_path, "a,1.0\nb,2.0\n", "c,3.0\n")
    if cut:
        files[0].write_text("utt_id,egl\na,1.0\n")
    with pytest.raises(UserError) as error:
        joined(files, ids)
    told = str(error.value)
    assert all(word in told for word in words) and "\n" not in told


def test_a_finished_shard_that_was_cut_short_since_is_scored_again(tmp_path, capsys):
    fill = lambda folder: (folder / "scores.csv").write_text("utt_id,egl\na,1.0\nb,2.0\n")  # noqa: E731
    folder = stored(tmp_path, "shard", {"n": 1}, fill)
    (folder / "scores.csv").write_text("utt_id,egl\na,1.0\n")
    from alspeech.workshop import store as workshop_store

    workshop_store.intact.clear()
    again = stored(tmp_path, "shard", {"n": 1}, fill)
    assert again == folder and (folder / "scores.csv").read_text().count("\n") == 3
    assert "damaged (scores.csv has changed)" in capsys.readouterr().err


def test_ids_of_the_pool_are_read_in_order(tmp_path):
    rows = [("pool", "b"), ("base", "x"), ("pool", "007")]
    lines = [json.dumps({"utt_id": utt_id, "split": split}) for split, utt_id in rows]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    assert pool_ids(tmp_path) == ["b", "007"]


def test_scores_of_a_computed_run_are_the_same_bytes_in_any_number_of_shards(house):
    settings = house.settings["scores"]
    for strategy in ("egl", "entropy"):
        whole = experiment.pool_scores(settings, strategy, 0).folder() / "scores.csv"
        for count in (2, 5):
            sharded = dataclasses.replace(settings, shards=count)
            step = experiment.pool_scores(sharded, strategy, 0)
            assert len(step.after) == count + 1
            assert (step.folder() / "scores.csv").read_bytes() == whole.read_bytes()


def test_a_shard_that_was_killed_goes_on_and_finished_ones_stay_as_they_are(house):
    """The process that scores dies within the second shard; the same call ends what it began."""
    settings = dataclasses.replace(house.settings["scores"], shards=2)
    house.patch.setattr("alspeech.workshop.store.CHECKPOINT_SECONDS", 0)
    for module in (experiment, shards_module):  # several batches in a shard of so small a pool
        house.patch.setattr(module, "BATCH", 2)
    whole, parts = (
        experiment.pool_scores(settings, "pctc", 0),
        [experiment.shard(settings, "pctc", number, 0) for number in range(2)],
    )
    undisturbed = (whole.folder() / "scores.csv").read_bytes()
    for step in (whole, parts[1]):
        shutil.rmtree(step.folder())
    finished = parts[0].find() / "scores.csv"
    made, pctc, scored = finished.stat().st_mtime_ns, ACQUISITIONS["pctc"], []

    def watched(model, batch, **options):
        scored.extend(batch.utt_ids)
        if os.getpid() != parent and len(scored) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return pctc(model, batch, **options)

    house.patch.setitem(ACQUISITIONS, "pctc", watched)
    parent = os.getpid()
    if (child := os.fork()) == 0:
        whole.folder()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert whole.find() is None and parts[1].find() is None
    assert (whole.folder() / "scores.csv").read_bytes() == undisturbed
    assert finished.stat().st_mtime_ns == made
    # two batches were saved before the kill
    assert len(scored) == len(experiment.read_scores(parts[1].folder())) - 4


def test_what_looks_at_all_of_the_pool_is_scored_in_one():
    settings = dataclasses.replace(load_settings("smoke"), shards=4)
    several = {x for x in ("egl", "random", "random_clusters", "oracle_loss", "fisher_ratio")
               if experiment.in_shards(settings, x)}  # fmt: skip
    assert several == {"egl", "random"}
    assert not experiment.in_shards(load_settings("smoke"), "egl")


# ---------------------------------------------------------------- the paper's preset


def test_of_librispeech_train_clean_100_is_the_base_set_and_the_rest_the_pool():
    settings = load_settings("paper", "librispeech")
    assert settings.scenario == "librispeech" and settings.model.layers == 7
    assert settings.labelings == 100 and settings.build.validation == 2048
    scenario, build = load_scenario("librispeech"), settings.built
    subsets = {"train-clean-100": None, "train-clean-360": None, "train-other-500": None,
               "dev-clean": "validation", "dev-other": "validation", "test-clean": "test",
               "test-other": "test"}  # fmt: skip
    rows = pd.DataFrame([
        {"utt_id": f"{subset}-{i}", "subset": subset, "split": split, "speaker": f"{subset}{i % 5}"}
        for subset, split in subsets.items() for i in range(20)
    ])  # fmt: skip
    rows = validation.grouped(rows, scenario)
    rows["split"], _ = validation.assign_splits(rows, build, scenario)
    found = rows.groupby("split")["subset"].unique().map(set)
    assert found["base"] == {"train-clean-100"}
    assert found["pool"] == {"train-clean-360", "train-other-500"}
    assert found["validation"] == {"dev-clean", "dev-other"}
    assert found["test"] == {"test-clean", "test-other"}


def test_the_learning_rate_is_the_one_with_the_lowest_validation_loss(tmp_path, monkeypatch):
    losses = {1e-4: 30.0, 3e-4: 20.5, 1e-3: 21.0}
    folders = []
    for rate, loss in losses.items():
        folders.append(tmp_path / f"{rate}")
        folders[-1].mkdir()
        write_json(folders[-1] / "metrics.json", {"validation_loss": loss})
    monkeypatch.setattr(experiment, "in_parallel", lambda *what: folders)
    settings = load_settings("laptop")
    assert experiment.training_of(settings) == settings.training
    chosen = experiment.training_of(dataclasses.replace(settings, rates=tuple(losses)))
    assert chosen.base_rate == 3e-4
    config = settings.training
    assert chosen.rate / chosen.base_rate == pytest.approx(config.rate / config.base_rate)


def test_a_tried_rate_s_key_knows_the_rate_and_how_long():
    settings = load_settings("smoke")
    other = dataclasses.replace(settings, rate_updates=7)
    keys = {experiment.tried(*what, 0).key
            for what in ((settings, 1e-3), (settings, 2e-3), (other, 1e-3))}  # fmt: skip
    assert len(keys) == 3


# ---------------------------------------------------------------- make plan


def test_a_plan_is_a_line_through_what_was_measured(monkeypatch):
    """0.01 s a call and 0.1 ms a frame, on a clock that only the calls move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(plan, "_clock", lambda: clock.now)

    def call(count, length):
        clock.now += 0.01 + 1e-4 * count * length

    assert plan.per_utterance(call, 200, 16) == pytest.approx((0.01 + 1e-4 * 3200) / 16)
    assert plan.per_utterance(call, 4000, 64) == pytest.approx((0.01 + 1e-4 * 256_000) / 64)


def test_a_plan_has_every_step_and_the_number_of_cells(monkeypatch):
    settings = load_settings("paper", "librispeech")
    costs = {"update": 2.0, "test": 0.5, "features": 0.001, "prepared": 1e-5} | dict.fromkeys(
        settings.strategies, 1.0
    )
    monkeypatch.setattr(plan, "throughput", lambda *what: costs)
    monkeypatch.setattr(plan, "_activations", lambda settings: 1e5)
    table = plan.plan(settings, plan.sizes(settings)).set_index("step")
    assert table.loc["cells", "tasks"] == 3 * (4 * 4 + 2) == len(experiment.grid(settings))
    prepared = 1e-5 * (28_539 + 252_692 + 2048 + 5240)
    scored = 3 * (252_692 + 32 * prepared) / 3600
    assert table.loc["scores: egl", "hours in all"] == pytest.approx(scored)
    assert table.loc["base models", "tasks"] == 3 and table.loc["learning rates", "tasks"] == 3
    hours = (12_500 * 32 * 2.0 + 5240 * 0.5 + 10 * 2048 * 0.5 * 2 / 3 + prepared) / 3600
    assert table.loc["base models", "hours"] == pytest.approx(hours)
    assert table.loc["base models", "memory"] > 2 and table["disk in all"].sum() > 30
    assert table.loc["features", "hours"] == pytest.approx(0.001 * 288_519 / 3600, rel=1e-3)
    assert "corpus" not in table.index  # it is not spoken here
    known = plan.sizes(settings)
    assert known["base"][0] == 28_539 and known["pool"][0] == 252_692


def test_a_plan_of_several_scenarios_has_each_ones_sizes(monkeypatch):
    costs = {"update": 2.0, "test": 0.5, "features": 1.0, "prepared": 0.0} | dict.fromkeys(
        ["random", "egl", "oracle_loss"], 1.0
    )
    monkeypatch.setattr(plan, "throughput", lambda *what: costs)
    monkeypatch.setattr(plan, "_activations", lambda settings: 1e5)
    settings = dataclasses.replace(load_settings("search"), shards=4, seeds=2,
                                   strategies=("random", "egl", "oracle_loss"))  # fmt: skip
    settings = dataclasses.replace(settings, scenarios=("even", "large_pool")).on("even")
    known = dict.fromkeys(("base", "pool", "validation", "test"), (1, 2.0))
    known = {name: (getattr(settings.built, name), 2.0) for name in known}
    table = plan.plan(settings, known).set_index("step")
    pools = 1600, 5600
    rest = 700 + 160 + 3000
    assert table.loc["features", "hours in all"] * 3600 == pytest.approx(sum(pools) + 2 * rest)
    assert table.loc["scores: egl", "tasks"] == 2 * 2 * 4
    assert table.loc["scores: egl", "hours in all"] * 3600 == pytest.approx(2 * sum(pools))
    # what looks at transcripts, or at all of the pool, is not cut into shards
    assert table.loc["scores: oracle_loss", "tasks"] == 2 * 2
    assert table.loc["scores: oracle_loss", "hours in all"] * 3600 == pytest.approx(2 * sum(pools))


def test_a_plan_says_what_it_does_not_know(monkeypatch):
    settings = dataclasses.replace(load_settings("smoke"), strategies=("random", "d_optimal"))
    costs = {"update": 2.0, "test": 0.5, "features": 1.0, "prepared": 0.0, "random": 1.0}
    monkeypatch.setattr(plan, "throughput", lambda *what: costs)
    monkeypatch.setenv("ALSPEECH_JOBS", "1")
    told = plan.told(settings)
    assert "\nnot measured, and not in the sums: first passes, scores: d_optimal\n" in told
    assert "this machine's 1 core;" in told


def test_a_query_of_all_or_by_seconds_keeps_no_transcript_in_memory(tmp_path):
    lines = [{"utt_id": f"u{i}", "split": split, "duration": i + 0.5, "text": "long " * 30}
             for i, split in enumerate(["base", "pool", "test", "pool"])]  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = experiment._pool_seconds(tmp_path)
    assert found.to_dict() == {"u1": 1.5, "u3": 3.5} and found.index.name == "utt_id"


def test_a_learning_rate_that_diverges_loses_and_where_all_do_it_is_told(tmp_path, monkeypatch):
    settings = dataclasses.replace(load_settings("smoke"), rates=(1e-3, 2e-3, 3e-3))
    losses = {1e-3: None, 2e-3: float("nan"), 3e-3: 7.0}

    def folders(make, settings, tasks, label):
        for rate, _ in tasks:
            (tmp_path / f"{rate}").mkdir(exist_ok=True)
            told = {"validation_loss": losses[rate], "why": "the training loss is nan"}
            (tmp_path / f"{rate}" / "metrics.json").write_text(json.dumps(told))
        return [tmp_path / f"{rate}" for rate, _ in tasks]

    monkeypatch.setattr(experiment, "in_parallel", folders)
    assert experiment.training_of(settings).base_rate == 3e-3
    losses[3e-3] = None
    with pytest.raises(UserError, match="none of the learning rates.*training loss is nan"):
        experiment.training_of(settings)


def test_a_rate_is_tried_on_what_the_base_model_begins_with():
    settings = load_settings("smoke")
    begun = dataclasses.replace(settings, start="laptop")
    keys = {experiment.tried(*what).key for what in
            ((settings, 1e-3, 0), (begun, 1e-3, 0), (settings, 1e-3, 1))}  # fmt: skip
    assert len(keys) == 3
    assert experiment.tried(begun, 1e-3, 0).after[-1].name == "base-seed0"


def test_a_plan_for_recordings_that_nobody_has_looked_at_says_what_to_do(tmp_path):
    (tmp_path / "list.jsonl").write_text("")
    with pytest.raises(UserError):
        plan.sizes(load_settings("laptop", "jsonl", str(tmp_path)))
