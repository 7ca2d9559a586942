"""ALOE: few labels on a frozen encoder (Lee, Saeed and Bertozzi, ICASSP 2023).

    clips → embeddings → linear classifier → acquisition → more labels → a fresh classifier → …

A frozen encoder (encoders.py) turns every clip into a vector. A linear softmax classifier is
trained on five labelled clips a class; it scores the pool; the clips that score highest are
labelled; and another classifier begins from new initial weights (few_labels.py). The encoder never
learns, so a step costs milliseconds, and all runs, strategies and modes of a task advance side by
side. Here are the steps and the tables.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from ..experiment import base_model, load_base
from ..speech import clips
from ..speech.readers import states
from ..statistics import bounds, verdict
from ..workshop.config import AloeConfig, Settings, load_settings
from ..workshop.errors import UserError, one_of
from ..workshop.provenance import publish, tidy
from ..workshop.steps import Step, in_parallel
from ..workshop.store import Checkpoint, fingerprint, write_csv
from .encoders import ENCODERS, PRETRAINED, embed, weights_file
from .few_labels import ALL, MODES, RANDOM, SCORES, plateau, simulate, standardised

PART = 500  # clips a task of embedding


def embedded(settings: Settings) -> Settings:
    """The settings of the run on the embedded corpus whose recogniser serves as encoder."""
    named = settings.scenario if settings.named and settings.corpus == "synthetic" else ""
    return load_settings(settings.start or settings.preset, scenario=named).of("aloe")


def embeddings_of(settings: Settings, encoder: str) -> tuple[Step, ...]:
    """The steps that embed the clips, PART of them each, in order."""
    one_of("encoder", encoder, ENCODERS)
    weights = encoder in PRETRAINED and settings.aloe.weights and weights_file(settings, encoder)
    state = list(states([str(weights)]).values()) if weights else []
    return _embeddings_of(settings, encoder, embedded(settings), json.dumps(state))


@functools.lru_cache(maxsize=16)  # every cell goes on from all parts
def _embeddings_of(settings: Settings, encoder: str, other: Settings, weights: str) -> tuple:
    load, table = load_base if encoder.startswith("recogniser") else None, clips.read(settings)[0]
    files = states(list(table["path"].unique()))

    def part(number: int) -> Step:
        rows = table.iloc[number * PART : (number + 1) * PART]
        known = rows[["clip_id", "path", "offset", "duration"]].astype(str).to_dict("list")
        known["files"] = [files[path] for path in rows["path"]]

        def compute(folder: Path) -> dict:
            base = load(other, seed=0) if load else None
            vectors = embed(rows, ENCODERS[encoder](settings, base), encoder)
            np.save(folder / "embeddings.npy", vectors.numpy())
            return {"clips": len(rows)}

        return Step(
            f"embeddings-{encoder}-{number}", compute, resume=False,
            given={"encoder": encoder, "clips": fingerprint(known), "weights": weights},
            after=(base_model(other, seed=0),) if load else (),
        )  # fmt: skip

    return tuple(part(number) for number in range(-(-len(table) // PART)))


def embeddings_part(settings: Settings, encoder: str, part: int) -> Step:
    """Embed PART clips. Folder: ``embeddings.npy`` [N, D], ``metrics.json``."""
    return embeddings_of(settings, encoder)[part]


def embeddings(settings: Settings, encoder: str) -> list[Path]:
    """Every clip's embedding, computed if it is not there yet; the parts' folders, in order."""
    if encoder.startswith("recogniser"):
        in_parallel(base_model, embedded(settings), [(0,)], "base model")
    tasks = [(encoder, part) for part in range(len(embeddings_of(settings, encoder)))]
    return in_parallel(embeddings_part, settings, tasks, f"embeddings: {encoder}")


def load(settings: Settings, task: str, encoder: str) -> tuple[clips.Task, np.ndarray]:
    """A task of the corpus, and its clips' embeddings [N, D], standardised over its pool."""
    chosen, parts = clips.task(settings, task), embeddings_of(settings, encoder)
    return chosen, _vectors(chosen, clips.read(settings)[0]["clip_id"], parts)


def _vectors(task: clips.Task, ids: pd.Series, parts: tuple[Step, ...]) -> np.ndarray:
    """A task's embeddings [N, D], of those in ``parts``, which are of the clips ``ids``."""
    vectors = np.concatenate([np.load(part.folder() / "embeddings.npy") for part in parts])
    place = {clip_id: row for row, clip_id in enumerate(ids)}
    own = torch.from_numpy(vectors[[place[clip_id] for clip_id in task.clips["clip_id"]]])
    return standardised(own, own[task.rows("pool")])


