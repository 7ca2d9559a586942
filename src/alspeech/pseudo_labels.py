"""Continuous pseudo-labels: what can be had from the audio that nobody labelled?

    warm-up (a seed) → run (a seed, a method, a regime, what was queried) → tables

Each step is a folder of the store, like the cells of experiment.py. *Methods* say what the
unsupervised loss is made of (``METHODS``); *regimes* whether labelled steps stand between the
others ("anchored") or the model has only its own word ("free").
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype

from . import experiment
from .acquisition import check_strategies
from .config import PseudoLabelConfig, Settings, UserError, as_dict
from .experiment import ALL, CELLS, Corpus, in_parallel, prepare, write_provenance
from .metrics import evaluate, summarise
from .model import DeepSpeech2
from .querying import query
from .slimipl import Monitor, Recipe, plan, train
from .statistics import interval
from .store import (
    Checkpoint,
    code,
    fingerprint,
    read_csv,
    stored,
    torch_bytes,
    write_bytes,
    write_csv,
    write_json,
)

# what is compared: the name of each method is also its key in plots.METHOD_STYLE
METHODS = (
    "supervised", "supervised_longer", "hard", "ema_hard", "soft", "mixture", "prior",
    "temperature", "ema", "sampled_text", "sampled_frames",
)  # fmt: skip
# the two that are compared when a share of the pool is labelled: equal updates in all, so that
# it is not the training's length that wins
ALONE, JOINED = "supervised_longer", "hard"

# ---------------------------------------------------------------- the steps of one seed

CODE = ("text", "features", "model", "ctc", "decoding", "training", "metrics", "slimipl")
NOTHING = ("none", 0)  # no query: (strategy, percent)


def setting(settings: Settings) -> Settings:
    """The settings with the base split that is labelled here: see ``labelled_distribution``."""
    drawn_from = settings.pseudo_labels.labelled_distribution or settings.build.base_distribution
    build = dataclasses.replace(settings.build, base_distribution=drawn_from)
    return dataclasses.replace(settings, build=build)


def recipe(config: PseudoLabelConfig, method: str) -> Recipe:
    """What a method's unsupervised loss is made of. Raises ``UserError`` for an unknown method."""
    recipes = {
        "supervised": Recipe(),  # labelled steps only: as many as beside the pseudo-labels,
        "supervised_longer": Recipe(),  # or as many as all of their steps
        "hard": Recipe(hard=1),
        "ema_hard": Recipe(hard=1, decay=config.decay),
        "soft": Recipe(soft=1),
        # each with one thing that may keep soft labels from collapsing
        "mixture": Recipe(hard=config.mixture, soft=1 - config.mixture),
        "prior": Recipe(soft=1, prior=config.prior),
        "temperature": Recipe(soft=1, temperature=config.temperature),
        "ema": Recipe(soft=1, decay=config.decay),
        # one drawn alignment, as a sequence and frame by frame
        "sampled_text": Recipe(hard=1, sampled=True),
        "sampled_frames": Recipe(soft=1, sampled=True),
    }
    if method not in recipes:
        raise UserError(f"unknown method '{method}': choose one of {', '.join(recipes)}")
    return recipes[method]


def options(config: PseudoLabelConfig, regime: str, method: str) -> PseudoLabelConfig:
    """The settings of one run: the preset's, with what its method and regime change."""
    change = {}
    if regime == "free":
        names = ("blocks", "rate", "cache", "replacement")
        change = {name: getattr(config, f"free_{name}") for name in names} | {"supervised": 0}
    if method == "supervised":
        change["unsupervised"] = 0
    if method == "supervised_longer":
        change["supervised"] = config.supervised + config.unsupervised
        change["unsupervised"] = 0
    return dataclasses.replace(config, **change)


def _labelled_base(data: Corpus, settings: Settings, seed: int) -> pd.DataFrame:
    """The labelled set to begin with: ``labelled`` utterances of the base split, by lot."""
    base, count = data.split("base"), settings.pseudo_labels.labelled
    chosen = np.random.default_rng([seed, 3]).permutation(len(base))[: count or len(base)]
    return base.iloc[np.sort(chosen)].reset_index(drop=True)


def _watched(data: Corpus, config: PseudoLabelConfig) -> pd.DataFrame:
    pool = data.split("pool")
    chosen = np.random.default_rng(0).permutation(len(pool))[: config.watched]
    return pool.iloc[np.sort(chosen)].reset_index(drop=True)


