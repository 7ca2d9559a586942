"""Exercises of lab 4, beyond EGL: what is right, and the mistakes that many make.

Legend: N utterances, D features, T frames, V symbols.
"""

from __future__ import annotations

import numpy as np
import torch

from ..embeddings import Candidates
from ..resampling import sign_flip_p
from ..selection import k_centre
from ..sisters.few_labels import SCORES
from ..sisters.joint import ranking_loss
from ..sisters.slimipl import soft_loss
from ..statistics import interval
from ..workshop.errors import cut
from .checks import Argument, Function, Judged, unanswered

# ---------------------------------------------------------------- a hypothesis

FIELDS = {
    "claim": "a sentence that may turn out to be false",
    "method": "what is tried",
    "against": "what it is held against",
    "measure": "the column in which it is judged",
    "lower_is_better": "True for an error, False for an accuracy",
    "matters_from": "the smallest difference that would matter to you, above 0",
    "refuted_if": "what you would have to see to give the claim up",
}


def hypothesis(answer) -> str:
    """A hypothesis that can fail, written before the result is seen."""
    if not isinstance(answer, dict):
        raise TypeError("no dictionary")
    missing = [x for x in FIELDS if x not in answer or unanswered(answer[x])]
    if missing:
        return f"'{missing[0]}' is missing: {FIELDS[missing[0]]}"
    if unknown := [x for x in answer if x not in FIELDS]:
        return f"'{cut(unknown[0])}' is none of the fields: {', '.join(FIELDS)}"
    if str(answer["method"]) == str(answer["against"]):
        return "a method against itself can show nothing: name another one under 'against'"
    if not isinstance(answer["lower_is_better"], bool | np.bool_):
        return f"'lower_is_better': {FIELDS['lower_is_better']}"
    amount = answer["matters_from"]
    if isinstance(amount, bool | str) or not 0 < float(amount) < 100:
        return f"'matters_from': {FIELDS['matters_from']}, in the measure's unit"
    for name in ("claim", "refuted_if"):
        if len(str(answer[name]).split()) < 5:
            return f"'{name}' in a sentence: {FIELDS[name]}"
    return ""


# ---------------------------------------------------------------- predicted loss


