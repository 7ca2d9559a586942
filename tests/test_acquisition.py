"""Scores with known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SYMBOLS, tiny_batch, tiny_joint, tiny_model
from test_decoding import all_labelings, posterior
from test_gradients import ctc, squared_norm

from alspeech.acquisition import (
    ACQUISITIONS,
    IN_TURN,
    ORACLES,
    check_strategies,
    cluster,
    embedding,
    expected_squared_norm,
    gradient_length,
    in_turn,
    mean_entropy,
    path_ctc,
    true_loss,
)
from alspeech.decoding import n_best
from alspeech.speech.features import Batch
from alspeech.workshop.errors import UserError


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


# they ask the model nothing: what is in a recording cannot change them
BLIND = {"random", "random_seconds", "longest", "shortest", *IN_TURN}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_score_is_unchanged_by_batch_mates(name):
    model, batch = model_for(name), tiny_batch(size=5)
    if name in ORACLES:
        batch = replace(batch, labels=([1, 2], [3], [2, 2], [], [4, 1]))
    together = ACQUISITIONS[name](model, batch)
    alone = [
        ACQUISITIONS[name](
            model, Batch(batch.utt_ids[b:][:1], batch.features[b:][:1], batch.labels[b:][:1])
        ).item()
        for b in range(5)
    ]
    assert together.shape == (5,)
    assert together.tolist() == pytest.approx(alone, rel=1e-9)


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


@pytest.mark.parametrize("name", [*ACQUISITIONS, "embedding"])
def test_posteriors_that_are_not_numbers_name_the_utterance(name):
    model, batch = model_for(name), replace(tiny_batch(), labels=([1], [2], [3]))
    function = ACQUISITIONS.get(name, embedding)
    before = function(model, batch)
    batch.features[1, 3, 2] = math.nan
    if name in BLIND:
        assert torch.equal(function(model, batch), before)
        return
    with pytest.raises(UserError, match="u1.*NaN"):
        function(model, batch)


@pytest.mark.parametrize("option", [{"labelings": 0}, {"directions": 0}])
def test_egl_refuses_less_than_one_labeling_or_direction(option):
    with pytest.raises(ValueError, match="1"):
        ACQUISITIONS["egl"](tiny_model(), tiny_batch(), **option)


# ---------------------------------------------------------------- baselines and oracles


def numbered(size: int, frames: int, first: int = 0) -> Batch:
    ids = tuple(f"u{first + i}" for i in range(size))
    return Batch(ids, torch.zeros(size, frames, 12, dtype=torch.double))


def test_the_longest_come_first_or_last():
    batches = [numbered(2, frames) for frames in (16, 32, 48)]
    longest = [ACQUISITIONS["longest"](None, batch).tolist() for batch in batches]
    assert longest == [[16.0, 16.0], [32.0, 32.0], [48.0, 48.0]]
    for batch, long in zip(batches, longest, strict=True):
        assert ACQUISITIONS["shortest"](None, batch).tolist() == [-x for x in long]


def test_random_seconds_draws_seconds_and_not_utterances():
    """Of two utterances, three times as long means first in three of four draws; of three, the
    second place goes by what is left."""
    draw, N = ACQUISITIONS["random_seconds"], 20_000
    long, short, other = (draw(None, numbered(N, t, n * N)) for n, t in enumerate((48, 16, 16)))
    first = (long > short).double().mean().item()
    assert first == pytest.approx(3 / 4, abs=4 * math.sqrt(3 / 16 / N))
    # one of 48, 16 and 16 is drawn: 3/5; and of what is left the second: 2 · 1/5 · 3/4
    second = ((long > short) ^ (long > other)).double().mean().item()
    assert second == pytest.approx(2 / 5 * 3 / 4, abs=0.02)
    # the seed draws anew, the batch does not
    one = numbered(1, 48)
    again = torch.stack([draw(None, one, seed=seed) for seed in range(50)])
    assert len(again.unique()) == 50 and draw(None, one).item() == long[0].item()


def test_groups_are_taken_in_turn_by_hand():
    groups = ["a", "a", "b", "a", "c", "b"]
    keys = [0.1, 0.9, 0.3, 0.5, 0.7, 0.8]
    scores = in_turn(groups, keys)
    # first the largest key of each group: a 0.9, b 0.8, c 0.7; then a 0.5, b 0.3; then a 0.1
    assert scores.argsort(descending=True).tolist() == [1, 5, 4, 3, 2, 0]
    assert scores.tolist() == pytest.approx([0.1 - 3, 0.9 - 1, 0.3 - 2, 0.5 - 2, 0.7 - 1, 0.8 - 1])
    one = in_turn(["all"] * 3, [0.2, 0.8, 0.5])  # one group: by the keys
    assert one.argsort(descending=True).tolist() == [1, 2, 0]


def test_clusters_are_those_of_clouds_far_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [50, 0], [0, 90]])
    own = rng.permutation(np.repeat([0, 1, 2], 20))
    points = torch.tensor(centres[own] + rng.normal(size=(60, 2)))
    for seed in range(5):
        names = cluster(points, count=3, seed=seed)
        pairs = set(zip(own.tolist(), names.tolist(), strict=True))
        assert len(pairs) == 3 and len(set(names)) == 3
        assert (names == cluster(points, count=3, seed=seed)).all()
    # a dimension's unit does not matter, and there are no more clusters than points
    assert (cluster(points, 3) == cluster(points * torch.tensor([1.0, 1e3]), 3)).all()
    assert len(cluster(points[:2])) == 2


def test_an_embedding_is_the_mean_of_the_last_layer_s_frames():
    model, batch = tiny_model(), tiny_batch()
    found, seen = embedding(model, batch), []
    model.layers[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    logits = model(batch.features)
    assert found.shape == (3, 5) and logits.shape[1] == seen[0].shape[1] == 4
    assert torch.allclose(found, seen[0].mean(dim=1))


def test_oracles_are_the_true_gradient_and_the_true_loss():
    model = tiny_model()
    batch = replace(tiny_batch(frames=16), labels=([1, 2], [3], [2, 2, 4]))
    assert ORACLES == ("oracle_gradient", "oracle_loss", "oracle_groups")
    lengths, losses = (ACQUISITIONS[name](model, batch) for name in ORACLES[:2])
    for b, labels in enumerate(batch.labels):
        loss = ctc(model, batch.features[b], labels)
        assert lengths[b].item() == pytest.approx(squared_norm(loss, model).item(), rel=1e-9)
        assert losses[b].item() == pytest.approx(loss.item() / 4, rel=1e-9)
    # "2 2 4" with the blank between fits four frames; one more does not, and comes last
    longer = true_loss(model, replace(batch, labels=([1, 2], [3], [2, 2, 4, 4])))
    assert longer[2] == -math.inf and torch.equal(longer[:2], losses[:2])
