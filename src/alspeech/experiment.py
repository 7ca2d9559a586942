"""The paper's experiment, from a corpus to its tables.

    corpus → features → base model (a seed) → scores (a strategy) → cell (…, an amount) → tables

Each is a step (workshop/steps.py): a folder that a person can read, found by what it depends on and
never computed twice. A killed run goes on from the last checkpoint of what it was computing.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from . import embeddings, tables, together
from .acquisition import IN_TURN, ORACLES, check_strategies, uniform
from .claims import claims
from .devices import device
from .model import DeepSpeech2
from .querying import ALL, BASE, affordable, costly_first, query, score, score_options
from .selection import SELECTIONS, Candidates, as_scores, choose, selection_options
from .shards import BATCH, joined, pool_ids, shards_of
from .speech import corpus, target
from .speech.text import ENGLISH
from .statistics import AREA, MARGIN, comparisons
from .training import fit, load_weights, train_and_test
from .workshop.config import AIMS, EVEN, SPLITS, Settings, TrainingConfig, load_settings
from .workshop.errors import UserError
from .workshop.processes import sharing
from .workshop.provenance import publish, tidy
from .workshop.scenarios import TARGET
from .workshop.steps import Step, in_parallel
from .workshop.store import Checkpoint, fingerprint, read_csv, torch_bytes, write_bytes


def base_model(settings: Settings, seed: int) -> Step:
    """One seed's model, trained on the base set.

    Folder: ``model.pt`` (weights), ``history.csv`` (training and validation loss), ``test.csv`` (a
    row a test utterance), ``metrics.json``.
    """
    config = training_of(settings)
    # the same seed's base model on the embedded corpus, whose weights it may begin with
    start = [base_model(_started(settings), seed)] if settings.start else []

    def compute(folder: Path) -> dict:
        return _train_base(settings, config, seed, None, folder)

    def shared(folder: Path) -> dict:  # by several processes, which share every batch
        part = functools.partial(_train_base, settings, config, seed, together.SharedLoss())
        return together.spread(part, processes, folder)

    processes, given = sharing(), {"model": settings.model, "training": _training(config, AFTER)}
    if processes > 1:
        compute, given = shared, given | {"processes": processes}
    return Step(
        f"base-seed{seed}", compute, after=(corpus.features(settings), *start), given=given,
        processes=processes,
    )  # fmt: skip


def _train_base(settings: Settings, config, seed: int, objective, folder: Path) -> dict:
    data, model = corpus.prepare(settings), new_model(settings, seed)
    metrics = train_and_test(
        folder, data, model, data.split("base"), config, seed=seed,
        updates=config.base_updates, rate=config.base_rate, objective=objective,
    )  # fmt: skip
    write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
    return metrics


def tried(settings: Settings, rate: float, seed: int) -> Step:
    """The beginning of a base training with one of ``settings.rates``. ``metrics.json`` has the
    ``validation_loss`` that it comes to, in nats an utterance, or ``why`` it came to none."""
    config, updates = settings.training, settings.rate_updates
    start = [base_model(_started(settings), seed)] if settings.start else []

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), new_model(settings, seed)
        try:
            history = fit(
                model, data.store, data.split("base"), data.split("validation"), data.alphabet,
                config, updates=updates, rate=rate, seed=seed, measured=1,
                checkpoint=Checkpoint(folder),
            )  # fmt: skip
        except UserError as error:  # it diverges: another one is taken
            return {"validation_loss": None, "why": str(error)}
        return {"validation_loss": float(history["validation_loss"].iloc[-1])}

    given = {"model": settings.model, "training": _training(config, (*AFTER, "base_updates")),
             "rate": rate, "updates": updates, "seed": seed}  # fmt: skip
    after = corpus.features(settings), *start
    return Step(f"rate-{rate:g}-seed{seed}", compute, after=after, given=given)


def training_of(settings: Settings) -> TrainingConfig:
    """The section ``training``; with ``rates``, ``base_rate`` is the one that comes to the lowest
    validation loss, and ``rate`` keeps its proportion to it. Raises ``UserError`` where none of
    them comes to one."""
    config = settings.training
    if not settings.rates:
        return config
    tasks = [(rate, 0) for rate in settings.rates]
    folders = in_parallel(tried, settings, tasks, "learning rates")
    found = [json.loads((x / "metrics.json").read_text()) for x in folders]
    losses = np.array([one["validation_loss"] for one in found], dtype=float)  # null becomes NaN
    if not np.isfinite(losses).any():
        why = found[0].get("why", "the validation loss is not finite")
        raise UserError(f"none of the learning rates in 'rates' does: {why}")
    best = settings.rates[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]
    return replace(config, base_rate=best, rate=config.rate * best / config.base_rate)


AFTER = ("updates", "rate", "refit")  # of the training section: what comes after a query


def _training(config: TrainingConfig, without: tuple = ()) -> dict:
    return {name: value for name, value in vars(config).items() if name not in without}


def _started(settings: Settings) -> Settings:
    """The run whose base model this one starts from: on the embedded corpus, drawn evenly."""
    return load_settings(settings.start).on(EVEN)


def new_model(settings: Settings, seed: int) -> DeepSpeech2:
    """A model with one seed's initial weights, which may be those of another preset's base model.

    Raises ``UserError`` where that one is another model or has another alphabet.
    """
    torch.manual_seed(seed)
    alphabet = corpus.alphabet(settings)
    model = DeepSpeech2(settings.model, len(alphabet)).to(device())
    if settings.start:
        other = _started(settings)
        if other.model != settings.model or alphabet.characters != ENGLISH.characters:
            raise UserError(
                f"configs/{settings.preset}.yaml: start: {settings.start} needs its model and the "
                "English alphabet: take over its 'model', or leave 'start' out"
            )
        load_weights(model, base_model(other, seed))
    return model


def load_base(settings: Settings, seed: int) -> DeepSpeech2:
    """One seed's base model, in evaluation mode."""
    model = DeepSpeech2(settings.model, len(corpus.alphabet(settings)))
    return load_weights(model, base_model(settings, seed))


