"""What notebook 8 and README.md say of scenarios: known sentences of tables made by hand."""

import math

import pandas as pd
import pytest

from alspeech import lessons
from alspeech.statistics import AREA
from alspeech.workshop.config import load_settings, scenarios

INF = math.inf


def against(scenario, method, difference, verdict, metric="macro_wer", percent=AREA) -> dict:
    """A row of comparisons, with an interval of ±0.5."""
    return {
        "scenario": scenario, "method": method, "metric": metric, "query_percent": percent,
        "difference": difference, "low": difference - 0.5, "high": difference + 0.5,
        "verdict": verdict,
    }  # fmt: skip


DIFFERENCES = pd.DataFrame([
    against("rare_topics", "entropy", -4, "better"),
    against("rare_topics", "egl", 2, "worse"),
    against("rare_accents", "entropy", -0.3, "not decided"),
    against("junk", "entropy", 2, "worse"),
    against("even", "entropy", 0.1, "no difference"),
    against("even", "egl", -1, "better"),
    # not the endpoint, and not its measure
    against("even", "pctc", -9, "better", percent="10"),
    against("junk", "egl", -9, "better", metric="wer"),
    # a scenario that no rule is about
    against("call_log", "entropy", -7, "better"),
])  # fmt: skip


def test_rules_are_told_with_their_counter_examples():
    rare, junk, even = lessons.rules(DIFFERENCES)
    assert "?** Shown in part (" in rare and "?** Shown (" in junk
    assert "(*rare topics* and *rare accents*): *better* in 1 of 3 comparisons" in rare
    assert "(entropy in *rare topics* −4.0 [−4.5, −3.5])" in rare
    assert "counter-examples: EGL in *rare topics* +2.0 [+1.5, +2.5]; 1 neither." in rare
    assert "(*junk*): *worse* in 1 of 1" in junk and junk.endswith("; no counter-example.")
    # where nothing should differ, both signs speak against it
    assert "*no difference* in 1 of 2" in even
    assert even.endswith("counter-examples: EGL in *even* −1.0 [−1.5, −0.5].")
    assert "−9" not in rare + junk + even and "call log" not in rare + junk + even


def test_a_rule_about_nothing_that_was_run_is_not_told():
    assert len(lessons.rules(DIFFERENCES[DIFFERENCES["scenario"] == "junk"])) == 1
    assert {name for names, *_ in lessons.RULES for name in names} <= set(scenarios())


@pytest.mark.parametrize("median, low, high, text", [
    (0.4, 0.1, 0.6, "+40 %\n[+10 %, +60 %]"),
    (-0.25, -INF, 0.5, "−25 %\n[−∞, +50 %]"),
    (-INF, -INF, -0.1, "−∞\n[−∞, −10 %]"),  # no better than the base model
    (0.5, 0.2, 1.0, "+50 %\n[+20 %, +100 %]"),
    (0.4, -INF, 1.0, "+40 %"),  # less than six seeds have no interval
    (-INF, -INF, 1.0, "−∞"),
])  # fmt: skip
def test_savings_are_told_with_what_is_out_of_reach(median, low, high, text):
    rows = [("junk", "egl", median, low, high), ("even", "egl", 0, 0, 0),
            ("junk", "pctc", 0.1, 0, 0.2), ("even", "pctc", 0.3, 0.3, 0.3)]  # fmt: skip
    saved = pd.DataFrame(rows, columns=["scenario", "method", "median", "low", "high"])
    values, texts = lessons.savings(saved, ["pctc", "egl"])
    assert texts.loc["junk", "egl"] == text
    assert list(texts.columns) == ["pctc", "egl"] and list(texts.index) == ["junk", "even"]
    assert values.loc["junk", "egl"] == pytest.approx(100 * median)
    assert texts.loc["even"].tolist() == ["+30 %\n[+30 %, +30 %]", "0 %\n[0 %, 0 %]"]


