"""Features, kept on disk, and batches of utterances of one length.

Legend: B batch, T frames, F bins, N samples.

Every batch in this package holds utterances of *one* length. An utterance's features are padded,
once and for itself, to a multiple of ``round_frames``; so many utterances share a length, no batch
needs padding, no layer needs a mask, the CPU's fused recurrent kernels apply, and what a model
says of an utterance cannot depend on its batch-mates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchaudio
from tqdm import tqdm

from ..workshop.config import ModelConfig
from ..workshop.errors import one_of
from ..workshop.store import Checkpoint, read_csv
from .manifests import read_audio


class FeatureExtractor:
    """Log-mel energies or a log spectrogram, each bin's mean over the utterance removed."""

    def __init__(self, config: ModelConfig):
        self.config = config
        spectrum = {"n_fft": config.window, "hop_length": config.hop, "power": 2.0}
        one_of("features", config.features, ("log-mel", "spectrogram"))
        if config.features == "log-mel":
            self.transform = torchaudio.transforms.MelSpectrogram(
                config.sample_rate, n_mels=config.bins, f_min=60.0, **spectrum
            )
        else:
            self.transform = torchaudio.transforms.Spectrogram(**spectrum)

    def __call__(self, samples: torch.Tensor, rate: int) -> torch.Tensor:
        """Samples [N] at ``rate`` Hz to features [T, F], T a multiple of ``round_frames``."""
        config = self.config
        if rate != config.sample_rate:
            samples = torchaudio.functional.resample(samples, rate, config.sample_rate)
        frames = max(1, len(samples) // config.hop)
        log = torch.log(self.transform(samples)[: config.bins, :frames].T + 1e-5)  # [T, F]
        log = log - log.mean(dim=0)
        pad = input_frames(config, len(samples)) - frames
        # zero is each bin's mean: the padding is as unremarkable as can be
        return torch.nn.functional.pad(log, (0, 0, 0, pad))


def input_frames(config: ModelConfig, samples: int) -> int:
    """Frames T, rounded up, of an utterance of N samples at ``config.sample_rate``."""
    return -(-max(1, samples // config.hop) // config.round_frames) * config.round_frames


def output_frames(config: ModelConfig, frames: int) -> int:
    """Output frames T' of a model with this config for an input of T frames."""
    for kernel, stride in zip(config.kernels, config.strides, strict=True):
        frames = (frames + 2 * (kernel[0] // 2) - kernel[0]) // stride[0] + 1
    return frames


@dataclass(frozen=True)
class Batch:
    """Utterances of one length: ``features`` [B, T, F], their ids and transcripts' symbols."""

    utt_ids: tuple
    features: torch.Tensor
    labels: tuple = ()  # B lists of symbol numbers; empty where nobody labelled them

    def __len__(self) -> int:
        return len(self.utt_ids)

    def to(self, device) -> Batch:
        return replace(self, features=self.features.to(device))


class FeatureStore:
    """All features of a corpus in one memory-mapped file of half-precision numbers.

    Workers share its pages, so memory does not grow with the corpus or with their number.
    """

    def __init__(self, folder: Path):
        index = read_csv(folder / "index.csv")
        self.frames = dict(zip(index["utt_id"], index["frames"], strict=True))
        ends = index["frames"].cumsum()
        self._start = dict(zip(index["utt_id"], ends - index["frames"], strict=True))
        self._data = np.load(folder / "features.npy", mmap_mode="r")  # [sum of T, F]

    def __getitem__(self, utt_id: str) -> torch.Tensor:
        """Features [T, F] of one utterance, float32."""
        return torch.from_numpy(self._frames_of(utt_id).astype(np.float32))

    def _frames_of(self, utt_id: str) -> np.ndarray:
        start = self._start[utt_id]
        return self._data[start : start + self.frames[utt_id]]

    def batch(self, utterances: pd.DataFrame, encode=None) -> Batch:
        """One batch of manifest rows, which must share one length.

        ``encode`` turns a transcript into symbol numbers; without it the batch has no labels.
        """
        utt_ids = tuple(utterances["utt_id"])
        shape = len(utt_ids), self.frames[utt_ids[0]] if utt_ids else 0, self._data.shape[1]
        features = np.empty(shape, np.float32)
        for row, utt_id in zip(features, utt_ids, strict=True):
            row[:] = self._frames_of(utt_id)
        labels = tuple(map(encode, utterances["text"])) if encode else ()
        return Batch(utt_ids, torch.from_numpy(features), labels)

    def groups(self, utterances: pd.DataFrame, size: int, rng=None) -> list[np.ndarray]:
        """Row numbers of each batch of a pass; see :func:`group_by_length`."""
        return group_by_length([self.frames[utt_id] for utt_id in utterances["utt_id"]], size, rng)

    def batches(self, utterances, size: int, encode=None, rng=None) -> Iterator[Batch]:
        """Every utterance once, in batches of one length."""
        for index in self.groups(utterances, size, rng):
            yield self.batch(utterances.iloc[index], encode)


def group_by_length(lengths, size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """Indices in groups of at most ``size`` with equal lengths.

    Shortest first without ``rng``; with it, utterances and batches come in random order. A length
    of 17 utterances at size 16 gives 9 + 8, not 16 + 1: tiny batches are bad for the statistics
    of batch normalisation.
    """
    lengths = np.asarray(lengths)
    groups = []
    for length in np.unique(lengths):
        index = np.flatnonzero(lengths == length)
        if rng is not None:
            index = rng.permutation(index)
        groups += np.array_split(index, -(-len(index) // size))
    if rng is not None:
        groups = [groups[i] for i in rng.permutation(len(groups))]
    return groups


NPY_HEADER = 128  # bytes before the data of an .npy file of two dimensions


def extract(folder: Path, manifest: pd.DataFrame, config: ModelConfig) -> None:
    """Compute every utterance's features into ``folder/features.npy`` and ``folder/index.csv``.

    Goes on from what an interrupted call left in the folder.
    """
    extractor = FeatureExtractor(config)
    path, checkpoint = folder / "features.npy", Checkpoint(folder)
    rows = (checkpoint.load() or {"rows": []})["rows"]  # utt_id, frames
    size = NPY_HEADER + 2 * config.bins * sum(frames for _, frames in rows)
    if not path.exists() or path.stat().st_size < size:
        rows, size = [], NPY_HEADER
    with open(path, "r+b" if rows else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        # a second thread gains little of such small work, and on a busy machine is waited for
        torch.set_num_threads(1)
        missing = manifest[len(rows) :].itertuples()
        for row in tqdm(missing, "features", len(manifest), initial=len(rows), unit="utt"):
            # where the manifest has no offset, an utterance is its whole file
            segment = (row.offset, row.duration) if "offset" in manifest else ()
            samples, rate = read_audio(row.path, *segment)
            features = extractor(torch.from_numpy(samples), rate)
            file.write(features.numpy().astype(np.float16).tobytes())
            rows.append([row.utt_id, len(features)])
            if checkpoint.due():
                file.flush()
                os.fsync(file.fileno())  # the checkpoint counts on it
                checkpoint.save({"rows": rows})
        file.seek(0)  # how many frames there are is known only now
        shape = (sum(frames for _, frames in rows), config.bins)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == NPY_HEADER
    pd.DataFrame(rows, columns=["utt_id", "frames"]).to_csv(folder / "index.csv", index=False)


def spec_augment(features: torch.Tensor, config, generator: torch.Generator) -> torch.Tensor:
    """SpecAugment without time warping (Park et al. 2019): masked bands and stretches become 0.

    ``features`` [B, T, F]; each utterance gets its own masks, widths uniform in [0, widest].
    """
    B, T, F = features.shape
    plan = (
        (config.frequency_masks, config.frequency_width, F, (B, 1, F)),
        (config.time_masks, min(config.time_width, T // 4), T, (B, T, 1)),
    )
    for count, widest, size, shape in plan:
        position, keep = torch.arange(size).expand(B, size), torch.ones(B, size)
        for _ in range(count):
            width = torch.rand(B, 1, generator=generator) * widest
            start = torch.rand(B, 1, generator=generator) * (size - width)
            keep *= (position < start) | (position >= start + width)
        features = features * keep.view(shape).to(features)
    return features
