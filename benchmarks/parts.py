"""The benchmark's parts. Each returns {"rows": [...]} and, for the picture, its curves."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from cell import cell  # noqa: F401
from measure import REPEATS, K, laptop, median_ms, medians_ms, pool_batches, row
from pool import million, workers  # noqa: F401
from recognising import recognising, shortlist  # noqa: F401
from rivals import AUTOGRAD, FLASHLIGHT, Packed, flashlight, pyctcdecode, rescored
from selecting import selecting  # noqa: F401
from torch import nn
from variance import variance  # noqa: F401

from alspeech import querying
from alspeech import training as train
from alspeech.acquisition import ACQUISITIONS
from alspeech.ctc import ctc_losses, labelings_gradients
from alspeech.decoding import n_best
from alspeech.gradients import Tape, expected_gradient_length, plain_egl
from alspeech.model import Bidirectional, DeepSpeech2
from alspeech.sisters import aloe as aloe_system
from alspeech.sisters import few_labels
from alspeech.sisters.joint import JointRecogniser
from alspeech.speech.features import Batch, FeatureStore
from alspeech.speech.text import ENGLISH
from alspeech.statistics import interval, spearman
from alspeech.workshop.config import ROOT, TrainingConfig, load_settings
from alspeech.workshop.processes import keep_freed_memory

DIRECTIONS = (1, 2, 3, 4, 5, 6, 8)
DEFAULT = 5


def egl_score(model, features, **options):
    with torch.no_grad():
        tape = Tape(model, features)
        hypotheses = n_best(tape.logits.log_softmax(-1), K)
        return expected_gradient_length(tape, hypotheses, **options)


def egl_rows(model, batches: list, label: str = "") -> tuple[list[dict], list[dict]]:
    """EGL against the plain way and a training pass; its agreement with the plain way's numbers."""
    utterances = sum(map(len, batches))
    ours = lambda **options: [egl_score(model, b.features, **options) for b in batches]  # noqa: E731
    with torch.no_grad():
        found = [n_best(model(b.features).log_softmax(-1), K) for b in batches]
    plain = lambda b, i: plain_egl(model, batches[b].features[i : i + 1], found[b], i)  # noqa: E731
    of_all = torch.tensor(
        [plain(b, i) for b in range(len(batches)) for i in range(len(batches[b]))]
    )
    one_of_each = lambda: [plain(b, 0) for b in range(len(batches))]  # noqa: E731
    ways = {R: {"directions": R} for R in DIRECTIONS}
    ways |= {method: {"method": method} for method in ("exact", "last_layer")}
    calls = {name: (partial(ours, **options), utterances) for name, options in ways.items()}
    calls["plain"] = one_of_each, len(batches)
    calls["training"] = training_pass(model, batches), utterances
    ms, exact, curve = medians_ms(calls), torch.cat(ours(method="exact")).cpu(), []
    for R in DIRECTIONS:
        scores = torch.cat(ours(directions=R)).cpu()
        curve.append({
            "directions": R, "ms": ms[R],
            "spearman": spearman(scores, of_all), "ratio": float((scores / of_all).median()),
        })  # fmt: skip
    default = curve[DIRECTIONS.index(DEFAULT)]
    name = f"{label}EGL, K = {K}, R = {DEFAULT}"
    rows = [
        row(f"{name}, against the plain way", ms[DEFAULT], ms["plain"]),
        row(f"{name}: Spearman with the plain way, {utterances} utterances", default["spearman"],
            unit=""),
        row(f"{name}: median ratio to the plain way", default["ratio"], unit=""),
        row(f"{label}EGL, K = {K}, exact, against the plain way", ms["exact"],
            ms["plain"]),
        row(f"{label}EGL, exact: largest relative error", float((exact / of_all - 1).abs().max()),
            unit=""),
        row(f"{name}, in training passes over the same utterances", ms[DEFAULT] / ms["training"],
            unit="x"),
        row(f"{label}last layer only, against the plain way", ms["last_layer"], ms["plain"]),
    ]  # fmt: skip
    return rows, curve


def egl() -> dict:
    model, batches = pool_batches()
    rows, curve = egl_rows(model, batches)
    return {"rows": rows, "curve": curve}