def pool_scores(
    settings: Settings, strategy: str, seed: int, model: Step | None = None, load=load_base
) -> Step:
    """One strategy's scores of the pool by a seed's base model, or by the ``model`` that ``load``
    (of settings and seed) loads. Folder: ``scores.csv``; its bytes do not depend on ``shards``."""
    if strategy in SELECTIONS:
        return _selected(settings, strategy, seed, model, load)
    if in_shards(settings, strategy):
        return _merged(settings, strategy, seed, model, load)
    options = score_options(settings, strategy, seed)

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), load(settings, seed)
        pool = data.split("pool")
        scores = score(
            model, as_read(model, pool, data.store), pool, strategy, checkpoint=Checkpoint(folder),
            alphabet=data.alphabet, group=data.group, **options,
        )  # fmt: skip
        scores.to_csv(folder / "scores.csv")
        return {"utterances": len(scores)}

    return Step(
        f"scores-{strategy}-seed{seed}", compute, after=_asked(settings, seed, model),
        given=options,
    )  # fmt: skip


def in_shards(settings: Settings, strategy: str) -> bool:
    """Is the pool scored in shards? Not by what looks at all of it, or at its transcripts."""
    return settings.shards > 1 and strategy not in (*SELECTIONS, *IN_TURN, *ORACLES)


def shard(
    settings: Settings, strategy: str, number: int, seed: int, model: Step | None = None,
    load=load_base,
) -> Step:  # fmt: skip
    """:func:`pool_scores` of one of ``settings.shards`` parts of the pool. Folder: as there."""
    options, count = score_options(settings, strategy, seed), settings.shards

    def compute(folder: Path) -> dict:
        data, scorer = corpus.prepare(settings), load(settings, seed)
        pool = data.split("pool")
        store = as_read(scorer, pool, data.store)
        part = pool[shards_of(store, pool, count) == number]
        scores = score(scorer, store, part, strategy, BATCH, Checkpoint(folder), **options)
        scores.to_csv(folder / "scores.csv")
        return {"utterances": len(scores)}

    return Step(
        f"scores-{strategy}-seed{seed}-shard{number}of{count}", compute,
        after=_asked(settings, seed, model), given=options,
    )  # fmt: skip


def _merged(settings: Settings, strategy: str, seed: int, *model) -> Step:
    """As :func:`pool_scores`, of all shards."""
    parts = [shard(settings, strategy, n, seed, *model) for n in range(settings.shards)]
    spoken = corpus.corpus(settings)

    def compute(folder: Path) -> dict:
        ids = pool_ids(spoken.folder())
        scores = joined([part.folder() / "scores.csv" for part in parts], ids)
        scores.to_csv(folder / "scores.csv")
        return {"utterances": len(scores)}

    return Step(f"scores-{strategy}-seed{seed}", compute, after=(*parts, spoken))


