"""Exercises of lab 2, Expected Gradient Length: what is right, and the mistakes that many make.

Legend: T frames, D features, V symbols, K labelings, R directions, P parameters.
"""

from __future__ import annotations

import numpy as np
import torch

from ..acquisition import expected_squared_norm
from ..backward import outer_squared_norms
from ..ctc import ctc_losses, pad
from ..decoding import Hypotheses
from ..gradients import plain_egl
from .checks import Argument, Function


def _beam(seed: int, K: int, T: int = 3, V: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities [K] that sum to less than 1, falling, and gradients [K, T, V]."""
    rng = np.random.default_rng(seed)
    p = np.sort(rng.dirichlet(np.ones(K)))[::-1] * rng.uniform(0.4, 0.9)
    return np.log(p), rng.normal(size=(K, T, V))


BEAMS = tuple(_beam(seed, K) for seed, K in ((0, 4), (1, 2), (2, 7)))


def _norms(gradients) -> np.ndarray:
    """‖g_k‖², [K]."""
    return np.square(gradients).reshape(len(gradients), -1).sum(axis=1)


def length(log_p, gradients) -> float:
    both = (torch.as_tensor(x.copy())[None] for x in (log_p, _norms(gradients)))
    return float(expected_squared_norm(*both)[0])


def mean_gradient(log_p, gradients) -> np.ndarray:
    return np.tensordot(np.exp(log_p), gradients, axes=1)


# ---------------------------------------------------------------- one frame

FRAMES = tuple((np.array(p),) for p in ([0.2, 0.7, 0.1], [0.5, 0.5], [0.1, 0.2, 0.3, 0.4]))


def _one_frame(p, weigh=np.square) -> float:
    """Every symbol, or the blank for nothing, is a labeling of one frame."""
    rest = np.asarray(p)[None] - np.eye(len(p))
    return float((np.asarray(p) * weigh(np.linalg.norm(rest, axis=1))).sum())


# ---------------------------------------------------------------- by autograd


class Small(torch.nn.Module):
    """A recogniser that a page has room for: features [B, T, 2] → logits [B, T, 3]."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
        ).double()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


def _spoken(seed: int, labelings: list, p: list) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 4, 2, generator=generator, dtype=torch.double)
    with torch.random.fork_rng():
        return Small(seed), features, labelings, np.log(p)


SPOKEN = (_spoken(0, [[1], [1, 2], [2]], [0.4, 0.3, 0.1]), _spoken(1, [[2, 1], []], [0.5, 0.2]))


def by_autograd(model, features, labelings, log_p) -> float:
    labels, lengths = pad(labelings)
    return plain_egl(model, features, Hypotheses(labels[None], lengths[None], _tensor(log_p)[None]))


def _tensor(x) -> torch.Tensor:
    return torch.as_tensor(np.array(x, dtype=float))


def _gradients(model, features, labelings, part=slice(None)) -> np.ndarray:
    """∇ℓ(x, y_k) over some of the parameters, [K, P]."""
    rows, parameters = [], list(model.parameters())[part]
    for labels in labelings:
        loss = ctc_losses(model(features).log_softmax(-1), [labels]).sum()
        found = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.flatten() for g in found]).numpy())
    return np.stack(rows)


def _summed(rows, log_p, weigh=np.square) -> float:
    return float((np.exp(log_p) * weigh(np.linalg.norm(rows, axis=1))).sum())


# ---------------------------------------------------------------- few directions


def _matrices(seed: int, R: int) -> tuple:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(6, 3)) @ rng.normal(size=(3, 9)) + 0.1 * rng.normal(size=(6, 9))
    return A, rng.normal(size=(9, 12)), R


MATRICES = tuple(_matrices(seed, R) for seed, R in ((0, 1), (1, 2), (2, 6)))


def along(A, J, R, scaled=True, last=False) -> float:
    """Σ_r ‖(Uᵀ A)_r J‖² over R leading directions."""
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    rows = (U.T @ A) if scaled else Vt
    return float(np.square((rows[-R:] if last else rows[:R]) @ J).sum())


def _unsorted(A, J, R) -> float:
    return float(np.square(A[:R] @ J).sum())


