"""Frozen encoders: a clip of any length to one vector.

Legend: B clips, N samples, T frames, D numbers of an embedding.

An encoder is a function of a list of clips (samples [N] at 16 kHz, lengths may differ) that returns
their embeddings [B, D]; what it says of a clip does not depend on the others. ``ENCODERS`` has a
function for each name that makes one from the settings and, for names that begin with "recogniser",
from the companion's own. To add your own, write

    ENCODERS["mine"] = lambda settings, base: each(my_function)  # samples [N] -> vector [D]

here, and name it under ``aloe: encoders`` in a preset.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torchaudio
from torch import Tensor

from ..model import DeepSpeech2, SequenceNorm
from ..speech.features import FeatureExtractor, group_by_length
from ..speech.manifests import read_audio
from ..workshop.config import Settings
from ..workshop.errors import UserError, cut, cut_path

RATE = 16000  # Hz
SHORTEST = 400  # samples: a window of every encoder here
Encoder = Callable[[list], Tensor]


def statistics(frames: Tensor) -> Tensor:
    """Mean and deviation over frames: [B, T, D] → [B, 2 D]."""
    return torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)], dim=-1)


def each(function: Callable[[Tensor], Tensor]) -> Encoder:
    """An encoder from a function of one clip: samples [N] → vector [D]."""
    return lambda clips: torch.stack([torch.as_tensor(function(clip)).float() for clip in clips])


def by_length(inputs: list[Tensor], encode, size: int = 32) -> Tensor:
    """``encode`` of batches [B, …] of inputs of equal length, in the order of the inputs."""
    found = {}
    for group in group_by_length([len(x) for x in inputs], size):
        found.update(zip(group, encode(torch.stack([inputs[i] for i in group])), strict=True))
    return torch.stack([found[i] for i in range(len(inputs))])


def recogniser(_, base: DeepSpeech2, layers=(0, -1)) -> Encoder:
    """What some layers of a base model read: [B, numbers]. The sequences that batch norm hands the
    recurrent layers and the last one are listed first to last; of those named by ``layers``, mean
    and deviation over time. The first still has the voice in it, the last hardly more than words.
    """
    extract, where = FeatureExtractor(base.config), next(base.parameters()).device

    @torch.no_grad()
    def encode_batch(features: Tensor) -> Tensor:  # [B, T, F]
        x, read = features[:, None].to(where), []
        for layer in base.layers[:-1]:
            x = layer(x)
            if isinstance(layer, SequenceNorm):
                read.append(x)
        return torch.cat([statistics(read[at]) for at in layers], dim=-1).cpu()

    return lambda clips: by_length([extract(clip, RATE) for clip in clips], encode_batch)


def log_mel(*_) -> Encoder:
    """The floor: mean and deviation of 40 log-mel energies over time, no model."""
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=40)
    return each(lambda clip: statistics(torch.log(mel(clip).T[None] + 1e-6))[0])


PRETRAINED = {  # name: (torchaudio's bundle, the function that makes its model)
    "wav2vec2": (torchaudio.pipelines.WAV2VEC2_BASE, torchaudio.models.wav2vec2_base),
    "hubert": (torchaudio.pipelines.HUBERT_BASE, torchaudio.models.hubert_base),
    "wavlm": (torchaudio.pipelines.WAVLM_BASE, torchaudio.models.wavlm_base),
}


def weights_file(settings: Settings, name: str) -> Path | None:
    """Where ``aloe: weights`` has a pretrained model's file, as its publisher calls it."""
    folder = settings.aloe.weights
    return Path(folder) / PRETRAINED[name][0]._path if folder else None


def load_pretrained(settings: Settings, name: str, make=None) -> torch.nn.Module:
    """A pretrained model in evaluation mode, its weights from a file or from their publisher;
    ``UserError`` where they cannot be had, or are those of another model."""
    bundle, factory = PRETRAINED[name]
    file = weights_file(settings, name)
    advice = (
        f"get {bundle._path} from https://download.pytorch.org/torchaudio/models/, put it in a "
        "folder, name that as aloe: weights in the preset, or take this encoder out of it"
    )
    if file and not file.exists():
        raise UserError(f"no file {cut_path(file)}: {advice}")
    try:
        if file is None:
            return bundle.get_model().eval()
        model = (make or factory)()
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, TypeError) as error:
        told = (
            f"{cut_path(file)} is not {name}'s weights"
            if file
            else f"{name}'s weights cannot be fetched"
        )
        reason = cut(str(error).split("\n")[0], 120)
        raise UserError(f"{told} ({reason}): {advice}") from None
    return model.eval()


def layers_of(model: torch.nn.Module) -> Encoder:
    """The encoder that a wav2vec 2.0, HuBERT or WavLM model is: mean and deviation over frames of
    the mean of all transformer layers, [B, 1536] for the models above."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(where)

    @torch.no_grad()
    def encode(batch: Tensor) -> Tensor:
        layers = model.extract_features(batch.to(where))[0]  # one [B, T, D] a layer
        return statistics(torch.stack(layers).mean(dim=0)).cpu()

    return lambda clips: by_length(clips, encode, size=8)


ENCODERS: dict[str, Callable[[Settings, DeepSpeech2 | None], Encoder]] = {
    "recogniser": recogniser,
    "recogniser_first": partial(recogniser, layers=(0,)),
    "recogniser_last": partial(recogniser, layers=(-1,)),
    "logmel": log_mel,
    **{
        name: lambda settings, _, name=name: layers_of(load_pretrained(settings, name))
        for name in PRETRAINED
    },
}


def samples(clip) -> Tensor:
    """Samples [N] at 16 kHz of a clip, a row of a table of clips. Raises ``UserError`` for a file
    that cannot be read and for a clip shorter than 25 ms."""
    offset = 0.0 if pd.isna(clip.offset) else clip.offset
    audio, rate = read_audio(clip.path, offset, None if pd.isna(clip.duration) else clip.duration)
    wave = torchaudio.functional.resample(torch.from_numpy(audio), rate, RATE)
    if len(wave) < SHORTEST:
        raise UserError(
            f"clip {cut(clip.clip_id)}: {1000 * len(wave) / RATE:.0f} ms is too short for an "
            f"encoder, {1000 * SHORTEST / RATE:.0f} ms are needed: take it out "
            f"({cut_path(clip.path)})"
        )
    return wave


def embed(clips: pd.DataFrame, encode: Encoder, name: str) -> Tensor:
    """Embeddings [B, D] of a table of clips. Raises ``UserError`` naming a clip whose are NaN."""
    vectors = encode([samples(clip) for clip in clips.itertuples(index=False)])
    for _, clip in clips[~vectors.isfinite().all(dim=1).numpy()].iterrows():
        raise UserError(
            f"clip {cut(clip['clip_id'])}: encoder {name} returns NaN or infinity: listen to "
            f"{cut_path(clip['path'])}, take it out, or use another encoder"
        )
    return vectors
