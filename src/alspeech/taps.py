"""Backward passes through any torch module, for squared gradient norms (gradients.py).

Legend: B batch, T frames, F bins, D features, I/O a layer's inputs and outputs, R directions.

backward.py walks our own layers back by hand. Of a recogniser from elsewhere (recognisers.py) only
the last layer is known; the rest is one :class:`Body`, which stands in ``backward.RULES`` like any
other layer, and through which autograd walks. It is exact for any module, and this is why:

- One utterance at a time. So autograd's gradient by a parameter is that utterance's, wherever a
  module keeps its batch, and no number depends on batch-mates, even where utterances do meet
  (torchaudio's wav2vec 2.0 pipelines normalise a batch as a whole). Recordings hardly ever have as
  many samples as others anyway.
- Layers that are a matrix (``nn.Linear``, convolutions of kernel 1), which hold nearly all
  parameters of a transformer, have a rule: autograd is asked for the gradient Δ by their *output*
  only, and ‖XᵀΔ‖² = ⟨X Xᵀ, Δ Δᵀ⟩ comes from that and the input X that they were seen to get. Their
  weight gradients, most of what a backward pass multiplies and writes, are never formed.
- The gradients by all other parameters are autograd's. For layer, group and batch norm, embeddings
  and convolutions (weight-normed and positional ones, too) no rule was written; GELU, softmax
  and what else has no parameters needs none. Other matrices, those of ``nn.MultiheadAttention``
  and of recurrent layers, say, come out right, too, but slower: a line says which.
- The rule is used only where it is sure to hold. The layer's ``forward`` is torch's own, it is
  called once in a pass, shares no parameter with another, and the first time that a module is
  walked back it is held against autograd's gradient. A layer whose weight is used behind its back
  is found out by that, and goes to autograd.

Parameters that need no gradient count nothing: what is frozen will not be moved by training.

The R directions go one after the other over one graph. As vmapped ones (``is_grads_batched``) they
came to the same norms in about the same time (more on one model, less on another), hold R gradients
of every weight at once, and have no rule for recurrent layers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils import parametrize

from .backward import RULES

AGREE = 1e-3  # a rule and autograd, relative, in single precision
# layers whose gradients by autograd are as cheap as by any rule
CHEAP = (
    nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.Embedding,
)  # fmt: skip


def is_matrix(layer: nn.Module) -> bool:
    """Is a layer nothing but y = W x + b for every position, and its own?"""
    if parametrize.is_parametrized(layer):
        return False
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    plain = type(layer) is nn.Conv1d and layer.groups == 1
    return plain and (layer.kernel_size, layer.stride, layer.padding) == ((1,), (1,), (0,))


def positions(layer: nn.Module, x: Tensor) -> Tensor:
    """What a matrix reads or says in an utterance, as [T, D]; of more dimensions all are positions
    but that of the features."""
    x = x if isinstance(layer, nn.Linear) else x.mT
    return x.reshape(-1, x.shape[-1])


def outer_norm(layer: nn.Module, x: Tensor, passes: int) -> Callable[[Tensor], Tensor]:
    """Δ [T, O] ↦ ‖∂/∂(W, b)‖² for X [T, I], by T × T matrices or by the product itself, whichever
    is less work in so many ``passes``."""
    (T, inputs), outputs, bias = x.shape, len(layer.weight), int(layer.bias is not None)
    if T * (outputs * passes + inputs) < inputs * outputs * passes:
        gram = x @ x.mT + bias  # a bias is an input that is always 1
        return lambda delta: ((delta @ delta.mT) * gram).sum()
    return lambda delta: (x.mT @ delta).square().sum() + bias * delta.sum(dim=0).square().sum()


class Body(nn.Module):
    """All of a ``module`` but its last layer, ``head`` (an ``nn.Linear`` or ``nn.Conv1d`` in it),
    as a layer: features [B, 1, T, F] → what the head reads, [B, T', D].

    ``call(features [1, T, F])`` runs the module on one utterance.
    """

    def __init__(self, module: nn.Module, head: nn.Module, call: Callable, name: str):
        super().__init__()
        self.module, self.name, self._call = module, name, call
        self._head = (head,)  # in a tuple: it is registered as a part of the module
        self._matrices: list[nn.Module] | None = None  # those by the rule, once they are checked

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.hidden(one) for one in x])

    def hidden(self, x: Tensor) -> Tensor:
        """One utterance's features [1, T, F] → [T', D]."""
        seen, (head,) = [], self._head
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._call(x)
        finally:
            handle.remove()
        return positions(head, seen[-1])

    def squared_norms(self, x: Tensor, directions: Tensor) -> Tensor:
        """‖Jᵀ d‖² of one utterance over all parameters but the head's: features [1, T, F] and
        directions [R, T', D] → [R]."""
        if self._matrices is None:
            self._matrices = self._checked(x, directions[0])
        while True:
            norms, odd = self._walked(self._matrices, x, directions)
            if not odd:
                return torch.stack([sum(row.values(), directions.new_zeros(())) for row in norms])
            # called once so far, and now more often, or not at all
            self._matrices = [layer for layer in self._matrices if layer not in odd]

    def _walked(self, matrices, x: Tensor, directions: Tensor) -> tuple[list[dict], set]:
        """Of each direction the squared norm by layer (or parameter); and those of the matrices
        that were not called just once: with any, the norms are none."""
        others = self._others(matrices)
        with torch.enable_grad(), _tapped(matrices) as seen:
            hidden = self.hidden(x)
        odd = {layer for layer, calls in seen.items() if len(calls) != 1}
        if odd or not hidden.requires_grad:
            return [{} for _ in directions], odd
        seen = {layer: calls[0] for layer, calls in seen.items()}
        rules = [outer_norm(layer, positions(layer, read), len(directions))
                 for layer, (read, _) in seen.items()]  # fmt: skip
        wanted, norms = [*(edge for _, edge in seen.values()), *others], []
        for direction in directions:
            found = torch.autograd.grad(
                hidden, wanted, direction, retain_graph=True, allow_unused=True
            )
            row = {
                layer: rule(positions(layer, delta))
                for layer, rule, delta in zip(seen, rules, found, strict=False)
                if delta is not None
            }
            row |= {parameter: gradient.square().sum()
                    for parameter, gradient in zip(others, found[len(seen) :], strict=True)
                    if gradient is not None}  # fmt: skip
            norms.append(row)
        return norms, odd

    def _others(self, matrices) -> list[nn.Parameter]:
        """The parameters that training moves and that are neither the head's nor the matrices'."""
        known = {id(p) for layer in (*self._head, *matrices) for p in layer.parameters()}
        return [p for p in self.module.parameters() if p.requires_grad and id(p) not in known]

    def _checked(self, x: Tensor, direction: Tensor) -> list[nn.Module]:
        """The matrices for which the rule holds, and a line if others must do without one."""
        uses = Counter(id(p) for layer in self.module.modules() for p in _own(layer))
        able = [
            layer for layer in self.module.modules()
            if is_matrix(layer) and layer not in self._head
            and all(p.requires_grad and uses[id(p)] == 1 for p in layer.parameters())
        ]  # fmt: skip
        odd = True
        while odd:
            (by_rule,), odd = self._walked(able, x, direction[None])
            able = [layer for layer in able if layer not in odd]
        (by_autograd,), _ = self._walked([], x, direction[None])
        small, right = 1e-6 * float(sum(by_autograd.values(), direction.new_zeros(()))), []
        for layer in able:
            truth = float(sum(by_autograd.get(p, 0.0) for p in layer.parameters()))
            if abs(float(by_rule.get(layer, 0.0)) - truth) <= AGREE * truth + small:
                right.append(layer)
        known = {p for layer in right for p in layer.parameters()}
        self._tell({id(p) for p in by_autograd if p not in known})
        return right

    def _tell(self, others: set[int]) -> None:
        """One line on standard error of matrices among the parameters that have no rule."""
        slow = {}
        for name, layer in self.module.named_modules():
            # parameters of a weight norm and the like count as those of the layer around it
            name = name.partition(".parametrizations.")[0]
            large = any(id(p) in others and p.squeeze().dim() > 1 for p in _own(layer))
            if large and not isinstance(self.module.get_submodule(name), CHEAP):
                slow[name] = type(self.module.get_submodule(name)).__name__
        if slow:
            kinds = ", ".join(sorted(set(slow.values())))
            print(f"{self.name}: no rule for {len(slow)} of its layers ({kinds}; the first is "
                  f"{next(iter(slow))}): their gradients are autograd's, exact and slower",
                  file=sys.stderr)  # fmt: skip


def _own(layer: nn.Module) -> list[nn.Parameter]:
    """Parameters that stand in this layer, and not in one of its parts."""
    return list(layer.parameters(recurse=False))


@contextmanager
def _tapped(layers) -> Iterator[dict]:
    """While a module runs: of each of some layers the inputs that it gets, and where in autograd's
    graph its outputs stand; their parameters are constants meanwhile."""
    seen = {layer: [] for layer in layers}

    def look(layer, inputs, named, output):
        result = output
        if not output.requires_grad:  # nothing before it is to be moved
            output = output.detach().requires_grad_()
            result = output.clone()
        read = inputs[0] if inputs else named["input"]
        # the edge, since what comes next may write into the output itself
        seen[layer].append((read.detach(), get_gradient_edge(output)))
        return result

    handles = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
    own = [parameter for layer in layers for parameter in layer.parameters()]
    try:
        for parameter in own:
            parameter.requires_grad_(False)
        yield seen
    finally:
        for parameter in own:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _body(layer: Body, x: Tensor, _need_input) -> tuple[Tensor, Callable]:
    """The rule of a body, as those of backward.py are. It keeps no graph: an utterance's is made
    when a backward pass comes, and is gone before the next one's."""

    def backward(delta, who, _dtype):
        rows = zip(x[who], delta, strict=True)
        return torch.stack([layer.squared_norms(one, directions) for one, directions in rows]), None

    return layer(x), backward


RULES[Body] = _body
