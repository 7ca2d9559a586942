"""Training: one function, for the base model and for what goes on from it.

Fast on a CPU: batches of one length, bf16 where the processor multiplies it natively, one thread
a process (experiment.py runs a process a core).
"""

from __future__ import annotations

import json
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
from .workshop.errors import UserError
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
    return torch.cuda.is_bf16_supported()


def autocast(device: torch.device | str):
    """bf16 for matrix products where the hardware has it, else float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=has_bf16(device))


def ctc_loss(model, batch, device) -> torch.Tensor:
    """Mean CTC loss of a batch in nats an utterance; a transcript that fits no path counts 0."""
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
    after each pass. With ``checkpoint`` an interrupted training
    goes on from the last batch that was saved, and ends with the bits of an undisturbed one (on a
    CPU; a GPU's sums are not reproducible to the bit in the first place).

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
    best, best_loss, best_epoch, history = None, math.inf, 0, []
    first, done, total = 1, 0, 0.0

    if saved := checkpoint and checkpoint.load():
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        masks.set_state(saved["masks"])
        torch.set_rng_state(saved["torch"])
        torch.cuda.set_rng_state_all(saved["cuda"])
        order.bit_generator.state = json.loads(saved["order"])
        best, best_loss, best_epoch = saved["best"], saved["best_loss"], saved["best_epoch"]
        history, first = saved["history"], saved["epoch"]
        done, total = saved["done"], saved["total"]

    def save() -> None:
        checkpoint.save({
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "masks": masks.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "order": json.dumps(order_of_pass),
            "best": best, "best_loss": best_loss, "best_epoch": best_epoch,
            "history": history, "epoch": epoch, "done": done, "total": total,
        })  # fmt: skip

    for epoch in range(first, epochs + 1):
        model.train()
        order_of_pass = order.bit_generator.state  # drawing the groups again moves it on again
        groups = store.groups(train, config.batch, None if epoch == 1 else order)
        for index in groups[done:]:
            batch = store.batch(train.iloc[index], alphabet.encode)
            masked = spec_augment(batch.features, config, masks)
            batch = replace(batch, features=masked.to(device))
            if objective is None:
                loss = ctc_loss(model, batch, device)
            else:
                loss = objective(model, batch, device, schedule.last_epoch / steps)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the training loss is {loss.item()} in pass {epoch}, utterances "
                    f"{', '.join(batch.utt_ids[:3])} …: lower the learning rate ({rate})"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
            done += 1
            if checkpoint and checkpoint.due():
                save()
        checked = validation_loss(model, store, validation, alphabet)
        losses = {"train_loss": total / len(train), "validation_loss": checked}
        history.append({"epoch": epoch, **losses})
        done, total = 0, 0.0
        if report:
            report(history[-1])
        if checked < best_loss:
            best_loss, best_epoch = checked, epoch
            best = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best)
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
