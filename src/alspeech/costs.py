"""What scores cost and what cheap ones miss, measured on this machine, for the notebooks."""

from __future__ import annotations

import statistics
import time
import timeit
from functools import partial

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
    device, left, parts = next(model.parameters()).device, [], []

    def egl(batch, **options):  # .cpu() waits for what a GPU has been told to compute
        return ACQUISITIONS["egl"](model, batch, labelings, **options).cpu()

    for batch in (batch.to(device) for batch in batches):
        with torch.no_grad():
            tape = Tape(model, batch.features)
            hypotheses = n_best(tape.logits.log_softmax(-1), labelings)
            shares = principal_directions(weighted_gradients(tape.logits, hypotheses))[0]
        left.append(functional.pad(shares, (1, 0), value=1.0).cpu())
        calls = {"exact": partial(egl, batch, method="exact")}
        calls |= {R: partial(egl, batch, directions=R) for R in counts}
        calls["plain"] = partial(plain_egl, model, batch.features[:1], hypotheses)
        scores = {R: calls[R]() for R in counts}  # as a warm-up; what takes long needs none
        for name, call in calls.items():
            begun = time.perf_counter()
            scores[name], size = call(), 1 if name == "plain" else len(batch)
            ms = 1e3 * (time.perf_counter() - begun) / size
            exact = scores["exact"][:size]
            row = {"directions": name, "score": scores[name], "exact": exact, "ms": ms}
            parts.append(pd.DataFrame(row))
    return pd.DataFrame(torch.cat(left).numpy()), pd.concat(parts, ignore_index=True)


def scoring_cost(model, batches, strategies, settings: Settings) -> pd.DataFrame:
    """Milliseconds an utterance of the model's forward pass and of each strategy's score, and in
    forward passes; the median of three times through the batches, on one thread."""
    torch.set_num_threads(1)
    batches = [batch.to(next(model.parameters()).device) for batch in batches]
    calls = {"forward pass": lambda batch: model(batch.features)}
    for name in strategies:
        calls[name] = partial(ACQUISITIONS[name], model, **score_options(settings, name, 0))

    def ms_an_utterance(call) -> float:
        # .cpu() waits for what a GPU has been told to compute
        work = lambda: [call(batch).cpu() for batch in batches]  # noqa: E731
        seconds = timeit.repeat(work, number=1, repeat=4)
        return 1e3 * statistics.median(seconds[1:]) / sum(map(len, batches))  # after a warm-up

    with torch.no_grad():
        ms = pd.Series({name: ms_an_utterance(call) for name, call in calls.items()})
    return pd.DataFrame({"ms an utterance": ms, "forward passes": ms / ms.iloc[0]})
