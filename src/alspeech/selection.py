"""Selections: which utterances *together* are worth labelling, for a target that is in sight.

    select(candidates, amount, **options) -> row numbers, best first

where a score (acquisition.py) looks at one utterance at a time. ``candidates`` are the pool, sorted
by id; ``amount`` is how many are to be ranked. Of ``labelled`` (the base set), ``target`` (audio of
what the recogniser is for, or None), ``seed``, ``ridge``, ``per_second``, ``reach``, ``smooth``,
``eta`` and ``beta`` a function gets what it names. All of a ranking's beginnings are rankings:
10 % are the first half of 20 %.

Legend: N candidates, R directions, d numbers, D features, m a few of the candidates.

Huang et al. (2016, § 2.3) want the query that makes the variance of the test loss small,
tr(A⁻¹ F_T) with A the Fisher information of what is labelled and F_T that of the target (Eq. 3),
call it hard to optimise, and take tr(F_u), EGL, instead: what is lost are the inverse and the
target. With F_u = Uᵀ U of a few directions (embeddings.py) both can be had: ``fisher_ratio``.

To add a selection: write it here, enter it in ``SELECTIONS``, and give it a line in
``METHOD_STYLE`` (workshop/styles.py), if it is to have its own.

In rounds (studies.py) the candidates are what is left, and ``labelled`` is the base set with what
has been bought. Equals go by their ids. What greedy choices gain, and the aimed scores, count as
equal if only rounding tells them apart, as it does in other batches; ``egl_per_second`` and
``power_egl`` sort what they have.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from .acquisition import cluster, in_turn, needed, uniform
from .embeddings import Candidates
from .likeness import log_density_ratio
from .workshop.config import SPLITS, SelectionConfig
from .workshop.errors import UserError, cut
from .workshop.scenarios import TARGET

# ---------------------------------------------------------------- greedy

PLAIN = 4096  # up to so many candidates every choice looks at all of them
WIDTH = 512  # of more: at so many, as long as no other can gain more than the best of them
CHUNK = 1024
CHOICES = 64  # until what has been updated is computed anew


def greedy(criterion, count: int, amount: int) -> np.ndarray:
    """Row numbers of ``amount`` of ``count`` candidates: each time the one that gains most, of
    equals the first.

    ``criterion.look(rows)`` turns to some candidates, ``.gains()`` are theirs, and ``.take(i)``
    chooses the i-th of them. Of more than ``PLAIN`` candidates a choice is among the ``WIDTH`` that
    gained most when all were last compared, which is done lazily (Minoux 1978): gains hardly ever
    rise, so that what a candidate gained once bounds what it gains now. As soon as one of the
    others might gain more than the best, they are compared anew: where gains only fall, the choices
    are the same.
    """
    order, left, known = [], np.ones(count, bool), np.full(count, np.inf)
    while len(order) < min(amount, count):
        rows, bound = np.flatnonzero(left), -np.inf
        if count > PLAIN:
            rows, bound = _foremost(criterion, rows, known)
        criterion.look(rows)
        free = np.ones(len(rows), bool)
        for turn in range(min(CHOICES, len(rows), min(amount, count) - len(order))):
            gains = np.where(free, criterion.gains(), -np.inf)
            i = first_best(gains)
            if turn and gains[i] < bound:
                break
            criterion.take(i)
            order.append(rows[i])
            left[rows[i]] = free[i] = False
    return np.array(order, dtype=int)


def _foremost(criterion, rows: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """The ``WIDTH`` of some candidates that gain most, in their order, and the most that any other
    may gain; ``known`` is brought up to date as far as that takes."""
    rows = rows[np.argsort(-known[rows], kind="stable")]
    for start in range(0, len(rows), CHUNK):
        if start and np.partition(known[rows[:start]], -WIDTH)[-WIDTH] >= known[rows[start]]:
            break
        chunk = rows[start : start + CHUNK]
        criterion.look(chunk)
        known[chunk] = criterion.gains()
    rows = np.sort(rows)  # of equals the first
    rows = rows[np.argsort(-known[rows], kind="stable")]
    return np.sort(rows[:WIDTH]), known[rows[WIDTH:]].max(initial=-np.inf)


def first_best(gains: np.ndarray) -> int:
    """The first of those that are as good as the best but for rounding, so that utterances that are
    equal go by their ids, whatever batches they were in."""
    best = gains.max()
    return int(np.argmax(gains >= best - 1e-6 * abs(best)))


# ---------------------------------------------------------------- Fisher information


class Information:
    """The Fisher information A = λI + F_L + Σ_S F_u of what is labelled, M its inverse, and what a
    candidate F_u = Uᵀ U gains, in double precision:

    - with a target, tr[A⁻¹ F_T] − tr[(A + F_u)⁻¹ F_T] = tr[(I + U M Uᵀ)⁻¹ U M F_T M Uᵀ],
    - without, log det(A + F_u) − log det A = log det(I + U M Uᵀ).

    A choice takes M to M − Pᵀ P with P = C⁻¹ U M, C Cᵀ = I + U M Uᵀ (Woodbury). What the gains of
    m others need, ``K`` = U M Uᵀ and ``Q`` = U M F_T M Uᵀ [m, R, R], follows by products of their U
    with 2 R columns: m R · d · 2R multiplications instead of m R · d². ``look`` inverts anew.
    """

    def __init__(self, directions, information, target=None, seconds=None):
        self.directions, self.A, self.F = directions, information.copy(), target
        self.seconds = np.ones(len(directions)) if seconds is None else seconds

    def look(self, rows) -> None:
        self.M = np.linalg.inv(self.A)
        self.U, self.costs = self.directions[rows].astype(float), self.seconds[rows]  # [m, R, d]
        by_M = _times(self.U, self.M)
        self.K = by_M @ self.U.mT
        self.Q = None if self.F is None else _times(by_M, self.F) @ by_M.mT

    def gains(self) -> np.ndarray:
        grown = np.eye(self.K.shape[1]) + self.K
        if self.F is None:
            return np.linalg.slogdet(grown)[1] / self.costs
        return np.linalg.solve(grown, self.Q).trace(axis1=1, axis2=2) / self.costs

    def take(self, i: int) -> None:
        U, R = self.U[i], self.K.shape[1]
        P = np.linalg.solve(np.linalg.cholesky(np.eye(R) + self.K[i]), U @ self.M)  # [R, d]
        if self.F is None:
            W = _times(self.U, P.T)  # [m, R, R]
        else:
            FP = self.F @ P.T  # [d, R]
            W, V = np.split(_times(self.U, np.hstack([P.T, self.M @ FP])), 2, axis=2)
            half = (_times(W, P @ FP / 2) - V) @ W.mT  # of what is symmetric
            self.Q += half + half.mT
        self.K -= W @ W.mT
        self.M -= P.T @ P
        self.A += U.T @ U


def _times(U: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[m, R, d] times [d, n] in one product: m small ones take several times as long."""
    return (U.reshape(-1, U.shape[2]) @ matrix).reshape(*U.shape[:2], -1)


