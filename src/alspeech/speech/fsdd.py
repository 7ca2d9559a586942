"""Strings of digits, joined from the recordings of the Free Spoken Digit Dataset."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from ..workshop.config import CORPORA, CorpusConfig, Scenario
from ..workshop.errors import UserError, cut_path
from .manifests import SAMPLE_RATE, SPLITS, check_data, read_audio, resample, write_manifest
from .phrases import DIGITS, one

RATE = 8000  # Hz
# recording indices of each split: 0–4 are the official test recordings, the rest is our cut
INDICES = {"base": (10, 22), "pool": (22, 50), "validation": (5, 10), "test": (0, 5)}
COLUMNS = ("utt_id", "path", "text", "split", "kind", "speaker", "recordings", "duration")


def build(folder: Path, config: CorpusConfig, data: str, scenario: Scenario | None = None) -> None:
    """Strings of three to six spoken digits, joined from recordings of one speaker with pauses.

    The splits share their six speakers (the data set's official protocol) but no recording. A
    recording may stand in several strings of its split. Where the ``scenario`` has groups of
    speakers, their shares are of strings, and its column ``group`` holds their names.

    Raises ``UserError`` where the recordings are missing.
    """
    recorded, scenario, rows = recordings(data), scenario or Scenario(), []
    group_of = {speaker: name for name, own in scenario.groups for speaker in own}
    for number, split in enumerate(tqdm(SPLITS, "join", unit="split")):
        (folder / "audio" / split).mkdir(parents=True)
        low, high = INDICES[split]
        chosen = recorded[recorded["index"].between(low, high - 1)]
        if chosen.empty:
            raise UserError(
                f"{cut_path(data)}: no recording with index {low} to {high - 1} ({split})"
            )
        rng = np.random.default_rng([config.seed, number])
        decks = {speaker: _dealt(part, rng) for speaker, part in chosen.groupby("speaker")}
        for i in range(getattr(config, split)):
            speakers, groups = sorted(decks), scenario.draw(split).groups
            if groups:
                group = one(groups, rng)
                speakers = [name for name in speakers if group_of.get(name) == group]
            if not speakers:
                raise UserError(f"{cut_path(data)}: nobody of the scenario's group {group}: name "
                                f"some of {', '.join(sorted(decks))} in groups")  # fmt: skip
            speaker = speakers[int(rng.integers(len(speakers)))]
            drawn = [next(decks[speaker]) for _ in range(int(rng.integers(3, 7)))]
            utt_id = f"{split}-{i:05d}"
            audio = _join([row.path for row in drawn], rng)
            path = f"audio/{split}/{utt_id}.wav"
            soundfile.write(folder / path, audio, SAMPLE_RATE, subtype="PCM_16")
            text = " ".join(DIGITS[row.digit] for row in drawn)
            kind, used = f"{len(drawn)} digits", " ".join(row.path.stem for row in drawn)
            rows.append((utt_id, path, text, split, kind, speaker, used, len(audio) / SAMPLE_RATE))
    manifest = pd.DataFrame(rows, columns=COLUMNS)
    if scenario.column:
        manifest[scenario.group] = manifest["speaker"].map(group_of)
    write_manifest(folder / "manifest.jsonl", manifest)


def _dealt(recordings: pd.DataFrame, rng: np.random.Generator):
    """Yields a speaker's recordings one by one; shuffled anew when all are dealt."""
    rows = list(recordings.itertuples(index=False))
    while True:
        yield from [rows[i] for i in reversed(rng.permutation(len(rows)))]


def recordings(data: str) -> pd.DataFrame:
    """``digit, speaker, index, path`` of every ``{digit}_{speaker}_{index}.wav``."""
    check_data("fsdd", data)
    folder = Path(data) / "recordings"
    rows = []
    for path in sorted(folder.glob("*.wav")):
        name = re.fullmatch(r"(?P<digit>[0-9])_(?P<speaker>[^_]+)_(?P<index>[0-9]+)", path.stem)
        if not name:
            raise UserError(
                f"{cut_path(path)}: not named digit_speaker_index.wav: take it out of the folder"
            )
        rows.append({**name.groupdict(), "path": path})
    if not rows:
        raise UserError(f"no WAV file in {cut_path(folder)}: DATA is {CORPORA['fsdd']}")
    return pd.DataFrame(rows).astype({"digit": int, "index": int})


def _join(paths: list[Path], rng: np.random.Generator) -> np.ndarray:
    """The recordings at 16 kHz with pauses of 0.05 to 0.25 s before, between and after."""
    pause = lambda: np.zeros(int(rng.uniform(0.05, 0.25) * SAMPLE_RATE))  # noqa: E731
    parts = [pause()]
    for path in paths:
        samples, rate = read_audio(path)
        if rate != RATE:
            raise UserError(
                f"{cut_path(path)}: {rate} Hz, but the data set's recordings have {RATE} Hz"
            )
        parts += [resample(samples, SAMPLE_RATE // RATE, 1), pause()]
    joined = np.concatenate(parts)
    # a floor of noise at -70 dBFS: digital silence is nothing that a microphone gives
    joined = joined + 10 ** (-70 / 20) * rng.standard_normal(len(joined))
    return np.clip(joined, -1, 1)