def cell(settings: Settings, task: str, encoder: str, run: int) -> Step:
    """One run of the protocol, all strategies and modes. Folder: ``curves.csv``, ``queried.csv``
    (see :func:`few_labels.simulate`), ``metrics.json``.

    Encoders but the first are compared by random and margin, class-aware, only (Table 2).
    """
    config = settings.aloe
    first = encoder == config.encoders[0]
    strategies = config.strategies if first else (RANDOM, "margin")
    modes = MODES if first else MODES[:1]
    # read here: how labels are read may change, what they are is in the key
    chosen, ids = clips.task(settings, task), clips.read(settings)[0]["clip_id"]
    parts = embeddings_of(settings, encoder)

    def compute(folder: Path) -> dict:
        what = (chosen, _vectors(chosen, ids, parts), [run], strategies, modes, config)
        curves, queried = simulate(*what, "stop", Checkpoint(folder))
        write_csv(folder / "curves.csv", curves)
        write_csv(folder / "queried.csv", queried)
        return {}

    protocol = ("steps", "seed_clips", "epochs", "batch", "rate")
    return Step(
        f"aloe-{task}-{encoder}-run{run}", compute,
        after=parts,
        given={
            "task": task, "labels": chosen.fingerprint, "run": run,
            "strategies": strategies, "modes": modes,
            **{name: getattr(config, name) for name in protocol},
        },
    )  # fmt: skip


def runs_table(curves: pd.DataFrame, config: AloeConfig) -> pd.DataFrame:
    """How each learner ended: a row a task, encoder, mode, strategy and run.

    ``step, labels, validation, test`` at its last step; ``mean_test``, the mean over the steps that
    all learners of its task, encoder and mode have taken; ``stop_step, stop_labels, stop_test``
    where its validation accuracy reached a plateau.
    """
    rows = []
    for (task, encoder, mode), part in curves.groupby(["task", "encoder", "mode"], sort=False):
        learners = part.groupby(["strategy", "run"], sort=False)
        common = learners["step"].max().min()
        for (strategy, run), learner in learners:
            learner = learner.sort_values("step")
            last = learner.iloc[-1]
            stop = learner.iloc[plateau(learner["validation"], config.patience, config.plateau)]
            rows.append({
                "task": task, "encoder": encoder, "mode": mode, "strategy": strategy, "run": run,
                **{name: last[name] for name in ("step", "labels", "validation", "test")},
                "mean_test": learner.loc[learner["step"] <= common, "test"].mean(),
                **{f"stop_{name}": stop[name] for name in ("step", "labels", "test")},
            })  # fmt: skip
    return pd.DataFrame(rows)


def table1(runs: pd.DataFrame, encoder: str) -> pd.DataFrame:
    """Test accuracy at the end by task, mode and strategy, with what random has to do with it.

    ``test`` and ``mean_test`` are means over runs with 95 % intervals; ``lead`` and ``mean_lead``
    are those of the difference to random, paired by run.
    """
    rows = []
    own = runs[runs["encoder"] == encoder]
    for (task, mode), part in own.groupby(["task", "mode"], sort=False):
        wide = {name: part.pivot_table(name, "run", "strategy") for name in ("test", "mean_test")}
        for strategy, ended in part.groupby("strategy", sort=False):
            row = {"task": task, "mode": mode, "strategy": strategy, "runs": len(ended)}
            row |= {name: ended[name].mean() for name in ("step", "labels")}
            compared = strategy not in (RANDOM, ALL)
            for name, lead in (("test", "lead"), ("mean_test", "mean_lead")):
                row |= bounds(name, ended[name])
                if compared:
                    row |= bounds(lead, wide[name][strategy] - wide[name][RANDOM])
            if compared:
                row["verdict"] = verdict(-row["mean_lead_high"], -row["mean_lead_low"])
            rows.append(row)
    return pd.DataFrame(rows)


def as_printed(table: pd.DataFrame, classes: dict) -> pd.DataFrame:
    """:func:`table1` in the form of the paper's Table 1: a row a task, random and uncertainty
    (smallest margin) in both modes; ``classes`` is each task's number of classes."""
    mean = table.pivot_table("test", "task", ["mode", "strategy"], sort=False)
    table = pd.DataFrame({"classes": mean.index.map(classes), "all labels": mean[ALL, ALL]})
    for mode in MODES:
        table[f"{mode}_random"] = mean[mode, RANDOM]
        table[f"{mode}_uncertainty"] = mean[mode, "margin"]
    return table.rename_axis("dataset").reset_index()


