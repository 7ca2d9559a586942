"""Few labels on a frozen encoder: the acquisition functions, the classifiers and the protocol.

Legend: N clips, D numbers of an embedding, C classes, R learners (run × strategy × mode),
P clips of the pool, E passes. A task is one of speech/clips.py.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..workshop.config import AloeConfig
from ..workshop.errors import UserError, one_of
from ..workshop.store import Checkpoint

# Acquisition, of outputs u [P, C], probabilities unless a name says logits: higher = query first.


def smallest_margin(u: Tensor) -> Tensor:
    """1 − (u₁ − u₂), the two largest: [P, C] → [P]. The paper's *uncertainty* (Eq. 2)."""
    best = u.topk(2, dim=-1).values
    return 1 - (best[:, 0] - best[:, 1])


def largest_margin(u: Tensor) -> Tensor:
    """1 − (u₁ − u_last), the largest and the smallest: [P, C] → [P]."""
    return 1 - (u.amax(dim=-1) - u.amin(dim=-1))


def least_confidence(u: Tensor) -> Tensor:
    """1 − max u: [P, C] → [P]."""
    return 1 - u.amax(dim=-1)


def entropy(p: Tensor) -> Tensor:
    """−Σ_c p_c log p_c in nats: [P, C] → [P]."""
    return torch.special.entr(p).sum(dim=-1)


def norm(p: Tensor) -> Tensor:
    """‖p − onehot(argmax p)‖₂: [P, C] → [P]; how long the gradient by the logits would be if the
    prediction were the label."""
    return (p - torch.nn.functional.one_hot(p.argmax(dim=-1), p.shape[-1])).norm(dim=-1)


SCORES = {  # of logits; the paper's equations take probabilities, its code the logits themselves
    "margin": lambda logits: smallest_margin(logits.softmax(-1)),
    "largest_margin": lambda logits: largest_margin(logits.softmax(-1)),
    "least_confidence": lambda logits: least_confidence(logits.softmax(-1)),
    "entropy": lambda logits: entropy(logits.softmax(-1)),
    "norm": lambda logits: norm(logits.softmax(-1)),
    "margin_logits": smallest_margin,
    "largest_margin_logits": largest_margin,
    "least_confidence_logits": least_confidence,
}
MODES = ("aware", "agnostic")  # one clip of each predicted class a step, or one clip
RANDOM, ALL = "random", "all"


def choose(scores: Tensor, predicted: Tensor, free: Tensor, mode: str) -> list[int]:
    """The clips to label next: [P], [P] and [P] (bool: not labelled yet) → row numbers.

    Class-aware takes, for every class that some free clip is predicted as, the one of them that
    scores highest; class-agnostic the one that scores highest of all. Equal scores: the first.
    """
    scores = scores.double().masked_fill(~free, -math.inf)
    if mode == "agnostic":
        return [int(scores.argmax())] if free.any() else []
    present = predicted[free].unique().tolist()
    return [int(scores.masked_fill(predicted != c, -math.inf).argmax()) for c in present]


