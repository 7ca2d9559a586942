"""The target as a folder of audio: recordings of what the recogniser is for, without transcripts.

    target: path/to/folder        # under selection in a preset; twenty to a few hundred utterances

Every WAV, FLAC, Ogg and MP3 file below it is an utterance. What stands beside them is not read.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from ..workshop.config import Settings
from ..workshop.errors import UserError, cut_path
from ..workshop.steps import Step
from ..workshop.store import checksum, fingerprint
from .features import FeatureStore, extract
from .manifests import read_manifest, write_manifest
from .readers import states
from .validation import Unusable, inspect_audio

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def target(settings: Settings) -> Step:
    """Features of the target's folder: ``manifest.jsonl``, ``features.npy`` and ``index.csv``.

    Files that cannot be used are told in a line. Raises ``UserError`` where none can.
    """
    where, build, config = Path(settings.selection.target), settings.build, settings.model
    files = sorted(str(x) for x in where.rglob("*") if x.suffix.lower() in SUFFIXES)

    def compute(folder: Path) -> dict:
        rows, left = [], Counter()
        for path in files:
            try:
                facts = inspect_audio(path, math.nan, math.nan, build)
            except Unusable as error:
                left[error.args[0]] += 1
                continue
            name = Path(path).relative_to(where).as_posix()
            rows.append({"utt_id": name, "path": path, "duration": facts["duration"]})
        told = ", ".join(f"{reason} ({count})" for reason, count in left.items()) or "no file"
        if not rows:
            raise UserError(f"target {cut_path(where)}: no usable audio: {told}: name a folder of "
                            "WAV, FLAC, Ogg or MP3 files")  # fmt: skip
        if left:
            print(f"{left.total()} of {len(files)} files of the target are left out: {told}",
                  file=sys.stderr)  # fmt: skip
        manifest = pd.DataFrame(rows)
        write_manifest(folder / "manifest.jsonl", manifest)
        extract(folder, manifest, config)
        return {"utterances": len(rows)}

    inputs = ("features", "bins", "sample_rate", "window", "hop", "round_frames")
    given = {name: getattr(config, name) for name in inputs}
    given |= {name: getattr(build, name) for name in ("min_seconds", "max_seconds")}
    return Step(
        "target", compute, given=given | {"files": fingerprint(states(files))}, place="data"
    )


def read(step: Step, pool: pd.DataFrame) -> tuple[pd.DataFrame, FeatureStore]:
    """The target's utterances and features. How many of them are the pool's own, by place or by
    content, is a line on standard error: such a target leads to what is in the pool already."""
    manifest, store = read_manifest(step.folder() / "manifest.jsonl"), FeatureStore(step.folder())
    sizes = {}
    for path in pool["path"].unique():
        sizes.setdefault(os.path.getsize(path), set()).add(path)
    same = 0
    for path in manifest["path"]:
        others = sizes.get(os.path.getsize(path), set())
        known = {os.path.realpath(x) for x in others} | {checksum(Path(x)) for x in others}
        same += os.path.realpath(path) in known or (bool(others) and checksum(Path(path)) in known)
    if same:
        print(f"{same} of {len(manifest)} utterances of the target are in the pool, too",
              file=sys.stderr)  # fmt: skip
    return manifest, store
