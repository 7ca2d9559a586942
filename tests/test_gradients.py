"""The written-out backward passes against plain autograd, one utterance and labeling at a time."""

import dataclasses
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_model
from torch.nn import functional

from alspeech import backward, gradients
from alspeech.acquisition import egl, entropy, expected_squared_norm, gradient_length
from alspeech.costs import directions_study
from alspeech.ctc import ctc_losses, labelings_gradients, labelings_log_p
from alspeech.decoding import n_best
from alspeech.gradients import (
    Tape,
    expected_gradient_length,
    outer_squared_norms,
)
from alspeech.model import DeepSpeech2
from alspeech.workshop.config import ModelConfig

CELLS = ["rnn", "gru", "lstm"]


def squared_norm(loss, model) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return sum(gradient.square().sum() for gradient in found)


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


@pytest.mark.parametrize("bins, frames", [(12, 16), (13, 15), (11, 18)])
def test_squared_norms_hold_for_any_kernel_stride_and_size(bins, frames):
    config = ModelConfig(
        bins=bins,
        channels=3,
        kernels=((5, 3), (3, 5)),
        strides=((2, 2), (1, 3)),
        layers=1,
        hidden=4,
    )
    torch.manual_seed(0)
    model = DeepSpeech2(config, 5).double().eval()
    features = torch.randn(2, frames, bins, dtype=torch.float64)
    tape = Tape(model, features)
    directions = torch.randn(2, 2, *tape.logits.shape[1:], dtype=torch.float64)
    ours = tape.squared_norms(directions)
    for b, r in product(range(2), range(2)):
        loss = (model(features[b : b + 1])[0] * directions[b, r]).sum()
        assert ours[b, r].item() == pytest.approx(squared_norm(loss, model).item(), rel=1e-10)


def test_a_convolution_without_a_rule_is_refused_by_name():
    model, batch = tiny_model(), tiny_batch()
    model.layers[0] = torch.nn.Conv2d(1, 3, (5, 5), 2, 2).double()
    with pytest.raises(TypeError, match="layer 0.*Conv2d.*bias"):
        Tape(model, batch.features)


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
    exact = expected_gradient_length(tape, hypotheses, "exact")
    assert exact.tolist() == pytest.approx(naive_egl(model, batch, hypotheses).tolist(), rel=1e-8)


def test_exact_egl_in_single_precision_is_within_a_ten_thousandth():
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32)
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 25)
    exact = expected_gradient_length(tape, hypotheses, "exact")
    assert exact.tolist() == pytest.approx(naive_egl(model, batch, hypotheses).tolist(), rel=1e-4)


def test_more_directions_come_closer_to_exact():
    model, batch = tiny_model(), tiny_batch(size=6)
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 25)
    exact = expected_gradient_length(tape, hypotheses, "exact")
    errors = [
        (expected_gradient_length(tape, hypotheses, "rank", R) / exact - 1).abs().mean().item()
        for R in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_the_mean_over_all_signs_of_the_unbiased_estimate_is_exact(monkeypatch):
    model, batch = tiny_model(), tiny_batch()
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 6)
    exact = expected_gradient_length(tape, hypotheses, "exact")
    every = torch.tensor(list(product([-1.0, 1.0], repeat=6)), dtype=torch.float64).T  # [K, 2^K]
    monkeypatch.setattr(gradients, "_signs", lambda *_: every)
    unbiased = expected_gradient_length(tape, hypotheses, "unbiased", directions=2)
    assert unbiased.tolist() == pytest.approx(exact.tolist(), rel=1e-10)
    monkeypatch.undo()
    one = expected_gradient_length(tape, hypotheses, "unbiased", directions=2, seed=3)
    assert one.tolist() != pytest.approx(exact.tolist(), rel=1e-6)  # one probe is a guess


