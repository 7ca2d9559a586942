"""Continuous pseudo-labels: what can be had from the audio that nobody labelled?

    warm-up (a seed) → run (a seed, a method, a regime, what was queried) → tables

Each is a step (workshop/steps.py), like those of experiment.py. *Methods* say what the unsupervised
loss is made of (:func:`recipes`); *regimes* whether labelled steps stand between the others
("anchored"), the model has only its own word ("free"), or a share of the pool is labelled and the
labels are used as much as the rest ("joined"). Every run is tested with its last weights, whatever
became of it; ``wer_best`` is by the weights that had the lowest validation WER.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from ..acquisition import check_strategies
from ..experiment import base_model, new_model, pool_scores, read_scores
from ..metrics import evaluate, summarise
from ..model import DeepSpeech2
from ..querying import ALL, query
from ..selection import SELECTIONS
from ..speech import corpus
from ..speech.corpus import Corpus, prepare
from ..statistics import interval
from ..training import load_weights
from ..workshop.config import PseudoLabelConfig, Settings
from ..workshop.errors import UserError, one_of
from ..workshop.provenance import publish, tidy
from ..workshop.steps import Step, in_parallel
from ..workshop.store import Checkpoint, fingerprint, torch_bytes, write_bytes, write_csv
from .slimipl import SUPERVISED, Monitor, Recipe, plan, train

# what is compared when a share of the pool is labelled, as pl_active.csv calls it: pseudo-labels
# for the rest, against labels alone for as many labelled updates, and for as many updates in all
USES = {
    "supervised": "labels alone",
    "supervised_longer": "labels alone, longer",
    "hard": "and pseudo-labels",
}
NOTHING = ("none", 0)  # no query: (strategy, percent)


def recipes(config: PseudoLabelConfig) -> dict[str, Recipe]:
    """What each method's unsupervised loss is made of; its name is a key of plots.METHOD_STYLE."""
    return {
        "supervised": Recipe(),  # labelled updates only: as many as beside the pseudo-labels,
        "supervised_longer": Recipe(),  # or as many as all of theirs
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


def options(config: PseudoLabelConfig, regime: str, method: str) -> PseudoLabelConfig:
    """The settings of one run: the preset's, with what its method and regime change."""
    names = {
        "anchored": (),
        "free": ("blocks", "rate", "cache", "replacement"),
        "joined": ("blocks", "supervised", "unsupervised"),
    }[regime]
    change = {name: getattr(config, f"{regime}_{name}") for name in names}
    if regime == "free":
        change["supervised"] = 0
    if method in ("supervised", "supervised_longer"):
        change["unsupervised"] = 0
    return replace(config, **change)


def training_steps(config: PseudoLabelConfig, regime: str, method: str) -> list[str]:
    """What each step after the warm-up is. ``supervised_longer`` makes as many updates in all as a
    run with pseudo-labels, whose first unlabelled steps only fill the cache."""
    if method == "supervised_longer":
        with_others = plan(options(config, regime, "hard"))
        return [SUPERVISED] * (len(with_others) - config.warm_up - config.cache)
    return plan(options(config, regime, method))[config.warm_up :]


def warm_up(settings: Settings, seed: int) -> Step:
    """One seed's model, trained on the labelled set alone: M updates.

    Folder: ``model.pt``, ``monitor.csv``, ``posteriors.npy``, ``test.csv``, ``metrics.json``.
    Raises ``UserError`` where the model says nothing of any watched utterance: its labels would all
    be dropped.
    """
    config = settings.pseudo_labels
    rate, dropout = config.warm_up_rate, config.warm_up_dropout
    # measured where it ends, and without what unlabelled audio needs
    ends = replace(
        config, every=config.warm_up, rate=rate, dropout=dropout, cache=1, replacement=0
    )  # fmt: skip
    todo = plan(config)[: config.warm_up]

    def compute(folder: Path) -> dict:
        model = new_model(settings, seed)
        metrics = _train_and_test(folder, settings, ends, model, todo, Recipe(), [], seed)
        if pd.read_csv(folder / "monitor.csv")["empty_share"].iloc[-1] == 1:
            raise UserError(
                f"configs/{settings.preset}.yaml: pseudo_labels: after warm_up = {config.warm_up} "
                "updates the teacher says nothing but blanks, so there is no pseudo-label to learn "
                "from: raise warm_up (or labelled)"
            )
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
        return metrics

    return Step(
        f"warm-up-seed{seed}", compute, after=base_model(settings, seed).after,  # begins as that
        given={"model": settings.model, "training": settings.training, **_given(ends, todo)},
    )  # fmt: skip


def _given(config: PseudoLabelConfig, steps: list[str]) -> dict:
    """What a run takes from its own settings, which are the preset's with changes of its own."""
    names = "labelled rate dropout cache replacement every watched collapsed"
    return {name: getattr(config, name) for name in names.split()} | {"steps": fingerprint(steps)}


def load_warm_up(settings: Settings, seed: int) -> DeepSpeech2:
    """One seed's model after the warm-up, in evaluation mode."""
    model = DeepSpeech2(settings.model, len(corpus.alphabet(settings)))
    return load_weights(model, warm_up(settings, seed))


def _train_and_test(
    folder: Path, settings: Settings, config: PseudoLabelConfig, model: DeepSpeech2,
    steps: list[str], recipe: Recipe, chosen: list[str], seed: int,
) -> dict:  # fmt: skip
    """Train on the labelled set and the ``chosen`` of the pool, with the rest of it unlabelled.

    Writes the monitor's rows, the pictures it took, and what the test set says of the last weights;
    ``wer_best`` is by those of the best step after the first, on the validation set.
    """
    data, settings = prepare(settings), replace(settings, pseudo_labels=config)
    base, pool = data.split("base"), data.split("pool")
    # the labelled set to begin with: ``labelled`` utterances of the base split, by lot
    lot = np.random.default_rng([seed, 3]).permutation(len(base))[: config.labelled or len(base)]
    new = pool["utt_id"].isin(chosen)
    labelled = pd.concat([base.iloc[np.sort(lot)], data.usable(pool[new])], ignore_index=True)
    unlabelled, monitor = pool[~new].reset_index(drop=True), Monitor(data, settings)
    counts = train(
        model, data, labelled, unlabelled, settings, steps, recipe,
        seed=seed, checkpoint=Checkpoint(folder), measure=monitor,
    )  # fmt: skip
    rows, collapsed = monitor.state["rows"], monitor.collapsed()
    write_csv(folder / "monitor.csv", pd.DataFrame(rows))
    tested = evaluate(model, data.store, data.split("test"), data.alphabet)
    tested.to_csv(folder / "test.csv", index=False)
    posteriors = torch.stack(monitor.state["posteriors"])
    np.save(folder / "posteriors.npy", posteriors.numpy().astype(np.float16))
    metrics = summarise(tested)
    best, wer = min(rows[1:], key=lambda row: row["validation_wer"]), metrics["wer"]
    if best is not rows[-1]:
        model.load_state_dict(monitor.state["best"])
        wer = summarise(evaluate(model, data.store, data.split("test"), data.alphabet))["wer"]
    return {
        **metrics, "wer_best": wer, "best_step": int(best["step"]),
        "collapsed_at": int(rows[-1]["step"]) if collapsed else None, "shown": monitor.shown,
        **counts, "labelled": len(labelled),
    }  # fmt: skip


def scores(settings: Settings, strategy: str, seed: int) -> Step:
    """One strategy's scores of the pool by a seed's model after the warm-up; a selection ranks as
    many as are queried here."""
    own = replace(settings, query_percents=settings.pseudo_labels.query_percents, query_seconds=())
    return pool_scores(own, strategy, seed, warm_up(settings, seed), load_warm_up)


def queried(settings: Settings, strategy: str, percent: float, seed: int) -> list[str]:
    """Ids of the pool utterances that are labelled, best first; all of them at 100 %."""
    if percent == 0:
        return []
    if percent == 100:
        return list(prepare(settings).split("pool")["utt_id"])
    return query(read_scores(scores(settings, strategy, seed).folder()), percent)


def pseudo_labelled(
    settings: Settings, regime: str, method: str, strategy: str, percent: float, seed: int
) -> Step:
    """A training that goes on from the warm-up: what is labelled, with pseudo-labels for the rest
    of the pool. Raises ``UserError`` for an unknown method.

    Folder as :func:`warm_up`'s, without the weights; ``posteriors.npy`` [steps, T, V] are of the
    utterance that ``metrics.json`` calls ``shown``.
    """
    one_of("method", method, recipes(settings.pseudo_labels))
    config = options(settings.pseudo_labels, regime, method)
    recipe, chosen = recipes(config)[method], queried(settings, strategy, percent, seed)
    todo = training_steps(settings.pseudo_labels, regime, method)

    def compute(folder: Path) -> dict:
        model = load_warm_up(settings, seed)
        return _train_and_test(folder, settings, config, model, todo, recipe, chosen, seed)

    given = {"recipe": recipe, "queried": fingerprint(sorted(chosen))}
    return Step(
        f"pl-{regime}-{method}-{strategy}-{percent:g}-seed{seed}", compute,
        after=(warm_up(settings, seed),), given={**_given(config, todo), **given},
    )  # fmt: skip


def tasks(settings: Settings) -> list[tuple]:
    """(regime, method, strategy, percent, seed) of every run, those that train longest first."""
    config, found = settings.pseudo_labels, []
    queries = [(s, percent) for s in config.strategies for percent in config.query_percents]
    for seed in range(settings.seeds):
        found += [("anchored", method, *NOTHING, seed) for method in config.anchored]
        found += [("free", method, *NOTHING, seed) for method in config.free]
        found += [("joined", m, *q, seed) for q in [NOTHING, *queries] for m in USES]
        found += [("joined", m, ALL, 100, seed) for m in USES if m != "hard"]
    cost = lambda task: len(training_steps(config, *task[:2]))  # noqa: E731
    return sorted(found, key=cost, reverse=True)


def run(settings: Settings) -> SimpleNamespace:
    """Everything from the corpus to the tables; what is done already is only read.

    Writes into ``results/<run>`` and returns, with that ``folder``, ``runs`` (pl_runs.csv: a row a
    run), ``monitor`` (a measured step) and ``active`` (a query, seed and use of the rest, by
    ``USES``); beside them ``provenance_pseudo_labels.json``.
    """
    begun = time.perf_counter()
    check_names(settings)
    tidy(settings)
    settings = settings.of("pseudo_labels")
    data, config, seeds = prepare(settings), settings.pseudo_labels, range(settings.seeds)
    warm = in_parallel(warm_up, settings, [(seed,) for seed in seeds], "warm-up")
    asked = [(strategy, seed) for strategy in config.strategies for seed in seeds]
    scored, todo = in_parallel(scores, settings, asked, "scores"), tasks(settings)
    folders = in_parallel(pseudo_labelled, settings, todo, "pseudo-labels")
    ends = [("none", "warm_up", *NOTHING, seed) for seed in seeds]
    runs, monitor = _tables(settings, ends + todo, warm + folders)
    found = {"runs": runs, "monitor": monitor, "active": _active(settings, data, runs)}
    written = {f"pl_{name}": table for name, table in found.items()}
    folder = publish(settings, written, "provenance_pseudo_labels", folders + warm + scored, begun)
    return SimpleNamespace(**found, folder=folder)


NAMES = ["regime", "method", "strategy", "query_percent", "seed"]
MEASURED = (
    "ctc", "cer", "wer", "wer_best", "best_step", "collapsed_at", "labelled", "labelled_updates",
    "unlabelled_updates", "stored", "pseudo_labelled", "empty",
)  # fmt: skip


def _tables(settings: Settings, todo: list[tuple], folders: list) -> tuple:
    """(a row a run, a row a measured step), sorted."""
    config, runs, monitor = settings.pseudo_labels, [], []
    order = ["anchored", "free", "joined", "none", "warm_up", *recipes(config)]
    order += [*config.strategies, ALL]
    places = {name: place for place, name in enumerate(order)}
    found = zip(todo, folders, strict=True)
    for task, folder in sorted(found, key=lambda pair: [places.get(x, x) for x in pair[0]]):
        names = dict(zip(NAMES, task, strict=True))
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics = {name: metrics[name] for name in MEASURED}
        runs.append({"corpus": settings.corpus, "preset": settings.preset, **names, **metrics})
        measured = pd.read_csv(folder / "monitor.csv")
        monitor.append(measured.assign(**names)[[*NAMES, *measured]])
    runs = pd.DataFrame(runs).astype({"collapsed_at": "Int64"})
    return runs, pd.concat(monitor, ignore_index=True)


def _active(settings: Settings, data: Corpus, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that the joined curve is made of; those without a query belong to every strategy."""
    durations = data.split("pool").set_index("utt_id")["duration"]
    strategies = list(settings.pseudo_labels.strategies)
    kept = runs[runs["regime"] == "joined"]
    chosen = [queried(settings, *what) for what in kept[NAMES[2:]].itertuples(index=False)]
    table = kept.assign(
        strategy=[[name] if name in strategies else strategies for name in kept["strategy"]],
        use=kept["method"].map(USES), n_utterances=[*map(len, chosen)],
        hours=[durations.loc[ids].sum() / 3600 for ids in chosen],
    ).explode("strategy")  # fmt: skip
    columns = "strategy query_percent use seed ctc cer wer collapsed_at n_utterances hours".split()
    return table[columns].sort_values(["strategy", "use", "query_percent", "seed"])


def pictures(settings: Settings, regime: str, method: str, seed: int) -> dict:
    """How one watched utterance's posteriors changed in a run without a query.

    Returns ``utt_id``, ``steps`` and ``posteriors`` [steps, T, V].
    """
    folder = pseudo_labelled(settings, regime, method, *NOTHING, seed).folder()
    return {
        "utt_id": json.loads((folder / "metrics.json").read_text())["shown"],
        "steps": pd.read_csv(folder / "monitor.csv")["step"].astype(int).tolist(),
        "posteriors": np.load(folder / "posteriors.npy").astype(np.float32),
    }


def differences(runs: pd.DataFrame, reference: pd.DataFrame, metric: str = "wer") -> pd.DataFrame:
    """Each method's error minus the reference's, paired by seed: a row a method.

    Columns ``difference, low, high`` (95 % interval over seeds), ``seeds``, and how many of them
    ``collapsed``, which count as the others do. Both tables are rows of pl_runs.csv.
    """
    base, rows = reference.set_index("seed")[metric], {}
    for method, part in runs.groupby("method", sort=False):
        values = part.set_index("seed")[metric]
        found = interval(values - base[values.index])
        rows[method] = [*found, len(part), int(part["collapsed_at"].count())]
    columns = ["difference", "low", "high", "seeds", "collapsed"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def check_names(settings: Settings) -> None:
    """Raise ``UserError`` for a method or a strategy that there is none of, and for one without
    pseudo-labels where there are no labelled steps."""
    config = settings.pseudo_labels
    for method in (*config.anchored, *config.free):
        one_of("method", method, recipes(config))
    for method in config.free:
        one_of("method without labelled steps", method, _unsupervised(config))
    check_strategies((*settings.strategies, *config.strategies), SELECTIONS)


def _unsupervised(config: PseudoLabelConfig) -> list[str]:
    return [name for name, recipe in recipes(config).items() if recipe != Recipe()]


def check(settings: Settings) -> str:
    """Prepare the corpus and say, for a person to read, what came of it."""
    check_names(settings)
    return corpus.check(settings.of("pseudo_labels"))
