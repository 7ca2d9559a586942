"""A tiny companion, computed in this process: a step of every kind, and what each did."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from alspeech import beyond, experiment, studies
from alspeech.sisters import aloe, loss_prediction, pseudo_labels
from alspeech.speech import clips, corpus
from alspeech.workshop import config, provenance, sources, steps
from alspeech.workshop.config import Settings

# its own name: what is cached by settings is no other test's
PRESET = """
strategies: [random, entropy, egl]
query_percents: [20]
seeds: 1
labelings: 5
directions: 1
build: {base: 24, pool: 30, validation: 6, test: 8}
# few lengths, so that a few updates are whole passes
model: {layers: 1, hidden: 8, channels: 4, round_frames: 160}
training: {base_updates: 8, updates: 9}
studies: {seeds: 1, factors: [1.0], rounds: 2, amount: 20, strategies: [entropy]}
beyond: {components: 2, labelled: 12, tested: 6, resamples: 2}
loss_prediction: {rounds: [20, 50], decoder: 6, predictor: 6}
pseudo_labels:
  {labelled: 16, warm_up: 2, warm_up_rate: 1.e-4, blocks: 3, unsupervised: 2, cache: 1, every: 3,
   watched: 6, free_blocks: 2, query_percents: [50], rate: 1.e-4, free_rate: 1.e-4, free_cache: 1,
   joined_blocks: 2}
