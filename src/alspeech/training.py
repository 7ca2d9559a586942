"""Training: one function, for the base model and for what goes on from it.

Fast on a CPU: batches of one length, bf16 where the processor multiplies it natively, one thread
a process (workshop/steps.py runs a process a core).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .ctc import ctc_losses
from .metrics import evaluate, summarise
from .speech.features import FeatureStore, spec_augment
from .speech.text import Alphabet
from .workshop.config import TrainingConfig
from .workshop.errors import UserError, cut
from .workshop.store import Checkpoint


def device() -> torch.device:
    """Where models are trained and utterances scored: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_weights(model: torch.nn.Module, step) -> torch.nn.Module:
    """A model with the weights that a step (workshop/steps.py) left, in evaluation mode."""
    weights = torch.load(step.folder() / "model.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.to(device()).eval()


def has_bf16(device: torch.device | str) -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    if torch.device(device).type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16", False) or able.get("amx_bf16", False))
    return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device | str):
    """bf16 for matrix products where the hardware has it, else float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=has_bf16(device))


def ctc_loss(model, batch, device, progress: float = 0.0) -> torch.Tensor:
    """Mean CTC loss of a batch in nats an utterance; a transcript that fits no path counts 0. (As
    an objective of :func:`fit` it is told the ``progress``, too: it has no use for it.)"""
    with autocast(device):
        logits = model(batch.features)
    return ctc_losses(logits.float().log_softmax(-1), batch.labels, zero_infinity=True).mean()


@torch.no_grad()
def validation_loss(model, store, utterances, alphabet: Alphabet, batch: int = 32) -> float:
    """Mean CTC loss in nats an utterance, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for part in store.batches(utterances, batch, alphabet.encode):
        total += ctc_loss(model, part.to(device), device).item() * len(part)
    return total / len(utterances)


def fit(
    model: torch.nn.Module,
    store: FeatureStore,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    alphabet: Alphabet,
    config: TrainingConfig,
    *,
    epochs: int,
    rate: float,
    seed: int,
    objective=None,
    report=None,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train until the validation loss has converged; the model ends with its best weights.

    At most ``epochs`` passes under a one-cycle learning rate (peak ``rate``, down to zero), ended
    early when the validation loss has not improved for ``config.patience`` passes. The first pass
    takes the shortest utterances first (SortaGrad, Amodei et al. 2016). ``seed`` fixes order and
    masks. ``objective(model, batch, device, progress)`` gives the loss to minimise, the CTC loss if
    it is None; ``progress`` is the share of the training that is done. ``report(row)`` is called
    after each pass. With ``checkpoint`` an interrupted training goes on from the last batch that
    was saved, and ends with the bits of an undisturbed one (on a CPU; a GPU's sums are not
    reproducible to the bit in the first place).

    Returns a row a pass: ``epoch, train_loss, validation_loss`` (nats an utterance). Raises
    ``UserError`` when the loss is no longer finite.
    """
    device = next(model.parameters()).device
    order = np.random.default_rng([seed, 1])
    masks = torch.Generator().manual_seed(seed)
    steps = epochs * len(store.groups(train, config.batch))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + 1, pct_start=0.15, anneal_strategy="linear"
    )
    best, history, first, done, total = {"loss": math.inf, "epoch": 0}, [], 1, 0, 0.0
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if saved := checkpoint and checkpoint.load():
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        masks.set_state(saved["masks"])
        torch.set_rng_state(saved["torch"])
        torch.cuda.set_rng_state_all(saved["cuda"])
        best, history, first, done, total = saved["progress"]

    for epoch in range(1, epochs + 1):
        groups = store.groups(train, config.batch, None if epoch == 1 else order)
        if epoch < first:
            continue  # done before the interruption: drawn again only for the orders that follow
        model.train()
        for index in groups[done:]:
            batch = store.batch(train.iloc[index], alphabet.encode)
            masked = spec_augment(batch.features, config, masks)
            batch = replace(batch, features=masked.to(device))
            loss = (objective or ctc_loss)(model, batch, device, schedule.last_epoch / steps)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the training loss is {loss.item()} in pass {epoch}, utterances "
                    f"{', '.join(map(cut, batch.utt_ids[:3]))} …: lower the learning rate ({rate})"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
            done += 1
            if checkpoint and checkpoint.due():
                checkpoint.save({
                    **{name: part.state_dict() for name, part in parts.items()},
                    "masks": masks.get_state(),
                    "torch": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state_all(),
                    "progress": (best, history, epoch, done, total),
                })  # fmt: skip
        loss = validation_loss(model, store, validation, alphabet)
        history.append({"epoch": epoch, "train_loss": total / len(train), "validation_loss": loss})
        done, total = 0, 0.0
        if report:
            report(history[-1])
        if loss < best["loss"]:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            best = {"loss": loss, "epoch": epoch, "weights": weights}
        elif epoch - best["epoch"] >= config.patience:
            break
    model.load_state_dict(best["weights"])
    model.eval()
    return pd.DataFrame(history)


def train_and_test(
    folder: Path, data, model: torch.nn.Module, train: pd.DataFrame, config: TrainingConfig,
    **options,
) -> dict:  # fmt: skip
    """:func:`fit` with ``options`` on utterances of a corpus (speech/corpus.py), then test.

    Writes ``history.csv`` (a row a pass) and ``test.csv`` (a row a test utterance) into ``folder``,
    where a checkpoint is kept meanwhile; returns what the test set says.
    """
    history = fit(
        model, data.store, train, data.split("validation"), data.alphabet, config,
        checkpoint=Checkpoint(folder), **options,
    )  # fmt: skip
    history.to_csv(folder / "history.csv", index=False)
    tested = evaluate(model, data.store, data.split("test"), data.alphabet)
    tested.to_csv(folder / "test.csv", index=False)
    return {**summarise(tested), "epochs": len(history), "train_utterances": len(train)}
