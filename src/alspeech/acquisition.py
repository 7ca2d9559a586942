"""Acquisition functions: how much an utterance is worth labelling.

    score(model, batch, **options) -> Tensor [B], higher = query first

for every function, gradient-based ones too. (What sees more than one utterance at a time, and the
target, is a selection: selection.py.) Where a score has mathematics of its own, they stand
above it as a function of tensors, which a test can call with numbers worked by hand; the score only
fetches what they need from the model.

Legend: B batch, T frames, V symbols (0 = blank), K labelings.

To add a function: write it here, enter it in ``ACQUISITIONS``, and give it a line in
``METHOD_STYLE`` (workshop/styles.py), if it is to have its own.
"""

from __future__ import annotations

import hashlib
import inspect
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .ctc import ctc_losses, labelings_gradients, pad
from .decoding import n_best
from .gradients import Tape, expected_gradient_length, weighted_gradients
from .metrics import TARGETS, log_losses
from .speech.features import Batch
from .workshop.errors import UserError, cut, one_of


def random(model, batch: Batch, seed: int = 0) -> Tensor:
    """Uniform in [0, 1), from the seed and the utterance's id alone."""
    return uniform(batch.utt_ids, seed)


def uniform(utt_ids, seed: int) -> Tensor:
    """A number in [0, 1) for each id, the same in whatever company."""
    digests = (hashlib.sha256(f"{seed} {utt_id}".encode()).digest() for utt_id in utt_ids)
    return torch.tensor([int.from_bytes(d[:6], "big") / 2**48 for d in digests], dtype=torch.double)


def random_seconds(model, batch: Batch, seed: int = 0) -> Tensor:
    """As random as :func:`random`, but every *second* of the pool is as likely to be drawn as any
    other: longer utterances come first more often (weighted sampling without replacement: log u / T
    for u uniform, Efraimidis and Spirakis 2006)."""
    return random(model, batch, seed).clamp_min(1e-12).log() / batch.features.shape[1]


def longest(model, batch: Batch) -> Tensor:
    """Frames: what takes longest goes first."""
    return torch.full((len(batch),), float(batch.features.shape[1]), dtype=torch.double)


def shortest(model, batch: Batch) -> Tensor:
    """− frames: more utterances for the same money."""
    return -longest(model, batch)


def mean_entropy(log_probs: Tensor) -> Tensor:
    """Mean over frames of the symbol entropy, in nats: [B, T, V] → [B]. Between 0 and log V.

    −1/T Σ_t Σ_v p(v | x, t) log p(v | x, t)   (Huang et al. 2016, § 2.2).
    """
    return -(log_probs.exp() * log_probs).sum(dim=-1).mean(dim=-1)


def entropy(model, batch: Batch) -> Tensor:
    """Mean entropy of the frame posteriors."""
    return mean_entropy(posteriors(model(batch.features), batch))


def path_ctc(log_p_best: Tensor, frames: int) -> Tensor:
    """pCTC: the CTC loss of the most likely labeling, per frame: [B] → [B], ≥ 0.

    −log p(y* | x) / T   (Huang et al. 2016, § 2.2).
    """
    return -log_p_best / frames


def pctc(model, batch: Batch, beam: int = 100) -> Tensor:
    """CTC loss of the most likely labeling (the beam search's first), per frame."""
    log_probs = posteriors(model(batch.features), batch)
    best = n_best(log_probs, k=1, beam=beam)
    return path_ctc(best.log_p[:, 0], log_probs.shape[1])


def least_confidence(model, batch: Batch, beam: int = 100) -> Tensor:
    """1 − p(ŷ | x)^(1/|ŷ|): one minus the most likely labeling's probability a label, in [0, 1]."""
    best = n_best(posteriors(model(batch.features), batch), k=1, beam=beam)
    return -torch.expm1(best.log_p[:, 0] / best.lengths[:, 0].clamp_min(1))


def estimated_loss(model, batch: Batch, beam: int = 100, target: str = "token") -> Tensor:
    """The loss against the recogniser's own hypothesis (the most likely labeling) instead of the
    transcript that nobody has written yet, in nats ``target`` "token" or "utterance"."""
    # the loss of a joint recogniser (sisters/joint.py) is CTC's and attention's, as it was trained
    joint = hasattr(model, "predictor")
    encoded, logits = model.encode(batch.features)[1:] if joint else (None, model(batch.features))
    best = n_best(posteriors(logits, batch), k=1, beam=beam)
    labels = [best.labeling(b, 0) for b in range(len(batch))]
    losses = model.losses(encoded, logits, labels) if joint else -best.log_p[:, 0]
    return log_losses(losses, labels).exp()[:, TARGETS.index(target)]


