"""README.md and results/README.md say what the result files say, and leave nothing out."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from alspeech import findings, lessons, sequel
from alspeech.sisters import findings as of_sisters
from alspeech.statistics import AREA, comparisons
from alspeech.workshop.errors import UserError

ALL = findings.PASSAGES | lessons.PASSAGES | sequel.PASSAGES | of_sisters.PASSAGES


@pytest.mark.parametrize("page", findings.FILES)
def test_the_pages_say_what_the_tables_say(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert findings.written(text, ALL) == text, "run make findings"


def test_every_passage_stands_somewhere():
    pages = "".join((REPOSITORY / page).read_text(encoding="utf-8") for page in findings.FILES)
    assert set(re.findall("<!-- findings: (.*?) -->", pages)) == set(ALL)


def test_a_passage_that_is_still_empty_takes_nothing_of_what_follows():
    text = (
        "<!-- findings: one -->\n<!-- end -->\n\nWords.\n\n<!-- findings: one -->\n<!-- end -->\n"
    )
    filled = "<!-- findings: one -->\n\n1\n\n<!-- end -->\n"
    assert findings.written(text, {"one": lambda: "1"}) == f"{filled}\nWords.\n\n{filled}"
    assert findings.written(filled, {"one": lambda: "1"}) == filled


@pytest.mark.parametrize("page", findings.FILES)
def test_no_result_is_typed_by_hand(page):
    """Outside of passages and code: no decimal fraction, no percentage, no interval."""
    text = findings.PASSAGE.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    text = re.sub("```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"arXiv \d+\.\d+|Python [\d. tor]+|GPL-3.0|wav2vec 2.0|95 %", "", text)
    assert re.findall(r"[^\n]*(?:\d\.\d|\d %|\[[−+\d])[^\n]*", text) == []


def curves(**gains) -> pd.DataFrame:
    """Eight seeds, two percentages; each method's WER less random's, and a base model."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(8):
        cells = [(name, gain, p) for p in (10, 20) for name, gain in {"random": 0, **gains}.items()]
        for name, gain, percent in [("base", 5, 0), *cells]:
            wer = 20 + gain + 0.1 * rng.normal()
            rows.append({"strategy": name, "query_percent": percent, "seed": seed, "wer": wer,
                         "hours": percent / 100})  # fmt: skip
    return pd.DataFrame(rows)


def held(margin=None, endpoint="mean", **gains) -> pd.DataFrame:
    return comparisons(curves(**gains), metrics=["wer"], margin=margin, endpoint=endpoint)


def test_the_unpleasant_is_said_as_the_pleasant_is():
    text = findings.single(held(egl=+2, entropy=-2, pctc=0))
    assert text.startswith("Of 6 comparisons with random at single percentages (EGL, entropy and ")
    assert "*better*: entropy in WER at 10 and 20 %. *worse*: EGL in WER at 10 and 20 %" in text
    assert "leaves 2: *better*: entropy in WER. *worse*: EGL in WER. In the rest" in text
    nothing = findings.single(held(egl=0))
    assert nothing.count("leaves none: All the same *no difference seen*") == 2
    table = findings.against_random(held(egl=+2, pctc=0)).splitlines()
    assert table[2].startswith("| EGL | **+") and table[3].startswith("| pCTC | ")
    assert "**" not in table[3]


def test_what_was_tested_for_equivalence_is_told_from_what_is_not_decided():
    area = findings.single(held(margin=0.5, endpoint=AREA, egl=+2, pctc=0))
    assert "Of the area under the curve, corrected over the 2 methods" in area
    assert area.endswith("it leaves 1: *worse*: EGL in WER. *no difference*: pCTC in WER.")
    careful = findings.single(held(margin=0.01, endpoint=AREA, pctc=0))
    assert careful.endswith("it leaves none: All the same *not decided*.")


def test_another_table_is_another_page():
    page = "before\n<!-- findings: x -->\nold\n<!-- end -->\nafter"
    new = findings.written(page, {"x": lambda: "new"})
    assert new == "before\n<!-- findings: x -->\n\nnew\n\n<!-- end -->\nafter"
    assert findings.written(new, {"x": lambda: "new"}) == new
    with pytest.raises(UserError, match="no passage is called 'x': use one of y"):
        findings.written(page, {"y": str})


def test_a_table_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    with pytest.raises(UserError, match="results/nowhere/scores.csv is missing"):
        findings.table("nowhere", "scores")


@pytest.mark.parametrize("x, text", [(-0.04, "0.0"), (0.06, "+0.1"), (-1.25, "−1.2"), (3, "+3.0")])
def test_numbers_have_a_true_minus_and_no_minus_zero(x, text):
    assert findings.number(x) == text


def test_pseudo_labels_are_compared_in_every_regime():
    """Methods by hand: b is 2 points better than labels only, and collapses on its own."""
    rows = []
    for seed in range(4):
        noise = 0.01 * seed
        for regime, method, wer, end in (
            ("anchored", "supervised", 30, None), ("anchored", "supervised_longer", 29, None),
            ("anchored", "hard", 28 + noise, None), ("free", "hard", 45 - noise, None),
            ("free", "soft", 90 + noise, 12), ("none", "warm_up", 31, None),
        ):  # fmt: skip
            rows.append({"regime": regime, "method": method, "seed": seed, "wer": wer,
                         "query_percent": 0, "collapsed_at": end})  # fmt: skip
    config = {"anchored": ["supervised", "hard"], "free": ["hard", "soft"], "rate": 1, "cache": 2,
              "replacement": 1, "free_rate": 3, "free_cache": 2, "free_replacement": 1}  # fmt: skip
    text = of_sisters.pseudo_labels(pd.DataFrame(rows), config)
    alone, hard, soft = text.splitlines()[2:5]
    assert alone.startswith("| labels only |") and "**−1.0 [−1.0, −1.0]**" in alone  # warm-up
    assert "**−2.0 [−2.0, −2.0]** | **−1.0 [−1.0, −1.0]**" in hard
    assert "**+14.0 [+14.0, +14.0]** | 0 of 4 |" in hard
    assert "**+59.0 [+59.0, +59.0]** | 4 of 4 |" in soft  # collapsed, and not left out
    assert text.endswith("that is not all that changes: learning rate 1 → 3.")