def _warm_up_config(settings: Settings, seed: int) -> dict:
    names = ("labelled", "warm_up", "warm_up_rate", "warm_up_dropout", "watched")
    config = {
        "step": "pseudo-labels warm-up",
        "features": fingerprint(experiment._features_config(settings)),
        "model": as_dict(settings.model),
        "training": as_dict(settings.training),
        **{name: getattr(settings.pseudo_labels, name) for name in names},
        "seed": seed,
        "code": code(*CODE),
    }
    if settings.start:
        config["start"] = fingerprint(experiment._base_config(settings, seed))
    return config


def warm_up(settings: Settings, seed: int, look: bool = False) -> Path | None:
    """Train one seed's model on the labelled set alone: M updates.

    Folder: ``model.pt``, ``monitor.csv``, ``test.csv``, ``metrics.json``. Raises ``UserError``
    where the model says nothing of any watched utterance: its labels would all be dropped.
    """

    def compute(folder: Path) -> None:
        data, begun = prepare(settings), time.perf_counter()
        config = settings.pseudo_labels
        torch.manual_seed(seed)  # initial weights
        model = DeepSpeech2(settings.model, len(data.alphabet)).to(experiment._device())
        if settings.start:
            experiment._start(model, settings, data.alphabet, seed)
        labelled = _labelled_base(data, settings, seed)
        # measured at the ends only
        once = dataclasses.replace(config, every=config.warm_up)
        monitor = Monitor(data, _watched(data, config), settings, once)
        checkpoint = Checkpoint(folder / "checkpoint")
        counts = train(
            model, data, labelled, data.split("pool")[:0], settings, once,
            plan(config)[: config.warm_up], rate=config.warm_up_rate,
            dropout=config.warm_up_dropout, seed=seed, checkpoint=checkpoint, measure=monitor,
        )  # fmt: skip
        last = monitor.state["rows"][-1]
        if last["empty_share"] == 1:
            raise UserError(
                f"configs/{settings.preset}.yaml: pseudo_labels: after warm_up = {config.warm_up} "
                "updates the teacher says nothing but blanks, so there is no pseudo-label to learn "
                "from: raise warm_up (or labelled)"
            )
        _finish(folder, model, data, monitor, {**counts, "labelled": len(labelled)}, begun)
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
        checkpoint.remove()

    name = f"warm-up-seed{seed}"
    return stored(
        CELLS, name, _warm_up_config(settings, seed), None if look else compute, resume=True
    )


def _finish(folder, model, data: Corpus, monitor: Monitor, facts: dict, begun: float) -> None:
    """Write the monitor's rows, the pictures it took, and what the test set says."""
    rows = monitor.state["rows"]
    write_csv(folder / "monitor.csv", pd.DataFrame(rows))
    tested = evaluate(model, data.store, data.split("test"), data.alphabet)
    last, collapsed = summarise(tested), monitor.collapsed()
    best = rows[-1]["step"]
    if not collapsed:
        best = min(rows[1:], key=lambda row: row["validation_wer"])["step"]
        if best != rows[-1]["step"]:
            model.load_state_dict(monitor.state["best"])
            tested = evaluate(model, data.store, data.split("test"), data.alphabet)
    tested.to_csv(folder / "test.csv", index=False)
    posteriors = torch.stack(monitor.state["posteriors"])
    np.save(folder / "posteriors.npy", posteriors.numpy().astype(np.float16))
    write_json(folder / "metrics.json", {
        **summarise(tested), "wer_last": last["wer"], "tested_step": int(best),
        "collapsed": collapsed, "shown": monitor.shown, **facts,
        "seconds": round(time.perf_counter() - begun, 2),
    })  # fmt: skip


def load_warm_up(settings: Settings, seed: int) -> DeepSpeech2:
    """One seed's model after the warm-up, in evaluation mode."""
    data = prepare(settings)
    model = DeepSpeech2(settings.model, len(data.alphabet))
    path = warm_up(settings, seed) / "model.pt"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.to(experiment._device()).eval()


def scores(settings: Settings, strategy: str, seed: int, look: bool = False) -> Path | None:
    """Score the pool with one seed's model after the warm-up. Folder: ``scores.csv``."""
    taken = experiment._score_options(settings, strategy, seed)
    config = {
        "step": "pseudo-labels scores",
        "warm_up": fingerprint(_warm_up_config(settings, seed)),
        "strategy": strategy,
        "options": taken,
        "code": code("acquisition", "gradients", "decoding", "ctc", "querying"),
    }

    def compute(folder: Path) -> None:
        model = load_warm_up(settings, seed)
        experiment.score_pool(folder, prepare(settings), model, strategy, taken)

    name = f"pl-scores-{strategy}-seed{seed}"
    return stored(CELLS, name, config, None if look else compute, resume=True)


