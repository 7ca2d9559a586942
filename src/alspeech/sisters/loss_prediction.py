"""The study of loss prediction: does a recogniser know what it would get wrong, and does it help?

    joint model (a seed, a variant) → round 1 → round 2 → … (a seed, a strategy) → tables

Every round scores what is left of the pool with the round before it, has the best labelled, and
trains on from the joint model with all that is labelled by then. Each is a step, as in
experiment.py.
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

from .. import tables
from ..acquisition import check_strategies
from ..devices import device
from ..experiment import read_scores, training_of
from ..metrics import TARGETS
from ..querying import ALL, BASE, costly_first, rank, score, score_options
from ..selection import SELECTIONS
from ..speech import corpus
from ..statistics import bounds, spearman
from ..training import load_weights, train_and_test
from ..workshop.config import LossPredictionConfig, Settings, TrainingConfig
from ..workshop.provenance import publish, tidy
from ..workshop.steps import Step, in_parallel
from ..workshop.store import read_csv, torch_bytes, write_bytes, write_csv
from .joint import JointRecogniser, fits, objective

# recognisers that are compared: what each changes in the preset's loss_prediction section
VARIANTS = {"joint": {}, "no_prediction": {"weight": 0.0}, "ctc_only": {"hybrid": False}}
# held-out loss is held against the prediction, and against what is known without one
PREDICTORS = ("loss_prediction", "estimated_loss", "least_confidence", "entropy", "egl", "duration")
# what the tables say of a training, by its metrics.json
METRICS = (*tables.METRICS, "updates", "infinite_ctc", "targets_left_out")


def _options(settings: Settings, variant: str) -> LossPredictionConfig:
    return replace(settings.loss_prediction, **VARIANTS[variant])


def joint_model(settings: Settings, variant: str, seed: int) -> Step:
    """One seed's joint recogniser, trained on the base set.

    Folder: as :func:`alspeech.experiment.base_model`'s.
    """
    options = vars(_options(settings, variant))
    later = ("strategies", "rounds", "target", "variants")  # what is asked of a trained recogniser
    kept = {name: value for name, value in options.items() if name not in later}
    config = training_of(settings)

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        torch.manual_seed(seed)  # initial weights
        model = _untrained(settings, variant)
        return _train(folder, settings, config, data, data.split("base"), seed, model)

    return Step(
        f"{variant}-seed{seed}", compute,
        after=(corpus.features(settings),),
        given={"model": settings.model, "training": config, "loss_prediction": kept},
    )  # fmt: skip


def _untrained(settings: Settings, variant: str) -> JointRecogniser:
    symbols = len(corpus.alphabet(settings))
    return JointRecogniser(settings.model, _options(settings, variant), symbols).to(device())


def load_joint(settings: Settings, seed: int, variant: str = "joint") -> JointRecogniser:
    """One seed's joint recogniser, in evaluation mode."""
    return load_weights(_untrained(settings, variant), joint_model(settings, variant, seed))


def predicted(settings: Settings, variant: str, seed: int) -> Step:
    """What a joint recogniser knows of utterances that it has not learned from.

    Folder: ``predicted.csv``, a row a test utterance: the true loss (``true_token`` and
    ``true_utterance``, nats), the predicted one, and what else may tell of it (``PREDICTORS``; EGL,
    which costs most, of the joint model only); ``scores.csv``, the pool's scores by entropy, a
    method that the rounds do without and the rankings are held against.
    """

    def compute(folder: Path) -> dict:
        data, model, rows = corpus.prepare(settings), load_joint(settings, seed, variant), []
        test, pool = data.usable(data.split("test")), data.split("pool")  # a true loss is finite
        for batch in data.store.batches(test, 32, data.alphabet.encode):
            batch = batch.to(device())
            true = model.true_losses(batch.features, batch.labels)
            both = torch.cat([true, model.predicted_losses(batch.features)], dim=1)
            rows += zip(batch.utt_ids, *both.T.tolist(), strict=True)
        names = [f"{name}_{target}" for name in ("true", "predicted") for target in TARGETS]
        losses = pd.DataFrame(rows, columns=["utt_id", *names]).set_index("utt_id")
        without = ("duration",) if variant == "joint" else ("duration", "egl")
        scores = [score(model, data.store, test, n) for n in PREDICTORS if n not in without]
        table = test.set_index("utt_id")[["duration"]].join([losses, *scores])
        table.reindex(columns=[*names, *PREDICTORS]).to_csv(folder / "predicted.csv")
        score(model, data.store, pool, "entropy").to_csv(folder / "scores.csv")
        return {"utterances": len(test) + len(pool)}

    return Step(
        f"predicted-{variant}-seed{seed}", compute, after=(joint_model(settings, variant, seed),),
    )  # fmt: skip


