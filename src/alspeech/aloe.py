"""ALOE: few labels on a frozen encoder (Lee, Saeed and Bertozzi, ICASSP 2023).

    clips → embeddings → linear classifier → acquisition → more labels → a fresh classifier → …

A frozen encoder (encoders.py) turns every clip into a vector. A linear softmax classifier is
trained on five labelled clips a class; it scores the pool; the clips that score highest are
labelled; and another classifier begins from new initial weights. The encoder never learns, so a
step costs milliseconds, and all runs, strategies and modes of a task advance side by side.

Legend: N clips, D numbers of an embedding, C classes, R learners (run × strategy × mode),
P clips of the pool, E passes.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import clips as labelled_clips
from . import encoders, experiment
from .clips import Task
from .config import AloeConfig, Settings, UserError, as_dict
from .experiment import CELLS, in_parallel
from .readers import states
from .statistics import interval, verdict
from .store import Checkpoint, code, fingerprint, stored, write_csv, write_json

# ---------------------------------------------------------------- acquisition
# Of outputs u [P, C], probabilities unless a name says logits; higher = query first, always.


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


def check_strategies(names) -> None:
    """Raise ``UserError`` for a name that is no strategy."""
    for name in names:
        if name not in SCORES and name != RANDOM:
            known = ", ".join([RANDOM, *SCORES])
            raise UserError(f"unknown strategy '{name}': choose one of {known}")


# ---------------------------------------------------------------- stacked linear classifiers


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
    W = np.empty((len(labelled), classes, X.shape[1]), dtype=np.float32)
    b = np.empty((len(labelled), classes), dtype=np.float32)
    for r, (own, run) in enumerate(zip(labelled, runs, strict=True)):
        rows[r, : len(own)] = own
        order[r, :, : len(own)] = drawn(run, step, len(own), config.epochs)
        W[r], b[r] = initial(run, step, classes, X.shape[1])
    fit(W, b, X, y, rows, counts, order, config.batch, config.rate)
    return W, b


# ---------------------------------------------------------------- the protocol


@dataclass(frozen=True)
class Data:
    """A task with its clips' embeddings: ``X`` [N, D], ``y`` [N] and the rows of each split."""

    name: str
    classes: int
    X: np.ndarray
    y: np.ndarray
    pool: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def data_of(task: Task, embeddings: Tensor) -> Data:
    """A task and the embeddings [N, D] of its clips, standardised over the pool."""
    pool = task.rows("pool")
    X, y = standardised(embeddings, embeddings[pool]), task.clips["label"].to_numpy(dtype=np.int64)
    return Data(
        task.name, len(task.classes), X, y, pool, task.rows("validation"), task.rows("test")
    )


def standardised(embeddings: Tensor, pool: Tensor) -> np.ndarray:
    """Embeddings [N, D], each of the D numbers shifted and scaled to mean 0 and deviation 1 over
    ``pool`` (no label is needed for that): encoders of any scale train at the same rate."""
    scaled = (embeddings - pool.mean(dim=0)) / pool.std(dim=0).clamp_min(1e-6)
    return np.ascontiguousarray(scaled.numpy(), dtype=np.float32)


def seed_set(data: Data, run: int, clips: int) -> np.ndarray:
    """Rows of the clips labelled before the first step, so many of each class: the same for every
    strategy. Raises ``UserError`` for a class whose pool has fewer."""
    rng = np.random.default_rng([run, 0])
    chosen = []
    for c in range(data.classes):
        own = data.pool[data.y[data.pool] == c]
        if len(own) < clips:
            raise UserError(
                f"task {data.name}: class {c} has {len(own)} clips in the pool, {clips} are needed "
                "to start from: add some, or lower aloe: seed_clips in the preset"
            )
        chosen += list(rng.permutation(own)[:clips])
    return np.array(chosen)


