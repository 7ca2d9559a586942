"""Transcripts that come back from those who were asked, and where they are kept.

    make learn TRANSCRIPTS=file

A file is an export of Label Studio (.json), JSON lines with ``utt_id`` (or ``audio_filepath``) and
``text`` (null where somebody has skipped it), or a table (.csv, .tsv) with ``utt_id`` (or
``file_name``) and ``text`` (or ``transcription``; empty where nothing is typed yet). All of it is
taken, or nothing. They are kept in ``data/transcripts``, apart from the recordings and from what
``make clean`` removes: somebody has typed them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..workshop.config import ROOT, Settings
from ..workshop.errors import UserError, cut, cut_path
from ..workshop.store import fingerprint, write_bytes
from .readers import Found, lines

KEYS, TEXTS = ("utt_id", "audio_filepath", "file_name"), ("text", "transcription")


def kept(settings: Settings) -> Path:
    """The file in which a corpus's new transcripts are kept, whatever the preset."""
    where = os.path.realpath(settings.data)
    name = f"{settings.corpus}-{Path(where).stem}-{fingerprint(where)}.jsonl"
    return ROOT / "data" / "transcripts" / name


def typed(settings: Settings) -> dict[str, str]:
    """The transcripts that were brought back so far, by ``utt_id``."""
    path = kept(settings)
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {record["utt_id"]: record["text"] for record in records}


def pending(settings: Settings) -> Path:
    """The file of what is being typed for a corpus in a notebook, until it is learned from."""
    return kept(settings).with_suffix(".answers.jsonl")


def overlaid(found: Found, settings: Settings) -> Found:
    """A corpus with what was brought back for it: a column ``typed`` says which these are."""
    new = typed(settings)
    rows = found.rows.assign(typed=found.rows["utt_id"].isin(new))
    rows["text"] = rows["text"].where(~rows["typed"], rows["utt_id"].map(new))
    return replace(found, rows=rows)


def bring(settings: Settings, file: str, rows: pd.DataFrame) -> tuple[int, int]:
    """Keep what a file says of a corpus's ``rows``: (new transcripts, all that are kept).

    Raises ``UserError``, and keeps nothing, for a file that cannot be read, an utterance that there
    is none of, one with two texts, an empty text, and where there is nothing new to keep.
    """
    if not Path(file).is_file():
        raise UserError(f"{cut_path(file)}: No such file: give the list of make query, filled in")
    known, before = set(rows["utt_id"]), typed(settings)
    # a file's name will do where it is one utterance's alone
    files = rows.set_index(rows["path"].map(os.path.basename))["utt_id"]
    by_file, found = files[~files.index.duplicated(keep=False)].to_dict(), {}
    for where, key, text in _read(Path(file)):
        utt_id = key if key in known else by_file.get(os.path.basename(key))
        if utt_id is None:
            raise UserError(f"{where}: no utterance '{cut(key)}' in this corpus: correct its id")
        if not text.strip():
            raise UserError(f"{where}: '{cut(utt_id)}' has an empty text: write what is said, or "
                            "[unintelligible]")  # fmt: skip
        if found.get(utt_id, text) != text:
            raise UserError(f"{where}: '{cut(utt_id)}' has two texts, '{cut(found[utt_id])}' and "
                            f"'{cut(text)}': keep one")  # fmt: skip
        found[utt_id] = text
    if not found:
        raise UserError(f"{cut_path(file)}: no transcript in it: was anything written and saved?")
    both = before | found
    listed = [json.dumps({"utt_id": x, "text": both[x]}, ensure_ascii=False) for x in sorted(both)]
    path = kept(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{line}\n" for line in listed).encode())
    return len(both) - len(before), len(both)


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where, key, text) of every transcript of a file."""
    if path.suffix == ".json":
        yield from _label_studio(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from _table(path)
    elif path.suffix == ".jsonl":
        for where, line in lines(path):
            record = _json(line, where)
            if not _skipped(record):
                yield where, *_pair(record, where)
    else:
        raise UserError(f"{cut_path(path)}: no transcripts are read from {path.suffix or 'such'} "
                        "files: give .jsonl, .csv, .tsv, or Label Studio's .json")  # fmt: skip


def _skipped(record) -> bool:
    return isinstance(record, dict) and "text" in record and record["text"] is None


def _pair(record, where: str) -> tuple[str, str]:
    values = record if isinstance(record, dict) else {}
    key, text = (next((values[x] for x in some if values.get(x) is not None), None)
                 for some in (KEYS, TEXTS))  # fmt: skip
    if not isinstance(key, str) or not isinstance(text, str):
        raise UserError(f"{where}: no {' or '.join(KEYS)}, or no {' or '.join(TEXTS)}: every "
                        "transcript needs both")  # fmt: skip
    return key, text


def _json(text: str, where: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        told = getattr(error, "msg", "nested too deeply")
        raise UserError(f"{where}: broken JSON ({told}): export it again") from None


def _table(path: Path) -> Iterator[tuple[str, str, str]]:
    csv.field_size_limit(2**31 - 1)  # Label Studio's tables hold the audio, too
    content = "\n".join(line for _, line in lines(path))
    rows = csv.DictReader(content.split("\n"), delimiter="," if path.suffix == ".csv" else "\t",
                          strict=True)  # fmt: skip
    try:
        for row in rows:
            if "" in (texts := [row[x] for x in TEXTS if x in row]) and not any(texts):
                continue  # nothing typed there yet
            where = f"{cut_path(path)}:{rows.line_num}"
            yield where, *_pair(row, where)
    except csv.Error as error:
        where = f"{cut_path(path)}:{rows.line_num + 1}"
        raise UserError(f"{where}: {error}: export it again") from None


def _label_studio(path: Path) -> Iterator[tuple[str, str, str]]:
    """Tasks of Label Studio's exports "JSON" (the last annotation that was not cancelled; a task
    without one says nothing) and "JSON-MIN"."""
    tasks = _json("\n".join(line for _, line in lines(path)), cut_path(path))
    for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], start=1):
        where = f"{cut_path(path)}: task {number}"
        if isinstance(task, dict) and "transcription" in task:
            yield where, *_pair(task, where)
            continue
        try:
            key = task["data"]["utt_id"]
            done = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
            texts = [
                result["value"]["text"] for one in done[-1:] for result in one["result"]
                if "text" in result.get("value", {})
            ]  # fmt: skip
            texts = [text[-1] if isinstance(text, list) else text for text in texts]
            if not all(isinstance(x, str) for x in (key, *texts)):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{where}: not as Label Studio exports it (data: utt_id, annotations: result): "
                "choose its format JSON"
            ) from None
        for text in texts:
            yield where, key, text
