"""Labelled clips: what a task of ALOE (aloe.py) chooses from.

A table of clips has a row a clip: ``clip_id`` (unique), ``path``, ``offset`` and ``duration``
(seconds), ``split`` (pool, validation, test; None where the corpus does not say), ``speaker``, and
a column of labels for each task, NaN where a clip takes no part in it. Transcripts are not needed.

Labels are read from the corpora that corpus.py prepares and, of sounds, ESC-10 and VocalSound.
Clips that are no good are set aside as utterances are (validation.py).
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from ..workshop.config import CORPORA, EVEN, ROOT, Settings
from ..workshop.errors import UserError, cut, cut_path, one_of
from ..workshop.processes import cores
from ..workshop.steps import Step
from ..workshop.store import fingerprint, write_csv
from . import fsdd, readers, synthesis, validation
from .manifests import check_data, read_manifest
from .text import words

SPLITS = ("pool", "validation", "test")
SHARES = (0.6, 0.15, 0.25)  # of a task that is divided by us
KEYWORDS = 10  # the most frequent first words; the rest is "(other)", as in Speech Commands
COMMANDS = "yes no up down left right on off stop go".split()
KEYS = ("clip_id", "path", "offset", "duration", "split", "speaker")
SHOWN = ("text", "voice", "accent", "snr_db")  # of a clip that is played, where they are known
# columns of a list of your own (CORPUS=jsonl) that are tasks
LABELS = ("label", "keyword", "digit", "accent", "emotion", "language", "kind", "speaker")


@dataclass(frozen=True)
class Task:
    """A closed set of classes and the clips that have one of them: ``clips`` has the columns above
    and ``label``, the class's number; ``notes`` say in words what was done on the way."""

    name: str
    classes: tuple
    clips: pd.DataFrame
    notes: tuple = ()

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split's clips."""
        return np.flatnonzero(self.clips["split"] == split)

    @property
    def labels(self) -> np.ndarray:
        """The number [N] of every clip's class."""
        return self.clips["label"].to_numpy(dtype=np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Ten hex digits that stand for which clips there are, their labels and splits."""
        return fingerprint(self.clips[["clip_id", "label", "split"]].to_dict("list"))


def read_synthetic(settings: Settings) -> pd.DataFrame:
    """Accent, kind of voice and first word of utterances spoken for this purpose; in Mandarin the
    first character, and there is one accent only."""
    sizes = {name: getattr(settings.aloe, name) for name in SPLITS}
    build, scenario = replace(settings.build, base=0, **sizes), settings.drawn.content
    synthesis.check(settings.scenario, scenario, build.language)
    folder = Step(
        f"synthetic-{settings.scenario or EVEN}-clips",
        lambda folder: synthesis.build(folder, build, cores(), scenario),
        given={"build": build, "scenario": scenario}, place="data",
    ).folder()  # fmt: skip
    table = read_manifest(folder / "manifest.jsonl")
    speech = table["kind"] != "silence"
    files = synthesis.voice_files()
    kind = functools.cache(lambda name: voice_kind((files / name).read_text(errors="replace")))
    first = table["text"].map(words).str[0]
    known = first[table["split"] == "pool"].value_counts().index[:KEYWORDS]
    return table.assign(
        clip_id=table["utt_id"],
        accent=table["accent"].where(speech & (table["accent"].nunique() > 1)),
        voice_kind=table["voice"].map(kind).where(speech),
        keyword=first.where(first.isin(known), "(other)").where(speech, "(silence)"),
    )


def voice_kind(lines: str) -> str:
    """How a voice variant of espeak-ng sounds, by the parameters in its file."""
    found = re.findall(r"^(\w+)[ \t]+(.*?)\s*$", lines, flags=re.MULTILINE)
    first = {name: values.split() for name, values in found if values}
    number = lambda name, at=0: float(first[name][at]) if name in first else 0.0  # noqa: E731
    if number("breath") >= 50:
        return "whisper"  # breath louder than voice
    if "echo" in first and number("echo", 1) >= 500:
        return "robot"
    if "klatt" in first:
        return "formant"  # Klatt's formant synthesiser instead of recorded spectra
    if number("flutter") >= 12:
        return "croak"
    return "female" if first.get("gender", [""])[0] == "female" else "male"


def read_fsdd(settings: Settings) -> pd.DataFrame:
    """Which digit, which of six speakers: recordings 0-4 are the test, as is official."""
    table = fsdd.recordings(settings.data)
    table["split"] = pd.cut(table["index"], [-1, 4, 9, 999], labels=["test", "validation", "pool"])
    stems = [Path(path).stem for path in table["path"]]
    return table.assign(clip_id=stems, digit=table["digit"].astype(str))


def read_speechcommands(settings: Settings) -> pd.DataFrame:
    """All words, and the official twelve classes: ten commands, "(unknown)" and "(silence)"."""
    table = readers.read("speechcommands", settings.data).rows
    split = table["split"].fillna("pool")
    table = table.assign(clip_id=table["utt_id"], word=table["text"], split=split)
    other = ~table["word"].isin(COMMANDS)
    # of 25 other words as many clips as of one command
    kept = ~other | (np.cumsum(other) % max(1, table["word"].nunique() - 10) == 0)
    table["command"] = table["word"].where(~other, "(unknown)").where(kept)
    noise = []
    for path in sorted(Path(table["path"].iloc[0]).parents[1].glob("_background_noise_/*.wav")):
        try:
            seconds = int(validation.header(path).duration)
        except validation.Unusable:
            seconds = 1  # is looked at again, and set aside with its reason
        for at in range(seconds):  # one-second clips; no second is in two splits
            split = SPLITS[np.searchsorted(np.cumsum(SHARES), at / seconds, side="right")]
            noise.append({"clip_id": f"{path.stem}@{at}", "path": str(path), "offset": float(at),
                          "duration": 1.0, "split": split, "command": "(silence)"})  # fmt: skip
    return pd.concat([table, pd.DataFrame(noise)], ignore_index=True)


def read_utterances(settings: Settings) -> pd.DataFrame:
    """Any list of recordings with a column of labels, transcribed or not; else whose voice: there
    the corpus's own splits keep speakers apart, so clips are divided anew."""
    table = readers.read(settings.corpus, settings.data, settings.build.outside).rows
    split = table["split"].replace("base", "pool") if settings.corpus == "jsonl" else None
    return table.assign(clip_id=table["utt_id"], split=split)


def read_esc10(settings: Settings) -> pd.DataFrame:
    """Ten kinds of sounds; folds 1-3 are the pool, 4 validation, 5 test."""
    data = Path(settings.data)
    official, own = ("meta/esc50.csv", "filename", "category"), ("labels.csv", "path", "label")
    name, path, label = official if (data / official[0]).is_file() else own
    if not (data / name).is_file():
        raise UserError(
            f"{cut_path(data)}: neither {official[0]} nor {own[0]}: DATA is {CORPORA['esc10']}"
        )
    try:
        table = pd.read_csv(data / name)
    except ValueError as error:  # pandas' own errors are some, too
        raise UserError(
            f"{cut_path(data / name)}: not to be read as CSV ({cut(error)}): mend or convert it"
        ) from None
    for column in (path, label, "fold"):
        if column not in table:
            raise UserError(
                f"{cut_path(data / name)}: no column '{column}': DATA is {CORPORA['esc10']}"
            )
    folder = "audio" if name == official[0] else ""
    if "esc10" in table:
        table = table[table["esc10"].astype(str) == "True"]
    splits = {1: "pool", 2: "pool", 3: "pool", 4: "validation", 5: "test"}
    return table.assign(
        clip_id=[os.path.splitext(str(name))[0] for name in table[path]],
        path=[str(data / folder / str(name)) for name in table[path]],
        split=table["fold"].map(splits), sound=table[label],
    )  # fmt: skip


def read_vocalsound(settings: Settings) -> pd.DataFrame:
    """Six human sounds; ``meta/`` (or ``datafiles/``) says which speaker is in which split."""
    data = Path(settings.data)
    speaker_split = {}
    for name, split in {"tr": "pool", "val": "validation", "te": "test"}.items():
        meta, files = data / "meta" / f"{name}_meta.csv", data / "datafiles" / f"{name}.json"
        if meta.is_file():
            names = [line for _, line in readers.lines(meta)]
        elif files.is_file():
            names = _wavs(files)
        else:
            raise UserError(
                f"{cut_path(data)}: no meta/{meta.name} and no datafiles/{files.name}: "
                f"DATA is {CORPORA['vocalsound']}"
            )
        speaker_split |= {re.split("[,_]", name)[0]: split for name in names}
    paths = sorted(data.glob("audio_16k/*.wav"))
    names = pd.Series([path.stem for path in paths], dtype=str)
    table = names.str.extract(r"^(?P<speaker>[fm]\d+)_\d+_(?P<sound>[a-z]+)\Z")
    for at in np.flatnonzero(table["sound"].isna()):
        raise UserError(f"{cut_path(paths[at])}: not named speaker_number_sound.wav: take it out")
    split = table["speaker"].map(speaker_split)
    table = table.assign(clip_id=names, path=[*map(str, paths)], split=split).dropna()
    if table.empty:
        raise UserError(
            f"no recording in {cut_path(data / 'audio_16k')}: DATA is {CORPORA['vocalsound']}"
        )
    return table


def _wavs(file: Path) -> list[str]:
    """The names of the recordings in one of VocalSound's lists."""
    try:
        return [Path(item["wav"]).name for item in json.loads(file.read_bytes())["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f'{cut_path(file)}: not JSON as {{"data": [{{"wav": …}}, …]}}: use the official one'
        ) from None


# corpus: (reader, the columns that are tasks)
READERS = {
    "synthetic": (read_synthetic, ("accent", "voice_kind", "keyword")),
    "fsdd": (read_fsdd, ("speaker", "digit")),
    "speechcommands": (read_speechcommands, ("command", "word")),
    "jsonl": (read_utterances, LABELS),
    "kaldi": (read_utterances, ("speaker",)),
    "librispeech": (read_utterances, ("speaker",)),
    "esc10": (read_esc10, ("sound",)),
    "vocalsound": (read_vocalsound, ("sound",)),
}


@functools.lru_cache(maxsize=4)
def read(settings: Settings) -> tuple[pd.DataFrame, tuple]:
    """(table of clips, names of its tasks); a split with more clips than the preset has is sampled,
    and of these those that are :func:`rejected` are left out. Raises ``UserError`` where there is
    nothing to read, no column of labels, or more than half of the clips are no good."""
    table, tasks = _listed(settings)
    bad = _rejected(settings, table)
    return table[~table["clip_id"].isin(bad["utt_id"])].reset_index(drop=True), tasks


def _listed(settings: Settings) -> tuple[pd.DataFrame, tuple]:
    reader, columns = READERS[settings.corpus]
    if settings.corpus != "synthetic":
        check_data(settings.corpus, settings.data)
    table = reader(settings)
    tasks = tuple(name for name in columns if name in table and table[name].notna().any())
    if settings.corpus == "jsonl" and "label" in tasks:
        tasks = ("label",)
    if not tasks:
        raise UserError(
            f"{cut_path(settings.data)}: no label: give the clips one of {', '.join(columns)}"
        )
    for name in settings.aloe.tasks:
        one_of(f"{settings.corpus} task (aloe: tasks in {settings.preset}.yaml)", name, tasks)
    tasks = settings.aloe.tasks or tasks
    known = [name for name in SHOWN if name in table]
    # keys that the corpus does not know are NaN
    table = table.reindex(columns=list(dict.fromkeys([*KEYS, *tasks, *known])))
    table = table[table[list(tasks)].notna().any(axis=1)]
    return _sampled(table, settings.aloe).reset_index(drop=True), tasks


def _rejected(settings: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """Those of the clips that are no good, looked at once: a row of ``rejected.csv`` each."""
    if settings.corpus == "synthetic":  # we spoke it
        return pd.DataFrame(columns=validation.REJECTED)
    build, files = settings.build, readers.states(list(table["path"].unique()))
    known = table[["clip_id", "offset", "duration"]].astype(str).to_dict("list")
    known["files"] = [files[path] for path in table["path"]]
    folder = Step(
        f"{settings.corpus}-clips", resume=False, place="data",
        compute=lambda folder: validation.check_clips(folder, table, build, cores()),
        given={"clips": fingerprint(known), "seconds": [build.min_seconds, build.max_seconds]},
    ).folder()  # fmt: skip
    bad = pd.read_csv(folder / "rejected.csv", dtype=str, keep_default_na=False)
    if 2 * len(bad) > len(table):
        raise UserError(
            f"{len(bad)} of {len(table)} clips cannot be used, most often for "
            f"'{bad['reason'].mode()[0]}'; {_for_people(settings, bad)}"
        )
    return bad


def _for_people(settings: Settings, bad: pd.DataFrame) -> str:
    path = ROOT / "build" / settings.run / "rejected_clips.csv"
    path.unlink(missing_ok=True)  # what an earlier look found
    if len(bad):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, bad)
    return f"see {path.relative_to(ROOT)}"


def set_aside(settings: Settings) -> tuple[str, ...]:
    """A line on how many clips are set aside and why, if any are; which ones,
    ``build/<run>/rejected_clips.csv`` says."""
    bad = _rejected(settings, _listed(settings)[0])
    where, reasons = _for_people(settings, bad), bad["reason"].value_counts()
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
    return (f"{len(bad)} clips are set aside: {told}: {where}",) if len(bad) else ()


def _sampled(table: pd.DataFrame, config) -> pd.DataFrame:
    """At most as many clips of each split as the configuration says, the same every time."""
    rng, kept = np.random.default_rng(0), []
    sizes = {name: getattr(config, name) for name in SPLITS}
    table = table.assign(split=table["split"].astype(object).where(table["split"].notna(), None))
    for split, part in table.groupby("split", dropna=False, sort=False):
        size = sizes.get(split, sum(sizes.values()))
        kept += list(part.index[np.sort(rng.permutation(len(part))[:size])])
    return table.loc[sorted(kept)]


def tasks(settings: Settings) -> dict[str, Task]:
    """The corpus's tasks, or those that the preset names; see :func:`task`."""
    return {name: task(settings, name) for name in read(settings)[1]}


@functools.lru_cache(maxsize=16)
def task(settings: Settings, name: str) -> Task:
    """A task of the corpus, divided into pool, validation and test.

    The corpus's own splits serve where each holds every class; else clips are divided anew, by
    speaker if that leaves every class in every split, else by clip. Raises ``UserError`` where
    there is one class only, or a class has too few clips to begin with.
    """
    table, _ = read(settings)
    clips = table[table[name].notna()].reset_index(drop=True)
    return divided(name, clips.assign(label=clips[name].astype(str)), settings.aloe.seed_clips)


def divided(name: str, clips: pd.DataFrame, seed_clips: int) -> Task:
    """A task from clips whose ``label`` is a class's name; see :func:`task`."""
    counts = clips["label"].value_counts()
    if len(counts) < 2:
        raise UserError(
            f"task {name}: one class only ('{cut(', '.join(counts.index))}'): two are needed"
        )
    rarest, least = counts.index[-1], counts.iloc[-1]
    if least < seed_clips + 2:
        raise UserError(
            f"task {name}: class '{cut(rarest)}' has {least} clips: {seed_clips} are needed to "
            "start from, one for validation and one for the test; add some, or leave the class out"
        )
    classes = tuple(sorted(counts.index))
    number = clips["label"].map({name: i for i, name in enumerate(classes)})
    by_clip = "divided by clip, for want of speakers that could be kept apart"
    ways = {"": clips["split"].to_numpy(), "divided by speaker": _by_speaker(clips)}
    for note, split in {**ways, by_clip: _by_clip(number, seed_clips)}.items():
        if _complete(number, split, seed_clips):
            notes = (f"task {name}: {note}",) if note else ()
            return Task(name, classes, clips.assign(label=number, split=split), notes)
    raise UserError(f"task {name}: its clips cannot be divided: add clips of '{cut(rarest)}'")


def _complete(labels: pd.Series, split: np.ndarray, seed_clips: int) -> bool:
    """Does every split hold every class, the pool enough to start from?"""
    table = pd.crosstab(labels.to_numpy(), split).reindex(columns=list(SPLITS), fill_value=0)
    least = table.reindex(sorted(set(labels)), fill_value=0).min()
    return bool(least["pool"] >= seed_clips and least["validation"] and least["test"])


def _by_speaker(clips: pd.DataFrame) -> np.ndarray:
    """Splits in which no speaker is twice; a clip of nobody known is a speaker of its own."""
    speaker = clips["speaker"].where(clips["speaker"].notna(), clips["clip_id"])
    sizes = speaker.value_counts().sort_index()
    sizes = sizes.iloc[np.random.default_rng(0).permutation(len(sizes))]
    middle = (sizes.cumsum() - sizes / 2) / sizes.sum()
    where = np.searchsorted(np.cumsum(SHARES)[:-1], middle, side="right")
    return speaker.map(dict(zip(sizes.index, np.array(SPLITS)[where], strict=True))).to_numpy()


def _by_clip(labels: pd.Series, seed_clips: int) -> np.ndarray:
    """Splits with every class's clips in the same proportions."""
    rng, split = np.random.default_rng(0), np.full(len(labels), "pool", dtype=object)
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        spare = len(rows) - seed_clips
        ends = [min(max(1, round(share * len(rows))), spare // 2) for share in SHARES[1:]]
        split[rows[: ends[0]]] = "validation"
        split[rows[ends[0] : sum(ends)]] = "test"
    return split


def playable(clips: pd.DataFrame) -> pd.DataFrame:
    """The clips with the offset and duration that players.players needs."""
    seconds = clips["duration"].astype(float)
    whole = seconds.isna()
    seconds[whole] = [soundfile.info(path).duration for path in clips.loc[whole, "path"]]
    return clips.assign(offset=clips["offset"].astype(float).fillna(0.0), duration=seconds)