def simulate(
    data: Data, runs, strategies, modes, config: AloeConfig, exhausted: str = "raise",
    checkpoint: Checkpoint | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The whole protocol for all ``runs`` × ``strategies`` × ``modes`` at once.

    Step 0 is the classifier of the seed set; at steps 1 to ``config.steps`` each learner has
    labelled what its last classifier scored highest. Returns a row a learner and step (``mode,
    strategy, run, step, labels, validation, test``: accuracies in percent) and a row a labelled
    clip (``mode, strategy, run, step, row``). The strategy ``all`` is the classifier that has every
    label of the pool.

    A pool that is used up ends the curve of a learner where ``exhausted`` is "stop"; else it is a
    ``UserError``.
    """
    check_strategies(strategies)
    learners = [(mode, strategy, run) for run in runs for mode in modes for strategy in strategies]
    of_run = [run for *_, run in learners]
    place = np.full(len(data.X), -1)
    place[data.pool] = np.arange(len(data.pool))  # row → place in the pool
    state = checkpoint.load() if checkpoint else None
    if state is None:
        seeds = {run: seed_set(data, run, config.seed_clips).tolist() for run in runs}
        bounds = [_bound(data, run, config) for run in runs]
        state = {
            "step": 0, "labelled": [list(seeds[run]) for run in of_run], "curves": bounds,
            "queried": [(*learner, 0, row) for learner in learners for row in seeds[learner[2]]],
            "active": list(range(len(learners))),
        }  # fmt: skip
    labelled, curves, queried = state["labelled"], state["curves"], state["queried"]
    ends = np.cumsum([len(data.pool), len(data.validation)])
    rows = np.concatenate([data.pool, data.validation, data.test])
    looked_at, truth = torch.from_numpy(data.X[rows]), torch.from_numpy(data.y[rows])
    for step in range(state["step"], config.steps + 1):
        active = state["active"]
        if not active:
            break
        if checkpoint and checkpoint.due():
            checkpoint.save({**state, "step": step})
        W, b = train(
            data.X, data.y, data.classes, [labelled[r] for r in active],
            [of_run[r] for r in active], step, config,
        )  # fmt: skip
        draws = {run: _random_scores(run, step, len(data.pool)) for run in set(of_run)}
        weights = torch.from_numpy(W).flatten(0, 1).T  # [D, R · C]: one product for all learners
        outputs = (looked_at @ weights).unflatten(1, W.shape[:2]) + torch.from_numpy(b)
        going_on = []
        for r, logits in zip(active, outputs.unbind(dim=1), strict=True):
            mode, strategy, run = learners[r]
            predicted = logits.argmax(dim=-1)
            right = 100 * (predicted == truth).double()
            accuracies = (right[ends[0] : ends[1]].mean().item(), right[ends[1] :].mean().item())
            curves.append((mode, strategy, run, step, len(labelled[r]), *accuracies))
            free = torch.ones(len(data.pool), dtype=torch.bool)
            free[torch.from_numpy(place[labelled[r]])] = False
            if step == config.steps:
                continue
            if not free.any():
                if exhausted == "raise":
                    raise UserError(
                        f"task {data.name}: {strategy} (class-{mode}, run {run}) has labelled all "
                        f"{len(data.pool)} clips of the pool after {step} of {config.steps} steps: "
                        "ask for fewer steps, or give a larger pool"
                    )
                continue
            in_pool = logits[: ends[0]]
            scores = draws[run] if strategy == RANDOM else SCORES[strategy](in_pool)
            chosen = data.pool[choose(scores, predicted[: ends[0]], free, mode)].tolist()
            labelled[r] += chosen
            queried += [(mode, strategy, run, step + 1, row) for row in chosen]
            going_on.append(r)
        state["active"] = going_on
    names = ["mode", "strategy", "run", "step"]
    return (
        pd.DataFrame(curves, columns=[*names, "labels", "validation", "test"]),
        pd.DataFrame(queried, columns=[*names, "row"]),
    )


def _random_scores(run: int, step: int, size: int) -> Tensor:
    """What random goes by: drawn for a run and step, so both modes draw alike."""
    return torch.from_numpy(np.random.default_rng([run, step, 3]).random(size))


def _bound(data: Data, run: int, config: AloeConfig) -> tuple:
    """The curve's row of the classifier that has all labels of the pool."""
    W, b = train(data.X, data.y, data.classes, [data.pool], [run], 0, config)
    right = (data.X @ W[0].T + b[0]).argmax(axis=1) == data.y
    accuracies = [100 * float(right[rows].mean()) for rows in (data.validation, data.test)]
    return (ALL, ALL, run, 0, len(data.pool), *accuracies)


def plateau(accuracies, patience: int, tolerance: float) -> int:
    """The first step at which the best accuracy (percent) of the last ``patience`` steps is not
    more than ``tolerance`` points above the best before them; the last step where there is none."""
    best = np.maximum.accumulate(np.asarray(accuracies, dtype=float))
    for step in range(patience, len(best)):
        if best[step] <= best[step - patience] + tolerance:
            return step
    return len(best) - 1


def two_dimensions(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A view [N, 2] of embeddings [N, D]: along the two directions in which the means of the
    classes ``y`` [N] vary most, each turned so that its largest coefficient is positive.

    (The two directions of largest variance of all clips are often about loudness and noise.)
    """
    means = np.stack([X[y == c].mean(axis=0) for c in np.unique(y)]).astype(np.float64)
    axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2][:2].T  # [D, 2]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return (X - X.mean(axis=0)) @ (axes * np.sign(largest))


# ---------------------------------------------------------------- steps, kept in the store

PART = 500  # clips a task of embedding


def _clips_config(settings: Settings) -> dict:
    return {"clips": _clips_fingerprint(settings), "code": code("clips", "readers", "corpus")}


@functools.lru_cache(maxsize=4)
def _clips_fingerprint(settings: Settings) -> str:
    table, _ = labelled_clips.read(settings)
    rows = table[["clip_id", "offset", "duration", "split"]].astype(str).to_numpy().tolist()
    return fingerprint({"rows": rows, "files": list(states(list(table["path"])).values())})


def _embeddings_config(settings: Settings, encoder: str) -> dict:
    return {
        "step": "embeddings",
        **_clips_config(settings),
        "encoder": encoder,
        **encoders.identity(settings, encoder),
        "encoders": code("encoders", "features", "model"),
    }


def embeddings_part(settings: Settings, encoder: str, part: int, look=False) -> Path | None:
    """Embed PART clips. Folder: ``embeddings.npy`` [N, D], ``metrics.json``."""
    config = {**_embeddings_config(settings, encoder), "part": part}

    def compute(folder: Path) -> None:
        begun = time.perf_counter()
        table, _ = labelled_clips.read(settings)
        rows = table.iloc[part * PART : (part + 1) * PART]
        vectors = encoders.embed(rows, encoders.ENCODERS[encoder](settings), encoder)
        np.save(folder / "embeddings.npy", vectors.numpy())
        write_json(
            folder / "metrics.json",
            {"seconds": round(time.perf_counter() - begun, 2), "clips": len(rows)},
        )

    return stored(CELLS, f"embeddings-{encoder}-{part}", config, None if look else compute)


def embeddings(settings: Settings, encoder: str) -> list[Path]:
    """Every clip's embedding, computed if it is not there yet; the parts' folders, in order."""
    encoders.check_encoders([encoder])
    if encoder.startswith("recogniser"):
        base = encoders.embedded(settings)
        in_parallel(experiment.base_model, base, [(0,)], "base model")
    table, _ = labelled_clips.read(settings)
    parts = [(encoder, part) for part in range(-(-len(table) // PART))]
    return in_parallel(embeddings_part, settings, parts, f"embeddings: {encoder}")


def load(settings: Settings, task: str, encoder: str) -> tuple[Task, Data]:
    """A task of the corpus, and its embeddings, which must be there."""
    chosen = labelled_clips.task(settings, task)
    table, _ = labelled_clips.read(settings)
    parts = [
        np.load(embeddings_part(settings, encoder, part) / "embeddings.npy")
        for part in range(-(-len(table) // PART))
    ]
    row = pd.Series(range(len(table)), index=table["clip_id"])
    vectors = torch.from_numpy(np.concatenate(parts)[row[chosen.clips["clip_id"]].to_numpy()])
    return chosen, data_of(chosen, vectors)


def cell(settings: Settings, task: str, encoder: str, run: int, look=False) -> Path | None:
    """One run of the protocol, all strategies and modes. Folder: ``curves.csv``, ``queried.csv``
    (see :func:`simulate`), ``metrics.json``.

    Encoders but the first are compared by random and margin, class-aware, only (Table 2).
    """
    config = settings.aloe
    first = encoder == config.encoders[0]
    strategies = config.strategies if first else (RANDOM, "margin")
    modes = MODES if first else MODES[:1]
    protocol = ("steps", "seed_clips", "epochs", "batch", "rate")
    record = {
        "step": "aloe",
        "embeddings": fingerprint(_embeddings_config(settings, encoder)),
        "task": task,
        "strategies": list(strategies),
        "modes": list(modes),
        "run": run,
        **{name: as_dict(config)[name] for name in protocol},
        "code": code("aloe", "clips"),
    }

    def compute(folder: Path) -> None:
        begun = time.perf_counter()
        checkpoint = Checkpoint(folder / "checkpoint")
        _, data = load(settings, task, encoder)
        curves, queried = simulate(
            data, [run], strategies, modes, config, exhausted="stop", checkpoint=checkpoint
        )
        write_csv(folder / "curves.csv", curves)
        write_csv(folder / "queried.csv", queried)
        seconds = {"seconds": round(time.perf_counter() - begun, 2)}
        write_json(folder / "metrics.json", seconds)
        checkpoint.remove()

    name = f"aloe-{task}-{encoder}-run{run}"
    return stored(CELLS, name, record, None if look else compute, resume=True)


def read_queried(settings: Settings, task: str, run: int = 0) -> pd.DataFrame:
    """What was labelled at which step of a run: ``mode, strategy, run, step, row`` of the task."""
    return pd.read_csv(cell(settings, task, settings.aloe.encoders[0], run) / "queried.csv")


# ---------------------------------------------------------------- tables


def runs_table(curves: pd.DataFrame, config: AloeConfig) -> pd.DataFrame:
    """How each learner ended: a row a task, encoder, mode, strategy and run.

    ``step, labels, validation, test`` at its last step; ``mean_test``, the mean over the steps that
    all learners of its task, encoder and mode have taken; ``stop_step, stop_labels, stop_test``
    where its validation accuracy reached a plateau.
    """
    rows = []
    for (task, encoder, mode), part in curves.groupby(["task", "encoder", "mode"], sort=False):
        common = part.groupby(["strategy", "run"])["step"].max().min()
        for (strategy, run), learner in part.groupby(["strategy", "run"], sort=False):
            learner = learner.sort_values("step")
            last = learner.iloc[-1]
            stop = learner.iloc[plateau(learner["validation"], config.patience, config.plateau)]
            rows.append({
                "task": task, "encoder": encoder, "mode": mode, "strategy": strategy, "run": run,
                **{name: last[name] for name in ("step", "labels", "validation", "test")},
                "mean_test": learner.loc[learner["step"] <= common, "test"].mean(),
                **{f"stop_{name}": stop[name] for name in ("step", "labels", "test")},
            })  # fmt: skip
    return pd.DataFrame(rows)


def table1(runs: pd.DataFrame, encoder: str) -> pd.DataFrame:
    """Test accuracy at the end by task, mode and strategy, with what random has to do with it.

    ``test`` and ``mean_test`` are means over runs with 95 % intervals; ``lead`` and ``mean_lead``
    are those of the difference to random, paired by run.
    """
    rows = []
    own = runs[runs["encoder"] == encoder]
    for (task, mode), part in own.groupby(["task", "mode"], sort=False):
        wide = {name: part.pivot_table(name, "run", "strategy") for name in ("test", "mean_test")}
        for strategy in part["strategy"].unique():
            ended = part[part["strategy"] == strategy]
            row = {"task": task, "mode": mode, "strategy": strategy, "runs": len(ended)}
            row |= {name: ended[name].mean() for name in ("step", "labels")}
            for name, lead in (("test", "lead"), ("mean_test", "mean_lead")):
                row |= _with_bounds(name, ended[name])
                if RANDOM in wide[name] and strategy != RANDOM:
                    row |= _with_bounds(lead, wide[name][strategy] - wide[name][RANDOM])
            if strategy not in (RANDOM, ALL):
                row["verdict"] = verdict(-row["mean_lead_high"], -row["mean_lead_low"])
            rows.append(row)
    return pd.DataFrame(rows)


def _with_bounds(name: str, values) -> dict:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))


def as_printed(table: pd.DataFrame, classes: dict) -> pd.DataFrame:
    """:func:`table1` in the form of the paper's Table 1: a row a task, random and uncertainty
    (smallest margin) in both modes; ``classes`` is each task's number of classes."""
    mean = table.pivot_table("test", "task", ["mode", "strategy"], sort=False)
    rows = {"dataset": list(mean.index), "classes": [classes[task] for task in mean.index]}
    rows["all labels"] = mean[ALL, ALL].to_numpy()
    for mode in MODES:
        for strategy, name in ((RANDOM, RANDOM), ("margin", "uncertainty")):
            rows[f"{mode}_{name}"] = mean[mode, strategy].to_numpy()
    return pd.DataFrame(rows)


def table2(runs: pd.DataFrame) -> pd.DataFrame:
    """Encoders compared, class-aware: mean and deviation over runs of the test accuracy at the end,
    as the paper's Table 2 has them, and the bound with all labels."""
    rows = []
    for (task, encoder), part in runs.groupby(["task", "encoder"], sort=False):
        row = {"task": task, "encoder": encoder}
        for name, strategy in (("random", RANDOM), ("uncertainty", "margin"), ("all", ALL)):
            own = part[(part["strategy"] == strategy) & part["mode"].isin([MODES[0], ALL])]
            row |= {name: own["test"].mean(), f"{name}_sd": own["test"].std()}
        aware = part[part["mode"] == MODES[0]].pivot_table("mean_test", "run", "strategy")
        row |= _with_bounds("mean_lead", aware["margin"] - aware[RANDOM])
        rows.append(row)
    return pd.DataFrame(rows)


def curves_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Figures 2 and 3 in numbers: mean and 95 % interval over runs of the validation accuracy, mean
    of the test accuracy and of the labels, by task, encoder, mode, strategy and step."""
    rows = []
    keys = ["task", "encoder", "mode", "strategy", "step"]
    for values, part in curves.groupby(keys, sort=False):
        row = dict(zip(keys, values, strict=True)) | {"runs": len(part)}
        row["labels"] = part["labels"].mean()
        rows.append(
            row | _with_bounds("validation", part["validation"]) | {"test": part["test"].mean()}
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Results:
    """The tables of a run (see the functions above) and what is to be said of its tasks."""

    curves: pd.DataFrame
    runs: pd.DataFrame
    table1: pd.DataFrame
    table2: pd.DataFrame
    tasks: dict
    notes: tuple
    folder: Path


def check(settings: Settings) -> str:
    """Read the corpus's labels and say, for a person to read, what its tasks are."""
    check_strategies(settings.aloe.strategies)
    encoders.check_encoders(settings.aloe.encoders)
    rows, notes = [], []
    for name in labelled_clips.read(settings)[1]:
        task = labelled_clips.task(settings, name)
        sizes = {split: len(task.rows(split)) for split in labelled_clips.SPLITS}
        pool = task.clips.iloc[task.rows("pool")]["label"].value_counts()
        rows.append({"task": name, "classes": len(task.classes), **sizes, "rarest": pool.min()})
        notes += task.notes
    return "\n".join([pd.DataFrame(rows).to_string(index=False), *notes])


def run(settings: Settings) -> Results:
    """Everything from the clips to the tables; what is done already is only read.

    Writes ``results/<run>/aloe_curves.csv``, ``aloe_runs.csv``, ``aloe_table1.csv``,
    ``aloe_table2.csv`` and ``provenance_aloe.json``.
    """
    begun, config = time.perf_counter(), settings.aloe
    check_strategies(config.strategies)
    output = experiment.results_folder(settings)
    names = labelled_clips.read(settings)[1]
    tasks = {name: labelled_clips.task(settings, name) for name in names}
    folders = [path for encoder in config.encoders for path in embeddings(settings, encoder)]
    cells = [(t, e, run) for e in config.encoders for t in names for run in range(config.runs)]
    done = in_parallel(cell, settings, cells, "runs")
    parts = [
        pd.read_csv(folder / "curves.csv").assign(task=task, encoder=encoder)
        for (task, encoder, _), folder in zip(cells, done, strict=True)
    ]
    curves = pd.concat(parts, ignore_index=True)
    runs = runs_table(curves, config)
    notes = [note for task in tasks.values() for note in task.notes] + _ended_early(runs, config)
    results = Results(
        curves, runs, table1(runs, config.encoders[0]), table2(runs), tasks, tuple(notes), output
    )
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "aloe_curves.csv", curves_table(curves))
    write_csv(output / "aloe_runs.csv", runs)
    write_csv(output / "aloe_table1.csv", results.table1)
    write_csv(output / "aloe_table2.csv", results.table2)
    record = output / "provenance_aloe.json"
    experiment.write_provenance(record, settings, folders + done, begun)
    return results


def _ended_early(runs: pd.DataFrame, config: AloeConfig) -> list[str]:
    """One line for each task whose pool was used up before the last step."""
    short = runs[(runs["step"] < config.steps) & (runs["strategy"] != ALL)]
    return [
        f"task {task}, class-{mode}: the pool of {part['labels'].max()} clips is used up after "
        f"{part['step'].min()} to {part['step'].max()} of {config.steps} steps, where curves end"
        for (task, mode), part in short.groupby(["task", "mode"], sort=False)
    ]
