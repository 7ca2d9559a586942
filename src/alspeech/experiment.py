"""The experiment: base models, scores, cells of the grid, and the tables made of them.

    corpus → features → base model (a seed) → scores (a seed, a strategy) → cell (…, a percentage)

Each step is a folder of the store (store.py), found by the content of its configuration: a person
can read it (``config.json``, ``metrics.json``, CSVs), and a finished one is never computed twice. A
killed run goes on from the last checkpoint of what it was computing.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import platform
import subprocess
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from . import corpus as corpora
from . import readers, synthesis, validation
from .acquisition import ACQUISITIONS, check_strategies
from .config import LABELLED, ROOT, Settings, UserError, as_dict, load_settings
from .features import FeatureStore, extract
from .metrics import evaluate, summarise
from .model import DeepSpeech2
from .processes import cores, end_with_parent, interrupts_held, keep_freed_memory
from .querying import query, score
from .statistics import interval
from .store import (
    Checkpoint,
    code,
    fingerprint,
    intact,
    read_csv,
    stored,
    sweep,
    torch_bytes,
    trust,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)
from .text import ENGLISH, Alphabet, read_alphabet
from .training import fit

CELLS = ROOT / "build" / "cells"
BASE, ALL = "base", "all"  # the strategies that query nothing and everything

# ---------------------------------------------------------------- corpus and features


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: its folder, manifest, features and alphabet."""

    folder: Path
    manifest: pd.DataFrame
    store: FeatureStore
    alphabet: Alphabet

    @property
    def report(self) -> pd.DataFrame:
        """What the splits hold, and what was set aside, changed and noticed on the way."""
        return validation.report(self.folder, self.manifest)

    def split(self, name: str) -> pd.DataFrame:
        return self.manifest[self.manifest["split"] == name].reset_index(drop=True)


def _found(settings: Settings) -> readers.Found:
    return readers.read(settings.corpus, settings.data, settings.build.outside)


def _build(folder: Path, settings: Settings) -> None:
    if settings.corpus == "synthetic":
        synthesis.build(folder, settings.build, cores())
    elif settings.corpus == "fsdd":
        corpora.build_fsdd(folder, settings.build, settings.data)
    else:
        people = ROOT / "build" / settings.run
        validation.build(folder, _found(settings), settings, cores(), people)


@functools.lru_cache  # a real corpus has thousands of files to look at
def _corpus_config(settings: Settings) -> dict:
    if settings.corpus in LABELLED:
        raise UserError(
            f"CORPUS={settings.corpus} has labels but no transcripts: use it with make aloe"
        )
    config = {"corpus": settings.corpus, "build": as_dict(settings.build)}
    if settings.corpus in readers.READERS:
        model = as_dict(settings.model)
        # what decides whether a transcript fits its audio
        shape = ("sample_rate", "hop", "round_frames", "kernels", "strides")
        return {
            **config,
            "data": fingerprint(_found(settings).fingerprint()),
            "model": {name: model[name] for name in shape},
            "code": code("corpus", "readers", "validation", "text"),
        }
    files = []
    if settings.corpus == "fsdd":
        corpora.check_data(settings.corpus, settings.data)
        files = sorted(map(str, Path(settings.data).rglob("*.wav")))
    files = readers.states(files)
    return {**config, "data": fingerprint(files), "code": code("corpus", "phrases", "synthesis")}


def _features_config(settings: Settings) -> dict:
    model = as_dict(settings.model)
    inputs = ("features", "bins", "sample_rate", "window", "hop", "round_frames")
    return {
        "corpus": fingerprint(_corpus_config(settings)),
        **{name: model[name] for name in inputs},
        "code": code("features"),
    }


def _corpus_folder(settings: Settings) -> Path:
    return stored(
        ROOT / "data", settings.corpus, _corpus_config(settings),
        lambda folder: _build(folder, settings),
        resume=settings.corpus == "synthetic",
    )  # fmt: skip


