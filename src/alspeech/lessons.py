"""What README.md and notebook 8 say of the scenarios: sentences from tables, as in findings.py.

``curves`` are rows of error_curves.csv, ``differences`` of comparisons.csv, ``scores`` of
scores.csv.
"""

from __future__ import annotations

import pandas as pd

from .beyond import pairs
from .claims import FAILS, HOLDS, power_table
from .findings import (
    BASELINES,
    LONG,
    MAIN,
    SEARCH,
    against_random,
    at,
    cell,
    counted,
    ends,
    gain,
    judged,
    label,
    listed,
    markdown,
    name,
    number,
    of,
    provenance,
    rho,
    seeds,
    single,
    spread,
    table,
    tested,
)  # fmt: skip
from .querying import ALL, BASE
from .statistics import MARGIN, OPEN, interval, methods_of
from .workshop.config import ROOT, Settings, load_scenario

PRIMARY = "macro_wer"


def endpoint(differences: pd.DataFrame) -> pd.DataFrame:
    """Rows of the area under the curve of macro WER, which was decided on beforehand."""
    area = ends(differences)[0]
    return area[area["metric"] == PRIMARY]


# ---------------------------------------------------------------- notebook 8


def in_scenarios(differences: pd.DataFrame) -> list[str]:
    """Of every scenario, a paragraph that leaves no comparison out."""
    names = differences["scenario"].unique()
    return [f"{name(one)}: {single(of(differences, one))}" for one in names]


