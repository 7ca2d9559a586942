"""What a selection needs of every utterance, from one forward pass and the n-best search.

Legend: B batch, T frames, D features, V symbols (0 = blank), K labelings, R directions, d numbers,
N utterances.

The last layer's gradient of labeling k is G_k = ∂ℓ(x, y_k)/∂(W, b) = [H; 1]ᵀ g_k, with H [T, D]
what that layer reads and g_k [T, V] the gradient by the logits: no backward pass. With q_k the
probabilities of the beam, made to sum to 1, the Fisher information of an utterance's label is

    F = Σ_k q_k vec(G_k) vec(G_k)ᵀ ≈ Uᵀ U,   U [R, d] = ``directions``,

the R leading right singular vectors of the rows √q_k vec(G_k), times their singular values. They
come from the K × K matrix of the rows' products, and are then projected from (D + 1)·V numbers to d
by a count sketch (Charikar et al. 2002), which keeps products right on average.

Beware of mean gradients: E_{y∼p} ∇ log p(y | x) = 0, for any model and any utterance. What is left
of Σ_k q_k G_k is what the beam missed, and it points nowhere. Hence second moments, as here, or the
gradient of the single best hypothesis.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .acquisition import (
    labeling_entropy,
    labeling_margin,
    mean_entropy,
    path_ctc,
    posteriors,
    shares,
)
from .decoding import n_best
from .gradients import combine, weighted_gradients
from .speech.features import Batch, FeatureStore
from .workshop.store import Checkpoint, write_bytes


@torch.no_grad()
def embed(
    model, batch: Batch, labelings: int = 40, directions: int = 5, numbers: int = 256,
    seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Of every utterance of a batch, first dimension B:

    - ``directions`` [B, R, d], see above, and ``best`` [B, d], the gradient of the best hypothesis
      (Ash et al. 2020), in d = ``numbers`` numbers (or (D + 1)·V, if these are fewer: then as they
      are); the ``seed`` is the projection's, the same for all utterances that are to be compared;
    - ``embeddings`` [B, D], :func:`acquisition.embedding`;
    - scores [B]: ``mass`` of the beam, ``entropy``, ``pctc``, ``egl_last_layer``, ``nbest_entropy``
      and ``nbest_margin``.

    Raises ``TypeError`` for a model whose ``layers`` do not end in an ``nn.Linear``.
    """
    hidden, logits = _last_layer(model, batch)
    log_probs = posteriors(logits, batch)
    hypotheses = n_best(log_probs, labelings)
    rows = weighted_gradients(logits, hypotheses)  # √q_k g_k: [B, K, T, V]
    # ⟨[H; 1]ᵀ a, [H; 1]ᵀ b⟩ = ⟨a, (H Hᵀ + 1) b⟩: the products of gradients that are never formed
    frames = hidden @ hidden.mT + float(model.layers[-1].bias is not None)  # [B, T, T]
    products = rows.flatten(2) @ (frames[:, None] @ rows).flatten(2).mT  # [B, K, K]
    vectors = torch.linalg.eigh(products.double())[1].flip(-1)[:, :, :directions].to(rows)
    q = shares(hypotheses.log_p)
    first = rows[:, :1] / q[:, :1, None, None].sqrt().clamp_min(1e-30).to(rows)
    both = torch.cat([combine(vectors, rows), first], dim=1)  # [B, R + 1, T, V]
    gradients = (hidden.mT[:, None] @ both).flatten(2)
    if model.layers[-1].bias is not None:
        gradients = torch.cat([gradients, both.sum(dim=2)], dim=2)  # [B, R + 1, (D + 1)·V]
    small = sketch(gradients, numbers, seed)
    return {
        "directions": small[:, :-1], "best": small[:, -1], "embeddings": hidden.mean(dim=1),
        "mass": hypotheses.mass(),
        "entropy": mean_entropy(log_probs),
        "pctc": path_ctc(hypotheses.log_p[:, 0], log_probs.shape[1]),
        "egl_last_layer": products.diagonal(dim1=1, dim2=2).sum(dim=1),  # Σ_k q_k ‖G_k‖²
        "nbest_entropy": labeling_entropy(hypotheses.log_p),
        "nbest_margin": labeling_margin(hypotheses.log_p),
    }  # fmt: skip


