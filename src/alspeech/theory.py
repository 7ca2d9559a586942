"""The paper's argument (Huang et al. 2016, § 2.3) where every term of it can be computed.

Trained on a query of n utterances, parameters θ vary with what was labelled; the paper takes their
covariance from the query's Fisher information I_q, and the variance of a test loss from its
gradient, Var ℓ(x, y; θ̂) ≈ ∇ℓᵀ I_q⁻¹ ∇ℓ / n. Its mean over the test distribution is

    tr(I_q⁻¹ I_p) / n                     (Eq. 3)   what a query should make small,
    tr(I_q)                               (§ 2.3)   what EGL makes large in place of that.

Of a recogniser that learns some hundred parameters only, the last layer over a few principal
components of what a trained one computes, I_q is a matrix that can be written down, and training is
a matter of milliseconds. So the variance can be *measured*: labels are drawn from the recogniser
itself, again and again, each time it is trained anew, and how the test losses vary is seen.

Legend: N utterances, B of one length, T frames, D features, m components, V symbols, K labelings,
P = (m + 1)·V parameters, θ [m + 1, V].
"""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .acquisition import uniform
from .ctc import labelings_gradients, pad, training_losses
from .embeddings import Candidates
from .speech.features import FeatureStore
from .speech.text import BLANK


class Small(nn.Module):
    """A trained recogniser of which only the last layer is left to learn, over the first principal
    components of what that layer reads: features [B, T, F] → logits [B, T', V].

    ``mean`` [D] and ``basis`` [D, m] give the components, (h − mean) @ basis.
    """

    def __init__(self, model: nn.Module, mean: Tensor, basis: Tensor):
        super().__init__()
        project = nn.Linear(*basis.shape)
        project.weight.data, project.bias.data = basis.T.clone(), -mean @ basis
        last = nn.Linear(basis.shape[1], model.layers[-1].out_features)
        self.layers = nn.Sequential(*model.layers[:-1], project, last)
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features[:, None])

    @property
    def theta(self) -> Tensor:
        """The last layer's weights, and its bias below them, [m + 1, V] in double precision."""
        last = self.layers[-1]
        return torch.cat([last.weight.T, last.bias[None]]).detach().double()

    @theta.setter
    def theta(self, value: Tensor) -> None:
        last = self.layers[-1]
        last.weight.data, last.bias.data = value[:-1].T.float().clone(), value[-1].float().clone()


@torch.no_grad()
def shrink(model, store: FeatureStore, utterances: pd.DataFrame, components: int) -> Small:
    """A :class:`Small` of a model, by the principal components of some utterances' frames, each
    scaled to a variance of one; its last layer is what is left of the model's."""
    model.eval()
    frames = torch.cat([
        model.layers[:-1](batch.features[:, None]).flatten(0, 1).double()
        for batch in store.batches(utterances, 32)
    ])  # fmt: skip
    mean = frames.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(frames.T))
    scale, vectors = values[-components:].clamp_min(1e-12).sqrt(), vectors[:, -components:]
    small = Small(model, mean.float(), (vectors / scale).float())
    weight, bias = (x.double() for x in (model.layers[-1].weight, model.layers[-1].bias))
    small.theta = torch.cat([(scale * vectors).T @ weight.T, (weight @ mean + bias)[None]])
    return small


