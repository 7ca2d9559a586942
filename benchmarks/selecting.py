"""What selections cost: the first pass, and choosing a tenth of a large pool."""

from __future__ import annotations

import inspect
import resource
import sys
import time
from unittest import mock

import numpy as np
import torch
from measure import laptop, median_ms, pool_batches, row

from alspeech import selection
from alspeech.embeddings import Candidates, embed, first_pass
from alspeech.selection import SELECTIONS
from alspeech.workshop.config import SelectionConfig
from alspeech.workshop.processes import cores
from alspeech.workshop.styles import style_of

LARGE, SHARE, COMPARED = 100_000, 0.1, 8_000


def selecting() -> dict:
    """The rows of the part ``selecting``."""
    model, batches = pool_batches()
    utterances, options = sum(map(len, batches)), SelectionConfig()
    forward = median_ms(lambda: [passed(model, b) for b in batches], utterances)
    looks = median_ms(
        lambda: [embed(model, b, options.labelings, options.directions, options.numbers)
                 for b in batches], utterances,
    )  # fmt: skip
    rows = [
        row(f"first pass of a selection, K = {options.labelings}: forward passes", looks / forward,
            unit="forward passes an utterance")
    ]  # fmt: skip
    data, model = laptop()
    look = lambda split: first_pass(model, data.store, data.split(split))  # noqa: E731
    pool, base, target = look("pool"), look("base"), look("validation")
    torch.set_num_threads(cores())
    rows += departures(widened(pool, COMPARED), base, target)
    large = widened(pool, LARGE)
    for name in SELECTIONS:
        begun = time.perf_counter()
        chosen = select(name, large, base, target, round(SHARE * LARGE))
        seconds = time.perf_counter() - begun
        assert len(set(chosen)) == round(SHARE * LARGE)
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        rows.append(
            row(f"{style_of(name)[0]}: 10 % of {LARGE:,}", seconds, unit=f"s, {cores()} cores")
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(row(f"… most memory, candidates and all, {LARGE:,}", peak, unit="GiB"))
    return {"rows": rows}


@torch.no_grad()
def passed(model, batch):
    return model(batch.features)


def select(name: str, pool, base, target, amount: int):
    known = {"labelled": base, "target": target}
    taken = inspect.signature(SELECTIONS[name]).parameters
    return SELECTIONS[name](pool, amount, **{x: known[x] for x in known if x in taken})


def widened(pool: Candidates, size: int) -> Candidates:
    """A pool of another size: utterances drawn from it, each a mixture with another one."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, len(pool), (2, size))
    share = rng.uniform(0.6, 1.0, size).astype("f4")
    mixed = {}
    for name in ("seconds", "directions", "best", "embeddings"):
        values = getattr(pool, name)
        weight = share.reshape(-1, *[1] * (values.ndim - 1))
        mixed[name] = weight * values[one] + (1 - weight) * values[other]
    scores = {name: share * x[one] + (1 - share) * x[other] for name, x in pool.scores.items()}
    return Candidates(np.array([f"u{i:07d}" for i in range(size)]), **mixed, scores=scores)


def departures(pool: Candidates, base, target) -> list[dict]:
    """How many of the utterances that a greedy selection takes lazily it takes plainly, too."""
    rows, amount = [], round(SHARE * len(pool))
    for name in ("fisher_ratio", "d_optimal", "flqmi"):
        times, chosen = [], []
        for plain in (selection.PLAIN, len(pool)):
            with mock.patch.object(selection, "PLAIN", plain):
                begun = time.perf_counter()
                chosen.append(set(select(name, pool, base, target, amount)))
                times.append(time.perf_counter() - begun)
        both = len(chosen[0] & chosen[1]) / amount
        called = f"{style_of(name)[0]}, lazily: 10 % of {len(pool):,}"
        rows.append(row(called, *times, unit="s"))
        rows.append(row("… share of what plain greedy takes", both, unit=""))
    return rows
