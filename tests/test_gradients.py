"""The written-out backward passes against plain autograd, one utterance and labeling at a time."""

import pytest
import torch
from conftest import tiny_batch, tiny_model
from torch.nn import functional

from alspeech.acquisition import expected_squared_norm
from alspeech.ctc import ctc_losses, labelings_gradients
from alspeech.decoding import n_best
from alspeech.gradients import (
    Tape,
    expected_gradient_length,
    outer_squared_norms,
)

CELLS = ["rnn", "gru", "lstm"]


def squared_norm(loss, model) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return sum(gradient.square().sum() for gradient in gradients)


def ctc(model, features, labeling) -> torch.Tensor:
    log_probs = model(features[None]).log_softmax(-1).transpose(0, 1)
    lengths = torch.tensor([log_probs.shape[0]]), torch.tensor([len(labeling)])
    return functional.ctc_loss(log_probs, torch.tensor([labeling]), *lengths, reduction="sum")


def naive_egl(model, batch, hypotheses) -> torch.Tensor:
    """Equation 4 as it stands: K backward passes an utterance."""
    norms = torch.zeros_like(hypotheses.log_p)
    for b in range(len(batch)):
        for k in torch.isfinite(hypotheses.log_p[b]).nonzero()[:, 0].tolist():
            loss = ctc(model, batch.features[b], hypotheses.labeling(b, k))
            norms[b, k] = squared_norm(loss, model)
    return expected_squared_norm(hypotheses.log_p, norms)


@pytest.mark.parametrize("cell", CELLS)
def test_squared_norms_equal_autograd(cell):
    model, batch = tiny_model(cell), tiny_batch()
    tape = Tape(model, batch.features)
    directions = torch.randn(3, 4, *tape.logits.shape[1:], dtype=torch.float64)
    ours = tape.squared_norms(directions)
    for b in range(3):
        for r in range(4):
            loss = (model(batch.features[b : b + 1])[0] * directions[b, r]).sum()
            assert ours[b, r].item() == pytest.approx(squared_norm(loss, model).item(), rel=1e-10)


def test_the_tape_computes_what_the_model_computes():
    model, batch = tiny_model(), tiny_batch()
    assert torch.allclose(Tape(model, batch.features).logits, model(batch.features), atol=1e-14)


@pytest.mark.parametrize("inputs, outputs", [(3, 4), (50, 60)])  # the product; by T × T matrices
def test_outer_squared_norms_equal_the_outer_product(inputs, outputs):
    x = torch.randn(2, 7, inputs, dtype=torch.float64)
    delta = torch.randn(2, 3, 7, outputs, dtype=torch.float64)
    product = torch.einsum("bti,brto->brio", x, delta).square().sum(dim=(2, 3))
    bias = delta.sum(dim=2).square().sum(dim=2)
    for count in (0, 1, 2):
        assert torch.allclose(outer_squared_norms(x, delta, count), product + count * bias)


@pytest.mark.parametrize("cell", CELLS)
def test_exact_egl_equals_k_plain_backward_passes(cell):
    model, batch = tiny_model(cell), tiny_batch()
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 25)
    exact = expected_gradient_length(tape, hypotheses, directions=0)
    assert exact.tolist() == pytest.approx(naive_egl(model, batch, hypotheses).tolist(), rel=1e-8)


def test_exact_egl_in_single_precision_is_within_a_ten_thousandth():
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32)
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 25)
    exact = expected_gradient_length(tape, hypotheses, directions=0)
    assert exact.tolist() == pytest.approx(naive_egl(model, batch, hypotheses).tolist(), rel=1e-4)


def test_more_directions_come_closer_to_exact():
    model, batch = tiny_model(), tiny_batch(size=6)
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 25)
    exact = expected_gradient_length(tape, hypotheses, directions=0)
    errors = [
        (expected_gradient_length(tape, hypotheses, R) / exact - 1).abs().mean().item()
        for R in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_logit_gradient_is_softmax_minus_occupancy():
    """One frame, one label a: the only path is a, so the gradient is softmax − onehot(a)."""
    logits = torch.tensor([[[0.3, -1.0, 2.0]]], dtype=torch.float64)
    hypotheses = n_best(logits.log_softmax(-1), 3)
    gradients = labelings_gradients(logits.log_softmax(-1), hypotheses.labels, hypotheses.lengths)[
        0, :, 0
    ]
    for k in range(3):
        target = torch.zeros(3, dtype=torch.float64)
        target[(hypotheses.labeling(0, k) or [0])[0]] = 1
        assert torch.allclose(gradients[k], logits[0, 0].softmax(-1) - target)


@pytest.mark.parametrize("sharpness", [0.5, 5.0])
def test_logit_gradients_equal_autograd_through_torchs_ctc(sharpness):
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(2, 12, 6, generator=generator, dtype=torch.float64)
    hypotheses = n_best(logits.log_softmax(-1), 30)
    ours = labelings_gradients(logits.log_softmax(-1), hypotheses.labels, hypotheses.lengths)
    for b in range(2):
        for k in range(30):
            leaf = logits[b : b + 1].clone().requires_grad_()
            loss = ctc_losses(leaf.log_softmax(-1), [hypotheses.labeling(b, k)])
            assert loss.item() == pytest.approx(-hypotheses.log_p[b, k].item(), rel=1e-12)
            loss.backward()
            assert torch.allclose(ours[b, k], leaf.grad[0], atol=1e-12)


def test_labelings_of_probability_zero_count_nothing():
    model, batch = tiny_model(symbols=2), tiny_batch(frames=4)  # one output frame: two labelings
    tape = Tape(model, batch.features)
    few, many = (n_best(tape.logits.log_softmax(-1), k) for k in (2, 30))
    egl = [expected_gradient_length(tape, h, directions=0) for h in (few, many)]
    assert torch.isfinite(egl[1]).all() and torch.allclose(*egl)


def test_an_unknown_layer_is_refused_by_name():
    model, batch = tiny_model(), tiny_batch()
    model.layers.append(torch.nn.LayerNorm(5).double())
    with pytest.raises(TypeError, match="LayerNorm"):
        Tape(model, batch.features)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        Tape(tiny_model().train(), tiny_batch().features)
