"""Before the long work: what of a corpus can be used, in which split, and what cannot, and why.

One utterance that is no good is set aside with its reason (``rejected.csv``) and counted; what
spoils the run as a whole is one ``UserError``. Everything that could end a training in its third
hour is seen here in the first minutes: every audio file that the run will use is read once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from .config import CorpusConfig, ModelConfig, Settings, UserError
from .corpus import SPLITS, read_audio, write_manifest
from .features import input_frames
from .model import output_frames
from .readers import Found
from .store import write_csv
from .text import ENGLISH, Alphabet, learn_alphabet, normalise, write_alphabet

# why an utterance is set aside, and what to do about it
REASONS = {
    "no transcript": "write one, or take the utterance out of the corpus",
    "transcript outside the alphabet": "write words only (numbers and signs, too), or set build: "
    "{alphabet: learned} in the preset",
    "file missing": "put the file there, or take the utterance out of the list",
    "file not readable": "give yourself permission to read it (chmod)",
    "file empty": "copy the file again",
    "not audio": "convert it to WAV or FLAC",
    "audio truncated": "copy the file again, or correct the manifest's offset and duration",
    "audio has NaN": "export the recording anew, as 16-bit PCM",
    "audio silent": "every sample is the same: record it again",
    "too short": "see min_seconds under build in the preset",
    "too long": "cut it into utterances, or see max_seconds under build in the preset",
    "transcript longer than the audio": "check that text and audio belong together: CTC needs a "
    "frame a character",
}
FULL_SCALE = 0.999  # of a sample; from here on it counts as clipped
CLIPPED = 0.001  # share of such samples from which an utterance is called clipped
SLACK = 0.1  # seconds by which a manifest's duration may exceed the file's: it was rounded
REJECTED = ("utt_id", "path", "where", "reason", "detail", "what_to_do")
REPORTED = ("part", "what", "utterances", "example")
# the kinds of utterance that notebooks compare, and the seconds from which each begins
KINDS = {"under 2 s": 0, "2 to 5 s": 2, "5 to 10 s": 5, "10 s and more": 10}


# ---------------------------------------------------------------- one utterance's audio


class Unusable(Exception):
    """An utterance is no good: a reason of :data:`REASONS`, and what was seen."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def inspect_audio(path: str, offset: float, duration: float, build: CorpusConfig) -> dict:
    """Read an utterance's audio and look at every sample.

    ``offset`` and ``duration`` in seconds; NaN stands for the whole file. Returns the true
    ``offset`` and ``duration``, the number of samples ``N``, the ``rate`` in Hz and whether it is
    ``clipped``. Raises :class:`Unusable`.
    """
    file = _header(path)
    start = 0.0 if offset != offset else offset
    rest = file.duration - start
    if duration == duration and duration > rest + SLACK or rest <= 0:
        wanted = start if duration != duration else start + duration
        raise Unusable("audio truncated", f"{file.duration:.2f} s of {wanted:.2f} s are there")
    seconds = rest if duration != duration else min(duration, rest)
    if seconds < build.min_seconds:
        raise Unusable("too short", f"{seconds:.3g} s")
    if seconds > build.max_seconds:  # told by the header: ten minutes are not even decoded
        raise Unusable("too long", f"{seconds:.1f} s")
    try:
        samples, rate = read_audio(path, start, seconds)
    except UserError as error:
        raise Unusable("audio truncated", str(error).split(": ", 1)[-1].split(";")[0]) from None
    if len(samples) < round(seconds * rate):
        raise Unusable(
            "audio truncated", f"{len(samples) / rate:.2f} s of {seconds:.2f} s are there"
        )
    if not np.isfinite(samples).all():
        raise Unusable(
            "audio has NaN", f"{(~np.isfinite(samples)).sum()} of {len(samples)} samples"
        )
    if np.ptp(samples) == 0:
        raise Unusable("audio silent", f"every sample is {samples[0]:g}")
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE)) >= CLIPPED
    return {
        "offset": start, "duration": len(samples) / rate, "N": len(samples), "rate": rate,
        "clipped": clipped,
    }  # fmt: skip


