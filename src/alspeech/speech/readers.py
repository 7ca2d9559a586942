"""Readers: other people's corpora, each in its own layout, to the one table of utterances.

Every reader yields a row an utterance, as the corpus's own files have it, and puts those files into
its empty list ``files``. Nothing is judged here but the files' form; validation.py looks at
transcripts and audio. What is wrong with a whole file is a ``UserError`` that names file and line.

Columns: ``utt_id, path`` (absolute), ``offset`` and ``duration`` (seconds; NaN: the whole file),
``text``, ``speaker`` and ``split`` (None where the corpus does not say), ``where`` and
``text_where`` (``file:line`` of the audio and of the transcript), and whatever else is known.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..workshop.config import CORPORA
from ..workshop.errors import UserError, cut, cut_path
from .manifests import check_data

COLUMNS = "utt_id path offset duration text speaker split where text_where".split()
# what corpora call their splits; training material (None) is divided into base and pool by us
SPLIT_NAMES = {
    **{name: name for name in ("base", "pool", "validation", "test")},
    **dict.fromkeys(("dev", "valid", "val"), "validation"),
    **dict.fromkeys(("train", "training"), None),
}


@dataclass(frozen=True)
class Found:
    """A corpus as it lies there: ``rows`` (see above), and the files that listed them."""

    rows: pd.DataFrame
    files: tuple

    def fingerprint(self) -> dict:
        """Size and time of change of every file that the corpus consists of."""
        return states([*map(str, self.files), *self.rows["path"].unique()])


def states(paths: list[str]) -> dict[str, list | None]:
    """Size and time of change of files (None: not there)."""
    found = dict.fromkeys(paths)
    for path in paths:
        with contextlib.suppress(OSError):  # missing, or not ours to read: validation.py says which
            status = os.stat(path)
            found[path] = [status.st_size, status.st_mtime_ns]
    return found


@functools.lru_cache(maxsize=4)
def read(corpus: str, data: str, outside: bool = False) -> Found:
    """Read the corpus in DATA by one of :data:`READERS`.

    ``outside`` allows a manifest to name audio files outside DATA. Raises ``UserError``, in one
    line, where there is nothing to read, a file is malformed or an ``utt_id`` occurs twice.
    """
    check_data(corpus, data)
    files = []
    rows = list(READERS[corpus](Path(data), outside, files))
    if not rows:
        raise UserError(f"{cut_path(data)}: no utterance found; DATA is {CORPORA[corpus]}")
    names = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    table = pd.DataFrame(rows, columns=list(names))
    table["text_where"] = table["text_where"].combine_first(table["where"])
    table = table.astype({"offset": float, "duration": float})
    told = table[["speaker", "split"]].astype(object)
    table[told.columns] = told.where(told.notna(), None)
    twice = table[table["utt_id"].duplicated(keep=False)]
    if len(twice):
        utt_id = twice["utt_id"].iloc[0]
        first, second = twice["where"][twice["utt_id"] == utt_id].iloc[:2]
        first, second = cut_path(first, 90), cut_path(second, 90)  # both are to fit into a line
        raise UserError(f"{second}: utt_id '{cut(utt_id)}' is taken by {first}: give each its own")
    return Found(table, tuple(files))


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(``file:line``, text) of each line but blank ones; Windows line ends and a BOM are fine."""
    name = cut_path(path)
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}: this corpus needs it") from None
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start].split(b"\n"), error.object[error.start]
        raise UserError(
            f"{name}:{len(before)}: not UTF-8 (byte {len(before[-1]) + 1} of the line is "
            f"0x{byte:02x}): convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None
    for number, line in enumerate(content.split("\n"), start=1):
        where = f"{name}:{number}"
        if "\0" in line:
            raise UserError(f"{where}: not UTF-8 but UTF-16, or no text at all: convert the file")
        if line.strip():
            yield where, line.strip()


def _inside(path: Path | str, allowed: Path, where: str, outside: bool) -> str:
    """The path, absolute; refused where it leaves the ``allowed`` folder, by a link, too."""
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    real = os.path.realpath(path) if os.path.islink(path) else os.path.join(_real(folder), name)
    if not outside and not real.startswith(os.path.join(_real(str(allowed)), "")):
        raise UserError(
            f"{where}: {cut_path(path, 80)} lies outside DATA: correct the path, or allow it "
            "with build: {outside: true} in the preset"
        )
    return path


_real = functools.cache(os.path.realpath)  # thousands of files share a folder


def read_jsonl(data: Path, outside: bool, files: list) -> Iterator[dict]:
    """NeMo's manifests: an object a line with ``audio_filepath, text`` and, if you like,
    ``utt_id, duration, offset, speaker, split`` and more, which travels along.

    DATA is one file, or a folder of files or of folders of files; the name of a split gives it
    (``pool.jsonl``, ``pool/all.jsonl``). Relative paths are taken from the file's folder. Without
    ``utt_id`` the path serves.
    """
    if data.is_dir():
        patterns = ("*.jsonl", "*/*.jsonl", "*.json", "*/*.json")
        files += next(filter(None, (sorted(data.glob(pattern)) for pattern in patterns)), [])
    else:
        files.append(data)
        data = data.parent
    for file in files:
        split = SPLIT_NAMES.get(file.stem)
        if split is None and file.parent != data:
            split = SPLIT_NAMES.get(file.parent.name)
        for where, line in lines(file):
            yield _from_json(line, where, file.parent, data, outside, split)


def _from_json(line: str, where: str, folder: Path, data: Path, outside: bool, split) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: broken JSON at character {error.pos + 1} ({error.msg}): mend the line, or "
            "take it out"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(
            f"{where}: JSON with thousands of digits or of brackets: mend the line, or take it out"
        ) from None
    written = json.dumps(record, ensure_ascii=False)
    if "\\u0000" in written or written.encode(errors="replace").decode() != written:
        raise UserError(f"{where}: \\u escapes of a null or of half a character: mend the line")
    name = record.get("audio_filepath") if isinstance(record, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f'{where}: no "audio_filepath": every line needs one, and a "text"')
    row = {"split": split, **record, "path": _inside(folder / name, data, where, outside)}
    del row["audio_filepath"]
    for key in ("offset", "duration"):
        value = row.get(key)
        number = type(value) in (int, float) and 0 <= value < 1e9
        if value is not None and not number:
            raise UserError(
                f'{where}: "{key}" is {cut(json.dumps(value))}: a number of seconds, please'
            )
    for key in ("text", "speaker", "utt_id"):
        if isinstance(row.get(key), dict | list | bool):
            raise UserError(f'{where}: "{key}" is {cut(json.dumps(row[key]))}: text, please')
        row[key] = None if row.get(key) is None else str(row[key])
    if not row["utt_id"]:
        at = f"@{row['offset']:g}" if row.get("offset") else ""
        within = "" if folder == data else f"{folder.name}/"
        row["utt_id"] = within + os.path.splitext(Path(name))[0] + at
    given = str(row["split"]).lower()
    if row["split"] is not None and given not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        raise UserError(f"{where}: unknown split '{cut(row['split'])}': choose one of {known}")
    row |= {"split": SPLIT_NAMES.get(given), "text": row["text"] or ""}
    return row | {"where": where, "text_where": where}  # whatever keys of these names are given


KALDI_OPTIONAL = ("utt2spk", "segments", "spk2gender", "spk2age")


def read_kaldi(data: Path, outside: bool, files: list) -> Iterator[dict]:
    """A Kaldi data directory: ``wav.scp, text`` and, if there, ``utt2spk, segments, spk2gender,
    spk2age``.

    DATA is the directory itself or a folder of such directories; one that is named after a split
    gives it. Paths in ``wav.scp`` are relative to the directory or to its parent, or absolute.
    A command (``… |``) is refused: nothing from a file is ever run.
    """
    folders = [data]
    if not (data / "wav.scp").exists() and data.is_dir():
        folders = sorted(path.parent for path in data.glob("*/wav.scp"))
    for folder in folders:
        optional = [folder / name for name in KALDI_OPTIONAL]
        listing = [folder / "wav.scp", folder / "text", *filter(Path.exists, optional)]
        files += listing
        tables = {file.name: _kaldi_table(file) for file in listing}
        audio, texts = tables["wav.scp"], tables["text"]
        paths = {name: _kaldi_path(folder, *audio[name], outside) for name in audio}
        parts = tables.get("segments", {name: (name, where) for name, (_, where) in audio.items()})
        speakers = tables.get("utt2spk", {})
        people = {name.removeprefix("spk2"): own for name, own in tables.items() if "spk2" in name}
        split = SPLIT_NAMES.get(folder.name) if folder != data else None
        # an utterance that has a transcript only is told, too: its audio is missing
        for utt_id in sorted(parts.keys() | texts.keys()):
            text, text_where = texts.get(utt_id, ("", None))
            part, where = parts.get(utt_id, (utt_id, text_where))
            recording, *times = part.split()
            offset, duration = _kaldi_times(times, where) if times else (None, None)
            if utt_id in parts and recording not in paths:
                raise UserError(f"{where}: recording '{cut(recording)}' is not in wav.scp")
            row = {"utt_id": utt_id, "path": paths.get(recording, "")}  # "": nowhere
            row |= {"offset": offset, "duration": duration, "text": text, "split": split}
            row["speaker"] = speakers.get(utt_id, (None,))[0]
            row |= {name: own.get(row["speaker"], (None,))[0] for name, own in people.items()}
            yield row | {"where": where, "text_where": text_where}


def _kaldi_table(path: Path) -> dict[str, tuple[str, str]]:
    """``{first field: (rest of the line, file:line)}``."""
    table = {}
    for where, line in lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in table:
            first, second = cut_path(table[key][1], 90), cut_path(where, 90)
            raise UserError(f"{second}: '{cut(key)}' is taken by {first}: keep one of the two")
        if not rest and path.name != "text":  # an utterance may have no words
            raise UserError(f"{where}: '{cut(key)}' alone on its line: a second field is missing")
        table[key] = (rest[0] if rest else "", where)
    return table


def _kaldi_path(folder: Path, name: str, where: str, outside: bool) -> str:
    if name.endswith("|"):
        raise UserError(
            f"{where}: '{cut(name)}' is a command, and commands from files are never run: write "
            "its output to audio files and list their paths"
        )
    # not Path.exists, which raises of a name that is too long
    path = next(filter(os.path.exists, (folder / name, folder.parent / name)), folder / name)
    return _inside(path, folder.parent, where, outside)


def _kaldi_times(times: list[str], where: str) -> tuple[float, float]:
    try:
        start, end = map(float, times)
    except ValueError:
        start = end = math.nan
    if not 0 <= start < end:
        raise UserError(f"{where}: not 'utterance recording start end' in seconds, start < end")
    return start, end - start


LIBRISPEECH_SUBSETS = (
    "dev-clean dev-other test-clean test-other train-clean-100 train-clean-360 train-other-500"
).split()


def read_librispeech(data: Path, outside: bool, files: list) -> Iterator[dict]:
    """The official folders, ``<subset>/<speaker>/<chapter>/*.flac`` and ``*.trans.txt``.

    DATA holds ``LibriSpeech/``, or is it, or is one subset. Beside training subsets, ``dev-*`` is
    validation and ``test-*`` is test; without any, whatever is there is divided anew.

    (``torchaudio.datasets.LIBRISPEECH`` reads the same, one subset at a time; it opens a chapter's
    transcripts once an utterance and gives up at the first one that is missing.)
    """
    root = data / "LibriSpeech" if (data / "LibriSpeech").is_dir() else data
    subsets = [root / name for name in LIBRISPEECH_SUBSETS if (root / name).is_dir()] or [root]
    trained = any(subset.name.startswith("train") for subset in subsets)
    for subset in subsets:
        split = SPLIT_NAMES.get(subset.name.partition("-")[0]) if trained else None
        audio = {path.stem: path for path in sorted(subset.glob("*/*/*.flac"))}
        found = []
        for file in sorted(subset.glob("*/*/*.trans.txt")):
            files.append(file)
            for where, line in lines(file):
                utt_id, _, text = line.partition(" ")
                missing = file.parent / f"{utt_id}.flac"
                path = audio.pop(utt_id, None) or _inside(missing, data, where, outside)
                found.append((utt_id, path, text, where))
        # audio that no transcript file names
        found += [(utt_id, path, "", str(path)) for utt_id, path in audio.items()]
        for utt_id, path, text, where in found:
            *_, speaker, chapter, _ = ("", "", *Path(path).parts)  # a line may name any file
            row = {"utt_id": utt_id, "path": os.path.abspath(path), "text": text, "where": where}
            row |= {"speaker": speaker, "chapter": chapter}
            yield row | {"subset": subset.name, "split": split}


def read_speechcommands(data: Path, outside: bool, files: list) -> Iterator[dict]:
    """The official folders, ``<word>/<speaker>_nohash_<number>.wav``, and the official lists.

    DATA holds the words' folders, or torchaudio's ``SpeechCommands/speech_commands_v0.02``.
    ``validation_list.txt`` and ``testing_list.txt`` give validation and test; the rest is divided
    into base and pool by speaker.
    """
    nested = sorted((data / "SpeechCommands").glob("speech_commands_*"))
    root = nested[-1] if nested else data
    lists = {root / "validation_list.txt": "validation", root / "testing_list.txt": "test"}
    files += filter(Path.exists, lists)
    listed = {name: lists[path] for path in files for _, name in lines(path)}
    for path in sorted(root.glob("*/*_nohash_*.wav")):
        name = f"{path.parent.name}/{path.name}"
        row = {"utt_id": name.removesuffix(".wav"), "path": os.path.abspath(path)}
        row |= {"speaker": path.stem.partition("_nohash_")[0], "split": listed.get(name)}
        yield row | {"text": path.parent.name, "where": str(path)}


READERS = {
    "jsonl": read_jsonl,
    "kaldi": read_kaldi,
    "librispeech": read_librispeech,
    "speechcommands": read_speechcommands,
}
