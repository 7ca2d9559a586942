"""Manifests, and the audio that they name.

A manifest is a DataFrame with one row an utterance: ``utt_id`` (unique), ``path`` (audio file),
``duration`` (seconds), ``text``, ``split`` (base, pool, validation or test) and whatever else is
known (``speaker``, ``kind``, ``snr_db`` …), which travels along. ``offset`` (seconds), where there
is one, says where in the file the utterance begins. On disk it is JSON lines with NeMo's keys
(``audio_filepath, duration, text, offset``).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from ..workshop.config import CORPORA
from ..workshop.errors import UserError, cut_path
from ..workshop.scenarios import SPLITS  # noqa: F401  what the column split may hold

SAMPLE_RATE = 16000  # Hz, of the files that the package writes


def write_manifest(path: Path, manifest: pd.DataFrame) -> None:
    """Write a manifest as JSON lines; ``path`` is written as ``audio_filepath``, NaN as null."""
    named = manifest.rename(columns={"path": "audio_filepath"})
    with open(path, "w", encoding="utf-8") as file:
        for row in named.to_dict("records"):
            clean = {key: None if value != value else value for key, value in row.items()}
            file.write(json.dumps(clean, ensure_ascii=False) + "\n")


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest that this package wrote; relative audio paths are taken from its folder.

    Values are what JSON says they are: a speaker "0001" stays a string.
    """
    with open(path, encoding="utf-8") as file:
        manifest = pd.DataFrame([json.loads(line) for line in file])
    manifest = manifest.rename(columns={"audio_filepath": "path"})
    return manifest.assign(path=[str(Path(path).parent / name) for name in manifest["path"]])


def read_audio(path, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """Samples [N] (mono, float32 in [-1, 1]) and the sample rate in Hz.

    ``offset`` and ``duration`` in seconds choose a part of the file; several channels are averaged.
    Raises ``UserError`` for a file that cannot be read.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(min(round(offset * rate), file.frames))
            count = -1 if duration is None else round(duration * rate)
            samples = file.read(count, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError, TypeError) as error:  # TypeError: of a .raw file
        told = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise UserError(
            f"{cut_path(path)} cannot be read: {told}; put the whole file back"
        ) from None
    return samples.mean(axis=1), rate


def resample(samples: np.ndarray, up: int, down: int) -> np.ndarray:
    """Samples at ``up / down`` times their rate."""
    from scipy.signal import resample_poly  # takes a second to import; only new corpora need it

    return resample_poly(samples, up, down)


def check_data(corpus: str, data: str) -> None:
    """Raise ``UserError`` unless DATA is there and may be read."""
    if not data:
        raise UserError(f"CORPUS={corpus} needs DATA=path: {CORPORA[corpus]}")
    try:
        if os.path.isdir(data):
            os.scandir(data).close()
        else:
            open(data, "rb").close()
    except PermissionError:
        raise UserError(
            f"DATA={cut_path(data)}: no permission to read it: ask its owner, or chmod"
        ) from None
    except OSError:
        raise UserError(
            f"no folder or file DATA={cut_path(data)}: it is {CORPORA[corpus]}"
        ) from None