def _asked(settings: Settings, seed: int, model: Step | None) -> tuple[Step, ...]:
    """What scores depend on: a base model, which knows its corpus; or another one, and the corpus,
    which that one need not know."""
    return (model, corpus.features(settings)) if model else (base_model(settings, seed),)


def first_pass(
    settings: Settings, split: str, seed: int, model: Step | None = None, load=load_base
) -> Step:
    """What selections need of a split's utterances, or of a folder's, by a seed's base model, or
    by the ``model`` that ``load`` loads. Folder: ``candidates.npz``. No transcript is read."""
    config, options = settings.selection, pass_options(settings, seed)
    recorded = target_folder(settings) if split == TARGET else ()
    given = options | ({"target": config.target, "heard": config.heard} if split == TARGET else {})

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), load(settings, seed)
        utterances, store = heard(settings, data, split, seed)
        # where nothing is labelled yet, one of the pool shows what comes of an utterance
        seen = heard(settings, data, "pool", seed)[0][:1] if utterances.empty else utterances
        store = as_read(model, seen, store)
        found = embeddings.first_pass(model, store, seen, folder, **options)
        found = found.rows(slice(len(utterances)))
        found.save(folder / "candidates.npz")
        embeddings.remove_parts(folder)
        return {"utterances": len(found)}

    return Step(
        f"first-pass-{split}-seed{seed}", compute, given=given,
        after=(*_asked(settings, seed, model), *recorded),
    )  # fmt: skip


def target_folder(settings: Settings) -> tuple[Step, ...]:
    """The step that reads the target's folder, if the target is one."""
    return () if settings.selection.target in AIMS else (target.target(settings),)


def heard(settings: Settings, data: corpus.Corpus, split: str, seed: int) -> tuple:
    """Utterances without transcripts, and the features, of a split; or of the settings' target
    (``TARGET``), of which so many are drawn as are to be heard."""
    config, store = settings.selection, data.store
    if split != TARGET:
        utterances = data.split(split)
    elif config.target in SPLITS:
        utterances = data.split(config.target)
    else:
        utterances, store = target.read(target.target(settings), data.split("pool"))
    if split == TARGET and config.heard:
        drawn = uniform(utterances["utt_id"], seed).argsort(stable=True)
        utterances = utterances.iloc[np.sort(drawn[: config.heard])].reset_index(drop=True)
    return utterances.drop(columns="text", errors="ignore"), store


def pass_options(settings: Settings, seed: int) -> dict:
    """Of :func:`embeddings.embed`; the seed is the projection's."""
    names = ("labelings", "directions", "numbers")
    return {name: getattr(settings.selection, name) for name in names} | {"seed": seed}


def as_read(model, utterances: pd.DataFrame, store):
    """The features of some utterances as a model reads them: the ``store``'s, unless it is a
    recogniser from elsewhere (recognisers.py), which has its own."""
    return model.store(utterances) if hasattr(model, "store") else store


def _selected(settings: Settings, strategy: str, seed: int, *model) -> Step:
    """As :func:`pool_scores`, by a selection from first passes; as many are ranked as the largest
    amount pays for."""
    splits, taken = selection_options(settings.selection, strategy, seed)
    splits = {"candidates": "pool"} | splits
    passes = {x: first_pass(settings, split, seed, *model) for x, split in splits.items() if split}
    budget = {"amount": max(amounts(settings)), "by_seconds": bool(settings.query_seconds)}

    def compute(folder: Path) -> dict:
        sets = dict.fromkeys(splits)
        for x, step in passes.items():
            sets[x] = Candidates.load(step.folder() / "candidates.npz")
        pool = sets.pop("candidates")
        count = affordable(pool.seconds, **budget)
        order = choose(strategy, pool, count, **sets, **taken)
        as_scores(strategy, pool, order).to_csv(folder / "scores.csv")
        return {"utterances": len(pool), "ranked": len(order)}

    given = taken | budget
    if "target" in splits:  # which of the passes is it?
        given["target"] = passes["target"].name if "target" in passes else None
    before = {step.name: step for step in passes.values()}  # the pool may be the target
    return Step(
        f"scores-{strategy}-seed{seed}", compute, after=tuple(before.values()),
        given=given,
    )  # fmt: skip


