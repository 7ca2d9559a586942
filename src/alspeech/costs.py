"""What scores cost and what cheap ones miss, measured on this machine, for the notebooks."""

from __future__ import annotations

import functools
import statistics
import time

import pandas as pd
import torch
from torch.nn import functional

from .acquisition import ACQUISITIONS
from .decoding import n_best
from .gradients import Tape, plain_egl, principal_directions, weighted_gradients
from .querying import score_options
from .workshop.config import Settings


def directions_study(model, batches, labelings: int, counts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What EGL from few directions misses and costs, over some batches of utterances.

    Returns the share of Σ_k p_k ‖g_k‖² that is left after 0, 1, … ``labelings`` directions (a row
    an utterance), and a table with a row an utterance and ``directions`` (each R in ``counts``,
    "exact", and "plain": the first utterance of each batch, one backward pass a labeling) with
    ``score``, ``exact`` score and the batch's ``ms`` an utterance.
    """
    # like every other score; make runs two notebooks at once, and their threads would be too many
    torch.set_num_threads(1)
    left, parts = [], []
    for batch in batches:
        with torch.no_grad():
            tape = Tape(model, batch.features)
            hypotheses = n_best(tape.logits.log_softmax(-1), labelings)
            shares = principal_directions(weighted_gradients(tape.logits, hypotheses))[0]
        left.append(functional.pad(shares, (1, 0), value=1.0))
        options = {"exact": {"method": "exact"}, **{R: {"directions": R} for R in counts}}
        exact = ACQUISITIONS["egl"](model, batch, labelings, method="exact")
        for name, chosen in options.items():
            ACQUISITIONS["egl"](model, batch, labelings, **chosen)  # warm-up
            begun = time.perf_counter()
            score = ACQUISITIONS["egl"](model, batch, labelings, **chosen)
            ms = 1e3 * (time.perf_counter() - begun) / len(batch)
            columns = {"directions": name, "score": score, "exact": exact, "ms": ms}
            parts.append(pd.DataFrame(columns))
        begun = time.perf_counter()
        plain = plain_egl(model, batch.features[:1], hypotheses)
        ms = 1e3 * (time.perf_counter() - begun)
        columns = {"directions": "plain", "score": plain, "exact": exact[:1], "ms": ms}
        parts.append(pd.DataFrame(columns))
    return pd.DataFrame(torch.cat(left).numpy()), pd.concat(parts, ignore_index=True)


def scoring_cost(model, batches, strategies, settings: Settings) -> pd.DataFrame:
    """Milliseconds an utterance of the model's forward pass and of each strategy's score, and in
    forward passes; the median of three times through the batches, on one thread."""

    torch.set_num_threads(1)
    calls = {"forward pass": lambda batch: model(batch.features)}
    for name in strategies:
        options = score_options(settings, name, 0)
        calls[name] = functools.partial(ACQUISITIONS[name], model, **options)
    utterances, rows = sum(map(len, batches)), {}
    with torch.no_grad():
        for name, call in calls.items():
            seconds = []
            for _ in range(4):  # the first is a warm-up
                begun = time.perf_counter()
                for batch in batches:
                    call(batch)
                seconds.append(time.perf_counter() - begun)
            rows[name] = {"ms an utterance": 1e3 * statistics.median(seconds[1:]) / utterances}
    table = pd.DataFrame(rows).T
    table["forward passes"] = table["ms an utterance"] / table["ms an utterance"].iloc[0]
    return table