def test_scenarios_are_paragraphs_that_leave_none_out():
    rows = [
        against(scenario, "entropy", d, verdict, percent=percent)
        for scenario, d, verdict in [("junk", 2, "worse"), ("even", 0, "no difference")]
        for percent in (AREA, "10", "20")
    ]
    junk, even = lessons.in_scenarios(pd.DataFrame(rows))
    assert junk.startswith("*junk*: ") and "Of 2 comparisons" in junk
    assert "*worse*: entropy in macro WER at 10 and 20 %" in junk
    assert "leaves none: *no difference*: entropy in macro WER at 10 and 20 %" in even


# ---------------------------------------------------------------- studies


def rounds(lead: float) -> pd.DataFrame:
    """Rounds are ``lead`` points better than the batch by EGL, and no better by entropy."""
    return pd.DataFrame([
        {"strategy": strategy, "how": how, "seed": seed, "rounds": 4, "query_percent": 20,
         "macro_wer": 30 + seed + (how == "rounds") * (-gain + 0.01 * (-1) ** seed)}
        for strategy, gain in (("entropy", 0), ("egl", lead))
        for how in ("rounds", "batch") for seed in range(4)
    ])  # fmt: skip


def test_rounds_are_held_against_one_batch_as_one_family():
    text = lessons.in_rounds(rounds(2))
    told = "4 rounds less one batch, 20 % queried in all, 4 seeds, points of macro WER: "
    assert text.startswith(told)
    assert "entropy 0.0 [0.0, 0.0] (no difference seen)" in text
    assert text.endswith("and EGL **−2.0 [−2.0, −2.0]** (better).")
    assert "EGL **+2.0 [+2.0, +2.0]** (worse)" in lessons.in_rounds(rounds(-2))


def test_a_length_s_worth_is_what_the_next_length_takes_off():
    lengths = {("on", 100): 30.0, ("on", 200): 27.0, ("on", 400): 26.5, ("scratch", 200): 29.0}
    table = pd.DataFrame([
        {"refit": refit, "given": given, "updates": given + 500 * (refit == "scratch"),
         "strategy": strategy, "seed": seed, "macro_wer": wer + seed + 5 * (strategy == "base")}
        for (refit, given), wer in lengths.items() for strategy in ("base", "all")
        for seed in range(3)
    ])  # fmt: skip
    text = lessons.lengths(table)
    steps = "−3.0 [−3.0, −3.0] from 100 to 200 and −0.5 [−0.5, −0.5] from 200 to 400"
    assert f"base data alone: {steps}. all labels: {steps}." in text
    # against going on for as long as it went on after what the base model had
    assert text.endswith("all labels from scratch, against going on: +2.0 [+2.0, +2.0].")


# ---------------------------------------------------------------- what was bought, and the paper


def test_what_a_method_buys_is_told_by_group():
    """A pool of ten: entropy buys both silences first, EGL none."""
    kinds = ["silence"] * 2 + ["command"] * 8
    pool = pd.DataFrame({"scenario": "junk", "kind": kinds, "entropy": range(10, 0, -1),
                         "egl": range(10)})  # fmt: skip
    scores = pd.concat([pool.assign(seed=seed) for seed in (0, 1)])
    settings = load_settings("smoke")
    shares = lessons.bought(scores, settings.__class__("x", strategies=("entropy", "egl")), 20)
    assert shares.loc[("junk", "silence")].to_dict() == {"pool": 0.2, "entropy": 1.0, "EGL": 0.0}
    assert shares.loc[("junk", "command")].to_dict() == {"pool": 0.8, "entropy": 0.0, "EGL": 1.0}


