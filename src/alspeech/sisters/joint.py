"""A recogniser that predicts its own loss: CTC, attention and loss prediction on one encoder.

Legend: B batch, T frames, D features, V symbols (0 = blank, start and end), U labels, S numbers of
a summary, M remembered utterances.

After Luo, Wang, Cheng, Xiao: Loss Prediction, End-to-End Active Learning Approach For Speech
Recognition (IJCNN 2021). From the paper: a hybrid recogniser whose CTC head and attention decoder
share an encoder, and a third branch that predicts the loss. Its layers and weights could not be
had, so these are reconstructed: the branch and its ranking loss from Yoo and Kweon (Learning Loss
for Active Learning, CVPR 2019), the decoder as a plain one of its kind. Ours are the logarithms,
the length, and the pairs of utterances of different batches.

    L = α CTC + (1 − α) attention + λ prediction
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ctc import ctc_losses, pad, training_losses
from ..devices import autocast
from ..metrics import TARGETS, log_losses
from ..model import Bidirectional, DeepSpeech2, ToSequence
from ..speech.text import BLANK
from ..workshop.config import LossPredictionConfig, ModelConfig

MEMORY = 64  # training utterances that the next batches are ranked against


def _wide(x: Tensor) -> Tensor:
    """In single precision at least: what autocast left in half is not summed so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class AttentionDecoder(nn.Module):
    """p(y | x) = Π_u p(y_u | y_<u, x), symbol by symbol, each with a look at all frames. The blank,
    which no transcript contains, starts a transcript and ends it."""

    def __init__(self, inputs: int, hidden: int, symbols: int):
        super().__init__()
        self.embedding = nn.Embedding(symbols, hidden)
        self.rnn = nn.LSTM(hidden, hidden, batch_first=True)
        self.query = nn.Linear(hidden, inputs)
        self.combine = nn.Linear(hidden + inputs, hidden)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, encoded: Tensor, before: Tensor) -> Tensor:
        """Encoded frames [B, T, D] and the symbols so far [B, U] → logits of the next [B, U, V]."""
        states = self.rnn(self.embedding(before))[0]
        context = functional.scaled_dot_product_attention(self.query(states), encoded, encoded)
        return self.output(torch.tanh(self.combine(torch.cat([states, context], dim=-1))))

    def losses(self, encoded: Tensor, labels) -> Tensor:
        """−log p(y | x) in nats, [B], of one transcript each (B lists of symbol numbers)."""
        padded, lengths = (x.to(encoded.device) for x in pad(labels))
        before = functional.pad(padded, (1, 0), value=BLANK)  # [B, U + 1]
        after = functional.pad(padded, (0, 1), value=BLANK)
        with autocast(encoded.device) if self.training else nullcontext():
            logits = self(encoded, before)
        each = functional.cross_entropy(_wide(logits).mT, after, reduction="none")
        position = torch.arange(after.shape[1], device=after.device)
        return (each * (position <= lengths[:, None])).sum(dim=1)  # the end counts, too


