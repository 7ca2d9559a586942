"""The study of loss prediction: does a recogniser know what it would get wrong, and does it help?

    joint model (a seed, a variant) → round 1 → round 2 → … (a seed, a strategy)

Every round scores what is left of the pool with the round before it, has the best labelled, and
trains on from the joint model with all that is labelled by then. Each is a folder of the store, as
in experiment.py.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import experiment
from .acquisition import ACQUISITIONS, check_strategies
from .config import Settings, as_dict
from .experiment import ALL, BASE, CELLS
from .joint import TARGETS, JointRecogniser, fits, objective
from .querying import rank, score
from .statistics import interval, spearman
from .store import (
    code,
    fingerprint,
    read_csv,
    stored,
    torch_bytes,
    write_bytes,
    write_csv,
    write_json,
)

# recognisers that are compared: what each changes in the preset's loss_prediction section
VARIANTS = {
    "joint": {},
    "no_prediction": {"weight": 0.0},
    "ctc_only": {"hybrid": False},
}
# held-out loss is held against the prediction, and against what is known without one
PREDICTORS = ("loss_prediction", "estimated_loss", "least_confidence", "entropy", "egl", "duration")


def _variant(settings: Settings, name: str) -> Settings:
    return replace(settings, loss_prediction=replace(settings.loss_prediction, **VARIANTS[name]))


# ---------------------------------------------------------------- joint models


def _joint_config(settings: Settings, variant: str, seed: int) -> dict:
    options = as_dict(_variant(settings, variant).loss_prediction)
    for name in ("strategies", "rounds", "target", "variants"):
        del options[name]
    return {
        "step": "joint",
        "features": fingerprint(experiment._features_config(settings)),
        "model": as_dict(settings.model),
        "training": as_dict(settings.training),
        "loss_prediction": options,
        "seed": seed,
        "code": code("text", "features", "model", "ctc", "training", "metrics", "joint"),
    }


def joint_model(settings: Settings, variant: str, seed: int, look: bool = False) -> Path | None:
    """Train one seed's joint recogniser on the base set; with ``look`` only find it.

    Folder: as :func:`alspeech.experiment.base_model`'s; ``predicted.csv``, true losses of the test
    utterances beside what predicts them; ``entropy.csv``, the pool's scores by a method that the
    rounds do without and the rankings are held against.
    """

    def compute(folder: Path) -> None:
        data = experiment.prepare(settings)
        torch.manual_seed(seed)  # initial weights
        model = _empty(settings, variant, len(data.alphabet))
        options = {"epochs": settings.training.base_epochs, "rate": settings.training.base_rate}
        _train_and_test(folder, settings, data, model, data.split("base"), seed, options)
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
        predicted = predictions(model, data, data.split("test"), seed, egl=variant == "joint")
        predicted.to_csv(folder / "predicted.csv", index=False)
        entropy = score(model, data.store, data.split("pool"), "entropy")
        entropy.to_csv(folder / "entropy.csv")

    config = _joint_config(settings, variant, seed)
    return stored(CELLS, f"{variant}-seed{seed}", config, None if look else compute, resume=True)


def _empty(settings: Settings, variant: str, symbols: int) -> JointRecogniser:
    options = _variant(settings, variant).loss_prediction
    return JointRecogniser(settings.model, options, symbols).to(experiment._device())


def _load(settings: Settings, variant: str, folder: Path) -> JointRecogniser:
    model = _empty(settings, variant, len(experiment.prepare(settings).alphabet))
    weights = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def load_joint(settings: Settings, seed: int, variant: str = "joint") -> JointRecogniser:
    """One seed's joint recogniser, in evaluation mode."""
    return _load(settings, variant, joint_model(settings, variant, seed))


def _train_and_test(folder, settings, data, model, train, seed, options) -> None:
    """As the experiment does, with the joint loss; says how many losses taught the predictor
    nothing."""
    experiment._train_and_test(
        folder, settings, data, model, train, seed, {"objective": objective, **options}
    )
    frames = train["utt_id"].map(data.store.frames).map(model.recogniser.frames)
    labels = train["text"].map(data.alphabet.encode)
    left_out = sum(not fits(row, T) for row, T in zip(labels, frames, strict=True))
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", {**metrics, "targets_left_out": left_out})