def prepare(settings: Settings) -> Corpus:
    """Build the corpus and its features, or find them done."""
    check_strategies(settings.strategies)
    folder = _corpus_folder(settings)
    manifest = corpora.read_manifest(folder / "manifest.jsonl")
    features = stored(
        ROOT / "data", f"{settings.corpus}-features", _features_config(settings),
        lambda features: extract(features, manifest, settings.model),
        resume=True,
    )  # fmt: skip
    return Corpus(folder, manifest, FeatureStore(features), read_alphabet(folder))


def check(settings: Settings) -> str:
    """Prepare the corpus and say, for a person to read, what came of it.

    Where utterances were set aside, ``build/<run>/rejected.csv`` lists them.
    """
    data = prepare(settings)
    text = data.report.to_string()
    rejected = data.folder / "rejected.csv"
    copy = ROOT / "build" / settings.run / rejected.name
    copy.unlink(missing_ok=True)  # what an earlier check said
    if rejected.exists() and len(table := pd.read_csv(rejected, dtype=str, keep_default_na=False)):
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_csv(copy, table)
        text += f"\n{len(table)} utterances are set aside: see {copy.relative_to(ROOT)}"
    return text


# ---------------------------------------------------------------- the steps of one seed


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _base_config(settings: Settings, seed: int) -> dict:
    config = {
        "step": "base",
        "features": fingerprint(_features_config(settings)),
        "model": as_dict(settings.model),
        "training": as_dict(settings.training),
        "seed": seed,
        "code": code("text", "features", "model", "ctc", "training", "metrics"),
    }
    if settings.start:
        config["start"] = fingerprint(_base_config(load_settings(settings.start), seed))
    return config


def base_model(settings: Settings, seed: int, look: bool = False) -> Path | None:
    """Train one seed's base model on the base set; with ``look`` only find it (None: not there).

    Folder: ``model.pt`` (weights), ``history.csv`` (a row a pass), ``test.csv`` (a row a test
    utterance), ``metrics.json``.
    """

    def compute(folder: Path) -> None:
        data = prepare(settings)
        torch.manual_seed(seed)  # initial weights
        model = DeepSpeech2(settings.model, len(data.alphabet)).to(_device())
        if settings.start:
            _start(model, settings, data.alphabet, seed)
        options = {"epochs": settings.training.base_epochs, "rate": settings.training.base_rate}
        _train_and_test(folder, settings, data, model, data.split("base"), seed, options)
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))

    config = _base_config(settings, seed)
    return stored(CELLS, f"base-seed{seed}", config, None if look else compute, resume=True)


def _start(model: DeepSpeech2, settings: Settings, alphabet: Alphabet, seed: int) -> None:
    """Give a model the weights of the same seed's base model on the embedded corpus."""
    other = load_settings(settings.start)
    if other.model != settings.model or alphabet.characters != ENGLISH.characters:
        raise UserError(
            f"configs/{settings.preset}.yaml: start: {settings.start} needs its model and the "
            "English alphabet: take over its 'model', or leave 'start' out"
        )
    model.load_state_dict(load_base(other, seed).state_dict())


def load_base(settings: Settings, seed: int) -> DeepSpeech2:
    """One seed's base model, in evaluation mode."""
    alphabet = read_alphabet(_corpus_folder(settings))
    model = DeepSpeech2(settings.model, len(alphabet))
    path = base_model(settings, seed) / "model.pt"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.to(_device()).eval()


def _train_and_test(folder, settings, data: Corpus, model, train, seed, options) -> None:
    checkpoint = Checkpoint(folder / "checkpoint")
    history = fit(
        model, data.store, train, data.split("validation"), data.alphabet, settings.training,
        seed=seed, checkpoint=checkpoint, **options,
    )  # fmt: skip
    begun = time.perf_counter()
    history.drop(columns="seconds").to_csv(folder / "history.csv", index=False)
    tested = evaluate(model, data.store, data.split("test"), data.alphabet)
    tested.to_csv(folder / "test.csv", index=False)
    metrics = {
        **summarise(tested),
        "epochs": len(history),
        "train_utterances": len(train),
        "seconds": round(history["seconds"].iloc[-1] + time.perf_counter() - begun, 2),
    }
    write_json(folder / "metrics.json", metrics)
    checkpoint.remove()


