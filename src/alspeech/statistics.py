"""How sure we are of a difference: intervals over seeds, paired comparisons, label savings.

``curves`` are rows of error_curves.csv: ``scenario`` (may be left out where there is but one),
``strategy, query_percent, seed, hours`` (of audio labelled beyond base) and a column a metric.
Metrics are errors, in percent (the CTC loss in nats): lower is better. The strategies ``base``
(0 %) and ``all`` (100 %) are the ends of every curve. ``errors`` are rows of cell_errors.csv: a row
a cell, test speaker and group, with ``words, word_errors``.

    C  cells    S  seeds    G  groups of the test set    P  test speakers

What is concluded from these is in claims.py.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .resampling import sign_flip_p, two_way_interval
from .workshop.errors import UserError

# scipy is imported where it is used, since workers need none; and scipy.special suffices, whereas
# scipy.stats takes seconds to import

LEVEL = 0.95  # of intervals; tests are at 1 − LEVEL
MARGIN = 0.5  # points of error rate; two methods that differ by less do equally well
BASE, ALL, RANDOM = "base", "all", "random"  # as in querying.py, which needs torch

# ---------------------------------------------------------------- of numbers


def interval(values, level: float = LEVEL) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean over seeds; NaN bounds for one seed."""
    values = np.asarray(values, dtype=float)
    mean, n = values.mean(), len(values)
    if n < 2:
        return float(mean), float("nan"), float("nan")
    from scipy.special import stdtrit

    half = stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(n)
    return float(mean), float(mean - half), float(mean + half)


def bounds(name: str, values) -> dict[str, float]:
    """:func:`interval` as columns of a table: ``name, name_low, name_high``."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))


def spearman(x, y) -> float:
    """Spearman's ρ: the correlation of the ranks; of equal values, their mean rank."""
    return float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])