def _drawn(seed: int, *shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


RANKED = tuple((_drawn(seed, N), _drawn(seed + 9, N)) for seed, N in ((0, 6), (1, 4), (2, 10)))


def ranking(predicted, true) -> float:
    return float(ranking_loss(torch.as_tensor(predicted), torch.as_tensor(true)))


def _terms(predicted, true, margin=1.0, sign=np.sign) -> np.ndarray:
    n = len(predicted) // 2
    p, t = (x[:n] - x[n : 2 * n] for x in (np.asarray(predicted), np.asarray(true)))
    return margin - sign(t) * p


# ---------------------------------------------------------------- diverse batches

POINTS = (
    (_drawn(3, 9, 2), _drawn(4, 2, 2), 4), (_drawn(5, 12, 3), _drawn(6, 1, 3), 5),
    (np.array([[0.0], [4], [5], [9], [10]]), np.array([[0.0]]), 3),
)  # fmt: skip


def _candidates(points) -> Candidates:
    N = len(points)
    blank = np.zeros((N, 1))
    return Candidates(np.arange(N), np.ones(N), blank[:, None], blank, np.asarray(points), {})


def farthest(points, labelled, amount) -> list[int]:
    return k_centre(_candidates(points), amount, _candidates(labelled)).tolist()


def _distances(points, others) -> np.ndarray:
    return np.square(points[:, None] - others[None]).sum(axis=2)


def _greedily(points, labelled, amount, pick, reduce) -> list[int]:
    known, order = list(labelled), []
    while len(order) < amount:
        d = reduce(_distances(points, np.array(known)))
        d = np.where(np.isin(np.arange(len(points)), order), np.nan, d)
        order.append(int(pick(d)))
        known.append(points[order[-1]])
    return order


def _at_once(points, labelled, amount) -> list[int]:
    return list(np.argsort(-_distances(points, labelled).min(axis=1), kind="stable")[:amount])


# ---------------------------------------------------------------- pseudo-labels, encoders

FRAMES = tuple(
    (_drawn(seed, T, 4), np.random.default_rng(seed).dirichlet(np.ones(4), T))
    for seed, T in ((7, 3), (8, 5))
)


def _soft_loss(logits, teacher) -> torch.Tensor:
    z = torch.tensor(np.array(logits), requires_grad=True)
    valid = torch.ones(1, len(z), dtype=torch.bool)
    return z, soft_loss(z.log_softmax(-1)[None], torch.as_tensor(np.array(teacher))[None], valid)


def soft_gradient(logits, teacher) -> np.ndarray:
    z, loss = _soft_loss(logits, teacher)
    return torch.autograd.grad(loss, z)[0].numpy()


def _softmax(logits) -> np.ndarray:
    return torch.as_tensor(np.asarray(logits)).softmax(-1).numpy()


CLIPS = tuple((2 * _drawn(seed, 5, 4),) for seed in (10, 11))


def _score(name):
    return lambda logits: SCORES[name](torch.as_tensor(np.asarray(logits))).numpy()


# ---------------------------------------------------------------- tests

FEW = tuple((np.array(x),) for x in ([-1.0, -0.5, -2.0, -0.3, -0.9], [0.4, -0.7, 1.1, 0.2],
                                     [-3.0, -2.0, 0.5, -1.0, -2.5, -0.1]))  # fmt: skip


def _flipped(d) -> np.ndarray:
    """Means under all flips of signs."""
    signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    return signs @ np.asarray(d) / len(d)


def _one_sided(d) -> float:
    means = _flipped(d)
    return float((means <= np.mean(d) + 1e-9).mean())


def _other_side(d) -> float:
    return float((_flipped(d) >= np.mean(d) - 1e-9).mean())


def _without_its_own(d) -> float:
    far = (np.abs(_flipped(d)) >= abs(np.mean(d)) - 1e-9).sum() - 1
    return float(far / (2 ** len(d) - 1))


def _strictly(d) -> float:
    return float((np.abs(_flipped(d)) > abs(np.mean(d)) + 1e-9).mean())


DECIDED = (
    (np.array([-1.0, -1.2, -0.8, -1.1]), True), (np.array([-1.0, -1.2, -0.8, -1.1]), False),
    (np.array([0.9, 1.2, 0.8]), True), (np.array([0.9, 1.2, 0.8]), False),
    (np.array([-0.4, 0.5, -0.9, 0.1, -0.3]), True),
    # four of five below 0, and a mean that is
    (np.array([-0.5, -0.6, -0.4, -0.5, 1.0]), True),
)  # fmt: skip
SUPPORTED, REFUTED, OPEN = "supported", "refuted", "not decided"


def decide(differences, lower_is_better, ends=None) -> str:
    low, high = interval(differences)[1:] if ends is None else ends(differences)
    sign = 1 if lower_is_better else -1
    if max(sign * low, sign * high) < 0:
        return SUPPORTED
    return REFUTED if min(sign * low, sign * high) > 0 else OPEN


def _by_mean(differences, lower_is_better) -> str:
    return decide(differences, lower_is_better, lambda d: (np.mean(d), np.mean(d)))


def _two_words(differences, lower_is_better) -> str:
    found = decide(differences, lower_is_better)
    return found if found == SUPPORTED else REFUTED


EXERCISES = {
    "4.1": Function(
        "margin(logits) returns 1 − (p₁ − p₂), of the two largest probabilities of each row",
        CLIPS, _score("margin"),
        (
            ("these are logits' margins: take the softmax first (the ALOE paper's equation takes "
             "probabilities, its code logits)", _score("margin_logits")),
            ("this is the largest margin, to the smallest probability: the second largest is asked "
             "for", _score("largest_margin")),
            ("this is least confidence, 1 − p₁", _score("least_confidence")),
            ("a higher score is queried first: 1 − the margin",
             lambda z: 1 - _score("margin")(z)),
        ),
    ),
    "4.2": Function(
        "soft_gradient(logits, teacher) returns the gradient by the student's logits of the mean "
        "over frames of −Σ_v p_teacher log p_student, [T, V]",
        FRAMES, soft_gradient,
        (
            ("the sign is wrong", lambda z, q: -soft_gradient(z, q)),
            ("this is a sum over frames where their mean is asked for",
             lambda z, q: soft_gradient(z, q) * len(z)),
            ("logits, not probabilities, come in: take the softmax of them",
             lambda z, q: (np.asarray(z) - q) / len(z)),
            ("logits, not probabilities, come in: take the softmax of them",
             lambda z, q: np.asarray(z) - q),
            ("this is the gradient by the log probabilities: the softmax must sum to 1, which the "
             "chain rule brings in", lambda z, q: -np.asarray(q) / len(z)),
            ("this is the gradient by the probabilities: go on through the softmax, to the logits",
             lambda z, q: -np.asarray(q) / _softmax(z) / len(z)),
        ),
    ),
    "4.3": Function(
        "ranking(predicted, true) returns the mean of max(0, 1 − sign(l_i − l_j) (l̂_i − l̂_j)) over "
        "pairs of the first half's with the second half's",
        RANKED, ranking,
        (
            ("a pair that is in the right order by more than the margin costs nothing: max(0, …)",
             lambda p, t: float(_terms(p, t).mean())),
            ("this is a sum over the pairs where their mean is asked for",
             lambda p, t: ranking(p, t) * (len(p) // 2)),
            ("only the order of the true losses counts, not by how much: their sign",
             lambda p, t: float(_terms(p, t, sign=lambda x: x).clip(0).mean())),
            ("this rewards the wrong order: look at the sign",
             lambda p, t: float(_terms(-np.asarray(p), t).clip(0).mean())),
            ("the margin is 1", lambda p, t: float(_terms(p, t, margin=0.0).clip(0).mean())),
        ),
    ),
    "4.4": Function(
        "farthest_first(points, labelled, amount) returns row numbers: each time the point that is "
        "farthest from its nearest neighbour among the labelled and the chosen",
        POINTS, farthest,
        (
            ("this looks once: what has been chosen is a neighbour, too, from then on", _at_once),
            ("these are the nearest ones",
             lambda x, y, n: _greedily(x, y, n, np.nanargmin, lambda d: d.min(axis=1))),
            ("the distance is that from the *nearest* neighbour, not from the farthest",
             lambda x, y, n: _greedily(x, y, n, np.nanargmax, lambda d: d.max(axis=1))),
            ("the distance is that from the *nearest* neighbour, not the mean of all",
             lambda x, y, n: _greedily(x, y, n, np.nanargmax, lambda d: d.mean(axis=1))),
            ("only the one chosen last is looked at: all that is labelled or chosen counts",
             lambda x, y, n: _greedily(x, y, n, np.nanargmax, lambda d: d[:, -1])),
        ),
    ),
    "4.5": Judged(f"a dictionary of your hypothesis with the fields {', '.join(FIELDS)}",
                  hypothesis),
    "4.6": Function(
        "sign_flip(differences) returns the two-sided p: the share of all flips of signs whose "
        "mean is as far from 0 as the one at hand, or farther",
        FEW, lambda d: sign_flip_p(d),
        (
            ("this is one-sided: far from 0 on either side counts", _one_sided),
            ("this is one-sided: far from 0 on either side counts", _other_side),
            ("the flip that changes nothing is one of them: no p is 0", _without_its_own),
            ("as far, or farther: the one at hand counts, too", _strictly),
        ),
    ),
    "4.7": Function(
        "decide(differences, lower_is_better) returns 'supported', 'refuted' or 'not decided', by "
        "the 95 % interval of the mean",
        DECIDED, decide,
        (
            ("the mean's side decides nothing: the whole interval must lie there", _by_mean),
            ("an interval that holds 0 refutes nothing: there is a third word for it", _two_words),
            ("an accuracy is better when it is higher: look at lower_is_better",
             lambda d, lower: decide(d, True)),
            ("supported and refuted are exchanged", lambda d, lower: decide(d, not lower)),
        ),
    ),
    "4.8": Argument("a text: what became of your hypothesis, what else would explain the result, "
                    "and what you would do next"),
}  # fmt: skip
