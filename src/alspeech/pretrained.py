"""Recognisers of well-known kinds, with weights from a file of yours, to be named in a preset:

    recogniser: alspeech.pretrained:wav2vec2_base    # or hubert_large, wavlm_base, conformer …
    weights: wav2vec2_fairseq_base_ls960_asr_ls960.pth

wav2vec 2.0, HuBERT and WavLM are torchaudio's, with the file of a *fine-tuned* one, as torchaudio's
own training or its published files have it (https://download.pytorch.org/torchaudio/models/); a
Conformer is :class:`ConformerCTC`. An alphabet other than fairseq's stands in a text file beside
the weights. A recogniser of another kind is a function of your own (recognisers.py).

Legend: B batch, T frames, F bins, N samples, V symbols (0 = blank).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from .recognisers import read_weights
from .workshop.errors import UserError, cut, cut_path

# as the recognisers that fairseq fine-tuned on LibriSpeech have it (torchaudio's bundles, too)
LETTERS = ("", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
UNUSED = ("<pad>", "</s>", "<unk>")  # its first symbols, which their files still hold


def alphabet_of(path, outputs: int) -> list[str]:
    """The symbols of a file of weights: those in the text file of the same name that lies beside
    it (``weights.txt``, a symbol a line, the blank's line empty), else fairseq's letters."""
    beside = Path(path).with_suffix(".txt")
    if beside.exists():
        return beside.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    known = {len(x): x for x in (LETTERS, (*LETTERS[:1], *UNUSED, *LETTERS[1:]))}
    if outputs not in known:
        raise UserError(
            f"weights {cut_path(path)} have {outputs} outputs: write their symbols into "
            f"{cut_path(beside)}, one a line, an empty line for the blank"
        )
    return list(known[outputs])


def filled(module: nn.Module, state: dict, path) -> nn.Module:
    """A module with the weights of a file. Raises ``UserError`` where they are another's."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        told = cut(" ".join(str(error).split("\n\t")[1:2]) or error, 160)
        raise UserError(f"weights {cut_path(path)} are not this recogniser's: {told}") from None
    return module


class Wave(nn.Module):
    """One of torchaudio's models of raw samples, to be called with [1, N]. The larger ones want
    every utterance with mean 0 and variance 1."""

    def __init__(self, model: nn.Module, normalise: bool):
        super().__init__()
        self.model, self.normalise = model, normalise

    def forward(self, samples: Tensor) -> Tensor:
        if self.normalise:
            samples = nn.functional.layer_norm(samples, samples.shape[1:])
        return self.model(samples)[0]


def of_torchaudio(make, normalise: bool = False):
    """A function for the preset, of one of torchaudio's model factories."""

    def recogniser(weights=None):
        if weights is None:
            raise UserError("needs weights: name the file of a fine-tuned model in the preset")
        state = read_weights(weights)
        if "aux.weight" not in state:
            raise UserError(f"weights {cut_path(weights)} have no aux.weight, the outputs of a "
                            "fine-tuned model: a pretrained one does not write")  # fmt: skip
        outputs = len(state["aux.weight"])
        module = filled(make(aux_num_out=outputs), state, weights)
        return Wave(module, normalise), alphabet_of(weights, outputs), "samples"

    return recogniser


wav2vec2_base = of_torchaudio(torchaudio.models.wav2vec2_base)
wav2vec2_large = of_torchaudio(torchaudio.models.wav2vec2_large)
wav2vec2_large_lv60k = of_torchaudio(torchaudio.models.wav2vec2_large_lv60k, normalise=True)
wav2vec2_xlsr_300m = of_torchaudio(torchaudio.models.wav2vec2_xlsr_300m, normalise=True)
hubert_base = of_torchaudio(torchaudio.models.hubert_base)
hubert_large = of_torchaudio(torchaudio.models.hubert_large, normalise=True)
wavlm_base = of_torchaudio(torchaudio.models.wavlm_base)
wavlm_large = of_torchaudio(torchaudio.models.wavlm_large, normalise=True)


class ConformerCTC(nn.Module):
    """torchaudio's Conformer between two convolutions, which leave a quarter of the frames, and a
    CTC head: log-mels [B, T, F] → logits [B, T / 4, V]."""

    def __init__(
        self, bins: int, symbols: int, dim=256, heads=4, hidden=1024, layers=16, kernel=31
    ):
        super().__init__()
        self.register_buffer("heads", torch.tensor(heads))  # no shape in the file tells them
        self.front = nn.Sequential(
            nn.Conv1d(bins, dim, 3, 2, 1), nn.GELU(), nn.Conv1d(dim, dim, 3, 2, 1), nn.GELU()
        )
        self.conformer = torchaudio.models.Conformer(dim, heads, hidden, layers, kernel)
        self.head = nn.Linear(dim, symbols)

    def forward(self, features: Tensor) -> Tensor:
        x = self.front(features.mT).mT
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        return self.head(self.conformer(x, lengths)[0])


def conformer(weights=None):
    """A :class:`ConformerCTC` of the sizes that its file of weights tells."""
    if weights is None:
        raise UserError("needs weights: name the file of a ConformerCTC in the preset")
    state = read_weights(weights)
    layer = "conformer.conformer_layers"
    try:
        dim, bins, _ = state["front.0.weight"].shape
        hidden = len(state[f"{layer}.0.ffn1.sequential.1.weight"])
        kernel = state[f"{layer}.0.conv_module.sequential.2.weight"].shape[2]
        outputs, heads = len(state["head.weight"]), int(state["heads"])
        layers = 1 + max(int(x.split(".")[2]) for x in state if x.startswith(layer))
    except (KeyError, ValueError) as error:
        raise UserError(f"weights {cut_path(weights)} are no ConformerCTC's: no {error}") from None
    module = ConformerCTC(bins, outputs, dim, heads, hidden, layers, kernel)
    return filled(module, state, weights), alphabet_of(weights, outputs), "log-mel"