SPECTRA = tuple(
    (np.array(values), share)
    for values, share in (([3.0, 2.0, 1.0, 0.5], 0.9), ([1.0, 1.0, 1.0, 1.0], 0.7),
                          ([5.0, 0.5, 0.4, 0.1], 0.95), ([2.0, 1.5, 1.0, 0.2], 0.99))
)  # fmt: skip


def needed(values, share) -> int:
    kept = np.cumsum(np.square(values)) / np.square(values).sum()
    return int(np.searchsorted(kept, share) + 1)


def _needed_of_values(values, share) -> int:
    return int(np.searchsorted(np.cumsum(values) / values.sum(), share) + 1)


def _last(seed: int, T: int, D: int, V: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, D)), rng.normal(size=(T, V))


LAST = tuple(_last(seed, *shape) for seed, shape in ((0, (4, 3, 2)), (1, (6, 2, 5))))


def last_layer(H, g, bias: int = 1) -> float:
    H, g = (torch.as_tensor(np.array(x))[None] for x in (H, g))
    return float(outer_squared_norms(H, g[:, None], bias)[0, 0])


# ---------------------------------------------------------------- the beam's mass


def split(log_p, gradients, log=False) -> np.ndarray:
    mass = np.exp(log_p).sum()
    return np.array([mass, length(log_p, gradients) / mass])