def queried(settings: Settings, strategy: str, percent: float, seed: int) -> list[str]:
    """Ids of the pool utterances that are labelled, best first; all of them at 100 %."""
    if percent == 0:
        return []
    if percent == 100:
        return list(prepare(settings).split("pool")["utt_id"])
    path = scores(settings, strategy, seed) / "scores.csv"
    return query(read_csv(path).set_index("utt_id")[strategy], percent)


def pseudo_labelled(
    settings: Settings, regime: str, method: str, strategy: str, percent: float, seed: int,
    look: bool = False,
) -> Path | None:  # fmt: skip
    """Go on from the warm-up: what is labelled, with pseudo-labels for the rest of the pool.

    Folder as :func:`warm_up`'s, without the weights; ``posteriors.npy`` [steps, T, V] are of the
    utterance that ``metrics.json`` calls ``shown``.
    """
    config = options(settings.pseudo_labels, regime, method)
    loss = recipe(config, method)
    chosen = queried(settings, strategy, percent, seed)
    names = ("blocks", "supervised", "unsupervised", "rate", "dropout", "cache", "replacement")
    names += ("every", "watched", "collapsed")
    key = {
        "step": "pseudo-labels",
        "warm_up": fingerprint(_warm_up_config(settings, seed)),
        **{name: getattr(config, name) for name in names},
        "recipe": as_dict(loss),
        "queried": fingerprint({"utt_ids": sorted(chosen)}),
    }

    def compute(folder: Path) -> None:
        data, begun = prepare(settings), time.perf_counter()
        model = load_warm_up(settings, seed)
        pool = data.split("pool")
        new = pool["utt_id"].isin(chosen)
        labelled = pd.concat([_labelled_base(data, settings, seed), pool[new]], ignore_index=True)
        unlabelled = pool[~new].reset_index(drop=True)
        monitor = Monitor(data, _watched(data, config), settings, config)
        checkpoint = Checkpoint(folder / "checkpoint")
        counts = train(
            model, data, labelled, unlabelled, settings, config, plan(config)[config.warm_up :],
            loss, rate=config.rate, dropout=config.dropout, seed=seed, checkpoint=checkpoint,
            measure=monitor,
        )  # fmt: skip
        _finish(folder, model, data, monitor, {**counts, "labelled": len(labelled)}, begun)
        checkpoint.remove()

    name = f"pl-{regime}-{method}-{strategy}-{percent:g}-seed{seed}"
    return stored(CELLS, name, key, None if look else compute, resume=True)


# ---------------------------------------------------------------- the comparison


def tasks(settings: Settings) -> list[tuple]:
    """(regime, method, strategy, percent, seed) of every run, those that train longest first."""
    config, found = settings.pseudo_labels, []
    queries = [(s, percent) for s in config.strategies for percent in config.query_percents]
    for seed in range(settings.seeds):
        found += [("anchored", method, *NOTHING, seed) for method in config.anchored]
        found += [("free", method, *NOTHING, seed) for method in config.free]
        found += [("anchored", m, *q, seed) for q in queries for m in (ALONE, JOINED)]
        found.append(("anchored", ALONE, ALL, 100, seed))
    cost = lambda task: sum(_updates(options(config, *task[:2])))  # noqa: E731
    return sorted(found, key=cost, reverse=True)


def _updates(config: PseudoLabelConfig) -> tuple[int, int]:
    return config.blocks * config.supervised, config.blocks * config.unsupervised


@dataclass(frozen=True)
class Results:
    """The tables of a run: ``runs`` has a row a run, ``monitor`` a row a measured step, ``active``
    a row a query, seed and use of the rest (``labels alone`` or ``and pseudo-labels``)."""

    runs: pd.DataFrame
    monitor: pd.DataFrame
    active: pd.DataFrame
    folder: Path


def run(settings: Settings) -> Results:
    """Everything from the corpus to the tables; what is done already is only read.

    Writes ``results/<run>/pl_runs.csv``, ``pl_monitor.csv``, ``pl_active.csv`` and
    ``provenance_pseudo_labels.json``.
    """
    check_names(settings)
    settings = setting(settings)
    begun, output = time.perf_counter(), experiment.results_folder(settings)
    data, config = prepare(settings), settings.pseudo_labels
    seeds = range(settings.seeds)
    warm = in_parallel(warm_up, settings, [(seed,) for seed in seeds], "warm-up")
    asked = [(strategy, seed) for strategy in config.strategies for seed in seeds]
    scored = in_parallel(scores, settings, asked, "scores")
    todo = tasks(settings)
    folders = in_parallel(pseudo_labelled, settings, todo, "pseudo-labels")
    ends = [("none", "warm_up", *NOTHING, seed) for seed in seeds]
    runs, monitor = _tables(settings, ends + todo, warm + folders)
    active = _active(settings, data, runs)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "pl_runs.csv", runs)
    write_csv(output / "pl_monitor.csv", monitor)
    write_csv(output / "pl_active.csv", active)
    record = output / "provenance_pseudo_labels.json"
    write_provenance(record, settings, folders + warm + scored, begun)
    return Results(runs, monitor, active, output)


