"""Connectionist temporal classification: log p(y | x), and which frames carry which symbols.

Legend: B batch, T frames, V symbols (0 = blank), K labelings, U labels, S = 2U + 1 states.

Two implementations of one recursion (Graves et al. 2006): torch's, which training goes through,
and a compiled one for many labelings of one utterance, which gives the gradients by the logits
without autograd. The tests hold both against the sum over all paths.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .text import BLANK


def ctc_losses(log_probs: Tensor, labels, zero_infinity: bool = False) -> Tensor:
    """−log p(y | x) in nats, [B], of one transcript each (B lists of symbol numbers).

    ``log_probs`` [B, T, V] are normalised. Infinite where no path of T frames fits a transcript;
    with ``zero_infinity`` 0 there, and so is its gradient (else it is NaN).
    """
    B, T, _ = log_probs.shape
    lengths = torch.tensor([len(row) for row in labels])
    padded = torch.zeros(B, max(1, int(lengths.max())), dtype=torch.long)
    for b, row in enumerate(labels):
        padded[b, : len(row)] = torch.tensor(row, dtype=torch.long)
    device = log_probs.device
    return functional.ctc_loss(
        log_probs.transpose(0, 1), padded.to(device), torch.full((B,), T), lengths.to(device),
        blank=BLANK, reduction="none", zero_infinity=zero_infinity,
    )  # fmt: skip


@numba.njit(cache=True)
def forward_backward(probs, labels, lengths, log_p, gradients):  # pragma: no cover (compiled)
    """CTC of K labelings of one utterance, in the probability domain, each frame scaled to sum 1.

    ``probs`` [T, V]; ``labels`` [K, U] with ``lengths`` [K]. Writes log p(y_k | x) into ``log_p``
    [K] (−inf where no path fits) and, if ``gradients`` [K, T, V] is not empty, the gradient of
    −log p(y_k | x) by the logits: softmax minus occupancy (0 where p is 0).
    """
    T, V = probs.shape
    states = 2 * labels.shape[1] + 1
    alpha = np.zeros((T, states))
    beta = np.zeros(states)
    before = np.zeros(states)
    symbol = np.zeros(states, np.int64)
    for k in range(len(lengths)):
        S = 2 * lengths[k] + 1
        for u in range(lengths[k]):
            symbol[2 * u + 1] = labels[k, u]
        log_p[k] = 0.0
        # forward: alpha[t, s], over states that a whole path can pass through in frame t
        for t in range(T):
            low, high = max(0, S - 2 * (T - t)), min(S, 2 * t + 2)
            total = 0.0
            alpha[t, :S] = 0.0
            for s in range(low, high):
                if t == 0:
                    a = 1.0
                else:
                    a = alpha[t - 1, s]
                    if s >= 1:
                        a += alpha[t - 1, s - 1]
                    if s >= 3 and s % 2 == 1 and symbol[s] != symbol[s - 2]:
                        a += alpha[t - 1, s - 2]
                a *= probs[t, symbol[s]] if s % 2 == 1 else probs[t, 0]
                alpha[t, s] = a
                total += a
            if total <= 0.0:
                log_p[k] = -np.inf
                break
            log_p[k] += np.log(total)
            for s in range(low, high):
                alpha[t, s] /= total
        if log_p[k] > -np.inf:
            ends = alpha[T - 1, S - 1] + (alpha[T - 1, S - 2] if S > 1 else 0.0)
            log_p[k] = log_p[k] + np.log(ends) if ends > 0 else -np.inf
        if len(gradients) == 0:
            continue
        if log_p[k] == -np.inf:
            gradients[k] = 0.0
            continue
        # backward: beta[s] = Σ over completions after frame t; occupancy = alpha · beta, normalised
        for t in range(T - 1, -1, -1):
            total = 0.0
            if t == T - 1:
                beta[:S] = 0.0
                beta[S - 1] = 1.0
                if S > 1:
                    beta[S - 2] = 1.0
                total = 1.0
            else:
                for s in range(S):
                    v = symbol[s] if s % 2 == 1 else 0
                    before[s] = beta[s] * probs[t + 1, v]
                for s in range(S):
                    b = before[s]
                    if s + 1 < S:
                        b += before[s + 1]
                    if s + 2 < S and s % 2 == 1 and symbol[s] != symbol[s + 2]:
                        b += before[s + 2]
                    beta[s] = b
                    total += b
            mass = 0.0
            for s in range(S):
                beta[s] /= total
                mass += alpha[t, s] * beta[s]
            for v in range(V):
                gradients[k, t, v] = probs[t, v]
            for s in range(S):
                gradients[k, t, symbol[s] if s % 2 == 1 else 0] -= alpha[t, s] * beta[s] / mass


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
