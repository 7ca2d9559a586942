"""Squared gradient norms of single utterances, and Expected Gradient Length from few of them.

Legend: B batch, T frames, V symbols, D/H features, G gates, K labelings, R directions.

With J the Jacobian of an utterance's logits (T·V of them) by all parameters, and g_k the gradient
of ℓ(x, y_k) by the logits, the gradient by the parameters is Jᵀ g_k, and

    EGL(x) = Σ_k p_k ‖Jᵀ g_k‖²            (Huang et al. 2016, Eq. 4)

depends on the K labelings only through the matrix A whose rows are √p_k g_k: for any orthogonal
change of rows, A → Uᵀ A, the sum Σ_r ‖Jᵀ (UᵀA)_r‖² stays the same. The left singular vectors of A
make most rows (almost) zero, so that a few backward passes do what a hundred did.

The backward passes are written out here, layer type by layer type, for B utterances and R
directions at once. They return ‖∂/∂θ‖² of every utterance and direction without ever forming a
recurrent layer's weight gradient: the gradient of a matrix that multiplies X [T, I] and receives
Δ [T, O] is XᵀΔ, and ‖XᵀΔ‖² = ⟨X Xᵀ, Δ Δᵀ⟩, two T × T matrices.

Batch norm is used in evaluation mode (its running statistics are constants): batch statistics
would make an utterance's gradient depend on its batch-mates.
"""

from __future__ import annotations

import math

import numba
import torch
from torch import Tensor, nn
from torch.nn import functional

from .ctc import ctc_losses, labelings_gradients
from .decoding import Hypotheses
from .devices import has_bf16
from .model import Bidirectional, SequenceNorm, ToSequence

# ---------------------------------------------------------------- one forward, many backward passes


