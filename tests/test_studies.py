"""Equal treatment: trainings of equal length, budgets in seconds, rounds against a batch."""

import contextlib
import io
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import alspeech
from test_spies import again, content

from alspeech import experiment, studies, training
from alspeech.querying import query, score
from alspeech.speech import corpus
from alspeech.workshop import config, provenance, steps
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import read_csv

# ---------------------------------------------------------------- cells

PAID = ("random", "longest", "shortest")


@pytest.fixture(scope="module")
def spent(computed):
    """An experiment whose queries are paid for by the second: settings, pool, what it returned and
    said, and how many losses each of its trainings asked for to learn from."""
    fit, loss, asked, said = training.fit, training.ctc_loss, [], io.StringIO()

    def counted(model, *rest):
        asked[-1] += model.training
        return loss(model, *rest)

    def fitted(*what, **options):
        asked.append(0)
        return fit(*what, **options)

    with computed.home() as patch:
        settings = computed.settings["cell"]
        pool = corpus.prepare(settings).split("pool")
        budgets = tuple(share * pool["duration"].sum() for share in (0.2, 0.5))
        # a clip of its own, so that nobody has trained these cells already: no other process, and
        # not this one, where tests of other modules came between
        training_ = replace(settings.training, updates=5, clip=time.time())
        settings = replace(
            settings, strategies=PAID, query_seconds=budgets, query_percents=(99,),
            training=training_,
        )  # fmt: skip
        experiment.base_model(settings, 0).folder()
        patch.setattr(training, "ctc_loss", counted)
        patch.setattr(training, "fit", fitted)
        with contextlib.redirect_stderr(said):
            results = experiment.run(settings)
    return settings, pool, results, said.getvalue(), asked


def test_every_cell_has_as_many_updates(spent):
    """Base data alone, every query, all labels: none is trained for longer."""
    _, _, results, _, asked = spent
    assert asked == [5] * (2 + 2 * len(PAID))
    curves = results.curves
    assert set(curves["strategy"]) == {"base", "all", *PAID}
    assert curves["updates"].tolist() == [5] * len(curves) == asked


def test_seconds_are_spent_to_within_one_utterance(spent):
    settings, pool, results, _, _ = spent
    whole, most = pool["duration"].sum(), pool["duration"].max()
    for strategy in PAID:
        rows = results.curves[results.curves["strategy"] == strategy]
        # the column is the share of the pool's seconds
        assert rows["query_percent"].tolist() == [20.0, 50.0]
        left = np.array(settings.query_seconds) - 3600 * rows["hours"]
        assert ((left >= -1e-6) & (left < most)).all()
    bought = (
        results.curves.pivot(index="strategy", columns="query_percent", values="n_utterances")
        .loc[list(PAID)]
        .dropna(axis=1)
    )
    assert (bought.loc["longest"] < bought.loc["shortest"]).all()
    ends = results.curves.set_index("strategy")
    assert ends.loc["base", ["query_percent", "n_utterances"]].tolist() == [0, 0]
    assert ends.loc["all", "query_percent"] == 100
    assert ends.loc["all", "hours"] == pytest.approx(whole / 3600)


def test_cells_are_called_alike_in_every_table(spent):
    settings, _, results, _, _ = spent
    errors = read_csv(results.folder / "cell_errors.csv")
    names = ["scenario", "strategy", "query_percent", "seed"]
    assert set(map(tuple, errors[names].to_numpy())) == set(
        map(tuple, results.curves[names].to_numpy())
    )
    own = errors.groupby(names)[["word_errors", "words"]].sum()
    wer = 100 * own["word_errors"] / own["words"]
    assert np.allclose(
        wer.loc[list(map(tuple, results.curves[names].to_numpy()))], results.curves["wer"]
    )


def test_one_seed_is_told(spent):
    assert "one seed: curves without intervals" in spent[3]


# ---------------------------------------------------------------- from scratch


def test_a_training_from_scratch_knows_nothing_of_the_base_model(house, tmp_path):
    before = {name: house.step(name).folder() for name in ("cell", "from scratch")}

    def other(settings, seed):
        model = load(settings, seed)
        with torch.no_grad():
            for part in model.parameters():
                part.add_(0.3)
        return model

    load = experiment.load_base
    house.patch.setattr(experiment, "load_base", other)
    for name in before:
        again(house, name, tmp_path / name)
    assert content(tmp_path / "from scratch") == content(before["from scratch"])
    assert content(tmp_path / "cell") != content(before["cell"])


# ---------------------------------------------------------------- rounds


@pytest.fixture(scope="module")
def legs(computed):
    """Both ways of querying, two legs each, of models that change a lot: settings, and folders by
    (how, number)."""
    settings = computed.settings["first round"]
    with computed.home():
        settings = replace(settings, training=replace(settings.training, rate=0.1))
        made = {
            (how, number): studies.leg(settings, how, number, "entropy", 0).folder()
            for how in ("rounds", "batch") for number in (1, 2)
        }  # fmt: skip
    return settings, made


def asked_for(legs, how, number) -> list[str]:
    return list(read_csv(legs[1][how, number] / "queried.csv")["utt_id"])


def test_rounds_and_a_batch_end_with_as_many_labels_after_as_many_updates(legs):
    told = {
        leg: pd.read_json(folder / "metrics.json", typ="series") for leg, folder in legs[1].items()
    }
    updates = legs[0].training.updates // 2
    assert [told[leg]["updates"] for leg in told] == [updates] * 4
    assert [told[leg]["queried"] for leg in told] == [3, 6, 6, 6]
    ends = told["rounds", 2], told["batch", 2]
    assert ends[0]["train_utterances"] == ends[1]["train_utterances"] == 24 + 6