aloe: {pool: 90, validation: 40, test: 50, runs: 1, steps: 3, seed_clips: 1, epochs: 3}
"""
# a step of every kind: the function that describes it, and what that takes beside the settings,
# on the embedded corpus
FIGURES = {
    "corpus": (corpus.corpus,),
    "features": (corpus.features,),
    "base": (experiment.base_model, 0),
    "scores": (experiment.pool_scores, "egl", 0),
    "entropy": (experiment.pool_scores, "entropy", 0),
    "cell": (experiment.cell, "entropy", 20, 0),
    "all": (experiment.cell, "all", 100, 0),
    "oracle": (experiment.pool_scores, "oracle_gradient", 0),
    "clusters": (experiment.pool_scores, "random_clusters", 0),
    "first pass": (experiment.first_pass, "validation", 0),
    "selection": (experiment.pool_scores, "fisher_ratio", 0),
    "in clusters": (experiment.pool_scores, "power_egl", 0),
}
STUDIES = {
    "from scratch": (studies.longer, "scratch", 9, "entropy", 20, 0),
    "first round": (studies.leg, "rounds", 1, "entropy", 0),
    "second round": (studies.leg, "rounds", 2, "entropy", 0),
    "batch": (studies.leg, "batch", 1, "entropy", 0),
    "round of a selection": (studies.leg, "rounds", 1, "fisher_ratio", 0),
    "argument": (beyond.argument, 0),
}
LOSS_PREDICTION = {
    "joint": (loss_prediction.joint_model, "joint", 0),
    "ctc_only": (loss_prediction.joint_model, "ctc_only", 0),
    "predicted": (loss_prediction.predicted, "joint", 0),
    "round": (loss_prediction.round_, "loss_prediction", 20, 0),
    "next round": (loss_prediction.round_, "loss_prediction", 50, 0),
    "oracle's round": (loss_prediction.round_, "oracle_loss", 20, 0),
    "whole pool": (loss_prediction.whole_pool, 0),
}
NOTHING = pseudo_labels.NOTHING
PSEUDO_LABELS = {
    "warm-up": (pseudo_labels.warm_up, 0),
    "its scores": (pseudo_labels.scores, "entropy", 0),
    "labels alone": (pseudo_labels.pseudo_labelled, "anchored", "supervised", "entropy", 50, 0),
    "hard": (pseudo_labels.pseudo_labelled, "anchored", "hard", "entropy", 50, 0),
    "prior": (pseudo_labels.pseudo_labelled, "free", "prior", *NOTHING, 0),
    "ema": (pseudo_labels.pseudo_labelled, "anchored", "ema", *NOTHING, 0),
    "sampled": (pseudo_labels.pseudo_labelled, "free", "sampled_text", *NOTHING, 0),
    "joined": (pseudo_labels.pseudo_labelled, "joined", "hard", "entropy", 50, 0),
    "all labels": (
        pseudo_labels.pseudo_labelled, "joined", "supervised_longer", "all", 100, 0,
    ),
}  # fmt: skip
EMBEDDED = {**FIGURES, **STUDIES, **LOSS_PREDICTION, **PSEUDO_LABELS}
RECORDED = {  # and on a list of recordings
    "recordings": (corpus.corpus,),
    "embeddings": (aloe.embeddings_part, "recogniser", 0),
    "log-mel": (aloe.embeddings_part, "logmel", 0),
    "run": (aloe.cell, "label", "logmel", 0),
}
JOINED = {"digits": (corpus.corpus,)}  # and on FSDD's
STEPS = {**EMBEDDED, **RECORDED, **JOINED}
SECTIONS = {  # of the settings
    item.name: item.default_factory
    for item in dataclasses.fields(Settings)
    if item.default_factory is not dataclasses.MISSING
}


@dataclasses.dataclass
class Seen:
    """What a step did while it was computed."""

    step: steps.Step
    ran: set = dataclasses.field(default_factory=set)  # (module, function, its first line)
    read: set = dataclasses.field(default_factory=set)  # (section, field) of the settings
    # steps whose folder it asked for: names by their keys
    opened: dict = dataclasses.field(default_factory=dict)


class Companion:
    """Its ``root``, and by the names above the ``settings`` of every step and what it was ``seen``
    to do: by this process, or by another one to which the folder was given before."""

    def __init__(self, root: Path):
        self.root, self.stack, known = root, [], root / "seen"
        if not known.exists():
            (root / "configs").mkdir()
            (root / "configs" / "house.yaml").write_text(PRESET)
            record(root / "mine")
            digits(root / "fsdd")
        with self.home():
            spoken = config.load_settings("house")
            recorded = config.load_settings("house", "jsonl", str(root / "mine"))
            joined = config.load_settings("house", "fsdd", str(root / "fsdd"))
            self.settings = dict.fromkeys(EMBEDDED, spoken) | dict.fromkeys(RECORDED, recorded)
            self.settings |= dict.fromkeys(JOINED, joined)
            if not known.exists():
                with self._watched() as watched:
                    for name in STEPS:
                        self.step(name).folder()
                seen = {name: watched[self.step(name).key] for name in STEPS}
                told = {name: (x.ran, x.read, x.opened) for name, x in seen.items()}
                known.write_bytes(pickle.dumps(told))
            told = pickle.loads(known.read_bytes())
            self.seen = {name: Seen(self.step(name), *told[name]) for name in STEPS}

    def step(self, name: str, settings: Settings | None = None) -> steps.Step:
        make, *what = STEPS[name]
        return make(settings or self.settings[name], *what)

    @contextlib.contextmanager
    def home(self):
        """Files lie under ``root``, work is done in this process, on one thread."""
        with pytest.MonkeyPatch.context() as patch:
            for module in (config, steps, corpus, provenance):
                patch.setattr(module, "ROOT", self.root)
            patch.setenv("ALSPEECH_JOBS", "1")
            torch.set_num_threads(1)
            yield patch

    @contextlib.contextmanager
    def _watched(self):
        watched = {}
        makers, fill, folder = _makers(), steps.Step._fill, steps.Step.folder
        prefix = str(sources.PACKAGE)

        def described(frame) -> bool:
            """Is this only said to find a key?"""
            while frame and frame.f_code is not self.stack[-1].step.compute.__code__:
                if frame.f_code in makers:
                    return True
                frame = frame.f_back
            return False

        def trace(frame, event, _):
            code = frame.f_code
            if self.stack and code.co_filename.startswith(prefix) and not described(frame):
                path = Path(code.co_filename).relative_to(prefix).with_suffix("")
                found = (".".join(path.parts), code.co_qualname, code.co_firstlineno)
                self.stack[-1].ran.add(found)

        def spied(kind, section: str):
            names = {item.name for item in dataclasses.fields(kind)}

            def get(own, name):
                if name in names and self.stack:
                    caller = sys._getframe(1)
                    code = caller.f_code  # dataclasses' own and checks of values do not use them
                    ours = code.co_filename.startswith(prefix) and code.co_name != "__post_init__"
                    if ours and not described(caller):
                        self.stack[-1].read.add((section, name))
                return object.__getattribute__(own, name)

            return get

        def filled(step, path):
            for before in step.after:
                before.folder()
            self.stack.append(watched.setdefault(step.key, Seen(step)))
            try:
                fill(step, path)
            finally:
                self.stack.pop()

        def asked(step):
            if self.stack:
                self.stack[-1].opened[step.key] = step.name
            return folder(step)

        before = sys.gettrace()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps.Step, "_fill", filled)
            patch.setattr(steps.Step, "folder", asked)
            for section, kind in {"": Settings, **SECTIONS}.items():
                patch.setattr(kind, "__getattribute__", spied(kind, section), raising=False)
            sys.settrace(trace)
            threading.settrace(trace)
            try:
                yield watched
            finally:
                sys.settrace(before)
                threading.settrace(before)


def _makers() -> set:
    """The code of functions that describe steps."""
    found = set()
    modules = (corpus, clips, experiment, studies, loss_prediction, pseudo_labels, aloe)
    for module in modules:
        for value in vars(module).values():
            function = getattr(value, "__wrapped__", value)
            told = str(getattr(function, "__annotations__", {}).get("return"))
            if "Step" in told:
                found.add(function.__code__)
    return found


def tone(path: Path, hertz: float, seconds: float = 0.4, rate: int = 8000) -> None:
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time), rate)


def record(folder: Path) -> Path:
    """Recordings that a list of JSON lines names."""
    folder.mkdir()
    lines = []
    for i in range(16):
        tone(folder / f"{i:02d}.wav", 200 + 20 * i, 1.5)
        split = ("base", "pool", "validation", "test")[i % 4]
        lines.append({
            "audio_filepath": f"{i:02d}.wav", "text": ("yes", "no", "on")[i % 3], "split": split,
            "speaker": f"s{i % 4}{i % 2}", "offset": 0.1 * (i % 3), "duration": 1 + 0.1 * (i % 2),
            "label": "ab"[i // 4 % 2], "room": "xy"[i % 5 % 2],
        })  # fmt: skip
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def digits(folder: Path) -> Path:
    """A folder in FSDD's layout."""
    (folder / "recordings").mkdir(parents=True)
    for digit in range(3):
        for index in (0, 5, 10, 22):
            tone(folder / "recordings" / f"{digit}_ada_{index}.wav", 200 + 50 * digit)
    return folder