def _train(
    folder: Path, settings: Settings, config: TrainingConfig, data: corpus.Corpus, train, seed: int,
    model=None,
) -> dict:  # fmt: skip
    """Train a new ``model``, or else the joint model on, as the experiment does but with the joint
    loss, and keep the weights; says how many losses taught the predictor nothing."""
    options = {"updates": config.base_updates, "rate": config.base_rate}
    if model is None:
        model = load_joint(settings, seed)
        options = {"updates": config.updates, "rate": config.rate}
    options |= {"seed": seed, "objective": objective}
    metrics = train_and_test(folder, data, model, train, config, **options)
    write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
    frames = train["utt_id"].map(data.store.frames).map(model.recogniser.frames)
    labels = train["text"].map(data.alphabet.encode)
    left_out = sum(not fits(row, T) for row, T in zip(labels, frames, strict=True))
    return {**metrics, "targets_left_out": left_out}


def round_(settings: Settings, strategy: str, percent: float, seed: int) -> Step:
    """Score what is left of the pool after the round before, have the best labelled until it is
    ``percent`` % of the pool (one of the preset's ``rounds``), train on from the joint model.

    Folder: ``scores.csv``, ``queried.csv`` (ids, in the order of the rounds), and as
    :func:`joint_model`'s. At 0 % it is the joint model itself.
    """
    if percent == 0:
        return joint_model(settings, "joint", seed)
    earlier = [0, *(p for p in settings.loss_prediction.rounds if p < percent)]
    before = round_(settings, strategy, earlier[-1], seed)
    options, config = score_options(settings, strategy, seed), training_of(settings)

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        pool, chosen = data.split("pool"), queried(before.folder())
        left = pool[~pool["utt_id"].isin(chosen)].reset_index(drop=True)
        if not (folder / "scores.csv").exists():  # a killed run may have left them
            model = load_weights(_untrained(settings, "joint"), before)
            scores = score(
                model, data.store, left, strategy, alphabet=data.alphabet, group=data.group,
                **options,
            )  # fmt: skip
            write_bytes(folder / "scores.csv", scores.to_csv().encode())  # every bit of them
        order = rank(read_scores(folder)).sort_values().index
        wanted = round(len(pool) * percent / 100)
        chosen += list(order[: max(1, wanted - len(chosen))])
        write_csv(folder / "queried.csv", pd.DataFrame({"utt_id": chosen}))
        return _train(folder, settings, config, data, data.labelled(chosen), seed)

    return Step(
        f"round-{strategy}-{percent:g}-seed{seed}", compute, after=(before,),
        given={"options": options, "percent": percent},
    )  # fmt: skip


def whole_pool(settings: Settings, seed: int) -> Step:
    """Train on from the joint model with every label of the pool. Folder: as the last round's."""
    config = training_of(settings)

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        pool = data.split("pool")
        write_csv(folder / "queried.csv", pool[["utt_id"]])
        return _train(folder, settings, config, data, data.labelled(list(pool["utt_id"])), seed)

    return Step(f"round-{ALL}-seed{seed}", compute, after=(joint_model(settings, "joint", seed),))


def queried(folder: Path) -> list[str]:
    """Ids that had been labelled by the end of a round, earliest first; none before the first."""
    path = folder / "queried.csv"
    return list(read_csv(path)["utt_id"]) if path.exists() else []


def check_names(settings: Settings) -> None:
    """Raise ``UserError`` for a strategy that does not exist, or not in rounds."""
    check_strategies(settings.strategies, SELECTIONS)
    check_strategies(settings.loss_prediction.strategies)


def check(settings: Settings) -> str:
    """Prepare the corpus and say, for a person to read, what came of it."""
    check_names(settings)
    return corpus.check(settings.of("loss_prediction"))