def first_passes(settings: Settings) -> list[str]:
    """The splits (or the folder) whose first passes the preset's selections ask for."""
    chosen = [name for name in settings.strategies if name in SELECTIONS]
    seen = [selection_options(settings.selection, name, 0)[0].values() for name in chosen]
    splits = dict.fromkeys(split for some in seen for split in some if split)
    return ["pool", *(x for x in splits if x != "pool")] if chosen else []


def read_scores(folder: Path) -> pd.Series:
    """The scores in a step's folder, indexed by ``utt_id`` and named after their strategy."""
    return read_csv(folder / "scores.csv").set_index("utt_id").iloc[:, 0]


@functools.lru_cache(maxsize=4)  # asked for by every cell
def _pool_seconds(folder: Path) -> pd.Series:
    """Durations of the pool's utterances by id; the folder's name tells what is in it. Of each line
    no more is kept: a million rows with their transcripts take gigabytes."""
    with open(folder / "manifest.jsonl", encoding="utf-8") as file:
        rows = map(json.loads, file)
        found = {row["utt_id"]: row["duration"] for row in rows if row["split"] == "pool"}
    return pd.Series(found, name="duration", dtype="float64").rename_axis("utt_id")


def queried(settings: Settings, strategy: str, amount: float, seed: int) -> list[str]:
    """Ids of the pool utterances that a strategy has labelled, best first: ``amount`` is one of
    :func:`amounts`."""
    if strategy == BASE:
        return []
    seconds = None
    if strategy == ALL or settings.query_seconds:  # else there is no need to read the manifest
        seconds = _pool_seconds(corpus.corpus(settings).folder())
    if strategy == ALL:
        return list(seconds.index)
    return query(read_scores(pool_scores(settings, strategy, seed).folder()), amount, seconds)


def cell(settings: Settings, strategy: str, amount: float, seed: int, chosen=None) -> Step:
    """A training that goes on from the base model with base + queried utterances, or begins anew;
    with the utterances ``chosen`` (ids), if they are named.

    Folder as :func:`base_model`'s, without the weights; ``metrics.json`` says, too, how many of the
    queried utterances were ``set_aside`` (:meth:`speech.corpus.Corpus.usable`). The strategies
    ``base`` (nothing is queried) and ``all`` are the ends: all cells are trained for as many
    updates.
    """
    base, config = base_model(settings, seed), training_of(settings)
    chosen = sorted(queried(settings, strategy, amount, seed) if chosen is None else chosen)

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        train, updates, rate = data.labelled(chosen), config.updates, config.rate
        if config.refit == "on":
            model = load_base(settings, seed)
        else:
            model = new_model(settings, seed)
            updates, rate = updates + config.base_updates, config.base_rate
        metrics = train_and_test(
            folder, data, model, train, config, seed=seed, updates=updates, rate=rate, measured=1
        )
        return {**metrics, "set_aside": len(chosen) - int((train["split"] == "pool").sum())}

    given = {"queried": fingerprint(chosen), "training": _training(config)}
    return Step(f"{strategy}-{amount:g}-seed{seed}", compute, after=(base,), given=given)


def amounts(settings: Settings) -> tuple[float, ...]:
    """What is queried: percent of the pool's utterances, or seconds of its audio."""
    return settings.query_seconds or settings.query_percents


def grid(settings: Settings) -> list[tuple]:
    """(strategy, amount, seed) of every cell, seed by seed."""
    several = [(name, amount) for name in settings.strategies for amount in amounts(settings)]
    cells = [(BASE, 0), *several, (ALL, 100)]
    return [(*what, seed) for seed in range(settings.seeds) for what in cells]


def base_models(settings: Settings) -> list[Path]:
    """The base model of every seed, trained if it is not there yet."""
    return in_parallel(base_model, settings, [(s,) for s in range(settings.seeds)], "base models")


def computing(settings: Settings, what: str, *which) -> Step:
    """One of the steps that come before cells."""
    return {
        "base model": base_model, "first pass": first_pass, "shard": shard, "scores": pool_scores
    }[what](settings, *which)  # fmt: skip


