"""What is concluded from the error curves: the paper's claims, each *holds*, *does not* or *not
decided* by a rule; who beats whom; how many seeds a difference needs.

``curves`` and ``errors`` as in statistics.py; ``scores`` are rows of scores.csv: ``scenario, seed,
utt_id`` and a column a strategy.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .statistics import (
    AREA,
    BETTER,
    EQUAL,
    MARGIN,
    OPEN,
    RANDOM,
    WORSE,
    area,
    comparisons,
    interval,
    judged,
    label_saving,
    median_interval,
    methods_of,
    of_scenarios,
    paired_difference,
    paired_p,
    seeds_needed,
    spearman,
)  # fmt: skip

# ---------------------------------------------------------------- the paper's claims

CLAIMS = {  # Huang et al. 2016: abstract, Figures 1 and 2, Table 1
    "a": "entropy, pCTC and EGL beat random",
    "b": "EGL does better than entropy and pCTC",
    "c": "pCTC and entropy do equally well",
    "d": "EGL's ranking is uncorrelated with that of entropy",
    "e": "EGL needs half the labels to do as well as random",
}
HOLDS, FAILS = "holds", "does not"  # and OPEN
UNCORRELATED = 0.3  # a Spearman's ρ nearer to 0 than this
HALF = 0.5


def claims(
    curves: pd.DataFrame, scores: pd.DataFrame | None = None,
    metrics: Iterable[str] = ("macro_wer", "wer"), margin: float = MARGIN,
) -> pd.DataFrame:  # fmt: skip
    """The paper's claims in every scenario, by the first of ``metrics`` and, beside it, the others.

    Differences are those of areas under the curve (:func:`statistics.area`), in points.

    (a) each method − random: *holds* if all are better after Holm's correction over the three,
        *does not* if one is worse, or equivalent within ``margin``. Shown is the largest.
    (b) EGL − entropy and EGL − pCTC: likewise, over the two; shown is that to the better one.
    (c) pCTC − entropy: *holds* if equivalent within ``margin``, *does not* if the interval is
        beyond it. It is the 90 % interval, which both tests of equivalence amount to.
    (d) Spearman's ρ of EGL and entropy over the pool, of no metric: *holds* if the interval lies
        within ±0.3, *does not* if it lies outside.
    (e) 1 − p/q, where q is random's largest percentage and p that at which EGL's curve, base model
        and all labels included, comes down to random's error there: a median with the interval of
        :func:`statistics.median_interval`, for which six seeds are the least. *Holds* if it lies
        at or above ½, *does not* if it lies below.

    All else is *not decided*: one seed, a strategy that was not run (NaN). Returns ``scenario,
    metric, claim, text, compared, value, low, high, level, decision``; ``metric`` is "" for (d).
    """
    rows, by_scenario = [], {} if scores is None else dict(of_scenarios(scores))
    for scenario, part in of_scenarios(curves):
        for metric in metrics:
            areas = area(part, metric)
            against = [(name, RANDOM) for name in ("entropy", "pctc", "egl")]
            found = {
                "a": _all_better(areas, metric, against, margin),
                "b": _all_better(areas, metric, [("egl", "entropy"), ("egl", "pctc")], margin),
                "c": _alike(areas, metric, "pctc", "entropy", margin),
                "e": _half(part, metric),
            }
            rows += [(scenario, metric, claim, *row) for claim, row in found.items()]
        rows.append((scenario, "", "d", *_uncorrelated(by_scenario.get(scenario))))
    names = ["scenario", "metric", "claim", "compared", "value", "low", "high", "level", "decision"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(3, "text", table["claim"].map(CLAIMS))
    return table


NOTHING = (float("nan"),) * 3


def _all_better(areas: pd.DataFrame, metric: str, pairs: list, margin: float) -> tuple:
    found = [
        paired_difference(areas, *pair, metric, margin=margin).assign(compared=" − ".join(pair))
        for pair in pairs
    ]
    table = pd.concat(found, ignore_index=True)
    table = table[table["query_percent"] == AREA].reset_index(drop=True)
    if len(table) < len(pairs):
        return "; ".join(" − ".join(pair) for pair in pairs), *NOTHING, 0.95, OPEN
    verdicts = judged(table)["verdict"]
    against = verdicts.isin([WORSE, EQUAL])
    if against.any():
        table, decision = table[against], FAILS
    else:
        decision = HOLDS if (verdicts == BETTER).all() else OPEN
    shown = table.loc[table["difference"].idxmax()]
    return *shown[["compared", "difference", "low", "high"]], 0.95, decision


def _alike(areas: pd.DataFrame, metric: str, a: str, b: str, margin: float) -> tuple:
    wide = areas.pivot(index="seed", columns="strategy", values=metric)
    compared = f"{a} − {b}"
    if not {a, b} <= set(wide):
        return compared, *NOTHING, 0.9, OPEN
    value, low, high = interval((wide[a] - wide[b]).dropna(), 0.9)
    return compared, value, low, high, 0.9, _within(low, high, margin)


def _within(low: float, high: float, margin: float) -> str:
    if -margin < low and high < margin:
        return HOLDS
    return FAILS if low > margin or high < -margin else OPEN


def _uncorrelated(scores: pd.DataFrame | None) -> tuple:
    compared = "ρ(egl, entropy)"
    if scores is None or not {"egl", "entropy"} <= set(scores):
        return compared, *NOTHING, 0.95, OPEN
    rho = [spearman(part["egl"], part["entropy"]) for _, part in scores.groupby("seed")]
    value, low, high = interval(rho)
    return compared, value, low, high, 0.95, _within(low, high, UNCORRELATED)


def _half(curves: pd.DataFrame, metric: str) -> tuple:
    reached = label_saving(curves, RANDOM, metric, reference="egl")
    if reached.empty:
        return "egl", *NOTHING, 0.95, OPEN
    last = reached["query_percent"].max()
    own = reached[reached["query_percent"] == last]
    value, low, high = median_interval(
        *(1 - own[f"needed_{end}"] / last for end in ("high", "low"))
    )
    decision = HOLDS if low >= HALF else FAILS if high < HALF else OPEN
    return f"egl, random at {last:g} %", value, low, min(high, 1.0), 0.95, decision


# ---------------------------------------------------------------- who beats whom


def penalty_matrix(
    curves: pd.DataFrame, methods=None, scenarios=None, budgets=None, metric: str = "macro_wer"
) -> pd.DataFrame:
    """Pairwise penalties (Ash et al. 2020, Figure 4), random included.

    Row i, column j: the share of settings, a scenario and a query percentage each, in which method
    i is significantly better than method j (paired t-test over seeds, 5 %, uncorrected: a picture,
    not a test). NaN where the two never met, and on the diagonal. The last row, ``mean``, is the
    mean of a column: how often that method is beaten; lower is better.
    """
    methods = [RANDOM, *methods_of(curves)] if methods is None else list(methods)
    won, met = np.zeros((2, len(methods), len(methods)))
    for scenario, part in of_scenarios(curves):
        if scenarios is not None and scenario not in scenarios:
            continue
        wide = part.pivot_table(metric, ["query_percent", "seed"], "strategy")
        for percent, errors in wide.reindex(columns=methods).groupby(level="query_percent"):
            if budgets is not None and percent not in budgets:
                continue
            for i, a in enumerate(methods):
                for j, b in enumerate(methods):
                    d = (errors[a] - errors[b]).dropna()
                    if i == j or d.empty:
                        continue
                    met[i, j] += 1
                    won[i, j] += d.mean() < 0 and paired_p(d) < 0.05
    share = np.divide(won, met, out=np.full_like(won, np.nan), where=met > 0)
    table = pd.DataFrame(share, index=methods, columns=methods)
    return pd.concat([table, table.mean().rename("mean").to_frame().T])


# ---------------------------------------------------------------- how many seeds


def power_table(
    curves: pd.DataFrame, differences: Iterable[float] = (0.5, 1, 2), metric: str = "macro_wer",
    methods=None,
) -> pd.DataFrame:  # fmt: skip
    """How many seeds each of the ``differences`` to random (points) needs, from the run at hand.

    A row a scenario, query percentage or ``AREA``, and difference: ``scenario, metric,
    query_percent, methods, seeds`` (the run's), ``sd`` of the paired difference a seed (root mean
    square over the methods), ``difference, needed`` for 80 % power at 5 %
    (:func:`statistics.seeds_needed`), and ``needed_holm`` as the strictest of a family of
    comparisons, as in :func:`statistics.comparisons`. NaN for one seed.
    """
    table, rows = comparisons(curves, methods, (metric,), AREA), []
    for scenario, part in table.groupby("scenario", sort=False):
        single = int((part["query_percent"] != AREA).sum())
        for percent, found in part.groupby("query_percent", sort=False):
            family = len(found) if percent == AREA else single
            sd = float(np.sqrt((found["sd"] ** 2).mean()))
            by = (scenario, metric, percent, len(found), int(found["seeds"].max()), sd)
            for difference in differences:
                each = (seeds_needed(sd, difference, methods=n) for n in (1, family))
                rows.append((*by, difference, *each))
    names = ["scenario", "metric", "query_percent", "methods", "seeds", "sd", "difference"]
    return pd.DataFrame(rows, columns=[*names, "needed", "needed_holm"])
