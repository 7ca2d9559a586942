"""From EGL to the paper's argument: the ladder, what queries are like, and what is said of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_selection import changed, lot

from alspeech import beyond, experiment, sequel
from alspeech.beyond import LADDER, ladder, query_facts, rivals, variants
from alspeech.selection import SELECTIONS
from alspeech.speech import corpus
from alspeech.statistics import AREA
from alspeech.workshop.config import load_settings, presets
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import read_csv, write_csv


def curves_of(errors: dict, seeds=6, scenario="even") -> pd.DataFrame:
    """Cells of methods whose macro WER is given, falling by a point a seed."""
    rows = [
        {"scenario": scenario, "strategy": name, "query_percent": percent, "seed": seed,
         "macro_wer": wer + seed + 0.05 * (-1) ** seed * (len(name) % 3), "hours": percent / 100}
        for name, wer in errors.items() for seed in range(seeds)
        for percent in ((0,) if name == "base" else (100,) if name == "all" else (10, 20))
    ]  # fmt: skip
    return pd.DataFrame(rows)


ENDS = {"base": 40.0, "all": 20.0, "random": 30.0}


def test_each_step_of_the_ladder_is_held_against_the_one_before():
    found = ladder(curves_of({**ENDS, "egl": 31.0, "egl_renormalised": 28.0, "fisher_ratio": 28.0}))
    assert list(found["method"]) == ["egl_renormalised", "fisher_ratio"]
    assert list(found["before"]) == ["egl", "egl_renormalised"]
    assert list(found["step"]) == [LADDER[name] for name in found["method"]]
    assert set(found["query_percent"]) == {AREA}
    # of the area between the ends, which all methods share, two thirds or so are theirs
    assert -3 < found["difference"].iloc[0] < -1 and abs(found["difference"].iloc[1]) < 0.2
    assert list(found["verdict"]) == ["better", "no difference"]


def test_two_ways_of_minding_the_target_stand_beside_each_other():
    errors = {"fisher_ratio": 28.0, "fisher_ratio_near": 27.0, "fisher_ratio_aimed": 26.0}
    found = ladder(curves_of({**ENDS, **errors}))
    assert list(zip(found["method"], found["before"], strict=True)) == [
        ("fisher_ratio_near", "fisher_ratio"), ("fisher_ratio_aimed", "fisher_ratio"),
    ]  # fmt: skip


def test_a_scenarios_steps_are_corrected_together_and_by_themselves():
    one = {**ENDS, "egl": 31.0, "egl_renormalised": 28.0, "fisher_ratio": 28.0}
    both = pd.concat([curves_of(one), curves_of(one, scenario="junk")], ignore_index=True)
    alone, found = ladder(curves_of(one)), ladder(both)
    assert list(found["scenario"]) == ["even", "even", "junk", "junk"]
    for name in ("even", "junk"):
        part = found[found["scenario"] == name]
        assert list(part["p_holm"]) == pytest.approx(list(alone["p_holm"]))


def test_ours_is_held_against_every_other_method_and_the_worse_is_said_as_the_better_is():
    errors = {**ENDS, "egl": 31.0, "entropy": 26.0, "egl_renormalised": 28.0, "fisher_ratio": 28.0}
    curves = curves_of(errors)
    found = rivals(curves).set_index("before")["verdict"]
    assert dict(found) == {"random": "better", "egl": "better", "entropy": "worse",
                           "egl_renormalised": "no difference"}  # fmt: skip
    (text,) = sequel.less_the_others(curves)
    assert "Fisher ratio less each other method, corrected over the 4" in text
    assert text.count(", better") == 2 and "; entropy **+" in text and ", worse" in text


def test_ours_is_held_against_each_of_theirs_in_every_scenario_and_wins_only_against_all():
    errors = {**ENDS, "egl": 31.0, "entropy": 29.0, "egl_renormalised": 28.0, "fisher_ratio": 26.0}
    worse = {**errors, "fisher_ratio": 31.0, "fisher_ratio_near": 27.0}
    both = [curves_of(errors | {"fisher_ratio_near": 28.0}), curves_of(worse, scenario="junk")]
    by = sequel.held(pd.concat(both, ignore_index=True))
    shown, text = sequel.ours_and_theirs(by), sequel.won(by)
    rows = [line for line in shown.splitlines() if line.startswith("| Fisher")]
    assert len(rows) == 9 and all(row.count("[") == 2 for row in rows)
    lost = [
        f"{what[2:]} in {place}" for what, *told in (row.split(" | ") for row in rows)
        for place, one in zip(("*even*", "*junk*"), told, strict=True) if ", worse" in one
    ]  # fmt: skip
    assert lost and text.count("worse: ") == len(lost)  # each is named
    assert all(f"; worse: {one}" in text for one in lost)
    assert "Of these 18 differences" in text and "Fisher ratio, near − Fisher ratio |" in shown
    own, near = text.split("\n\n- ")[1:]
    assert "in *even*. Against random: *even* better; *junk* worse." in own
    assert "in *junk*. Against random: *even* better; *junk* better." in near
    (lone,) = [x for x in rows if x.startswith("| Fisher ratio, near − EGL, renorm")]
    assert "no difference" in lone and ", better" in lone


def test_settings_that_were_read_from_a_file_have_the_preset_s_own_among_them(tmp_path):
    rows = [
        {"scenario": "even", "strategy": "fisher_ratio", "setting": setting, "value": value,
         "seed": seed, "macro_wer": 30.0 + gain + 0.1 * seed}
        for setting, value, gain in (("as it is", "", 0), ("ridge", "10", -1)) for seed in range(3)
    ]  # fmt: skip
    write_csv(tmp_path / "settings.csv", pd.DataFrame(rows))
    table = sequel.others(read_csv(tmp_path / "settings.csv"))
    assert list(table["difference"]) == pytest.approx([-1])


def test_all_of_the_ladder_is_compared_by_default_and_random_too():
    strategies = load_settings("laptop").beyond.strategies
    assert {"random", *LADDER} <= set(strategies)
    assert set(list(LADDER)[3:]) <= set(SELECTIONS)


def test_what_a_query_is_like(house, monkeypatch):
    """Three utterances with the same gradient and the same text, and one across them."""
    settings = house.settings["selection"]
    pool = corpus.prepare(settings).split("pool")
    ids = list(pool["utt_id"][:4])
    known, texts = lot(4), pool.set_index("utt_id")["text"]
    directions, best = np.zeros((4, 2, 3), "f4"), np.zeros((4, 3), "f4")
    directions[:3, 0, 0] = directions[3, 0, 1] = 2.0
    best[:3, 0], best[3, 1] = (1, 2, 3), 1
    known = replace(known, utt_ids=np.array(ids), directions=directions, best=best)
    monkeypatch.setattr(beyond.Candidates, "load", lambda _: known)
    monkeypatch.setattr(experiment, "queried", lambda *_: ids)
    monkeypatch.setattr(
        beyond.corpus,
        "prepare",
        lambda _: type(
            "", (), {"split": lambda _, name: pool.assign(text=["a", "a", "a", "b", *texts[4:]])}
        )(),
    )
    found = query_facts(settings, "fisher_ratio", 0)
    assert found["utterances"] == 4 and found["repeats"] == 50
    assert found["nearest"] == pytest.approx(3 / 4)  # the fourth is across all others
    shares = np.array([0.75, 0.25])
    assert found["directions"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found["seconds"] == pytest.approx(known.seconds.sum())


def test_other_settings_are_tried_one_at_a_time():
    settings = load_settings("laptop")
    tried = variants(settings)
    methods = list(dict.fromkeys(strategy for strategy, _, _ in tried))
    assert methods == list(beyond.TRIED) and len(tried) == len(set(tried))
    keys = [beyond.variant_scores(settings, "rare_topics", *what, 0).key for what in tried]
    assert len(set(keys)) == len(keys)
    for (strategy, name, value), key in zip(tried, keys, strict=True):
        own = experiment.pool_scores(settings, strategy, 0).key
        if name == beyond.AS_IT_IS:
            assert key == own
            continue
        assert getattr(settings.selection, name) != value, "a value that is the preset's own"
        other = experiment.pool_scores(changed(settings, **{name: value}), strategy, 0).key
        assert key == other != own


def test_settings_are_tried_in_every_scenario_and_only_of_methods_that_are_compared():
    settings = load_settings("tuning")
    sequel_ = load_settings("sequel")
    assert not set(settings.scenarios) & set(sequel_.scenarios)
    # scenarios that differ in their pools have the same base and test, unless the seed is another
    others = [x for x in presets() if x != "sequel"]
    assert sequel_.build.seed not in {load_settings(x).build.seed for x in others}
    few = replace(settings, beyond=replace(settings.beyond, strategies=("random", "fisher_ratio")))
    assert {strategy for strategy, _, _ in variants(few)} == {"fisher_ratio"}
    what = ("fisher_ratio", "ridge", 0.1, 0)
    keys = [beyond.variant_scores(settings, x, *what).key for x in settings.scenarios]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("changes, said", [
    ({"strategies": ("random", "entropy", "fisher_ratio")}, "strategies: name two at least of egl"),
    ({"strategies": ("random", "egl", "egl_renormalised")}, "no other setting is tried: name one"),
])  # fmt: skip
def test_what_has_nothing_to_be_held_against_is_refused_before_anything_is_trained(changes, said):
    settings = load_settings("laptop")
    few = replace(settings, beyond=replace(settings.beyond, **changes))
    with pytest.raises(UserError, match=said) as error:
        beyond.check(few)
    assert "configs/laptop.yaml: beyond: " in str(error.value)


def argument_of(order, seeds=4) -> pd.DataFrame:
    """Four methods whose variance follows tr(I⁻¹ F), with lengths in an order of their own."""
    names = ("random", "entropy", "egl", "fisher_ratio")
    return pd.DataFrame([
        {"strategy": name, "seed": seed, "ratio": 1.0 + i, "variance": 2.0 * (1 + i) + 0.1 * seed,
         "length": float(order[i])}
        for seed in range(seeds) for i, name in enumerate(names)
    ])  # fmt: skip


@pytest.mark.parametrize("order, said", [
    ((4, 3, 2, 1), "orders them"), ((1, 2, 3, 4), "orders them the wrong way"),
])  # fmt: skip
def test_which_of_the_two_orders_the_methods_is_decided_by_the_interval(order, said):
    table = sequel.correlations(argument_of(order))
    assert table.loc["ratio", "rho"] == 1 and table.loc["ratio", "decision"] == "orders them"
    assert table.loc["length", "decision"] == said
    assert (table["low"] <= table["high"]).all()
    text = sequel.argued(argument_of(order))
    assert "4 methods and 4 seeds" in text and text.count("orders them") == 2
    mixed = argument_of((4, 3, 2, 1))
    mixed.loc[mixed["seed"] % 2 == 1, "length"] *= -1
    assert sequel.correlations(mixed).loc["length", "decision"] == "not decided"


def test_nothing_tried_is_nothing_to_tell():
    assert "nothing was tried" in sequel.changed(pd.DataFrame(columns=sequel.TRIED_AS))


def test_no_setting_that_was_tried_is_left_out():
    tried = (
        ("fisher_ratio", "as it is", "", 30, 0.0),
        ("fisher_ratio", "ridge", "0.1", 33, 0.01),
        ("power_egl", "as it is", "", 40, 0.0),
        ("power_egl", "beta", "3", 40, 0.4),
    )
    table = pd.DataFrame([
        {"scenario": scenario, "strategy": strategy, "setting": name, "value": value, "seed": seed,
         "macro_wer": wer + seed + (-1) ** seed * by + 9 * (scenario == "junk")}
        for scenario in ("even", "junk") for strategy, name, value, wer, by in tried
        for seed in range(2)
    ])  # fmt: skip
    found = sequel.others(table)
    assert list(found["what"]) == ["ridge 0.1", "power EGL in clusters, beta 3"]
    assert list(found["difference"].round(6)) == [3.0, 0.0]
    text = sequel.changed(table)
    assert "ridge 0.1 **+3.0" in text and "power EGL in clusters, beta 3 0.00 [" in text
    assert "over the 2 leaves 1." in text and "*even* and *junk*" in text
    assert "(2 seeds, means over scenarios)" in text
