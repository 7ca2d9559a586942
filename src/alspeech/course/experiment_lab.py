"""Exercises of lab 3, an experiment and what can be said of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import nctdtr, ndtri, stdtrit

from .. import lessons, querying, statistics
from ..findings import LONG, table
from ..workshop.errors import cut
from .checks import Argument, Function, Judged, Value

# ---------------------------------------------------------------- a budget of seconds


def _pool(seed: int, N: int, budget: float) -> tuple[pd.Series, pd.Series, float]:
    rng = np.random.default_rng(seed)
    ids = pd.Index([f"pool-{i}" for i in rng.permutation(N)], name="utt_id")
    scores = pd.Series(rng.permutation(N) + 0.5, ids)
    return scores, pd.Series(rng.uniform(1, 6, N).round(2), ids), budget


POOLS = tuple(_pool(*what) for what in ((0, 8, 12.0), (1, 12, 15.0), (2, 20, 30.0)))


def bought(scores, seconds, budget) -> list[str]:
    return querying.query(scores, budget, seconds)


def _filled(scores, seconds, budget) -> list[str]:
    """Where what is too long is passed over, and shorter ones that follow are bought."""
    taken, spent = [], 0.0
    for utt_id in scores.sort_values(ascending=False).index:
        if spent + seconds[utt_id] <= budget:
            taken.append(utt_id)
            spent += seconds[utt_id]
    return taken


def _one_more(scores, seconds, budget) -> list[str]:
    order = scores.sort_values(ascending=False).index
    return list(order[: len(bought(scores, seconds, budget)) + 1])


def _by_count(scores, seconds, budget) -> list[str]:
    count = int(budget / seconds.mean())
    return list(scores.sort_values(ascending=False).index[:count])


# ---------------------------------------------------------------- intervals


def _paired(seed: int, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hard = rng.normal(30, 3, n)  # seeds differ by more than methods do
    return hard + rng.normal(shift, 0.8, n), hard + rng.normal(0, 0.4, n)


PAIRS = tuple(_paired(*what) for what in ((0, 5, -1.0), (1, 3, 0.4), (2, 10, -0.3)))


def paired(a, b) -> tuple:
    return statistics.interval(np.asarray(a) - b)


def _around(a, b, half) -> tuple:
    mean = float(np.mean(a) - np.mean(b))
    return mean, mean - half, mean + half


def _error(a, b, ddof=1) -> float:
    d = np.asarray(a) - b
    return float(d.std(ddof=ddof) / np.sqrt(len(d)))


def _t(a, level=0.975) -> float:
    return float(stdtrit(len(a) - 1, level))


def _unpaired(a, b) -> tuple:
    n = len(a)
    error = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / n)
    return _around(a, b, float(stdtrit(2 * n - 2, 0.975)) * error)


def _welch(a, b) -> tuple:
    n, (u, v) = len(a), (np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b))
    freedom = (u + v) ** 2 / ((u**2 + v**2) / (n - 1))
    return _around(a, b, float(stdtrit(freedom, 0.975) * np.sqrt(u + v)))


# ---------------------------------------------------------------- the area under a curve

CURVES = (
    (np.array([0.0, 60, 120]), np.array([40.0, 36, 34]), 120.0),
    (np.array([0.0, 50, 130]), np.array([40.0, 37, 33]), 100.0),
    (np.array([0.0, 30, 90, 200]), np.array([38.0, 38, 31, 30]), 150.0),
)


def area(seconds, errors, reach) -> float:
    """By the package's own, with a second curve that ends at ``reach``."""
    rows = [{"strategy": "base", "hours": seconds[0], "wer": errors[0], "query_percent": 0.0}]
    for i, (x, e) in enumerate(zip(seconds[1:], errors[1:], strict=True), start=1):
        rows.append({"strategy": "asked", "hours": x, "wer": e, "query_percent": float(i)})
    rows.append({"strategy": "other", "hours": reach, "wer": 0.0, "query_percent": 1.0})
    found = statistics.area(pd.DataFrame(rows).assign(seed=0), "wer").set_index("strategy")
    return float(found.loc["asked", "wer"])