def _score_options(settings: Settings, strategy: str, seed: int) -> dict:
    """What the settings offer an acquisition function, as far as it takes it."""
    offered = {
        "seed": seed,
        "labelings": settings.labelings,
        "method": settings.egl_method,
        "directions": settings.directions,
        "beam": settings.labelings,
        "target": settings.loss_prediction.target,
    }
    taken = inspect.signature(ACQUISITIONS[strategy]).parameters
    return {name: value for name, value in offered.items() if name in taken}


def pool_scores(settings: Settings, strategy: str, seed: int, look: bool = False) -> Path | None:
    """Score the pool with one seed's base model. Folder: ``scores.csv``, ``metrics.json``."""
    options = _score_options(settings, strategy, seed)
    config = {
        "step": "scores",
        "base": fingerprint(_base_config(settings, seed)),
        "strategy": strategy,
        "options": options,
        "code": code("acquisition", "gradients", "decoding", "ctc", "querying"),
    }

    def compute(folder: Path) -> None:
        score_pool(folder, prepare(settings), load_base(settings, seed), strategy, options)

    name = f"scores-{strategy}-seed{seed}"
    return stored(CELLS, name, config, None if look else compute, resume=True)


def score_pool(folder: Path, data: Corpus, model, strategy: str, options: dict) -> None:
    """Score the pool into ``folder``; goes on from what an interrupted call left there."""
    begun, checkpoint = time.perf_counter(), Checkpoint(folder / "checkpoint")
    earlier = checkpoint.load() or {"scores": {}, "seconds": 0.0}
    seconds = lambda: earlier["seconds"] + time.perf_counter() - begun  # noqa: E731

    def report(scores: dict) -> None:
        if checkpoint.due():
            checkpoint.save({"scores": scores, "seconds": seconds()})

    scores = score(
        model, data.store, data.split("pool"), strategy,
        known=earlier["scores"], report=report, **options,
    )  # fmt: skip
    scores.to_csv(folder / "scores.csv")
    metrics = {"seconds": round(seconds(), 2), "utterances": len(scores)}
    write_json(folder / "metrics.json", metrics)
    checkpoint.remove()


def read_scores(settings: Settings, strategy: str, seed: int) -> pd.Series:
    """One seed's scores of the pool, indexed by ``utt_id``."""
    path = pool_scores(settings, strategy, seed) / "scores.csv"
    return read_csv(path).set_index("utt_id")[strategy]


def queried(settings: Settings, strategy: str, percent: float, seed: int) -> list[str]:
    """Ids of the pool utterances that a strategy has labelled at a percentage, best first."""
    if strategy == ALL:
        return list(prepare(settings).split("pool")["utt_id"])
    return query(read_scores(settings, strategy, seed), percent)


def cell(settings: Settings, strategy: str, percent: float, seed: int, look=False) -> Path | None:
    """Go on from the base model with base + queried utterances.

    Folder as :func:`base_model`'s, without the weights. The strategies ``base`` (the base model
    itself) and ``all`` are the ends.
    """
    if strategy == BASE:
        return base_model(settings, seed, look)
    chosen = queried(settings, strategy, percent, seed)
    config = {
        "step": "cell",
        "base": fingerprint(_base_config(settings, seed)),
        "strategy": strategy,
        "percent": percent,
        "queried": fingerprint({"utt_ids": sorted(chosen)}),
    }

    def compute(folder: Path) -> None:
        data = prepare(settings)
        model = load_base(settings, seed)
        pool = data.split("pool").set_index("utt_id", drop=False)
        train = pd.concat([data.split("base"), pool.loc[sorted(chosen)]], ignore_index=True)
        options = {"epochs": settings.training.epochs, "rate": settings.training.rate}
        _train_and_test(folder, settings, data, model, train, seed, options)

    name = f"{strategy}-{percent:g}-seed{seed}"
    return stored(CELLS, name, config, None if look else compute, resume=True)


# ---------------------------------------------------------------- the grid


def grid(settings: Settings) -> list[tuple]:
    """(strategy, percent, seed) of every cell, those that train longest first."""
    cells = [(ALL, 100, seed) for seed in range(settings.seeds)]
    for percent in sorted(settings.query_percents, reverse=True):
        for seed in range(settings.seeds):
            cells += [(strategy, percent, seed) for strategy in settings.strategies]
    return cells + [(BASE, 0, seed) for seed in range(settings.seeds)]