def _header(path: str):
    """soundfile's description of a file. Raises :class:`Unusable` where it has none."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb"):
            pass  # soundfile would say "System error" of a file that may not be read
    except PermissionError as error:
        raise Unusable("file not readable", error.strerror) from None
    except OSError as error:
        raise Unusable("file missing", error.strerror) from None
    if size == 0:
        raise Unusable("file empty", "0 bytes")
    try:
        file = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise Unusable("not audio", str(error).split(": ", 1)[-1]) from None
    # libsndfile reads a WAV that was cut short without a word, but notes it: a header of a stream,
    # written before its length was known, promises 2 or 4 GiB and is no promise
    promise = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if promise and int(promise[2]) < int(promise[1]) < 0x7FFFF000:
        raise Unusable("audio truncated", f"{promise[2]} of {promise[1]} bytes are there")
    if file.frames == 0:
        raise Unusable("file empty", "no samples")
    return file


def _check_fit(labels: list[int], facts: dict, model: ModelConfig) -> None:
    """CTC needs a frame a symbol, and a blank between equal ones. Raises :class:`Unusable`."""
    samples = -(-facts["N"] * model.sample_rate // facts["rate"])
    frames = output_frames(model, input_frames(model, samples))
    needed = len(labels) + sum(a == b for a, b in zip(labels, labels[1:], strict=False))
    if needed > frames:
        detail = f"{needed} frames needed, {frames} there"
        raise Unusable("transcript longer than the audio", detail)


# ---------------------------------------------------------------- splits


def assign_splits(rows: pd.DataFrame, build: CorpusConfig) -> tuple[pd.Series, list[str]]:
    """The split of every row, and notes on how it came about.

    Splits that the corpus gives stay. The other rows are divided among the splits that are not
    given, in the proportions of ``build``: by speaker, none in two splits, where there are enough
    of them; else by utterance. Raises ``UserError`` where a split cannot have an utterance.
    """
    given = rows["split"]
    missing = [name for name in SPLITS if name not in set(given)]
    free = rows[given.isna()]
    if not missing:
        return given, []
    if len(free) < len(missing):
        raise UserError(
            f"{len(free)} usable utterances for {', '.join(missing)}: a corpus needs at least one "
            "for each of base, pool, validation and test; add recordings, or correct 'split'"
        )
    rng = np.random.default_rng([build.seed, 2])
    total = sum(getattr(build, name) for name in missing)
    shares = {name: getattr(build, name) / total for name in missing}
    notes, unit = [], free["speaker"].fillna("unknown")
    count = unit.nunique()
    if count < len(missing):
        told = "one speaker only" if count == 1 else f"{count} speakers only"
        if free["speaker"].isna().all():
            told = "the corpus does not tell its speakers"
        notes = [f"{told}: {', '.join(missing)} are divided by utterance, and share speakers"]
        unit = pd.Series(free.index, free.index)
    dealt = _deal(unit.value_counts().sort_index(), shares, rng)
    return given.where(given.notna(), unit.map(dealt)), notes


def _deal(units: pd.Series, shares: dict, rng: np.random.Generator) -> dict:
    """The split of every unit (a speaker with a number of utterances, or one utterance).

    The largest units first, each to the split that lacks most of its share; no split stays empty.
    """
    lacking = {name: share * units.sum() for name, share in shares.items()}
    order = units.iloc[rng.permutation(len(units))].sort_values(ascending=False, kind="stable")
    dealt, empty = {}, set(shares)
    for left, (unit, count) in zip(range(len(order), 0, -1), order.items(), strict=True):
        # the last ones are kept for splits that have none
        allowed = [name for name in shares if left > len(empty) or name in empty]
        name = max(allowed, key=lacking.get)
        dealt[unit] = name
        empty.discard(name)
        lacking[name] -= count
    return dealt


# ---------------------------------------------------------------- a corpus


def build(folder: Path, found: Found, settings: Settings, jobs: int, people: Path) -> None:
    """Fill a corpus folder: ``manifest.jsonl, alphabet.json, report.csv, rejected.csv``.

    The manifest points to the original files. A split is filled up to its size in
    ``settings.build`` by utterances drawn at random, those that prove unusable being replaced as
    long as there are others.

    Raises ``UserError`` where a split ends up empty or more than half of what was looked at is
    unusable; ``rejected.csv`` is in the folder ``people`` then.
    """
    log = _Log()
    try:
        manifest, alphabet = _select(found.rows.copy(), settings, jobs, log)
    except UserError as error:
        if log.rejected().empty:
            raise
        people.mkdir(parents=True, exist_ok=True)
        write_csv(people / "rejected.csv", log.rejected())
        raise UserError(f"{error}; all that is set aside: {people / 'rejected.csv'}") from None
    write_manifest(folder / "manifest.jsonl", manifest)
    write_alphabet(folder, alphabet)
    log.report().to_csv(folder / "report.csv", index=False)
    log.rejected().to_csv(folder / "rejected.csv", index=False)


def _select(rows, settings: Settings, jobs: int, log: _Log) -> tuple[pd.DataFrame, Alphabet]:
    """The manifest of what is used of a reader's rows, and the alphabet of its transcripts."""
    config, looked_at = settings.build, len(rows)
    texts = [normalise(text) for text in rows["text"]]
    _log_normalisation(log, rows["text"], texts)
    rows["text"] = [text for text, _ in texts]
    alphabet = ENGLISH
    if config.alphabet == "learned":
        alphabet = learn_alphabet(rows["text"])
    rows = _with_good_transcripts(rows, alphabet, log)
    log.give_up_if_most(looked_at)
    rows["split"], notes = assign_splits(rows, config)
    for note in notes:
        log.add("note", note)
    if rows["split"].isna().any():  # all four are given, but not to everybody
        log.add("note", "left out: no split given", int(rows["split"].isna().sum()))
        rows = rows[rows["split"].notna()]
    learnt = set(rows["speaker"][rows["split"].isin(["base", "pool"])].dropna())
    shared = set(rows["speaker"][rows["split"] == "test"].dropna()) & learnt
    if shared and not notes:
        log.add("note", f"{len(shared)} speakers of test are in base or pool, too, as given")
    manifest = _with_good_audio(rows, alphabet, settings, jobs, log)
    for split in SPLITS:
        if not (manifest["split"] == split).any():
            raise UserError(f"no usable utterance for {split}: mend some, or add recordings")
    return manifest, alphabet


