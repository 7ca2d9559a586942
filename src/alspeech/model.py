"""Deep Speech 2: two convolutions, bidirectional recurrent layers, batch norm everywhere, CTC.

Legend: B batch, T frames, F bins, C channels, D features, V symbols (0 = blank).

The model is a plain sequence of layers and takes utterances of one length (features.py), so its
forward pass needs neither masks nor packing. backward.py walks the same sequence back.
"""

from __future__ import annotations

import torch
from torch import nn

from .speech.features import output_frames
from .workshop.config import ModelConfig


class SequenceNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics run over all frames of all utterances [B, T, D]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class ToSequence(nn.Module):
    """[B, C, T, F] → [B, T, C·F]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).flatten(2)


class Bidirectional(nn.Module):
    """A recurrent layer over both directions, their outputs summed: [B, T, D] → [B, T, H]."""

    CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

    def __init__(self, cell: str, inputs: int, hidden: int):
        super().__init__()
        options = {"nonlinearity": "relu"} if cell == "rnn" else {}
        self.rnn = self.CELLS[cell](inputs, hidden, batch_first=True, bidirectional=True, **options)

    def directions(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of the forward and the backward direction, [B, T, 2, H]."""
        return self.rnn(x)[0].unflatten(-1, (2, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        forward, backward = self.directions(x).unbind(dim=2)
        return forward + backward  # a sum over the dimension takes three times as long


class DeepSpeech2(nn.Module):
    """Amodei et al. 2016, as Huang et al. 2016 use it, for an alphabet of V symbols.

    Every recurrent layer's input is batch-normalised over the sequence. (Deep Speech 2 normalises
    the input's product with the weights; normalising the input instead keeps the fused kernels.)
    """

    def __init__(self, config: ModelConfig, symbols: int):
        super().__init__()
        layers, channels, bins = [], 1, config.bins
        for kernel, stride in zip(config.kernels, config.strides, strict=True):
            padding = (kernel[0] // 2, kernel[1] // 2)
            layers += [
                nn.Conv2d(channels, config.channels, kernel, stride, padding, bias=False),
                nn.BatchNorm2d(config.channels),
                nn.Hardtanh(0, 20),  # Deep Speech's clipped ReLU
            ]
            channels = config.channels
            bins = (bins + 2 * padding[1] - kernel[1]) // stride[1] + 1
        layers.append(ToSequence())
        inputs = channels * bins
        for _ in range(config.layers):
            layers += [SequenceNorm(inputs), Bidirectional(config.cell, inputs, config.hidden)]
            inputs = config.hidden
        layers += [SequenceNorm(inputs), nn.Linear(inputs, symbols)]
        self.config = config
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, T, F] of utterances of one length → logits [B, T', V]."""
        return self.layers(features[:, None])

    def frames(self, frames: int) -> int:
        """Output frames T' for an input of T frames."""
        return output_frames(self.config, frames)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
