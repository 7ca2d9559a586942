"""Before the long work: what of a corpus can be used, in which split, and what cannot, and why.

One utterance that is no good is set aside with its reason (``rejected.csv``) and counted; what
spoils the run as a whole is one ``UserError``. Everything that could end a training in its third
hour is seen here in the first minutes: every audio file that the run will use is read once.

What is not queried is not read: no transcript of the pool decides about splits, alphabet or
candidates, or is told in the report; ``Corpus.usable`` looks at it once it has been queried. The
test set is not chosen by what the model can write, either: what it cannot counts as errors.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from ..workshop.config import ROOT, CorpusConfig, ModelConfig, Scenario, Settings
from ..workshop.errors import UserError, cut, cut_path
from ..workshop.store import write_csv
from .features import input_frames, output_frames
from .manifests import SAMPLE_RATE, SPLITS, read_audio, write_manifest
from .readers import Found
from .text import ENGLISH, can_be_said, learn_alphabet, normalise, write_alphabet

# why an utterance is set aside, and what to do about it
REASONS = {
    "no transcript": "write one (make query says which are worth it), or take the utterance out",
    "transcript outside the alphabet": "write words only (numbers and signs, too), or set build: "
    "{alphabet: learned} in the preset",
    "file missing": "put the file there, or take the utterance out of the list",
    "file not readable": "give yourself permission to read it (chmod), or it a name in UTF-8",
    "file empty": "copy the file again",
    "not audio": "convert it to WAV or FLAC",
    "audio truncated": "copy the file again, or correct the manifest's offset and duration",
    "audio has NaN": "export the recording anew, as 16-bit PCM",
    "audio silent": "every sample is the same: record it again",
    "odd sample rate": "convert it to 16000 Hz, or whatever is usual",
    "too short": "see min_seconds under build in the preset",
    "too long": "cut it into utterances, or see max_seconds under build in the preset",
    "transcript longer than the audio": "check that text and audio belong together: CTC needs a "
    "frame a character",
}
FULL_SCALE = 0.999  # of a sample; from here on it counts as clipped
CLIPPED = 0.001  # share of such samples from which an utterance is called clipped
LARGEST_FILTER = 2e7  # numbers: 12,345 Hz need 8 million, 44,101 Hz need 700
SLACK = 0.1  # seconds by which a manifest's duration may exceed the file's: it was rounded
READ = ("base", "validation")  # splits whose transcripts decide what is learned, and written
REJECTED = ("utt_id", "path", "where", "reason", "detail", "what_to_do")
REPORTED = ("part", "what", "utterances", "example")
# the kinds of utterance that notebooks compare, and the seconds from which each begins
KINDS = {"under 2 s": 0, "2 to 5 s": 2, "5 to 10 s": 5, "10 s and more": 10}


class Unusable(Exception):
    """An utterance is no good; its ``args``: a reason of :data:`REASONS`, and what was seen."""


def inspect_audio(path: str, offset: float, duration: float, build: CorpusConfig) -> dict:
    """Read an utterance's audio and look at every sample.

    ``offset`` and ``duration`` in seconds; NaN stands for the whole file. Returns the true
    ``offset`` and ``duration``, the number of samples ``N``, the ``rate`` in Hz and whether it is
    ``clipped``. Raises :class:`Unusable`.
    """
    whole, start = header(path).duration, 0.0 if math.isnan(offset) else offset
    rest, wanted = whole - start, 0.0 if math.isnan(duration) else duration
    if wanted > rest + SLACK or rest <= 0:
        raise Unusable("audio truncated", f"{whole:.2f} s of {start + wanted:.2f} s are there")
    seconds = rest if math.isnan(duration) else min(duration, rest)
    if seconds < build.min_seconds:
        raise Unusable("too short", f"{seconds:.3g} s")
    if seconds > build.max_seconds:  # told by the header: ten minutes are not even decoded
        raise Unusable("too long", f"{seconds:.1f} s")
    try:
        samples, rate = read_audio(path, start, seconds)
    except UserError as error:
        told = str(error).split("cannot be read: ")[-1].split(";")[0]
        raise Unusable("audio truncated", told) from None
    # torchaudio keeps a filter for each of the ways in which the samples of two rates can lie
    if SAMPLE_RATE * rate / math.gcd(SAMPLE_RATE, rate) ** 2 > LARGEST_FILTER:
        raise Unusable("odd sample rate", f"{rate} Hz")
    there, broken = len(samples) / rate, np.sum(~np.isfinite(samples))
    if len(samples) < max(1, round(seconds * rate)):
        raise Unusable("audio truncated", f"{there:.2f} s of {seconds:.2f} s are there")
    if broken:
        raise Unusable("audio has NaN", f"{broken} of {len(samples)} samples")
    if np.ptp(samples) == 0:
        raise Unusable("audio silent", f"every sample is {samples[0]:g}")
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE)) >= CLIPPED
    facts = {"offset": start, "duration": there, "N": len(samples), "rate": rate}
    return {**facts, "clipped": clipped}


def header(path: str):
    """soundfile's description of a file. Raises :class:`Unusable` where it has none."""
    try:
        with open(path, "rb") as file:  # soundfile says "System error" of one it may not read
            empty = not file.read(1)
    except OSError as error:
        denied = isinstance(error, PermissionError)
        raise Unusable("file not readable" if denied else "file missing", error.strerror) from None
    if empty:
        raise Unusable("file empty", "0 bytes")
    try:
        file = soundfile.info(path)
    except UnicodeEncodeError:  # libsndfile opens files by names that are UTF-8
        raise Unusable("file not readable", "its name is not UTF-8") from None
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: of a .raw file
        raise Unusable("not audio", getattr(error, "error_string", str(error))) from None
    # libsndfile reads a WAV that was cut short without a word, but notes it: a header of a stream,
    # written before its length was known, promises 2 or 4 GiB and is no promise
    promise = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if promise and int(promise[2]) < int(promise[1]) < 0x7FFFF000:
        raise Unusable("audio truncated", f"{promise[2]} of {promise[1]} bytes are there")
    if file.frames == 0:
        raise Unusable("file empty", "no samples")
    return file