def autograd() -> dict:
    """What torch itself offers for K gradient norms of one utterance, for every recurrent cell."""
    model, batches = pool_batches()
    rows = []
    features = batches[0].features[:1]
    for kind in ("lstm", "gru", "rnn"):
        torch.manual_seed(0)
        other = DeepSpeech2(replace(model.config, cell=kind), model.layers[-1].out_features)
        other = model if kind == "lstm" else other.eval()
        with torch.no_grad():
            logits = other(features)
        found = n_best(logits.log_softmax(-1), K)
        g = labelings_gradients(logits.log_softmax(-1), found.labels, found.lengths)[0]
        ours = lambda: Tape(other, features).squared_norms(g[None])[0]  # noqa: B023, E731
        truth = AUTOGRAD["one by one"](other, features, g)
        assert torch.allclose(ours(), truth, rtol=1e-3)
        for name, form in AUTOGRAD.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing batching rules
                call = lambda: form(other, features, g)  # noqa: B023, E731
                assert torch.allclose(call(), truth, rtol=1e-3), name
                ms = medians_ms({"ours": (ours, 1), "theirs": (call, 1)})
            rows.append(
                row(f"{kind}: all {K} norms of one utterance, against autograd, {name}", **ms)
            )
    return {"rows": rows}


def beam() -> dict:
    """Our search with the rival's beam: no less mass, and how much faster. They take turns, but for
    pyctcdecode, which is in a process of its own."""
    model, batches = pool_batches()
    batch = max(batches, key=len)
    size = len(batch)
    with torch.no_grad():
        log_probs = model(batch.features).log_softmax(-1)
    search = lambda width: partial(n_best, log_probs, K, width)  # noqa: E731
    found = []  # name of the rival, width of the beam, milliseconds of both, its labelings
    for name, options in FLASHLIGHT.items():
        decode = flashlight(*options)
        if decode is None:
            print("flashlight-text is not installed: its rows are left out (see the Makefile)")
            break
        calls = {"ours": (search(options[0]), size), "theirs": (partial(decode, log_probs), size)}
        found.append((f"flashlight, {name}", options[0], medians_ms(calls), decode(log_probs)))
    for name, (seconds, labelings) in pyctcdecode(log_probs).items():
        ms = {"ours": median_ms(search(K), size), "theirs": 1e3 * seconds / size}
        found.append((f"pyctcdecode, {name}", K, ms, labelings))
    rows = []
    for name, width, ms, labelings in found:
        masses = n_best(log_probs, K, width), rescored(log_probs, labelings)
        rows += [
            row(f"{K} best, beam {width}, against {name}", **ms),
            row("    mean mass of the beams", *(x.mass().mean().item() for x in masses), "of 1"),
        ]
    return {"rows": rows or [row(f"{K} best, beam {K}", median_ms(search(K), size))]}


class Batches:
    """In a feature store's place: batches that are there already."""

    def __init__(self, batches: list):
        self._by_first = {b.utt_ids[0]: replace(b, features=b.features.cpu()) for b in batches}
        sizes = np.cumsum([len(b) for b in batches])
        self._rows = np.split(np.arange(sizes[-1]), sizes[:-1])
        self.utterances = pd.DataFrame({"utt_id": [u for b in batches for u in b.utt_ids]})
        self.utterances["text"] = ""

    def groups(self, utterances, size, rng=None) -> list:
        return self._rows

    def batch(self, utterances, encode=None) -> Batch:
        return self._by_first[utterances["utt_id"].iloc[0]]

    def batches(self, *_):
        return iter(())


def training_pass(model, batches):
    """A pass of training.fit over the batches, with all that it does but read them."""
    learner = DeepSpeech2(model.config, model.layers[-1].out_features)
    learner.to(batches[0].features.device)
    store, config = Batches(batches), TrainingConfig()
    return lambda: train.fit(
        learner, store, store.utterances, store.utterances, ENGLISH, config,
        updates=len(batches), rate=1e-3, seed=0, measured=1,
    )  # fmt: skip


def packed_pass(model, batches):
    """A pass with packed sequences and torch's own optimiser step, in single precision."""
    learner = DeepSpeech2(model.config, model.layers[-1].out_features)
    learner.layers = nn.Sequential(
        *(Packed(layer) if isinstance(layer, Bidirectional) else layer for layer in learner.layers)
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)

    def step(batch):
        log_probs = learner(batch.features).log_softmax(-1)
        loss = ctc_losses(log_probs, batch.labels, zero_infinity=True).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), TrainingConfig().clip)
        optimizer.step()

    return lambda: [step(batch) for batch in batches]