class LossPredictor(nn.Module):
    """From tapped layers of the encoder to the logarithm of the loss, standardised.

    Each tap: Linear and ReLU a frame, then the mean over frames (all of them are the utterance's
    own: a batch has one length). The taps together, and the logarithm of their length: Linear, for
    the loss a token and the loss of the whole utterance.

    A batch has one length, so no pair within it says what a length is worth. The last ``MEMORY``
    utterances are kept for pairs across batches, as what the last layer reads of them and their
    losses: that layer's weights are today's for both of a pair, what it reads of a remembered one
    is as the encoder and the taps had it a few batches ago.
    """

    def __init__(self, widths: list[int], hidden: int):
        super().__init__()
        self.taps = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        summary = hidden * len(widths) + 1
        self.output = nn.Linear(summary, len(TARGETS))
        # of the logarithms of the training losses, a running mean and standard deviation
        self.register_buffer("location", torch.zeros(len(TARGETS)))
        self.register_buffer("scale", torch.ones(len(TARGETS)))
        self.register_buffer("batches", torch.zeros(()))
        # the memory, the last entry the latest, and how many of its entries are utterances
        self.register_buffer("memory", torch.zeros(MEMORY, summary))
        self.register_buffer("memory_losses", torch.zeros(MEMORY, len(TARGETS)))
        self.register_buffer("memory_size", torch.zeros((), dtype=torch.long))

    def forward(self, taps: list[Tensor]) -> Tensor:
        """Tapped layers [B, T, D] → standardised logarithms of the losses, [B, 2] (``TARGETS``)."""
        return self.predict(self.summarise(taps))

    def summarise(self, taps: list[Tensor]) -> Tensor:
        """Tapped layers [B, T, D] → what the last layer reads of them, [B, S]: the taps' means, and
        in the last column the length."""
        pooled = [
            _wide(layer(tap).relu().mean(dim=1)) for layer, tap in zip(self.taps, taps, strict=True)
        ]
        frames = taps[0].shape[1]
        length = pooled[0].new_full((len(pooled[0]), 1), math.log(frames) - 4)  # e⁴ = 55 frames
        return torch.cat([*pooled, length], dim=1)

    def predict(self, summaries: Tensor) -> Tensor:
        """The last layer: [N, S] → [N, 2]."""
        with torch.autocast(summaries.device.type, enabled=False):  # a bf16 of 2 has two decimals
            return self.output(summaries)

    def remembered(self) -> tuple[Tensor, Tensor]:
        """The memory's [M, 2] predictions, by today's last layer, and standardised losses."""
        kept = slice(MEMORY - int(self.memory_size), None)
        true = self.standardise(self.memory_losses[kept], learn=False)
        return self.predict(self.memory[kept]), true

    @torch.no_grad()
    def remember(self, summaries: Tensor, log_losses: Tensor) -> None:
        """Put N utterances into the memory, [N, S] and [N, 2], in place of the oldest."""
        count = len(summaries)
        self.memory = torch.cat([self.memory[count:], summaries[-MEMORY:]])
        self.memory_losses = torch.cat([self.memory_losses[count:], log_losses[-MEMORY:]])
        self.memory_size = (self.memory_size + count).clamp_max(MEMORY)

    @torch.no_grad()
    def standardise(self, log_losses: Tensor, learn: bool) -> Tensor:
        """[N, 2] by the running mean and deviation, to which these are added with ``learn``."""
        if learn and len(log_losses) > 1:
            # the mean of all batches at first, of the last hundred later
            self.batches += 1
            share = max(1 / self.batches.item(), 0.01)
            self.location.lerp_(log_losses.mean(dim=0), share)
            spread = (log_losses - self.location).square().mean(dim=0)
            self.scale.copy_(self.scale.square().lerp(spread, share).sqrt().clamp_min(0.1))
        return (log_losses - self.location) / self.scale

    def nats(self, predicted: Tensor) -> Tensor:
        """Standardised logarithms as losses in nats."""
        return (predicted * self.scale + self.location).exp()


def ranking_loss(predicted: Tensor, true: Tensor, margin: float = 1.0) -> Tensor:
    """mean over pairs of max(0, ξ − sign(l_i − l_j) (l̂_i − l̂_j)): [N, …] → a number.

    Pairs are the first half's members with the second half's (Yoo and Kweon 2019, Eq. 2); of an
    odd number the last is left out. Raises ``ValueError`` where there is no pair.
    """
    pairs = len(predicted) // 2
    if pairs == 0:
        raise ValueError("a ranking needs at least two utterances")
    first, second = slice(pairs), slice(pairs, 2 * pairs)
    return _hinge(predicted[first] - predicted[second], true[first] - true[second], margin)


def ranking_loss_across(
    predicted: Tensor, true: Tensor, others: Tensor, of_others: Tensor, margin: float = 1.0
) -> Tensor:
    """The same mean, over the pairs of each of N utterances with each of M others: ``predicted``
    and ``true`` [N, …], ``others`` (predicted) and ``of_others`` (true) [M, …] → a number."""
    return _hinge(predicted[:, None] - others, true[:, None] - of_others, margin)


def _hinge(predicted: Tensor, true: Tensor, margin: float) -> Tensor:
    return (margin - true.sign() * predicted).clamp_min(0).mean()


