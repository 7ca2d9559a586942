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

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ctc import labelings_gradients
from .decoding import Hypotheses
from .model import Bidirectional, SequenceNorm, ToSequence
from .training import has_bf16

# ---------------------------------------------------------------- one forward, many backward passes


class Tape:
    """A forward pass that can be walked back for single utterances and many directions.

    ``model.layers`` is a sequence of layers that ``RULES`` knows; ``features`` [B, T, F]. Raises
    ``TypeError`` naming a layer that has no rule here: nothing is left out silently.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, features: Tensor):
        if model.training:
            raise ValueError("gradients of single utterances need model.eval() (batch norm)")
        if len(features) == 0:
            raise ValueError("the batch is empty: gradients need at least one utterance")
        self._backward = []
        x = features[:, None]
        for number, (name, layer) in enumerate(model.layers.named_children()):
            if type(layer) not in RULES:
                raise TypeError(f"no gradient rule for layer {name} ({type(layer).__name__})")
            self._last = layer, x
            x, backward = RULES[type(layer)](layer, x, number > 0)
            self._backward.append(backward)
        self.logits = x  # [B, T', V]

    @torch.no_grad()
    def squared_norms(self, directions: Tensor, who=slice(None), bf16: bool = False) -> Tensor:
        """‖Jᵀ d‖² over all parameters: directions [B, R, T', V] → [B, R].

        ``who`` (a slice or numbers) are the utterances that the directions belong to. With
        ``bf16`` the passes run in half precision, sums aside: relative error about 2e-3, twice as
        fast.
        """
        delta, total = directions.to(torch.bfloat16) if bf16 else directions, 0.0
        for backward in reversed(self._backward):
            norms, delta = backward(delta, who)
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
    x = x.to(delta.dtype)
    if T * outputs * R + T * inputs < inputs * outputs * R:
        gram = (x @ x.mT).to(wide) + bias  # [B, T, T]; a bias is an input that is always 1
        return ((delta @ delta.mT) * gram[:, None]).sum(dim=(2, 3))
    product = x.mT[:, None] @ delta  # [B, R, I, O]
    norms = product.to(wide).square().sum(dim=(2, 3))
    return norms + delta.sum(dim=2, dtype=wide).square().sum(dim=2) * bias


def _wide(x: Tensor) -> torch.dtype:
    """The type that sums are taken in: at least single precision."""
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------- one rule a layer type
# rule(layer, input, need_input) → (output, backward), and
# backward(delta, who) → (squared norms [B, R] over the layer's parameters, ∂/∂input or None)
# for the utterances ``who`` (a slice or numbers) in the precision of ``delta``, which is
# [B, R, T, D] for sequences and [B, R, C, T, F] for images.


def _linear(layer, x, _need_input):
    def backward(delta, who):
        norms = outer_squared_norms(x[who], delta, int(layer.bias is not None))
        return norms, delta @ layer.weight.to(delta.dtype)

    return layer(x), backward


def _norm(layer, x, _need_input):
    """Batch norm with running statistics: an affine map of every feature (or channel)."""
    features, positions = ((1, -1, 1, 1), (3, 4)) if x.dim() == 4 else ((1, 1, -1), (2,))
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    scaled = (x - layer.running_mean.view(features)) * inverse.view(features)
    slope = (inverse * layer.weight).view(features)[:, None]

    def backward(delta, who):
        wide = delta.to(_wide(delta))
        by_weight = (wide * scaled[who, None]).sum(dim=positions)  # [B, R, D]
        norms = by_weight.square().sum(-1) + wide.sum(dim=positions).square().sum(-1)
        return norms, delta * slope.to(delta.dtype)

    return layer(x), backward


def _clip(layer, x, _need_input):
    inside = (x > layer.min_val) & (x < layer.max_val)

    def backward(delta, who):
        return 0.0, delta * inside[who, None]

    return layer(x), backward


def _to_sequence(layer, x, _need_input):
    def backward(delta, _who):  # [B, R, T, C·F] → [B, R, C, T, F]
        return 0.0, delta.unflatten(3, (x.shape[1], x.shape[3])).transpose(2, 3).contiguous()

    return layer(x), backward


def _conv(layer, x, need_input):
    """Weight gradients of an utterance are one product of its unfolded input; one at a time."""
    if layer.bias is not None or layer.groups != 1 or layer.dilation != (1, 1):
        raise TypeError("only plain convolutions without bias have a gradient rule")
    kernel, stride, (top, right) = layer.kernel_size, layer.stride, layer.padding
    # frames and bins at the end that no kernel reaches
    missing = [(x.shape[2 + i] + 2 * layer.padding[i] - kernel[i]) % stride[i] for i in range(2)]

    def backward(delta, who):
        B, R = delta.shape[:2]
        padded = functional.pad(x[who].to(delta.dtype), (right, right, top, top))
        patches = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        norms = delta.new_empty(B, R, dtype=_wide(delta))
        for b in range(B):
            unfolded = patches[b].permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)  # [positions, I]
            gradients = delta[b].flatten(2).flatten(0, 1) @ unfolded  # [R·C, I]
            norms[b] = gradients.to(norms.dtype).square().sum(dim=1).view(R, -1).sum(dim=1)
        if not need_input:
            return norms, None
        rows = delta.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # the fast kernel
        by_input = functional.conv_transpose2d(
            rows, layer.weight.to(delta.dtype), None, stride, layer.padding, missing
        )
        return norms, by_input.contiguous().unflatten(0, (B, R))

    return layer(x), backward


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
        from_x = functional.linear(x, w_x, b_x)  # [B, T, G·H]
        from_h = functional.linear(before, w_h, b_h)
        last_first = range(T) if d else range(T - 1, -1, -1)
        deltas = DELTAS[type(rnn)](rnn, from_x, from_h, before, now, last_first)
        parts.append((w_x, w_h, before, deltas))

    def backward(delta, who):
        norms, by_input = 0.0, 0.0
        for w_x, w_h, before, deltas in parts:  # both directions receive the sum's delta
            delta_x, delta_h = deltas(delta, who, w_h.to(delta.dtype))  # [B, R, T, G·H]
            if delta_x is delta_h:  # both matrices receive one delta: one product serves both
                both = torch.cat([x[who], before[who]], dim=-1)
                norms = norms + outer_squared_norms(both, delta_x, 2)
            else:
                norms = norms + outer_squared_norms(x[who], delta_x, 1)
                norms = norms + outer_squared_norms(before[who], delta_h, 1)
            by_input = by_input + delta_x @ w_x.to(delta.dtype)  # [B, R, T, D]
        return norms, by_input

    return hidden.sum(dim=2), backward


# deltas(out, who, w_h) → the gradients by the gates' pre-activations, of the part that comes from
# the input and of that from the hidden state, [B, R, T, G·H] each; ``out`` is that by the output.


def _rnn_deltas(rnn, _from_x, _from_h, _before, now, last_first):
    """h = φ(a), a = W_x x + W_h h₋₁ + b. δa = φ'(a) δh; δh₋₁ += W_hᵀ δa."""
    slope = (now > 0).to(now) if rnn.nonlinearity == "relu" else 1 - now**2  # [B, T, H]

    def deltas(out, who, w_h):
        result, carried, by_a = torch.empty_like(out), 0.0, slope[who, None].to(out.dtype)
        for t in last_first:
            step = (out[:, :, t] + carried) * by_a[:, :, t]
            result[:, :, t] = step
            carried = _times(step, w_h)
        return result, result

    return deltas


def _gru_deltas(rnn, from_x, from_h, before, _now, last_first):
    """r, z = σ(·); n = tanh(a_n + r ∘ c_n) with c_n = W_hn h₋₁ + b_hn; h = (1 − z) n + z h₋₁.

    The candidate's hidden part is gated by r, so input and hidden matrices receive different
    deltas in the third gate.
    """
    H = rnn.hidden_size
    r, z = torch.sigmoid(from_x[..., : 2 * H] + from_h[..., : 2 * H]).chunk(2, dim=-1)
    c = from_h[..., 2 * H :]
    n = torch.tanh(from_x[..., 2 * H :] + r * c)
    by_n = (1 - z) * (1 - n**2)  # δa_n / δh
    by_r = by_n * c * r * (1 - r)
    by_z = (before - n) * z * (1 - z)
    by_x = torch.stack([by_r, by_z, by_n], dim=-2)  # [B, T, 3, H]
    by_h = torch.stack([by_r, by_z, by_n * r], dim=-2)

    def deltas(out, who, w_h):
        to_x, to_h = by_x[who, None].to(out.dtype), by_h[who, None].to(out.dtype)
        keep = z[who, None].to(out.dtype)
        result_x, result_h = (out.new_empty(*out.shape[:-1], 3, H) for _ in range(2))
        carried = out.new_zeros(*out.shape[:2], H)  # δh from the future
        for t in last_first:
            delta = out[:, :, t] + carried  # [B, R, H]
            torch.mul(delta[:, :, None], to_x[:, :, t], out=result_x[:, :, t])
            torch.mul(delta[:, :, None], to_h[:, :, t], out=result_h[:, :, t])
            carried = torch.addcmul(_times(result_h[:, :, t], w_h), delta, keep[:, :, t])
        return result_x.flatten(-2), result_h.flatten(-2)

    return deltas


def _lstm_deltas(_rnn, from_x, from_h, _before, _now, last_first):
    """c = f c₋₁ + i g; h = o tanh(c), gates in torch's order i, f, g, o.

    δc = δh o (1 − tanh²c) + f₊₁ δc₊₁; the cell states are recomputed from the gates.
    """
    i, f, g, o = (from_x + from_h).chunk(4, dim=-1)  # [B, T, H]
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new, cells, before = i * g, torch.empty_like(i), torch.empty_like(i)
    cell = torch.zeros_like(i[:, 0])
    for t in reversed(last_first):
        before[:, t] = cell
        cell = torch.addcmul(new[:, t], f[:, t], cell)
        cells[:, t] = cell
    tanh_c = torch.tanh(cells)
    to_cell = o * (1 - tanh_c**2)  # δc / δh
    by_cell = torch.stack(  # δ(pre-activations of i, f, g) / δc
        [new * (1 - i), before * f * (1 - f), i * (1 - g**2)], dim=-2
    )  # [B, T, 3, H]
    by_h = tanh_c * o * (1 - o)  # δ(pre-activation of o) / δh

    def deltas(out, who, w_h):
        to_c, keep = to_cell[who, None].to(out.dtype), f[who, None].to(out.dtype)
        from_c, from_h = by_cell[who, None].to(out.dtype), by_h[who, None].to(out.dtype)
        B, R, T, H = out.shape
        result = out.new_empty(B, R, T, 4, H)
        carried_h = carried_c = out.new_zeros(B, R, H)  # δh and δc from the future
        for t in last_first:
            gates = result[:, :, t]  # [B, R, 4, H]
            delta_h = out[:, :, t] + carried_h
            delta_c = torch.addcmul(carried_c, delta_h, to_c[:, :, t])
            torch.mul(delta_c[:, :, None], from_c[:, :, t], out=gates[:, :, :3])
            torch.mul(delta_h, from_h[:, :, t], out=gates[:, :, 3])
            carried_h = _times(gates, w_h)
            carried_c = delta_c * keep[:, :, t]
        result = result.flatten(-2)
        return result, result

    return deltas


def _times(gates: Tensor, w_h: Tensor) -> Tensor:
    """One frame's [B, R, …, G·H] times [G·H, H], all rows in one product."""
    return (gates.flatten(0, 1).flatten(1) @ w_h).unflatten(0, gates.shape[:2])


DELTAS = {nn.RNN: _rnn_deltas, nn.GRU: _gru_deltas, nn.LSTM: _lstm_deltas}
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
    tape: Tape, hypotheses: Hypotheses, method: str = "rank", directions: int = 6,
    probes: int = 1, seed: int = 0,
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

    Labelings of probability zero contribute nothing. Raises ``ValueError`` for an unknown method
    and for ``directions`` or ``probes`` below 1.
    """
    if method not in METHODS:
        raise ValueError(f"unknown EGL method {method!r}: choose one of {', '.join(METHODS)}")
    if directions < 1 or probes < 1:
        raise ValueError(f"EGL needs directions and probes >= 1, not {directions} and {probes}")
    rows = weighted_gradients(tape.logits, hypotheses)  # the matrix A: [B, K, T, V]
    if method == "logits":
        return rows.square().sum(dim=(1, 2, 3))
    fast = has_bf16(rows.device) and rows.dtype == torch.float32
    all_rows = rows.transpose(1, 2).flatten(2)[:, None]  # ‖Xᵀ[A₁ A₂ …]‖² = Σ_k ‖XᵀA_k‖²
    last_of_all = tape.last_layer_squared_norms(all_rows)[:, 0]
    if method == "last_layer":
        return last_of_all
    shares, vectors = principal_directions(rows)
    if method == "exact":
        full, last = _to_tolerance(tape, rows, shares, vectors, fast)
    else:
        leading = combine(vectors[:, :, :directions], rows)  # [B, R, T, V]
        full = tape.squared_norms(leading, bf16=fast).sum(dim=1)
        if method == "unbiased":
            signs = _signs(rows.shape[1], probes, seed).to(rows)  # [K, P]
            within = vectors[:, :, :directions]
            residual = combine(signs - within @ (within.mT @ signs), rows)
            return full + tape.squared_norms(residual, bf16=fast).mean(dim=1)
        last = tape.last_layer_squared_norms(leading).sum(dim=1)
    # no gradient along the leading directions: none along any other
    return torch.where(last > 0, last_of_all * full / last, full)


def weighted_gradients(logits: Tensor, hypotheses: Hypotheses) -> Tensor:
    """The matrix A: √p_k · ∂ℓ(x, y_k)/∂logits, [B, K, T, V]; zero where p_k is."""
    gradients = labelings_gradients(logits.log_softmax(-1), hypotheses.labels, hypotheses.lengths)
    return gradients * hypotheses.log_p.exp().sqrt()[..., None, None]


def principal_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of A, from the K × K matrix A Aᵀ: rows [B, K, T, V] →

    what is left of Σ_k p_k ‖g_k‖² after each of them (a share, [B, K], falling), and the vectors
    in the columns of [B, K, K].
    """
    A = rows.flatten(2)
    values, vectors = torch.linalg.eigh(A @ A.mT)  # ascending
    beyond = values.clamp_min(0).cumsum(-1)
    left = (beyond / beyond[:, -1:].clamp_min(torch.finfo(rows.dtype).tiny)).roll(1, dims=1)
    left[:, 0] = 0
    return left.flip(-1), vectors.flip(-1)


def combine(vectors: Tensor, rows: Tensor) -> Tensor:
    """Uᵀ A: vectors [B, K, R], rows [B, K, T, V] → [B, R, T, V]."""
    return (vectors.mT @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def _signs(labelings: int, probes: int, seed: int) -> Tensor:
    """Random ±1 [K, P], the same for every utterance: no score depends on batch-mates."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (labelings, probes), generator=generator) * 2.0 - 1


# exact EGL: share of Σ_k p_k ‖g_k‖² that the ratio estimates, by precision; and the share beyond
# which half precision, relative error 2e-3, changes the sum by less than 1e-4
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
MINOR = 1e-2
BLOCK = 8  # directions at a time


def _to_tolerance(tape, rows, left, vectors, fast) -> tuple[Tensor, Tensor]:
    """Full and last-layer norms along as many directions as each utterance needs, [B] each."""
    full, last = rows.new_zeros(len(rows)), rows.new_zeros(len(rows))
    before = torch.cat([left.new_ones(len(left), 1), left[:, :-1]], dim=1)  # left before each
    for start in range(0, rows.shape[1], BLOCK):
        unfinished = before[:, start] > TOLERANCE[rows.dtype]
        minor = unfinished & (before[:, start] < MINOR) if fast else torch.zeros_like(unfinished)
        for chosen, bf16 in ((unfinished & ~minor, False), (minor, True)):
            who = chosen.nonzero()[:, 0]
            if len(who):
                block = combine(vectors[who, :, start : start + BLOCK], rows[who])
                full[who] += tape.squared_norms(block, who, bf16).sum(dim=1)
                last[who] += tape.last_layer_squared_norms(block, who).sum(dim=1)
    return full, last
