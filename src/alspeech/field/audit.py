"""Transcripts that the recogniser does not believe: what may be wrong with what is labelled.

    make audit CORPUS=jsonl DATA=mine

Every transcript is judged by a recogniser that has not learned it: what is labelled is divided into
folds, and each fold is held against a model that was trained on the others. What makes a transcript
suspicious is how much worse it fits than the recogniser's own best guess does,

    (−log p(y | x) + log p(ŷ | x)) / (U + 1),

a log likelihood ratio for each of its U labels and its end: where the recogniser is unsure of
everything, the second term is large, too, and little is left. Values are nats; none is negative but
for what the beam has missed.

The embedded corpus's transcripts are right. There some are exchanged first, and ``audit.csv`` in
``results/<run>`` says how well they are found.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..acquisition import posteriors
from ..ctc import ctc_losses
from ..decoding import n_best
from ..experiment import base_model, new_model, training_of
from ..speech import corpus
from ..speech.text import unusable
from ..training import fit
from ..workshop.config import ROOT, Settings
from ..workshop.errors import UserError
from ..workshop.provenance import publish
from ..workshop.steps import Step, in_parallel
from ..workshop.store import Checkpoint, read_csv, write_csv
from .yours import TRANSCRIBED, mine

FOLDS, SEED = 3, 0
COLUMNS = ("utt_id", "suspicion", "text", "guess", "speaker", "duration", "path", "offset")


def labelled(data: corpus.Corpus, texts: tuple = ()) -> pd.DataFrame:
    """What the recogniser may learn from: base and validation, as far as it is usable.

    ``texts`` are pairs of an id and what it is said to say, in place of the corpus's transcript.
    """
    rows, others = data.manifest[data.manifest["split"].isin(["base", "validation"])], dict(texts)
    known = [unusable(row, data.alphabet) is None for row in rows.itertuples()]
    rows = rows[known].reset_index(drop=True)
    said = [others.get(x, y) for x, y in zip(rows["utt_id"], rows["text"], strict=True)]
    return rows.assign(text=said)


def fold_of(utt_id: str) -> int:
    """By its id alone: an utterance more or less moves no other one."""
    return zlib.crc32(f"fold {utt_id}".encode()) % FOLDS


def judged(settings: Settings, fold: int, texts: tuple, seed: int) -> Step:
    """One fold's transcripts (``texts`` as in :func:`labelled`), by a model that was trained on the
    others. Folder: ``judged.csv``, see :func:`suspicions`."""
    config = training_of(settings)

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        rows = labelled(data, texts)
        own = rows["utt_id"].map(fold_of) == fold
        model = new_model(settings, seed)
        fit(model, data.store, rows[~own], rows[own], data.alphabet, config, seed=seed,
            updates=config.base_updates, rate=config.base_rate, measured=1,
            checkpoint=Checkpoint(folder))  # fmt: skip
        write_csv(folder / "judged.csv", suspicions(model, data, rows[own]))
        return {"utterances": int(own.sum())}

    return Step(
        f"judged-{fold}-seed{seed}", compute, after=base_model(settings, seed).after,
        given={"model": settings.model, "training": config, "texts": texts},
    )  # fmt: skip


@torch.no_grad()
def suspicions(model, data: corpus.Corpus, rows: pd.DataFrame) -> pd.DataFrame:
    """``utt_id, suspicion, loss, guess`` of some transcripts, see above; ``loss`` is the first term
    alone."""
    model.eval()
    device, found = next(model.parameters()).device, []
    for batch in data.store.batches(rows, 32, data.alphabet.encode):
        batch = batch.to(device)
        log_probs = posteriors(model(batch.features), batch)
        losses, best = ctc_losses(log_probs, batch.labels), n_best(log_probs, k=1, beam=40)
        for b, utt_id in enumerate(batch.utt_ids):
            loss, tokens = losses[b].item(), len(batch.labels[b]) + 1
            ratio = loss + best.log_p[b, 0].item()
            guess = data.alphabet.decode(best.labeling(b, 0))
            found.append((utt_id, ratio / tokens, loss / tokens, guess))
    return pd.DataFrame(found, columns=["utt_id", "suspicion", "loss", "guess"])


def suspicious(settings: Settings, texts: tuple = ()) -> pd.DataFrame:
    """Everything that is labelled, the least believable first: rows of the manifest with
    ``suspicion`` and ``guess``. Raises ``UserError`` with too little to learn from."""
    rows = labelled(corpus.prepare(settings), texts)
    sizes = rows["utt_id"].map(fold_of).value_counts()
    if len(sizes) < FOLDS or len(rows) < 2 * FOLDS:
        raise UserError(f"{len(rows)} transcripts: too few to judge one by the others")
    tasks = [(fold, texts, SEED) for fold in range(FOLDS)]
    folders = in_parallel(judged, settings, tasks, "audit")
    found = pd.concat([read_csv(folder / "judged.csv") for folder in folders])
    found["guess"] = found["guess"].fillna("")
    table = rows.merge(found, on="utt_id", validate="one_to_one")
    return table.sort_values(["suspicion", "utt_id"], ascending=[False, True], ignore_index=True)


def write(settings: Settings) -> tuple[pd.DataFrame, Path]:
    """:func:`suspicious`, and ``build/<run>/suspicious.csv`` of it. Of recordings of your own all
    that is transcribed is looked at, what was brought by ``make learn``, too; of the embedded
    corpus what :func:`swapped` has exchanged is looked for."""
    begun, texts, wrong = time.perf_counter(), (), set()
    if settings.corpus == "synthetic":
        texts, wrong = swapped(settings)
    own = settings if settings.corpus in TRANSCRIBED else mine(settings)
    table = suspicious(own, texts)
    if len(table) < own.query.enough:
        print(f"{len(table)} transcripts are few to learn from: what follows may well be right")
    path = ROOT / "build" / settings.run / "suspicious.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, table[[name for name in COLUMNS if name in table]])
    if wrong:
        folders = [judged(own, fold, texts, SEED).folder() for fold in range(FOLDS)]
        found = how_well(table, wrong)
        publish(replace(settings, seeds=1), {"audit": found}, "provenance_audit", folders, begun)
        print(found.round(2).to_string(index=False))
    return table, path


# ---------------------------------------------------------------- how well does it find them?


def swapped(settings: Settings, share: float = 0.05, seed: int = 0) -> tuple[tuple, set]:
    """Transcripts of a ``share`` of what is labelled, exchanged in a circle, so that none keeps its
    own: pairs for :func:`judged`, and the ids whose text is another now."""
    rows = labelled(corpus.prepare(settings))
    count = max(2, round(share * len(rows)))
    some = rows.sample(count, random_state=seed)
    moved = np.roll(some["text"].to_numpy(), 1)
    pairs = tuple(zip(some["utt_id"], moved, strict=True))
    wrong = {x for x, text, own in zip(some["utt_id"], moved, some["text"], strict=True)
             if text != own}  # fmt: skip
    return pairs, wrong


def average_precision(ranked: list[str], wrong: set) -> float:
    """Mean over the ``wrong`` ones of the share of wrong ones down to there; NaN without any."""
    hits = [number for number, utt_id in enumerate(ranked, start=1) if utt_id in wrong]
    if not hits:
        return math.nan
    return sum(found / place for found, place in enumerate(hits, start=1)) / len(hits)


FIRST = (5, 10, 20)  # percent of the list


def how_well(table: pd.DataFrame, wrong: set) -> pd.DataFrame:
    """How well :func:`suspicious` finds the ``wrong`` ones, and how well the loss alone does: a row
    for each (``by``) with ``transcripts, swapped, average_precision``, and the percentage of the
    wrong ones that is ``found_in_5`` percent of the list, in 10 and in 20."""
    rows = []
    for by in ("suspicion", "loss"):
        ranked = list(table.sort_values([by, "utt_id"], ascending=[False, True])["utt_id"])
        rows.append({
            "by": by, "transcripts": len(ranked), "swapped": len(wrong),
            "average_precision": average_precision(ranked, wrong),
        })  # fmt: skip
        for percent in FIRST:
            first = ranked[: math.ceil(percent * len(ranked) / 100)]
            rows[-1][f"found_in_{percent}"] = 100 * len(wrong & set(first)) / len(wrong)
    return pd.DataFrame(rows)
