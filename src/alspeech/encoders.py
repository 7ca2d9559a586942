"""Frozen encoders: a clip of any length to one vector.

Legend: B clips, N samples, T frames, D numbers of an embedding.

An encoder is a function of a list of clips (samples [N] at 16 kHz, lengths may differ) that returns
their embeddings [B, D]; what it says of a clip does not depend on the others. ``ENCODERS`` has a
function for each name that makes one from the settings. To add your own, write

    ENCODERS["mine"] = lambda settings: each(my_function)  # samples [N] -> vector [D]

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

from . import experiment
from .config import Settings, UserError, load_settings
from .corpus import read_audio
from .features import FeatureExtractor, group_by_length
from .model import SequenceNorm
from .readers import states
from .store import fingerprint

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


# ---------------------------------------------------------------- the companion's own recogniser


def embedded(settings: Settings) -> Settings:
    """The settings of the run on the embedded corpus whose recogniser serves as encoder."""
    return load_settings(settings.start or settings.preset)


def recogniser(settings: Settings, layers=(0, -1)) -> Encoder:
    """What some layers of the embedded corpus's base model (seed 0) read: [B, numbers].

    The sequences that batch norm hands the recurrent layers and the last one are listed first to
    last; of those named by ``layers``, mean and deviation over time. The first still has the voice
    in it, the last hardly more than the words.
    """
    model = experiment.load_base(embedded(settings), seed=0)
    extract, device = FeatureExtractor(model.config), next(model.parameters()).device

    @torch.no_grad()
    def encode_batch(features: Tensor) -> Tensor:  # [B, T, F]
        x, read = features[:, None].to(device), []
        for layer in model.layers[:-1]:
            x = layer(x)
            if isinstance(layer, SequenceNorm):
                read.append(x)
        return torch.cat([statistics(read[at]) for at in layers], dim=-1).cpu()

    return lambda clips: by_length([extract(clip, RATE) for clip in clips], encode_batch)


def log_mel(settings: Settings) -> Encoder:
    """The floor: mean and deviation of 40 log-mel energies over time, no model."""
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=40)
    return each(lambda clip: statistics(torch.log(mel(clip).T[None] + 1e-6))[0])


# ---------------------------------------------------------------- pretrained models

PRETRAINED = {  # name: (torchaudio's bundle, the function that makes its model)
    "wav2vec2": (torchaudio.pipelines.WAV2VEC2_BASE, torchaudio.models.wav2vec2_base),
    "hubert": (torchaudio.pipelines.HUBERT_BASE, torchaudio.models.hubert_base),
    "wavlm": (torchaudio.pipelines.WAVLM_BASE, torchaudio.models.wavlm_base),
}


def weights_file(settings: Settings, name: str) -> Path | None:
    """Where ``aloe: weights`` has a pretrained model's file, as its publisher calls it."""
    return (
        Path(settings.aloe.weights) / PRETRAINED[name][0]._path if settings.aloe.weights else None
    )


def load_pretrained(settings: Settings, name: str, make=None) -> torch.nn.Module:
    """A pretrained model in evaluation mode, its weights from a file or from their publisher.

    Raises ``UserError`` where they cannot be had, or are those of another model.
    """
    bundle, factory = PRETRAINED[name]
    file = weights_file(settings, name)
    wanted = file or f"{torch.hub.get_dir()}/checkpoints/{bundle._path}"
    advice = (
        f"get {bundle._path} from https://download.pytorch.org/torchaudio/models/, put it in a "
        "folder, name that as aloe: weights in the preset, or take this encoder out of it"
    )
    if file is None:
        try:
            return bundle.get_model().eval()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights of {name} cannot be fetched ({error}): {advice}"
            ) from None
    model = (make or factory)()
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise UserError(f"no file {wanted}: {advice}") from None
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{wanted} is not {name}'s weights ({reason}): {advice}") from None
    return model.eval()


def pretrained(name: str) -> Callable[[Settings], Encoder]:
    """Mean and deviation over frames of the mean of all transformer layers: [B, 1536]."""
    return lambda settings: layers_of(load_pretrained(settings, name))


def layers_of(model: torch.nn.Module) -> Encoder:
    """The encoder that a wav2vec 2.0, HuBERT or WavLM model is."""
    device = experiment._device()
    model = model.to(device)

    @torch.no_grad()
    def encode(batch: Tensor) -> Tensor:
        layers = model.extract_features(batch.to(device))[0]  # one [B, T, D] a layer
        return statistics(torch.stack(layers).mean(dim=0)).cpu()

    return lambda clips: by_length(clips, encode, size=8)


ENCODERS: dict[str, Callable[[Settings], Encoder]] = {
    "recogniser": recogniser,
    "recogniser_first": partial(recogniser, layers=(0,)),
    "recogniser_last": partial(recogniser, layers=(-1,)),
    "logmel": log_mel,
    **{name: pretrained(name) for name in PRETRAINED},
}


def check_encoders(names) -> None:
    """Raise ``UserError`` for a name that is not in ``ENCODERS``."""
    for name in names:
        if name not in ENCODERS:
            raise UserError(f"unknown encoder '{name}': choose one of {', '.join(ENCODERS)}")


def identity(settings: Settings, name: str) -> dict:
    """What an encoder's embeddings depend on beside its code."""
    if name.startswith("recogniser"):
        return {"base": fingerprint(experiment._base_config(embedded(settings), 0))}
    if name in PRETRAINED and settings.aloe.weights:
        return {"weights": list(states([str(weights_file(settings, name))]).values())}
    return {}


# ---------------------------------------------------------------- clips to embeddings


def samples(clip) -> Tensor:
    """A clip's samples [N] at 16 kHz; ``clip`` is a row of a table of clips.

    Raises ``UserError`` for a file that cannot be read and for a clip shorter than 25 ms.
    """
    whole = pd.isna(clip.duration)
    audio, rate = read_audio(
        clip.path,
        0.0 if pd.isna(clip.offset) else clip.offset,
        None if whole else clip.duration,
    )
    wave = torch.from_numpy(audio)
    if rate != RATE:
        wave = torchaudio.functional.resample(wave, rate, RATE)
    if len(wave) < SHORTEST:
        raise UserError(
            f"clip {clip.clip_id}: {1000 * len(wave) / RATE:.0f} ms is too short for an encoder, "
            f"{1000 * SHORTEST / RATE:.0f} ms are needed: take it out ({clip.path})"
        )
    return wave


def embed(clips: pd.DataFrame, encode: Encoder, name: str) -> Tensor:
    """Embeddings [B, D] of a table of clips. Raises ``UserError`` naming a clip whose are NaN."""
    vectors = encode([samples(clip) for clip in clips.itertuples(index=False)])
    for row in (~vectors.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
        clip = clips.iloc[row]
        raise UserError(
            f"clip {clip['clip_id']}: encoder {name} returns NaN or infinity: listen to "
            f"{clip['path']}, take it out, or use another encoder"
        )
    return vectors
