"""What a run will take, before anybody starts it: ``make plan PRESET=paper CORPUS=librispeech``.

Hours, memory and disk of every step of ``make figures``, from what the preset's own model does on
this machine in about a minute: updates, scores and tests of simulated features, as many at a time
as there is time for, on one core (or the GPU). Nothing is written.

Legend: B utterances, T frames.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from .devices import device
from .experiment import amounts, first_passes, grid, in_shards
from .metrics import evaluate
from .model import DeepSpeech2, count_parameters
from .querying import score, score_options
from .selection import SELECTIONS
from .speech import corpus, synthesis
from .speech.features import Batch, extract, group_by_length, input_frames
from .speech.manifests import read_manifest, write_manifest
from .speech.text import ENGLISH
from .training import fit
from .workshop.config import SPLITS, Settings
from .workshop.errors import UserError
from .workshop.processes import cores, on_a_gpu

LIBRISPEECH = {  # utterances and hours, as openslr.org/12 and the subsets' lists tell them
    "base": (28539, 100.6), "pool": (104014 + 148688, 363.6 + 496.7),
    "validation": (2703 + 2864, 5.4 + 5.3), "test": (2620 + 2939, 5.4 + 5.1),
}  # fmt: skip
LIMIT = 2.0  # seconds for one measurement
LETTERS = 14  # of a transcript, a second of speech
HEARD = 200  # utterances whose features are computed


def sizes(settings: Settings) -> dict[str, tuple[int, float]]:
    """Utterances of every split and their mean seconds, in the current scenario: of the corpus, if
    it has been made; of LibriSpeech and of the embedded corpus without that. Raises ``UserError``
    for another one."""
    build = settings.built
    if settings.corpus == "librispeech" and not settings.data:
        found = {name: (n, 3600 * hours / n) for name, (n, hours) in LIBRISPEECH.items()}
        return {name: (min(n, getattr(build, name)), mean) for name, (n, mean) in found.items()}
    made = corpus.corpus(settings).find()
    if made:
        manifest = read_manifest(made / "manifest.jsonl")
        by = manifest.groupby("split")["duration"]
        return {name: (int(by.count()[name]), float(by.mean()[name])) for name in SPLITS}
    if settings.corpus != "synthetic":
        raise UserError(f"the sizes of CORPUS={settings.corpus} are not known yet: run make check "
                        "with the same words first")  # fmt: skip
    means = _spoken(settings, 12)[1]
    return {name: (getattr(build, name), float(means[name])) for name in SPLITS}


def _spoken(settings: Settings, count: int) -> tuple[float, pd.Series]:
    """So many utterances of each split, spoken: seconds of a core, and how long they are."""
    few = replace(settings.built, **dict.fromkeys(SPLITS, count))
    begun = sum(os.times()[:4])  # those of the processes that speak, too
    with tempfile.TemporaryDirectory() as folder:
        synthesis.build(Path(folder), few, 1, settings.drawn.content)
        manifest = read_manifest(Path(folder) / "manifest.jsonl")
    return sum(os.times()[:4]) - begun, manifest.groupby("split")["duration"].mean()


class Simulated:
    """Features of utterances of one length, drawn at random, where a FeatureStore is expected."""

    def __init__(self, frames: int, bins: int):
        self.data = torch.randn(frames, bins)

    def groups(self, utterances, size: int, rng=None) -> list[np.ndarray]:
        return group_by_length([len(self.data)] * len(utterances), size, rng)

    def batch(self, utterances, encode=None) -> Batch:
        labels = tuple(map(encode, utterances["text"])) if encode else ()
        return Batch(tuple(utterances["utt_id"]), self.data.repeat(len(utterances), 1, 1), labels)

    def batches(self, utterances, size: int, encode=None, rng=None):
        for index in self.groups(utterances, size, rng):
            yield self.batch(utterances.iloc[index], encode)


def _clock() -> float:
    """Seconds of this process's core, which no other work on the machine lengthens; on a GPU those
    of the clock on the wall."""
    if not on_a_gpu():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(call) -> float:
    begun = _clock()
    call()
    return _clock() - begun


def per_utterance(call, frames: int, batch: int) -> float:
    """Seconds an utterance of ``call(B, T)`` in batches of ``batch`` of ``frames``: measured, if
    there is time for it; else as a line through what was, so much a call and so much a frame."""
    points, short = [], min(frames, 96)
    for count, length in ((1, short // 2), (1, short), (1, frames), (batch, frames)):
        size = count * length
        if len(points) > 1 and points[-1][1] * size / points[-1][0] > LIMIT:
            break
        took = _seconds(lambda: call(count, length))  # noqa: B023
        if took < 0.5:  # else what happens once, kernels are chosen and memory is taken, is little
            times = int(0.5 / max(took, 1e-3)) + 1
            took = _seconds(lambda: [call(count, length) for _ in range(times)]) / times  # noqa: B023
        points.append((size, took))
    (least, first), (most, last) = points[0], points[-1]
    slope = max(0.0, last - first) / (most - least)
    return (last + slope * (batch * frames - most)) / batch


def _utterances(count: int, frames: int, settings: Settings) -> pd.DataFrame:
    seconds = frames * settings.model.hop / settings.model.sample_rate
    said = ("turn on the light in the kitchen " * 40)[: max(1, int(LETTERS * seconds))].strip()
    frame = {"utt_id": [f"u{i}" for i in range(count)], "text": said, "duration": seconds}
    return pd.DataFrame(frame)


def throughput(settings: Settings, frames: dict[str, int]) -> dict[str, float]:
    """Seconds an utterance of training, of every strategy's score, of the test, and of what is read
    of the corpus before each (``prepared``), of its ``features``, and, if it is spoken here, of
    that. ``frames``: T of a typical utterance of every split."""
    torch.set_num_threads(1)
    model = DeepSpeech2(settings.model, len(ENGLISH)).to(device())
    config, bins = settings.training, settings.model.bins

    def update(count, length):
        some = _utterances(count, length, settings)
        # its one validation is of one frame's length: as good as none
        fit(model, Simulated(length, bins), some, some[:1], ENGLISH, config, updates=2,
            rate=1e-5, seed=0, measured=0)  # fmt: skip

    def scored(strategy):
        options = score_options(settings, strategy, 0)
        return lambda count, length: score(
            model, Simulated(length, bins), _utterances(count, length, settings), strategy,
            alphabet=ENGLISH, **options,
        )  # fmt: skip

    def tested(count, length):
        evaluate(model, Simulated(length, bins), _utterances(count, length, settings), ENGLISH)

    found = {"update": per_utterance(update, frames["base"], config.batch) / 2}
    for strategy in (name for name in settings.strategies if name not in SELECTIONS):
        found[strategy] = per_utterance(scored(strategy), frames["pool"], 32)
    found["test"] = per_utterance(tested, frames["test"], 32)
    with tempfile.TemporaryDirectory() as folder:
        path, some = Path(folder) / "manifest.jsonl", _utterances(2000, frames["pool"], settings)
        write_manifest(path, some.assign(path="audio/pool/pool-00000.wav", split="pool", kind="x"))
        begun = time.process_time()
        read_manifest(path)
        found["prepared"] = (time.process_time() - begun) / len(some)
        rate, some = settings.model.sample_rate, some[:HEARD]
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, int(rate * some["duration"].iloc[0]))
        soundfile.write(Path(folder) / "noise.wav", noise, rate)
        begun = time.process_time()
        extract(Path(folder), some.assign(path=str(Path(folder) / "noise.wav")), settings.model)
        found["features"] = (time.process_time() - begun) / len(some)
    if settings.corpus == "synthetic":  # what it takes to begin is as much for many as for few
        few, more = (_spoken(settings, count)[0] for count in (5, 25))
        found["spoken"] = max(0.0, more - few) / (len(SPLITS) * 20)
    return found


def plan(settings: Settings, known: dict[str, tuple[int, float]]) -> pd.DataFrame:
    """A row a step: how many ``tasks``, ``hours`` of a core (or a GPU), ``memory`` and ``disk`` in
    GiB, of each and of all. ``known`` are :func:`sizes` in the current scenario; in others
    utterances take as much, each, as in that one, and there are as many as they say."""
    frames = {name: input_frames(settings.model, count)
              for name, count in _samples(settings, known).items()}  # fmt: skip
    seconds, tables = throughput(settings, frames), []
    for name in settings.scenarios:
        own = settings.on(name)
        counts = {split: (getattr(own.built, split), mean) for split, (_, mean) in known.items()}
        same = own.built == settings.built
        tables.append(_in_scenario(own, known if same else counts, seconds))
    every = pd.concat(tables)
    by = every.groupby("step", sort=False)
    table = by[["tasks", "hours in all", "disk in all"]].sum()
    table.insert(1, "hours", table["hours in all"] / table["tasks"])  # a task's mean
    table.insert(2, "memory", by["memory"].max())
    table.insert(3, "disk", table["disk in all"] / table["tasks"])
    # a sum takes what nobody has measured for nothing
    unknown = by["hours"].agg(lambda hours: hours.isna().any())
    table.loc[unknown, ["hours", "hours in all"]] = np.nan
    return table.reset_index()


def _samples(settings: Settings, known: dict[str, tuple[int, float]]) -> dict[str, int]:
    return {name: int(mean * settings.model.sample_rate) for name, (_, mean) in known.items()}


def _in_scenario(settings: Settings, known: dict, seconds: dict[str, float]) -> pd.DataFrame:
    """The rows of one scenario; ``seconds`` as :func:`throughput` has them."""
    model, samples = settings.model, _samples(settings, known)
    frames = {name: input_frames(model, count) for name, count in samples.items()}
    counts = {name: count for name, (count, _) in known.items()}
    config, seeds, gib = settings.training, settings.seeds, 2**30
    base = 4 * count_parameters(DeepSpeech2(model, len(ENGLISH))) / gib
    # weights, gradients, AdamW's two moments, the mean of the weights, what a checkpoint copies
    training = 0.5 + 7 * base + config.batch * frames["base"] * _activations(settings) / gib
    scoring = 0.5 + base + 3 * 32 * frames["pool"] * _activations(settings) / gib
    utterances = sum(counts.values())
    prepared = utterances * seconds["prepared"]  # by every task anew
    total = sum(counts[name] * frames[name] for name in counts)
    # a validation is forward passes and CTC, two thirds of what a test is (make bench, cell)
    validated = counts["validation"] * seconds["test"] * 2 / 3

    def trained(updates: int, measured: int, tested: int = counts["test"]) -> float:
        looked = tested * seconds["test"] + measured * validated
        return updates * config.batch * seconds["update"] + looked + prepared

    after = config.updates + (config.base_updates if config.refit == "scratch" else 0)
    speaking = int("spoken" in seconds), utterances * seconds.get("spoken", 0)
    sound = 2 * sum(counts[name] * samples[name] for name in counts) / gib
    tries = len(settings.rates), trained(settings.rate_updates, 1, tested=0)
    rows = [
        ("corpus", *speaking, 0.2, sound),
        ("features", 1, utterances * seconds["features"], 0.5, 2 * model.bins * total / gib),
        ("learning rates", *tries, training, 0),
        ("base models", seeds, trained(config.base_updates, 10), training, base),
    ]
    if passes := len(first_passes(settings)):
        rows.append(("first passes", seeds * passes, np.nan, scoring, np.nan))
    for name in settings.strategies:
        shards = settings.shards if in_shards(settings, name) else 1
        cost = counts["pool"] * seconds.get(name, np.nan) / shards + prepared
        disk = 40 * counts["pool"] / shards / gib
        rows.append((f"scores: {name}", seeds * shards, cost, scoring, disk))
    cells = len(grid(settings))
    rows.append(("cells", cells, trained(after, 1), training, 300 * counts["test"] / gib))
    table = pd.DataFrame(rows, columns=["step", "tasks", "hours", "memory", "disk"])
    table = table[table["tasks"] > 0].reset_index(drop=True)
    table["hours"] /= 3600
    table["hours in all"] = table["tasks"] * table["hours"]
    table["disk in all"] = table["tasks"] * table["disk"]
    return table


def _activations(settings: Settings) -> float:
    """Bytes that an utterance's frame leaves for the backward pass, by what every layer says."""
    model, said = DeepSpeech2(settings.model, len(ENGLISH)), []
    hooks = [
        part.register_forward_hook(lambda *what: said.append(what[2])) for part in model.layers
    ]
    with torch.no_grad():
        model(torch.zeros(1, 64, settings.model.bins))
    for hook in hooks:
        hook.remove()
    gates = {"rnn": 1, "gru": 4, "lstm": 5}[settings.model.cell]
    recurrent = 2 * gates * settings.model.hidden * settings.model.layers * said[-1].shape[1]
    return 4 * (sum(out.numel() for out in said) + recurrent) / 64