class _Log:
    """What was set aside and what else a person should know, in the order in which it was seen."""

    def __init__(self):
        self._rejected, self._lines = [], []

    def reject(self, row, reason: str, detail: str = "", where: str | None = None) -> None:
        self._rejected.append(
            (row.utt_id, row.path, where or row.where, reason, detail, REASONS[reason])
        )

    def add(self, part: str, what: str, utterances: int | None = None, example: str = "") -> None:
        self._lines.append(
            {"part": part, "what": what, "utterances": utterances, "example": example}
        )

    def rejected(self) -> pd.DataFrame:
        return pd.DataFrame(self._rejected, columns=list(REJECTED))

    def report(self) -> pd.DataFrame:
        """A row a reason, warning, change of text and note: ``part, what, utterances, example``."""
        counts = Counter(reason for _, _, _, reason, _, _ in self._rejected)
        first = {reason: where for _, _, where, reason, _, _ in reversed(self._rejected)}
        lines = [
            {"part": "rejected", "what": reason, "utterances": n, "example": first[reason]}
            for reason, n in counts.most_common()
        ]
        table = pd.DataFrame(lines + self._lines, columns=list(REPORTED))
        return table.astype({"utterances": "Int64"})  # a note has no number

    def give_up_if_most(self, looked_at: int, before: int = 0) -> None:
        """Raise ``UserError`` where more than half of the utterances looked at are unusable.

        ``before`` were set aside already when the look began.
        """
        rejected = self.rejected()[before:]
        if 2 * len(rejected) <= looked_at:
            return
        reason, count = Counter(rejected["reason"]).most_common(1)[0]
        example = rejected[rejected["reason"] == reason].iloc[0]
        raise UserError(
            f"{len(rejected)} of {looked_at} utterances cannot be used, most often for '{reason}' "
            f"({count}; {example['where']}: {example['detail']}): {REASONS[reason]}"
        )


