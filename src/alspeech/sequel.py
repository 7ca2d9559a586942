"""What notebook 9 and results/README.md say of beyond.py's tables: sentences, as in lessons.py."""

from __future__ import annotations

import itertools

import pandas as pd

from .beyond import AS_IT_IS, LADDER, METRIC, OURS, pairs, rivals
from .findings import (
    MAIN,
    SEQUEL,
    TUNING,
    against_random,
    at,
    cell,
    counted,
    judged,
    label,
    listed,
    markdown,
    name,
    of,
    provenance,
    seeds,
    spread,
    table,
    tested,
)  # fmt: skip
from .lessons import in_rounds, in_scenarios
from .querying import ALL, BASE
from .statistics import MARGIN, WORSE, interval, methods_of, spearman
from .workshop.config import load_settings

PREDICTORS = {
    "length": ("tr(I_q), what EGL makes large", -1),
    "ratio": ("tr(I_q⁻¹ I_T), Eq. 3", 1),
}  # and which sign its rank correlation with the variance should have


def correlations(argument: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ over the methods, of what is to predict the variance with the variance that was
    measured: mean and 95 % interval over seeds, a row a predictor; ``decision`` by the interval."""
    rows = {}
    for column, (_, sign) in PREDICTORS.items():
        by_seed = [spearman(part[column], part["variance"]) for _, part in argument.groupby("seed")]
        mean, low, high = (sign * x for x in interval(by_seed))
        low, high = min(low, high), max(low, high)
        decision = "orders them" if low > 0 else "orders them the wrong way" if high < 0 else None
        rows[column] = {"rho": mean, "low": low, "high": high,
                        "decision": decision or "not decided"}  # fmt: skip
    return pd.DataFrame(rows).T


def argued(argument: pd.DataFrame) -> str:
    """Which of the two orders the methods as the measured variance does."""
    table = correlations(argument)
    told = [
        f"{text}: {spread(*table.loc[column, ['rho', 'low', 'high']], 2)}, "
        f"{table.loc[column, 'decision']}"
        for column, (text, _) in PREDICTORS.items()
    ]
    share = argument["variance"] / argument["ratio"]
    by_seed = share.groupby(argument["seed"]).mean()
    return (
        f"Over {argument['strategy'].nunique()} methods and {len(by_seed)} seeds, Spearman's ρ "
        "with the measured variance, counted as positive where it has the sign that the paper's "
        f"argument asks for: {'; '.join(told)}. The measured variance is "
        f"{spread(*interval(by_seed), 2, sign=False)} times what Eq. 3 says."
    )


def on_the_ladder(steps: pd.DataFrame) -> list[str]:
    """A paragraph a scenario, with every step."""
    said = []
    for scenario in steps["scenario"].unique():
        rows = of(steps, scenario)
        told = [
            f"{row['step']} {cell(row, 2)}, {row['verdict']}" for row in rows.to_dict("records")
        ]
        said.append(f"{name(scenario)}, each step's points: {'; '.join(told)}.")
    return said


TRIED_AS = ("strategy", "setting", "value")  # columns of beyond_settings.csv


def others(settings: pd.DataFrame) -> pd.DataFrame:
    """Selections with other settings less the same one as the preset has it, means over scenarios
    paired by seed, corrected together: rows of ``findings.judged`` with ``what`` was tried."""
    value = settings["value"].astype(object).fillna("")  # as it was before it was in a file
    parts = settings.assign(value=value).groupby(list(TRIED_AS), sort=False)
    by = {key: part.groupby("seed")[METRIC].mean() for key, part in parts}
    tried = [key for key in by if key[1] != AS_IT_IS]
    table = judged([tested(by[key] - by[key[0], AS_IT_IS, ""]) for key in tried])
    named = [(label(x) + ", ") * (x != OURS) + f"{y} {_read(z)}" for x, y, z in tried]
    return table.assign(what=named)


def _read(value) -> str:
    """A value as it was before it was in a file, where a column of numbers is one of floats."""
    return f"{value:g}" if isinstance(value, float) else value


def changed(settings: pd.DataFrame) -> str:
    """What other settings do, all that were tried."""
    if settings.get("setting", pd.Series(dtype=str)).isin([AS_IT_IS]).all():
        return "Of other settings nothing was tried."
    table = others(settings)
    told = [f"{row['what']} {cell(row, 2)}" for row in table.to_dict("records")]
    left = table["verdict"].isin(["better", "worse"])
    scenarios = listed(name(scenario) for scenario in settings["scenario"].unique())
    return (
        f"{label(OURS)} (others are named) with other settings less the preset's own in "
        f"{scenarios}, points of macro WER ({settings['seed'].nunique()} seeds"
        f"{', means over scenarios' * (settings['scenario'].nunique() > 1)}): "
        f"{'; '.join(told)}. Holm's correction over the {len(table)} leaves "
        f"{int(left.sum()) or 'none'}."
    )


def queries(asked: pd.DataFrame) -> pd.DataFrame:
    """What the methods' queries are like: means over seeds, a row a scenario and method."""
    columns = ["utterances", "seconds", "repeats", "nearest", "directions"]
    by = asked.groupby(["scenario", "strategy"], sort=False)[columns].mean()
    return by.rename(index=label, level="strategy")


def ladder_table(steps: pd.DataFrame) -> str:
    """The steps of every scenario, as a table."""
    scenarios = list(steps["scenario"].unique())
    by = steps.set_index(["scenario", "method"])
    there = [method for method in LADDER if method in set(steps["method"])]
    rows = [[LADDER[m], *(cell(by.loc[(scenario, m)], 2) for scenario in scenarios)] for m in there]
    return markdown(["what is taken on", *map(name, scenarios)], rows)


def less_the_others(curves: pd.DataFrame) -> list[str]:
    """A paragraph a scenario: ours less every other method."""
    table, said = rivals(curves), []
    for scenario in table["scenario"].unique():
        rows = of(table, scenario).to_dict("records")
        told = [f"{label(row['before'])} {cell(row, 2)}, {row['verdict']}" for row in rows]
        said.append(
            f"{name(scenario)}, area under the curve of macro WER, {label(OURS)} less each other "
            f"method, corrected over the {len(rows)}: {'; '.join(told)}."
        )
    return said


RIVALS = ("random", "entropy", "egl", "egl_renormalised")  # what a method of ours has to beat


def held(curves: pd.DataFrame) -> pd.DataFrame:
    """Every other method less each of ``RIVALS``, and less each other, in the area under the curve
    of macro WER, all of a scenario corrected together: rows by ``scenario, method, before``."""
    there = ["random", *methods_of(curves)]
    ours, others = _ours_and_rivals(there)
    wanted = [(x, y) for x in ours for y in others] + [*itertools.combinations(ours[::-1], 2)]
    return pairs(curves, wanted, MARGIN).set_index(["scenario", "method", "before"])


def _ours_and_rivals(methods) -> tuple[list, list]:
    return [x for x in methods if x not in RIVALS], [x for x in RIVALS if x in methods]


def ours_and_theirs(by: pd.DataFrame) -> str:
    """All of :func:`held` as a table, a column a scenario."""
    scenarios = list(by.index.unique("scenario"))
    rows = [
        [f"{label(x)} − {label(y)}",
         *(f"{cell(row, 2)}, {row['verdict']}" for s in scenarios for row in [by.loc[(s, x, y)]])]
        for x, y in by.index.droplevel("scenario").unique()
    ]  # fmt: skip
    return markdown(["area under the curve of macro WER", *map(name, scenarios)], rows)


def won(by: pd.DataFrame) -> str:
    """How many of :func:`held` came out how, and of each of ours: where it beats all of ``RIVALS``,
    and how it stands against random, scenario by scenario."""
    scenarios = list(by.index.unique("scenario"))
    ours, _ = _ours_and_rivals(by.index.unique("method"))
    _, others = _ours_and_rivals(by.index.unique("before"))
    said = []
    for x in ours:
        beats_all = [
            s for s in scenarios if all(by.loc[(s, x, y), "verdict"] == "better" for y in others)
        ]
        against = {s: by.loc[(s, x, "random"), "verdict"] for s in scenarios}
        told = "; ".join(f"{name(s)} {verdict}" for s, verdict in against.items())
        said.append(
            f"- {label(x)} is better than all of these ({'; '.join(map(label, others))}) in "
            f"{listed(map(name, beats_all)) if beats_all else 'no scenario'}. Against random: "
            f"{told}."
        )
    count = by["verdict"].value_counts()
    told = listed(f"{n} *{verdict}*" for verdict, n in count.items())
    lost = [(x, y, s) for s, x, y in by.index[by["verdict"] == WORSE]]
    told += "".join(f"; worse: {label(x)} − {label(y)} in {name(s)}" for x, y, s in lost)
    return "\n\n".join([f"Of these {count.sum()} differences {told}.", *said])


def sequel_() -> str:
    """The long run with our methods."""
    curves = table(SEQUEL, "error_curves")
    by = held(curves)
    return "\n\n".join([
        f"{_what_ran()} Macro WER, and seconds bought, means over seeds:", means(curves),
        ours_and_theirs(by), won(by),
    ])  # fmt: skip


def in_short() -> str:
    """The same for the front page: what was compared, and how all of it came out."""
    by = held(table(SEQUEL, "error_curves"))
    ours, _ = _ours_and_rivals(by.index.unique("method"))
    _, others = _ours_and_rivals(by.index.unique("before"))
    ours, others = ("; ".join(map(label, x)) for x in (ours, others))
    return (
        f"{_what_ran()} Each of ours ({ours}) is held against {others}; and against each other, in "
        f"{listed(map(name, by.index.unique('scenario')))}, by the area under the curve of macro "
        f"WER. {won(by)}"
    )


def _what_ran() -> str:
    config = provenance(SEQUEL)["config"]
    heard, target = config["selection"]["heard"], config["selection"]["target"]
    percents, done = listed(map(at, config["query_percents"])), seeds(SEQUEL)
    planned = load_settings("sequel").seeds
    interim = planned > done
    return (
        f"{done} seeds{f' of the {planned} decided on beforehand' * interim}, {percents} % of the "
        f"pool's utterances queried. What is ours has heard {heard} utterances of the {target} "
        "split, without transcripts; the others have no target."
        f"{' Nothing is corrected for looking before the end.' * interim}"
    )


def means(curves: pd.DataFrame) -> str:
    """Macro WER of every cell, the base data alone and all labels among them, by scenario, with the
    seconds of audio that were bought."""
    cells = ["strategy", "query_percent"]
    grouped = curves.groupby([*cells, "scenario"], sort=False)[[METRIC, "hours"]].mean()
    by, hours = (grouped[x].unstack(sort=False) for x in (METRIC, "hours"))
    rows = [
        [f"{label(x)}, {at(p)} %" if x not in ENDS else ENDS[x],
         *(f"{y:.1f}" + f" ({3600 * h:.0f} s)" * (h > 0)
           for y, h in zip(row, hours.loc[(x, p)], strict=True))]
        for (x, p), row in by.iterrows()
    ]  # fmt: skip
    return markdown(["", *map(name, by.columns)], rows)


ENDS = {BASE: "base data alone", ALL: "all labels"}


def said(found) -> list[str]:
    """Everything that :func:`beyond.run` found, in sentences that leave no comparison out."""
    return [
        argued(found.argument), *on_the_ladder(found.steps), *less_the_others(found.curves),
        *in_scenarios(found.comparisons), changed(found.settings), in_rounds(found.rounds),
    ]  # fmt: skip


def beyond_() -> str:
    """All of the default run's: the argument, the ladder, every method, settings, rounds."""
    parts = {n: table(MAIN, f"beyond_{n}") for n in ("argument", "steps", "settings", "rounds")}
    differences = table(MAIN, "beyond_comparisons")
    methods = [
        block for scenario in differences["scenario"].unique()
        for block in (counted(of(differences, scenario)), against_random(of(differences, scenario)))
    ]  # fmt: skip
    return "\n\n".join([
        argued(parts["argument"]), ladder_table(parts["steps"]), *methods,
        *less_the_others(table(MAIN, "beyond_curves")),
        changed(parts["settings"]), in_rounds(parts["rounds"]),
    ])  # fmt: skip


def tuned() -> str:
    """What was tried where settings were tuned: macro WER after the query in every scenario, the
    mean over scenarios less random's and less the least one, paired by seed."""
    curves, settings = (table(TUNING, f"beyond_{x}") for x in ("curves", "settings"))
    other = settings[settings["setting"] != AS_IT_IS]
    what = [f"{label(x)}, {y} {_read(z)}" for x, y, z in other[list(TRIED_AS)].to_numpy()]
    queried = curves[~curves["strategy"].isin([BASE, ALL])]
    (percent,) = queried["query_percent"].unique()
    named = queried["strategy"].map(label)
    found = pd.concat([queried.assign(what=named), other.assign(what=what)], ignore_index=True)
    by = found.groupby(["what", "scenario"], sort=False)[METRIC].mean().unstack(sort=False)
    seconds = 3600 * queried.assign(what=named).groupby("what")["hours"].mean()
    of_seed = found.groupby(["what", "seed"], sort=False)[METRIC].mean().unstack("what", sort=False)
    least, random = of_seed.mean().idxmin(), label("random")
    against = {}
    for one in (random, least):
        rows = {x: tested(of_seed[x] - of_seed[one]) for x in by.index if x != one}
        against[one] = judged(list(rows.values())).assign(what=list(rows)).set_index("what")
    shown = [
        [x, *(f"{y:.2f}" for y in row), f"{row.mean():.2f}",
         f"{seconds[x]:.0f}" if x in seconds else "",
         *(cell(t.loc[x], 2) if x in t.index else "" for t in against.values())]
        for x, row in by.iterrows()
    ]  # fmt: skip
    head = ["", *map(name, by.columns), "mean", "seconds bought", "− random", f"− {least}"]
    return "\n\n".join([
        f"{at(percent)} % of the pool's utterances, {len(of_seed)} seeds. The least mean: {least}. "
        f"Differences are of means over the {len(by.columns)} scenarios, paired by seed.",
        markdown(head, shown), changed(settings),
    ])  # fmt: skip


PASSAGES = {"beyond": beyond_, "tuned": tuned, "sequel": sequel_, "sequel, in short": in_short}