def savings(saved: pd.DataFrame, methods: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Numbers and texts of a map of label savings, scenarios by methods, in percent; ``saved`` are
    rows of ``statistics.saving_interval`` with their ``method``, of one query percentage."""
    scenarios = list(saved["scenario"].unique())
    by = saved.set_index(["scenario", "method"])

    def text(row) -> str:
        value, low, high = (_percent(row[x]) for x in ("median", "low", "high"))
        return (
            value
            if row["low"] == float("-inf") and row["high"] == 1
            else f"{value}\n[{low}, {high}]"
        )

    value = by["median"].unstack().reindex(scenarios)[methods] * 100
    texts = by.apply(text, axis=1).unstack().reindex(scenarios)[methods]
    return value, texts


def _percent(share: float) -> str:
    text = number(100 * share, 0)
    return text if text.endswith("∞") else f"{text} %"


def bought(scores: pd.DataFrame, settings: Settings, percent: float) -> pd.DataFrame:
    """The share of each group (of the scenario's macro WER, as far as the pool has it as a column)
    in the pool, and in what each method queries first; mean over seeds."""
    rows = {}
    for scenario, part in scores.groupby("scenario", sort=False):
        column = load_scenario(scenario).group
        if column not in part:
            continue
        found = {"pool": part[column].value_counts(normalize=True)}
        for strategy in settings.strategies:
            by = part.groupby("seed")[strategy]  # what an oracle cannot read comes last
            place = by.rank(ascending=False, na_option="bottom") / by.transform("size")
            found[label(strategy)] = part.loc[place <= percent / 100, column].value_counts(
                normalize=True
            )
        rows |= {(scenario, group): row for group, row in pd.DataFrame(found).T.items()}
    return pd.DataFrame(rows).T.fillna(0).rename_axis(["scenario", "group"])


RULES = (  # which scenarios it is about, whether a query should pay there, and why
    (("rare_topics", "rare_accents", "long_tail"), "better",
     "Where the test asks for what is rare in the pool, a query pays"),
    (("junk", "unintelligible"), "worse",
     "Where part of the pool is nothing that can be learned, a query does harm"),
    (("even", "large_pool"), "no difference",
     "Where base, pool and test are drawn alike, it hardly matters"),
)  # fmt: skip


def rules(differences: pd.DataFrame, named: bool = True) -> list[str]:
    """Rules of thumb, each with what supports it and what speaks against it: every method's
    verdict in the area under the curve of macro WER. ``named`` names what supports it, too."""
    area, said = endpoint(differences), []
    for scenarios, expected, rule in RULES:
        rows = area[area["scenario"].isin(scenarios)]
        if rows.empty:
            continue
        against = {"better": "worse", "worse": "better"}.get(expected)
        hits = rows[rows["verdict"] == expected]
        misses = rows[rows["verdict"].isin([against] if against else ["better", "worse"])]
        shown = "Shown" if len(hits) == len(rows) else "Shown in part" if len(hits) else "Not shown"
        text = f"**{rule}?** {shown} ({listed(map(name, rows['scenario'].unique()))}): "
        text += f"*{expected}* in {len(hits)} of {len(rows)} comparisons of a method with random"
        text += f" ({_told(hits)})" if named and len(hits) else ""
        text += f"; counter-examples: {_told(misses)}" if len(misses) else "; no counter-example"
        open_ = len(rows) - len(hits) - len(misses)
        said.append(f"{text}; {open_} neither." if open_ else f"{text}.")
    return said


def _told(rows: pd.DataFrame) -> str:
    return "; ".join(
        f"{label(row.method)} in {name(row.scenario)} "
        f"{spread(row.difference, row.low, row.high)}" for row in rows.itertuples()
    )  # fmt: skip


def lengths(training: pd.DataFrame) -> str:
    """How much the macro WER of each cell of training.csv still changes with its length."""
    on, said = training[training["refit"] == "on"], []
    lengths = sorted(on["updates"].unique())
    for strategy, part in on.groupby("strategy", sort=False):
        wide = part.pivot(index="seed", columns="updates", values=PRIMARY)
        steps = [
            f"{spread(*interval(wide[b] - wide[a]))} from {a:,} to {b:,}"
            for a, b in zip(lengths[:-1], lengths[1:], strict=True)
        ]
        said.append(f"{CELLS.get(strategy, label(strategy))}: {listed(steps)}")
    scratch = training[training["refit"] == "scratch"]
    for strategy, part in scratch.groupby("strategy", sort=False):
        given = part["given"].iloc[0]
        same = on[(on["strategy"] == strategy) & (on["updates"] == given)].set_index("seed")[
            PRIMARY
        ]
        d = interval(part.set_index("seed")[PRIMARY] - same)
        said.append(
            f"{CELLS.get(strategy, label(strategy))} from scratch, against going on: {spread(*d)}"
        )
    wide = on.pivot(index="seed", columns=["strategy", "updates"], values=PRIMARY)
    for method in [s for s in on["strategy"].unique() if s not in (BASE, ALL, "random")]:
        rows = judged([tested(wide[method, n] - wide["random", n]) for n in lengths])
        found = zip(rows.to_dict("records"), lengths, strict=True)
        told = [f"{cell(row)} after {n:,}" for row, n in found]
        said.append(f"{label(method)}, less random: {listed(told)}")
    return (
        "Points of macro WER by the length of a training, in updates; from scratch it has as many "
        f"in all as the base model and what goes on from it. {'. '.join(said)}."
    )


CELLS = {BASE: "base data alone", ALL: "all labels", "random": "a random query"}


def in_rounds(rounds: pd.DataFrame) -> str:
    """A query in rounds less one in a batch, of rounds.csv, all strategies as one family."""
    rows, names = [], []
    for strategy, part in rounds.groupby("strategy", sort=False):
        wide = part.pivot(index="seed", columns="how", values=PRIMARY)
        rows.append(tested(wide["rounds"] - wide["batch"]))
        names.append(label(strategy))
    table = judged(rows)
    said = [
        f"{who} {cell(row)} ({row['verdict']})"
        for who, row in zip(names, table.to_dict("records"), strict=True)
    ]
    return (
        f"{rounds['rounds'].iloc[0]} rounds less one batch, {rounds['query_percent'].iloc[0]:g} % "
        f"queried in all, {rounds['seed'].nunique()} seeds, points of macro WER: {listed(said)}."
    )


def power(settings: Settings) -> str:
    """How many seeds differences of 0.5, 1 and 2 points of macro WER need, from a run's table."""
    shown = power_table(table(settings.run, "error_curves"))
    return shown.round(2).to_string(index=False)


# ---------------------------------------------------------------- README.md


def run_tables(run: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return table(run, "error_curves"), table(run, "comparisons")


def main_run() -> str:
    """What Figure 1 and Figure 2 show, by default: which scenario, and what is left of it."""
    curves, differences = run_tables(MAIN)
    (scenario,) = curves["scenario"].unique()
    updates = listed(f"{n:,}" for n in sorted(curves["updates"].unique()))
    return "\n\n".join([
        f"{name(scenario)}, **{seeds(MAIN)} seeds** (this figure): {load_scenario(scenario).about} "
        f"Every cell is trained for {updates} updates. All labels of the pool take "
        f"{spread(*gain(curves, PRIMARY), sign=False)} points off the macro WER of a model that "
        f"goes on with the base data alone. {counted(differences)}",
        against_random(differences),
    ])  # fmt: skip


def main_singles() -> str:
    """All comparisons of the default run, at single percentages, too."""
    return single(run_tables(MAIN)[1])


def map_() -> str:
    """Every method against random in every scenario of the long run."""
    curves, differences = run_tables(LONG)
    area = endpoint(differences).set_index(["scenario", "method"])
    methods = area.index.unique("method")
    rows = []
    for scenario in curves["scenario"].unique():
        part = of(curves, scenario).groupby("strategy")[PRIMARY].mean()
        rows.append([
            name(scenario), f"{part[BASE]:.1f}", f"{part[ALL]:.1f}",
            *(cell(area.loc[(scenario, m)]) for m in methods),
        ])  # fmt: skip
    head = ["scenario", "base", "all labels", *(f"{label(m)} − random" for m in methods)]
    every = "\n\n".join(rules(differences, named=False))
    return f"{seeds(LONG)} seeds.\n\n{markdown(head, rows)}\n\n{every}"


def of_rules() -> str:
    """What supports each rule of thumb, in full."""
    return "\n\n".join(rules(run_tables(LONG)[1]))


def of_claims(run: str = LONG) -> str:
    """Each of the paper's claims in each scenario, by macro WER; and where WER decides others."""
    both = table(run, "claims")
    found = both[both["metric"] != "wer"]
    pairs = found.merge(both[both["metric"] == "wer"], on=["scenario", "claim"])
    other = [
        f"({row.claim}) in {name(row.scenario)} *{row.decision_y}*"
        for row in pairs[pairs["decision_x"] != pairs["decision_y"]].itertuples()
    ]
    told = f"{len(other)} of {len(pairs)} decisions by macro WER are others by WER"
    scenarios, rows = list(found["scenario"].unique()), []
    for (claim, text), part in found.groupby(["claim", "text"]):
        by = part.set_index("scenario")
        rows.append([f"({claim}) {text}", *(_decided(by.loc[one]) for one in scenarios)])
    shown = markdown(["the paper", *map(name, scenarios)], rows, 9)
    told = f"{told}{': ' if other else ''}{'; '.join(other)}."
    return f"{shown}\n\n{told}{unmoved(run_tables(run)[0])}"


def unmoved(curves: pd.DataFrame) -> str:
    """Which methods' cells are the base data's own, in every seed: then nothing was compared."""
    said = []
    for scenario, part in curves.groupby("scenario", sort=False):
        base = part[part["strategy"] == BASE].set_index("seed")[PRIMARY]
        same = part[PRIMARY] == part["seed"].map(base)
        methods = [m for m in methods_of(part) if same[part["strategy"] == m].all()]
        if methods:
            said.append(f"{listed(map(label, methods))} in {name(scenario)}")
    told = " All cells are that of the base data alone, as nothing that was bought can be learned: "
    return f"{told}{'; '.join(said)}." if said else ""


def searched() -> str:
    """Where the paper's own picture appears: the claims in the scenarios of the search, and in all
    scenarios of both runs those in which its curves and its rankings are as it draws them."""
    curves = run_tables(SEARCH)[0]
    rows = []
    for scenario in curves["scenario"].unique():
        part = of(curves, scenario).groupby("strategy")[["wer", PRIMARY]].mean()
        ends_ = [f"{part.loc[BASE, m]:.1f} to {part.loc[ALL, m]:.1f}" for m in part]
        rows.append([name(scenario), load_scenario(scenario).about, *ends_])
    about = markdown(["scenario", "what it is", "WER, base to all labels", "macro WER"], rows, 9)
    both = pd.concat([table(run, "claims").assign(run=run) for run in (LONG, SEARCH)])
    both = both[both["metric"] != "wer"]
    count = len(both[["run", "scenario"]].drop_duplicates())
    said = [f"In the {count} scenarios of this run and of the map together, by macro WER:"]
    for claims, what in PICTURE.items():
        part = both[both["claim"].isin(list(claims))]
        # claims together: they hold if each does, and do not if one does not
        found = part.groupby(["run", "scenario"], sort=False)["decision"].agg(
            lambda each: min(each, key=DECISIONS.index)
        )
        by = {d: [name(s) for _, s in found[found == d].index] for d in reversed(DECISIONS)}
        told = [
            f"*{d}* in {len(w) or 'none'}{f' ({listed(w)})' if w else ''}" for d, w in by.items()
        ]
        said.append(f"- {what}: {'; '.join(told)}.")
    return "\n\n".join([f"{seeds(SEARCH)} seeds.", about, of_claims(SEARCH), *said])


def labelings_() -> str:
    """EGL over fewer labelings in the default scenario, against random, entropy and EGL over as
    many as by default, in the area under the curve of macro WER, all corrected together; and how
    its ranking goes with entropy's."""
    others = (BASE, ALL, "random", "entropy")
    parts, shown = [of_strategies(MAIN, others)], {}
    for run in (*FEWER, MAIN):
        config = provenance(run)["config"]
        k = f"{config['labelings']}"
        parts.append(of_strategies(run, ("egl",)).assign(strategy=k))
        found = table(run, "claims").set_index(["scenario", "claim"])
        found = found.loc[(config["scenarios"][0], "d"), ["value", "low", "high"]]
        shown[k] = spread(*found, 2, sign=False)
    default = k
    held = [(k, x) for k in shown for x in ("random", "entropy", default) if k != x]
    by = pairs(pd.concat(parts, ignore_index=True), held, MARGIN).set_index(["method", "before"])
    rows = [
        [k, *(f"{cell(by.loc[(k, x)], 2)}, {by.loc[(k, x), 'verdict']}" if k != x else ""
              for x in ("random", "entropy", default)), rho_]
        for k, rho_ in shown.items()
    ]  # fmt: skip
    head = ["labelings K", "EGL less random", "EGL less entropy", f"less K = {default}",
            "Spearman's ρ with entropy"]  # fmt: skip
    where = name(by["scenario"].iloc[0])
    return f"{seeds(MAIN)} seeds, {where}, {len(by)} differences.\n\n{markdown(head, rows)}"


def of_strategies(run: str, strategies) -> pd.DataFrame:
    """Rows of a run's error curves."""
    curves = run_tables(run)[0]
    return curves[curves["strategy"].isin(strategies)]


FEWER = ("synthetic-search-k1", "synthetic-search-k10")
DECISIONS = (FAILS, OPEN, HOLDS)
PICTURE = {  # what the paper's figures show, by the claims that say so
    "ab": "entropy, pCTC and EGL beat random, and EGL does better than the other two (Figure 1)",
    "b": "EGL does better than entropy and pCTC, whether it beats random or not",
    "d": "EGL's ranking is uncorrelated with that of entropy (Figure 2b)",
}


def baselines() -> str:
    """What is as simple as random, and what knows the answers: each less random, and entropy and
    EGL less each, in the area under the curve of macro WER."""
    curves = run_tables(BASELINES)[0]
    scenarios = list(curves["scenario"].unique())
    # areas end at the smallest budget of all: what buys little is compared apart
    short = curves["strategy"] == SHORT
    own, rest = curves[short | curves["strategy"].isin([BASE, ALL, "random"])], curves[~short]
    simple = [m for m in methods_of(rest) if m not in JUDGED]
    against = [(m, "random") for m in methods_of(rest)]
    less = [(m, other) for m in JUDGED for other in simple]
    found = [pairs(rest, against, MARGIN), pairs(rest, less, MARGIN),
             pairs(own, [(SHORT, "random")], MARGIN)]  # fmt: skip
    by = pd.concat(found).set_index(["scenario", "method", "before"])
    columns = ["random", *JUDGED]
    head = ["", *(f"{name(s)}: {'less random' if c == 'random' else f'{label(c)} less it'}"
                  for s in scenarios for c in columns)]  # fmt: skip
    rows = []
    for method in methods_of(curves):
        pair = [(s, *((method, c) if c == "random" else (c, method)))
                for s in scenarios for c in columns]  # fmt: skip
        rows.append([label(method), *(cell(by.loc[x]) if x in by.index else "" for x in pair)])
    count = pd.concat(found)["verdict"].value_counts()
    told = listed(f"{n} *{verdict}*" for verdict, n in count.items())
    return (
        f"{seeds(BASELINES)} seeds.\n\n{markdown(head, rows)}\n\nOf these {count.sum()} "
        "differences (bold: left by Holm's correction of a scenario's "
        f"{len(against)} with random together, of its {len(less)} others together; "
        f"{label(SHORT)}, which buys few seconds, is held against random over the seconds that it "
        f"buys) {told}."
    )


JUDGED, SHORT = ("entropy", "egl"), "shortest"


def _decided(row) -> str:
    shown = spread(row["value"], row["low"], row["high"], 2)
    known = row["value"] == row["value"]
    return f"**{row['decision']}** {row['compared']}: {shown}" if known else row["decision"]


def scenarios() -> str:
    """What each scenario of the long run is."""
    rows = [
        [name(one), load_scenario(one).about] for one in run_tables(LONG)[0]["scenario"].unique()
    ]
    return markdown(["scenario", "how base, pool and test are drawn"], rows, 9)


def of_studies() -> str:
    return f"{lengths(table(LONG, 'training'))}\n\n{in_rounds(table(LONG, 'rounds'))}"


def paper() -> str:
    """The paper's figures and table beside ours, all percentages that both have."""
    curves, differences = run_tables(MAIN)
    scores = table(MAIN, "scores")
    printed = pd.read_csv(ROOT / "results" / "paper_table1.csv")
    theirs = printed.pivot_table("wer", "query_percent", "strategy")
    single = ends(differences)[1]
    every = single.assign(query_percent=single["query_percent"].map(at))
    every = every.set_index(["metric", "method", "query_percent"])
    first, last = (curves.loc[curves["strategy"] == one, "wer"].mean() for one in (BASE, ALL))
    link = {n: f"[{n}](notebooks/{n}_{stem}.ipynb)" for n, stem in NOTEBOOKS.items()}
    wer = f"WER {first:.1f} % (base data alone) to {last:.1f} % (all labels)"
    won = spread(*gain(curves, "wer"), sign=False)
    rows = [
        ["Figure 1, error curves", link[3], f"{wer}, a gain of {won} points", "no such numbers"]
    ]
    for method in [m for m in theirs if m in set(differences["method"])]:
        for percent in [p for p in theirs.index if ("wer", method, at(p)) in every.index]:
            what = f"Table 1, {label(method)} − random at {at(percent)} %, WER points"
            ours = every.loc[("wer", method, at(percent))]
            said = number(theirs.loc[percent, method] - theirs.loc[percent, "random"], 2)
            rows.append([what, link[3], f"{cell(ours, 2)}: {ours['verdict']}", f"{said} (one run)"])
    for figure, method, said in (("2a", "pctc", "on the diagonal"), ("2b", "egl", "off it")):
        ours = spread(*rho(scores, method, "entropy"), 2, sign=False)
        rows.append([f"Figure {figure}, ρ of {label(method)} and entropy", link[4], ours, said])
    return markdown(["", "notebook", "ours (synthetic, laptop)", "the paper's"], rows, 9)


NOTEBOOKS = {3: "error_curves", 4: "rankings"}


PASSAGES = {
    "main run": main_run, "main singles": main_singles, "paper": paper, "map": map_,
    "rules": of_rules, "claims": of_claims, "search": searched, "baselines": baselines,
    "labelings": labelings_, "scenarios": scenarios, "studies": of_studies,
}  # fmt: skip