def prediction_loss(
    predicted: Tensor, true: Tensor, criterion: str, others: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The loss of the loss predictor, of standardised logarithms [N, 2] both: ``"smooth_l1"``, or
    ``"ranking"``: the mean over pairs within the batch, and that over its pairs with ``others``
    (predicted and true, [M, 2] both; none where M is 0), half of each where there are both. A
    single utterance that nothing is remembered beside makes no pair and falls back to the first."""
    if criterion == "smooth_l1":
        return functional.smooth_l1_loss(predicted, true)
    means = [ranking_loss(predicted, true)] if len(predicted) > 1 else []
    if others is not None and len(others[0]):
        means.append(ranking_loss_across(predicted, true, *others))
    return torch.stack(means).mean() if means else functional.smooth_l1_loss(predicted, true)


class JointRecogniser(nn.Module):
    """Deep Speech 2 with an attention decoder (where ``config.hybrid``) and a loss predictor. As a
    recogniser it is its CTC branch; ``layers`` are those that backward.py walks."""

    def __init__(self, model: ModelConfig, config: LossPredictionConfig, symbols: int):
        super().__init__()
        # first, so that its weights are those of a recogniser alone
        self.recogniser = DeepSpeech2(model, symbols)
        inputs = self.layers[-1].in_features
        self.decoder = AttentionDecoder(inputs, config.decoder, symbols) if config.hybrid else None
        tapped = [x for x in self.layers if isinstance(x, Bidirectional)]
        widths = [tapped[0].rnn.input_size, *(x.rnn.hidden_size for x in tapped), symbols]
        self.predictor = LossPredictor(widths, config.predictor)
        self.config = config

    @property
    def layers(self) -> nn.Sequential:
        return self.recogniser.layers

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, T, F] → the CTC branch's logits [B, T', V]."""
        return self.recogniser(features)

    def encode(self, features: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Tapped layers (the image's and every recurrent one's output, and the log posteriors), the
        encoded frames [B, T', D] that the decoder attends to, and the logits [B, T', V]."""
        x, taps = features[:, None], []
        for layer in self.layers:
            encoded, x = x, layer(x)
            if isinstance(layer, (ToSequence, Bidirectional)):
                taps.append(x)
        return [*taps, x.log_softmax(-1)], encoded, x

    def losses(self, encoded: Tensor, logits: Tensor, labels, training: bool = False) -> Tensor:
        """α CTC + (1 − α) attention of one transcript each, in nats, [B]; CTC alone where there is
        no decoder. Infinite, or for ``training`` 0, where CTC has no path."""
        if training:
            ctc = training_losses(_wide(logits), labels)
        else:
            ctc = ctc_losses(_wide(logits).log_softmax(-1), labels)
        if self.decoder is None:
            return ctc
        share = self.config.ctc_weight
        return share * ctc + (1 - share) * self.decoder.losses(encoded, labels)

    @torch.no_grad()
    def true_losses(self, features: Tensor, labels) -> Tensor:
        """:meth:`losses` of features [B, T, F] and transcripts, a token and in all: [B, 2] nats."""
        _, encoded, logits = self.encode(features)
        return log_losses(self.losses(encoded, logits, labels), labels).exp()

    @torch.no_grad()
    def predicted_losses(self, features: Tensor) -> Tensor:
        """What the predictor thinks of it, without a transcript: [B, 2]. Nats where it learned
        them (smooth_l1); the ranking loss fixes an order and no unit."""
        taps = self.encode(features)[0]
        with autocast(features.device):  # as it was trained, and half the cost
            return self.predictor.nats(self.predictor(taps))


def objective(model: JointRecogniser, batch, device, progress: float) -> Tensor:
    """The joint loss of a batch, nats an utterance; for :func:`alspeech.training.fit`.

    In the last part of the training, from ``config.detach`` on, the predictor goes on learning and
    leaves the encoder alone. Transcripts that fit no path teach the predictor nothing. With λ = 0
    it is the recogniser's loss and nothing else.
    """
    config = model.config
    with autocast(device):
        taps, encoded, logits = model.encode(batch.features)
    losses = model.losses(encoded, logits, batch.labels, training=True)
    fitting = torch.tensor([fits(row, logits.shape[1]) for row in batch.labels], device=device)
    if config.weight == 0 or not fitting.any():
        return losses.mean()
    if progress >= config.detach:
        taps = [tap.detach() for tap in taps]
    predictor, ranked = model.predictor, model.training and config.criterion == "ranking"
    with autocast(device):
        summaries = predictor.summarise(taps)
    predicted, of_batch = predictor.predict(summaries)[fitting], log_losses(losses, batch.labels)
    true = predictor.standardise(of_batch[fitting], learn=model.training)
    others = predictor.remembered() if ranked else None
    if ranked:
        predictor.remember(summaries[fitting], of_batch[fitting])
    return losses.mean() + config.weight * prediction_loss(
        predicted, true, config.criterion, others
    )


def fits(labels: list[int], frames: int) -> bool:
    """Whether CTC has a path for a transcript: a frame a label, and one between equal ones."""
    repeats = sum(a == b for a, b in zip(labels, labels[1:], strict=False))
    return len(labels) + repeats <= frames