def told(settings: Settings) -> str:
    """The plan as a person reads it."""
    begun = time.perf_counter()
    sized = sizes(settings)
    table = plan(settings, sized)
    unit = torch.cuda.get_device_name() if on_a_gpu() else "one core of this machine"
    known = ", ".join(f"{count} {name}" for name, (count, _) in sized.items())
    hours = table["hours in all"].sum()
    longest = table.groupby(table["step"].str.partition(":")[0], sort=False)["hours"].max().sum()
    unknown = ", ".join(table.loc[table["hours"].isna(), "step"])
    unknown = f"not measured, and not in the sums: {unknown}\n" if unknown else ""
    total = {
        "step": "all", "tasks": table["tasks"].sum(), "hours in all": hours,
        "memory": table["memory"].max(), "disk in all": table["disk in all"].sum(),
    }  # fmt: skip
    table = pd.concat([table, pd.DataFrame([total])])
    scale, name = (1, "hours") if hours >= 1 else (60, "minutes")
    table[["hours", "hours in all"]] *= scale
    table.columns = [column.replace("hours", name) for column in table]
    lines = table.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.3g}")
    asked = len(settings.strategies) * len(amounts(settings))
    shared = cores() if not on_a_gpu() else 1  # without an engine one GPU is used
    where = f"this machine's {shared} core{'s' * (shared > 1)}" if not on_a_gpu() else "one GPU"
    return (
        f"{lines}\n{name} of {unit}; memory and disk in GiB, memory of one process\n"
        f"{unknown}{settings.corpus}: {known} utterances; "
        f"{len(grid(settings)) * len(settings.scenarios)} cells: {asked} queries and two ends, "
        f"{settings.seeds} seeds, {len(settings.scenarios)} scenarios\n"
        f"{scale * hours / shared:.3g} {name} on {where}; with one for every task at "
        f"once {scale * longest:.3g} (measured in {time.perf_counter() - begun:.0f} s)"
    )
