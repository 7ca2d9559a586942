"""Density ratios: known ones, another minimiser's, and sets that are odd."""

import numpy as np
import pytest
from scipy.optimize import minimize

from alspeech import likeness
from alspeech.likeness import log_density_ratio


def lot(size, middle=0.0, seed=0, features=4) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, 1.0, (size, features))


@pytest.mark.parametrize("chunk", [7, 4096])
def test_it_is_the_least_of_the_loss_by_another_minimiser(monkeypatch, chunk):
    monkeypatch.setattr(likeness, "CHUNK", chunk)
    pool, target = lot(40), lot(15, 0.8, seed=1)
    x, t = ((y - pool.mean(axis=0)) / pool.std(axis=0) for y in (pool, target))

    def loss(w):
        far = np.logaddexp(0, x @ w[:-1] + w[-1]).mean()
        near = np.logaddexp(0, -t @ w[:-1] - w[-1]).mean()
        return far + near + 0.35 * w[:-1] @ w[:-1]

    w = minimize(loss, np.zeros(5), tol=1e-12).x
    assert log_density_ratio(pool, target, 0.7) == pytest.approx(x @ w[:-1] + w[-1], abs=1e-4)


def test_that_of_two_gaussians_is_a_line_and_of_one_is_flat():
    pool, target = lot(4000, features=1), lot(4000, 1.0, seed=1, features=1)
    known = pool[:, 0] - 0.5  # log N(x; 1, 1) − log N(x; 0, 1)
    found = log_density_ratio(pool, target, 1e-6)
    assert np.abs(found - known).max() < 0.3
    flatter, _ = np.polyfit(known, log_density_ratio(pool, target), 1)
    assert 0.5 < flatter < 1  # the ridge takes some of its slope, and leaves its sign
    assert np.abs(log_density_ratio(pool, lot(4000, seed=2, features=1))).max() < 0.2
    assert log_density_ratio(pool, pool) == pytest.approx(0, abs=1e-6)


def test_neither_place_nor_scale_matters():
    pool, target = lot(50), lot(20, 0.5, seed=1)
    moved = [100 + np.array([1e-3, 1, 50, 1e4]) * x for x in (pool, target)]
    assert log_density_ratio(*moved) == pytest.approx(log_density_ratio(pool, target), abs=1e-6)


@pytest.mark.parametrize("deviation", [0.0, 1e-3])
def test_a_feature_that_does_not_vary_in_the_pool_is_not_what_it_is_ranked_by(deviation):
    """It separates the sets, though: with it nothing else would count."""
    for seed in range(20):
        pool, target = lot(400, seed=seed), lot(160, 0.5, seed=100 + seed)
        plain = log_density_ratio(pool[:, 1:], target[:, 1:])
        pool[:, 0] *= deviation
        found = log_density_ratio(pool, target)
        assert np.corrcoef(found, plain)[0, 1] > 0.999
        assert np.std(found) > 0.5 * np.std(plain)


@pytest.mark.parametrize("smooth", [1e-9, 0.2, 1e9])
def test_small_and_odd_sets_have_finite_ratios(smooth):
    for seed in range(30):
        for size, others, far in ((1, 1, 0), (1, 160, 3), (2, 5, 1e6), (50, 1, 100)):
            found = log_density_ratio(lot(size, seed=seed), lot(others, far, seed + 1), smooth)
            assert found.shape == (size,) and np.isfinite(found).all()
            assert np.abs(found).max() <= 20
    assert np.ptp(log_density_ratio(np.ones((9, 4)), lot(5), smooth)) == 0
    assert len(log_density_ratio(lot(0), lot(5), smooth)) == 0