def _last_layer(model, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the last layer reads, [B, T, D], and the logits, [B, T, V]."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(layers[-1], nn.Linear):
        raise TypeError("selections need a model whose `layers` is an nn.Sequential that ends in "
                        f"an nn.Linear; {type(model).__name__} has none")  # fmt: skip
    hidden = layers[:-1](batch.features[:, None])
    return hidden, layers[-1](hidden)


def sketch(x: Tensor, numbers: int, seed: int = 0) -> Tensor:
    """Count sketch […, P] → […, d]: each of the P numbers is added to one of d, or taken off it.
    Where P ≤ d, as it is."""
    if x.shape[-1] <= numbers:
        return x
    place, sign = (a.to(x.device) for a in _hashes(x.shape[-1], numbers, seed))
    zeros = x.new_zeros(*x.shape[:-1], numbers)
    return zeros.index_add_(-1, place, x * sign.to(x))


@functools.lru_cache(maxsize=4)
def _hashes(inputs: int, numbers: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(0, numbers, (inputs,), generator=generator)
    return place, torch.randint(0, 2, (inputs,), generator=generator) * 2.0 - 1


ARRAYS = ("seconds", "directions", "best", "embeddings")


@dataclass(frozen=True)
class Candidates:
    """N utterances, and what a first pass left of each."""

    utt_ids: np.ndarray  # [N], in this order
    seconds: np.ndarray  # [N]
    directions: np.ndarray  # [N, R, d]: U of the Fisher information Uᵀ U
    best: np.ndarray  # [N, d], gradient of the best hypothesis
    embeddings: np.ndarray  # [N, D]
    scores: dict  # [N] by name

    def __len__(self) -> int:
        return len(self.utt_ids)

    @classmethod
    def joined(cls, parts) -> Candidates:
        """Some lots as one, sorted by id: however a pool was divided, it comes out the same."""
        ids = np.concatenate([part.utt_ids for part in parts])
        order = np.argsort(ids, kind="stable")
        arrays = {x: np.concatenate([getattr(part, x) for part in parts])[order] for x in ARRAYS}
        names = parts[0].scores
        scores = {x: np.concatenate([part.scores[x] for part in parts])[order] for x in names}
        return cls(ids[order], **arrays, scores=scores)

    def rows(self, index) -> Candidates:
        """Some of them, by their numbers."""
        arrays = {name: getattr(self, name)[index] for name in ARRAYS}
        scores = {name: values[index] for name, values in self.scores.items()}
        return Candidates(self.utt_ids[index], **arrays, scores=scores)

    def save(self, file) -> None:
        arrays = {name: getattr(self, name) for name in ("utt_ids", *ARRAYS)}
        scores = {f"score_{name}": values for name, values in self.scores.items()}
        np.savez(file, **arrays, **scores)

    @classmethod
    def load(cls, file) -> Candidates:
        with np.load(file) as found:
            values = {name: found[name] for name in found.files}
        names = [name for name in values if name.startswith("score_")]
        scores = {name.removeprefix("score_"): values.pop(name) for name in names}
        return cls(**values, scores=scores)


def first_pass(
    model, store: FeatureStore, utterances: pd.DataFrame, folder: Path | None = None,
    batch: int = 32, **options,
) -> Candidates:  # fmt: skip
    """:func:`embed` of all utterances, of which there is one at least. Their transcripts are not
    looked at.

    With a ``folder``, an interrupted call goes on from the parts that it has left there.
    """
    model.eval()
    device = next(model.parameters()).device
    parts = [Candidates.load(path) for path in sorted(folder.glob("part-*"))] if folder else []
    done = {utt_id for part in parts for utt_id in part.utt_ids}
    fresh, clock = [], Checkpoint(folder or Path())
    # longest first: what the first batch needs in memory is enough for all others
    for index in reversed(store.groups(utterances, batch)):
        rows = utterances.iloc[index]
        if done >= set(rows["utt_id"]):
            continue
        seconds = rows["duration"].to_numpy(float)
        fresh.append(_looked_at(model, store.batch(rows).to(device), seconds, options))
        if folder and clock.due():
            parts.append(Candidates.joined(fresh))
            buffer = io.BytesIO()
            parts[-1].save(buffer)
            write_bytes(folder / f"part-{len(parts):05d}", buffer.getvalue())
            fresh, clock = [], Checkpoint(folder)
    return Candidates.joined([*parts, *fresh])


def _looked_at(model, batch: Batch, seconds: np.ndarray, options: dict) -> Candidates:
    found = embed(model, batch, **options)
    found = {name: values.cpu().numpy() for name, values in found.items()}
    arrays = {x: found.pop(x).astype("f4") for x in ("directions", "best", "embeddings")}
    return Candidates(np.array(batch.utt_ids, dtype=str), seconds, **arrays, scores=found)


def remove_parts(folder: Path) -> None:
    """Take away what :func:`first_pass` went on from."""
    for path in folder.glob("part-*"):
        path.unlink()
