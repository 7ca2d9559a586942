"""When to stop: what the next ten minutes of transcripts are worth, from the rounds so far.

    R  rounds    U  utterances of the validation set

Every round's recogniser is held against the validation set as it is today, so that rounds can be
compared where the set has grown. Their errors follow a power law of the minutes that were learned
from, as they mostly do (Hestness et al. 2017): log WER = a + b log minutes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..devices import device
from ..metrics import evaluate
from ..model import DeepSpeech2
from ..speech import corpus
from ..workshop.config import ROOT, Settings
from ..workshop.steps import Step, in_parallel
from ..workshop.store import plain, read_csv, write_csv

MORE = 10.0  # minutes


@dataclass(frozen=True)
class Gain:
    """WER points that ``more`` minutes of transcripts are expected to take off, with their 95 %
    interval: NaN where nothing can be said yet."""

    more: float
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.points):
            return "what more transcripts are worth is not known yet: two recognisers are needed"
        points, low, high = (f"{x:.1f}".replace("-", "−") for x in
                             (self.points, self.low, self.high))  # fmt: skip
        told = f"95 % interval {low} to {high}"
        if math.isnan(self.low):
            told = "how sure that is will be known from the third recogniser on"
        if self.points < 0:
            points, told = points.lstrip("−"), f"{told}, of what is taken off"
        how = ("add", "to") if self.points < 0 else ("take", "off")
        return (f"the next {self.more:g} min of transcripts are expected to {how[0]} {points} "
                f"points {how[1]} the WER ({told})")  # fmt: skip

    def verdict(self, worth: float) -> str:
        """Are they worth their price, ``worth`` points at least? *go on*, *stop* or *not
        decided*."""
        if self.low >= worth:
            return "go on"
        return "stop" if self.high < worth else "not decided"


def expected_gain(minutes, errors, words, more: float = MORE) -> Gain:
    """What ``more`` minutes are worth by the power law through R rounds: ``minutes`` [R] that were
    learned from, word ``errors`` [R, U] and ``words`` [U] of the validation set.

    Two things vary: what a training comes to (the distances from the line, R − 2 degrees of
    freedom), and which utterances the set happens to hold (their own influences on the gain, U − 1
    degrees of freedom; for utterances of the same speakers, that is). Their variances are added,
    with Satterthwaite's degrees of freedom. What a round does to an utterance is in both, so that
    the interval is rather too wide than too narrow.
    """
    minutes, errors, words = (np.asarray(x, dtype=float) for x in (minutes, errors, words))
    nothing = Gain(more, *[math.nan] * 3)
    if len(set(minutes)) < 2 or not words.sum():
        return nothing
    R, U = errors.shape
    x, total = np.log(minutes), errors.sum(axis=1).clip(0.5)  # [R]; of none at all, half of one
    y = np.log(100 * total / words.sum())
    apart = x - x.mean()
    b = apart @ y / (apart @ apart)
    last = x.argmax()
    level = math.exp(y.mean() + b * apart[last])  # % WER by the line, at the last round
    ahead = math.log1p(more / minutes[last])
    left_over = level * math.exp(b * ahead)
    points = level - left_over
    # how the gain moves with the mean of y, and with b
    by_mean, by_slope = points, points * apart[last] - left_over * ahead
    if R < 3 or U < 2:
        return Gain(more, points, math.nan, math.nan)
    off = y - y.mean() - b * apart
    by_rounds = (off @ off) / (R - 2) * (by_mean**2 / R + by_slope**2 / (apart @ apart))
    weight = by_mean / R + by_slope * apart / (apart @ apart)  # of each round's y [R]
    # an utterance's part in the total's relative error [R, U]
    part = errors / total[:, None] - words / words.sum()
    by_utterances = (weight @ part).var(ddof=1) * U
    variance = by_rounds + by_utterances
    if variance == 0:
        return Gain(more, points, points, points)
    from scipy.special import stdtrit

    freedom = variance**2 / (by_rounds**2 / (R - 2) + by_utterances**2 / (U - 1))
    half = stdtrit(freedom, 0.975) * math.sqrt(variance)
    return Gain(more, points, points - half, points + half)


# ---------------------------------------------------------------- the rounds so far


def validated(settings: Settings, model: str, seed: int) -> Step:
    """What a recogniser (the name of its step's folder) makes of the validation set as it is now.
    Folder: ``validation.csv`` (``utt_id, word_errors, words``)."""

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        recogniser = DeepSpeech2(settings.model, len(data.alphabet))
        weights = ROOT / "build" / "cells" / model / "model.pt"
        recogniser.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        rows = data.split("validation")
        found = evaluate(recogniser.to(device()).eval(), data.store, rows, data.alphabet)
        write_csv(folder / "validation.csv", found[["utt_id", "word_errors", "words"]])
        return {"utterances": len(found)}

    return Step(
        f"validated-seed{seed}", compute, after=(corpus.features(settings),),
        given={"model": model, "shape": settings.model},
    )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The rounds so far, by minutes: ``rounds`` (rows of ``learned.csv`` with ``validation_wer``,
    percent), word ``errors`` [R, U] and ``words`` [U] of the validation set as it is today."""

    rounds: pd.DataFrame
    errors: np.ndarray
    words: np.ndarray

    def gain(self, more: float = MORE) -> Gain:
        """What is to be expected of the next minutes, see :func:`expected_gain`."""
        return expected_gain(self.rounds["minutes"], self.errors, self.words, more)

    def line(self, more: float = MORE) -> tuple[np.ndarray, np.ndarray]:
        """The power law from the first round to ``more`` minutes after the last: minutes, WER in
        percent. Empty where there is none yet."""
        minutes, wer = (self.rounds[x].to_numpy(float) for x in ("minutes", "validation_wer"))
        if len(set(minutes)) < 2:
            return np.empty(0), np.empty(0)
        half = 50 / self.words.sum()  # as above: of no error at all, half of one
        b, a = np.polyfit(np.log(minutes), np.log(wer.clip(half)), 1)
        where = np.geomspace(minutes[0], minutes[-1] + more, 100)
        return where, np.exp(a) * where**b

    def foreseen(self) -> pd.DataFrame:
        """Of every round from the third recogniser on, what was to be ``expected`` of its minutes
        before it (with ``low`` and ``high``), and what ``came``: WER points. What came varies by
        itself, which the interval of what is expected leaves out."""
        minutes, wer = (self.rounds[x].to_numpy() for x in ("minutes", "validation_wer"))
        found = []
        for r in range(2, len(minutes)):
            more = minutes[r] - minutes[r - 1]
            gain = expected_gain(minutes[:r], self.errors[:r], self.words, more)
            came = wer[r - 1] - wer[r]
            found.append((minutes[r], more, gain.points, gain.low, gain.high, came))
        return pd.DataFrame(found, columns=["minutes", "more", "expected", "low", "high", "came"])


def curve(settings: Settings, learned: pd.DataFrame) -> Curve:
    """The rounds so far: rows of ``learned`` (of this corpus: ``minutes, model, alphabet`` …), as
    far as their recognisers are still there, write this corpus's letters and are of the shape that
    the settings ask for."""
    known = "".join(corpus.alphabet(settings).characters)
    there = [
        row.alphabet == known and _is_as_asked(settings, row.model) for row in learned.itertuples()
    ]
    rounds = learned[there].sort_values("minutes", kind="stable", ignore_index=True)
    if rounds.empty:
        return Curve(rounds.assign(validation_wer=0.0), np.empty((0, 0)), np.empty(0))
    tasks = [(model, 0) for model in rounds["model"]]
    folders = in_parallel(validated, settings, tasks, "validation")
    tables = [read_csv(folder / "validation.csv") for folder in folders]
    errors, words = np.stack([t["word_errors"] for t in tables]), tables[0]["words"].to_numpy()
    wer = 100 * errors.sum(axis=1) / words.sum()
    return Curve(rounds.assign(validation_wer=wer), errors, words)


def _is_as_asked(settings: Settings, model: str) -> bool:
    folder = ROOT / "build" / "cells" / model
    if not (folder / "model.pt").exists():
        return False
    given = json.loads((folder / "config.json").read_text())["given"]
    return given["model"] == plain(vars(settings.model))
