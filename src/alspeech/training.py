"""Training: one function, for the base model and for what goes on from it.

Fast on a CPU: batches of one length, bf16 where the processor multiplies it natively, one thread
a process (workshop/steps.py runs a process a core).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import torch
from torch import nn

from .ctc import training_losses
from .devices import autocast, device
from .metrics import evaluate, summarise
from .speech.features import FeatureStore, spec_augment
from .speech.text import Alphabet
from .workshop.config import TrainingConfig
from .workshop.errors import UserError, cut
from .workshop.store import Checkpoint


def load_weights(model: torch.nn.Module, step) -> torch.nn.Module:
    """A model with the weights that a step (workshop/steps.py) left, in evaluation mode."""
    weights = torch.load(step.folder() / "model.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.to(device()).eval()


def ctc_loss(model, batch, device, progress: float = 0.0) -> torch.Tensor:
    """Mean CTC loss of a batch in nats an utterance; a transcript that fits no path counts 0. (As
    an objective of :func:`fit` it is told the ``progress``, too: it has no use for it.)"""
    with autocast(device):
        logits = model(batch.features)
    return training_losses(logits.float(), batch.labels).mean()


@torch.no_grad()
def validation_loss(model, store, utterances, alphabet: Alphabet, batch: int = 32) -> float:
    """Mean CTC loss in nats an utterance, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for part in store.batches(utterances, batch, alphabet.encode):
        total += ctc_loss(model, part.to(device), device).item() * len(part)
    return total / len(utterances)


def _gradient_norm(weights: list[nn.Parameter]) -> torch.Tensor:
    """Summed in double precision: in single, weights that have no part in the loss would change how
    the others' squares are grouped, and with it the last bit."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if len(gradients) == 1 and gradients[0].device.type == "cpu":  # see _in_one
        total = _sum_of_squares(gradients[0].numpy())
        return torch.tensor(total, dtype=torch.float64).sqrt()
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


@numba.njit(cache=True, fastmath={"reassoc", "contract"})  # sums may be taken eight at a time
def _sum_of_squares(values):  # pragma: no cover (compiled)
    """In double precision, without a copy of the ``values`` [N] in it."""
    total = 0.0
    for value in values:
        total += np.float64(value) * np.float64(value)
    return total


STATISTICS = ("running_mean", "running_var")  # of a batch norm


def _in_one(model: nn.Module) -> list[nn.Parameter]:
    """What an optimiser steps on: on a CPU one long parameter, whose parts are the model's, since a
    step of one takes a third of the time of a step of forty; elsewhere the model's own."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if own[0].device.type != "cpu":
        return own
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in own]))
    whole.grad = torch.zeros_like(whole)
    sizes = [parameter.numel() for parameter in own]
    parts = zip(own, whole.data.split(sizes), whole.grad.split(sizes), strict=True)
    for parameter, values, gradient in parts:
        parameter.data, parameter.grad = values.view_as(parameter), gradient.view_as(parameter)
    return [whole]