def training() -> dict:
    model, batches = pool_batches()
    passes = {"ours": training_pass(model, batches), "theirs": packed_pass(model, batches)}
    size = sum(map(len, batches))
    ms = medians_ms({name: (call, size) for name, call in passes.items()}, 3 * REPEATS)
    return {"rows": [row("training step, against packed sequences in fp32", **ms)]}


def loss_prediction() -> dict:
    """A predicted loss against a forward pass of the recogniser that it predicts for."""
    model, batches = pool_batches()
    settings = load_settings("laptop")
    torch.manual_seed(0)  # how long it takes does not depend on the weights
    learner = JointRecogniser(
        settings.model, settings.loss_prediction, model.layers[-1].out_features
    ).eval()
    size = sum(map(len, batches))
    forward = lambda: [learner(b.features) for b in batches]  # noqa: E731
    predict = lambda: [ACQUISITIONS["loss_prediction"](learner, b) for b in batches]  # noqa: E731
    with torch.no_grad():
        ratios = [median_ms(predict, size) / median_ms(forward, size) for _ in range(5)]
    name = "loss prediction, in forward passes over the same utterances"
    return {"rows": [row(name, statistics.median(ratios), unit="x")]}


def growth() -> dict:
    """EGL over pools of 1 k, 10 k and 50 k utterances, features streamed from the disk."""
    curve = []
    for size in (1000, 10_000, 50_000):
        call = f"import parts, json; print(json.dumps(parts.growth_of({size})))"
        out = subprocess.run(
            [sys.executable, "-c", call], cwd=Path(__file__).parent, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        curve.append(json.loads(out.splitlines()[-1]))
    first, last = curve[0], curve[-1]
    rows = []
    for point in curve:
        name = f"EGL scoring of {point['utterances']} utterances"
        rows.append(row(name, point["ms"]))
        rows.append(row("    peak memory of the process, mapped files aside", point["mib"],
                        unit="MiB"))  # fmt: skip
    rows += [
        row("time an utterance, 50 k against 1 k", last["ms"] / first["ms"], unit="x"),
        row("memory, 50 k over 1 k", last["mib"] - first["mib"], unit="MiB"),
    ]
    return {"rows": rows, "curve": curve}


def growth_of(size: int) -> dict:
    """Time and memory of one pool; the laptop pool's features over and over under new names."""
    torch.set_num_threads(1)
    keep_freed_memory()
    data, model = laptop()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        tile(Path(folder), data.store, list(data.split("pool")["utt_id"]), size)
        store = FeatureStore(Path(folder))
        utterances = pd.DataFrame({"utt_id": list(store.frames)})
        querying.score(model, store, utterances[:200], "egl")  # warm-up
        gauge, begun = Gauge(), time.perf_counter()
        scores = querying.score(model, store, utterances, "egl", checkpoint=gauge)
        seconds = time.perf_counter() - begun
    assert len(scores) == size and np.isfinite(scores).all()
    return {"utterances": size, "ms": 1e3 * seconds / size, "mib": gauge.mib}


class Gauge:
    """In a checkpoint's place: looks at the memory after each batch, and keeps nothing else."""

    def __init__(self):
        self.mib = anonymous_mib()

    def load(self) -> None:
        return None

    def due(self) -> bool:
        self.mib = max(self.mib, anonymous_mib())
        return False


def tile(folder: Path, store: FeatureStore, utt_ids: list, size: int) -> None:
    """Features of ``size`` utterances, those of ``utt_ids`` in turn, in a store's two files."""
    chosen = [utt_ids[i % len(utt_ids)] for i in range(size)]
    frames = [store.frames[utt_id] for utt_id in chosen]
    bins = store[chosen[0]].shape[1]
    out = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (sum(frames), bins))
    start = 0
    for utt_id, count in zip(chosen, frames, strict=True):
        out[start : start + count] = store[utt_id].numpy()
        start += count
    out.flush()
    index = pd.DataFrame({"utt_id": [f"u{i:06d}" for i in range(size)], "frames": frames})
    index.to_csv(folder / "index.csv", index=False)


