"""Resampling: flips of signs, and seeds × test speakers.

    B  resamples    S  seeds    G  groups of the test set    P  test speakers

Whatever is drawn is drawn alike at every call: equal tables, equal bytes.
"""

from __future__ import annotations

import functools

import numpy as np

EXACT, DRAWN = 14, 10_000  # up to so many differences all flips of signs; beyond, so many drawn


def sign_flip_p(differences) -> float:
    """p of the two-sided permutation test that paired differences are symmetric around 0: the share
    of all flips of their signs whose mean is as far from 0 (Fisher 1935). Where the flips are
    drawn, the one at hand counts as one of them (Phipson & Smyth 2010)."""
    d = np.asarray(differences, dtype=float)
    signs = _signs(len(d))
    # flips that give the same mean must not be told apart by rounding
    far = np.abs(signs @ d) >= np.abs(d.sum()) * (1 - 1e-9)
    return float(far.mean() if len(d) <= EXACT else (far.sum() + 1) / (DRAWN + 1))


@functools.lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """±1 [flips, n], the same at every call."""
    if n > EXACT:
        return np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWN, n))
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


RESAMPLES = 2000


def two_way_interval(errors, words, level: float = 0.95) -> tuple[float, float, float]:
    """(estimate, low, high), in points, of a difference in error rate over seeds *and* speakers.

    ``errors`` are differences of error counts [S, G, P], ``words`` the reference's, the same for
    all seeds [G, P]; groups are averaged (G = 1: micro WER). An interval over seeds alone holds
    for these test speakers; this one for others too, whose errors hang together (Bisani & Ney
    2004). Seeds and speakers are resampled independently, the pigeonhole bootstrap (Owen 2007).
    In simulation its percentiles cover anything from 85 to 99.6 %: a few seeds vary too little
    when they are resampled, and what a seed does to a speaker has its variance counted three
    times. So the variances are taken apart, by resampling seeds alone, speakers alone and both,
    each times n / (n − 1); V_seeds and V_speakers each hold V_both, what is beyond their sum, once:

        V = V_seeds + max(V_speakers − V_both, 0)

    (two-way clustering: Cameron, Gelbach & Miller 2011). The interval is estimate ± t √V with
    Satterthwaite's degrees of freedom. NaN bounds for less than two seeds or speakers.
    """
    errors, words = (np.asarray(x, dtype=float) for x in (errors, words))
    seeds, _, speakers = errors.shape
    own = _mean_rate(errors.sum(axis=-1), words.sum(axis=-1))  # [S]
    estimate = own.mean()
    if seeds < 2 or speakers < 2:
        return float(estimate), float("nan"), float("nan")
    from scipy.special import stdtrit

    of_seeds, of_speakers = _resamples(seeds, 0), _resamples(speakers, 1)  # [B, S], [B, P]
    counts = (of_speakers @ errors.reshape(-1, speakers).T).reshape(RESAMPLES, seeds, -1)
    # each seed's difference on each resample's speakers [B, S]
    drawn = _mean_rate(counts, (of_speakers @ words.T)[:, None])
    each = of_seeds @ own / seeds, drawn.mean(axis=1), (of_seeds * drawn).mean(axis=1)  # [B]
    few, rest = seeds / (seeds - 1), speakers / (speakers - 1)
    by_seeds, by_speakers = own.var(ddof=1) / seeds, each[1].var() * rest
    by_both = (each[2] - each[0] - each[1]).var() * few * rest
    by_speakers = max(by_speakers - by_both, 0.0)
    variance = by_seeds + by_speakers
    if variance == 0:
        return (float(estimate),) * 3
    freedom = variance**2 / (by_seeds**2 / (seeds - 1) + by_speakers**2 / (speakers - 1))
    half = stdtrit(freedom, 0.5 + level / 2) * np.sqrt(variance)
    return float(estimate), float(estimate - half), float(estimate + half)


def _mean_rate(errors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Percent: errors ÷ words [..., G] → the mean [...] over the groups that have words."""
    there = np.broadcast_to(words > 0, errors.shape)
    rates = np.divide(errors, words, out=np.zeros_like(errors), where=there)
    return 100 * rates.sum(axis=-1) / there.sum(axis=-1).clip(1)


@functools.lru_cache(maxsize=4)
def _resamples(n: int, stream: int) -> np.ndarray:
    """How often each of n is drawn [B, n], the same at every call: all methods are compared on the
    same seeds and speakers."""
    rng = np.random.default_rng([n, stream])
    return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