@pytest.mark.parametrize("method, layers", [("last_layer", 1), ("logits", 0)])
def test_the_cheap_methods_are_egl_over_the_last_parameters(method, layers):
    model, batch = tiny_model(), tiny_batch()
    tape = Tape(model, batch.features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 10)
    ours = expected_gradient_length(tape, hypotheses, method)
    for b in range(len(batch)):
        expected = 0.0
        for k in range(10):
            logits = model(batch.features[b : b + 1])
            loss = ctc_losses(logits.log_softmax(-1), [hypotheses.labeling(b, k)]).sum()
            which = list(model.layers[-1].parameters()) if layers else [logits]
            norm = sum(g.square().sum() for g in torch.autograd.grad(loss, which))
            expected += hypotheses.log_p[b, k].exp() * norm
        assert ours[b].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_passes_are_within_a_few_percent(cell):
    model, batch = (f(dtype=torch.float32) for f in (partial(tiny_model, cell), tiny_batch))
    tape = Tape(model, batch.features)
    directions = torch.randn(3, 4, *tape.logits.shape[1:])
    full, half = (tape.squared_norms(directions, bf16=bf16) for bf16 in (False, True))
    assert (half / full - 1).abs().max() < 0.05 and not torch.equal(half, full)


def test_some_utterances_of_a_batch_get_the_norms_that_they_get_in_it():
    model, batch = tiny_model(), tiny_batch()
    tape = Tape(model, batch.features)
    directions = torch.randn(3, 2, *tape.logits.shape[1:], dtype=torch.float64)
    together = tape.squared_norms(directions)
    for who in (slice(1, 3), torch.tensor([2, 0])):
        assert torch.allclose(tape.squared_norms(directions[who], who), together[who], rtol=1e-12)


def test_logit_gradient_is_softmax_minus_occupancy():
    """One frame, one label a: the only path is a, so the gradient is softmax − onehot(a)."""
    logits = torch.tensor([[[0.3, -1.0, 2.0]]], dtype=torch.float64)
    hypotheses = n_best(logits.log_softmax(-1), 3)
    found = labelings_gradients(logits.log_softmax(-1), hypotheses.labels, hypotheses.lengths)
    for k in range(3):
        target = torch.zeros(3, dtype=torch.float64)
        target[(hypotheses.labeling(0, k) or [0])[0]] = 1
        assert torch.allclose(found[0, k, 0], logits[0, 0].softmax(-1) - target)


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


def test_a_long_labeling_without_a_frame_to_spare_does_not_underflow():
    """As many labels as frames: one path, far less likely than those that cannot be completed."""
    frames = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).double()
    log_probs = (3 * frames).log_softmax(-1)
    log_probs = (log_probs + torch.tensor([20.0, 0, 0, 0, 0])).log_softmax(-1)[None]  # blanks
    labels = torch.tensor([1, 2] * 200)
    losses, rows = forward_backward_of(log_probs, labels)
    assert losses == pytest.approx(log_probs[0, range(400), labels].sum().item(), rel=1e-12)
    assert torch.allclose(rows, log_probs[0].exp() - functional.one_hot(labels, 5), atol=1e-12)
    assert forward_backward_of(log_probs[:, :399], labels)[0] == -torch.inf


def forward_backward_of(log_probs, labels):
    K = labels[None, None], torch.tensor([[len(labels)]])
    return labelings_log_p(log_probs, *K).item(), labelings_gradients(log_probs, *K)[0, 0]


def test_labelings_of_probability_zero_count_nothing():
    model, batch = tiny_model(symbols=2), tiny_batch(frames=4)  # one output frame: two labelings
    tape = Tape(model, batch.features)
    few, many = (n_best(tape.logits.log_softmax(-1), k) for k in (2, 30))
    egl = [expected_gradient_length(tape, h, "exact") for h in (few, many)]
    assert torch.isfinite(egl[1]).all() and torch.allclose(*egl)
    assert few.impossible().tolist() == [0] * 3 and many.impossible().tolist() == [28] * 3


