"""The prepared corpus: manifest, features and alphabet, whoever made it.

    corpus → features

Each is a step (workshop/steps.py). The embedded corpus is spoken (synthesis.py), digit strings are
joined (fsdd.py), what others recorded is read (readers.py) and looked through (validation.py).
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..workshop.config import LABELLED, ROOT, Settings
from ..workshop.errors import UserError
from ..workshop.processes import cores
from ..workshop.steps import Step
from ..workshop.store import fingerprint, write_csv
from . import fsdd, readers, validation
from .features import FeatureStore, extract
from .manifests import check_data, read_manifest
from .text import Alphabet, read_alphabet


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: its folder, manifest, features and alphabet."""

    folder: Path
    manifest: pd.DataFrame
    store: FeatureStore
    alphabet: Alphabet

    def split(self, name: str) -> pd.DataFrame:
        return self.manifest[self.manifest["split"] == name].reset_index(drop=True)

    def labelled(self, chosen: list[str]) -> pd.DataFrame:
        """The base set, and of the pool the utterances ``chosen`` by their ids, as far as they are
        :meth:`usable`."""
        pool = self.split("pool").set_index("utt_id", drop=False)
        bought = self.usable(pool.loc[sorted(chosen)])
        return pd.concat([self.split("base"), bought], ignore_index=True)

    def usable(self, bought: pd.DataFrame) -> pd.DataFrame:
        """Of utterances that have been queried, or are tested, those whose transcripts can be
        learned from. The others are paid for all the same, as in life: how many they are, and why,
        is a line on standard error."""
        why = [unusable(row, self.alphabet) for row in bought.itertuples()]
        reasons = Counter(filter(None, why))
        if reasons:
            told = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
            count = f"{reasons.total()} of {len(bought)}"
            print(f"{count} transcripts, now read, are set aside: {told}", file=sys.stderr)
        return bought[[reason is None for reason in why]]


def unusable(utterance, alphabet: Alphabet) -> str | None:
    """Why nothing is to be learned from a labelled utterance (a row of the manifest): a reason of
    ``validation.REASONS``; None where its transcript can be used."""
    if alphabet.lacks(utterance.text):
        return "transcript outside the alphabet"
    # of the embedded corpus's silence we know that nothing is said
    silence = getattr(utterance, "kind", None) == "silence"
    return None if utterance.text or silence else "no transcript"


@functools.lru_cache  # a real corpus has thousands of files to look at
def corpus(settings: Settings) -> Step:
    """The corpus. Folder: ``manifest.jsonl``, ``audio/`` where it is ours, ``alphabet.json``, and
    ``report.csv`` and ``rejected.csv`` where it was read. Raises ``UserError`` for one that has no
    transcripts."""
    name, build, model = settings.corpus, settings.build, settings.model
    if name in LABELLED:
        raise UserError(f"CORPUS={name} has labels but no transcripts: use it with make aloe")
    given = {"build": build}
    if name == "synthetic":
        from . import synthesis  # here: who reads recordings needs no voice

        compute = lambda folder: synthesis.build(folder, build, cores())  # noqa: E731
        return Step(name, compute, given=given, place="data")
    check_data(name, settings.data)
    if name == "fsdd":
        files = readers.states(sorted(map(str, Path(settings.data).rglob("*.wav"))))
        compute = lambda folder: fsdd.build(folder, build, settings.data)  # noqa: E731
    else:
        found = readers.read(name, settings.data, build.outside)
        # what decides whether a transcript fits its audio
        shape = ("sample_rate", "window", "hop", "round_frames", "kernels", "strides")
        files, given = found.fingerprint(), given | {x: getattr(model, x) for x in shape}
        given["rows"] = fingerprint(found.rows.to_dict("list"))
        people = ROOT / "build" / settings.run
        compute = lambda folder: validation.build(folder, found, settings, cores(), people)  # noqa: E731
    given["files"] = fingerprint(files)
    return Step(name, compute, given=given, place="data", resume=False)


def features(settings: Settings) -> Step:
    """Every utterance's features: ``features.npy`` and ``index.csv``."""
    spoken, config = corpus(settings), settings.model

    def compute(folder: Path) -> None:
        extract(folder, read_manifest(spoken.folder() / "manifest.jsonl"), config)

    inputs = ("features", "bins", "sample_rate", "window", "hop", "round_frames")
    return Step(
        f"{settings.corpus}-features", compute, after=(spoken,),
        given={name: getattr(config, name) for name in inputs}, place="data",
    )  # fmt: skip


def prepare(settings: Settings) -> Corpus:
    """Build the corpus and its features, or find them done."""
    folder = corpus(settings).folder()
    manifest = read_manifest(folder / "manifest.jsonl")
    return Corpus(folder, manifest, FeatureStore(features(settings).folder()), alphabet(settings))


def alphabet(settings: Settings) -> Alphabet:
    """The alphabet of the corpus's transcripts."""
    return read_alphabet(corpus(settings).folder())


def report(data: Corpus) -> pd.DataFrame:
    """What the splits hold, and what was set aside, changed and noticed on the way."""
    return validation.report(data.folder, data.manifest)


def check(settings: Settings) -> str:
    """Prepare the corpus and say, for a person to read, what came of it.

    Where utterances were set aside, ``build/<run>/rejected.csv`` lists them.
    """
    data = prepare(settings)
    text = report(data).to_string()
    rejected = data.folder / "rejected.csv"
    copy = ROOT / "build" / settings.run / rejected.name
    copy.unlink(missing_ok=True)  # what an earlier check said
    if rejected.exists() and len(table := pd.read_csv(rejected, dtype=str, keep_default_na=False)):
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_csv(copy, table)
        text += f"\n{len(table)} utterances are set aside: see {copy.relative_to(ROOT)}"
    return text
