"""How much likelier utterances are in a target than in the pool, by what the encoder makes of them.

A classifier that tells two sets apart estimates the ratio of their densities (Bickel et al. 2009):
of a logistic regression in which both sets weigh the same, the logit is log p_T(e)/p_P(e), as far
as that is linear. Such importance weights and active queries have been brought together to transfer
a classifier from one domain to another (Huang and Chen 2016); here they say what of the pool sounds
like the target.

Legend: N utterances of the pool, n of the target, D features.
"""

from __future__ import annotations

import functools

import numpy as np

STEPS = 100  # of Newton's method at most; it takes ten or so
FLAT = 0.01  # of its deviation in the target: a feature that varies less in the pool ranks nobody
CHUNK = 4096  # rows at a time
MOST = 20.0  # the ratio's logarithm is cut at


def log_density_ratio(pool: np.ndarray, target: np.ndarray, smooth: float = 0.2) -> np.ndarray:
    """log p_T(e)/p_P(e), within ±20, of every utterance of the pool: embeddings [N, D] and the
    target's [n, D], n ≥ 1, → [N].

    ``smooth`` > 0 is the regression's ridge, in variances of the pool, which keeps the ratio finite
    where the sets can be separated. (N + n) · D² multiplications a step.
    """
    if len(pool) == 0:
        return np.zeros(0)
    middle, scale = pool.mean(axis=0, dtype=float), pool.std(axis=0, dtype=float)
    flat = scale <= FLAT * target.std(axis=0, dtype=float) + 1e-9 * np.abs(middle)
    scale[flat] = np.inf
    # Newton's method; a step that goes too far is halved
    ridge = np.append(np.full(pool.shape[1], smooth), 1e-6)
    weights = np.zeros(len(ridge))
    look = functools.partial(
        _loss, pool=pool, target=target, middle=middle, scale=scale, ridge=ridge
    )
    loss, gradient, curvature = look(weights)
    for _ in range(STEPS):
        step = np.linalg.solve(curvature, gradient)
        while (found := look(weights - step))[0] > loss + 1e-12:
            step = step / 2
        weights, (loss, gradient, curvature) = weights - step, found
        if np.abs(step).max() < 1e-9:
            break
    logits = [_rows(part, middle, scale) @ weights for part in _chunks(pool)]
    return np.concatenate(logits).clip(-MOST, MOST)


def _loss(weights, pool, target, middle, scale, ridge) -> tuple[float, np.ndarray, np.ndarray]:
    """The logistic loss in which both sets weigh the same, with the ridge; its gradient [D + 1] and
    curvature [D + 1, D + 1]."""
    loss, gradient, curvature = ridge @ weights**2 / 2, ridge * weights, np.diag(ridge)
    for own, sign in ((pool, -1), (target, 1)):
        for part in _chunks(own):
            rows = _rows(part, middle, scale)
            logits = sign * (rows @ weights)
            wrong = (1 - np.tanh(logits / 2)) / 2  # probability of the other set
            loss = loss + np.logaddexp(0, -logits).sum() / len(own)
            gradient = gradient - sign * (wrong @ rows) / len(own)
            curvature = curvature + (rows.T * (wrong * (1 - wrong))) @ rows / len(own)
    return loss, gradient, curvature


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]


def _rows(x: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """[m, D] → [m, D + 1]: in the pool's deviations from its mean, and a one."""
    return np.hstack([(x - middle) / scale, np.ones((len(x), 1))])
