"""Connectionist temporal classification: log p(y | x), and which frames carry which symbols.

Legend: B batch, T frames, V symbols (0 = blank), K labelings, U labels, S = 2U + 1 states.

Two implementations of one recursion (Graves et al. 2006): torch's, and a compiled one, made for
many labelings of one utterance, which gives the gradients by the logits without autograd; training
goes through it on a CPU. The tests hold both against the sum over all paths.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .speech.text import BLANK


def best_path(log_probs: Tensor) -> Tensor:
    """The most likely symbol of each frame: [B, T, V] → [B, T]."""
    return log_probs.argmax(dim=-1)


def pad(labels) -> tuple[Tensor, Tensor]:
    """B lists of symbol numbers as one tensor [B, U], zeros at the ends, and their lengths [B]."""
    lengths = torch.tensor([len(row) for row in labels])
    padded = torch.zeros(len(labels), max(1, int(lengths.max())), dtype=torch.long)
    for b, row in enumerate(labels):
        padded[b, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded, lengths


def ctc_losses(log_probs: Tensor, labels, zero_infinity: bool = False) -> Tensor:
    """−log p(y | x) in nats, [B], of one transcript each (B lists of symbol numbers).

    ``log_probs`` [B, T, V] are normalised. Infinite where no path of T frames fits a transcript;
    with ``zero_infinity`` 0 there, and so is its gradient (else it is NaN).
    """
    B, T, _ = log_probs.shape
    padded, lengths = pad(labels)
    device = log_probs.device
    return functional.ctc_loss(
        log_probs.transpose(0, 1), padded.to(device), torch.full((B,), T), lengths.to(device),
        blank=BLANK, reduction="none", zero_infinity=zero_infinity,
    )  # fmt: skip


def training_losses(logits: Tensor, labels) -> Tensor:
    """:func:`ctc_losses` of logits [B, T, V], 0 where no path fits a transcript, for training: on a
    CPU by the compiled recursion, which is three times as fast as torch's."""
    log_probs = logits.log_softmax(-1)
    if log_probs.device.type != "cpu":
        return ctc_losses(log_probs, labels, zero_infinity=True)
    # a posterior that underflowed would make a possible transcript impossible
    losses = _Losses.apply(log_probs.clamp_min(-500), labels)
    unknown = log_probs.isnan().flatten(1).any(dim=1)
    return losses.masked_fill(losses.isinf(), 0).masked_fill(unknown, math.nan)


class _Losses(torch.autograd.Function):
    """Losses [B] of log posteriors [B, T, V]; the gradients come with them, and are kept."""

    @staticmethod
    def forward(ctx, log_probs, labels):
        log_p, gradients = _each_utterance(log_probs, *(x[:, None] for x in pad(labels)), True)
        ctx.save_for_backward(gradients[:, 0])
        return -log_p[:, 0]

    @staticmethod
    def backward(ctx, by_loss):
        return by_loss[:, None, None] * ctx.saved_tensors[0], None