@numba.njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def fit(W, b, X, y, rows, counts, orders, batch, rate):  # pragma: no cover (compiled)
    """Train R softmax classifiers ``W`` [R, C, D], ``b`` [R, C] in place, each on clips of its own.

    Learner r has the ``counts[r]`` clips ``rows[r]`` of ``X`` [N, D], ``y`` [N], and takes them in
    the order ``orders[r]`` [E, counts[r]] (of places in ``rows[r]``), ``batch`` at a time.
    Cross-entropy, Adam at ``rate`` with torch's defaults: the numbers of one nn.Linear and one
    torch.optim.Adam a learner (gradient written out: softmax − one-hot, times the embedding).

    A learner's weights and moments stay in the processor's nearest caches from its first batch to
    its last, and what is read from them serves several clips and classes at once. That is several
    times as fast as batched matrix products over all learners, whose moments go through memory at
    every batch; ``make bench`` has it against one nn.Linear at a time.
    """
    R, C, D = W.shape
    real = W.dtype.type
    beta1, beta2, eps, one = real(0.9), real(0.999), real(1e-8), real(1)
    room = 8 * ((batch + 7) // 8)  # a batch is filled up to eights with clips of no weight
    at, p = np.empty(room, np.int64), np.empty((room, C), W.dtype)
    G, M, V = np.empty((C, D), W.dtype), np.empty((C, D), W.dtype), np.empty((C, D), W.dtype)
    g, m, v = np.empty(C, W.dtype), np.empty(C, W.dtype), np.empty(C, W.dtype)
    for r in range(R):
        w, bias, step = W[r], b[r], 0
        M[:], V[:], m[:], v[:] = 0, 0, 0, 0
        for epoch in range(orders.shape[1]):
            for start in range(0, counts[r], batch):
                size = min(batch, counts[r] - start)
                filled = 8 * ((size + 7) // 8)
                for i in range(filled):
                    at[i] = rows[r, orders[r, epoch, start + min(i, size - 1)]]
                for i in range(0, filled, 4):  # logits, of two classes at a time
                    x0, x1, x2, x3 = X[at[i]], X[at[i + 1]], X[at[i + 2]], X[at[i + 3]]
                    for c in range(0, C, 2):
                        e = min(c + 1, C - 1)
                        wc, we = w[c], w[e]
                        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = real(0)
                        for d in range(D):
                            s0 += wc[d] * x0[d]
                            s1 += wc[d] * x1[d]
                            s2 += wc[d] * x2[d]
                            s3 += wc[d] * x3[d]
                            t0 += we[d] * x0[d]
                            t1 += we[d] * x1[d]
                            t2 += we[d] * x2[d]
                            t3 += we[d] * x3[d]
                        p[i, e], p[i + 1, e], p[i + 2, e], p[i + 3, e] = t0, t1, t2, t3
                        p[i, c], p[i + 1, c], p[i + 2, c], p[i + 3, c] = s0, s1, s2, s3
                for i in range(filled):  # gradient by the logits: (softmax − one-hot) / size
                    highest = p[i, 0] + bias[0]
                    for c in range(C):
                        p[i, c] += bias[c]
                        highest = max(highest, p[i, c])
                    total = real(0)
                    for c in range(C):
                        p[i, c] = math.exp(p[i, c] - highest)
                        total += p[i, c]
                    weight = one / size if i < size else real(0)
                    for c in range(C):
                        p[i, c] *= weight / total
                    p[i, y[at[i]]] -= weight
                G[:], g[:] = 0, 0
                for i in range(0, filled, 8):
                    x0, x1, x2, x3 = X[at[i]], X[at[i + 1]], X[at[i + 2]], X[at[i + 3]]
                    x4, x5, x6, x7 = X[at[i + 4]], X[at[i + 5]], X[at[i + 6]], X[at[i + 7]]
                    for c in range(C):
                        p0, p1, p2, p3 = p[i, c], p[i + 1, c], p[i + 2, c], p[i + 3, c]
                        p4, p5, p6, p7 = p[i + 4, c], p[i + 5, c], p[i + 6, c], p[i + 7, c]
                        gc = G[c]
                        for d in range(D):
                            gc[d] += (
                                p0 * x0[d] + p1 * x1[d] + p2 * x2[d] + p3 * x3[d]
                                + p4 * x4[d] + p5 * x5[d] + p6 * x6[d] + p7 * x7[d]
                            )  # fmt: skip
                        g[c] += p0 + p1 + p2 + p3 + p4 + p5 + p6 + p7
                step += 1
                size_of_step = real(rate / (1 - 0.9**step))
                scale = real(1 / math.sqrt(1 - 0.999**step))
                for c in range(C):  # Adam
                    wc, gc, mc, vc = w[c], G[c], M[c], V[c]
                    for d in range(D):
                        mc[d] = beta1 * mc[d] + (one - beta1) * gc[d]
                        vc[d] = beta2 * vc[d] + (one - beta2) * gc[d] * gc[d]
                        wc[d] -= size_of_step * mc[d] / (math.sqrt(vc[d]) * scale + eps)
                    m[c] = beta1 * m[c] + (one - beta1) * g[c]
                    v[c] = beta2 * v[c] + (one - beta2) * g[c] * g[c]
                    bias[c] -= size_of_step * m[c] / (math.sqrt(v[c]) * scale + eps)


def initial(run: int, step: int, classes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Initial weights [C, D] and biases [C], as nn.Linear draws them; for all strategies alike."""
    rng = np.random.default_rng([run, step, 1])
    bound = 1 / math.sqrt(size)
    W = rng.uniform(-bound, bound, (classes, size)).astype(np.float32)
    return W, rng.uniform(-bound, bound, classes).astype(np.float32)


def orders(run: int, step: int, count: int, epochs: int) -> np.ndarray:
    """A permutation of ``count`` clips for each pass, [E, count]; for all strategies alike."""
    rng = np.random.default_rng([run, step, 2])
    return rng.permuted(np.tile(np.arange(count), (epochs, 1)), axis=1)


def train(
    X: np.ndarray, y: np.ndarray, classes: int, labelled: list, runs: list, step: int,
    config: AloeConfig,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights [R, C, D] and biases [R, C] of fresh classifiers, one for each list of row numbers in
    ``labelled``, whose run is in ``runs``."""
    counts = np.array([len(rows) for rows in labelled])
    rows = np.zeros((len(labelled), counts.max()), dtype=np.int64)
    order = np.zeros((len(labelled), config.epochs, counts.max()), dtype=np.int64)
    drawn = functools.lru_cache(orders)
    fresh = [initial(run, step, classes, X.shape[1]) for run in runs]
    W, b = (np.stack(arrays) for arrays in zip(*fresh, strict=True))
    for r, (own, run) in enumerate(zip(labelled, runs, strict=True)):
        rows[r, : len(own)] = own
        order[r, :, : len(own)] = drawn(run, step, len(own), config.epochs)
    fit(W, b, X, y, rows, counts, order, config.batch, config.rate)
    return W, b


def standardised(embeddings: Tensor, pool: Tensor) -> np.ndarray:
    """Embeddings [N, D], each of the D numbers shifted and scaled to mean 0 and deviation 1 over
    ``pool`` (no label is needed for that): encoders of any scale train at the same rate."""
    scaled = (embeddings - pool.mean(dim=0)) / pool.std(dim=0).clamp_min(1e-6)
    return np.ascontiguousarray(scaled.numpy(), dtype=np.float32)


def seed_set(task, run: int, clips: int) -> list[int]:
    """Rows of the clips labelled before the first step, so many of each class: the same for every
    strategy. Raises ``UserError`` for a class whose pool has fewer."""
    rng, pool, chosen = np.random.default_rng([run, 0]), task.rows("pool"), []
    for c in range(len(task.classes)):
        own = pool[task.labels[pool] == c]
        if len(own) < clips:
            raise UserError(
                f"task {task.name}: class {c} has {len(own)} clips in the pool, {clips} are needed "
                "to start from: add some, or lower aloe: seed_clips in the preset"
            )
        chosen += rng.permutation(own)[:clips].tolist()
    return chosen


def simulate(
    task, X: np.ndarray, runs, strategies, modes, config: AloeConfig,
    exhausted: str = "raise", checkpoint: Checkpoint | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The whole protocol for all ``runs`` × ``strategies`` × ``modes`` at once, on a task whose
    clips have the embeddings ``X`` [N, D].

    Step 0 is the classifier of the seed set; at steps 1 to ``config.steps`` each learner has
    labelled what its last classifier scored highest. Returns a row a learner and step (``mode,
    strategy, run, step, labels, validation, test``: accuracies in percent) and a row a labelled
    clip (``mode, strategy, run, step, row``). The strategy ``all`` is the classifier that has every
    label of the pool.

    A pool that is used up ends the curve of a learner where ``exhausted`` is "stop"; else it is a
    ``UserError``.
    """
    for name in strategies:
        one_of("strategy", name, (RANDOM, *SCORES))
    learners = [(mode, strategy, run) for run in runs for mode in modes for strategy in strategies]
    state = checkpoint and checkpoint.load()
    if state is None:
        seeds = {run: seed_set(task, run, config.seed_clips) for run in runs}
        state = {
            "step": 0, "active": list(range(len(learners))),
            "labelled": [list(seeds[run]) for *_, run in learners],
            "queried": [(*learner, 0, row) for learner in learners for row in seeds[learner[2]]],
            "curves": [_bound(task, X, run, config) for run in runs],
        }  # fmt: skip
    labelled, curves, queried = state["labelled"], state["curves"], state["queried"]
    splits = [task.rows(name) for name in ("pool", "validation", "test")]
    rows, sizes, pool = np.concatenate(splits), list(map(len, splits)), splits[0]
    looked_at, truth = torch.from_numpy(X[rows]), torch.from_numpy(task.labels[rows])
    for step in range(state["step"], config.steps + 1):
        active = state["active"]
        if not active:
            break
        if checkpoint and checkpoint.due():
            checkpoint.save({**state, "step": step})
        state["active"] = []
        W, b = train(
            X, task.labels, len(task.classes), [labelled[r] for r in active],
            [learners[r][2] for r in active], step, config,
        )  # fmt: skip
        # what random goes by: drawn for a run and step, so both modes draw alike
        draws = {run: np.random.default_rng([run, step, 3]).random(len(pool)) for run in runs}
        weights = torch.from_numpy(W).flatten(0, 1).T  # [D, R · C]: one product for all learners
        outputs = (looked_at @ weights).unflatten(1, W.shape[:2]) + torch.from_numpy(b)
        for r, logits in zip(active, outputs.unbind(dim=1), strict=True):
            mode, strategy, run = learners[r]
            predicted = logits.argmax(dim=-1)
            right = (100 * (predicted == truth).double()).split(sizes)
            accuracies = [part.mean().item() for part in right[1:]]
            curves.append((mode, strategy, run, step, len(labelled[r]), *accuracies))
            if step == config.steps:
                continue
            free = torch.from_numpy(~np.isin(pool, labelled[r]))
            if free.any():
                in_pool, predicted = logits[: len(pool)], predicted[: len(pool)]
                random = strategy == RANDOM
                scores = torch.from_numpy(draws[run]) if random else SCORES[strategy](in_pool)
                chosen = pool[choose(scores, predicted, free, mode)].tolist()
                labelled[r] += chosen
                queried += [(mode, strategy, run, step + 1, row) for row in chosen]
                state["active"].append(r)
            elif exhausted == "raise":
                raise UserError(
                    f"task {task.name}: {strategy} (class-{mode}, run {run}) has labelled all "
                    f"{len(pool)} clips of the pool after {step} of {config.steps} steps: "
                    "ask for fewer steps, or give a larger pool"
                )
    names = ["mode", "strategy", "run", "step"]
    table = pd.DataFrame(curves, columns=[*names, "labels", "validation", "test"])
    return table, pd.DataFrame(queried, columns=[*names, "row"])


def _bound(task, X: np.ndarray, run: int, config: AloeConfig) -> tuple:
    """The curve's row of the classifier that has all labels of the pool."""
    pool = task.rows("pool")
    W, b = train(X, task.labels, len(task.classes), [pool], [run], 0, config)
    right = (X @ W[0].T + b[0]).argmax(axis=1) == task.labels
    accuracies = [100 * float(right[task.rows(split)].mean()) for split in ("validation", "test")]
    return (ALL, ALL, run, 0, len(pool), *accuracies)


def plateau(accuracies, patience: int, tolerance: float) -> int:
    """The first step at which the best accuracy (percent) of the last ``patience`` steps is not
    more than ``tolerance`` points above the best before them; the last step where there is none."""
    best = np.maximum.accumulate(np.asarray(accuracies, dtype=float))
    flat = np.flatnonzero(best[patience:] <= best[:-patience] + tolerance)
    return patience + int(flat[0]) if len(flat) else len(best) - 1


def two_dimensions(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A view [N, 2] of embeddings [N, D]: along the two directions in which the means of the
    classes ``y`` [N] vary most, each turned so that its largest coefficient is positive.

    (The two directions of largest variance of all clips are often about loudness and noise.)
    """
    means = np.stack([X[y == c].mean(axis=0) for c in np.unique(y)]).astype(np.float64)
    axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2][:2].T  # [D, 2]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    # rounded, finer than can be seen: the last bits of a sum depend on the order of its terms,
    # which threads may change, and a PDF keeps ten decimals of where a point lies
    return ((X - X.mean(axis=0)) @ (axes * np.sign(largest))).round(4)
