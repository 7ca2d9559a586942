"""The paper's experiment, from a corpus to its tables.

    corpus → features → base model (a seed) → scores (a strategy) → cell (…, a percentage) → tables

Each is a step (workshop/steps.py): a folder that a person can read, found by what it depends on and
never computed twice. A killed run goes on from the last checkpoint of what it was computing.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from . import tables
from .acquisition import check_strategies
from .model import DeepSpeech2
from .querying import ALL, BASE, costly_first, query, score, score_options
from .speech import corpus
from .speech.text import ENGLISH
from .training import device, load_weights, train_and_test
from .workshop.config import Settings, load_settings
from .workshop.errors import UserError
from .workshop.provenance import publish, tidy
from .workshop.steps import Step, in_parallel
from .workshop.store import Checkpoint, fingerprint, read_csv, torch_bytes, write_bytes


def base_model(settings: Settings, seed: int) -> Step:
    """One seed's model, trained on the base set.

    Folder: ``model.pt`` (weights), ``history.csv`` (a row a pass), ``test.csv`` (a row a test
    utterance), ``metrics.json``.
    """
    config = settings.training
    # the same seed's base model on the embedded corpus, whose weights it may begin with
    start = [base_model(load_settings(settings.start), seed)] if settings.start else []

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        model = new_model(settings, seed)
        metrics = train_and_test(
            folder, data, model, data.split("base"), config, seed=seed,
            epochs=config.base_epochs, rate=config.base_rate,
        )  # fmt: skip
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
        return metrics

    return Step(
        f"base-seed{seed}", compute, after=(corpus.features(settings), *start),
        given={"model": settings.model, "training": config},
    )  # fmt: skip


def new_model(settings: Settings, seed: int) -> DeepSpeech2:
    """A model with one seed's initial weights, which may be those of another preset's base model.

    Raises ``UserError`` where that one is another model or has another alphabet.
    """
    torch.manual_seed(seed)
    alphabet = corpus.alphabet(settings)
    model = DeepSpeech2(settings.model, len(alphabet)).to(device())
    if settings.start:
        other = load_settings(settings.start)
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
    (of settings and seed) loads. Folder: ``scores.csv``."""
    options = score_options(settings, strategy, seed)

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), load(settings, seed)
        pool, checkpoint = data.split("pool"), Checkpoint(folder)
        scores = score(model, data.store, pool, strategy, checkpoint=checkpoint, **options)
        scores.to_csv(folder / "scores.csv")
        return {"utterances": len(scores)}

    return Step(
        f"scores-{strategy}-seed{seed}", compute, after=(model or base_model(settings, seed),),
        given=options,
    )  # fmt: skip


def read_scores(folder: Path) -> pd.Series:
    """The scores in a step's folder, indexed by ``utt_id`` and named after their strategy."""
    return read_csv(folder / "scores.csv").set_index("utt_id").iloc[:, 0]


def queried(settings: Settings, strategy: str, percent: float, seed: int) -> list[str]:
    """Ids of the pool utterances that a strategy has labelled at a percentage, best first."""
    if strategy == BASE:
        return []
    if strategy == ALL:
        return list(corpus.prepare(settings).split("pool")["utt_id"])
    return query(read_scores(pool_scores(settings, strategy, seed).folder()), percent)


def cell(settings: Settings, strategy: str, percent: float, seed: int) -> Step:
    """A training that goes on from the base model with base + queried utterances.

    Folder as :func:`base_model`'s, without the weights; ``metrics.json`` says, too, how many of the
    queried utterances were ``set_aside`` (:meth:`speech.corpus.Corpus.usable`). The strategies
    ``base`` (the base model itself) and ``all`` are the ends.
    """
    base, config = base_model(settings, seed), settings.training
    if strategy == BASE:
        return base
    chosen = sorted(queried(settings, strategy, percent, seed))

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), load_base(settings, seed)
        train = data.labelled(chosen)
        metrics = train_and_test(
            folder, data, model, train, config, seed=seed, epochs=config.epochs, rate=config.rate,
        )  # fmt: skip
        return {**metrics, "set_aside": len(chosen) - int((train["split"] == "pool").sum())}

    name, given = f"{strategy}-{percent:g}-seed{seed}", {"queried": fingerprint(chosen)}
    return Step(name, compute, after=(base,), given=given)


def grid(settings: Settings) -> list[tuple]:
    """(strategy, percent, seed) of every cell, those that train longest first."""
    cells = [(ALL, 100, seed) for seed in range(settings.seeds)]
    for percent in sorted(settings.query_percents, reverse=True):
        for seed in range(settings.seeds):
            cells += [(strategy, percent, seed) for strategy in settings.strategies]
    return cells + [(BASE, 0, seed) for seed in range(settings.seeds)]


def base_models(settings: Settings) -> list[Path]:
    """The base model of every seed, trained if it is not there yet."""
    return in_parallel(base_model, settings, [(s,) for s in range(settings.seeds)], "base models")


def all_scores(settings: Settings) -> dict[tuple, Path]:
    """The folder of the pool's scores by every (strategy, seed), computed if it is missing."""
    strategies, seeds = costly_first(settings, settings.strategies), range(settings.seeds)
    in_parallel(base_model, settings, [(seed,) for seed in seeds], "base models")
    tasks = [(strategy, seed) for strategy in strategies for seed in seeds]
    return dict(zip(tasks, in_parallel(pool_scores, settings, tasks, "scores"), strict=True))


def check(settings: Settings) -> str:
    """Prepare the corpus and say, for a person to read, what came of it."""
    check_strategies(settings.strategies)
    return corpus.check(settings)


def run(settings: Settings) -> SimpleNamespace:
    """Everything from the corpus to the tables; what is done already is only read.

    Writes ``error_curves.csv``, ``scores.csv`` and ``provenance.json`` into ``results/<run>``, and
    returns it as ``folder``, with ``curves`` (a row a cell) and ``scores`` (a row a seed and
    utterance).
    """
    begun = time.perf_counter()
    tidy(settings)
    data, scored, cells = corpus.prepare(settings), all_scores(settings), grid(settings)
    trained = in_parallel(cell, settings, cells, "cells")
    bought = [queried(settings, *what) for what in cells]
    strategies, seeds = settings.strategies, range(settings.seeds)
    curves = tables.error_curves(settings, data, cells, bought, trained, strategies)
    by_seed = {s: [read_scores(scored[name, s]) for name in strategies] for s in seeds}
    scores = tables.scores(data, ("kind", "speaker", "snr_db", "duration", "text"), by_seed)
    found = {"error_curves": curves, "scores": scores}
    folder = publish(settings, found, "provenance", [*trained, *scored.values()], begun)
    return SimpleNamespace(curves=curves, scores=scores, folder=folder)