@torch.no_grad()
def predictions(model, data, utterances: pd.DataFrame, seed: int, egl=True) -> pd.DataFrame:
    """A row an utterance: ``utt_id``, the true loss (``true_token``, ``true_utterance``, nats), the
    predicted one, and what else may tell of it (``PREDICTORS``; EGL, which costs most, if asked).
    """
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for batch in data.store.batches(utterances, 32, data.alphabet.encode):
        batch = batch.to(device)
        part = {"utt_id": batch.utt_ids}
        for name, values in (
            ("true", model.true_losses(batch.features, batch.labels)),
            ("predicted", model.predicted_losses(batch.features)),
        ):
            part |= {f"{name}_{t}": values[:, i].tolist() for i, t in enumerate(TARGETS)}
        for name in set(PREDICTORS) & set(ACQUISITIONS) - {"loss_prediction"}:
            if name == "egl" and not egl:
                continue
            part[name] = ACQUISITIONS[name](model, batch).tolist()
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts).set_index("utt_id").loc[utterances["utt_id"]].reset_index()
    table["duration"] = utterances["duration"].to_numpy()
    table["loss_prediction"] = table["predicted_token"]
    columns = [c for c in table if c not in PREDICTORS]
    return table.reindex(columns=[*columns, *PREDICTORS]).assign(seed=seed)


# ---------------------------------------------------------------- rounds


def _scoring(settings: Settings, strategy: str, seed: int) -> dict:
    return experiment._score_options(settings, strategy, seed)


def _round_config(settings: Settings, strategy: str, number: int, seed: int) -> dict:
    """Of round ``number`` (from 1): the one before it, and what it asks of the pool."""
    before = _joint_config(settings, "joint", seed)
    if number > 1:
        before = _round_config(settings, strategy, number - 1, seed)
    return {
        "step": "round",
        "before": fingerprint(before),
        "strategy": strategy,
        "options": _scoring(settings, strategy, seed),
        "percent": settings.loss_prediction.rounds[number - 1],
        "code": code("acquisition", "gradients", "decoding", "ctc", "querying", "joint"),
    }


def round_(
    settings: Settings, strategy: str, number: int, seed: int, look: bool = False
) -> Path | None:
    """Score what is left of the pool, have the best labelled, train on from the joint model.

    Folder: ``scores.csv``, ``queried.csv`` (ids, in the order of the rounds), and as
    :func:`joint_model`'s. Number 0 is the joint model itself.
    """
    if number == 0:
        return joint_model(settings, "joint", seed, look)

    def compute(folder: Path) -> None:
        data = experiment.prepare(settings)
        pool = data.split("pool").set_index("utt_id", drop=False)
        before = round_(settings, strategy, number - 1, seed)
        chosen = queried(before)
        left = pool.drop(index=chosen).reset_index(drop=True)
        if not (folder / "scores.csv").exists():  # a killed run may have left them
            model = _load(settings, "joint", before)
            scores = score(model, data.store, left, strategy, **_scoring(settings, strategy, seed))
            write_csv(folder / "scores.csv", scores.reset_index())
        scores = read_csv(folder / "scores.csv").set_index("utt_id")[strategy]
        wanted = round(len(pool) * settings.loss_prediction.rounds[number - 1] / 100)
        order = rank(scores).sort_values().index
        chosen += list(order[: max(1, wanted - len(chosen))])
        write_csv(folder / "queried.csv", pd.DataFrame({"utt_id": chosen}))
        train = pd.concat([data.split("base"), pool.loc[sorted(chosen)]], ignore_index=True)
        _train_on(folder, settings, data, train, seed)

    config = _round_config(settings, strategy, number, seed)
    name = f"round{number}-{strategy}-seed{seed}"
    return stored(CELLS, name, config, None if look else compute, resume=True)