def anonymous_mib() -> float:
    """Memory that this process holds now, pages of mapped files aside (the system may drop those);
    where Linux does not tell, its peak with them."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def gpu() -> dict:
    """EGL's rows on a GPU, where there is one: the laptop model and the paper's model."""
    if not torch.cuda.is_available():
        print("no GPU here: its rows are left out")
        return {"rows": []}
    model, batches = pool_batches()
    rows = egl_rows(model.cuda(), [b.to("cuda") for b in batches], "GPU, laptop model: ")[0]
    torch.manual_seed(0)
    settings = load_settings("paper")
    paper = DeepSpeech2(settings.model, model.layers[-1].out_features).cuda().eval()
    generator = torch.Generator().manual_seed(0)
    seconds = torch.randn(8, 400, settings.model.bins, generator=generator).cuda()  # four seconds
    batch = Batch(tuple("abcdefgh"), seconds, tuple([1, 2, 3] * 10 for _ in range(8)))
    return {"rows": rows + egl_rows(paper, [batch], "GPU, paper model: ")[0]}


# ---------------------------------------------------------------- few labels on a frozen encoder


def plain_train(X, y, classes, labelled, runs, step, config):
    """What few_labels.train does, the plain way: one nn.Linear and one Adam a learner, initial
    weights and order of its own."""
    X, y = torch.tensor(X), torch.tensor(y)  # copies: those may be read-only
    weights, biases = [], []
    for rows, run in zip(labelled, runs, strict=True):
        torch.manual_seed(1000 * run + step)
        layer, rows = nn.Linear(X.shape[1], classes), torch.as_tensor(rows)
        adam = torch.optim.Adam(layer.parameters(), lr=config.rate)
        for _ in range(config.epochs):
            for batch in rows[torch.randperm(len(rows))].split(config.batch):
                adam.zero_grad()
                nn.functional.cross_entropy(layer(X[batch]), y[batch]).backward()
                adam.step()
        weights.append(layer.weight.detach().numpy())
        biases.append(layer.bias.detach().numpy())
    return np.stack(weights), np.stack(biases)


def aloe() -> dict:
    """The stacked classifiers against one nn.Linear a learner; both on one task's embeddings."""
    settings = load_settings("laptop")
    encoder, config = settings.aloe.encoders[0], settings.aloe
    aloe_system.embeddings(settings, encoder)
    task, X = aloe_system.load(settings, "voice_kind", encoder)
    y, C, rows = task.labels, len(task.classes), []
    rng = np.random.default_rng(0)
    for count in (50, 330, 630):
        sets = [rng.permutation(task.rows("pool"))[:count] for _ in range(12)]
        arguments = lambda sets: (X, y, C, sets, range(len(sets)), 1, config)  # noqa: E731
        ours = median_ms(lambda: few_labels.train(*arguments(sets)), 12)  # noqa: B023
        theirs = median_ms(lambda: plain_train(*arguments(sets[:1])), 1, 3)  # noqa: B023
        name = f"ALOE: a fresh classifier, {count} labels, nn.Linear + Adam"
        rows.append(row(name, ours, theirs, "ms a classifier"))
    # the whole protocol, scores of the pool and all: Figure 3's strategies, both modes, one run
    short = replace(config, steps=10)
    protocol = lambda runs, names: few_labels.simulate(  # noqa: E731
        task, X, runs, names, few_labels.MODES, short
    )[0]
    names = ("random", "margin", "largest_margin", "least_confidence", "entropy", "norm")
    ours = median_ms(lambda: protocol([0], names), 1)
    with mock.patch.object(few_labels, "train", plain_train):
        theirs = median_ms(lambda: protocol([0], names), 1, 1)
    rows.append(row("ALOE: 10 steps of 6 strategies, both modes", ours, theirs, "ms a run"))
    ends = []
    for way in (few_labels.train, plain_train):
        with mock.patch.object(few_labels, "train", way):
            curves = protocol(range(10), ("random",))
        last = curves[(curves["step"] == short.steps) & (curves["mode"] == "aware")]
        ends.append(last.sort_values("run")["test"].to_numpy())
    mean, low, high = interval(ends[0] - ends[1])
    rows.append(row("... test accuracy after them, random, 10 runs", *map(np.mean, ends), "%"))
    rows.append(row("... their difference, low end of the 95 % interval", low, None, "points"))
    rows.append(row("... their difference, high end", high, None, "points"))
    return {"rows": rows}