def _worker(step, settings, arguments, parent, unharmed):
    """Runs in a worker process, which has one core to itself (or in the parent, if that has one).

    ``unharmed`` are the folders that the parent has found intact.
    """
    if os.getpid() != parent:
        _once_a_worker(parent)
        trust(unharmed)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        return step(settings, *arguments)
    except Exception as error:
        *what, seed = arguments
        error.add_note(" ".join(map(str, [step.__name__.replace("_", " "), *what, "seed", seed])))
        raise


_once_a_worker = functools.cache(end_with_parent)


def in_parallel(step, settings: Settings, tasks: list[tuple], label: str) -> list[Path]:
    """``step(settings, *task)`` for every task, one process a core (one in all on a GPU), with a
    progress bar that shows the time left. Finished tasks are not handed out again.

    An exception of a worker is raised here, with a note of its step and task.
    """
    missing = [task for task in tasks if step(settings, *task, look=True) is None]
    if missing:
        jobs = 1 if torch.cuda.is_available() else min(cores(), len(missing))
        engine = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        known = (os.getpid(), intact())
        calls = (joblib.delayed(_worker)(step, settings, task, *known) for task in missing)
        with tqdm(total=len(missing), desc=label, unit="task") as bar, warnings.catch_warnings():
            # joblib replaces a worker whose memory has grown (oneDNN keeps a kernel a shape), and
            # warns; the tasks are not touched
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            with interrupts_held():
                results = engine(calls)
            for _ in results:
                bar.update()
    return [step(settings, *task) for task in tasks]


def base_models(settings: Settings) -> list[Path]:
    """The base model of every seed, trained if it is not there yet."""
    return in_parallel(base_model, settings, [(s,) for s in range(settings.seeds)], "base models")


def all_scores(settings: Settings) -> list[Path]:
    """The pool's scores by every strategy and seed, computed if they are not there yet."""
    base_models(settings)
    # those that take more options do more work; they go first, so that no core ends up alone
    costly_first = sorted(
        settings.strategies, key=lambda name: len(_score_options(settings, name, 0)), reverse=True
    )
    tasks = [(strategy, seed) for strategy in costly_first for seed in range(settings.seeds)]
    return in_parallel(pool_scores, settings, tasks, "scores")


@dataclass(frozen=True)
class Results:
    """The tables of a run. ``curves`` has a row a cell, ``scores`` a row a seed and utterance."""

    curves: pd.DataFrame
    scores: pd.DataFrame
    folder: Path


def run(settings: Settings) -> Results:
    """Everything from the corpus to the tables; what is done already is only read.

    Writes ``results/<run>/error_curves.csv``, ``scores.csv`` and ``provenance.json``.
    """
    begun = time.perf_counter()
    output = results_folder(settings)
    data = prepare(settings)
    scored = all_scores(settings)
    cells = grid(settings)
    folders = in_parallel(cell, settings, cells, "cells")
    curves = _curves(settings, data, cells, folders)
    scores = _scores(settings, data)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "error_curves.csv", curves)
    write_csv(output / "scores.csv", scores)
    write_provenance(output / "provenance.json", settings, folders + scored, begun)
    return Results(curves, scores, output)


def results_folder(settings: Settings) -> Path:
    """Where a run's tables go; what killed runs left unfinished and nobody will need is removed."""
    output = ROOT / "results" / settings.run
    for folder in (ROOT / "data", CELLS, output):
        sweep(folder)
    return output