def run(settings: Settings) -> SimpleNamespace:
    """Joint models, rounds and tables; what is done already is only read.

    Writes into ``results/<run>`` and returns, with that ``folder``, ``curves`` (lp_curves.csv: a
    row a strategy, round and seed), ``variants`` (a recogniser and seed), ``predictions`` (a
    recogniser, seed and test utterance) and ``scores`` (a seed and pool utterance, of the first
    round); beside them ``provenance_loss_prediction.json``.
    """
    begun, settings = time.perf_counter(), settings.of("loss_prediction")
    options, seeds = settings.loss_prediction, range(settings.seeds)
    check_names(settings)
    tidy(settings)
    data = corpus.prepare(settings)
    tasks = [(variant, seed) for seed in seeds for variant in options.variants]
    folders = in_parallel(joint_model, settings, tasks, "joint models")
    models = dict(zip(tasks, folders, strict=True))
    known = dict(zip(tasks, in_parallel(predicted, settings, tasks, "predictions"), strict=True))
    cells = {(BASE, 0, seed): models["joint", seed] for seed in seeds}
    strategies = costly_first(settings, options.strategies)
    for percent in options.rounds:
        tasks = [(strategy, percent, seed) for strategy in strategies for seed in seeds]
        folders = in_parallel(round_, settings, tasks, f"round to {percent:g} %")
        cells |= zip(tasks, folders, strict=True)
    ends = in_parallel(whole_pool, settings, [(seed,) for seed in seeds], "whole pool")
    cells |= {(ALL, 100, seed): folder for seed, folder in enumerate(ends)}
    bought, trained = [queried(folder) for folder in cells.values()], list(cells.values())
    curves = tables.error_curves(
        settings, data, list(cells), bought, trained, options.strategies, ("targets_left_out",)
    )
    curves = curves[[*curves.columns.difference(METRICS, sort=False), *METRICS]]
    # the joint model's scores of the whole pool: entropy, and those of the first round
    first = [(name, options.rounds[0]) for name in options.strategies if name != "entropy"]
    scored = {s: [known["joint", s], *(cells[*what, s] for what in first)] for s in seeds}
    by_seed = {seed: [*map(read_scores, folders)] for seed, folders in scored.items()}
    scores = tables.scores(data, ("kind", "duration", "text"), by_seed)
    found = {"curves": curves, **_of_models(settings, data, models, known), "scores": scores}
    written = {f"lp_{name}": table for name, table in found.items()}
    steps = [*models.values(), *known.values(), *trained]
    folder = publish(settings, written, "provenance_loss_prediction", steps, begun)
    return SimpleNamespace(**found, folder=folder)


def _of_models(settings: Settings, data: corpus.Corpus, models: dict, known: dict) -> dict:
    """``variants``: error rates and quality of prediction (see :func:`quality`) of every recogniser
    and seed; ``predictions``: what that is the quality of."""
    variants, predictions = [], []
    for (variant, seed), folder in models.items():
        table = read_csv(known[variant, seed] / "predicted.csv").assign(seed=seed, variant=variant)
        found = quality(table, "loss_prediction")
        if _options(settings, variant).weight == 0:
            found = dict.fromkeys(found, float("nan"))  # a predictor that learned nothing
        metrics = json.loads((folder / "metrics.json").read_text())
        told = {name: metrics[name] for name in METRICS}
        variants.append({"variant": variant, "seed": seed, **told, **found})
        predictions.append(table)
    told = ["utt_id", *(c for c in ("kind", "speaker", "snr_db", "text") if c in data.manifest)]
    test = data.split("test")[told]
    together = pd.concat(predictions, ignore_index=True).merge(test, on="utt_id")
    return {"variants": pd.DataFrame(variants), "predictions": together}


def quality(table: pd.DataFrame, predictor: str, target: str = "token") -> dict:
    """Of one seed's rows of ``predictions``: ``spearman`` with the true loss, and ``explained``,
    the share of the variance of its logarithm that the best straight line in the predictor's
    logarithm takes away (0 for the mean)."""
    usable = table[np.isfinite(table[f"true_{target}"])]
    # a predictor that was taught an order has no unit: its numbers may be as small as can be
    x, y = (np.log(usable[c].clip(lower=1e-300)) for c in (predictor, f"true_{target}"))
    if x.nunique() < 2:
        return {"spearman": 0.0, "explained": 0.0}
    return {"spearman": spearman(x, y), "explained": np.corrcoef(x, y)[0, 1] ** 2}


def qualities(table: pd.DataFrame, target: str = "token") -> pd.DataFrame:
    """:func:`quality` of every predictor: mean and 95 % interval over seeds; and the mean loss,
    which knows nothing of the utterance."""
    seeds = [part.assign(mean=1.0) for _, part in table.groupby("seed")]
    rows = []
    for predictor in (*PREDICTORS, "mean"):
        known = pd.DataFrame([quality(part, predictor, target) for part in seeds])
        found = [bounds(name, values) for name, values in known.items()]
        rows.append({"predictor": predictor, **found[0], **found[1]})
    return pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)