def whole_pool(settings: Settings, seed: int, look: bool = False) -> Path | None:
    """Train on from the joint model with every label of the pool."""

    def compute(folder: Path) -> None:
        data = experiment.prepare(settings)
        train = pd.concat([data.split("base"), data.split("pool")], ignore_index=True)
        _train_on(folder, settings, data, train, seed)

    config = {"step": "whole pool", "before": fingerprint(_joint_config(settings, "joint", seed))}
    name = f"round-{ALL}-seed{seed}"
    return stored(CELLS, name, config, None if look else compute, resume=True)


def _train_on(folder, settings, data, train, seed) -> None:
    model = load_joint(settings, seed)
    options = {"epochs": settings.training.epochs, "rate": settings.training.rate}
    _train_and_test(folder, settings, data, model, train, seed, options)
    write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))


def queried(folder: Path) -> list[str]:
    """Ids that had been labelled by the end of a round, earliest first; none before the first."""
    path = folder / "queried.csv"
    return list(read_csv(path)["utt_id"]) if path.exists() else []


# ---------------------------------------------------------------- everything


@dataclass(frozen=True)
class Results:
    """The study's tables. ``curves`` has a row a strategy, round and seed; ``variants`` one a
    recogniser and seed; ``predictions`` one a recogniser, seed and test utterance; ``scores`` one a
    seed and pool utterance (of the first round)."""

    curves: pd.DataFrame
    variants: pd.DataFrame
    predictions: pd.DataFrame
    scores: pd.DataFrame
    folder: Path