NAMES = ["regime", "method", "strategy", "query_percent", "seed"]


def _tables(settings: Settings, todo: list[tuple], folders: list) -> tuple:
    """(a row a run, a row a measured step), sorted."""
    runs, steps = [], []
    counted = ("labelled", "labelled_updates", "unlabelled_updates", "stored")
    counted += ("pseudo_labelled", "empty")
    for task, folder in zip(todo, folders, strict=True):
        names = dict(zip(NAMES, task, strict=True))
        metrics = json.loads((folder / "metrics.json").read_text())
        measured = pd.read_csv(folder / "monitor.csv")
        runs.append({
            "corpus": settings.corpus, "preset": settings.preset, **names,
            **{name: metrics[name] for name in ("ctc", "cer", "wer", "wer_last")},
            "tested_step": metrics["tested_step"],
            "collapsed_at": int(measured["step"].iloc[-1]) if metrics["collapsed"] else None,
            **{name: metrics[name] for name in counted},
        })  # fmt: skip
        steps.append(measured.assign(**names)[[*NAMES, *measured]])
    order = ["warm_up", *METHODS, "none", *settings.pseudo_labels.strategies, ALL]
    places = {name: place for place, name in enumerate(order)}
    place = lambda column: column if is_numeric_dtype(column) else column.map(places)  # noqa: E731
    runs = pd.DataFrame(runs).astype({"collapsed_at": "Int64"}).sort_values(NAMES[1:], key=place)
    steps = pd.concat(steps).sort_values([*NAMES[1:], "step"], key=place)
    runs, steps = (t.sort_values("regime", kind="stable") for t in (runs, steps))
    return runs.reset_index(drop=True), steps.reset_index(drop=True)


def _active(settings: Settings, data: Corpus, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that the joined curve is made of; those without a query belong to every strategy."""
    durations = data.split("pool").set_index("utt_id")["duration"]
    uses = {ALONE: "labels alone", JOINED: "and pseudo-labels"}
    rows = []
    anchored = runs[(runs["regime"] == "anchored") & runs["method"].isin(uses)]
    for row in anchored.to_dict("records"):
        known = row["strategy"] not in ("none", ALL)
        chosen = queried(settings, row["strategy"], row["query_percent"], row["seed"])
        for strategy in [row["strategy"]] if known else settings.pseudo_labels.strategies:
            rows.append({
                "strategy": strategy, "query_percent": row["query_percent"],
                "use": uses[row["method"]], "seed": row["seed"],
                **{name: row[name] for name in ("ctc", "cer", "wer", "collapsed_at")},
                "n_utterances": len(chosen), "hours": durations.loc[chosen].sum() / 3600,
            })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["strategy", "use", "query_percent", "seed"])


def pictures(settings: Settings, regime: str, method: str, seed: int) -> dict:
    """How one watched utterance's posteriors changed in a run without a query.

    Returns ``utt_id``, ``steps`` and ``posteriors`` [steps, T, V].
    """
    folder = pseudo_labelled(settings, regime, method, *NOTHING, seed)
    return {
        "utt_id": json.loads((folder / "metrics.json").read_text())["shown"],
        "steps": pd.read_csv(folder / "monitor.csv")["step"].astype(int).tolist(),
        "posteriors": np.load(folder / "posteriors.npy").astype(np.float32),
    }


def differences(runs: pd.DataFrame, reference: pd.DataFrame, metric: str = "wer") -> pd.DataFrame:
    """Each method's error minus the reference's, paired by seed: a row a method.

    Columns ``difference, low, high`` (95 % interval over the seeds that did not collapse),
    ``seeds``, and how many of them ``collapsed``. Both tables are rows of pl_runs.csv.
    """
    base, rows = reference.set_index("seed")[metric], {}
    for method, part in runs.groupby("method", sort=False):
        kept = part[part["collapsed_at"].isna()].set_index("seed")[metric]
        found = interval(kept - base[kept.index]) if len(kept) else [float("nan")] * 3
        rows[method] = [*found, len(part), len(part) - len(kept)]
    columns = ["difference", "low", "high", "seeds", "collapsed"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def check_names(settings: Settings) -> None:
    """Raise ``UserError`` for a method or a strategy that there is none of."""
    config = settings.pseudo_labels
    for method in (*config.anchored, *config.free):
        recipe(config, method)
    check_strategies(config.strategies)
