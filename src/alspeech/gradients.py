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

# ---------------------------------------------------------------- forward, keeping what is needed


class Tape:
    """A forward pass that keeps each layer's input and output.

    ``layers`` is ``DeepSpeech2.layers``; ``features`` [B, T, F]. Raises ``TypeError`` naming a
    layer that has parameters but no rule here: nothing is left out silently.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, features: Tensor):
        if model.training:
            raise ValueError("gradients of single utterances need model.eval() (batch norm)")
        self.entries = []
        x = features[:, None]
        for name, layer in model.layers.named_children():
            if type(layer) not in BACKWARD:
                raise TypeError(f"no gradient rule for layer {name} ({type(layer).__name__})")
            if isinstance(layer, Bidirectional):
                hidden = layer.directions(x)  # [B, T, 2, H]: the sum would lose them
                self.entries.append((layer, x, hidden))
                x = hidden.sum(dim=2)
            else:
                y = layer(x)
                self.entries.append((layer, x, y))
                x = y
        self.logits = x  # [B, T', V]

    @torch.no_grad()
    def squared_norms(self, directions: Tensor) -> Tensor:
        """‖Jᵀ d‖² over all parameters: directions [B, R, T', V] → [B, R]."""
        delta, total = directions, 0.0
        for number in reversed(range(len(self.entries))):
            layer, x, y = self.entries[number]
            norms, delta = BACKWARD[type(layer)](layer, x, y, delta, number > 0)
            total = total + norms
        return total

    @torch.no_grad()
    def last_layer_squared_norms(self, directions: Tensor) -> Tensor:
        """The last layer's share of :meth:`squared_norms`; needs no backward pass. [B, R]."""
        layer, x, _ = self.entries[-1]
        return outer_squared_norms(x, directions, bias=1)


def outer_squared_norms(x: Tensor, delta: Tensor, bias: int = 0) -> Tensor:
    """‖Xᵀ Δ‖² of every utterance and direction, and ``bias`` times ‖Σ_t Δ_t‖² on top.

    x [B, T, I], delta [B, R, T, O] → [B, R]. By way of T × T matrices or by the product itself,
    whichever is less work.
    """
    T, inputs, outputs = x.shape[1], x.shape[2], delta.shape[3]
    if T * outputs + T * inputs // delta.shape[1] <= inputs * outputs:
        gram = x @ x.mT + bias  # [B, T, T]; a bias is an input that is always 1
        return torch.einsum("bts,brts->br", gram, delta @ delta.mT)
    product = x.mT[:, None] @ delta  # [B, R, I, O]
    norms = product.square().sum(dim=(2, 3))
    return norms + bias * delta.sum(dim=2).square().sum(dim=2) if bias else norms


# ---------------------------------------------------------------- one rule a layer type
# rule(layer, input [B, …], output [B, …], delta [B, R, …], need_input) →
#     (squared norms [B, R] over the layer's parameters, ∂/∂input [B, R, …])


def _linear(layer, x, _y, delta, _need_input):
    norms = outer_squared_norms(x, delta, bias=int(layer.bias is not None))
    return norms, delta @ layer.weight


def _norm(layer, x, _y, delta, _need_input):
    """Batch norm with running statistics; features are the last dimension (or the channels)."""
    channels = (1, -1, 1, 1) if x.dim() == 4 else (1, 1, -1)
    keep = 1 if x.dim() == 4 else 2  # the feature dimension, without R
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    scaled = (x - layer.running_mean.view(channels)) * inverse.view(channels)
    sums = [d for d in range(2, delta.dim()) if d != keep + 1]
    by_weight = (delta * scaled[:, None]).sum(dim=sums)  # [B, R, D]
    by_bias = delta.sum(dim=sums)
    norms = by_weight.square().sum(-1) + by_bias.square().sum(-1)
    return norms, delta * (inverse * layer.weight).view((1, *channels))


def _clip(layer, x, _y, delta, _need_input):
    inside = (x > layer.min_val) & (x < layer.max_val)
    return 0.0, delta * inside[:, None]


def _to_sequence(_layer, x, _y, delta, _need_input):
    return 0.0, delta.unflatten(-1, (x.shape[1], x.shape[3])).transpose(2, 3)


def _conv(layer, x, _y, delta, need_input):
    """Weight gradients of an utterance are one product of its unfolded input; one at a time."""
    B, R = delta.shape[:2]
    if layer.bias is not None or layer.groups != 1 or layer.dilation != (1, 1):
        raise TypeError("only plain convolutions without bias have a gradient rule")
    norms = delta.new_empty(B, R)
    for b in range(B):
        patches = functional.unfold(
            x[b : b + 1], layer.kernel_size, padding=layer.padding, stride=layer.stride
        )[0]  # [I, positions]
        gradients = delta[b].flatten(2) @ patches.T  # [R, O, I]
        norms[b] = gradients.square().sum(dim=(1, 2))
    if not need_input:
        return norms, None
    size = (B * R, *x.shape[1:])
    by_input = nn.grad.conv2d_input(
        size, layer.weight, delta.flatten(0, 1), layer.stride, layer.padding
    )
    return norms, by_input.unflatten(0, (B, R))


def _recurrent(layer, x, hidden, delta, _need_input):
    """Both directions of a recurrent layer at once, the backward one on reversed time.

    Legend: 2 directions lead: inputs X [2, B, T, D], outputs [2, B, T, H], deltas
    [2, B, R, T, G·H].
    """
    rnn = layer.rnn
    stacked = lambda name: torch.stack(  # noqa: E731
        [getattr(rnn, f"{name}_l0"), getattr(rnn, f"{name}_l0_reverse")]
    )
    w_x, w_h = stacked("weight_ih"), stacked("weight_hh")  # [2, G·H, D], [2, G·H, H]
    b_x, b_h = stacked("bias_ih"), stacked("bias_hh")  # [2, G·H]
    X = torch.stack([x, x.flip(1)])
    now = torch.stack([hidden[:, :, 0], hidden[:, :, 1].flip(1)])
    before = functional.pad(now, (0, 0, 1, 0))[:, :, :-1]  # [2, B, T, H]; zeros at the start
    from_x = _times(X, w_x.mT) + b_x[:, None, None]  # [2, B, T, G·H]
    from_h = _times(before, w_h.mT) + b_h[:, None, None]
    out = torch.stack([delta, delta.flip(2)])  # both directions receive the sum's delta
    rule = {nn.RNN: _rnn_deltas, nn.GRU: _gru_deltas, nn.LSTM: _lstm_deltas}[type(rnn)]
    delta_x, delta_h = rule(rnn, from_x, from_h, before, now, w_h, out)  # [2, B, R, T, G·H]
    norms = 0.0
    for d in range(2):
        if delta_x is delta_h:  # both matrices receive one delta: one product serves both
            both = torch.cat([X[d], before[d]], dim=-1)
            norms = norms + outer_squared_norms(both, delta_x[d], bias=2)
        else:
            norms = norms + outer_squared_norms(X[d], delta_x[d], bias=1)
            norms = norms + outer_squared_norms(before[d], delta_h[d], bias=1)
    by_input = _times(delta_x, w_x)  # [2, B, R, T, D]
    return norms, by_input[0] + by_input[1].flip(2)


def _rnn_deltas(rnn, from_x, from_h, before, now, w_h, out):
    """h = φ(a), a = W_x x + W_h h₋₁ + b. δa = φ'(a) δh; δh₋₁ += W_hᵀ δa."""
    slope = (now > 0).to(now) if rnn.nonlinearity == "relu" else 1 - now**2  # [2, B, T, H]
    deltas = torch.empty_like(out)
    carried = torch.zeros_like(out[..., 0, :])  # [2, B, R, H]: δh from the future
    for t in reversed(range(out.shape[3])):
        delta = (out[:, :, :, t] + carried) * slope[:, :, None, t]
        deltas[:, :, :, t] = delta
        carried = _times(delta, w_h)
    return deltas, deltas


def _gru_deltas(rnn, from_x, from_h, before, now, w_h, out):
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
    factors_x = torch.cat([by_r, by_z, by_n], dim=-1)  # [2, B, T, 3H]
    factors_h = torch.cat([by_r, by_z, by_n * r], dim=-1)
    total = torch.empty_like(out)  # δh of every frame
    carried = torch.zeros_like(out[..., 0, :])
    for t in reversed(range(out.shape[3])):
        delta = out[:, :, :, t] + carried
        total[:, :, :, t] = delta
        gates = delta.repeat(1, 1, 1, 3) * factors_h[:, :, None, t]
        carried = delta * z[:, :, None, t] + _times(gates, w_h)
    total = total.repeat(1, 1, 1, 1, 3)
    return total * factors_x[:, :, None], total * factors_h[:, :, None]


def _lstm_deltas(rnn, from_x, from_h, before, now, w_h, out):
    """c = f c₋₁ + i g; h = o tanh(c), gates in torch's order i, f, g, o.

    δc = δh o (1 − tanh²c) + f₊₁ δc₊₁; the cell states are recomputed from the gates.
    """
    i, f, g, o = (from_x + from_h).chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c, cells = torch.zeros_like(i[:, :, 0]), []
    for t in range(i.shape[2]):
        cells.append(c)
        c = f[:, :, t] * c + i[:, :, t] * g[:, :, t]
    c_before = torch.stack(cells, dim=2)  # [2, B, T, H]
    tanh_c = torch.tanh(f * c_before + i * g)
    to_cell = o * (1 - tanh_c**2)  # δc / δh
    by_cell = torch.stack(  # δ(pre-activations of i, f, g) / δc
        [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g**2)], dim=3
    )  # [2, B, T, 3, H]
    by_h = tanh_c * o * (1 - o)  # δ(pre-activation of o) / δh
    two, B, R, T, H = out.shape
    deltas = out.new_empty(T, two, B, R, 4, H)  # time first: each step writes one block
    carried_h = out.new_zeros(two, B, R, H)
    carried_c = out.new_zeros(two, B, R, H)
    for t in reversed(range(T)):
        delta_h = out[:, :, :, t] + carried_h
        delta_c = torch.addcmul(carried_c, delta_h, to_cell[:, :, None, t])
        torch.mul(delta_c[:, :, :, None], by_cell[:, :, None, t], out=deltas[t, ..., :3, :])
        torch.mul(delta_h, by_h[:, :, None, t], out=deltas[t, ..., 3, :])
        carried_h = _times(deltas[t].flatten(-2), w_h)
        carried_c = delta_c * f[:, :, None, t]
    deltas = deltas.permute(1, 2, 3, 0, 4, 5).flatten(-2)  # [2, B, R, T, 4H]
    return deltas, deltas