class Tape:
    """A forward pass that can be walked back for single utterances and many directions.

    ``model.layers`` is an ``nn.Sequential`` of layers that ``RULES`` knows; ``features`` [B, T, F].
    Raises ``TypeError`` naming a model that has no such ``layers``, or a layer that has no rule
    here: nothing is left out silently.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, features: Tensor):
        if model.training:
            raise ValueError("gradients of single utterances need model.eval() (batch norm)")
        if len(features) == 0:
            raise ValueError("the batch is empty: gradients need at least one utterance")
        layers = getattr(model, "layers", None)
        if not isinstance(layers, nn.Sequential):
            told = "has none" if layers is None else f"has {type(layers).__name__} there"
            raise TypeError(
                "gradients of single utterances (EGL) need a model whose `layers` is an "
                f"nn.Sequential of types in gradients.RULES; {type(model).__name__} {told}"
            )
        self._backward = []
        x = features[:, None]
        for number, (name, layer) in enumerate(layers.named_children()):
            special = isinstance(layer, nn.Conv2d) and (
                layer.bias is not None or layer.groups != 1 or layer.dilation != (1, 1)
            )
            if special or type(layer) not in RULES:
                kind = type(layer).__name__ + special * " with bias, groups or dilation"
                raise TypeError(f"no gradient rule for layer {name} ({kind})")
            self._last = layer, x
            x, backward = RULES[type(layer)](layer, x, number > 0)
            self._backward.append(backward)
        self.logits = x  # [B, T', V]

    @torch.no_grad()
    def squared_norms(self, directions: Tensor, who=slice(None), bf16: bool = False) -> Tensor:
        """‖Jᵀ d‖² over all parameters: directions [B, R, T', V] → [B, R].

        ``who`` (a slice or numbers) are the utterances that the directions belong to. With
        ``bf16`` the large products are taken in half precision: relative error about 1e-3, twice
        as fast.
        """
        delta, total = directions, 0.0
        for backward in reversed(self._backward):
            norms, delta = backward(delta, who, torch.bfloat16 if bf16 else delta.dtype)
            total = total + norms
        return total

    @torch.no_grad()
    def last_layer_squared_norms(self, directions: Tensor, who=slice(None)) -> Tensor:
        """The last layer's share of :meth:`squared_norms`; needs no backward pass. [B, R]."""
        layer, x = self._last
        return outer_squared_norms(x[who], directions, int(layer.bias is not None))


def outer_squared_norms(x: Tensor, delta: Tensor, bias: int) -> Tensor:
    """‖Xᵀ Δ‖² of every utterance and direction, and ``bias`` times ‖Σ_t Δ_t‖² on top.

    x [B, T, I], delta [B, R, T, O] → [B, R]. By way of T × T matrices or by the product itself,
    whichever is less work.
    """
    (_, R, T, outputs), inputs, wide = delta.shape, x.shape[2], _wide(delta)
    if T * outputs * R + T * inputs < inputs * outputs * R:
        gram = x @ x.mT + bias  # [B, T, T]; a bias is an input that is always 1
        return ((delta @ delta.mT) * gram[:, None]).sum(dim=(2, 3))
    product = x.to(delta.dtype).mT[:, None] @ delta  # [B, R, I, O]
    norms = product.to(wide).square().sum(dim=(2, 3))
    return norms + delta.sum(dim=2, dtype=wide).square().sum(dim=2) * bias


def _wide(x: Tensor) -> torch.dtype:
    """The type that sums are taken in: at least single precision."""
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------- one rule a layer type
# rule(layer, input, need_input) → (output, backward), and
# backward(delta, who, dtype) → (squared norms [B, R] over the layer's parameters, ∂/∂input)
# for the utterances ``who`` (a slice or numbers), with large products in ``dtype``. ``delta`` is
# [B, R, T, D] for sequences and [B, R, C, T, F] for images.


def _linear(layer, x, _need_input):
    def backward(delta, who, _dtype):
        norms = outer_squared_norms(x[who], delta, int(layer.bias is not None))
        return norms, delta @ layer.weight

    return layer(x), backward


def _norm(layer, x, _need_input):
    """Batch norm with running statistics: an affine map of every feature (or channel)."""
    features, positions = ((1, -1, 1, 1), (3, 4)) if x.dim() == 4 else ((1, 1, -1), (2,))
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    scaled = (x - layer.running_mean.view(features)) * inverse.view(features)
    slope = (inverse * layer.weight).view(features)[:, None]

    def backward(delta, who, _dtype):
        by_weight = (delta * scaled[who, None]).sum(dim=positions)  # [B, R, D]
        norms = by_weight.square().sum(-1) + delta.sum(dim=positions).square().sum(-1)
        return norms, delta * slope

    return layer(x), backward


def _clip(layer, x, _need_input):
    inside = (x > layer.min_val) & (x < layer.max_val)

    def backward(delta, who, _dtype):
        return 0.0, delta * inside[who, None]

    return layer(x), backward


def _to_sequence(layer, x, _need_input):
    def backward(delta, _who, _dtype):  # [B, R, T, C·F] → [B, R, C, T, F], channels last in memory
        by_channel = delta.unflatten(3, (x.shape[1], x.shape[3]))
        return 0.0, by_channel.transpose(3, 4).contiguous().permute(0, 1, 4, 2, 3)

    return layer(x), backward


def _conv(layer, x, need_input):
    """Weight gradients of an utterance are one product of its unfolded input; one at a time."""
    kernel, stride, (top, right) = layer.kernel_size, layer.stride, layer.padding
    # frames and bins at the end that no kernel reaches
    missing = [(x.shape[2 + i] + 2 * layer.padding[i] - kernel[i]) % stride[i] for i in range(2)]

    def backward(delta, who, dtype):
        B, R = delta.shape[:2]
        padded = functional.pad(x[who].to(dtype), (right, right, top, top))
        patches = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        norms, rows = delta.new_empty(B, R), delta.to(dtype)
        for b in range(B):
            inputs = patches[b].permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)  # [I, positions]
            outputs = rows[b].permute(2, 3, 0, 1).flatten(2).flatten(0, 1)  # [positions, R·C]
            gradients = (inputs @ outputs).to(delta.dtype)
            norms[b] = gradients.square().sum(dim=0).view(R, -1).sum(dim=1)
        if not need_input:
            return norms, None
        by_input = functional.conv_transpose2d(
            rows.flatten(0, 1), layer.weight.to(dtype), None, stride, layer.padding, missing
        )
        return norms, by_input.to(delta.dtype).unflatten(0, (B, R))

    return layer(x).contiguous(memory_format=torch.channels_last), backward