def test_the_paper_is_beside_ours_at_every_percentage_that_both_have(monkeypatch):
    rows = [
        against("rare_topics", method, -percent / 10, "better", "wer", str(percent))
        for method in ("entropy", "egl", "longest") for percent in (5, 10, 30)
    ]  # fmt: skip
    rows.append(against("rare_topics", "egl", -3, "better", "wer"))
    curves = pd.DataFrame([
        {"strategy": strategy, "seed": seed, "query_percent": 0, "wer": wer + seed}
        for strategy, wer in (("base", 40), ("all", 30)) for seed in (0, 1)
    ])  # fmt: skip
    ranks = {name: [1.0, 2.0, 3.0, 0.5] for name in ("entropy", "pctc")} | {"egl": [3, 2, 1, 4]}
    scores = pd.concat([pd.DataFrame(ranks).assign(seed=seed) for seed in (0, 1)])
    monkeypatch.setattr(lessons, "run_tables", lambda _: (curves, pd.DataFrame(rows)))
    monkeypatch.setattr(lessons, "table", lambda *_: scores)
    lines = lessons.paper().splitlines()[2:]
    told = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert told == [
        "Figure 1, error curves",
        *(f"Table 1, {name} − random at {percent} %, WER points"
          for name in ("EGL", "entropy") for percent in (10, 30)),
        "Figure 2a, ρ of pCTC and entropy", "Figure 2b, ρ of EGL and entropy",
    ]  # fmt: skip
    assert "WER 40.5 % (base data alone) to 30.5 % (all labels), a gain of 10.0 [10" in lines[0]
    assert "**−1.00 [−1.50, −0.50]**: better | −3.32 (one run)" in lines[1]  # 28.15 − 31.47
    assert "**−3.00 [−3.50, −2.50]**: better | −0.76 (one run)" in lines[4]  # 23.32 − 24.08
    assert "1.00 [1.00, 1.00]" in lines[5] and "−1.00 [−1.00, −1.00]" in lines[6]


def test_power_is_told_of_the_run_at_hand(monkeypatch):
    """Differences of ±1 over four seeds: a standard deviation of 1.15 points."""
    asked, rows = [], []
    for seed, lead in enumerate((1, -1, 1, -1)):
        cells = (("base", 0, 40), ("random", 10, 30), ("egl", 10, 30 + lead), ("all", 100, 20))
        for strategy, percent, wer in cells:
            rows.append({"strategy": strategy, "query_percent": percent, "seed": seed,
                         "macro_wer": wer, "hours": percent / 100})  # fmt: skip
    monkeypatch.setattr(
        lessons, "table", lambda run, name: asked.append((run, name)) or pd.DataFrame(rows)
    )
    lines = lessons.power(load_settings("smoke")).splitlines()
    assert asked == [("synthetic-smoke", "error_curves")]
    assert len(lines) == 1 + 2 * 3 and lines[0].split()[-2:] == ["needed", "needed_holm"]
    single = [line.split() for line in lines if " 10 " in line]
    assert [row[-4:-2] for row in single] == [["1.15", "0.5"], ["1.15", "1.0"], ["1.15", "2.0"]]
    # about (1.96 + 0.84)² (sd / difference)² of them, and two more for t
    needed = [float(row[-2]) for row in single]
    assert needed == sorted(needed, reverse=True) and 42 <= needed[0] <= 45


def claim(run, scenario, letter, decision, metric="macro_wer"):
    return {"run": run, "scenario": scenario, "claim": letter, "text": f"text {letter}",
            "metric": metric, "decision": decision, "compared": "a − b", "value": 1.0, "low": 0.5,
            "high": 1.5}  # fmt: skip