def _times(rows: Tensor, w: Tensor) -> Tensor:
    """[2, …, I] times [2, I, O], direction by direction, as one batched product (a broadcast
    product would copy the weights for every row)."""
    return torch.bmm(rows.flatten(1, -2), w).unflatten(1, rows.shape[1:-1])


BACKWARD = {
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    SequenceNorm: _norm,
    nn.Hardtanh: _clip,
    ToSequence: _to_sequence,
    nn.Conv2d: _conv,
    Bidirectional: _recurrent,
}

# ---------------------------------------------------------------- Expected Gradient Length


def leading_directions(rows: Tensor, count: int) -> Tensor:
    """Uᵀ A for the leading left singular vectors U of A: rows [B, K, T, V] → [B, R, T, V].

    ``count`` directions, or with 0 as many as the rank of A: until what is left of the sum of
    squares is rounding error in every utterance. The K × K matrix A Aᵀ gives U.
    """
    A = rows.flatten(2)
    values, vectors = torch.linalg.eigh(A @ A.mT)  # ascending
    if count == 0:
        beyond = values.clamp_min(0).cumsum(-1)  # sum of squares of the j + 1 smallest directions
        rounding = 10 * torch.finfo(rows.dtype).eps * beyond[:, -1:]
        count = A.shape[1] - int((beyond <= rounding).sum(dim=-1).min())
    count = min(max(count, 1), A.shape[1])
    leading = vectors[:, :, -count:].flip(-1)
    return (leading.mT @ A).unflatten(2, rows.shape[2:])


def expected_gradient_length(tape: Tape, hypotheses: Hypotheses, directions: int = 8) -> Tensor:
    """Σ_k p(y_k | x) ‖∇ℓ(x, y_k)‖² over all parameters, [B] (Huang et al. 2016, Eq. 4).

    ``directions`` = 0 is exact (to rounding). With R > 0 directions, the last layer's EGL, which is
    exact for all K labelings without a backward pass, is scaled by the ratio of full to last-layer
    gradients along the R leading directions.
    """
    log_probs, weights = tape.logits.log_softmax(-1), hypotheses.log_p.exp().sqrt()  # √p_k
    gradients = labelings_gradients(log_probs, hypotheses.labels, hypotheses.lengths)
    rows = gradients * weights[..., None, None]  # the matrix A: [B, K, T, V]
    leading = leading_directions(rows, directions)
    full = tape.squared_norms(leading).sum(dim=1)
    if directions == 0:
        return full
    last = tape.last_layer_squared_norms(leading).sum(dim=1)
    last_of_all = tape.last_layer_squared_norms(rows).sum(dim=1)
    # no gradient along the leading directions: none along any other
    return torch.where(last > 0, last_of_all * full / last, full)
