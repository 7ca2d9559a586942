"""Backward passes written out, layer type by layer type, for squared gradient norms (gradients.py).

Legend: B batch, T frames, V symbols, D/H features, G gates, R directions.

Each is for B utterances and R directions at once and gives ‖∂/∂θ‖² of every utterance and direction
without ever forming a recurrent layer's weight gradient: the gradient of a matrix that multiplies
X [T, I] and receives Δ [T, O] is XᵀΔ, and ‖XᵀΔ‖² = ⟨X Xᵀ, Δ Δᵀ⟩, two T × T matrices.

Batch norm is used in evaluation mode (its running statistics are constants): batch statistics
would make an utterance's gradient depend on its batch-mates.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import Bidirectional, SequenceNorm, ToSequence


def outer_squared_norms(x: Tensor, delta: Tensor, bias: int) -> Tensor:
    """‖Xᵀ Δ‖² of every utterance and direction, and ``bias`` times ‖Σ_t Δ_t‖² on top.

    x [B, T, I], delta [B, R, T, O] → [B, R]. By way of T × T matrices or by the product itself,
    whichever is less work.
    """
    (_, R, T, outputs), inputs, wide = delta.shape, x.shape[2], at_least_single(delta)
    if T * outputs * R + T * inputs < inputs * outputs * R:
        gram = x @ x.mT + bias  # [B, T, T]; a bias is an input that is always 1
        return ((delta @ delta.mT) * gram[:, None]).sum(dim=(2, 3))
    product = x.to(delta.dtype).mT[:, None] @ delta  # [B, R, I, O]
    norms = product.to(wide).square().sum(dim=(2, 3))
    return norms + delta.sum(dim=2, dtype=wide).square().sum(dim=2) * bias


def at_least_single(x: Tensor) -> torch.dtype:
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


def _conv(layer, x, need_input, norm=None):
    """A convolution, with the batch norm that follows it: that one is affine, and its gradients are
    sums of the convolution's, Σ_t δ_t (w · x_t) = w · Σ_t δ_t x_t. Weight gradients of an utterance
    are one product of its unfolded input; one at a time."""
    kernel, stride, (top, right) = layer.kernel_size, layer.stride, layer.padding
    # frames and bins at the end that no kernel reaches
    missing = [(x.shape[2 + i] + 2 * layer.padding[i] - kernel[i]) % stride[i] for i in range(2)]
    output, slope = layer(x).contiguous(memory_format=torch.channels_last), 1.0
    if norm is not None:
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        output, slope = norm(output), inverse * norm.weight
    weight = layer.weight * torch.as_tensor(slope).expand(len(layer.weight))[:, None, None, None]

    def backward(delta, who, dtype):
        rows = delta.to(dtype)
        padded = functional.pad(x[who].to(dtype), (right, right, top, top))
        patches = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        inputs = rows.new_ones(1 + weight[0].numel(), *patches.shape[2:4])  # the last sums deltas
        unfolded, all_products = inputs[:-1].unflatten(0, weight.shape[1:]), []
        for patch, row in zip(patches, rows, strict=True):
            unfolded.copy_(patch.permute(0, 3, 4, 1, 2))
            outputs = row.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)  # [positions, R·C]
            all_products.append(inputs.flatten(1) @ outputs)
        products = torch.stack(all_products).to(x.dtype).unflatten(2, (-1, len(weight)))
        by_weight, total = products[:, :-1], products[:, -1]  # [B, I, R, C], [B, R, C]
        norms = (by_weight * slope).square().sum(dim=(1, 3))
        if norm is not None:
            by_scale = (by_weight * layer.weight.flatten(1).T[:, None]).sum(dim=1)
            by_scale = (by_scale - total * norm.running_mean) * inverse
            norms = norms + by_scale.square().sum(-1) + total.square().sum(-1)
        if not need_input:
            return norms, None
        by_input = functional.conv_transpose2d(
            rows.flatten(0, 1), weight.to(dtype), None, stride, layer.padding, missing
        )
        return norms, by_input.unflatten(0, delta.shape[:2])

    return output, backward


def _recurrent(layer, x, _need_input):
    """Both directions of a recurrent layer at once: the backward one is the same recursion with its
    time turned. From the fused layer's inputs and outputs all gates come in one product."""
    rnn, (B, T, D) = layer.rnn, x.shape
    w_x, w_h, b_x, b_h = (
        torch.stack([getattr(rnn, f"{name}_l0{suffix}") for suffix in ("", "_reverse")])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = layer.directions(x)  # [B, T, 2, H]: their sum would lose them
    now = _both_ways(hidden[:, :, 0], hidden[:, :, 1], 1)
    before = functional.pad(now[:, :, :-1], (0, 0, 1, 0))  # [2, B, T, H]
    both = torch.cat([_both_ways(x, x, 1), before], dim=-1)

    made = {}  # when a backward pass comes, and as precise as that is

    def recursion(dtype):
        def gates(inputs, w, b):
            product = inputs.flatten(1, 2).to(dtype) @ w.to(dtype).mT
            return (product.to(x.dtype) + b[:, None]).unflatten(1, (B, T))

        if isinstance(rnn, nn.RNN):
            return _rnn_deltas(rnn, now)
        if isinstance(rnn, nn.LSTM):
            return _lstm_deltas(gates(both, torch.cat([w_x, w_h], dim=2), b_x + b_h))
        return _gru_deltas(gates(both[..., :D], w_x, b_x), gates(before, w_h, b_h), before)

    # a GRU's input and hidden matrices receive different deltas
    inputs = both.split((D, rnn.hidden_size), dim=-1) if isinstance(rnn, nn.GRU) else (both,)

    def backward(delta, who, dtype):
        if made.keys().isdisjoint((dtype, x.dtype)):  # precise ones serve half precision, too
            made[dtype] = recursion(dtype)
        deltas = made.get(x.dtype) or made[dtype]
        norms, of_gates = 0.0, deltas(delta, who, w_h.to(dtype))
        for source, by_gates in zip(inputs, of_gates, strict=True):  # [2, B, R, T, G·H] each
            # where one delta serves both matrices, it serves two biases, too
            source, bias = source[:, who].flatten(0, 1), 3 - len(inputs)
            squares = outer_squared_norms(source, by_gates.flatten(0, 1), bias)
            norms = norms + squares.unflatten(0, (2, -1)).sum(dim=0)
        by_input, turned = (g @ w for g, w in zip(of_gates[0], w_x.to(dtype), strict=True))
        return norms, by_input.to(delta.dtype) + turned.flip(2)

    return hidden[:, :, 0] + hidden[:, :, 1], backward


def _both_ways(forward: Tensor, backward: Tensor, time: int) -> Tensor:
    """Two tensors as one, the backward direction's with its time turned: the last frame is then
    what a recursion comes to last, in both."""
    return torch.stack([forward, backward.flip(time)])


# deltas(out, who, w_h) → the gradients by the gates' pre-activations, [2, B, R, T, G·H], in the
# precision of w_h (for a GRU of the part that comes from the input and of that from the hidden
# state); ``out`` [B, R, T, H] is that by the output. What is carried from frame to frame keeps
# full precision, but for the product with w_h.


def _rnn_deltas(rnn, now):
    """h = φ(a), a = W_x x + W_h h₋₁ + b. δa = φ'(a) δh; δh₋₁ += W_hᵀ δa."""
    slope = (now > 0).to(now) if rnn.nonlinearity == "relu" else 1 - now**2  # [2, B, T, H]

    def deltas(out, who, w_h):
        out, by_out, carried = _both_ways(out, out, 2), slope[:, who, None], 0.0
        result = torch.empty_like(out, dtype=w_h.dtype)
        for t in reversed(range(out.shape[3])):
            result[:, :, :, t] = (out[:, :, :, t] + carried) * by_out[:, :, :, t]
            carried = result[:, :, :, t] @ w_h[:, None]  # δh from the future
        return (result,)

    return deltas


def _gru_deltas(from_x, from_h, before):
    """r, z = σ(·); n = tanh(a_n + r ∘ c_n) with c_n = W_hn h₋₁ + b_hn; h = (1 − z) n + z h₋₁.

    The candidate's hidden part is gated by r, so input and hidden matrices receive different
    deltas in the third gate.
    """
    H = before.shape[-1]
    r, z = torch.sigmoid(from_x[..., : 2 * H] + from_h[..., : 2 * H]).chunk(2, dim=-1)
    c = from_h[..., 2 * H :]
    n = torch.tanh(from_x[..., 2 * H :] + r * c)
    by_n = (1 - z) * (1 - n**2)  # δa_n / δh
    by_r = by_n * c * r * (1 - r)
    by_z = (before - n) * z * (1 - z)
    by_x = torch.stack([by_r, by_z, by_n], dim=-2)  # [2, B, T, 3, H]
    by_h = torch.stack([by_r, by_z, by_n * r], dim=-2)

    def deltas(out, who, w_h):
        to_x, to_h, keep = by_x[:, who, None], by_h[:, who, None], z[:, who, None]
        out = _both_ways(out, out, 2)
        all_x, all_h = (out.new_empty(*out.shape[:4], 3, H, dtype=w_h.dtype) for _ in range(2))
        carried = torch.zeros_like(out[:, :, :, 0])  # δh from the future
        for t in reversed(range(out.shape[3])):
            delta = out[:, :, :, t] + carried  # [2, B, R, H]
            all_x[:, :, :, t] = delta[..., None, :] * to_x[:, :, :, t]
            all_h[:, :, :, t] = delta[..., None, :] * to_h[:, :, :, t]
            carried = delta * keep[:, :, :, t] + all_h[:, :, :, t].flatten(3) @ w_h[:, None]
        return all_x.flatten(4), all_h.flatten(4)

    return deltas


def _lstm_deltas(gates):
    """c = f c₋₁ + i g; h = o tanh(c), gates in torch's order i, f, g, o: [2, B, T, 4·H].

    δc = δh o (1 − tanh²c) + f₊₁ δc₊₁; the cell states are recomputed from the gates.
    """
    i, f, g, o = gates.chunk(4, dim=-1)  # [2, B, T, H]
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new, before = i * g, torch.zeros_like(i)
    if i.device.type == "cpu":
        _lstm_cells_compiled(new.numpy(), f.numpy(), before.numpy())
    else:
        for t in range(1, i.shape[2]):
            before[:, :, t] = torch.addcmul(new[:, :, t - 1], f[:, :, t - 1], before[:, :, t - 1])
    less = lambda a, b: torch.addcmul(a, a, b, value=-1)  # a (1 − b)  # noqa: E731
    tanh_c = torch.tanh(torch.addcmul(new, f, before))
    # to δc from δh, and from there to the frame before and to the pre-activations of i, f, g; to
    # that of o from δh: [2, B, T, 6, H]
    factors = torch.stack([
        less(o, tanh_c * tanh_c), f, less(new, i), less(before * f, f), less(i, g * g),
        less(tanh_c * o, o),
    ], dim=-2)  # fmt: skip

    def deltas(out, who, w_h):
        B, R, T, H = out.shape
        all_gates = out.new_empty(2, B, R, T, 4, H, dtype=w_h.dtype)
        recent = out.new_empty(TOGETHER, 2, B, R, 4, H, dtype=w_h.dtype)
        carried_h = out.new_zeros(2, B, R, H, dtype=w_h.dtype)  # from the future, as is
        carried_c = out.new_zeros(2, B, R, H)
        step, arrays = _lstm_step, (all_gates, recent, out, carried_h, carried_c, factors[:, who])
        if out.device.type == "cpu":
            # numba knows no bfloat16, only its bits
            half, step = w_h.dtype == torch.bfloat16 or None, _lstm_step_compiled
            bits = (a.view(torch.uint16) if a.dtype == torch.bfloat16 else a for a in arrays)
            arrays = (*(a.numpy() for a in bits), half)
        frames, carried_h = recent.view(-1, 2, B * R, 4 * H), carried_h.view(2, B * R, H)
        for t in reversed(range(T)):
            step(t, *arrays)
            torch.bmm(frames[t % TOGETHER], w_h, out=carried_h)
        return (all_gates.flatten(4),)

    return deltas


@numba.njit(cache=True)
def _lstm_cells_compiled(new, f, before):  # pragma: no cover (compiled)
    """Writes the cell state before each frame, [2, B, T, H]; zero before the first."""
    ways, B, T, H = before.shape
    for way in range(ways):
        for b in range(B):
            for t in range(T - 1):
                for h in range(H):
                    kept = f[way, b, t, h] * before[way, b, t, h]
                    before[way, b, t + 1, h] = new[way, b, t, h] + kept


# frames that the compiled step keeps, to write them at once: rows of one frame each lie far apart,
# and memory is slow to come to them
TOGETHER = 4


def _lstm_step(t, gates, recent, out, carried_h, carried_c, factors):
    """Frame ``t`` of both recursions: writes it into ``gates`` [2, B, R, T, 4, H] and into its
    place among the ``recent`` [TOGETHER, 2, B, R, 4, H], and δc for the frame before into
    ``carried_c`` [2, B, R, H]. ``out`` [B, R, T, H] has its own time, ``factors`` [2, B, T, 6, H]
    that of the direction."""
    to_cell, keep, *by_cell, by_h = factors[:, :, None, t].unbind(dim=-2)
    delta_h = torch.stack([out[:, :, t], out[:, :, -1 - t]]) + carried_h
    carried_c.addcmul_(delta_h, to_cell)
    frame = recent[t % TOGETHER]
    for number, by in enumerate(by_cell):
        frame[..., number, :] = carried_c * by
    frame[..., 3, :] = delta_h * by_h
    gates[:, :, :, t] = frame
    carried_c *= keep


@numba.njit(cache=True)
def _from_half(bits):  # pragma: no cover (compiled)
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@numba.njit(cache=True)
def _to_half(x):  # pragma: no cover (compiled)
    """The nearest bfloat16's bits; of two as near the even one."""
    bits = np.float32(x).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@numba.njit(cache=True)
def _lstm_step_compiled(t, gates, recent, out, carried_h, carried_c, factors, half):
    """The same in one pass over memory; with ``half`` (or else None) ``gates``, ``recent`` and
    ``carried_h`` hold bfloat16's bits. No slices: each costs more than what is done with it."""
    ways, B, R, H = carried_h.shape  # pragma: no cover (compiled)
    T, place = gates.shape[3], t % len(recent)
    delta = np.empty((2, H), out.dtype)  # δc, δh
    for way in range(ways):
        own = T - 1 - t if way else t
        for b in range(B):
            for r in range(R):
                for h in range(H):
                    from_h = carried_h[way, b, r, h]
                    delta_h = out[b, r, own, h] + (from_h if half is None else _from_half(from_h))
                    delta_c = carried_c[way, b, r, h] + delta_h * factors[way, b, t, 0, h]
                    delta[0, h], delta[1, h] = delta_c, delta_h
                    carried_c[way, b, r, h] = delta_c * factors[way, b, t, 1, h]
                for gate in range(4):
                    for h in range(H):
                        by_gate = delta[gate // 3, h] * factors[way, b, t, 2 + gate, h]
                        stored = by_gate if half is None else _to_half(by_gate)
                        recent[place, way, b, r, gate, h] = stored
                for later in range(0 if place else min(len(recent), T - t)):
                    for gate in range(4):
                        for h in range(H):
                            kept = recent[later, way, b, r, gate, h]
                            gates[way, b, r, t + later, gate, h] = kept


RULES = {
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    SequenceNorm: _norm,
    nn.Hardtanh: _clip,
    ToSequence: _to_sequence,
    nn.Conv2d: _conv,
    Bidirectional: _recurrent,
}