def table2(runs: pd.DataFrame) -> pd.DataFrame:
    """Encoders compared, class-aware: mean and deviation over runs of the test accuracy at the end,
    as the paper's Table 2 has them, and the bound with all labels."""
    rows = []
    for (task, encoder), part in runs.groupby(["task", "encoder"], sort=False):
        row = {"task": task, "encoder": encoder}
        for name, strategy in (("random", RANDOM), ("uncertainty", "margin"), ("all", ALL)):
            own = part[(part["strategy"] == strategy) & part["mode"].isin([MODES[0], ALL])]
            row |= {name: own["test"].mean(), f"{name}_sd": own["test"].std()}
        aware = part[part["mode"] == MODES[0]].pivot_table("mean_test", "run", "strategy")
        rows.append(row | bounds("mean_lead", aware["margin"] - aware[RANDOM]))
    return pd.DataFrame(rows)


def curves_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Figures 2 and 3 in numbers: mean and 95 % interval over runs of the validation accuracy, mean
    of the test accuracy and of the labels, by task, encoder, mode, strategy and step."""
    keys = ["task", "encoder", "mode", "strategy", "step"]
    return pd.DataFrame([
        {
            **dict(zip(keys, values, strict=True)), "runs": len(part),
            "labels": part["labels"].mean(), **bounds("validation", part["validation"]),
            "test": part["test"].mean(),
        }
        for values, part in curves.groupby(keys, sort=False)
    ])  # fmt: skip


def ended_early(runs: pd.DataFrame, config: AloeConfig) -> list[str]:
    """One line for each task whose pool was used up before the last step."""
    short = runs[(runs["step"] < config.steps) & (runs["strategy"] != ALL)]
    return [
        f"task {task}, class-{mode}: the pool of {part['labels'].max()} clips is used up after "
        f"{part['step'].min()} to {part['step'].max()} of {config.steps} steps, where curves end"
        for (task, mode), part in short.groupby(["task", "mode"], sort=False)
    ]


def check_names(config: AloeConfig) -> None:
    """Raise ``UserError`` for a strategy or an encoder that there is not."""
    for name in config.strategies:
        one_of("strategy", name, (RANDOM, *SCORES))
    for name in config.encoders:
        one_of("encoder", name, ENCODERS)


def check(settings: Settings) -> str:
    """Read the corpus's labels and say, for a person to read, what its tasks are."""
    check_names(settings.aloe)
    settings = settings.of("aloe")
    rows, notes = [], [*clips.set_aside(settings)]
    try:
        tasks = clips.tasks(settings)
    except UserError as error:  # a class may be too small for want of those
        raise UserError("; ".join([str(error), *notes])) from None
    for name, task in tasks.items():
        sizes = {split: len(task.rows(split)) for split in clips.SPLITS}
        rarest = task.clips.iloc[task.rows("pool")]["label"].value_counts().min()
        rows.append({"task": name, "classes": len(task.classes), **sizes, "rarest": rarest})
        notes += task.notes
    return "\n".join([pd.DataFrame(rows).to_string(index=False), *notes])


def run(settings: Settings) -> SimpleNamespace:
    """Everything from the clips to the tables; what is done already is only read.

    Writes ``results/<run>/aloe_curves.csv``, ``aloe_runs.csv``, ``aloe_table1.csv``,
    ``aloe_table2.csv`` and ``provenance_aloe.json``. Returns ``runs, table1, table2`` (see above),
    ``curves`` (a row a learner and step), ``tasks`` by name, ``notes`` on them, and ``folder``.
    """
    begun, config, settings = time.perf_counter(), settings.aloe, settings.of("aloe")
    check_names(config)
    tidy(settings)
    aside, tasks = clips.set_aside(settings), clips.tasks(settings)
    folders = [path for encoder in config.encoders for path in embeddings(settings, encoder)]
    cells = [(t, e, run) for e in config.encoders for t in tasks for run in range(config.runs)]
    done = in_parallel(cell, settings, cells, "runs")
    curves = pd.concat([
        pd.read_csv(folder / "curves.csv").assign(task=task, encoder=encoder)
        for (task, encoder, _), folder in zip(cells, done, strict=True)
    ], ignore_index=True)  # fmt: skip
    runs = runs_table(curves, config)
    tables = {"runs": runs, "table1": table1(runs, config.encoders[0]), "table2": table2(runs)}
    files = {f"aloe_{name}": table for name, table in tables.items()}
    files["aloe_curves"] = curves_table(curves)
    folder = publish(settings, files, "provenance_aloe", folders + done, begun)
    own = (note for task in tasks.values() for note in task.notes)
    notes = (*aside, *own, *ended_early(runs, config))
    return SimpleNamespace(**tables, curves=curves, tasks=tasks, notes=notes, folder=folder)
