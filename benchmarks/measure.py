"""What the parts of the benchmark share: the clock, their inputs, the rows of their table."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from alspeech.experiment import load_base
from alspeech.speech.corpus import prepare
from alspeech.workshop.config import load_settings

K, REPEATS, UTTERANCES = 100, 5, 128


def row(name: str, ours: float, theirs: float | None = None, unit: str = "ms an utterance") -> dict:
    """One line of the table: a time (or number) of ours, of a rival, how many times faster."""
    ratio = theirs / ours if theirs is not None and ours else None
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit}


def median_ms(call, utterances: int, repeats: int = REPEATS) -> float:
    """Median milliseconds an utterance of ``call()``, which handles so many of them."""
    return medians_ms({"": (call, utterances)}, repeats)[""]


def medians_ms(calls: dict, repeats: int = REPEATS) -> dict:
    """The same of several calls, each with its number of utterances, by name. They take turns, so
    that what else the machine has to do falls to all of them."""
    for call, _ in calls.values():  # warm-up: kernels compiled, memory allocated
        call()
    times: dict = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, utterances) in calls.items():
            begun = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - begun) / utterances)
    return {name: statistics.median(some) for name, some in times.items()}


def laptop() -> tuple:
    """The laptop preset's prepared corpus and its first base model."""
    settings = load_settings("laptop")
    return prepare(settings), load_base(settings, seed=0).cpu()


def pool_batches(size: int = 32) -> tuple:
    """The laptop preset's first base model, and at least UTTERANCES of its pool in batches drawn at
    random, with transcripts."""
    data, model = laptop()
    pool = data.split("pool")
    batches = []
    for index in data.store.groups(pool, size, np.random.default_rng(0)):
        batches.append(data.store.batch(pool.iloc[index], data.alphabet.encode))
        if sum(map(len, batches)) >= UTTERANCES:
            return model, batches


def table(rows: list[dict]) -> str:
    lines = [f"{'':<64}{'ours':>10}{'theirs':>10}{'ratio':>9}"]
    number = lambda x, width: " " * width if x is None else f"{x:>{width}.4g}"  # noqa: E731
    for r in rows:
        ratio = f"{r['ratio']:>8.1f}x" if r["ratio"] is not None else " " * 9
        cells = number(r["ours"], 10) + number(r["theirs"], 10)
        lines.append(f"{r['name']:<64}{cells}{ratio}  {r['unit']}")
    return "\n".join(lines)