@pytest.mark.parametrize("arguments, message", [
    ({"method": "guess"}, "unknown EGL method 'guess': choose one of rank"),
    ({"directions": 0}, "directions and probes >= 1, not 0 and 1"),
    ({"method": "unbiased", "probes": 0}, "directions and probes >= 1"),
])  # fmt: skip
def test_impossible_demands_are_refused(arguments, message):
    tape = Tape(tiny_model(), tiny_batch().features)
    hypotheses = n_best(tape.logits.log_softmax(-1), 4)
    with pytest.raises(ValueError, match=message):
        expected_gradient_length(tape, hypotheses, **arguments)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Tape(tiny_model(), tiny_batch().features[:0])
    with pytest.raises(ValueError, match="empty"):
        n_best(torch.zeros(0, 4, 3), 5)


def test_an_unknown_layer_is_refused_by_name():
    model, batch = tiny_model(), tiny_batch()
    model.layers.append(torch.nn.LayerNorm(5).double())
    with pytest.raises(TypeError, match="LayerNorm"):
        Tape(model, batch.features)


class Foreign(torch.nn.Module):
    """A recogniser that is no sequence of layers, as those of other packages are."""

    def __init__(self, **parts):
        super().__init__()
        self.head = torch.nn.Linear(12, 5).double()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, features):
        return self.head(features)


@pytest.mark.parametrize("parts, told", [
    ({}, "Foreign has none"), ({"layers": 3}, "Foreign has int there"),
    ({"layers": torch.nn.ModuleList()}, "Foreign has ModuleList there"),
])  # fmt: skip
@pytest.mark.parametrize("score", [egl, partial(egl, renormalise=True), gradient_length])
def test_a_model_without_layers_is_told_what_gradients_need(score, parts, told):
    batch = dataclasses.replace(tiny_batch(), labels=([1], [2], []))
    assert entropy(Foreign().eval(), batch).isfinite().all()  # other scores need a forward pass
    with pytest.raises(
        TypeError, match=f"`layers` is an nn.Sequential of .*RULES; {told}"
    ) as raised:
        score(Foreign(**parts).eval(), batch)
    assert "\n" not in str(raised.value)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        Tape(tiny_model().train(), tiny_batch().features)


@pytest.mark.parametrize("frames", range(1, 10))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_of_the_lstm_is_the_same_compiled_and_by_torch(frames, dtype, monkeypatch):
    """Whatever share of the frames that are written at once is the last one."""
    wide = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(frames)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=wide)  # noqa: E731
    out, gates = draw(2, 3, frames, 4), draw(2, 2, frames, 16)
    w_h = draw(2, 16, 4).to(dtype)
    deltas = backward._lstm_deltas(gates)
    (compiled,) = deltas(out, slice(None), w_h)
    half = dtype == torch.bfloat16

    def plain(t, *arrays):
        known = [torch.from_numpy(x) for x in arrays[:6]]
        for place in (0, 1, 3) if half else ():  # numba's are bits
            known[place] = known[place].view(torch.bfloat16)
        backward._lstm_step(t, *known)

    monkeypatch.setattr(backward, "_lstm_step_compiled", plain)
    (by_torch,) = deltas(out, slice(None), w_h)
    assert compiled.shape == (2, 2, 3, frames, 16) and compiled.abs().max() > 0
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert torch.allclose(compiled.to(wide), by_torch.to(wide), atol=tolerance, rtol=tolerance)


def test_the_study_of_directions_has_every_way_and_a_row_an_utterance_of_each():
    """What notebook 2 draws: as many directions as there are labelings are exact, and so is the
    plain way, which takes the first utterance of each batch."""
    batches = [tiny_batch(3, frames=10), tiny_batch(2, frames=12)]
    left, study = directions_study(tiny_model(), batches, labelings=6, counts=(1, 6))
    assert left.shape == (5, 7) and np.allclose(left[0], 1) and np.allclose(left[6], 0)
    rows = study.groupby("directions", sort=False).size().to_dict()
    assert rows == {"exact": 5, 1: 5, 6: 5, "plain": 2} and (study["ms"] > 0).all()
    alike = study[study["directions"] != 1]
    assert np.allclose(alike["score"].astype(float), alike["exact"].astype(float), rtol=1e-6)