def median_interval(low, high=None, level: float = LEVEL) -> tuple[float, float, float]:
    """(median, low, high) of values that are known, or known to lie between ``low`` and ``high``.

    From order statistics: of n independent values, the k-th smallest and the k-th largest hold
    the median of their distribution between them with a probability of 1 − 2 P(X < k), where X is
    binomial (n, ½); k is the largest with at least ``level``. Nothing is asked of the
    distribution, so that a censored value serves as well as any other: with its lower end below,
    with its upper end above. Less than six values have no such interval at 95 %: (−inf, inf). The
    median is that of the lower ends: where it is one of a censored value, it is at least that.
    """
    from scipy.special import bdtr

    low, n = np.sort(np.asarray(low, dtype=float)), len(low)
    high = low if high is None else np.sort(np.asarray(high, dtype=float))
    k = int((bdtr(np.arange(n), n, 0.5) <= (1 - level) / 2).sum())
    ends = (low[k - 1], high[n - k]) if k else (-np.inf, np.inf)
    middle = low[[(n - 1) // 2, n // 2]]
    return float(middle.mean()), *map(float, ends)


def paired_p(differences) -> float:
    """p of the two-sided t-test that paired differences have the mean 0; 1 where there are less
    than two of them, or all are 0."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or not d.any():
        return 1.0
    from scipy.special import stdtr

    with np.errstate(divide="ignore"):
        t = np.abs(d.mean()) / (d.std(ddof=1) / np.sqrt(len(d)))
    return float(2 * stdtr(len(d) - 1, -t))


def equal_p(differences, margin: float = MARGIN) -> float:
    """p of the equivalence test: that the mean of paired differences is ``margin`` or more from 0.

    Two one-sided t-tests, against −margin and against +margin; the larger p (Schuirmann 1987).
    Below 0.05 exactly where the 90 % interval lies within ±margin. 1 for less than two of them.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2:
        return 1.0
    from scipy.special import stdtr

    inside, error = margin - np.abs(d.mean()), d.std(ddof=1) / np.sqrt(len(d))
    if error == 0:
        return float(inside <= 0)
    return float(stdtr(len(d) - 1, -inside / error))


def holm(p: pd.Series) -> pd.Series:
    """p values of a family, corrected so that with a probability of 95 % none of the true null
    hypotheses has one below 0.05 (Holm 1979): the i-th smallest of m times m − i + 1, and never
    below the one before."""
    ordered = p.sort_values()
    factors = np.arange(len(p), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


BETTER, WORSE, EQUAL, OPEN = "better", "worse", "no difference", "not decided"
UNSEEN = "no difference seen"  # where equivalence is not tested


def verdict(low: float, high: float, p: float = 0.0, equivalent: bool | None = None) -> str:
    """What the interval of a difference in error lets us say, and its corrected ``p`` where it is
    one of many.

    ``equivalent``, where that was tested, tells "no difference" from "not decided". A difference
    may be both sure and smaller than the margin: then it is better, or worse.
    """
    if p < 0.05 and high < 0:
        return BETTER
    if p < 0.05 and low > 0:
        return WORSE
    if equivalent is None:
        return UNSEEN
    return EQUAL if equivalent else OPEN


def judged(table: pd.DataFrame, p: pd.Series | None = None) -> pd.DataFrame:
    """Differences, with ``p_holm``, as corrected ``p`` (if none are given, of all rows as one
    family), and the ``verdict``. Columns ``low, high, p`` and, where it was tested,
    ``equivalent``."""
    p = holm(table["p"]) if p is None else p
    known = table["equivalent"] if "equivalent" in table else [None] * len(table)
    rows = zip(table["low"], table["high"], p, known, strict=True)
    return table.assign(p_holm=p, verdict=[verdict(*row) for row in rows])


def seeds_needed(
    sd: float, difference: float, power: float = 0.8, level: float = 0.05, methods: int = 1
) -> float:
    """How many seeds show a true mean ``difference`` whose standard deviation a seed is ``sd``.

    The smallest n with P(|T| > t) ≥ ``power``, T noncentral t with n − 1 degrees of freedom and
    noncentrality √n · difference / sd, t the two-sided bound at ``level / methods``: the first step
    of Holm's correction over ``methods``, the strictest. NaN where ``sd`` is.
    """
    if not difference > 0:
        raise UserError(f"seeds needed: a difference of {difference:g}: take one above 0")
    if np.isnan(sd):
        return float("nan")
    from scipy.special import nctdtr, stdtrit

    n, found = 1, 0.0
    while found < power and sd > 0:
        n += 1
        t, shift = stdtrit(n - 1, 1 - level / methods / 2), np.sqrt(n) * difference / sd
        found = 1 - nctdtr(n - 1, shift, t) + nctdtr(n - 1, shift, -t)
    return float(max(n, 2))


# ---------------------------------------------------------------- endpoints

MEAN = "mean"  # in the place of a percentage: of all of them, a seed's mean
AREA = "area"  # in the place of a percentage: a seed's area under the curve


def of_scenarios(curves: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(scenario, its rows) in the table's order; "" where it names none."""
    if "scenario" not in curves:
        return [("", curves)]
    return list(curves.groupby("scenario", sort=False))


def methods_of(curves: pd.DataFrame) -> list[str]:
    """The strategies that are held against random, in the table's order."""
    return [s for s in curves["strategy"].unique() if s not in (BASE, ALL, RANDOM)]


def area_weights(curves: pd.DataFrame) -> pd.DataFrame:
    """The area under an error curve as weights of its points.

    A curve e(s) runs straight from the base model (s = 0 seconds labelled) to a strategy's
    queries. Its area is (1/X) ∫₀^X e(s) ds: a mean error over a budget, in the error's unit. X is
    the smallest of the strategies' largest seconds in that scenario and seed, so that none is
    given more audio than another, whatever its utterances' length. By trapezoids it is a weighted
    sum (Cawley 2011 compares active learners by such areas).
    X depends on all strategies in the table: leave out what buys little, such as shortest first.

    Returns a row a point: ``scenario, strategy, seed``, its cell (``cell``: base or the strategy;
    ``query_percent``), ``weight`` (a curve's sum to 1), ``hours`` (X). Raises ``UserError`` where
    there is no base model.
    """
    rows = []
    for scenario, part in of_scenarios(curves):
        for seed, cells in part.sort_values("hours").groupby("seed"):
            base = cells[cells["strategy"] == BASE]
            own = cells[~cells["strategy"].isin([BASE, ALL])]
            if len(base) != 1:
                raise UserError(
                    f"error curves, scenario '{scenario}', seed {seed}: an area begins at the base "
                    f"model, of which there are {len(base)} rows: have one (strategy '{BASE}')"
                )
            reach = own.groupby("strategy")["hours"].max().min()
            for strategy, points in own.groupby("strategy", sort=False):
                hours = np.append(base["hours"], points["hours"]).astype(float)
                knots = np.append(hours[hours < reach], reach)
                each = [np.interp(knots, hours, unit) for unit in np.eye(len(hours))]
                weights = np.trapezoid(each, knots) / reach
                names = [BASE, *points["strategy"]]
                percents = [*base["query_percent"], *points["query_percent"]]
                at = zip(names, percents, weights, strict=True)
                rows += [(scenario, strategy, seed, *cell, reach) for cell in at]
    names = ["scenario", "strategy", "seed", "cell", "query_percent", "weight", "hours"]
    return pd.DataFrame(rows, columns=names)


def area(curves: pd.DataFrame, metric: str = "macro_wer") -> pd.DataFrame:
    """The primary endpoint: the area under the curve of ``metric`` against seconds labelled, as
    :func:`area_weights` has it. A row a scenario, strategy and seed, in the form of ``curves``:
    ``scenario, strategy, seed, query_percent`` (``AREA``), ``hours`` (X), ``metric``."""
    known = curves.dropna(subset=[metric])
    if "scenario" not in known:
        known = known.assign(scenario="")
    keys = ["scenario", "seed", "cell", "query_percent"]
    points = area_weights(known).merge(known.rename(columns={"strategy": "cell"})[[*keys, metric]])
    points[metric] *= points["weight"]
    by = ["scenario", "strategy", "seed", "hours"]
    found = points.groupby(by, sort=False, as_index=False)[metric].sum()
    return found.assign(query_percent=AREA)[[*by[:3], "query_percent", "hours", metric]]


# ---------------------------------------------------------------- comparisons


def paired_difference(
    curves: pd.DataFrame, a: str, b: str, metric: str, endpoint: str = MEAN,
    margin: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Strategy ``a`` minus strategy ``b`` by scenario and query percentage, paired by seed.

    First of a scenario the ``endpoint``: the ``MEAN`` over the percentages or the ``AREA``. Returns
    ``scenario, query_percent, seeds, difference, low, high, sd``: 95 % t interval of the mean over
    seeds, and a seed's standard deviation; ``p`` of a paired t-test and ``p_sign`` of
    :func:`sign_flip_p`; with a ``margin``, ``p_equal`` of :func:`equal_p` and whether both are
    ``equivalent``. A percentage that no seed has of both, or a test without the metric (NaN), has
    no row.
    """
    return _differences(_wide(curves, metric, endpoint), a, b, margin)


def comparisons(
    curves: pd.DataFrame, methods=None, metrics=("ctc", "cer", "wer"), endpoint: str = MEAN,
    margin: float | None = None, errors: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """All that can be said of methods against random: a row a scenario, metric, method (all that
    there are, if none are named) and percentage.

    Columns of :func:`paired_difference`, ``metric, method, p_holm`` and ``verdict``. Of every
    scenario and metric two families are corrected by Holm's method, each by itself: the
    ``endpoint``, which is the figure that was decided on beforehand, one a method; and all methods
    at all percentages. With a ``margin`` (points; the CTC loss, in nats, has none) the
    verdict is "better", "worse", "no difference" (equivalent, by a test of its own) or "not
    decided". With ``errors`` also ``boot_low, boot_high`` of :func:`speaker_intervals`.
    """
    methods = methods_of(curves) if methods is None else methods
    found = []
    for metric in metrics:
        wide = _wide(curves, metric, endpoint)
        for method in methods:
            rows = _differences(wide, method, RANDOM, None if metric == "ctc" else margin)
            found.append(rows.assign(metric=metric, method=method))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    if table.empty:
        raise UserError(f"error curves: no cell of a method and of '{RANDOM}' to compare: run both")
    place = {name: i for i, (name, _) in enumerate(of_scenarios(curves))}
    table = table.sort_values("scenario", key=lambda s: s.map(place), kind="stable")
    family = [table["scenario"], table["metric"], table["query_percent"] == endpoint]
    if margin is not None:
        table["equivalent"] = table["equivalent"].eq(True)
    table = judged(table, table.groupby(family)["p"].transform(holm)).reset_index(drop=True)
    if errors is None:
        return table
    own = speaker_intervals(errors, curves, methods, endpoint)
    return table.merge(own, "left", ["scenario", "metric", "method", "query_percent"])


def _wide(curves: pd.DataFrame, metric: str, endpoint: str) -> list[tuple]:
    """(scenario, [percentage and seed, strategies], the areas if they are the endpoint)."""
    found = []
    ends = dict(of_scenarios(area(curves, metric))) if endpoint == AREA else {}
    for scenario, part in of_scenarios(curves):
        areas = ends.get(scenario)
        if areas is not None:
            areas = areas.pivot(index="seed", columns="strategy", values=metric)
        found.append(
            (scenario, part.pivot_table(metric, ["query_percent", "seed"], "strategy"), areas)
        )
    return found


def _differences(wide: list[tuple], a: str, b: str, margin: float | None) -> pd.DataFrame:
    rows = []
    for scenario, single, areas in wide:
        if a not in single or b not in single:
            continue
        d = (single[a] - single[b]).dropna()
        if areas is None:
            ends = (MEAN, d.groupby(level="seed").mean())
        else:
            ends = (AREA, (areas[a] - areas[b]).dropna())
        for percent, values in [ends, *d.groupby(level="query_percent")]:
            if len(values):
                rows.append((scenario, percent, *_tested(values, margin)))
    names = ["scenario", "query_percent", "seeds", "difference", "low", "high", "sd"]
    names += ["p", "p_sign"]
    return pd.DataFrame(rows, columns=[*names, *(("p_equal", "equivalent") if margin else ())])


def _tested(values, margin: float | None) -> tuple:
    """Of paired differences: how many, interval, sd, p by t and by signs, and equivalence."""
    spread = float(values.std())  # NaN for one
    row = (len(values), *interval(values), spread, paired_p(values), sign_flip_p(values))
    if not margin:
        return row
    p = equal_p(values, margin)
    return *row, p, p < 0.05


# ---------------------------------------------------------------- seeds × test speakers


def speaker_intervals(
    errors: pd.DataFrame, curves: pd.DataFrame, methods=None, endpoint: str = AREA
) -> pd.DataFrame:
    """:func:`two_way_interval` of each method's difference to random, from the ``errors`` of test
    speakers: in ``wer``, and in ``macro_wer`` over their groups.

    Returns ``scenario, metric, method, query_percent, boot_low, boot_high``; ``curves`` say how
    the cells weigh in the ``endpoint``. Seeds that lack a cell of a comparison are left out of it.
    """
    methods = methods_of(curves) if methods is None else methods
    by_scenario, rows = dict(of_scenarios(errors)), []
    for scenario, part in of_scenarios(curves):
        if scenario not in by_scenario:
            continue
        cells, seeds, wrong, words = _counts(by_scenario[scenario])
        points = area_weights(part) if endpoint == AREA else None
        there = words.any(axis=(2, 3))  # [C, S]
        words = words.max(axis=(0, 1))  # [G, P]: all cells have the same test set
        for method in methods:
            for percent, weights in _weights(points, cells, seeds, method).items():
                # two curves' weights cancel unless a seed lacks one of them
                usable = np.isclose(weights.sum(axis=0), 0) & weights.any(axis=0)
                usable &= (there | (weights == 0)).all(axis=0)
                if not usable.any():
                    continue
                lead = np.einsum("cs,csgp->sgp", weights[:, usable], wrong[:, usable])
                for metric, axis in (("wer", (-2,)), ("macro_wer", ())):
                    both = (x.sum(axis=axis, keepdims=True) for x in (lead, words))
                    ends = two_way_interval(*both)[1:]
                    rows.append((scenario, metric, method, percent, *ends))
    names = ["scenario", "metric", "method", "query_percent", "boot_low", "boot_high"]
    return pd.DataFrame(rows, columns=names)


def _counts(errors: pd.DataFrame) -> tuple[list, list, np.ndarray, np.ndarray]:
    """Cells (strategy, percentage), seeds, and word errors and words [C, S, G, P]."""
    by = (pd.MultiIndex.from_frame(errors[["strategy", "query_percent"]]), errors["seed"])
    columns = (*by, errors["group"], errors["speaker"])
    # where a corpus does not know them, they are one
    found = [pd.factorize(values, use_na_sentinel=False) for values in columns]
    codes, names = zip(*found, strict=True)
    tables = []
    for column in ("word_errors", "words"):
        table = np.zeros([len(values) for values in names])
        np.add.at(table, codes, errors[column].to_numpy(dtype=float))
        tables.append(table)
    return list(names[0]), list(names[1]), *tables


def _weights(points: pd.DataFrame | None, cells: list, seeds: list, method: str) -> dict:
    """By percentage and for the endpoint (the area, if its points are there, or else the mean):
    weights [C, S] of the cells in method − random."""
    row, found = {cell: i for i, cell in enumerate(cells)}, {}
    for percent in sorted(p for s, p in cells if s == method and (RANDOM, p) in row):
        found[percent] = np.zeros((len(cells), len(seeds)))
        found[percent][row[method, percent]] = 1
        found[percent][row[RANDOM, percent]] = -1
    if points is None:
        return ({MEAN: sum(found.values()) / len(found)} if found else {}) | found
    total = np.zeros((len(cells), len(seeds)))
    for name, sign in ((method, 1), (RANDOM, -1)):
        for point in points[points["strategy"] == name].itertuples():
            cell = (point.cell, point.query_percent)
            # a point that is missing leaves weights that do not cancel
            if cell in row and point.seed in seeds:
                total[row[cell], seeds.index(point.seed)] += sign * point.weight
    return {AREA: total} | found


# ---------------------------------------------------------------- label saving


def label_saving(
    curves: pd.DataFrame, strategy: str, metric: str, by: str = "percent", reference: str = RANDOM
) -> pd.DataFrame:
    """How much random must have labelled to reach the strategy's error, and what share is saved.

    Of ``by`` "percent" of the pool or "seconds" labelled, random *needs* as much as where its
    curve, interpolated from the base model to all labels (as far as these are known) and never
    rising, first comes down to the strategy's error. The *saving* is 1 − own ÷ needed: ½ where
    random needs twice as much, 0 where as much, −∞ where the strategy is no better than the base
    model, so that random needs nothing. Where the curve does not come down to the error
    the seed is censored on the right: random needs more than was tried, if any amount will do;
    where it begins below, on the left.

    Returns a row a scenario, seed and query percentage: ``scenario, seed, query_percent,
    random_percent`` (or ``_seconds``; NaN for a censored seed), ``needed_low, needed_high,
    saving_low, saving_high`` (equal unless censored), ``censored`` ("", "left" or "right").
    Another ``reference`` may stand for random.
    """
    column, unit = {"percent": ("query_percent", 1), "seconds": ("hours", 3600)}[by]
    rows = []
    for scenario, whole in of_scenarios(curves.dropna(subset=[metric])):
        for seed, part in whole.groupby("seed"):
            if reference not in set(part["strategy"]):
                continue
            known = part[part["strategy"].isin([BASE, reference, ALL])].sort_values(column)
            falling = np.minimum.accumulate(known[metric].to_numpy(dtype=float))
            labelled = unit * known[column].to_numpy(dtype=float)
            for row in part[part["strategy"] == strategy].to_dict("records"):
                own = unit * row[column]
                needed = _needed(labelled, falling, row[metric])
                saving = [1 - own / x if x else -np.inf for x in needed]
                side = "right" if np.isinf(needed[1]) else "left" if needed[0] == 0 else ""
                at = float("nan") if side else needed[0]
                rows.append((scenario, seed, row["query_percent"], at, *needed, *saving, side))
    names = ["scenario", "seed", "query_percent", f"{reference}_{by}", "needed_low", "needed_high",
             "saving_low", "saving_high", "censored"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def _needed(labelled: np.ndarray, falling: np.ndarray, error: float) -> tuple[float, float]:
    """(least, most) that a curve which never rises needs to come down to an error."""
    i = int(np.searchsorted(-falling, -error))  # the first point that is as low
    if i == len(falling):
        return float(labelled[-1]), float("inf")
    if i == 0:
        least = labelled[0] if falling[0] == error else 0.0
        return float(least), float(labelled[0])
    share = (falling[i - 1] - error) / (falling[i - 1] - falling[i])
    at = float(labelled[i - 1] + share * (labelled[i] - labelled[i - 1]))
    return at, at


def saving_interval(saving: pd.DataFrame) -> pd.DataFrame:
    """:func:`median_interval` of the savings of :func:`label_saving` over seeds, censored ones
    included, none dropped: nothing saves more than 1, all labels.

    Returns a row a scenario and query percentage: ``scenario, query_percent, median, low, high,
    seeds, left, right`` (how many are censored on which side). Less than six seeds: (−inf, 1).
    """
    rows = []
    for by, part in saving.groupby(["scenario", "query_percent"], sort=False):
        median, low, high = median_interval(part["saving_low"], part["saving_high"])
        censored = [int((part["censored"] == side).sum()) for side in ("left", "right")]
        rows.append((*by, median, low, min(high, 1.0), len(part), *censored))
    names = ["scenario", "query_percent", "median", "low", "high", "seeds", "left", "right"]
    return pd.DataFrame(rows, columns=names)
