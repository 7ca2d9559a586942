"""Beyond EGL: the paper's own argument carried through, and what each step from EGL to it is worth.

beyond_curves.csv, beyond_comparisons.csv    as the experiment's, of the section's strategies
beyond_steps.csv      each method of the ladder less the one that it stands on
beyond_queries.csv    what each method's query is like, and how much of it is said twice
beyond_settings.csv   cells of selections with other settings, one at a time
beyond_rounds.csv     selections in rounds and in one batch
beyond_argument.csv   § 2.3 on a small recogniser: predicted and measured variance (theory.py)
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from . import experiment, studies, theory
from .acquisition import check_strategies
from .embeddings import Candidates, first_pass
from .experiment import base_model, cell
from .querying import ALL, BASE
from .selection import SELECTIONS, choose, selection_options
from .speech import corpus
from .statistics import AREA, MARGIN, holm, judged, paired_difference
from .workshop.config import Settings
from .workshop.errors import UserError
from .workshop.provenance import publish, tidy
from .workshop.steps import Step, in_parallel
from .workshop.store import read_csv, write_csv

LADDER = {  # from the paper's method to its argument: what each takes on that the one before drops
    "egl": "as printed",
    "egl_renormalised": "probabilities that sum to one",
    "egl_last_layer": "the last layer's gradients only",
    "d_optimal": "the inverse: what is known already",
    "fisher_ratio_pool": "a target: the pool",
    "fisher_ratio": "the target: what the recogniser is for",
    "fisher_ratio_near": "nothing that is unlike the target",
    "fisher_ratio_aimed": "instead: more of what sounds like the target",
}
BESIDE = {"fisher_ratio_aimed": "fisher_ratio"}  # not on top of the one before

METRIC = "macro_wer"
OURS = "fisher_ratio"
AS_IT_IS = "as it is"  # a selection with the preset's own settings


def ladder(curves: pd.DataFrame, margin: float = MARGIN) -> pd.DataFrame:
    """Each method of the ladder less the one that it stands on; see :func:`pairs`. ``step`` is what
    it takes on."""
    there = [x for x in LADDER if x in set(curves["strategy"])]
    below = {x: other for x, other in BESIDE.items() if other in there}
    steps = [(x, below.get(x, before)) for before, x in itertools.pairwise(there)]
    table = pairs(curves, steps, margin)
    table.insert(table.columns.get_loc("before") + 1, "step", table["method"].map(LADDER))
    return table


def rivals(curves: pd.DataFrame, margin: float = MARGIN) -> pd.DataFrame:
    """Ours less each of the other methods; see :func:`pairs`."""
    others = [x for x in curves["strategy"].unique() if x not in (OURS, BASE, ALL)]
    return pairs(curves, [(OURS, other) for other in others], margin)


def pairs(curves: pd.DataFrame, methods: list[tuple[str, str]], margin: float) -> pd.DataFrame:
    """The first of two ``methods`` less the second in the area under the curve of macro WER, by
    scenario; those of a scenario are corrected together. Columns of
    :func:`statistics.paired_difference`, ``method, before`` and ``verdict``."""
    rows = []
    for method, before in methods:
        found = paired_difference(curves, method, before, METRIC, AREA, margin)
        found = found[found["query_percent"] == AREA]
        rows.append(found.assign(method=method, before=before))
    table = pd.concat(rows, ignore_index=True)
    place = {name: i for i, name in enumerate(curves["scenario"].unique())}
    table = table.sort_values("scenario", key=lambda s: s.map(place), kind="stable")
    table["equivalent"] = table["equivalent"].eq(True)
    return judged(table, table.groupby("scenario")["p"].transform(holm)).reset_index(drop=True)


# ---------------------------------------------------------------- what a query is like


def query_facts(settings: Settings, strategy: str, seed: int) -> dict:
    """Of a strategy's query of the first amount: ``utterances``, ``seconds``, ``repeats`` (percent
    whose text another one before it has), ``nearest`` (cosine of a best hypothesis's gradient with
    the most similar other one's, mean) and ``directions`` (e^H of the eigenvalues of its Fisher
    information: how many directions it is long in)."""
    chosen = experiment.queried(settings, strategy, experiment.amounts(settings)[0], seed)
    known = Candidates.load(
        experiment.first_pass(settings, "pool", seed).folder() / "candidates.npz"
    )
    place = {utt_id: row for row, utt_id in enumerate(known.utt_ids)}
    query = known.rows([place[utt_id] for utt_id in chosen])
    texts = corpus.prepare(settings).split("pool").set_index("utt_id")["text"].loc[chosen]
    unit = query.best / np.maximum(np.linalg.norm(query.best, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -1)
    rows = query.directions.reshape(-1, query.directions.shape[2]).astype(float)
    shares = np.linalg.eigvalsh(rows.T @ rows).clip(0)
    shares = shares[shares > 0] / shares.sum()
    return {
        "scenario": settings.scenario, "strategy": strategy, "seed": seed,
        "utterances": len(chosen), "seconds": float(query.seconds.sum()),
        "repeats": 100 * float(texts.duplicated().mean()),
        "nearest": float(similar.max(axis=1).mean()) if len(chosen) > 1 else float("nan"),
        "directions": float(np.exp(-(shares * np.log(shares)).sum())),
    }  # fmt: skip


# ---------------------------------------------------------------- other settings


TRIED = {  # whose settings are tried, and which
    OURS: ("ridge", "directions", "numbers", "heard", "target"),
    "fisher_ratio_near": ("reach",),
    "fisher_ratio_aimed": ("smooth",),
    "power_egl": ("beta",),
}


def variants(settings: Settings) -> list[tuple[str, str, object]]:
    """(strategy, setting, value) of everything that is tried of the section's strategies, and first
    of each the preset's own, (strategy, ``AS_IT_IS``, "")"""
    config, found = settings.beyond, []
    for strategy in (name for name in TRIED if name in config.strategies):
        values = [(x, value) for x in TRIED[strategy] for value in getattr(config, x)]
        found += [(strategy, *what) for what in [(AS_IT_IS, ""), *values]]
    return found