def _log_normalisation(log: _Log, before: pd.Series, texts: list) -> None:
    changed, example = Counter(), {}
    for old, (new, steps) in zip(before, texts, strict=True):
        changed.update(steps)
        for step in steps:
            example.setdefault(step, f"{_short(old)} → {_short(new)}")
    for step, count in changed.most_common():
        log.add("text", step, count, example[step])


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _with_good_transcripts(rows: pd.DataFrame, alphabet: Alphabet, log: _Log) -> pd.DataFrame:
    outside, good = Counter(), []
    for row in rows.itertuples():
        lacking = alphabet.lacks(row.text)
        good.append(bool(row.text) and not lacking)
        if not row.text:
            log.reject(row, "no transcript", where=row.text_where)
        elif lacking:
            outside.update(lacking)
            shown = " ".join(sorted(lacking))
            log.reject(row, "transcript outside the alphabet", shown, row.text_where)
    for character, count in outside.most_common(20):
        name = unicodedata.name(character, f"U+{ord(character):04X}")
        log.add("outside the alphabet", f"{character} ({name.lower()})", count)
    return rows[good].copy()


def _with_good_audio(rows, alphabet, settings: Settings, jobs: int, log: _Log) -> pd.DataFrame:
    """The manifest: each split filled, from its utterances in random order, with usable ones."""
    rng = np.random.default_rng([settings.build.seed, 3])
    sizes = {split: getattr(settings.build, split) for split in SPLITS}
    decks = {split: rows[rows["split"] == split] for split in SPLITS}
    decks = {split: deck.iloc[rng.permutation(len(deck))] for split, deck in decks.items()}
    goal = sum(min(sizes[split], len(deck)) for split, deck in decks.items())
    before, looked_at, kept, clipped = len(log.rejected()), 0, [], 0

    def check(row):
        try:
            facts = inspect_audio(row.path, row.offset, row.duration, settings.build)
            _check_fit(alphabet.encode(row.text), facts, settings.model)
        except Unusable as error:
            return error
        return facts

    # threads: libsndfile and numpy work outside Python's lock
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=goal, desc="check", unit="utt") as bar:
        for split in SPLITS:
            lacking, deck = sizes[split], decks[split]
            while lacking and len(deck):
                # a part at a time, so that an interruption does not wait for all of them
                size = min(lacking, 512)
                part, deck = deck.iloc[:size], deck.iloc[size:]
                looked_at += len(part)
                for row, seen in zip(
                    part.itertuples(), pool.map(check, part.itertuples()), strict=True
                ):
                    bar.update()
                    if isinstance(seen, Unusable):
                        log.reject(row, seen.reason, seen.detail)
                        continue
                    lacking -= 1
                    clipped += seen["clipped"]
                    kept.append({"Index": row.Index, **seen})
    log.give_up_if_most(looked_at, before)
    if clipped:
        log.add("warning", "clipped, kept", clipped)
    left = len(rows) - looked_at
    if left:
        log.add("note", "not needed: the splits are full", left)
    facts = pd.DataFrame(kept).set_index("Index").sort_index()
    manifest = rows.loc[facts.index].drop(columns=["where", "text_where"])
    manifest[["offset", "duration"]] = facts[["offset", "duration"]]
    manifest["speaker"] = manifest["speaker"].fillna("unknown")
    bounds = [*KINDS.values(), np.inf]
    by_length = pd.cut(manifest["duration"], bounds, right=False, labels=list(KINDS)).astype(object)
    manifest["kind"] = manifest["kind"].fillna(by_length) if "kind" in manifest else by_length
    return manifest


# ---------------------------------------------------------------- the report


def report(folder: Path, manifest: pd.DataFrame) -> pd.DataFrame:
    """What a corpus holds, a row a split, and what was set aside, changed and noticed."""
    rows = []
    for split in SPLITS:
        part = manifest[manifest["split"] == split]
        speakers = set(part["speaker"].dropna()) - {"unknown"}
        hours = f"{part['duration'].sum() / 3600:.3f}"
        rows.append(("split", split, len(part), hours, len(speakers), ""))
    if (Path(folder) / "report.csv").exists():
        for row in pd.read_csv(Path(folder) / "report.csv", dtype=str).fillna("").itertuples():
            rows.append((row.part, row.what, row.utterances, "", "", row.example))
    columns = ["part", "what", "utterances", "hours", "speakers", "example"]
    return pd.DataFrame(rows, columns=columns, dtype=object).set_index(["part", "what"])
