"""What is to be transcribed, in the formats of those who will.

    FORMAT=jsonl           NeMo's manifest, and a table: always written
    FORMAT=label-studio    tasks with the recogniser's guess, and the labelling config
    FORMAT=audiofolder     Hugging Face: a folder of clips with metadata.csv
    FORMAT=lhotse          cuts, a JSON object a line
    FORMAT=audacity        a label file for each recording
    FORMAT=kaldi           wav.scp, segments, utt2spk, text

``rows`` are a manifest's, with ``rank, score, guess, why``, best first. What is written is a whole,
or it is not there.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import soundfile

from ..workshop.store import write_bytes
from .manifests import read_audio

COLUMNS = ("rank", "utt_id", "duration", "guess", "why", "score", "speaker", "path", "offset")
CONFIG = """<View>
  <Audio name="audio" value="$audio"/>
  <Header value="Write what is said. What nobody could understand: [unintelligible]"/>
  <TextArea name="transcription" toName="audio" editable="true" maxSubmissions="1" rows="3"/>
</View>
"""


# Label Studio's player adds a query to every URL, which breaks a data: URL (its issue 4736), but to
# one that is signed: so ours has a parameter that looks like a signature, and says nothing
PLAYABLE = "data:audio/wav;signed=?sig=;base64,"


def write_lists(folder: Path, rows: pd.DataFrame, format: str) -> list[Path]:
    """Write the list, in NeMo's format and as a table, and in another one; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "to_transcribe.jsonl", folder / "to_transcribe.csv"]
    write_bytes(paths[0], _jsonl(map(_nemo, rows.to_dict("records"))))
    table = rows[[x for x in COLUMNS if x in rows]]
    table.insert(3, "text", "")  # to be filled in
    write_bytes(paths[1], table.to_csv(index=False, lineterminator="\n").encode())
    return paths + (FORMATS[format](folder, rows) if format in FORMATS else [])


def _jsonl(records) -> bytes:
    return "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in records).encode()


def _nemo(row: dict) -> dict:
    given = {"audio_filepath": row["path"], "duration": round(row["duration"], 6), "text": ""}
    more = {x: row[x] for x in ("utt_id", "rank", "score", "guess", "why")}
    return given | {"offset": row["offset"], "speaker": row["speaker"]} | more


def clip(row: dict) -> bytes:
    """An utterance as a 16-bit WAV file, cut out where it is a part of a longer one."""
    samples, rate = read_audio(row["path"], row["offset"], row["duration"])
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


LARGEST = 200_000_000  # bytes of a file: Label Studio takes 250 MB at once