def _varied(settings: Settings, setting: str, value) -> Settings:
    if value == "":
        return settings
    return replace(settings, selection=replace(settings.selection, **{setting: value}))


def variant(settings: Settings, scenario: str, strategy: str, setting: str, value, seed) -> Step:
    """A selection's cell of the first amount, with another value of one of its settings."""
    settings = _varied(settings.on(scenario), setting, value)
    return cell(settings, strategy, experiment.amounts(settings)[0], seed)


def variant_scores(settings: Settings, scenario: str, strategy: str, setting, value, seed) -> Step:
    """What the query of :func:`variant` goes by."""
    settings = _varied(settings.on(scenario), setting, value)
    return experiment.pool_scores(settings, strategy, seed)


# ---------------------------------------------------------------- the argument


RIDGE = 0.01  # λ of the small recogniser's training, in mean eigenvalues of what is labelled


def argument(settings: Settings, seed: int) -> Step:
    """One seed's small recogniser: queries by each method, the variance that Eq. 3 predicts after
    each, and the one that is measured. Folder: ``argument.csv``, a row a strategy."""
    config = settings.beyond

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        base = data.split("base")
        start = base.sample(min(config.labelled, len(base)), random_state=seed)
        pool, test = data.split("pool"), data.split("test")
        target = data.split("validation")
        test = test.sample(min(config.tested, len(test)), random_state=seed)
        model = experiment.load_base(settings, seed).cpu()  # small, and in double precision
        small = theory.shrink(model, data.store, data.split("base"), config.components)
        labels = {row.utt_id: data.alphabet.encode(row.text) for row in start.itertuples()}
        known = theory.Inputs(small, data.store, start)
        first = known.information(small.theta)
        weak = RIDGE * first.trace() / len(first)
        small.theta = theta = theory.trained(known, labels, small.theta, first, weak, steps=100)
        F_L, tested = known.information(theta), theory.Inputs(small, data.store, test)
        ridge = RIDGE * F_L.trace() / len(F_L)
        F_T = tested.information(theta, labelings=20) / len(test)
        # the sketch is as wide as there are parameters, so that gradients stay what they are
        options = {"labelings": 40, "directions": 20, "numbers": theta.numel(), "seed": seed}
        sets = {
            name: first_pass(small, data.store, rows.drop(columns="text"), **options)
            for name, rows in (("pool", pool), ("labelled", start), ("target", target))
        }
        count, rows = max(1, round(len(pool) * settings.query_percents[0] / 100)), []
        orders = theory.orders(sets["pool"], seed)
        for strategy in ("d_optimal", "fisher_ratio_pool", "fisher_ratio"):
            taken = selection_options(replace(settings.selection, ridge=RIDGE), strategy, seed)
            own = {name: sets[name] for name in taken[0]}
            orders[strategy] = choose(strategy, sets["pool"], count, **own, **taken[1])
        by_id = pool.set_index("utt_id", drop=False)
        for strategy, order in orders.items():
            query = by_id.loc[sorted(sets["pool"].utt_ids[order[:count]])]
            F_S = theory.Inputs(small, data.store, query).information(theta)
            both = theory.Inputs(small, data.store, pd.concat([start, query]))
            variance = theory.measured(
                both, tested, theta, F_L + F_S, ridge, config.resamples, seed
            )
            expected = theory.predicted(F_L, F_S, F_T, ridge)
            rows.append({"strategy": strategy, **expected, "variance": variance})
        write_csv(folder / "argument.csv", pd.DataFrame(rows))
        return {"parameters": theta.numel()}

    given = {name: getattr(config, name) for name in ("components", "labelled", "tested")}
    given |= {"resamples": config.resamples, "selection": vars(settings.selection)}
    given |= {"percent": settings.query_percents[0]}
    return Step(
        f"argument-seed{seed}", compute, after=(base_model(settings, seed),), given=given,
        resume=False,
    )  # fmt: skip


