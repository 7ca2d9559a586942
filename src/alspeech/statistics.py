"""How sure we are of a difference: intervals over seeds, paired comparisons, label savings.

``curves`` are rows of error_curves.csv: ``strategy, query_percent, seed`` and a column a metric.
Metrics are errors: lower is better.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean over seeds; NaN bounds for one seed."""
    values = np.asarray(values, dtype=float)
    mean, n = values.mean(), len(values)
    if n < 2:
        return float(mean), float("nan"), float("nan")
    # here, since workers need none; and not from scipy.stats, which takes a second to import
    from scipy.special import stdtrit

    half = stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(n)
    return float(mean), float(mean - half), float(mean + half)


def bounds(name: str, values) -> dict[str, float]:
    """:func:`interval` as columns of a table: ``name, name_low, name_high``."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))


def spearman(x, y) -> float:
    """Spearman's ρ: the correlation of the ranks; of equal values, their mean rank."""
    return float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])


MEAN = "mean"  # in the place of a percentage: of all of them, a seed's mean


def paired_difference(curves: pd.DataFrame, a: str, b: str, metric: str) -> pd.DataFrame:
    """Strategy ``a`` minus strategy ``b`` by query percentage, paired by seed.

    Returns ``query_percent, difference, low, high, p``: 95 % interval of the mean over seeds, and
    the p of a paired t-test; first of all the ``MEAN`` over the percentages.
    """
    wide = curves.pivot_table(metric, ["query_percent", "seed"], "strategy")
    differences = (wide[a] - wide[b]).dropna()
    rows = [(MEAN, *_tested(differences.groupby(level="seed").mean()))]
    rows += [(p, *_tested(part)) for p, part in differences.groupby(level="query_percent")]
    return pd.DataFrame(rows, columns=["query_percent", "difference", "low", "high", "p"])


def comparisons(curves: pd.DataFrame, methods, metrics=("ctc", "cer", "wer")) -> pd.DataFrame:
    """All that can be said of methods against random: a row a metric, method and percentage.

    Columns of :func:`paired_difference`, ``metric, method, p_holm`` and ``verdict``. Of every
    metric two families are corrected by Holm's method, each by itself: the means over the
    percentages, which are the figures that were decided on beforehand, one a method; and all
    methods at all percentages.
    """
    found = [
        paired_difference(curves, method, "random", metric).assign(metric=metric, method=method)
        for metric in metrics
        for method in methods
    ]
    table = pd.concat(found, ignore_index=True)
    family = [table["metric"], table["query_percent"] == MEAN]
    table["p_holm"] = table.groupby(family)["p"].transform(holm)
    rows = zip(table["low"], table["high"], table["p_holm"], strict=True)
    return table.assign(verdict=[verdict(*row) for row in rows])


def _tested(values) -> tuple[float, float, float, float]:
    """:func:`interval`, and :func:`paired_p` of the same differences."""
    return (*interval(values), paired_p(values))


def paired_p(differences) -> float:
    """p of the two-sided t-test that paired differences have the mean 0; 1 where there are less
    than two of them, or all are 0."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or not d.any():
        return 1.0
    from scipy.special import stdtr  # here: as above

    with np.errstate(divide="ignore"):
        t = np.abs(d.mean()) / (d.std(ddof=1) / np.sqrt(len(d)))
    return float(2 * stdtr(len(d) - 1, -t))


def holm(p: pd.Series) -> pd.Series:
    """p values of a family, corrected so that with a probability of 95 % none of the true null
    hypotheses has one below 0.05 (Holm 1979): the i-th smallest of m times m − i + 1, and never
    below the one before."""
    ordered = p.sort_values()
    factors = np.arange(len(p), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def verdict(low: float, high: float, p: float = 0.0) -> str:
    """What the interval of a difference in error lets us say, and its corrected ``p`` where it is
    one of many."""
    if not p < 0.05:
        return "no difference seen"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "no difference seen"


def label_saving(curves: pd.DataFrame, strategy: str, metric: str) -> pd.DataFrame:
    """The query percentage at which random, interpolated, reaches the strategy's error.

    One row a (seed, query percentage): ``seed, query_percent, random_percent``; NaN where random's
    curve, from the base model (0 %, where known) on, does not pass through that error.
    """
    rows = []
    for seed, part in curves.groupby("seed"):
        known = part[part["strategy"].isin(["base", "random"])].sort_values("query_percent")
        # interpolation needs a falling curve: the lowest error so far
        falling = np.minimum.accumulate(known[metric].to_numpy())
        percents = known["query_percent"].to_numpy(dtype=float)
        for row in part[part["strategy"] == strategy].to_dict("records"):
            reached = falling[-1] <= row[metric] <= falling[0]
            at = np.interp(-row[metric], -falling, percents) if reached else float("nan")
            rows.append((seed, row["query_percent"], float(at)))
    return pd.DataFrame(rows, columns=["seed", "query_percent", "random_percent"])