EXERCISES = {
    "2.1": Function(
        "expected_gradient(log_p, gradients) returns Σ_k p_k g_k, [T, V]",
        BEAMS, mean_gradient,
        (
            ("log p comes in, p is asked for: take the exponential",
             lambda q, g: np.tensordot(q, g, axes=1)),
            ("every labeling counts the same here: weigh it by its probability",
             lambda q, g: g.mean(axis=0)),
            ("the probabilities are made to sum to 1 here: leave them as they are",
             lambda q, g: mean_gradient(q, g) / np.exp(q).sum()),
            ("this is one number a labeling: add up labelings, keep frames and symbols",
             lambda q, g: np.exp(q) * g.sum(axis=(1, 2))),
        ),
    ),
    "2.2": Function(
        "expected_length(log_p, gradients) returns Σ_k p_k ‖g_k‖²",
        BEAMS, length,
        (
            ("this is the length of the mean gradient; the mean of the lengths is asked for",
             lambda q, g: float(np.square(mean_gradient(q, g)).sum())),
            ("the norms are squared in Huang et al.'s Eq. 4 (Settles et al. leave the square out)",
             lambda q, g: float((np.exp(q) * np.sqrt(_norms(g))).sum())),
            ("log p comes in, p is asked for: take the exponential",
             lambda q, g: float((q * _norms(g)).sum())),
            ("every labeling counts the same here: weigh it by its probability",
             lambda q, g: float(_norms(g).mean())),
            ("every labeling counts the same here: weigh it by its probability",
             lambda q, g: float(_norms(g).sum())),
            ("the probabilities are made to sum to 1 here: Eq. 4 leaves them as they are",
             lambda q, g: length(q, g) / np.exp(q).sum()),
            ("this is the longest one: a mean, weighed by p, is asked for",
             lambda q, g: float(_norms(g).max())),
        ),
    ),
    "2.3": Function(
        "one_frame(p) returns EGL at the logits of a single frame, a closed form of its "
        "probabilities",
        FRAMES, _one_frame,
        (
            ("this is Σ p²: multiply out Σ_v p_v ‖p − e_v‖², all of its three terms",
             lambda p: float(np.square(p).sum())),
            ("this is the entropy: write the gradient of −log p_v by the logits down first",
             lambda p: float(-(p * np.log(p)).sum())),
            ("only the gradient's own symbol is in it: a labeling's gradient has all V components",
             lambda p: float((p * np.square(1 - p)).sum())),
            ("the norms are squared", lambda p: _one_frame(p, weigh=lambda x: x)),
            ("check the sign of 2 p_v: ‖p − e_v‖² = ‖p‖² − 2 p_v + 1",
             lambda p: float(1 + 3 * np.square(p).sum())),
        ),
    ),
    "2.4": Function(
        "plain_egl(model, features, labelings, log_p) returns Σ_k p_k ‖∇_θ ℓ(x, y_k)‖² over all "
        "parameters, by autograd",
        SPOKEN, by_autograd,
        (
            ("gradients add up in .grad from one labeling to the next: clear them, or use "
             "torch.autograd.grad",
             lambda m, x, y, q: _summed(np.cumsum(_gradients(m, x, y), axis=0), q)),
            ("only the last layer's parameters are in it: all of them are asked for",
             lambda m, x, y, q: _summed(_gradients(m, x, y, slice(2, None)), q)),
            ("the biases are parameters, too",
             lambda m, x, y, q: _summed(_gradients(m, x, y, slice(0, None, 2)), q)),
            ("the norms are squared",
             lambda m, x, y, q: _summed(_gradients(m, x, y), q, weigh=lambda n: n)),
            ("this is the gradient of the expected loss; the expectation of the lengths is asked "
             "for: a backward pass for each labeling",
             lambda m, x, y, q: float(np.square(np.exp(q) @ _gradients(m, x, y)).sum())),
            ("weigh each labeling by its probability",
             lambda m, x, y, q: _summed(_gradients(m, x, y), np.zeros(len(q)))),
            ("log p comes in, p is asked for: take the exponential",
             lambda m, x, y, q: float(q @ np.square(_gradients(m, x, y)).sum(axis=1))),
        ),
    ),
    "2.5": Function(
        "low_rank(A, J, R) returns Σ_r ‖(Uᵀ A)_r J‖² over the R leading left singular vectors of A",
        MATRICES, along,
        (
            ("the rows of Vᵀ have length 1: the singular values are missing",
             lambda A, J, R: along(A, J, R, scaled=False)),
            ("these are the first R labelings: turn the rows by U first", _unsorted),
            ("these are the least important directions: singular values come in falling order",
             lambda A, J, R: along(A, J, R, last=True)),
            ("all directions are in it: R of them are asked for",
             lambda A, J, R: along(A, J, len(A))),
            ("the squares are missing",
             lambda A, J, R: float(np.linalg.norm((np.linalg.svd(A)[0].T @ A)[:R] @ J,
                                                  axis=1).sum())),
        ),
    ),
    "2.6": Function(
        "directions_needed(singular_values, share) returns the smallest R whose directions hold "
        "this share of Σ_r S_r²",
        SPECTRA, needed,
        (
            ("lengths are squared: the share is one of Σ S², not of Σ S", _needed_of_values),
            ("one too few: this many directions hold less than the share",
             lambda s, share: needed(s, share) - 1),
            ("one too many: one fewer holds the share as well",
             lambda s, share: needed(s, share) + 1),
        ),
    ),
    "2.7": Function(
        "last_layer(H, g) returns the squared length of the gradient by the last layer's weights "
        "and bias, from its inputs H [T, D] and the gradient g [T, V] at the logits",
        LAST, last_layer,
        (
            ("the bias is a parameter, too", lambda H, g: last_layer(H, g, bias=0)),
            ("a product of norms is only a bound: the gradient is the matrix Hᵀ g",
             lambda H, g: float(np.square(H).sum() * np.square(g).sum())),
            ("frames share the weights: their gradients add up before the square",
             lambda H, g: float((np.square(H).sum(axis=1) * np.square(g).sum(axis=1)).sum())),
            ("frames share weights and bias: their gradients add up before the square",
             lambda H, g: float(((np.square(H).sum(axis=1) + 1) * np.square(g).sum(axis=1)).sum())),
        ),
    ),
    "2.8": Function(
        "split(log_p, gradients) returns (mass, renormalised EGL): their product is EGL as printed",
        BEAMS, split,
        (
            ("the mass is Σ p, and log p comes in",
             lambda q, g: np.array([q.sum(), length(q, g) / q.sum()])),
            ("the second is EGL as printed: divide it by the mass",
             lambda q, g: np.array([np.exp(q).sum(), length(q, g)])),
            ("divide by the mass, in place of multiplying with it",
             lambda q, g: np.array([np.exp(q).sum(), length(q, g) * np.exp(q).sum()])),
            ("the order is (mass, renormalised EGL)", lambda q, g: split(q, g)[::-1]),
        ),
    ),
    "2.9": Argument("a text: EGL as printed gives what the beam misses the length 0. Which "
                    "utterances does it pass by, and is that a mistake, or a virtue?"),
}  # fmt: skip
