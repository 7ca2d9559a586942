"""Exercises of lab 1, CTC and confidence: what is right, and the mistakes that many make.

Legend: T frames, V symbols (0 = blank), U labels, S = 2U + 1 states.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ..acquisition import mean_entropy, path_ctc
from ..ctc import labelings_gradients, labelings_log_p
from ..decoding import n_best
from ..speech.text import BLANK, Alphabet
from .checks import Argument, Function, Judged, Value, numbers

LETTERS = Alphabet("abc")


def posterior(seed: int, frames: int, symbols: int) -> np.ndarray:
    """Frame posteriors [T, V], drawn."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(symbols, 0.8), size=frames)


# a best path that is another labeling than the best labeling; and a frame that is certain
TIMING = np.array([[0.4, 0.35, 0.25], [0.45, 0.4, 0.15], [0.5, 0.3, 0.2]])
CERTAIN = np.array([[0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
POSTERIORS = tuple((p,) for p in (posterior(0, 3, 3), posterior(1, 4, 3), TIMING, CERTAIN))
LABELED = (
    (posterior(2, 3, 3), [1]), (posterior(3, 3, 3), [1, 2]), (posterior(4, 4, 3), [1, 1]),
    (posterior(5, 4, 3), [2, 1, 2]), (posterior(6, 3, 3), []),
)  # fmt: skip


def log_probs(p) -> torch.Tensor:
    return torch.as_tensor(np.asarray(p)).log()[None]


def one_labeling(labels) -> tuple[torch.Tensor, torch.Tensor]:
    """A labeling as the package takes them: [1, 1, U] and its length [1, 1]."""
    padded = torch.zeros(1, 1, max(1, len(labels)), dtype=torch.long)
    padded[0, 0, : len(labels)] = torch.tensor(labels, dtype=torch.long)
    return padded, torch.tensor([[len(labels)]])


def probability(p, labels) -> float:
    return float(labelings_log_p(log_probs(p), *one_labeling(labels)).exp())


# ---------------------------------------------------------------- paths and states


def collapsed(path) -> list[int]:
    return LETTERS.encode(LETTERS.collapse(path))


def _merged(path) -> list[int]:
    return [symbol for symbol, _ in itertools.groupby(path)]


def _paths(p, labels) -> list[float]:
    """Probabilities of the paths that collapse to a labeling."""
    T, V = p.shape
    return [
        float(np.prod([p[t, v] for t, v in enumerate(path)]))
        for path in itertools.product(range(V), repeat=T)
        if collapsed(path) == list(labels)
    ]


def _added(p, labels) -> float:
    """Where the symbols of a path are added in place of multiplied."""
    T, V = p.shape
    paths = itertools.product(range(V), repeat=T)
    right = [path for path in paths if collapsed(path) == list(labels)]
    return sum(p[t, v] for path in right for t, v in enumerate(path))


def states(p, labels, skip="rule", begin=2, emitted=True) -> np.ndarray:
    """The forward table [T, S], written out: the probability of all sequences of states up to frame
    t that end in state s. ``skip`` and ``begin`` are varied to know mistakes by their outcome."""
    T, S = len(p), 2 * len(labels) + 1
    symbol = [BLANK if s % 2 == 0 else labels[s // 2] for s in range(S)]
    table = np.zeros((T, S))

    def allowed(s, t) -> bool:
        if t == s + 2 and t % 2 == 1:
            return {"rule": symbol[s] != symbol[t], "always": True, "never": False}[skip]
        return t in (s, s + 1)

    for t in range(T):
        for way in itertools.product(range(S), repeat=t + 1):
            if way[0] < begin and all(map(allowed, way, way[1:])):
                frames = enumerate(way) if emitted else enumerate(way[:-1])
                table[t, way[-1]] += np.prod([p[i, symbol[s]] for i, s in frames])
    return table


def _by_state(p, labels) -> np.ndarray:
    """Occupancy of each state, [T, S]."""
    forward = states(p, labels)
    backward = states(p[::-1], labels[::-1], emitted=False)[::-1, ::-1]
    return forward * backward / probability(p, labels)


def _by_symbol(table, labels, V: int) -> np.ndarray:
    out = np.zeros((len(table), V))
    for s in range(table.shape[1]):
        out[:, BLANK if s % 2 == 0 else labels[s // 2]] += table[:, s]
    return out


def occupancy(p, labels) -> np.ndarray:
    gradients = labelings_gradients(log_probs(p), *one_labeling(labels))[0, 0]
    return np.asarray(p) - gradients.numpy()


def _emitted_twice(p, labels) -> np.ndarray:
    both = states(p, labels) * states(p[::-1], labels[::-1])[::-1, ::-1]
    return _by_symbol(both / probability(p, labels), labels, p.shape[1])


def _rows(output, p, *_) -> str:
    if output.shape == np.shape(p) and not np.allclose(output.sum(axis=1), 1, atol=1e-4):
        told = ", ".join(f"{x:.3f}" for x in output.sum(axis=1))
        return f"every frame carries one symbol: rows must sum to 1, and yours sum to {told}"
    return ""


def softmax(logits) -> np.ndarray:
    return torch.as_tensor(np.asarray(logits)).softmax(-1).numpy()


def gradient(logits, labels) -> np.ndarray:
    z = torch.as_tensor(np.asarray(logits))[None].log_softmax(-1)
    return labelings_gradients(z, *one_labeling(labels))[0, 0].numpy()


LOGITS = tuple((np.log(p) + 0.3 * i, labels) for i, (p, labels) in enumerate(LABELED[:4]))


# ---------------------------------------------------------------- confidence


def entropy(p) -> float:
    return float(mean_entropy(log_probs(np.clip(p, 1e-12, 1)))[0])


def frame_entropies(p) -> np.ndarray:
    p = np.clip(p, 1e-12, 1)
    return -(p * np.log(p)).sum(axis=1)


def best(p):
    return n_best(log_probs(np.clip(p, 1e-12, 1)), k=1, beam=100)


def pctc(p) -> float:
    return float(path_ctc(best(p).log_p[:, 0], len(p))[0])


def _by_best_path(p) -> float:
    return float(-np.log(p.max(axis=1)).sum() / len(p))


def _of_best_paths_labeling(p) -> float:
    return float(-np.log(probability(p, collapsed(p.argmax(axis=1)))) / len(p))


def disagree(answer) -> str:
    """Two posteriors, of which entropy queries the first one first, and pCTC the second."""
    first, second = (np.asarray(numbers(p), dtype=float) for p in answer)
    for name, p in (("first", first), ("second", second)):
        if p.ndim != 2 or not 2 <= p.shape[1] <= 6 or not 1 <= len(p) <= 8:
            return f"the {name} posterior must have the shape [T, V], at most 8 frames, 6 symbols"
        if (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
            return f"the {name} posterior's rows are no distributions: none below 0, sums of 1"
    by_entropy = entropy(first) - entropy(second)
    by_pctc = pctc(second) - pctc(first)
    if by_entropy < 0.05 and by_pctc < 0.02:
        return "they disagree on these, but the other way round: exchange the two"
    if by_entropy < 0.05:
        return "entropy must query the first one first, by 0.05 nats at least, and it does not"
    if by_pctc < 0.02:
        return (
            "entropy queries the first one first, as it should, but so does pCTC: which kind of "
            "doubt about a frame leaves the labeling as it is?"
        )
    return ""


EXERCISES = {
    "1.1": Function(
        "collapse(path) returns the labeling of a path: a list of symbol numbers",
        (([1, 1, 0, 1, 2],), ([0, 0, 0],), ([1, 2, 2, 0, 2],), ([3, 1, 3],), ([2, 0, 0, 2, 2, 1],)),
        collapsed,
        (
            ("blanks must separate: merge repeats first, then drop blanks",
             lambda path: _merged([v for v in path if v])),
            ("repeats are merged, blanks are still there", _merged),
            ("blanks are dropped, repeats are still there", lambda path: [v for v in path if v]),
            ("a symbol may come again later: merge only neighbours",
             lambda path: [v for v in dict.fromkeys(path) if v]),
        ),
    ),
    "1.2": Value(
        "how many of the 27 paths of three frames over {·, a, b} collapse to 'a'?",
        "1.2", "83c05a31b1e9",
        (
            ("'a·a' collapses to 'aa', not to 'a'", "79b3f970b6c2"),
            ("paths may repeat the 'a', too: 'aa·' is one of them", "c1edbb71178f"),
            ("blanks may come before, and after, the 'a's", "27422571e323"),
            ("there is no 'b' in any of them, and one path of blanks and 'a's is empty",
             "17afa70e5c90"),
        ),
    ),
    "1.3": Function(
        "labeling_probability(posterior, labels) returns p(labels | x), the sum over all paths "
        "that collapse to it of the products of their frames' probabilities",
        LABELED, probability,
        (
            ("this is the most likely path alone: a labeling's probability is the sum over all of "
             "its paths", lambda p, y: max(_paths(p, y), default=0.0)),
            ("this is the mean over the paths: it is their sum",
             lambda p, y: float(np.mean(_paths(p, y) or [0]))),
            ("frames are independent given x: a path's probability is a product, not a sum",
             _added),
            ("this counts the paths: add up their probabilities",
             lambda p, y: float(len(_paths(p, y)))),
        ),
    ),
    "1.4": Function(
        "forward(posterior, labels) returns the table alpha [T, 2U + 1]: the probability of all "
        "beginnings up to frame t that end in state s",
        LABELED, states,
        (
            ("between two equal labels the blank cannot be skipped: else they would be merged",
             lambda p, y: states(p, y, skip="always")),
            ("a blank between two different labels may be skipped",
             lambda p, y: states(p, y, skip="never")),
            ("a path may begin with the first label, not only with a blank",
             lambda p, y: states(p, y, begin=1)),
            ("a path begins with the blank or with the first label, and nowhere else",
             lambda p, y: states(p, y, begin=99)),
            ("the frame's own probability is missing: alpha [t, s] includes frame t",
             lambda p, y: states(p, y, emitted=False)),
        ),
    ),
    "1.5": Function(
        "occupancy(posterior, labels) returns [T, V]: the probability that frame t carries symbol "
        "v, given the labeling",
        LABELED[:4], occupancy,
        (
            ("each frame's own probability is in alpha and in beta: it counts twice, divide by it "
             "once", _emitted_twice),
            ("not divided by p(labels | x): it is a probability given the labeling",
             lambda p, y: occupancy(p, y) * probability(p, y)),
            ("these are states: add up those that stand for the same symbol", _by_state),
            ("this is the posterior itself, which has not heard of the labeling",
             lambda p, y: np.asarray(p)),
        ),
        look=_rows,
    ),
    "1.6": Function(
        "logit_gradient(logits, labels) returns the gradient of −log p(labels | x) by the logits, "
        "[T, V]",
        LOGITS, gradient,
        (
            ("this is the gradient of log p: the loss is −log p", lambda z, y: -gradient(z, y)),
            ("this is the gradient by the log probabilities; the softmax must sum to 1, which the "
             "chain rule brings in", lambda z, y: -occupancy(softmax(z), y)),
            ("this is the gradient by the probabilities: go on through the softmax, to the logits",
             lambda z, y: -occupancy(softmax(z), y) / softmax(z)),
            ("logits, not probabilities, come in: take the softmax of them",
             lambda z, y: np.asarray(z) - occupancy(softmax(z), y)),
        ),
    ),
    "1.7": Function(
        "mean_entropy(posterior) returns the mean over frames of the entropy of the symbols, in "
        "nats; where p is 0, p log p is 0",
        POSTERIORS, entropy,
        (
            ("this is a sum over frames where their mean is asked for",
             lambda p: frame_entropies(p).sum()),
            ("this is the mean over frames and symbols: add up symbols, average over frames",
             lambda p: frame_entropies(p).mean() / p.shape[1]),
            ("these are the frames' entropies: their mean is asked for", frame_entropies),
            ("a logarithm has been forgotten: this is Σ p²",
             lambda p: float(np.square(p).sum(axis=1).mean())),
            ("this is 1 − Σ p², another measure of doubt (Gini's): the entropy has a logarithm",
             lambda p: float(1 - np.square(p).sum(axis=1).mean())),
        ),
    ),
    "1.8": Function(
        "pctc(posterior) returns −log p(y* | x) / T, with y* the most probable labeling",
        POSTERIORS, pctc,
        (
            ("this is the most likely path's probability: y* is a labeling, and has many paths",
             _by_best_path),
            ("the most likely path need not collapse to the most likely labeling: compare "
             "labelings", _of_best_paths_labeling),
            ("divide by the number of frames", lambda p: pctc(p) * len(p)),
            ("divide by the number of frames, not of labels",
             lambda p: pctc(p) * len(p) / max(1, int(best(p).lengths[0, 0]))),
        ),
    ),
    "1.9": Judged("(first, second): two posteriors [T, V], of which entropy queries the first one "
                  "first, and pCTC the second", disagree),
    "1.10": Argument("a text: why do entropy and pCTC rank the pool alike, although you could make "
                     "posteriors on which they do not?"),
}  # fmt: skip