def _curves(settings: Settings, data: Corpus, cells: list[tuple], folders: list) -> pd.DataFrame:
    durations = data.split("pool").set_index("utt_id")["duration"]
    rows = []
    for (strategy, percent, seed), folder in zip(cells, folders, strict=True):
        chosen = [] if strategy == BASE else queried(settings, strategy, percent, seed)
        metrics = json.loads((folder / "metrics.json").read_text())
        rows.append(
            {
                "corpus": settings.corpus,
                "preset": settings.preset,
                "strategy": strategy,
                "query_percent": percent,
                "seed": seed,
                "ctc": metrics["ctc"],
                "cer": metrics["cer"],
                "wer": metrics["wer"],
                "n_utterances": len(chosen),
                "hours": durations.loc[chosen].sum() / 3600,
                "epochs": metrics["epochs"],
                "infinite_ctc": metrics["infinite_ctc"],
            }
        )
    order = {name: i for i, name in enumerate((BASE, *settings.strategies, ALL))}
    frame = pd.DataFrame(rows)
    return frame.sort_values(
        ["strategy", "query_percent", "seed"],
        key=lambda column: column.map(order) if column.name == "strategy" else column,
    ).reset_index(drop=True)


def _scores(settings: Settings, data: Corpus) -> pd.DataFrame:
    pool = data.split("pool")
    known = ["utt_id", *(c for c in ("kind", "speaker", "snr_db", "duration", "text") if c in pool)]
    parts = []
    for seed in range(settings.seeds):
        part = pool[known].set_index("utt_id")
        for strategy in settings.strategies:
            part = part.join(read_scores(settings, strategy, seed))
        parts.append(part.reset_index().assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def table1(curves: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Table 1: mean and 95 % interval over seeds of CTC, CER and WER by strategy and percentage,
    with the paper's values (``<metric>_paper``) where it has them."""
    rows = []
    for (strategy, percent), part in curves.groupby(["strategy", "query_percent"], sort=False):
        row = {"strategy": strategy, "query_percent": percent, "seeds": len(part)}
        for metric in ("ctc", "cer", "wer"):
            row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = interval(part[metric])
        rows.append(row)
    return pd.DataFrame(rows).merge(
        paper, "left", ["strategy", "query_percent"], suffixes=("", "_paper")
    )


def write_table1(output: Path, curves: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Write ``table1.csv`` and, for reading, ``table1.md``; returns the table."""
    table = table1(curves, paper)
    lines = [
        "| strategy | query (%) | CTC (nats) | CER (%) | WER (%) | paper: CTC | CER | WER |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in table.to_dict("records"):
        ours = [_with_interval(row, metric) for metric in ("ctc", "cer", "wer")]
        papers = [row[f"{metric}_paper"] for metric in ("ctc", "cer", "wer")]
        papers = ["" if value != value else f"{value:.2f}" for value in papers]
        cells = [row["strategy"], f"{row['query_percent']:g}", *ours, *papers]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = int(table["seeds"].max())
    lines.append(f"\nMean over {seeds} seeds; in brackets the 95 % interval of the mean.")
    write_csv(output / "table1.csv", table)
    write_text(output / "table1.md", "\n".join(lines) + "\n")
    return table


def _with_interval(row: dict, metric: str) -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    bounds = "" if low != low else f" [{low:.1f}, {high:.1f}]"
    return f"{row[metric]:.2f}{bounds}"


# ---------------------------------------------------------------- provenance


def write_provenance(path: Path, settings: Settings, folders: list[Path], begun: float) -> None:
    """What a result came from: config, seeds, versions, hardware, times and commit.

    Nothing is written where the record is newer than all ``folders`` that the result is made of.
    ``begun`` is the run's first reading of ``time.perf_counter``.
    """
    newest = max(folder.stat().st_mtime for folder in folders)
    if path.exists() and path.stat().st_mtime >= newest:
        return
    seconds = [json.loads((f / "metrics.json").read_text())["seconds"] for f in set(folders)]
    record = {
        "run": settings.run,
        "config": {**as_dict(settings), "data": Path(settings.data).name},
        "seeds": list(range(settings.seeds)),
        "wall_seconds": round(time.perf_counter() - begun, 1),
        "process_seconds": round(float(np.sum(seconds)), 1),
        "cells": len(set(folders)),
        **surroundings(),
    }
    write_json(path, record)


def surroundings() -> dict:
    """When, from which commit, with which versions and on which machine something was measured."""
    packages = ("torch", "torchaudio", "numpy", "numba", "pandas", "jiwer", "espeakng-loader")
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "configs")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "hardware": {
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
            "machine": platform.machine(),
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.system(),
        },
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        out = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout
    return out.stdout.strip()
