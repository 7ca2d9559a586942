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


def paired_difference(curves: pd.DataFrame, a: str, b: str, metric: str) -> pd.DataFrame:
    """Strategy ``a`` minus strategy ``b`` by query percentage, paired by seed.

    Returns ``query_percent, difference, low, high`` (95 % interval of the mean over seeds).
    """
    wide = curves.pivot_table(metric, ["query_percent", "seed"], "strategy")
    differences = (wide[a] - wide[b]).dropna().groupby(level="query_percent")
    rows = [(percent, *interval(part)) for percent, part in differences]
    return pd.DataFrame(rows, columns=["query_percent", "difference", "low", "high"])


def verdict(low: float, high: float) -> str:
    """What the interval of a difference in error lets us say."""
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