def _misfit(text: str, facts: dict, model: ModelConfig) -> str:
    """What a transcript lacks in frames ("" if nothing): CTC needs one a symbol, and a blank
    between equal ones."""
    samples = -(-facts["N"] * model.sample_rate // facts["rate"])
    there = output_frames(model, input_frames(model, samples))
    needed = len(text) + sum(a == b for a, b in zip(text, text[1:], strict=False))
    return f"{needed} frames needed, {there} there" if needed > there else ""


def grouped(rows: pd.DataFrame, scenario: Scenario) -> pd.DataFrame:
    """The rows of the scenario's groups, their names in its column ``group``; all rows where it has
    none. Raises ``UserError`` for a group without a row."""
    if not scenario.column:
        return rows
    values, names = rows[scenario.column], pd.Series(None, rows.index, dtype=object)
    for name, wanted in scenario.groups:
        if isinstance(wanted[0], str):
            found = values.astype(str).isin(wanted)
        else:  # from, to
            found = pd.to_numeric(values, errors="coerce").between(*wanted)
        if not found.any():
            raise UserError(f"no utterance whose {cut(scenario.column)} is that of the scenario's "
                            f"group {cut(name)}: correct its groups")  # fmt: skip
        names[found] = name
    return rows.assign(**{scenario.group: names})[names.notna()]


def assign_splits(
    rows: pd.DataFrame, build: CorpusConfig, scenario: Scenario | None = None, names=SPLITS
) -> tuple[pd.Series, list[str]]:
    """The split of every row, and notes on how it came about.

    Splits that the corpus gives stay. The other rows are divided among the splits that are not
    given, in the proportions of ``build``, each group of the ``scenario`` as its splits want it: by
    speaker, none in two splits, where there are enough of them; else by utterance. Raises
    ``UserError`` where a split cannot have an utterance.
    """
    given = rows["split"]
    missing = [name for name in names if name not in set(given)]
    free = rows[given.isna()]
    if not missing:
        return given, []
    if len(free) < len(missing):
        raise UserError(
            f"{len(free)} usable utterances for {', '.join(missing)}: a corpus needs at least one "
            "for each of base, pool, validation and test; add recordings, or correct 'split'"
        )
    rng = np.random.default_rng([build.seed, 2])
    notes, unit, lots = [], free["speaker"].fillna("unknown"), _lots(free, build, scenario, missing)
    count = min(unit[part].nunique() for part, _ in lots)
    if count < len(missing):
        told = "one speaker only" if count == 1 else f"{count} speakers only"
        if free["speaker"].isna().all():
            told = "the corpus does not tell its speakers"
        notes = [f"{told}: {', '.join(missing)} are divided by utterance, and share speakers"]
        unit = pd.Series(free.index, free.index)
    dealt = {}
    for part, shares in lots:
        new = unit[part][~unit[part].isin(dealt)]  # of people who are in two groups, the first
        if len(new):
            dealt |= _deal(new.value_counts().sort_index(), shares, rng)
    return given.where(given.notna(), unit.map(dealt)), notes


def splits_around(
    rows: pd.DataFrame, build: CorpusConfig, enough: int
) -> tuple[pd.Series, list[str]]:
    """The split of every row where the pool is what has no transcript, and notes.

    What was ``typed`` for us is base; of the transcripts that the corpus has itself those without a
    split, or of the pool, are divided by :func:`assign_splits`, however many are typed later. Where
    these are fewer than ``enough``, they are base, and some of what is typed is held out for
    validation and test, by a hash of its id, so that what is held out stays so.

    """
    silent, typed = rows["text"].str.strip() == "", rows["typed"]
    split = rows["split"].where(rows["split"] != "pool", None)
    split[silent] = "pool"
    own = rows.assign(split=split)[~silent & ~typed]
    if len(own) >= enough:
        divided, notes = assign_splits(own, build, names=[x for x in SPLITS if x != "pool"])
        split[own.index], split[typed] = divided, "base"
        return split, notes
    split[typed] = [_held_out(utt_id) for utt_id in rows.loc[typed, "utt_id"]]
    note = f"{len(own)} transcripts of the corpus's own: some of what is typed is held out"
    return split.fillna("base"), [note]


def _held_out(utt_id: str) -> str:
    place = zlib.crc32(utt_id.encode()) % 100
    return "validation" if place < 10 else "test" if place < 30 else "base"


def _lots(rows: pd.DataFrame, build: CorpusConfig, scenario: Scenario | None, names) -> list[tuple]:
    """What is dealt by itself: (index of its rows, the share that each split is to have of it)."""
    sizes = {name: getattr(build, name) for name in names}
    if "test" in sizes:  # of the embedded corpus it may be larger: there it costs nothing
        sizes["test"] = min(sizes["test"], max(1, (build.base + build.pool) // 3))
    lots = {"": (rows.index, sizes)}
    if scenario and scenario.column:
        lots = {}
        for group, part in rows.groupby(scenario.group, sort=False):
            wanted = {x: dict(scenario.draw(x).groups) or {group: 1.0} for x in names}
            parts = {x: own.get(group, 0) / sum(own.values()) for x, own in wanted.items()}
            lots[group] = part.index, {x: sizes[x] * parts[x] for x in names if parts[x]}
    return [
        (index, {name: size / sum(sizes.values()) for name, size in sizes.items()})
        for index, sizes in lots.values()
        if sizes
    ]


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


def build(folder: Path, found: Found, settings: Settings, jobs: int, people: Path) -> None:
    """Fill a corpus folder: ``manifest.jsonl, alphabet.json, report.csv, rejected.csv``.

    The manifest points to the original files. A split is filled up to its size in
    ``settings.build`` by utterances drawn at random, those that prove unusable being replaced as
    long as there are others.

    Raises ``UserError`` where a split ends up empty or more than half of what was looked at is
    unusable; ``rejected.csv`` is in the folder ``people`` then.
    """
    rejected, told = [], []  # rows of REJECTED and REPORTED, in the order in which it was seen
    try:
        manifest, alphabet = _select(found.rows.copy(), settings, jobs, rejected, told)
    except UserError as error:
        if not rejected:
            raise
        raise UserError(f"{error}; {_list_for(people, rejected)}") from None
    write_manifest(folder / "manifest.jsonl", manifest)
    write_alphabet(folder, alphabet)
    seen = [(reason, cut_path(where, 120)) for _, _, where, reason, *_ in rejected]
    reasons = _tally("rejected", seen)
    table = pd.DataFrame(reasons + told, columns=REPORTED)
    table["utterances"] = table["utterances"].astype("Int64")  # a note has no number
    write_csv(folder / "report.csv", table)
    write_csv(folder / "rejected.csv", pd.DataFrame(rejected, columns=REJECTED))


def check_clips(folder: Path, clips: pd.DataFrame, build: CorpusConfig, jobs: int) -> None:
    """Look at every clip (``clip_id, path, offset, duration``) of a table: those that are no good
    go to ``folder/rejected.csv``."""
    rejected = []

    def check(row):
        try:
            inspect_audio(row.path, row.offset, row.duration, build)
        except Unusable as error:
            return error

    clips = clips.astype({"offset": float, "duration": float})
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(clips), desc="check", unit="clip") as bar:
        rows = clips.itertuples()
        while part := list(islice(rows, 512)):
            for row, error in zip(part, pool.map(check, part), strict=True):
                bar.update()
                if error:
                    reason, detail = error.args
                    advice = REASONS[reason]
                    rejected.append((row.clip_id, row.path, row.path, reason, detail, advice))
    write_csv(folder / "rejected.csv", pd.DataFrame(rejected, columns=REJECTED))


def _list_for(people: Path, rejected: list[tuple]) -> str:
    """Write ``people/rejected.csv`` and say where it is."""
    people.mkdir(parents=True, exist_ok=True)
    write_csv(people / "rejected.csv", pd.DataFrame(rejected, columns=REJECTED))
    shown = people.relative_to(ROOT) if people.is_relative_to(ROOT) else people
    return f"all that is set aside: {shown / 'rejected.csv'}"


def _set_aside(rejected: list[tuple], more: list[tuple], looked_at: int) -> None:
    """Add to ``rejected``; ``UserError`` where it is more than half of what was looked at."""
    rejected += [(*row, REASONS[row[3]]) for row in more]
    if 2 * len(more) > looked_at:
        names = [(reason, f"{Path(where).name}: {detail}") for _, _, where, reason, detail in more]
        _, reason, count, example = _tally("rejected", names)[0]
        raise UserError(
            f"{len(more)} of {looked_at} utterances cannot be used, most often for '{reason}' "
            f"({count}; {cut(example.rstrip(': '))}): {REASONS[reason]}"
        )


def _tally(part: str, seen: list[tuple[str, str]], most: int | None = None) -> list[tuple]:
    """Rows of REPORTED from pairs of what was seen and an example, the most frequent first."""
    first, counts = dict(reversed(seen)), Counter(what for what, _ in seen)
    return [(part, what, count, first[what]) for what, count in counts.most_common(most)]


def _select(rows, settings: Settings, jobs: int, rejected: list, told: list) -> tuple:
    """The manifest of what is used of a reader's rows, and its alphabet."""
    config, scenario = settings.built, settings.drawn
    silent = rows["text"].str.strip() == ""
    if settings.unlabelled:  # what has none is what may be asked for, unless it is to be tested on
        silent &= rows["split"].isin(["validation", "test"])
    # nobody to ask, neither now nor after a query
    none = dict.fromkeys(rows.index[silent], "")
    rows = _without(rows, none, "no transcript", len(rows), rejected)
    every, rows = len(rows), grouped(rows, scenario)
    if len(rows) < every:
        told.append(("note", "left out: of no group of the scenario", every - len(rows), ""))
    if settings.unlabelled:
        rows["split"], notes = splits_around(rows, config, settings.query.enough)
    else:
        rows["split"], notes = assign_splits(rows, config, scenario)
    if rows["split"].isna().any():  # all four are given, but not to everybody
        told.append(("note", "left out: no split given", int(rows["split"].isna().sum()), ""))
        rows = rows[rows["split"].notna()]
    rows = _with_good_transcripts(rows, config, rejected, told)
    learnt = set(rows["speaker"][rows["split"].isin(["base", "pool"])].dropna())
    shared = set(rows["speaker"][rows["split"] == "test"].dropna()) & learnt
    if shared and not notes:
        notes = [f"{len(shared)} speakers of test are in base or pool, too, as given"]
    told += [("note", note, None, "") for note in notes]
    manifest = _with_good_audio(rows, settings, jobs, rejected, told)
    for split in () if settings.unlabelled else SPLITS:
        if not (manifest["split"] == split).any():
            raise UserError(f"no usable utterance for {split}: mend some, or add recordings")
    known = manifest["text"][manifest["split"].isin(READ)]
    alphabet = learn_alphabet(known) if config.alphabet == "learned" else ENGLISH
    tested = manifest[manifest["split"] == "test"]
    if beyond := [row.utt_id for row in tested.itertuples() if alphabet.lacks(row.text)]:
        what = "test transcripts outside the alphabet, kept: they count as errors"
        told.append(("note", what, len(beyond), cut(beyond[0])))
    return manifest, alphabet


def _with_good_transcripts(rows, config: CorpusConfig, rejected: list, told: list) -> pd.DataFrame:
    """The rows with normalised transcripts, and without those of base and validation from which
    nothing is to be learned, and those of test that say nothing."""
    allowed = can_be_said if config.alphabet == "learned" else ENGLISH.characters.__contains__
    texts, changes, outside, empty, foreign = [], [], [], {}, {}
    for row in rows.itertuples():
        text, steps = normalise(row.text)
        texts.append(text)
        if row.split == "pool":
            continue
        changes += [(step, f"{cut(row.text)} → {cut(text)}") for step in steps]
        lacking = sorted(character for character in set(text) if not allowed(character))
        for character in lacking:
            name = unicodedata.name(character, f"U+{ord(character):04X}").lower()
            outside.append((f"{cut(character)} ({name})", ""))
        if not text:
            empty[row.Index] = ""
        elif lacking and row.split in READ:
            foreign[row.Index] = " ".join(lacking)
    told += _tally("text", changes)
    told += _tally("outside the alphabet", outside, most=20)
    read = rows["split"].value_counts().drop("pool", errors="ignore")
    rows = _without(rows.assign(text=texts), empty, "no transcript", read.sum(), rejected)
    reason, count = "transcript outside the alphabet", read.reindex(READ, fill_value=0).sum()
    return _without(rows, foreign, reason, count, rejected)


def _without(rows, bad: dict, reason: str, looked_at: int, rejected: list) -> pd.DataFrame:
    """The rows but the ``bad`` ones ({index: what was seen}), which are set aside."""
    seen = rows.loc[list(bad), ["utt_id", "path", "text_where"]].itertuples(index=False)
    more = [(*row, reason, detail) for row, detail in zip(seen, bad.values(), strict=True)]
    _set_aside(rejected, more, looked_at)
    return rows.drop(index=list(bad))


def _with_good_audio(rows, settings, jobs, rejected: list, told: list) -> pd.DataFrame:
    """The manifest: each split filled, from its utterances in random order, with usable ones, as
    many of each group of the scenario as are to be there."""
    build, scenario = settings.built, settings.drawn
    rng, decks = np.random.default_rng([build.seed, 3]), []
    for split in SPLITS:
        deck = rows[rows["split"] == split]
        deck = deck.iloc[rng.permutation(len(deck))]
        decks += quotas(deck, split, getattr(build, split), scenario)
    goal = sum(min(len(deck), lacking) for deck, lacking in decks)
    kept, bad = {}, []

    def check(row):
        try:
            facts = inspect_audio(row.path, row.offset, row.duration, build)
        except Unusable as error:
            return error
        if facts["duration"] * settings.model.sample_rate <= settings.model.window // 2:
            return Unusable("too short", f"{facts['N']} samples: less than half a window")
        if row.split in READ and (lacking := _misfit(row.text, facts, settings.model)):
            return Unusable("transcript longer than the audio", lacking)
        return facts

    # threads: libsndfile and numpy work outside Python's lock
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=goal, desc="check", unit="utt") as bar:
        for deck, lacking in decks:
            deck = deck.itertuples()
            # a part at a time, so that an interruption does not wait for all of them
            while part := list(islice(deck, min(lacking, 512))):
                for row, seen in zip(part, pool.map(check, part), strict=True):
                    bar.update()
                    if isinstance(seen, Unusable):
                        bad.append((row.utt_id, row.path, row.where, *seen.args))
                    else:
                        lacking -= 1
                        kept[row.Index] = seen
    _set_aside(rejected, bad, len(kept) + len(bad))
    found = rows.loc[list(kept)]  # of a group less may have proved usable: of others less, too
    for split in SPLITS if scenario.column else ():
        for part, most in quotas(found[found["split"] == split], split, len(found), scenario):
            kept = {index: kept[index] for index in kept if index not in part.index[most:]}
    facts = pd.DataFrame(list(kept.values()), index=list(kept)).sort_index()
    clipped, left = int(facts["clipped"].sum()), len(rows) - len(kept) - len(bad)
    if clipped:
        told.append(("warning", "clipped, kept", clipped, ""))
    if left:
        why = "the splits are full" + (", or their groups" if scenario.column else "")
        told.append(("note", f"not needed: {why}", left, ""))
    manifest = rows.loc[facts.index].drop(columns=["where", "text_where"])
    manifest[["offset", "duration"]] = facts[["offset", "duration"]]
    manifest["speaker"] = manifest["speaker"].fillna("unknown")
    bounds = [*KINDS.values(), np.inf]
    by_length = pd.cut(manifest["duration"], bounds, right=False, labels=list(KINDS)).astype(object)
    manifest["kind"] = manifest["kind"].fillna(by_length) if "kind" in manifest else by_length
    return manifest


def quotas(deck: pd.DataFrame, split: str, size: int, scenario: Scenario) -> list[tuple]:
    """(rows, how many of them) of each group of a split of at most ``size`` utterances: the largest
    numbers that are in the scenario's shares. Without groups, all rows and ``size``.

    Raises ``UserError`` where a group has no row.
    """
    wanted = {name: share for name, share in scenario.draw(split).groups if share}
    if not wanted:
        return [(deck, size)]
    groups = {name: deck[deck[scenario.group] == name] for name in wanted}
    parts = {name: share / sum(wanted.values()) for name, share in wanted.items()}
    for name, rows in groups.items():
        if rows.empty:
            raise UserError(f"no usable utterance of the scenario's group {cut(name)} for {split}: "
                            "add recordings, or change its shares")  # fmt: skip
    # the half that is rounded away: of what was drawn by its quotas, all stays
    total = min([size, *((len(rows) + 0.499) / parts[name] for name, rows in groups.items())])
    return [(rows, max(1, round(total * parts[name]))) for name, rows in groups.items()]


def report(folder: Path, manifest: pd.DataFrame) -> pd.DataFrame:
    """What a corpus holds, a row a split, and what was set aside, changed and noticed."""
    rows = []
    for split in SPLITS:
        part = manifest[manifest["split"] == split]
        speakers = set(part["speaker"].dropna()) - {"unknown"}
        hours = f"{part['duration'].sum() / 3600:.3f}"
        rows.append(("split", split, len(part), hours, len(speakers), ""))
    columns = ["part", "what", "utterances", "hours", "speakers", "example"]
    table, told = pd.DataFrame(rows, columns=columns, dtype=object), Path(folder) / "report.csv"
    if told.exists():
        table = pd.concat([table, pd.read_csv(told, dtype=object)]).fillna("")
    return table.set_index(["part", "what"])