def loss_prediction(model, batch: Batch, target: str = "token") -> Tensor:
    """The loss a ``target`` that a jointly trained head predicts: no transcript, no decoding
    (Luo et al. 2021). Raises ``UserError`` for a recogniser that has no such head."""
    if not hasattr(model, "predicted_losses"):
        raise UserError(
            "strategy 'loss_prediction' needs a recogniser that predicts its loss: list it under "
            "loss_prediction: strategies in the preset and run make loss-prediction"
        )
    return _numbers(model.predicted_losses(batch.features), batch)[:, TARGETS.index(target)]


def expected_squared_norm(log_p: Tensor, squared_norms: Tensor, renormalise=False) -> Tensor:
    """Σ_k p_k ‖∇ℓ(x, y_k)‖²: [B, K] and [B, K] → [B]   (Huang et al. 2016, Eq. 4).

    With ``renormalise`` the p_k are made to sum to 1 over the beam. This is EGL written out;
    :func:`egl` gets the same number from fewer backward passes (gradients.py).
    """
    total = (log_p.exp() * squared_norms).sum(dim=1)
    return total / log_p.exp().sum(dim=1) if renormalise else total


def egl(
    model, batch: Batch, labelings=100, method="rank", directions=5, seed=0, renormalise=False
) -> Tensor:
    """Expected Gradient Length over the ``labelings`` most probable transcripts.

    Squared norms over *all* parameters; ``method`` and ``directions`` say how the sum is computed
    (:func:`alspeech.gradients.expected_gradient_length`). As printed in the paper the p_k are the
    model's own, so that what the beam misses counts as zero; ``renormalise`` makes them sum to 1.
    """
    tape = Tape(model, batch.features)
    hypotheses = n_best(posteriors(tape.logits, batch), labelings)
    return expected_gradient_length(
        tape, hypotheses, method, directions, seed=seed, renormalise=renormalise
    )


def shares(log_p: Tensor) -> Tensor:
    """q_k: the p_k made to sum to 1 over the beam, [B, K] → [B, K]; 0 where none is possible."""
    return log_p.double().softmax(dim=1).nan_to_num(0.0)


def labeling_entropy(log_p: Tensor) -> Tensor:
    """−Σ_k q_k log q_k in nats, [B, K] → [B]: between 0 and log K."""
    return torch.special.entr(shares(log_p)).sum(dim=1)


def labeling_margin(log_p: Tensor) -> Tensor:
    """1 − (q_1 − q_2) of the two most probable labelings, [B, K] → [B], in [0, 1]."""
    q = shares(log_p)
    return 1 - q[:, 0] + q[:, 1:2].sum(dim=1)


def nbest_entropy(model, batch: Batch, labelings: int = 100) -> Tensor:
    """Entropy of the ``labelings`` most probable transcripts (N-best entropy, Varadarajan et al.
    2009), where :func:`entropy` is that of frames."""
    return labeling_entropy(n_best(posteriors(model(batch.features), batch), labelings).log_p)


def nbest_margin(model, batch: Batch, labelings: int = 100) -> Tensor:
    """How near the second most probable transcript comes to the first (Scheffer et al. 2001)."""
    return labeling_margin(n_best(posteriors(model(batch.features), batch), labelings).log_p)


def egl_last_layer(
    model, batch: Batch, labelings: int = 100, squared: bool = True, per: str = ""
) -> Tensor:
    """EGL of the last layer's parameters, renormalised, Σ_k q_k ‖G_k‖²: exact, and without a
    backward pass through the network.

    Not ``squared``: Σ_k q_k ‖G_k‖ (Settles et al. 2008 leave the square out). ``per`` "frame" or
    "label" (expected, at least one): divided by so many, since long utterances have long gradients.
    """
    tape = Tape(model, batch.features)
    hypotheses = n_best(posteriors(tape.logits, batch), labelings)
    q, rows = shares(hypotheses.log_p), weighted_gradients(tape.logits, hypotheses)
    norms = tape.last_layer_squared_norms(rows).double()  # q_k ‖G_k‖²
    total = norms.sum(dim=1) if squared else (q * norms).sqrt().sum(dim=1)
    if per == "label":
        return total / (q * hypotheses.lengths).sum(dim=1).clamp_min(1)
    return total / (tape.logits.shape[1] if per == "frame" else 1)


