"""Squared gradient norms of single utterances, and Expected Gradient Length from few of them.

Legend: B batch, T frames, V symbols, K labelings, R directions.

With J the Jacobian of an utterance's logits (T·V of them) by all parameters, and g_k the gradient
of ℓ(x, y_k) by the logits, the gradient by the parameters is Jᵀ g_k, and

    EGL(x) = Σ_k p_k ‖Jᵀ g_k‖²            (Huang et al. 2016, Eq. 4)

depends on the K labelings only through the matrix A whose rows are √p_k g_k: for any orthogonal
change of rows, A → Uᵀ A, the sum Σ_r ‖Jᵀ (UᵀA)_r‖² stays the same. The left singular vectors of A
make most rows (almost) zero, so that a few backward passes do what a hundred did.

The backward passes themselves are written out in backward.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .backward import RULES, at_least_single, outer_squared_norms
from .ctc import ctc_losses, labelings_gradients
from .decoding import Hypotheses
from .devices import has_bf16

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
                f"nn.Sequential of types in backward.RULES; {type(model).__name__} {told}"
            )
        self._backward, self._last = [], (None, features)
        x = features[:, None]
        for number, (name, layer) in enumerate(layers.named_children()):
            special = isinstance(layer, nn.Conv2d) and (
                layer.bias is not None or layer.groups != 1 or layer.dilation != (1, 1)
            )
            if special or type(layer) not in RULES:
                kind = type(layer).__name__ + special * " with bias, groups or dilation"
                raise TypeError(f"no gradient rule for layer {name} ({kind})")
            follows = layers[number + 1] if number + 1 < len(layers) else None
            if type(layer) is nn.BatchNorm2d and isinstance(self._last[0], nn.Conv2d):
                continue  # the convolution's rule has both
            more = (
                (follows,) if type(follows) is nn.BatchNorm2d and type(layer) is nn.Conv2d else ()
            )
            self._last = layer, x
            x, backward = RULES[type(layer)](layer, x, number > 0, *more)
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
      Σ_k p_k ‖g_k‖² is below ``TOLERANCE``; relative error about 1e-4 in single, 1e-8 in double.
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
    return gradients.mul_(shares.sqrt()[..., None, None])


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
    if method == "exact":
        return _to_tolerance(tape, rows, *principal_directions(rough), last_of_all, able)
    vectors = leading_directions(rough, directions)
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
    values, vectors = torch.linalg.eigh((A @ A.mT).to(at_least_single(A)))  # ascending
    beyond = values.clamp_min(0).cumsum(-1)
    left = (beyond / beyond[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)).roll(1, dims=1)
    left[:, 0] = 0
    return left.flip(-1), vectors.flip(-1)


def leading_directions(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` of :func:`principal_directions`, [B, K, R]: by powers of A Aᵀ on twice as
    many vectors, in less time than all eigenvectors take."""
    A = rows.flatten(2)
    gram = (A @ A.mT).to(at_least_single(A))
    gram = gram / gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp_min(1e-30)
    power = torch.linalg.matrix_power(gram, 4)  # a higher one loses the minor directions
    K, generator = gram.shape[1], torch.Generator().manual_seed(0)
    vectors = torch.randn(K, min(2 * count, K), generator=generator).to(gram)
    for _ in range(3):
        vectors = torch.linalg.qr(power @ vectors).Q
    within = torch.linalg.eigh(vectors.mT @ gram @ vectors)[1].flip(-1)
    return vectors @ within[:, :, :count]


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


if __name__ == "__main__":  # compiles and keeps what is compiled here and in what this stands on
    from .decoding import n_best
    from .model import DeepSpeech2
    from .workshop.config import ModelConfig

    small = Tape(DeepSpeech2(ModelConfig(hidden=8), symbols=5).eval(), torch.randn(1, 40, 40))
    found = n_best(small.logits.log_softmax(-1), k=2)
    for way in METHODS:
        expected_gradient_length(small, found, way)