def before_cells(settings: Settings) -> dict[tuple, Path]:
    """The folders of what comes before cells, computed if missing, by what they are, which, and
    seed: in one go, so that no core waits for the last base model."""
    batches = [name for name in settings.strategies if name in SELECTIONS]
    others = [name for name in settings.strategies if name not in SELECTIONS]
    whats = [("base model",), *(("first pass", split) for split in first_passes(settings))]
    parts = [name for name in costly_first(settings, others) if in_shards(settings, name)]
    whats += [("shard", name, n) for name in parts for n in range(settings.shards)]
    whats += [("scores", name) for name in [*costly_first(settings, others), *batches]]
    tasks = [(*what, seed) for what in whats for seed in range(settings.seeds)]
    folders = in_parallel(computing, settings, tasks, f"{settings.scenario}: models and scores")
    return dict(zip(tasks, folders, strict=True))


def all_scores(settings: Settings) -> dict[tuple, Path]:
    """The folder of the pool's scores by every (strategy, seed), computed if it is missing."""
    return {task[1:]: x for task, x in before_cells(settings).items() if task[0] == "scores"}


def check(settings: Settings) -> str:
    """Prepare the corpus of every scenario and say, for a person to read, what came of it."""
    check_strategies(settings.strategies, SELECTIONS)
    for name in settings.strategies:
        if name in SELECTIONS:
            selection_options(settings.selection, name, 0)
        else:
            score_options(settings, name, 0)
    told = {name: corpus.check(settings.on(name)) for name in settings.scenarios}
    return "\n\n".join(f"{name}: {text}" for name, text in told.items())


MEASURES = ("macro_wer", "wer", "unseen_wer", "cer", "ctc")  # the first is the endpoint's
COLUMNS = ("kind", "accent", "speaker", "snr_db", "duration", "text")  # of the pool, in scores.csv


def score_table(settings: Settings) -> tuple[pd.DataFrame, list[Path]]:
    """Every strategy's scores of the pool, a row a seed and utterance, and the folders of all that
    they are made of."""
    data, found = corpus.prepare(settings), before_cells(settings)
    several, seeds = settings.strategies, range(settings.seeds)
    by_seed = {s: [read_scores(found["scores", name, s]) for name in several] for s in seeds}
    about = dict.fromkeys((*COLUMNS, data.group))
    return tables.scores(data, about, by_seed), list(found.values())


def in_scenario(settings: Settings) -> tuple[dict[str, pd.DataFrame], list[Path]]:
    """The tables of one scenario, and the folders that they are made of: ``error_curves`` (a row a
    cell), ``scores`` (:func:`score_table`), ``cell_errors`` (a row a cell and test speaker)."""
    data, (scored, folders) = corpus.prepare(settings), score_table(settings)
    cells = grid(settings)
    trained = in_parallel(cell, settings, cells, f"{settings.scenario}: cells")
    bought = [queried(settings, *what) for what in cells]
    curves = tables.error_curves(settings, data, cells, bought, trained, settings.strategies)
    errors = tables.cell_errors(settings, data, cells, trained)
    found = {"error_curves": curves, "scores": scored, "cell_errors": errors}
    for table in found.values():
        table.insert(0, "scenario", settings.scenario)
    return found, [*trained, *folders]


def run(settings: Settings) -> SimpleNamespace:
    """Everything from the corpus to the tables; what is done already is only read.

    Writes those of :func:`in_scenario`, of all scenarios together, ``comparisons.csv`` (every
    method against random, see :func:`alspeech.statistics.comparisons`), ``claims.csv`` (the
    paper's, see :func:`alspeech.claims.claims`) and ``provenance.json`` into ``results/<run>``.
    Returns it as ``folder``, with the tables by their names, and the first of them as ``curves``.
    """
    begun = time.perf_counter()
    tidy(settings)
    found, folders = compared(settings)
    found["claims"] = claims(found["error_curves"], found["scores"])
    folder = publish(settings, found, "provenance", folders, begun)
    return SimpleNamespace(curves=found["error_curves"], folder=folder, **found)


def compared(settings: Settings) -> tuple[dict[str, pd.DataFrame], list[Path]]:
    """The tables of :func:`in_scenario`, of all scenarios together, with ``comparisons``, and the
    folders that they are made of."""
    if settings.seeds == 1:
        print("one seed: curves without intervals, and nothing is decided", file=sys.stderr)
    done = [in_scenario(settings.on(name)) for name in settings.scenarios]
    folders = [folder for _, some in done for folder in some]
    found = {name: pd.concat([part[name] for part, _ in done], ignore_index=True)
             for name in done[0][0]}  # fmt: skip
    found["comparisons"] = comparisons(
        found["error_curves"], metrics=MEASURES, endpoint=AREA, margin=MARGIN,
        errors=found["cell_errors"],
    )  # fmt: skip
    return found, folders
