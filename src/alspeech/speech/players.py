"""Utterances to listen to: a table with an audio player in each row."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path

import pandas as pd
import soundfile
from IPython.display import HTML

from .manifests import read_audio, resample


def players(rows: pd.DataFrame, columns: list[str], autoplay: bool = False) -> HTML:
    """A table with an audio player in each row; ``rows`` are manifest rows with a ``path`` and,
    where the audio is a part of its file or no WAV, ``offset`` and ``duration``.

    The audio is embedded, so that an executed notebook can be played anywhere. ``autoplay``: it
    is heard without being asked for.
    """
    how = "autoplay" if autoplay else 'preload="none"'
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*columns, "listen"))
    body = []
    for row in rows.to_dict("records"):
        cells = "".join(f"<td>{html.escape(_shown(row[name]))}</td>" for name in columns)
        audio = base64.b64encode(_wav(row)).decode()
        player = f'<audio controls {how} src="data:audio/wav;base64,{audio}"></audio>'
        body.append(f"<tr>{cells}<td>{player}</td></tr>")
    return HTML(f"<table><tr>{head}</tr>{''.join(body)}</table>")


def _wav(row: dict) -> bytes:
    if "offset" not in row:  # a file of our own
        return Path(row["path"]).read_bytes()
    samples, rate = read_audio(row["path"], row["offset"], row["duration"])
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


# an eighth of a WAV; a libsndfile of before 2022 has none
CLIP_TYPE = "audio/mpeg" if "MP3" in soundfile.available_formats() else "audio/wav"
RATE = 16000  # Hz, of clips: enough for speech


def clip(row) -> str:
    """The audio of a manifest row (see :func:`players`), base64 of ``CLIP_TYPE``."""
    part = (row["offset"], row["duration"]) if "offset" in row else ()
    samples, rate = read_audio(row["path"], *part)
    if rate != RATE:
        common = math.gcd(RATE, rate)
        samples, rate = resample(samples, RATE // common, rate // common), RATE
    file = io.BytesIO()
    if CLIP_TYPE == "audio/mpeg":
        soundfile.write(file, samples, rate, format="MP3", compression_level=0.9)
    else:
        soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _shown(value) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)
