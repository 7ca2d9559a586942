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

from ..workshop.config import EVEN, LABELLED, ROOT, Settings
from ..workshop.errors import UserError, cut
from ..workshop.processes import cores
from ..workshop.steps import Step
from ..workshop.store import fingerprint, write_csv
from . import fsdd, readers, transcripts, validation
from .features import FeatureStore, extract
from .manifests import check_data, read_manifest
from .text import Alphabet, read_alphabet, unusable, words


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: its folder, manifest, features and alphabet."""

    folder: Path
    manifest: pd.DataFrame
    store: FeatureStore
    alphabet: Alphabet
    # the column whose values weigh the same in the macro WER; None where the manifest lacks it
    group: str | None = "kind"

    def split(self, name: str) -> pd.DataFrame:
        return self.manifest[self.manifest["split"] == name].reset_index(drop=True)

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words of the base set's transcripts: those that a base model can know."""
        return frozenset(word for text in self.split("base")["text"] for word in words(text))

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


@functools.lru_cache  # a real corpus has thousands of files to look at
def corpus(settings: Settings) -> Step:
    """The corpus. Folder: ``manifest.jsonl``, ``audio/`` where it is ours, ``alphabet.json``, and
    ``report.csv`` and ``rejected.csv`` where it was read. Raises ``UserError`` for one that has no
    transcripts, or lacks what the scenario asks for."""
    corpus, build, model = settings.corpus, settings.built, settings.model
    if corpus in LABELLED:
        raise UserError(f"CORPUS={corpus} has labels but no transcripts: use it with make aloe")
    name, scenario = f"{corpus}-{settings.scenario or EVEN}", settings.drawn.content
    given = {"build": build, "scenario": scenario}
    if corpus == "synthetic":
        from . import synthesis  # here: who reads recordings needs no voice

        synthesis.check(settings.scenario, scenario, build.language)
        compute = lambda folder: synthesis.build(folder, build, cores(), scenario)  # noqa: E731
        return Step(name, compute, given=given, place="data")
    check_data(corpus, settings.data)
    if corpus == "fsdd":
        check_column(settings, ["speaker"])
        files = readers.states(sorted(map(str, Path(settings.data).rglob("*.wav"))))
        compute = lambda folder: fsdd.build(folder, build, settings.data, scenario)  # noqa: E731
    else:
        found = readers.read(corpus, settings.data, build.outside)
        if settings.unlabelled:
            found = transcripts.overlaid(found, settings)
            given |= {"unlabelled": settings.query.enough}
        check_column(settings, found.rows.columns)
        # what decides whether a transcript fits its audio
        shape = ("sample_rate", "window", "hop", "round_frames", "kernels", "strides")
        files, given = found.fingerprint(), given | {x: getattr(model, x) for x in shape}
        given["rows"] = fingerprint(found.rows.to_dict("list"))
        people = ROOT / "build" / settings.run
        compute = lambda folder: validation.build(folder, found, settings, cores(), people)  # noqa: E731
    given["files"] = fingerprint(files)
    return Step(name, compute, given=given, place="data", resume=False)


def check_column(settings: Settings, known) -> None:
    """Raise ``UserError`` where the scenario groups utterances by none of the ``known`` columns."""
    column = settings.drawn.column
    if column and column not in known:
        own = ", ".join(x for x in known if x not in readers.COLUMNS or x == "speaker")
        raise UserError(f"scenario {settings.scenario} needs the column '{cut(column)}', and this "
                        f"corpus tells {own} only: name another SCENARIO, or add it")  # fmt: skip


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
    group = settings.drawn.group if settings.drawn.group in manifest else None
    if group is None and settings.scenario not in ("", EVEN):
        raise UserError(
            f"scenario {settings.scenario}: group: no column '{cut(settings.drawn.group)}' in its "
            f"manifest: choose one of {', '.join(manifest.columns)}"
        )
    store = FeatureStore(features(settings).folder())
    return Corpus(folder, manifest, store, alphabet(settings), group)


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
