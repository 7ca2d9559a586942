"""Your loop (yours.py) with a recogniser that was trained elsewhere (recognisers.py): nothing is
trained here. ``make query`` asks it, ``make learn`` hands its trainer what came back:

    build/<run>/train.jsonl, validation.jsonl and test.jsonl    # NeMo manifests, absolute paths

With new weights, from that trainer, under the same name or another, the next query is another one.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .. import experiment
from ..model import count_parameters
from ..querying import rank, score, score_options
from ..speech import corpus
from ..workshop.config import ROOT, Settings
from ..workshop.errors import UserError, cut
from ..workshop.steps import Step
from ..workshop.store import Checkpoint, write_bytes, write_json
from . import recognisers

LARGE = 20_000_000  # parameters, of a recogniser that takes seconds for an utterance's full EGL
EGL = ("egl", "egl_renormalised")


def recogniser(settings: Settings) -> tuple[Step, object]:
    """The step of the recogniser that the preset names, and what loads it. Its key has the source
    of its function, its alphabet, what it reads, and all of its weights.

    Raises ``UserError`` where the corpus's transcripts hold letters that it cannot write.
    """
    found = recognisers.load(settings)
    rows = corpus.prepare(settings).manifest
    for row in rows[rows["text"] != ""].itertuples():
        if missing := set(row.text) - found.alphabet.letters:
            told = " ".join("space" if x == " " else x for x in sorted(missing))
            raise UserError(
                f"recogniser {settings.recogniser}: its alphabet lacks {cut(told)}, which "
                f"'{cut(row.text)}' of {cut(row.utt_id)} has: name one of this language, or "
                "correct the transcript"
            )
    facts = found.facts

    def compute(folder: Path) -> dict:
        write_json(folder / "recogniser.json", facts)
        return {"parameters": count_parameters(found)}

    return Step("recogniser", compute, given=facts), recognisers.load


def told(settings: Settings) -> str:
    """What the preset's recogniser is, for a person to read. Raises as :func:`recogniser` does."""
    recogniser(settings)
    found = recognisers.load(settings)
    letters = "".join(sorted(found.alphabet.letters)).strip()
    return (f"recogniser {settings.recogniser}: {count_parameters(found) / 1e6:.1f} million "
            f"parameters, reads {found.features} of {found.config.sample_rate} Hz, writes "
            f"{cut(letters, 80)}")  # fmt: skip


# ---------------------------------------------------------------- asked


def pool_scores(
    settings: Settings, strategy: str, seed: int, model: Step, load, count: float
) -> Step:
    """:func:`experiment.pool_scores`, where the budget pays for about ``count`` utterances: of a
    large recogniser full EGL is a shortlist's only."""
    whole = experiment.pool_scores(settings, strategy, seed, model, load)
    few = settings.query.shortlist
    if not settings.recogniser or not few or strategy not in EGL:
        return whole
    size = math.ceil(few * count)
    cheap = settings.egl_method in ("last_layer", "logits")
    small = count_parameters(recognisers.load(settings)) <= LARGE
    everything = size >= len(corpus.prepare(settings).split("pool"))
    return whole if cheap or small or everything else _shortlisted(settings, strategy, seed, model,
                                                                   load, size)  # fmt: skip


def _shortlisted(settings: Settings, strategy: str, seed: int, model: Step, load, size) -> Step:
    """EGL of the last layer for the pool, and in full for the ``size`` that come first by it."""
    rough = experiment.pool_scores(
        replace(settings, egl_method="last_layer"), strategy, seed, model, load
    )
    options = score_options(settings, strategy, seed)

    def compute(folder: Path) -> dict:
        data, asked = corpus.prepare(settings), load(settings, seed)
        first, pool = experiment.read_scores(rough.folder()), data.split("pool")
        pool = pool[(rank(first).loc[pool["utt_id"]] < size).to_numpy()].reset_index(drop=True)
        store = experiment.as_read(asked, pool, data.store)
        full = score(asked, store, pool, strategy, checkpoint=Checkpoint(folder), **options)
        behind(first, full).to_csv(folder / "scores.csv")
        return {"utterances": len(first), "in_full": len(full)}

    given = {**options, "size": size}
    return Step(f"shortlist-{strategy}-seed{seed}", compute, after=(rough,), given=given)


def behind(first: pd.Series, full: pd.Series) -> pd.Series:
    """Scores of all: those in ``full``, and behind them the others, in the order of ``first``: as
    they are where all are below the least of these, else so much lower."""
    rest = first.drop(full.index)
    if rest.max() >= full.min():
        rest = rest - rest.max() + np.nextafter(full.min(), -np.inf)
    return pd.concat([full, rest]).loc[first.index].rename(full.name).rename_axis("utt_id")


# ---------------------------------------------------------------- handed on

LISTS = {"base": "train", "validation": "validation", "test": "test"}


def handed_on(settings: Settings) -> str:
    """Write manifests of all transcripts that there are. Returns what a person is told."""
    recogniser(settings)  # can it write them?
    data, folder = corpus.prepare(settings), ROOT / "build" / settings.run
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    for split, name in LISTS.items():
        rows = data.split(split)
        rows = data.usable(rows) if len(rows) else rows
        path = folder / f"{name}.jsonl"
        write_bytes(path, "".join(map(_line, rows.to_dict("records"))).encode())
        said.append(f"{path.relative_to(ROOT)}: {len(rows)} utterances, "
                    f"{rows['duration'].sum() / 60:.1f} min")  # fmt: skip
    return "\n".join([*said, f"train {settings.recogniser} on them, and name its new weights"])


def _line(row: dict) -> str:
    """NeMo's keys, and who spoke."""
    keys = {"audio_filepath": str(Path(row["path"]).resolve()), "offset": row.get("offset", 0.0)}
    keys |= {x: row[x] for x in ("duration", "text", "utt_id", "speaker") if x in row}
    return json.dumps(keys, ensure_ascii=False) + "\n"