# ---------------------------------------------------------------- all of it


def check(settings: Settings) -> str:
    """:func:`experiment.check`, of what is compared here. Raises ``UserError`` where there is
    nothing to compare."""
    named = settings.beyond.strategies
    check_strategies(named, SELECTIONS)
    where = f"configs/{settings.preset}.yaml: beyond"
    if len(set(named) & set(LADDER)) < 2:
        raise UserError(f"{where}: strategies: name two at least of {', '.join(LADDER)}: each is "
                        "held against the one before")  # fmt: skip
    if all(setting == AS_IT_IS for _, setting, _ in variants(settings)):
        raise UserError(f"{where}: no other setting is tried: name one of {', '.join(TRIED)} in "
                        "strategies, and values of its settings")  # fmt: skip
    return experiment.check(replace(settings, strategies=named))


def run(settings: Settings) -> SimpleNamespace:
    """All of it. Writes the tables above into ``results/<run>``, and returns them by their names
    without ``beyond_``, with ``folder``."""
    begun, config = time.perf_counter(), settings.beyond
    tidy(settings)
    own = replace(settings, strategies=config.strategies)
    main, folders = experiment.compared(own)
    found = {"curves": main["error_curves"], "comparisons": main["comparisons"]}
    found["steps"] = ladder(main["error_curves"])
    found["queries"] = pd.DataFrame([
        query_facts(own.on(scenario), strategy, seed)
        for scenario in settings.scenarios for strategy in own.strategies
        for seed in range(settings.seeds)
    ])  # fmt: skip
    seeds = range(min(config.seeds, settings.seeds))
    tasks = [
        (scenario, *what, seed)
        for scenario in settings.scenarios for what in variants(settings) for seed in seeds
    ]  # fmt: skip
    scored = in_parallel(variant_scores, settings, tasks, "other settings: scores")
    cells = in_parallel(variant, settings, tasks, "other settings: cells")
    found["settings"] = pd.DataFrame([
        studies.row_of(folder, scenario=scenario, strategy=strategy, setting=setting,
                       value=value if isinstance(value, str) else f"{value:g}", seed=seed)
        for folder, (scenario, strategy, setting, value, seed) in zip(cells, tasks, strict=True)
    ])  # fmt: skip
    found["rounds"], legs = studies.in_rounds(settings, ("random", OURS))
    tasks = [(seed,) for seed in range(min(config.argued, settings.seeds))]
    argued = in_parallel(argument, settings, tasks, "the argument")
    found["argument"] = pd.concat([
        read_csv(folder / "argument.csv").assign(scenario=settings.scenario, seed=seed)
        for folder, (seed,) in zip(argued, tasks, strict=True)
    ], ignore_index=True)  # fmt: skip
    tables = {f"beyond_{name}": table for name, table in found.items()}
    steps = [*folders, *scored, *cells, *legs, *argued]
    folder = publish(settings, tables, "provenance_beyond", steps, begun)
    return SimpleNamespace(folder=folder, scores=main["scores"], **found)