def _label_studio(folder: Path, rows: pd.DataFrame) -> list[Path]:
    """Tasks that hold their audio, so that nothing needs to be served, in as many files as it
    takes; scores as Label Studio orders them, lowest first."""
    parts, size = [[]], 0
    for row in rows.to_dict("records"):
        audio = PLAYABLE + base64.b64encode(clip(row)).decode()
        guess = {"from_name": "transcription", "to_name": "audio", "type": "textarea",
                 "value": {"text": [row["guess"]]}}  # fmt: skip
        told = {x: row[x] for x in ("utt_id", "rank", "why", "duration")}
        guesses = [guess] if row["guess"] else []  # an empty one would be taken for a transcript
        task = json.dumps({
            "data": {"audio": audio, **told},
            "predictions": [{"score": row["rank"] / (len(rows) + 1), "result": guesses}],
        }, ensure_ascii=False).encode()  # fmt: skip
        if parts[-1] and size + len(task) > LARGEST:
            parts.append([])
            size = 0
        parts[-1].append(task)
        size += len(task)
    name, config = "to_transcribe.label-studio", folder / "label-studio.xml"
    for old in folder.glob(f"{name}-*.json"):  # of a longer list
        old.unlink()
    paths = [folder / f"{name}{f'-{n}' if n > 1 else ''}.json" for n in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        write_bytes(path, b"[\n" + b",\n".join(part) + b"\n]\n")
    write_bytes(config, CONFIG.encode())
    return [paths[0], config, *paths[1:]]


def _fresh(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a folder is to be, and where it is filled first."""
    unfinished = folder / f".{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    return folder / name, unfinished


def _finished(folder: Path, unfinished: Path) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(unfinished, folder)
    return [folder]


def _clip_name(rank: int) -> str:
    return f"clips/{rank:06d}.wav"


def _audiofolder(folder: Path, rows: pd.DataFrame) -> list[Path]:
    place, unfinished = _fresh(folder, "to_transcribe.audiofolder")
    (unfinished / "clips").mkdir()
    with open(unfinished / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "transcription", "utt_id", "guess", "why", "score"])
        for row in rows.to_dict("records"):
            (unfinished / _clip_name(row["rank"])).write_bytes(clip(row))
            rest = [row[x] for x in ("utt_id", "guess", "why", "score")]
            writer.writerow([_clip_name(row["rank"]), "", *rest])
    return _finished(place, unfinished)


def _lhotse(folder: Path, rows: pd.DataFrame) -> list[Path]:
    """MonoCuts, each with its recording and a supervision without a text."""
    cuts = []
    for row in rows.to_dict("records"):
        with soundfile.SoundFile(row["path"]) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
        recording = {
            "id": f"{row['utt_id']}-recording", "sampling_rate": rate, "num_samples": frames,
            "duration": frames / rate, "channel_ids": list(range(channels)),
            "sources": [{"type": "file", "channels": list(range(channels)),
                         "source": row["path"]}],
        }  # fmt: skip
        told = {x: row[x] for x in ("guess", "why", "rank", "score")}
        cuts.append({
            "id": row["utt_id"], "start": row["offset"], "duration": row["duration"], "channel": 0,
            "type": "MonoCut", "recording": recording, "custom": told,
            "supervisions": [{
                "id": row["utt_id"], "recording_id": recording["id"], "start": 0.0,
                "duration": row["duration"], "channel": 0, "text": "", "speaker": row["speaker"],
            }],
        })  # fmt: skip
    path = folder / "to_transcribe.cuts.jsonl"
    write_bytes(path, _jsonl(cuts))
    return [path]


def _audacity(folder: Path, rows: pd.DataFrame) -> list[Path]:
    """``start⇥end⇥guess`` for each recording, named after it."""
    place, unfinished = _fresh(folder, "to_transcribe.audacity")
    for number, (path, part) in enumerate(rows.groupby("path", sort=True)):
        labels = "".join(
            f"{row.offset:.6f}\t{row.offset + row.duration:.6f}\t{row.utt_id}: {row.guess}\n"
            for row in part.sort_values("offset").itertuples()
        )
        (unfinished / f"{number:05d}-{Path(path).stem}.txt").write_text(labels, encoding="utf-8")
    return _finished(place, unfinished)


def _kaldi(folder: Path, rows: pd.DataFrame) -> list[Path]:
    """A data directory whose ``text`` holds the guesses. Ids and speakers lose their spaces."""
    place, unfinished = _fresh(folder, "to_transcribe.kaldi")
    files = {name: [] for name in ("wav.scp", "segments", "utt2spk", "text")}
    for row in rows.to_dict("records"):
        utt_id, speaker = ("_".join(str(row[x]).split()) for x in ("utt_id", "speaker"))
        end = row["offset"] + row["duration"]
        files["wav.scp"].append(f"{utt_id}-recording {row['path']}")
        files["segments"].append(f"{utt_id} {utt_id}-recording {row['offset']:.6f} {end:.6f}")
        files["utt2spk"].append(f"{utt_id} {speaker}")
        files["text"].append(f"{utt_id} {row['guess']}".rstrip())
    for name, listed in files.items():
        (unfinished / name).write_text("".join(f"{x}\n" for x in sorted(listed)), "utf-8")
    return _finished(place, unfinished)


FORMATS = {
    "label-studio": _label_studio,
    "audiofolder": _audiofolder,
    "lhotse": _lhotse,
    "audacity": _audacity,
    "kaldi": _kaldi,
}