def fisher(candidates: Candidates) -> np.ndarray:
    """Σ_u F_u, [d, d]."""
    d = candidates.directions.shape[2]
    total = np.zeros((d, d))
    for start in range(0, len(candidates), CHUNK):
        rows = candidates.directions[start : start + CHUNK].reshape(-1, d).astype(float)
        total += rows.T @ rows
    return total


def ridged(ridge: float, F: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """λI + F with λ = ``ridge`` times F's mean eigenvalue, or that of the first of the others that
    is not zero. It is never singular: ``ridge`` 0 stands for 1e-9, and 1 where all are zero."""
    means = [x.trace() / len(x) for x in (F, *others)]
    scale = next((mean for mean in means if mean > 0), 1 / max(ridge, 1e-9))
    return F + max(ridge, 1e-9) * scale * np.eye(len(F))


def fisher_ratio(
    candidates, amount, labelled, target=None, ridge=1.0, per_second=False
) -> np.ndarray:  # fmt: skip
    """Greedy minimisation of tr[(λI + F_L + Σ_S F_u)⁻¹ F_T], the Fisher information ratio.

    Huang et al. 2016, Eq. 3; Ash et al. 2021 (BAIT) for classifiers, with the pool as target.
    ``ridge`` is λ in mean eigenvalues of F_L; ``per_second``: the gain is divided by what it costs.
    Without a target F_T = I, and the mean variance of all parameters is what falls (A-optimality).

    To first order in F_u, with A and F_T ∝ I, the gain is tr(F_u) / a²: renormalised EGL of the
    last layer, which is thus what a large ``ridge`` and no target leave of it.
    """
    F = fisher(labelled)
    F_T = np.eye(len(F)) if target is None else fisher(target)
    A = ridged(ridge, F, F_T if target is not None else fisher(candidates))
    seconds = candidates.seconds if per_second else None
    return greedy(Information(candidates.directions, A, F_T, seconds), len(candidates), amount)


def fisher_ratio_pool(candidates, amount, labelled, ridge=1.0, per_second=False) -> np.ndarray:
    """:func:`fisher_ratio` with the pool for target, as in BAIT (Ash et al. 2021)."""
    return fisher_ratio(candidates, amount, labelled, candidates, ridge, per_second)


def fisher_ratio_near(
    candidates, amount, labelled, target, ridge=1.0, per_second=False, reach=0.95
) -> np.ndarray:  # fmt: skip
    """:func:`fisher_ratio` among the candidates that could be the target's: no farther from its
    nearest utterance (by embeddings) than the share ``reach`` of the target's own are from theirs.
    What is farther comes last, the nearest first.

    A gradient is long, too, where the model has never heard the like, and the last layer, for which
    all sounds look alike in part, takes what is learned there for what the target needs. Outliers
    are what active learning fails by (Karamcheti et al. 2021).
    """
    own = _squared_distances(target.embeddings, target.embeddings)
    np.fill_diagonal(own, np.inf)
    limit = np.quantile(own.min(axis=1), reach) if len(own) > 1 else np.inf
    distances = nearest(candidates.embeddings, target.embeddings)
    near, far = np.flatnonzero(distances <= limit), np.flatnonzero(distances > limit)
    first = fisher_ratio(candidates.rows(near), amount, labelled, target, ridge, per_second)
    rest = far[np.argsort(distances[far], kind="stable")]
    return np.concatenate([near[first], rest])[:amount]


def d_optimal(candidates, amount, labelled, ridge=1.0, per_second=False) -> np.ndarray:
    """Greedy log det(λI + F_L + Σ_S F_u): the volume of what remains possible (D-optimal design,
    Wald 1943; its gains only fall, so that greedy reaches 1 − 1/e of the best)."""
    A = ridged(ridge, fisher(labelled), fisher(candidates))
    seconds = candidates.seconds if per_second else None
    information = Information(candidates.directions, A, seconds=seconds)
    return greedy(information, len(candidates), amount)


# ---------------------------------------------------------------- as likely in the target


def fisher_ratio_aimed(
    candidates, amount, labelled, target, ridge=1.0, per_second=False, smooth=0.2
) -> np.ndarray:  # fmt: skip
    """:func:`fisher_ratio`, each gain times p_T/p_P, how much likelier the utterance is in the
    target than in the pool.

    F_T knows the target by the last layer's gradients only; what the encoder makes of its audio
    says more (likeness.py).
    """
    ratio = log_density_ratio(candidates.embeddings, target.embeddings, smooth)
    seconds = candidates.seconds if per_second else 1
    # for so many times the gain, an utterance costs so many times less
    dearer = replace(candidates, seconds=seconds / np.exp(ratio))
    return fisher_ratio(dearer, amount, labelled, target, ridge, per_second=True)


def entropy_aimed(candidates, amount, target, smooth=0.2) -> np.ndarray:
    """Entropy times p_T/p_P: what is unsure, and likelier in the target than in the pool."""
    ratio = log_density_ratio(candidates.embeddings, target.embeddings, smooth)
    entropy = np.maximum(candidates.scores["entropy"].astype(float), 1e-300)
    # rounded, so that hardly any that are equal are told apart by the batches that they were in
    return _order(np.round(np.log(entropy) + ratio, 5))[:amount]


# ---------------------------------------------------------------- coverage


class Coverage:
    """Σ_x w_x max_{s ∈ S} sim(s, x) + Σ_{s ∈ S} bonus_s of ``similarity`` [N, n], from what is
    ``covered`` [n] before; a facility location, whose gains only fall."""

    def __init__(self, similarity, weights, covered, bonus):
        self.similarity, self.weights = similarity, weights
        self.covered, self.bonus = covered.copy(), bonus

    def look(self, rows) -> None:
        self.rows, self.near = rows, self.similarity[rows]

    def gains(self) -> np.ndarray:
        return np.maximum(self.near - self.covered, 0) @ self.weights + self.bonus[self.rows]

    def take(self, i: int) -> None:
        self.covered = np.maximum(self.covered, self.near[i])


def flqmi(candidates, amount, target, eta=1.0) -> np.ndarray:
    """Greedy Σ_t max_{s ∈ S} sim(s, t) + η Σ_{s ∈ S} max_t sim(s, t): facility location with a
    target (Kothawade et al. 2021; for speech, as DITTO, 2023), sim = max(0, cosine of embeddings).

    Once the target is covered, what is left is nearness to it. N · n_T similarities.
    """
    unit = [_unit(x.embeddings) for x in (candidates, target)]
    similarity = np.maximum(unit[0] @ unit[1].T, 0)
    nothing = np.zeros(len(target))
    criterion = Coverage(similarity, nothing + 1, nothing, eta * similarity.max(axis=1))
    return greedy(criterion, len(candidates), amount)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


SAMPLED = 2000  # utterances at most that a coverage of the whole pool is measured on


def uncertainty_herding(candidates, amount, labelled, seed=0) -> np.ndarray:
    """Greedy Σ_x U(x) max_{s ∈ S ∪ L} k(x, s) over the pool's x (Bae et al. 2024), which is
    coverage at a low budget and uncertainty at a high one.

    U is the margin of the two best labelings, k = exp(−‖x − s‖²/2σ²) of embeddings, σ the median
    distance from a labelled utterance (theirs shrinks as S grows). N · min(N, 2,000) kernel values.
    """
    draw = uniform(candidates.utt_ids, seed).numpy()
    some = np.sort(np.argsort(draw, kind="stable")[:SAMPLED])
    points = candidates.embeddings[some]
    to_labelled = nearest(points, labelled.embeddings)
    width = np.median(to_labelled[to_labelled > 0]) if (to_labelled > 0).any() else 1.0
    if not np.isfinite(width):  # nothing is labelled yet
        width = np.median(_squared_distances(points, points[:1]))
    kernel = lambda squared: np.exp(-squared / (2 * max(width, 1e-12)))  # noqa: E731
    similarity = np.empty((len(candidates), len(some)), np.float32)
    for start in range(0, len(candidates), CHUNK):
        part = slice(start, start + CHUNK)
        similarity[part] = kernel(_squared_distances(candidates.embeddings[part], points))
    weights = candidates.scores["nbest_margin"][some].astype(np.float32)
    covered, bonus = kernel(to_labelled).astype(np.float32), np.zeros(len(candidates))
    return greedy(Coverage(similarity, weights, covered, bonus), len(candidates), amount)


def k_centre(candidates, amount, labelled) -> np.ndarray:
    """Farthest first, by embeddings, from the labelled and the chosen (Sener and Savarese 2018).
    N · D multiplications a choice."""
    points, squares = candidates.embeddings, _squares(candidates.embeddings)
    middle = points.mean(axis=0, keepdims=True)
    distances = nearest(points, labelled.embeddings if len(labelled) else middle, squares)
    order = []
    while len(order) < min(amount, len(points)):
        order.append(first_best(distances))
        distances = np.minimum(distances, nearest(points, points[order[-1:]], squares))
        distances[order[-1]] = -1
    return np.array(order, dtype=int)


def _squares(x: np.ndarray) -> np.ndarray:
    return np.square(x).sum(axis=1)


def _squared_distances(x: np.ndarray, y: np.ndarray, squares=None) -> np.ndarray:
    """[N, D] and [n, D] → [N, n]; what is rounding only is 0. ``squares`` [N] are the sums of those
    of x, where they are known."""
    sums = (_squares(x) if squares is None else squares)[:, None] + _squares(y)
    squared = sums - 2 * (x @ y.T)
    return np.where(squared > 1e-6 * sums, squared, 0)


def nearest(x: np.ndarray, y: np.ndarray, squares=None) -> np.ndarray:
    """Squared distance of each of [N, D] from the nearest of [n, D]; infinite where n is 0."""
    if len(y) == 0:
        return np.full(len(x), np.inf)
    squares = _squares(x) if squares is None else squares
    parts = [slice(start, start + CHUNK) for start in range(0, len(x), CHUNK)]
    return np.concatenate([_squared_distances(x[i], y, squares[i]).min(axis=1) for i in parts])


# ---------------------------------------------------------------- drawn at random


def badge(candidates, amount, seed=0) -> np.ndarray:
    """BADGE (Ash et al. 2020): k-means++ over the gradients of the best hypotheses. The longest
    comes first, then each is drawn with a probability that grows with its squared distance from the
    nearest that was chosen.

    N · d multiplications a choice; of more than 20,000 candidates some are drawn at once.
    """
    points, rng = candidates.best, np.random.default_rng(seed)
    amount, together = min(amount, len(points)), 1 + len(points) // 20_000
    squares = _squares(points)
    order = [first_best(squares)]
    distances, new = np.full(len(points), np.inf), order[:]
    while len(order) < amount:
        distances = np.minimum(distances, nearest(points, points[new], squares))
        places = np.cumsum(distances, dtype=float)
        if places[-1] <= 0:  # all that is left has been chosen once already, or has no gradient
            left = np.setdiff1d(np.arange(len(points)), order)
            return np.array([*order, *rng.permutation(left)][:amount])
        drawn = np.searchsorted(places, rng.random(together) * places[-1], side="right")
        new = list(dict.fromkeys(np.minimum(drawn, len(points) - 1).tolist()))
        order += new
    return np.array(order[:amount], dtype=int)


def power_egl(candidates, amount, seed=0, beta=1.0) -> np.ndarray:
    """Stochastic power EGL: log s + Gumbel/β, s the last layer's renormalised EGL, which draws
    with probabilities ∝ s^β (Kirsch et al. 2023), taken in turn from each cluster of embeddings."""
    chance = uniform(candidates.utt_ids, seed).numpy().clip(1e-12, 1 - 1e-12)
    lengths = np.maximum(candidates.scores["egl_last_layer"].astype(float), 1e-300)
    keys = np.log(lengths) - np.log(-np.log(chance)) / beta
    places = _order(keys).argsort()
    groups = cluster(torch.from_numpy(candidates.embeddings), seed=seed)
    return _order(in_turn(groups, 1 - (places + 1) / (len(keys) + 1)).numpy())[:amount]


def egl_per_second(candidates, amount) -> np.ndarray:
    """The last layer's renormalised EGL for a second of audio."""
    return _order(candidates.scores["egl_last_layer"] / candidates.seconds)[:amount]


def _order(values: np.ndarray) -> np.ndarray:
    """Row numbers, the largest value first, equals in their order."""
    return np.argsort(-values, kind="stable")


SELECTIONS = {
    "fisher_ratio": fisher_ratio,
    "fisher_ratio_pool": fisher_ratio_pool,
    "fisher_ratio_near": fisher_ratio_near,
    "fisher_ratio_aimed": fisher_ratio_aimed,
    "entropy_aimed": entropy_aimed,
    "d_optimal": d_optimal,
    "badge": badge,
    "k_centre": k_centre,
    "flqmi": flqmi,
    "uncertainty_herding": uncertainty_herding,
    "power_egl": power_egl,
    "egl_per_second": egl_per_second,
}


def needs_target(strategy: str) -> bool:
    """Can a selection not do without a target? One that can has a default for it."""
    return "target" in needed(SELECTIONS[strategy])


def selection_options(config: SelectionConfig, strategy: str, seed: int) -> tuple[dict, dict]:
    """What a selection takes beside the pool: the splits (or ``TARGET``) whose first passes it is
    to see, by the names that it has for them, None for no target; and of the settings.

    Raises ``UserError`` for one that cannot do without a target and is to, and for one that asks
    for what no selection gets.
    """
    whole = config.target in SPLITS and not config.heard
    aim = config.target if whole else TARGET
    splits = {"labelled": "base", "target": None if config.target == "none" else aim}
    options = {
        x: getattr(config, x) for x in ("ridge", "per_second", "reach", "smooth", "eta", "beta")
    }
    if config.target == "none" and needs_target(strategy):
        raise UserError(f"strategy {strategy} needs a target, and selection: target is none: "
                        "say validation, test, pool or a folder, or leave it out")  # fmt: skip
    taken = inspect.signature(SELECTIONS[strategy]).parameters
    offered = (splits, {"seed": seed} | options)
    for name in needed(SELECTIONS[strategy]):
        if name not in splits | offered[1]:
            raise UserError(
                f"selection {strategy} asks for {cut(name)}: after candidates and amount it can "
                f"have {', '.join(splits | offered[1])}"
            )
    return tuple({name: own[name] for name in own if name in taken} for own in offered)


def choose(strategy: str, candidates: Candidates, amount: int, **options) -> np.ndarray:
    """The row numbers that a selection chooses: ``amount`` different ones, or all there are. Raises
    ``UserError`` where it returns anything else."""
    order, wanted = SELECTIONS[strategy](candidates, amount, **options), len(candidates)
    told, amount = f"selection {strategy} returned", min(amount, wanted)
    try:
        rows = np.asarray(order)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths, a GPU's tensor
        rows = np.array(None)
    if rows.shape == (0,) and amount == 0:  # which need not be whole numbers
        return rows.astype(int)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        kind = f"{rows.dtype} {list(rows.shape)}"
        raise UserError(
            f"{told} {kind if rows.dtype.kind != 'O' else type(order).__name__}, not row numbers, "
            "best first: np.argsort(-scores, kind='stable')[:amount]"
        )
    if len(rows) != amount:
        raise UserError(f"{told} {len(rows)} row numbers of the {amount} that it is to")
    out, counts = rows[(rows < 0) | (rows >= wanted)], np.unique(rows, return_counts=True)
    if len(out):
        raise UserError(f"{told} row {out[0]}: there are 0 to {wanted - 1}")
    if (counts[1] > 1).any():
        raise UserError(f"{told} row {counts[0][counts[1].argmax()]} twice")
    return rows


def as_scores(strategy: str, candidates: Candidates, order: np.ndarray) -> pd.Series:
    """An order as scores by ``utt_id``, higher = query first: N − place of what was chosen, 0 of
    the rest."""
    scores = np.zeros(len(candidates))
    scores[order] = len(candidates) - np.arange(len(order))
    return pd.Series(scores, pd.Index(candidates.utt_ids, name="utt_id"), name=strategy)