def _recurrent(layer, x, _need_input):
    """Both directions of a recurrent layer; the backward one is the same recursion, other way
    round. From the fused layer's inputs and outputs every frame's gates come in one product."""
    rnn, T = layer.rnn, x.shape[1]
    hidden = layer.directions(x)  # [B, T, 2, H]: their sum would lose them
    parts = []
    for d, suffix in enumerate(("", "_reverse")):
        w_x, w_h, b_x, b_h = (
            getattr(rnn, f"{name}_l0{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        now = hidden[:, :, d]
        first = torch.zeros_like(now[:, :1])
        before = torch.cat([now[:, 1:], first] if d else [first, now[:, :-1]], dim=1)  # [B, T, H]
        last_first = range(T) if d else range(T - 1, -1, -1)
        if isinstance(rnn, nn.GRU):  # what comes from the hidden state is gated on its own
            from_x, from_h = functional.linear(x, w_x, b_x), functional.linear(before, w_h, b_h)
            deltas, inputs = _gru_deltas(from_x, from_h, before, last_first), (x, before)
        else:
            both = torch.cat([x, before], dim=-1)
            gates = functional.linear(both, torch.cat([w_x, w_h], dim=1), b_x + b_h)
            lstm = isinstance(rnn, nn.LSTM)
            deltas = _lstm_deltas(gates, last_first) if lstm else _rnn_deltas(rnn, now, last_first)
            inputs = (both,)
        parts.append((w_x, w_h, inputs, deltas))

    def backward(delta, who, dtype):
        norms, by_input, delta = 0.0, None, delta.permute(2, 0, 1, 3).contiguous()
        for w_x, w_h, inputs, deltas in parts:  # both directions receive the sum's delta
            of_gates = deltas(delta, who, w_h.to(dtype))  # [T, B, R, G·H] each
            for source, by_gates in zip(inputs, of_gates, strict=True):
                by_gates = by_gates.permute(1, 2, 0, 3)
                if dtype == torch.bfloat16:  # whose products of strided matrices are slow
                    by_gates = by_gates.contiguous()
                # where one delta serves both matrices, it serves two biases, too
                norms = norms + outer_squared_norms(source[who], by_gates, 3 - len(inputs))
            part = (of_gates[0] @ w_x.to(dtype)).to(delta.dtype)  # [T, B, R, D]
            by_input = part if by_input is None else by_input.add_(part)
        return norms, by_input.permute(1, 2, 0, 3)

    return hidden.sum(dim=2), backward


# deltas(out, who, w_h) → the gradients by the gates' pre-activations, [T, B, R, G·H], in the
# precision of w_h (for a GRU of the part that comes from the input and of that from the hidden
# state); ``out`` [T, B, R, H] is that by the output. Frames come first, so that what a step of the
# recursion touches lies together. What is carried from frame to frame keeps full precision.


def _rnn_deltas(rnn, now, last_first):
    """h = φ(a), a = W_x x + W_h h₋₁ + b. δa = φ'(a) δh; δh₋₁ += W_hᵀ δa."""
    slope = (now > 0).to(now) if rnn.nonlinearity == "relu" else 1 - now**2  # [B, T, H]

    def deltas(out, who, w_h):
        result, carried = torch.empty_like(out, dtype=w_h.dtype), 0.0  # δh from the future
        for t in last_first:
            result[t] = (out[t] + carried) * slope[who, None, t]
            carried = result[t] @ w_h
        return (result,)

    return deltas


def _gru_deltas(from_x, from_h, before, last_first):
    """r, z = σ(·); n = tanh(a_n + r ∘ c_n) with c_n = W_hn h₋₁ + b_hn; h = (1 − z) n + z h₋₁.

    The candidate's hidden part is gated by r, so input and hidden matrices receive different
    deltas in the third gate.
    """
    H = before.shape[2]
    r, z = torch.sigmoid(from_x[..., : 2 * H] + from_h[..., : 2 * H]).chunk(2, dim=-1)
    c = from_h[..., 2 * H :]
    n = torch.tanh(from_x[..., 2 * H :] + r * c)
    by_n = (1 - z) * (1 - n**2)  # δa_n / δh
    by_r = by_n * c * r * (1 - r)
    by_z = (before - n) * z * (1 - z)
    by_x = torch.stack([by_r, by_z, by_n], dim=-2)  # [B, T, 3, H]
    by_h = torch.stack([by_r, by_z, by_n * r], dim=-2)

    def deltas(out, who, w_h):
        to_x, to_h, keep = by_x[who, None], by_h[who, None], z[who, None]
        all_x, all_h = (out.new_empty(*out.shape[:3], 3, H, dtype=w_h.dtype) for _ in range(2))
        carried = torch.zeros_like(out[0])  # δh from the future
        for t in last_first:
            delta = out[t] + carried  # [B, R, H]
            all_x[t] = delta[:, :, None] * to_x[:, :, t]
            all_h[t] = delta[:, :, None] * to_h[:, :, t]
            carried = delta * keep[:, :, t] + all_h[t].flatten(2) @ w_h
        return all_x.flatten(3), all_h.flatten(3)

    return deltas


def _lstm_deltas(gates, last_first):
    """c = f c₋₁ + i g; h = o tanh(c), gates in torch's order i, f, g, o.

    δc = δh o (1 − tanh²c) + f₊₁ δc₊₁; the cell states are recomputed from the gates.
    """
    i, f, g, o = gates.chunk(4, dim=-1)  # [B, T, H]
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new, cells, before = i * g, torch.empty_like(i), torch.empty_like(i)
    cell = torch.zeros_like(i[:, 0])
    for t in reversed(last_first):
        before[:, t] = cell
        cell = torch.addcmul(new[:, t], f[:, t], cell)
        cells[:, t] = cell
    less = lambda a, b: torch.addcmul(a, a, b, value=-1)  # a (1 − b)  # noqa: E731
    tanh_c = torch.tanh(cells)
    # δ(pre-activations of i, f, g) / δc, [B, T, 3, H]
    by_cell = torch.stack([less(new, i), less(before * f, f), less(i, g * g)], dim=-2)
    by_h = less(tanh_c * o, o)  # δ(pre-activation of o) / δh
    to_cell = less(o, tanh_c * tanh_c)  # δc / δh

    def deltas(out, who, w_h):
        T, B, R, H = out.shape
        all_gates = out.new_empty(T, B, R, 4, H, dtype=w_h.dtype)
        frames = all_gates.view(T, B * R, 4 * H).unbind(0)
        exact = w_h.dtype == out.dtype  # else a frame's gates are computed and then rounded
        gates = all_gates if exact else out.new_empty(1, B, R, 4, H)
        factors = [a[who].transpose(0, 1).contiguous() for a in (to_cell, f, by_cell, by_h)]
        carried_h, carried_c = (torch.zeros_like(out[0]) for _ in range(2))  # from the future
        step, arrays = _lstm_step, (gates, out, carried_h, carried_c, *factors)
        if out.device.type == "cpu":
            step, arrays = _lstm_step_compiled, [a.numpy() for a in arrays]
        rounded, product = gates[0].view(B * R, 4 * H), carried_h.view(B * R, H)
        for t in last_first:
            step(t, t if exact else 0, *arrays)
            if exact:
                torch.mm(frames[t], w_h, out=product)
            else:
                product.copy_(frames[t].copy_(rounded) @ w_h)
        return (all_gates.flatten(3),)

    return deltas


def _lstm_step(t, to, gates, out, carried_h, carried_c, to_cell, keep, by_cell, by_h):
    """Frame ``t`` of the recursion: writes ``gates[to]`` [B, R, 4, H] and, in place, δc for the
    frame before. ``out`` [T, B, R, H] and the factors, [T, B, (3,) H], have frames first, too.
    """
    delta_h = out[t] + carried_h
    carried_c.addcmul_(delta_h, to_cell[t, :, None])
    torch.mul(carried_c[:, :, None], by_cell[t, :, None], out=gates[to, :, :, :3])
    torch.mul(delta_h, by_h[t, :, None], out=gates[to, :, :, 3])
    carried_c *= keep[t, :, None]


@numba.njit(cache=True)
def _lstm_step_compiled(t, to, gates, out, carried_h, carried_c, to_cell, keep, by_cell, by_h):
    """The same in one pass over memory."""  # pragma: no cover (compiled)
    B, R, H = carried_h.shape
    for b in range(B):
        for r in range(R):
            for h in range(H):
                delta_h = out[t, b, r, h] + carried_h[b, r, h]
                delta_c = carried_c[b, r, h] + delta_h * to_cell[t, b, h]
                for gate in range(3):
                    gates[to, b, r, gate, h] = delta_c * by_cell[t, b, gate, h]
                gates[to, b, r, 3, h] = delta_h * by_h[t, b, h]
                carried_c[b, r, h] = delta_c * keep[t, b, h]


RULES = {
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    SequenceNorm: _norm,
    nn.Hardtanh: _clip,
    ToSequence: _to_sequence,
    nn.Conv2d: _conv,
    Bidirectional: _recurrent,
}

# ---------------------------------------------------------------- Expected Gradient Length

METHODS = ("rank", "unbiased", "exact", "last_layer", "logits")


def expected_gradient_length(
    tape: Tape, hypotheses: Hypotheses, method: str = "rank", directions: int = 5,
    probes: int = 1, seed: int = 0, renormalise: bool = False,
) -> Tensor:  # fmt: skip
    """Σ_k p(y_k | x) ‖∇ℓ(x, y_k)‖² over all parameters, [B] (Huang et al. 2016, Eq. 4).

    - ``"rank"``: R = ``directions`` backward passes along the leading directions of A. The last
      layer's EGL, which is exact for all K labelings without a backward pass, is scaled by the
      ratio of full to last-layer gradients along them.
    - ``"unbiased"``: the leading directions, and ``probes`` random ±1 combinations (from ``seed``)
      of what they leave: its mean over the signs is EGL itself.
    - ``"exact"``: ``"rank"`` with as many directions as an utterance needs until what is left of
      Σ_k p_k ‖g_k‖² is below ``TOLERANCE``; relative error below 1e-4 in single, 1e-8 in double.
    - ``"last_layer"``, ``"logits"``: only these parameters; no backward pass through the network.

    The p_k are the model's own, or with ``renormalise`` made to sum to 1 over the K. Labelings of
    probability zero contribute nothing. The result is in double precision, since the p_k of a long
    utterance are small. Raises ``ValueError`` for an unknown method and for ``directions`` or
    ``probes`` below 1.
    """
    if method not in METHODS:
        raise ValueError(f"unknown EGL method {method!r}: choose one of {', '.join(METHODS)}")
    if directions < 1 or probes < 1:
        raise ValueError(f"EGL needs directions and probes >= 1, not {directions} and {probes}")
    rows = weighted_gradients(tape.logits, hypotheses)  # the matrix A: [B, K, T, V]
    mean = _expected_norm(tape, rows, method, directions, probes, seed).double()
    return mean if renormalise else mean * hypotheses.mass()


def plain_egl(model: nn.Module, features: Tensor, hypotheses: Hypotheses, b: int = 0) -> float:
    """Equation 4 as it stands, for utterance ``b`` of the hypotheses: one forward pass of its
    features [1, T, F], and a backward pass for each labeling. What all of the above is held
    against."""
    with torch.backends.cudnn.flags(enabled=False):  # its RNNs go back in training mode only
        log_probs = model(features).log_softmax(-1)
    parameters, total = list(model.parameters()), 0.0
    for k in hypotheses.log_p[b].isfinite().nonzero()[:, 0].tolist():
        loss = ctc_losses(log_probs, [hypotheses.labeling(b, k)]).sum()
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = sum(gradient.square().sum().item() for gradient in gradients)
        total += math.exp(hypotheses.log_p[b, k].item()) * norm
    return total


def weighted_gradients(logits: Tensor, hypotheses: Hypotheses) -> Tensor:
    """The matrix A: √p̃_k · ∂ℓ(x, y_k)/∂logits, [B, K, T, V], where p̃ is p made to sum to 1 over the
    K labelings (so that nothing underflows); zero where p_k is."""
    gradients = labelings_gradients(logits.log_softmax(-1), hypotheses.labels, hypotheses.lengths)
    shares = hypotheses.log_p.softmax(dim=1).nan_to_num(0.0)  # NaN where no labeling is possible
    return gradients * shares.sqrt()[..., None, None]


def _expected_norm(tape: Tape, rows: Tensor, method, directions, probes, seed) -> Tensor:
    """Σ_k ‖Jᵀ A_k‖², [B], by one of ``METHODS``."""
    if method == "logits":
        return rows.square().sum(dim=(1, 2, 3))
    able = rows.dtype == torch.float32 and has_bf16(rows.device)
    rough = rows.to(torch.bfloat16) if able and method != "exact" else rows
    all_rows = rough.transpose(1, 2).flatten(2)[:, None]  # ‖Xᵀ[A₁ A₂ …]‖² = Σ_k ‖XᵀA_k‖²
    last_of_all = tape.last_layer_squared_norms(all_rows)[:, 0]
    if method == "last_layer":
        return last_of_all
    left, vectors = principal_directions(rough)
    if method == "exact":
        return _to_tolerance(tape, rows, left, vectors, last_of_all, able)
    vectors = vectors[:, :, :directions]
    leading = combine(vectors, rows)  # [B, R, T, V]
    full = tape.squared_norms(leading, bf16=able).sum(dim=1)
    if method == "unbiased":
        signs = _signs(rows.shape[1], probes, seed).to(rows)  # [K, P]
        residual = combine(signs - vectors @ (vectors.mT @ signs), rows)
        return full + tape.squared_norms(residual, bf16=able).mean(dim=1)
    last = tape.last_layer_squared_norms(leading).sum(dim=1)
    # no gradient along the leading directions: none along any other
    return torch.where(last > 0, last_of_all * full / last, full)


def principal_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of A, from the K × K matrix A Aᵀ of the rows [B, K, T, V].

    Returns the share of Σ_k p_k ‖g_k‖² that is left after each of them, [B, K], falling; and the
    vectors in the columns of [B, K, K], orthonormal whatever the precision of A Aᵀ.
    """
    A = rows.flatten(2)
    values, vectors = torch.linalg.eigh((A @ A.mT).to(_wide(A)))  # ascending
    beyond = values.clamp_min(0).cumsum(-1)
    left = (beyond / beyond[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)).roll(1, dims=1)
    left[:, 0] = 0
    return left.flip(-1), vectors.flip(-1)


def combine(vectors: Tensor, rows: Tensor) -> Tensor:
    """Uᵀ A: vectors [B, K, R], rows [B, K, T, V] → [B, R, T, V]."""
    return (vectors.mT @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def _signs(labelings: int, probes: int, seed: int) -> Tensor:
    """Random ±1 [K, P], the same for every utterance: no score depends on batch-mates."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (labelings, probes), generator=generator) * 2.0 - 1


# exact EGL: the share of Σ_k p_k ‖g_k‖² that is left to the ratio, by precision; and the share
# that may be left to half precision, whose relative error is about a thousandth
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-10}
MINOR = 7e-2
GROUP = 4  # utterances at a time


def _to_tolerance(tape: Tape, rows, left, vectors, last_of_all, able: bool) -> Tensor:
    """EGL along as many directions as each utterance needs, [B]; what is left, by the ratio of full
    to last-layer gradients along its minor directions, which it resembles most."""
    needed = 1 + (left > TOLERANCE[rows.dtype]).sum(dim=1)  # [B]
    major = 1 + (left > MINOR).sum(dim=1)
    full, last = _along(tape, rows, vectors, torch.zeros_like(major), major, bf16=False)
    minor, near = _along(tape, rows, vectors, major, needed, bf16=able)
    ratio = torch.where(near > 0, minor / near, full / last).nan_to_num(0.0, posinf=0.0)
    return full + minor + (last_of_all - last - near).clamp_min(0) * ratio


def _along(tape: Tape, rows, vectors, begin, end, bf16: bool) -> tuple[Tensor, Tensor]:
    """Full and last-layer norms along each utterance's directions from ``begin`` to ``end``, [B]
    each. Those that need about as many go together."""
    K, count = vectors.shape[2], end - begin
    full, last = (rows.new_zeros(len(rows)) for _ in range(2))
    for who in count.argsort().split(GROUP):
        width = int(count[who].max())
        if width:
            columns = begin[who, None] + torch.arange(width, device=begin.device)  # [n, width]
            wanted = (columns < end[who, None])[:, None]
            columns = columns.clamp_max(K - 1)[:, None].expand(-1, vectors.shape[1], -1)
            block = combine(vectors[who].gather(2, columns) * wanted, rows[who])
            full[who] = tape.squared_norms(block, who, bf16).sum(dim=1)
            last[who] = tape.last_layer_squared_norms(block, who).sum(dim=1)
    return full, last
