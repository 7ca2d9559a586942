"""Scores with known answers."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import SYMBOLS, tiny_batch, tiny_joint, tiny_model
from test_decoding import all_labelings, posterior
from test_gradients import ctc, squared_norm

from alspeech.acquisition import (
    ACQUISITIONS,
    check_strategies,
    expected_squared_norm,
    gradient_length,
    mean_entropy,
    path_ctc,
)
from alspeech.decoding import n_best
from alspeech.speech.features import Batch
from alspeech.workshop.errors import UserError
from alspeech.workshop.plots import METHOD_STYLE


def test_uniform_posterior_has_entropy_log_v():
    uniform = torch.full((2, 9, 29), -math.log(29), dtype=torch.float64)
    assert mean_entropy(uniform).tolist() == pytest.approx([math.log(29)] * 2)


def test_a_certain_posterior_has_entropy_zero():
    certain = torch.tensor([[[50.0, 0.0, 0.0]]], dtype=torch.float64).log_softmax(-1)
    assert mean_entropy(certain).item() == pytest.approx(0, abs=1e-15)


def test_entropy_by_hand():
    half = torch.tensor([[[0.5, 0.5], [0.75, 0.25]]], dtype=torch.float64).log()
    by_hand = (math.log(2) + 0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / 2
    assert mean_entropy(half).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(4))
def test_pctc_equals_brute_force_over_all_paths(seed):
    log_probs = posterior(5, 3, 1.0, seed)
    best = max(all_labelings(log_probs[0]).values())
    ours = path_ctc(n_best(log_probs, 1, beam=200).log_p[:, 0], frames=5)
    assert ours.item() == pytest.approx(-math.log(best) / 5)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_egl_equals_brute_force_over_all_paths(cell):
    """T = 4 output frames, 3 symbols: every labeling, every path, plain autograd."""
    model, batch = tiny_model(cell, symbols=3), tiny_batch(size=2)
    log_probs = model(batch.features).log_softmax(-1).detach()
    assert log_probs.shape == (2, 4, 3)
    ours = ACQUISITIONS["egl"](model, batch, labelings=100, method="exact")
    for b in range(2):
        truth = sum(
            p * squared_norm(ctc(model, batch.features[b], list(labeling)), model).item()
            for labeling, p in all_labelings(log_probs[b]).items()
        )
        assert ours[b].item() == pytest.approx(truth, rel=1e-8)


def test_expected_squared_norm_by_hand():
    log_p = torch.tensor([[0.5, 0.25, 0.0]], dtype=torch.float64).log()
    norms = torch.tensor([[2.0, 8.0, 5.0]], dtype=torch.float64)
    assert expected_squared_norm(log_p, norms).item() == pytest.approx(3.0)
    assert expected_squared_norm(log_p, norms, renormalise=True).item() == pytest.approx(4.0)


def test_renormalised_egl_is_egl_divided_by_the_beam_mass():
    model, batch = tiny_model(), tiny_batch()
    plain, renormalised = (
        ACQUISITIONS[name](model, batch, labelings=5) for name in ("egl", "egl_renormalised")
    )
    mass = n_best(model(batch.features).log_softmax(-1).detach(), 5).mass()
    assert (mass < 0.99).all() and torch.allclose(plain / mass, renormalised)


def model_for(name: str):
    """A recogniser that the acquisition function can score with."""
    return tiny_joint(torch.double) if name == "loss_prediction" else tiny_model()


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_score_is_unchanged_by_batch_mates(name):
    model, batch = model_for(name), tiny_batch(size=5)
    together = ACQUISITIONS[name](model, batch)
    alone = [
        ACQUISITIONS[name](model, Batch(batch.utt_ids[b : b + 1], batch.features[b : b + 1])).item()
        for b in range(5)
    ]
    assert together.shape == (5,)
    assert together.tolist() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_every_strategy_has_a_style(name):
    assert name in METHOD_STYLE


def test_random_depends_on_seed_and_id_alone():
    model, batch = tiny_model(), tiny_batch(size=400)
    a, again, b = (ACQUISITIONS["random"](model, batch, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert a.min() >= 0 and a.max() < 1 and a.mean().item() == pytest.approx(0.5, abs=0.05)


def test_entropy_is_bounded_by_log_v():
    score = ACQUISITIONS["entropy"](tiny_model(), tiny_batch())
    assert ((score >= 0) & (score <= math.log(SYMBOLS))).all()


def test_an_unknown_strategy_names_the_valid_ones():
    with pytest.raises(UserError, match="'elg'.*random, entropy, pctc, egl"):
        check_strategies(["egl", "elg"])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradient_length_is_that_of_the_true_transcript(cell):
    model = tiny_model(cell)
    batch = replace(tiny_batch(frames=32), labels=([1, 2], [3], [2, 2, 4]))
    ours = gradient_length(model, batch)
    for b in range(3):
        truth = squared_norm(ctc(model, batch.features[b], batch.labels[b]), model)
        assert ours[b].item() == pytest.approx(truth.item(), rel=1e-9)


def test_a_transcript_that_does_not_fit_its_frames_is_named():
    batch = replace(tiny_batch(frames=16), labels=([1], [2, 2, 2, 2], []))
    with pytest.raises(UserError, match="u1.*4 labels do not fit 4 frames"):
        gradient_length(tiny_model(), batch)


@pytest.mark.parametrize("name", [name for name in ACQUISITIONS if name != "random"])
def test_posteriors_that_are_not_numbers_name_the_utterance(name):
    model, batch = model_for(name), tiny_batch()
    batch.features[1, 3, 2] = math.nan
    with pytest.raises(UserError, match="u1.*NaN"):
        ACQUISITIONS[name](model, batch)


@pytest.mark.parametrize("option", [{"labelings": 0}, {"directions": 0}])
def test_egl_refuses_less_than_one_labeling_or_direction(option):
    with pytest.raises(ValueError, match="1"):
        ACQUISITIONS["egl"](tiny_model(), tiny_batch(), **option)