def test_the_paper_s_picture_holds_only_where_each_claim_of_it_does(monkeypatch):
    decided = {  # (a) and (b) in a scenario
        ("map", "even"): ("holds", "holds"), ("map", "junk"): ("does not", "holds"),
        ("search", "clean"): ("holds", "not decided"), ("search", "noisy"): ("holds", "holds"),
        ("search", "junk"): ("not decided", "does not"),
    }  # fmt: skip
    rows = []
    for (run, scenario), (a, b) in decided.items():
        rows += [claim(run, scenario, "a", a), claim(run, scenario, "b", b),
                 claim(run, scenario, "b", "does not", "wer"),
                 claim(run, scenario, "d", "not decided", "")]  # fmt: skip
    every = pd.DataFrame(rows)
    curves = pd.DataFrame([
        {"scenario": scenario, "strategy": strategy, "wer": wer, "macro_wer": wer + 1, "seed": seed}
        for scenario in ("clean", "noisy", "junk") for seed in range(3)
        for strategy, wer in (("base", 40), ("all", 30), ("entropy", 35 + 5 * (scenario == "junk")))
    ])  # fmt: skip
    monkeypatch.setattr(lessons, "LONG", "map")
    monkeypatch.setattr(lessons, "SEARCH", "search")
    monkeypatch.setattr(lessons, "seeds", lambda run: 3)
    monkeypatch.setattr(lessons, "run_tables", lambda run: (curves, None))
    monkeypatch.setattr(lessons, "table", lambda run, _: every[every["run"] == run])
    told = lessons.searched()
    # where a query changed nothing, nothing was compared
    assert "as nothing that was bought can be learned: entropy in *junk*." in told
    first, both, steep, unlike = told.split("\n\n")[-4:]
    assert first.startswith("In the 5 scenarios of this run and of the map together")
    assert both.endswith("*holds* in 2 (*even* and *noisy*); *not decided* in 1 (*clean*); "
                         "*does not* in 2 (*junk* and *junk*).")  # fmt: skip
    assert "*holds* in 3 (*even*, *junk* and *noisy*); *not decided* in 1 (*clean*)" in steep
    assert unlike.endswith("*holds* in none; *not decided* in 5 (*even*, *junk*, *clean*, *noisy* "
                           "and *junk*); *does not* in none.")  # fmt: skip
    assert "40.0 to 30.0 | 41.0 to 31.0 |" in told


def test_baselines_are_held_against_random_and_against_what_is_judged(monkeypatch):
    """Curves whose areas are known: a method is as good at half of a budget as at all of it."""
    error = {"random": 30.0, "longest": 28.0, "entropy": 25.0, "egl": 30.0, "oracle_loss": 24.0}
    rows = []
    for seed in range(4):
        cells = [("base", 0, 40.0, 0.0), ("all", 100, 20.0, 10.0)]
        cells += [(m, 10, wer + 0.01 * seed * (m == "egl"), 1.0) for m, wer in error.items()]
        cells += [("shortest", 10, 36.0, 0.5)]
        rows += [{"scenario": "junk", "strategy": m, "query_percent": p, "seed": seed,
                  "macro_wer": wer, "hours": hours} for m, p, wer, hours in cells]  # fmt: skip
    monkeypatch.setattr(lessons, "seeds", lambda run: 4)
    monkeypatch.setattr(lessons, "run_tables", lambda run: (pd.DataFrame(rows), None))
    told = lessons.baselines()
    by = {
        line.split(" | ")[0].removeprefix("| "): line for line in told.splitlines() if "|" in line
    }
    assert [*by][2:] == ["longest first", "entropy", "EGL", "oracle: true loss", "shortest first"]
    # an area is the mean of base model and query: half of the difference
    assert "**−1.0 [−1.0, −1.0]** | **−1.5 [−1.5, −1.5]** | **+1.0 [" in by["longest first"]
    assert by["entropy"].endswith("**−2.5 [−2.5, −2.5]** |  |  |")
    assert "**−3.0 [−3.0, −3.0]** | **+0.5 [+0.5, +0.5]** |" in by["oracle: true loss"]
    # over half a budget random comes from 40 to 35, shortest first to 36
    assert by["shortest first"].endswith("**+0.5 [+0.5, +0.5]** |  |  |")
    assert "Of these 9 differences" in told and "scenario's 4 with random together" in told