# ---------------------------------------------------------------- power

PLANS = ((0.9, 0.5, 5), (0.9, 0.5, 25), (0.7, 1.0, 6), (1.2, 0.4, 12))


def power(sd, difference, seeds, level=0.975, sides=2, root=True) -> float:
    t, shift = stdtrit(seeds - 1, level), (np.sqrt(seeds) if root else 1) * difference / sd
    above = 1 - nctdtr(seeds - 1, shift, t)
    return float(above + (nctdtr(seeds - 1, shift, -t) if sides == 2 else 0))


def _normal_power(sd, difference, seeds) -> float:
    """Where 1.96 stands in the place of t: an interval that is too short."""
    shift = np.sqrt(seeds) * difference / sd
    z = ndtri(0.975)
    return float(1 - nctdtr(seeds - 1, shift, z) + nctdtr(seeds - 1, shift, -z))


# ---------------------------------------------------------------- many comparisons

FAMILIES = tuple(
    (np.array(p),) for p in ([0.01, 0.04, 0.03], [0.2, 0.001, 0.012, 0.04], [0.7, 0.6, 0.02])
)


def holm(p) -> np.ndarray:
    return statistics.holm(pd.Series(p)).to_numpy()


def _holm_steps(p) -> np.ndarray:
    order = np.argsort(p)
    out = np.empty(len(p))
    out[order] = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    return np.minimum(out, 1)


# ---------------------------------------------------------------- reading a table


def reference() -> pd.DataFrame:
    """The endpoint of the long run's comparisons: a row a scenario and method."""
    return lessons.endpoint(table(LONG, "comparisons"))


def losing(answer) -> str:
    """The scenarios in which entropy is worse than random, by the corrected verdict."""
    if isinstance(answer, str):
        answer = [answer]
    rows = reference().query("method == 'entropy'").set_index("scenario")
    named, known = set(map(str, answer)), set(rows.index)
    if unknown := sorted(named - known):
        return f"'{cut(unknown[0])}' is no scenario of the table: {', '.join(rows.index)}"
    worse = set(rows.index[rows["verdict"] == "worse"])
    if named == worse:
        return ""
    if named == set(rows.index[rows["verdict"] == "better"]):
        return "a difference in *error* above 0 is a loss: these are the ones that it wins"
    if named - worse and named <= set(rows.index[rows["difference"] > 0]):
        return "a mean above 0 is not enough: some of these intervals hold 0"
    if named < worse:
        return f"{len(named)} of them, and there are more"
    return "look at 'verdict', of the rows of entropy, in the endpoint"