@numba.njit(cache=True, fastmath={"reassoc", "contract"})  # sums may be taken eight at a time
def forward_backward(probs, labels, lengths, log_p, gradients):  # pragma: no cover (compiled)
    """CTC of K labelings of one utterance, in the probability domain, scaled against underflow.

    ``probs`` [T, V]; ``labels`` [K, U] with ``lengths`` [K]. Writes log p(y_k | x) into ``log_p``
    [K] (−inf where no path fits) and, if ``gradients`` [K, T, V] is not empty, the gradient of
    −log p(y_k | x) by the logits: softmax minus occupancy (0 where p is 0).

    The S = 2U + 1 states of a labeling are kept as two rows, so that the inner loops have no
    branches: after u labels a path ends in a ``blank`` [T, U + 1] or in the u-th ``label``. Of the
    u only those are visited that t + 1 frames can reach and the frames that are left can complete.
    """
    T, V = probs.shape
    width = labels.shape[1] + 2
    blank, label, emission = np.zeros((T, width)), np.zeros((T, width)), np.zeros((T, width))
    skip = np.zeros(width)  # 1 where the blank before the u-th label may be left out
    by_blank, by_label, occupied = np.zeros(width), np.zeros(width), np.zeros(width)
    small = 1e-30  # a frame whose sum is less is scaled
    one = np.uintp(1)  # numbers without sign: else vectors are not made use of
    for k in range(len(lengths)):
        U = lengths[k]
        for u in range(1, U + 1):
            skip[u] = 1.0 if u > 1 and labels[k, u - 1] != labels[k, u - 2] else 0.0
        # forward: the probability of all paths that arrive here
        log_p[k] = 0.0
        for t in range(T):
            low, high = max(0, U - T + t + 1), min(U, t + 1)
            start, first, end = np.uintp(low), np.uintp(max(1, low)), np.uintp(high + 1)
            for u in range(first, end):
                emission[t, u] = probs[t, labels[k, u - one]]
            label[t, 0] = blank[t, high] = 0.0
            if t == 0:
                blank[0, 0] = probs[0, 0] if low == 0 else 0.0
                label[0, high] = emission[0, high] if low <= high and high == 1 else 0.0
            else:
                for u in range(first, end):
                    arriving = (
                        label[t - 1, u] + blank[t - 1, u - one] + skip[u] * label[t - 1, u - one]
                    )
                    label[t, u] = arriving * emission[t, u]
                for u in range(start, end):
                    blank[t, u] = (blank[t - 1, u] + label[t - 1, u]) * probs[t, 0]
            blank[t, high + 1] = label[t, high + 1] = 0.0  # the next frame asks for them
            total = 0.0
            for u in range(start, end):
                total += blank[t, u] + label[t, u]
            if total <= 0.0:
                log_p[k] = -np.inf
                break
            if total < small:
                log_p[k] += np.log(total)
                for u in range(start, end):
                    blank[t, u] /= total
                    label[t, u] /= total
        if log_p[k] > -np.inf:
            ends = blank[T - 1, U] + label[T - 1, U]
            log_p[k] = log_p[k] + np.log(ends) if ends > 0 else -np.inf
        if len(gradients) == 0:
            continue
        if log_p[k] == -np.inf:
            gradients[k] = 0.0
            continue
        # backward: the probability of all completions after frame t; times forward it is the
        # occupancy, but for the scale
        by_blank[: U + 2] = 0.0
        by_label[: U + 2] = 0.0
        by_blank[U] = by_label[U] = 1.0
        for t in range(T - 1, -1, -1):
            low, high = max(0, U - T + t + 1), min(U, t + 1)
            start, first, end = np.uintp(low), np.uintp(max(1, low)), np.uintp(high + 1)
            if t < T - 1:
                for u in range(first, np.uintp(min(U, t + 2) + 1)):
                    by_label[u] *= emission[t + 1, u]
                for u in range(start, end):
                    stay = by_blank[u] * probs[t + 1, 0]
                    by_blank[u] = stay + by_label[u + one]
                    by_label[u] += stay + skip[u + one] * by_label[u + one]
            by_label[0] = 0.0  # there is no label before the first
            total, in_blank, in_label = 0.0, 0.0, 0.0
            for u in range(start, end):
                total += by_blank[u] + by_label[u]
                in_blank += blank[t, u] * by_blank[u]
                occupied[u] = label[t, u] * by_label[u]
                in_label += occupied[u]
            if total < small:
                for u in range(start, end):
                    by_blank[u] /= total
                    by_label[u] /= total
            scale = 1.0 / (in_blank + in_label)
            for v in range(V):
                gradients[k, t, v] = probs[t, v]
            gradients[k, t, 0] -= in_blank * scale
            for u in range(first, end):
                gradients[k, t, labels[k, u - one]] -= occupied[u] * scale


def labelings_log_p(log_probs: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """log p(y_k | x) [B, K] of labelings [B, K, U] under frame posteriors [B, T, V]."""
    return _each_utterance(log_probs, labels, lengths, gradients=False)[0]


def labelings_gradients(log_probs: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """g_k = ∂(−log p(y_k | x))/∂logits of every labeling: [B, K, T, V]; 0 where p is 0."""
    return _each_utterance(log_probs, labels, lengths, gradients=True)[1]


def _each_utterance(log_probs, labels, lengths, gradients):
    (B, T, V), K = log_probs.shape, labels.shape[1]
    probs = log_probs.detach().double().exp().cpu().numpy()
    labels, lengths = labels.cpu().numpy(), lengths.cpu().numpy()
    log_p = np.empty((B, K))
    dtype = np.float64 if log_probs.dtype == torch.float64 else np.float32
    by_logits = np.empty((B, K if gradients else 0, T, V), dtype)
    for b in range(B):
        forward_backward(probs[b], labels[b], lengths[b], log_p[b], by_logits[b])
    return tuple(torch.from_numpy(a).to(log_probs) for a in (log_p, by_logits))