def run(settings: Settings) -> Results:
    """Joint models, rounds and tables; what is done already is only read.

    Writes ``results/<run>/lp_curves.csv``, ``lp_variants.csv``, ``lp_predictions.csv``,
    ``lp_scores.csv`` and ``provenance_loss_prediction.json``.
    """
    begun, options = time.perf_counter(), settings.loss_prediction
    check_strategies(options.strategies)
    output = experiment.results_folder(settings)
    data, seeds = experiment.prepare(settings), range(settings.seeds)
    batches = data.store.groups(data.split("base"), settings.training.batch)
    alone = sum(len(rows) == 1 for rows in batches)
    if alone and options.criterion == "ranking":
        print(f"{alone} of {len(batches)} base batches hold one utterance, which makes no pair to "
              "rank: smooth-L1 there", flush=True)  # fmt: skip
    models = [(variant, seed) for seed in seeds for variant in options.variants]
    folders = experiment.in_parallel(joint_model, settings, models, "joint models")
    cells = []
    for number in range(1, len(options.rounds) + 1):
        tasks = [(strategy, number, seed) for seed in seeds for strategy in options.strategies]
        # those that take more options do more work; they go first, no core ends up alone
        tasks.sort(key=lambda task: -len(_scoring(settings, task[0], 0)))
        done = experiment.in_parallel(round_, settings, tasks, f"round {number}")
        cells += list(zip(tasks, done, strict=True))
    everything = [(seed,) for seed in seeds]
    ends = experiment.in_parallel(whole_pool, settings, everything, "whole pool")
    tables = {
        "lp_curves": _curves(settings, data, cells, ends),
        "lp_variants": _variants(settings, models, folders),
        "lp_predictions": _predictions(data, models, folders),
        "lp_scores": _scores(settings, data, cells),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_csv(output / f"{name}.csv", table)
    folders += [folder for _, folder in cells] + ends
    record = output / "provenance_loss_prediction.json"
    experiment.write_provenance(record, settings, folders, begun)
    return Results(*tables.values(), output)


def _metrics(folder: Path) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    names = ("ctc", "cer", "wer", "epochs", "infinite_ctc", "targets_left_out")
    return {name: metrics[name] for name in names}


def _curves(settings: Settings, data, cells: list, ends: list) -> pd.DataFrame:
    pool = data.split("pool").set_index("utt_id")["duration"]
    rows = []
    for seed, folder in enumerate(ends):
        base = joint_model(settings, "joint", seed)
        rows += [(BASE, 0, seed, [], base), (ALL, 100, seed, list(pool.index), folder)]
    for (strategy, number, seed), folder in cells:
        percent = settings.loss_prediction.rounds[number - 1]
        rows.append((strategy, percent, seed, queried(folder), folder))
    order = {name: i for i, name in enumerate((BASE, *settings.loss_prediction.strategies, ALL))}
    rows.sort(key=lambda row: (order[row[0]], row[1], row[2]))
    return pd.DataFrame(
        {
            "corpus": settings.corpus,
            "preset": settings.preset,
            "strategy": strategy,
            "query_percent": percent,
            "seed": seed,
            "n_utterances": len(chosen),
            "hours": pool.loc[chosen].sum() / 3600,
            **_metrics(folder),
        }
        for strategy, percent, seed, chosen, folder in rows
    )


def _variants(settings: Settings, models: list, folders: list) -> pd.DataFrame:
    """Error rates and quality of prediction (see :func:`quality`) of every recogniser and seed."""
    rows = []
    for (variant, seed), folder in zip(models, folders, strict=True):
        found = quality(read_csv(folder / "predicted.csv"), "loss_prediction")
        if _variant(settings, variant).loss_prediction.weight == 0:
            found = dict.fromkeys(found, float("nan"))  # a predictor that learned nothing
        rows.append({"variant": variant, "seed": seed, **_metrics(folder), **found})
    return pd.DataFrame(rows)


def _predictions(data, models: list, folders: list) -> pd.DataFrame:
    tables = [
        read_csv(folder / "predicted.csv").assign(variant=variant)
        for (variant, _), folder in zip(models, folders, strict=True)
    ]
    known = ["utt_id", *(c for c in ("kind", "speaker", "snr_db", "text") if c in data.manifest)]
    return pd.concat(tables, ignore_index=True).merge(data.split("test")[known], on="utt_id")


def _scores(settings: Settings, data, cells: list) -> pd.DataFrame:
    """Scores of the whole pool by the joint model: those of the first round."""
    pool = data.split("pool")
    known = ["utt_id", *(c for c in ("kind", "duration", "text") if c in pool)]
    tables = {}
    for seed in range(settings.seeds):
        entropy = read_csv(joint_model(settings, "joint", seed) / "entropy.csv").set_index("utt_id")
        tables[seed] = pool[known].set_index("utt_id").join(entropy)
    for strategy in settings.loss_prediction.strategies:
        for (name, number, seed), folder in cells:
            if (name, number) == (strategy, 1):
                scores = read_csv(folder / "scores.csv").set_index("utt_id")
                tables[seed] = tables[seed].join(scores)
    return pd.concat(
        [table.reset_index().assign(seed=seed) for seed, table in tables.items()], ignore_index=True
    )


# ---------------------------------------------------------------- how good is a prediction?


def quality(table: pd.DataFrame, predictor: str, target: str = "token") -> dict:
    """Of one seed's rows of ``predictions``: ``spearman`` with the true loss, and ``explained``,
    the share of the variance of its logarithm that the best straight line in the predictor's
    logarithm takes away (0 for the mean)."""
    usable = table[np.isfinite(table[f"true_{target}"])]
    x, y = (np.log(usable[c].clip(lower=1e-6)) for c in (predictor, f"true_{target}"))
    if x.nunique() < 2:
        return {"spearman": 0.0, "explained": 0.0}
    return {"spearman": spearman(x, y), "explained": np.corrcoef(x, y)[0, 1] ** 2}


def qualities(table: pd.DataFrame, target: str = "token") -> pd.DataFrame:
    """:func:`quality` of every predictor: mean and 95 % interval over seeds; and the mean loss,
    which knows nothing of the utterance."""
    rows = []
    for predictor in (*PREDICTORS, "mean"):
        known = [
            quality(part.assign(mean=1.0), predictor, target) for _, part in table.groupby("seed")
        ]
        row = {"predictor": predictor}
        for name in ("spearman", "explained"):
            values = [abs(k[name]) if predictor == "duration" else k[name] for k in known]
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(values)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)
