"""§ 2.3 on a small recogniser: what is drawn, trained, predicted and measured, against oracles."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_batch, tiny_model
from test_decoding import all_labelings
from torch import nn

from alspeech import theory
from alspeech.theory import Inputs, Small, measured, orders, predicted, shrink, trained


class Store:
    """Features of some utterances, all of one length."""

    def __init__(self, features, name="u"):
        self.features = features
        self.table = pd.DataFrame({"utt_id": [f"{name}{i:04d}" for i in range(len(features))]})

    def batches(self, utterances, size):
        rows = [int(utt_id[-4:]) for utt_id in utterances["utt_id"]]
        for part in np.array_split(rows, -(-len(rows) // size)):
            batch = tiny_batch(1)
            yield type(batch)(tuple(self.table["utt_id"].iloc[part]), self.features[part])


class Frames(nn.Module):
    """A recogniser whose last layer reads the features themselves."""

    def __init__(self, bins, symbols):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(0, 1), nn.Linear(bins, symbols))


def small_of(frames=1, size=40, bins=2, symbols=3, seed=0):
    """A small recogniser of random weights, over features that it reads as they are, and the
    inputs of some utterances."""
    generator = torch.Generator().manual_seed(seed)
    store = Store(torch.randn(size, frames, bins, generator=generator))
    small = Small(Frames(bins, symbols), torch.zeros(bins), torch.eye(bins))
    small.theta = 0.7 * torch.randn(bins + 1, symbols, generator=generator)
    return small, store, Inputs(small, store, store.table)


def test_of_all_components_a_small_recogniser_is_the_whole_one():
    model = tiny_model(dtype=torch.float32)
    features = tiny_batch(6, frames=32, dtype=torch.float32).features
    store = Store(features)
    hidden = model.layers[-1].in_features
    small = shrink(model, store, store.table, hidden)
    with torch.no_grad():
        torch.testing.assert_close(small(features), model(features), rtol=1e-3, atol=1e-3)
        read = torch.cat([inputs for _, inputs in Inputs(small, store, store.table).groups])
    frames = read[..., :-1].flatten(0, 1)
    assert (read[..., -1] == 1).all()
    torch.testing.assert_close(frames.mean(dim=0), torch.zeros(hidden).double(), rtol=0, atol=1e-3)
    cov = torch.cov(frames.T)
    torch.testing.assert_close(cov, torch.eye(hidden).double(), rtol=0, atol=0.02)


def test_few_components_are_those_that_vary_most():
    model = tiny_model(dtype=torch.float32)
    store = Store(tiny_batch(6, frames=32, dtype=torch.float32).features)
    whole = shrink(model, store, store.table, model.layers[-1].in_features)
    some = shrink(model, store, store.table, 3)
    few, all_of_them = (small.layers[-2].weight for small in (some, whole))
    torch.testing.assert_close(few.abs(), all_of_them[-3:].abs(), rtol=1e-3, atol=1e-3)
    assert some.theta.shape == (4, model.layers[-1].out_features)


def test_labelings_are_drawn_as_often_as_they_are_probable():
    small, store, inputs = small_of(frames=3, size=1)
    drawn = inputs.drawn(small.theta, seed=5, number=20_000)["u0000"]
    seen = pd.Series([tuple(labeling) for labeling in drawn]).value_counts(normalize=True)
    with torch.no_grad():
        known = all_labelings(small(store.features).double().log_softmax(-1)[0])
    for labeling, p in known.items():
        assert seen.get(tuple(labeling), 0) == pytest.approx(p, abs=4 * (p / 20_000) ** 0.5 + 1e-4)


def test_what_is_drawn_depends_on_seed_and_id_alone():
    small, store, inputs = small_of(frames=5, size=9)
    whole = inputs.drawn(small.theta, seed=1, number=4)
    alone = Inputs(small, store, store.table.iloc[[7, 3]]).drawn(small.theta, seed=1, number=4)
    assert alone == {utt_id: whole[utt_id] for utt_id in ("u0007", "u0003")}
    assert whole["u0000"] != inputs.drawn(small.theta, seed=2, number=4)["u0000"]
    assert len({str(some) for some in whole.values()}) > 5


def test_the_information_is_the_gradients_second_moment():
    """Σ_y p(y | x) vec(G) vec(G)ᵀ over all labelings, by autograd."""
    small, store, inputs = small_of(frames=3, size=2)
    theta, expected = small.theta, 0.0
    for place, utt_id in enumerate(store.table["utt_id"]):
        one = Inputs(small, store, store.table.iloc[[place]])
        with torch.no_grad():
            logits = small(store.features[place : place + 1]).double()
        mean = 0.0
        for labeling, p in all_labelings(logits.log_softmax(-1)[0]).items():
            at = theta.clone().requires_grad_()
            one.losses(at, {utt_id: list(labeling)}).sum().backward()
            g = at.grad.flatten()
            expected, mean = expected + p * torch.outer(g, g), mean + p * g
        assert mean.abs().max() < 1e-6  # E ∇ log p = 0
    found = inputs.information(theta, labelings=8000)
    scale = np.abs(expected.numpy()).max()
    np.testing.assert_allclose(found, expected.numpy(), atol=0.05 * scale)


def test_a_training_ends_where_the_gradient_does():
    small, _, inputs = small_of(frames=4, size=30)
    labels = {x: some[0] for x, some in inputs.drawn(small.theta, 3).items()}
    F = inputs.information(small.theta)
    for ridge in (0.5, 20.0):
        found = trained(inputs, labels, small.theta, F, ridge)
        at = found.clone().requires_grad_()
        loss = inputs.losses(at, labels).sum()
        (loss + ridge / 2 * (at - small.theta).square().sum()).backward()
        assert at.grad.norm() < 0.02 * F.trace() ** 0.5
        assert loss.item() < inputs.losses(small.theta, labels).sum().item()


def test_prediction_by_hand():
    found = predicted(np.diag([1.0, 2.0]), np.diag([3.0, 0.0]), np.diag([1.0, 4.0]), ridge=1.0)
    assert found == pytest.approx({"length": 3.0, "ratio": 1 / 5 + 4 / 3})


def test_with_much_data_the_measured_variance_is_what_eq_3_says():
    """The argument is exact for many utterances: with one frame it is logistic regression's."""
    small, _, inputs = small_of(frames=1, size=240, bins=1)
    _, _, test = small_of(frames=1, size=60, bins=1, seed=9)
    F = inputs.information(small.theta)
    F_T = test.information(small.theta) / 60
    variance = measured(inputs, test, small.theta, F, 1e-3, resamples=80, seed=0)
    ratio = predicted(F, np.zeros_like(F), F_T, 1e-3)["ratio"]
    assert variance == pytest.approx(ratio, rel=0.25)
    again = [measured(inputs, test, small.theta, F, 1e-3, resamples=4, seed=0) for _ in range(2)]
    assert again[0] == again[1]


def test_scores_that_a_first_pass_leaves_are_orders():
    candidates = type("", (), {})()
    candidates.utt_ids = np.array(["a", "b", "c"])
    candidates.scores = {
        "entropy": np.array([1.0, 3, 2]), "pctc": np.array([3.0, 1, 2]),
        "egl_last_layer": np.array([1.0, 2, 3]), "mass": np.array([1.0, 0.5, 0.1]),
    }  # fmt: skip
    found = orders(candidates, seed=0)
    assert {name: list(order) for name, order in found.items() if name != "random"} == {
        "entropy": [1, 2, 0], "pctc": [0, 2, 1], "egl": [0, 1, 2], "egl_renormalised": [2, 1, 0],
    }  # fmt: skip
    assert sorted(found["random"]) == [0, 1, 2]
    assert theory.uniform(candidates.utt_ids, 0).numpy().argmax() == found["random"][0]