def fit(
    model: torch.nn.Module,
    store: FeatureStore,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    alphabet: Alphabet,
    config: TrainingConfig,
    *,
    updates: int,
    rate: float,
    seed: int,
    objective=None,
    measured: int = 10,
    report=None,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train for so many ``updates``, however many utterances there are.

    The learning rate rises to ``rate`` and falls to zero (one cycle). The model ends in evaluation
    mode, with the mean of its weights and of its batch norms' statistics over the last
    ``config.average`` of the updates (Izmailov et al. 2018).
    No validation loss decides anything, so that what is compared has been trained alike. The first
    pass takes the shortest utterances first (SortaGrad, Amodei et al. 2016). ``seed`` fixes order
    and masks. ``objective(model, batch, device, progress)`` gives the loss to minimise, the CTC
    loss if it is None; ``progress`` is the share of the training that is done. ``report(row)`` is
    called with each row. With ``checkpoint`` an interrupted training goes on from the last batch
    that was saved, and ends with the bits of an undisturbed one (on a CPU; a GPU's sums are not
    reproducible to the bit in the first place).

    Returns ``measured`` rows (one an update, if there are fewer): ``update, train_loss`` (since the
    row before), ``validation_loss`` (nats an utterance, of the weights at that moment). Raises
    ``UserError`` when the loss is no longer finite.
    """
    device = next(model.parameters()).device
    order = np.random.default_rng([seed, 1])
    masks = torch.Generator().manual_seed(seed)
    weights = _in_one(model)
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=updates + 1, pct_start=0.15, anneal_strategy="linear"
    )
    # of other buffers the last values count (a predictor's memory, for one: sisters/joint.py)
    norms = [part for name, part in model.named_buffers() if name.split(".")[-1] in STATISTICS]
    state = [*(weight.data for weight in weights), *norms]
    averaged = max(1, round(config.average * updates))  # so many of the last updates
    mean, history, done, losses = [torch.zeros_like(part) for part in state], [], 0, []
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if saved := checkpoint and checkpoint.load():
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        masks.set_state(saved["masks"])
        torch.set_rng_state(saved["torch"])
        torch.cuda.set_rng_state_all(saved["cuda"])
        torch._foreach_copy_(mean, saved["mean"])
        history, done, losses = saved["progress"]

    model.train()
    train = train[["utt_id", "text"]]
    encode = functools.cache(alphabet.encode)  # a transcript is met again in every pass
    for update, index in enumerate(_passes(store, train, config.batch, order, updates), start=1):
        if update <= done:
            continue  # done before the interruption: drawn again only for the orders that follow
        batch = store.batch(train.iloc[index], encode)
        masked = spec_augment(batch.features, config, masks)
        batch = replace(batch, features=masked.to(device))
        loss = (objective or ctc_loss)(model, batch, device, (update - 1) / updates)
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss is {loss.item()} in update {update}, utterances "
                f"{', '.join(map(cut, batch.utt_ids[:3]))} …: lower the learning rate ({rate})"
            )
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grads_with_norm_(weights, config.clip, _gradient_norm(weights))
        optimizer.step()
        schedule.step()
        if (number := update - updates + averaged) > 0:
            torch._foreach_lerp_(mean, state, 1 / number)
        losses.append((loss.item(), len(batch)))
        if len(history) < measured * update // updates:
            total, seen = np.sum([(loss * count, count) for loss, count in losses], axis=0)
            loss = validation_loss(model, store, validation, alphabet)
            history.append(
                {"update": update, "train_loss": float(total / seen), "validation_loss": loss}
            )
            losses = []
            model.train()
            if report:
                report(history[-1])
        if checkpoint and checkpoint.due():
            checkpoint.save({
                **{name: part.state_dict() for name, part in parts.items()},
                "masks": masks.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "mean": mean,
                "progress": (history, update, losses),
            })  # fmt: skip
    torch._foreach_copy_(state, mean)
    for parameter in model.parameters():  # its own again
        parameter.data, parameter.grad = parameter.data.clone(), None
    model.eval()
    return pd.DataFrame(history)


def _passes(store, train, batch: int, order, updates: int):
    """The row numbers of each update's batch: passes over the utterances, the first one sorted."""
    left = updates
    while left > 0:
        groups = store.groups(train, batch, order if left < updates else None)
        yield from groups[:left]
        left -= len(groups)


def train_and_test(
    folder: Path, data, model: torch.nn.Module, train: pd.DataFrame, config: TrainingConfig,
    **options,
) -> dict:  # fmt: skip
    """:func:`fit` with ``options`` on utterances of a corpus (speech/corpus.py), then test.

    Writes ``history.csv`` (as :func:`fit` returns it) and ``test.csv`` (a row a test utterance)
    into ``folder``, where a checkpoint is kept meanwhile; returns what the test set says.
    """
    history = fit(
        model, data.store, train, data.split("validation"), data.alphabet, config,
        checkpoint=Checkpoint(folder), **options,
    )  # fmt: skip
    history.to_csv(folder / "history.csv", index=False)
    test = data.split("test")
    tested = evaluate(model, data.store, test, data.alphabet, known=data.vocabulary)
    tested.to_csv(folder / "test.csv", index=False)
    groups = test.get(data.group)
    return {
        **summarise(tested, groups), "updates": options["updates"], "train_utterances": len(train)
    }  # fmt: skip