def gradient_length(model, batch: Batch) -> Tensor:
    """‖∇ℓ(x, y)‖² of the true transcripts, over all parameters: what EGL is the expectation of.

    It needs ``batch.labels``: an oracle, by which EGL is judged. Raises ``UserError`` naming an
    utterance whose transcript does not fit its frames.
    """
    tape = Tape(model, batch.features)
    log_probs = posteriors(tape.logits, batch)
    for b in ctc_losses(log_probs, batch.labels).isinf().nonzero()[:, 0]:
        raise UserError(
            f"utterance {cut(batch.utt_ids[b])}: its {len(batch.labels[b])} labels do not fit "
            f"{log_probs.shape[1]} frames: check its transcript and duration"
        )
    labels, lengths = (x[:, None] for x in pad(batch.labels))  # K = 1
    return tape.squared_norms(labelings_gradients(log_probs, labels, lengths))[:, 0]


def true_loss(model, batch: Batch) -> Tensor:
    """−log p(y | x) / T of the true transcripts: what pCTC guesses. An oracle, as it needs
    ``batch.labels``; a transcript that does not fit its frames comes last."""
    log_probs = posteriors(model(batch.features), batch)
    losses = ctc_losses(log_probs, batch.labels) / log_probs.shape[1]
    return losses.masked_fill(losses.isinf(), -torch.inf)


def embedding(model, batch: Batch) -> Tensor:
    """Mean over frames of what the last layer reads, for clusters of the pool: [B, D]."""
    return _numbers(model.layers[:-1](batch.features[:, None]), batch).mean(dim=1)


def in_turn(groups, keys) -> Tensor:
    """Scores that take one utterance of each group in turn, in a group the largest key first:
    group names and keys in [0, 1) of N utterances → [N]."""
    table = pd.DataFrame({"group": list(groups), "key": list(keys)})
    place = table.groupby("group")["key"].rank(method="first", ascending=False)
    return torch.tensor((table["key"] - place).to_numpy())


def cluster(embeddings: Tensor, count: int = 50, seed: int = 0) -> np.ndarray:
    """The cluster of each row of [N, D], by k-means with k-means++ starts."""
    from scipy.cluster.vq import kmeans2  # here: takes a second to import, and few need it

    points = embeddings.double().numpy()
    points = (points - points.mean(axis=0)) / (points.std(axis=0) + 1e-9)
    count = min(count, len(points))
    return kmeans2(points, count, minit="++", seed=np.random.default_rng(seed))[1]


def posteriors(logits: Tensor, batch: Batch) -> Tensor:
    """Frame log posteriors [B, T, V]; ``UserError`` where the batch is empty or they are NaN."""
    return _numbers(logits.log_softmax(-1), batch)


def _numbers(outputs: Tensor, batch: Batch) -> Tensor:
    if len(batch) == 0:
        raise UserError("the batch is empty: there is nothing to score")
    for b in outputs.isnan().flatten(1).any(dim=1).nonzero()[:, 0]:
        raise UserError(
            f"utterance {cut(batch.utt_ids[b])}: the model's outputs are NaN: check the recording "
            "and that the training converged"
        )
    return outputs


ACQUISITIONS = {
    "random": random,
    "entropy": entropy,
    "pctc": pctc,
    "egl": egl,
    "egl_renormalised": partial(egl, renormalise=True),
    "least_confidence": least_confidence,
    "estimated_loss": estimated_loss,
    "loss_prediction": loss_prediction,
    # of the last layer's gradients and of the beam, renormalised
    "egl_last_layer": egl_last_layer,
    "egl_unsquared": partial(egl_last_layer, squared=False),
    "egl_per_frame": partial(egl_last_layer, per="frame"),
    "egl_per_label": partial(egl_last_layer, per="label"),
    "nbest_entropy": nbest_entropy,
    "nbest_margin": nbest_margin,
    # what an honest comparison is held against, too
    "random_seconds": random_seconds,
    "longest": longest,
    "shortest": shortest,
    "random_clusters": random,
    # oracles: they read what nobody has written yet, and say what there would be to gain
    "oracle_gradient": gradient_length,
    "oracle_loss": true_loss,
    "oracle_groups": random,
}
ORACLES = tuple(name for name in ACQUISITIONS if name.startswith("oracle_"))
# the scores are keys, by which utterances are taken in turn from each cluster of the recogniser's
# embeddings, or from each group of the scenario, the rare ones, too
IN_TURN = ("random_clusters", "oracle_groups")


def needed(function) -> list[str]:
    """What a score or a selection asks for beside its first two arguments, and has no default."""
    named = list(inspect.signature(function).parameters.values())[2:]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [x.name for x in named if x.kind not in several and x.default is x.empty]


def check_strategies(names, others=()) -> None:
    """Raise ``UserError`` for a name that is not in ``ACQUISITIONS``, nor among some ``others``
    (selections), and where one of these has a score's name."""
    for name in set(others) & set(ACQUISITIONS):
        raise UserError(f"{name} is a score and a selection: give one of them another name")
    for name in names:
        one_of("strategy", name, (*ACQUISITIONS, *others))