class Inputs:
    """What a small recogniser's last layer reads of N utterances, in groups of one length: [B, T,
    m + 1], ones at the end."""

    @torch.no_grad()
    def __init__(self, small: Small, store: FeatureStore, utterances: pd.DataFrame):
        self.groups = []
        for batch in store.batches(utterances, 64):
            read = small.layers[:-1](batch.features[:, None]).double()
            ones = torch.ones_like(read[..., :1])
            self.groups.append((list(batch.utt_ids), torch.cat([read, ones], dim=2)))

    def losses(self, theta: Tensor, labels: dict) -> Tensor:
        """−log p(y | x; θ) [N], in the groups' order, of symbol numbers by id."""
        return torch.cat([
            training_losses(inputs @ theta, [labels[utt_id] for utt_id in ids])
            for ids, inputs in self.groups
        ])  # fmt: skip

    @torch.no_grad()
    def drawn(self, theta: Tensor, seed: int, number: int = 1) -> dict:
        """So many labelings of each utterance by id, from p(y | x; θ): paths, collapsed. They
        depend on ``seed`` and id, not on the company that an utterance is in."""
        found = {}
        for ids, inputs in self.groups:
            places = (inputs @ theta).softmax(dim=2).cumsum(dim=2)
            for utt_id, cumulated in zip(ids, places, strict=True):
                rng = np.random.default_rng([seed, zlib.crc32(utt_id.encode())])
                chance = torch.from_numpy(rng.random((len(cumulated), number)))
                paths = torch.searchsorted(cumulated, chance * cumulated[:, -1:]).T
                merged = (path.unique_consecutive() for path in paths)
                found[utt_id] = [path[path != BLANK].tolist() for path in merged]
        return found

    @torch.no_grad()
    def information(self, theta: Tensor, seed: int = 0, labelings: int = 50) -> np.ndarray:
        """The Fisher information Σ_x E_{y∼p} vec(G) vec(G)ᵀ, G = ∂(−log p(y | x))/∂θ, [P, P]; the
        mean over drawn labelings, which no beam has cut off."""
        labels, total = self.drawn(theta, seed, labelings), 0.0
        for ids, inputs in self.groups:
            log_probs = (inputs @ theta).log_softmax(-1)
            for utt_id, read, own in zip(ids, inputs, log_probs, strict=True):
                padded, lengths = (x[None] for x in pad(labels[utt_id]))
                by_logits = labelings_gradients(own[None], padded, lengths)[0]  # [K, T, V]
                rows = (read.T @ by_logits).flatten(1)  # [K, P]
                total = total + rows.T @ rows / labelings
        return total.numpy()


def trained(
    inputs: Inputs, labels: dict, start: Tensor, information: np.ndarray, ridge: float,
    steps: int = 30,
) -> Tensor:  # fmt: skip
    """θ that minimises Σ −log p(y | x; θ) + ridge/2 ‖θ − start‖²: L-BFGS from ``start``, in
    coordinates in which λI + ``information``, about the Hessian there, is the identity."""
    whole = torch.from_numpy(information) + ridge * torch.eye(len(information))
    values, vectors = torch.linalg.eigh(whole)
    turn = vectors / values.clamp_min(1e-12).sqrt()
    at = torch.zeros(len(information), dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS([at], max_iter=steps, line_search_fn="strong_wolfe",
                               tolerance_grad=1e-3, tolerance_change=1e-9)  # fmt: skip

    def objective():
        search.zero_grad()
        moved = turn @ at
        loss = inputs.losses(start + moved.view_as(start), labels).sum()
        loss = loss + ridge / 2 * moved.square().sum()
        loss.backward()
        return loss

    search.step(objective)
    return start + (turn @ at.detach()).view_as(start)


def predicted(labelled: np.ndarray, query: np.ndarray, target: np.ndarray, ridge: float) -> dict:
    """By the Fisher information, [P, P], of what is ``labelled`` already, of a query and of the
    mean target utterance: the query's ``length`` tr(F_S), which EGL makes large, and the ``ratio``
    tr[(λI + F_L + F_S)⁻¹ F_T], which it stands for."""
    A = labelled + query + ridge * np.eye(len(query))
    return {"length": float(query.trace()), "ratio": float(np.linalg.solve(A, target).trace())}


def measured(
    labelled: Inputs, test: Inputs, theta: Tensor, information: np.ndarray, ridge: float,
    resamples: int, seed: int,
) -> float:  # fmt: skip
    """How much a test utterance's loss varies over ``resamples`` trainings: the variance, mean over
    the test set.

    Each training is on labels that are drawn anew from p(y | x; θ); the test's are drawn once. With
    equal seeds an utterance gets equal labels, whatever else was queried.
    """
    first = {utt_id: some[0] for utt_id, some in test.drawn(theta, seed).items()}
    many, losses = labelled.drawn(theta, seed, resamples), []
    for number in range(resamples):
        labels = {utt_id: some[number] for utt_id, some in many.items()}
        losses.append(test.losses(trained(labelled, labels, theta, information, ridge), first))
    return float(torch.stack(losses).var(dim=0).mean())


def orders(candidates: Candidates, seed: int) -> dict[str, np.ndarray]:
    """Row numbers, best first, by the scores that a first pass leaves: all of a small recogniser's
    EGL is its last layer's."""
    scores = candidates.scores
    by = {
        "random": uniform(candidates.utt_ids, seed).numpy(),
        "entropy": scores["entropy"],
        "pctc": scores["pctc"],
        "egl": scores["egl_last_layer"] * scores["mass"],
        "egl_renormalised": scores["egl_last_layer"],
    }
    return {name: np.argsort(-values, kind="stable") for name, values in by.items()}
