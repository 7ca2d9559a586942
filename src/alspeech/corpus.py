"""Manifests, and the corpora of real recordings.

A manifest is a DataFrame with one row an utterance: ``utt_id`` (unique), ``path`` (audio file),
``duration`` (seconds), ``text``, ``split`` (base, pool, validation or test) and whatever else is
known (``speaker``, ``kind``, ``snr_db`` …), which travels along. ``offset`` (seconds), where there
is one, says where in the file the utterance begins. On disk it is JSON lines with NeMo's keys
(``audio_filepath, duration, text, offset``).

The corpora that we build are here and in synthesis.py; readers.py reads other people's.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from .config import CORPORA, CorpusConfig, UserError

SAMPLE_RATE = 16000  # Hz, of the files that the package writes
SPLITS = ("base", "pool", "validation", "test")


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
    manifest["path"] = [str(Path(path).parent / name) for name in manifest["path"]]
    return manifest


def read_audio(
    path: str, offset: float = 0.0, duration: float | None = None
) -> tuple[np.ndarray, int]:
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
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path} cannot be read: {error}; put the whole file back") from None
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
        raise UserError(f"DATA={data}: no permission to read it: ask its owner, or chmod") from None
    except OSError:
        raise UserError(f"no folder or file DATA={data}: it is {CORPORA[corpus]}") from None


# ---------------------------------------------------------------- Free Spoken Digit Dataset

FSDD_RATE = 8000  # Hz
DIGITS = "zero one two three four five six seven eight nine".split()
# recording indices of each split: 0–4 are the official test recordings, the rest is our cut
FSDD_INDICES = {"base": (10, 22), "pool": (22, 50), "validation": (5, 10), "test": (0, 5)}


def build_fsdd(folder: Path, config: CorpusConfig, data: str) -> None:
    """Strings of three to six spoken digits, joined from recordings of one speaker with pauses.

    The splits share their six speakers (the data set's official protocol) but no recording. A
    recording may stand in several strings of its split.

    Raises ``UserError`` where the recordings are missing.
    """
    recordings = _fsdd_recordings(data)
    rows = []
    for number, split in enumerate(tqdm(SPLITS, "join", unit="split")):
        (folder / "audio" / split).mkdir(parents=True)
        low, high = FSDD_INDICES[split]
        chosen = recordings[recordings["index"].between(low, high - 1)]
        if chosen.empty:
            raise UserError(f"{data}: no recording with index {low} to {high - 1} ({split})")
        rng = np.random.default_rng([config.seed, number])
        decks = {speaker: _Deck(part, rng) for speaker, part in chosen.groupby("speaker")}
        for i in range(getattr(config, split)):
            speaker = sorted(decks)[int(rng.integers(len(decks)))]
            drawn = [decks[speaker].draw() for _ in range(int(rng.integers(3, 7)))]
            utt_id = f"{split}-{i:05d}"
            audio = _join([row.path for row in drawn], rng)
            path = f"audio/{split}/{utt_id}.wav"
            soundfile.write(folder / path, audio, SAMPLE_RATE, subtype="PCM_16")
            rows.append(
                {
                    "utt_id": utt_id,
                    "path": path,
                    "text": " ".join(DIGITS[row.digit] for row in drawn),
                    "split": split,
                    "kind": f"{len(drawn)} digits",
                    "speaker": speaker,
                    "recordings": " ".join(Path(row.path).stem for row in drawn),
                    "duration": len(audio) / SAMPLE_RATE,
                }
            )
    write_manifest(folder / "manifest.jsonl", pd.DataFrame(rows))


class _Deck:
    """Deals a speaker's recordings one by one; shuffled anew when all are dealt."""

    def __init__(self, recordings: pd.DataFrame, rng: np.random.Generator):
        self.rows = list(recordings.itertuples(index=False))
        self.rng, self.left = rng, []

    def draw(self):
        if not self.left:
            self.left = [self.rows[i] for i in self.rng.permutation(len(self.rows))]
        return self.left.pop()


def _fsdd_recordings(data: str) -> pd.DataFrame:
    """``digit, speaker, index, path`` of every ``{digit}_{speaker}_{index}.wav``."""
    check_data("fsdd", data)
    folder = Path(data) / "recordings"
    rows = []
    for path in sorted(folder.glob("*.wav")):
        name = re.fullmatch(r"([0-9])_([^_]+)_([0-9]+)", path.stem)
        if not name:
            raise UserError(f"{path}: not named digit_speaker_index.wav: take it out of the folder")
        digit, speaker, index = name.groups()
        rows.append({"digit": int(digit), "speaker": speaker, "index": int(index), "path": path})
    if not rows:
        raise UserError(f"no WAV file in {folder}: DATA is {CORPORA['fsdd']}")
    return pd.DataFrame(rows)


def _join(paths: list[Path], rng: np.random.Generator) -> np.ndarray:
    """The recordings at 16 kHz with pauses of 0.05 to 0.25 s before, between and after."""
    pause = lambda: np.zeros(int(rng.uniform(0.05, 0.25) * SAMPLE_RATE))  # noqa: E731
    parts = [pause()]
    for path in paths:
        samples, rate = read_audio(path)
        if rate != FSDD_RATE:
            raise UserError(f"{path}: {rate} Hz, but the data set's recordings have {FSDD_RATE} Hz")
        parts += [resample(samples, SAMPLE_RATE // FSDD_RATE, 1), pause()]
    joined = np.concatenate(parts)
    # a floor of noise at -70 dBFS: digital silence is nothing that a microphone gives
    joined = joined + 10 ** (-70 / 20) * rng.standard_normal(len(joined))
    return np.clip(joined, -1, 1)