EXERCISES = {
    "3.1": Function(
        "buy(scores, seconds, budget) returns the ids, best first: down the ranking until the next "
        "one can no longer be paid for",
        POOLS, bought,
        (
            ("a higher score is queried first", lambda s, d, b: bought(-s, d, b)),
            ("this spends more than the budget: the last one is not paid for", _one_more),
            ("this passes over what is too long and goes on: the rule is to stop there", _filled),
            ("this counts utterances by their mean length: add up their own seconds", _by_count),
            ("this ranks by score a second: the rule ranks by score",
             lambda s, d, b: bought(s / d, d, b)),
            ("this is sorted by id: best first", lambda s, d, b: sorted(bought(s, d, b))),
        ),
    ),
    "3.2": Function(
        "paired_interval(a, b) returns (mean, low, high): Student's 95 % interval of the mean of "
        "a − b, paired by seed",
        PAIRS, paired,
        (
            ("this is b − a", lambda a, b: paired(b, a)),
            ("this treats a and b as independent samples: a seed is the same base model for both, "
             "take the interval of their differences", _unpaired),
            ("this treats a and b as independent samples (Welch): take the interval of their "
             "differences", _welch),
            ("1.96 is the normal distribution's: with few seeds Student's t is wider",
             lambda a, b: _around(a, b, float(ndtri(0.975)) * _error(a, b))),
            ("the standard deviation divides by n − 1 (ddof=1)",
             lambda a, b: _around(a, b, _t(a) * _error(a, b, ddof=0))),
            ("this is where a single seed lies, not the mean: divide by √n",
             lambda a, b: _around(a, b, _t(a) * _error(a, b) * np.sqrt(len(a)))),
            ("95 % between two bounds leave 2.5 % at either side: the quantile is that of 0.975",
             lambda a, b: _around(a, b, _t(a, 0.95) * _error(a, b))),
            ("with n seeds there are n − 1 degrees of freedom",
             lambda a, b: _around(a, b, float(stdtrit(len(a), 0.975)) * _error(a, b))),
        ),
    ),
    "3.3": Function(
        "area(seconds, errors, reach) returns the area under the straight lines between the points "
        "from 0 to reach seconds, divided by reach",
        CURVES, area,
        (
            ("divide by reach: a mean error over the budget", lambda x, e, r: area(x, e, r) * r),
            ("this is the mean of the points, however far apart they are: weigh by seconds",
             lambda x, e, r: float(np.mean(e))),
            ("this goes on to the last point: cut the curve at reach, so that no method is given "
             "more audio than another",
             lambda x, e, r: float(np.trapezoid(e, x) / x[-1])),
            ("the whole curve's area is divided by reach: cut the curve there first",
             lambda x, e, r: float(np.trapezoid(e, x) / r)),
            ("points beyond reach are left out, and with them the line towards them: interpolate "
             "the error at reach",
             lambda x, e, r: float(np.trapezoid(e[x <= r], x[x <= r]) / r)),
        ),
    ),
    "3.4": Function(
        "holm(p) returns the p values corrected by Holm's method, in the order in which they came",
        FAMILIES, holm,
        (
            ("this is Bonferroni's correction, all times m: Holm's i-th smallest is multiplied "
             "with m − i + 1", lambda p: np.minimum(p * len(p), 1)),
            ("a corrected p is never below the one before it: take the running maximum",
             _holm_steps),
            ("corrected ones must be in the order in which they came", lambda p: np.sort(holm(p))),
            ("no p is above 1",
             lambda p: pd.Series(p).sort_values().mul(np.arange(len(p), 0, -1)).cummax()
             .sort_index().to_numpy()),
            ("these are the uncorrected ones", lambda p: p),
        ),
    ),
    "3.5": Value(
        "a letter: which sentence does the interval allow?", "3.6", "d632055580e6",
        (
            ("an interval that holds 0 does not show that there is nothing: its ends are possible, "
             "too", "06726171f493"),
            ("the mean is not the difference: with these seeds 0, and more, is possible, too",
             "67b33acfe663"),
            ("95 % is how often such intervals hold the true mean; it is no probability that this "
             "method is better", "e2ab9819576b"),
        ),
        choices=("a", "b", "c", "d"),
    ),
    "3.6": Function(
        "power(sd, difference, seeds) returns the probability that the 95 % interval of so many "
        "paired seeds does not hold 0",
        PLANS, power,
        (
            ("this is how often the difference is missed: power is one minus that",
             lambda *case: 1 - power(*case)),
            ("this is how often 0 is left out where there is no difference: give the draws the "
             "mean `difference`", lambda sd, d, n: 0.05),
            ("1.96 is the normal distribution's: with few seeds Student's t is wider, and power "
             "lower", _normal_power),
            ("the interval is one of the mean: its standard error has √seeds in it",
             lambda sd, d, n: power(sd, d, n, root=False)),
            ("this is one half too many: an interval of 95 % leaves 2.5 % at either side",
             lambda sd, d, n: power(sd, d, n, level=0.95)),
        ),
        close=(0.0, 0.035),
    ),
    "3.7": Judged("a list of scenarios' names: where is entropy worse than random, after the "
                  "correction?", losing),
    "3.8": Argument("a text: a pool in which random wins, why it does, and how many seeds would "
                    "show it"),
}  # fmt: skip