def test_nothing_is_queried_twice(legs):
    first, second = (asked_for(legs, "rounds", number) for number in (1, 2))
    assert second[:3] == first and len(set(second)) == 6
    assert asked_for(legs, "batch", 2) == asked_for(legs, "batch", 1)


def test_a_round_asks_the_newer_model(legs, house):
    settings = legs[0]
    data = corpus.prepare(settings)
    pool, first = data.split("pool"), asked_for(legs, "rounds", 1)
    base = score(experiment.load_base(settings, 0), data.store, pool, "entropy")
    assert query(base, 20) == asked_for(legs, "batch", 1) and query(base, 10) == first
    left = pool[~pool["utt_id"].isin(first)]
    newer = experiment.load_base(settings, 0)
    newer.load_state_dict(torch.load(legs[1]["rounds", 1] / "model.pt", weights_only=True))
    expected = query(score(newer, data.store, left, "entropy"), 100 * 3 / len(left))
    assert asked_for(legs, "rounds", 2)[3:] == expected
    assert set(expected) != set(asked_for(legs, "batch", 1)[3:])


def test_both_studies_are_tables(house):
    settings = replace(house.settings["cell"], strategies=("random", "entropy"))
    results = studies.run(settings)
    training_ = results.training.set_index(["refit", "strategy"])
    assert training_["given"].eq(9).all() and set(training_["scenario"]) == {"even"}
    assert training_["updates"].to_dict() == {
        **{("on", strategy): 9 for strategy in ("base", "random", "entropy", "all")},
        **{("scratch", strategy): 17 for strategy in ("random", "all")},
    }
    # going on for as long as the preset says is the experiment's own cell
    own = results.curves.set_index("strategy").loc["all", "wer"]
    assert training_.loc[("on", "all"), "wer"] == own
    assert results.rounds["how"].tolist() == ["rounds", "batch"]
    assert results.rounds["train_utterances"].tolist() == [30, 30]
    for name in ("training", "rounds"):
        written = read_csv(results.folder / f"{name}.csv")
        assert len(written) == len(getattr(results, name))


# ---------------------------------------------------------------- scenarios


def test_scenarios_of_a_preset_are_one_table_and_equal_seeds_are_equal_bytes(house, tmp_path):
    settings, found = house.settings["cell"], []
    scenarios = "few:\n  base: {kinds: [digits]}\n  sizes: {base: 16, pool: 20}\n"
    for place in ("one", "other"):
        root = tmp_path / place
        shutil.copytree(house.root / "configs", root / "configs")
        (root / "configs" / "scenarios.yaml").write_text(scenarios)
        # another scenario is spoken, and what is spoken alike need not be spoken again
        shutil.copytree((tmp_path / "one" if found else house.root) / "data", root / "data")
        for module in (config, steps, corpus, provenance):
            house.patch.setattr(module, "ROOT", root)
        both = replace(
            settings, scenarios=("even", "few"), strategies=("random", "entropy"),
            training=replace(settings.training, base_updates=2, updates=2),
        )  # fmt: skip
        folder = experiment.run(both).folder
        assert folder == root / "results" / "synthetic-house"
        found.append({path.name: path.read_bytes() for path in folder.glob("*.csv")})
    assert found[0] == found[1]
    assert found[0].keys() == {
        "error_curves.csv",
        "scores.csv",
        "cell_errors.csv",
        "comparisons.csv",
        "claims.csv",
    }
    curves = read_csv(folder / "error_curves.csv")
    by = curves.groupby("scenario", sort=False)
    assert list(by.groups) == ["even", "few"] and by.size().tolist() == [4, 4]
    labels = curves[curves["strategy"] == "all"].groupby("scenario")["n_utterances"].first()
    assert labels.to_dict() == {"even": 30, "few": 20}
    for name in found[0]:
        assert set(read_csv(folder / name)["scenario"]) == {"even", "few"}, name


# ---------------------------------------------------------------- bad input


def test_the_power_of_a_run_that_has_not_been_made_is_one_line(root):
    done = alspeech(root, "power", "--preset", "tiny")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and not done.stdout
    assert line.startswith("error: results/synthetic-tiny/error_curves.csv is missing")


@pytest.mark.parametrize("changes, said", [
    ({"longer": ("entropy",)}, "longer: name random"), ({"factors": (0.5, 2.0)}, "factors: name 1"),
])  # fmt: skip
def test_what_has_nothing_to_be_held_against_is_refused_before_anything_is_trained(changes, said):
    settings = load_settings("laptop")
    few = replace(settings, studies=replace(settings.studies, **changes))
    with pytest.raises(UserError, match=f"configs/laptop.yaml: studies: {said}"):
        studies.check(few)


def test_a_record_is_of_the_run_that_wrote_the_tables(tmp_path, monkeypatch):
    """It stays where nothing has changed, and not where the settings have."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    step = tmp_path / "step"
    step.mkdir()
    (step / "metrics.json").write_text('{"seconds": 3.0}')
    settings, table = load_settings("laptop"), {"x": pd.DataFrame({"y": [1]})}
    write = lambda s: provenance.publish(s, table, "provenance", [step], 0.0)  # noqa: E731
    path = write(settings) / "provenance.json"
    first = path.read_text()
    assert write(settings) / "provenance.json" == path and path.read_text() == first
    write(replace(settings, seeds=2))
    found = json.loads(path.read_text())
    assert found["seeds"] == [0, 1] and found["steps"] == 1 and found["process_seconds"] == 3
