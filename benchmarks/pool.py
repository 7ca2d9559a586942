"""The paper's pool in shards: what a query of 1.1 million utterances costs, and two processes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import pool_batches, row

from alspeech.acquisition import egl
from alspeech.experiment import ALL, all_scores, base_model, new_model, pool_scores, queried, shard
from alspeech.speech import corpus
from alspeech.workshop.config import ROOT, ModelConfig, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.processes import cores, keep_freed_memory
from alspeech.workshop.store import stored, torch_bytes, write_bytes

UTTERANCES, SHARDS, FRAMES, BINS = 1_100_000, 4, 16, 4
TEXT = "a sentence as long as they are in books that are read aloud " * 3  # as in LibriSpeech
SECONDS = 10  # that a process scores, three times
HOME = ROOT / "build" / "pool"  # with the configs of the repository, and a store of its own
MODEL = ModelConfig(bins=BINS, channels=2, layers=1, hidden=4, kernels=((3, 3),), strides=((2, 2),))


def million(utterances: int = UTTERANCES) -> dict:
    """Features simulated, shards real: scored at random, which reads every batch; then the query,
    merge and ranking and the ids of every percentage, in a process of its own."""
    shutil.rmtree(HOME, ignore_errors=True)
    shutil.copytree(ROOT / "configs", HOME / "configs")
    try:
        told = {}
        for part in ("simulate", "score", "ask"):
            call = f"import pool, json; print(json.dumps(pool.{part}({utterances})))"
            out = subprocess.run(
                [sys.executable, "-c", call], cwd=Path(__file__).parent, check=True,
                stdout=subprocess.PIPE, text=True, env={**os.environ, "ALSPEECH_ROOT": str(HOME)},
            ).stdout  # fmt: skip
            told[part] = json.loads(out.splitlines()[-1])
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
    asked, thousand = told["ask"], f"{utterances // 1000} k utterances"
    return {"rows": [
        row(f"query of {thousand}, {SHARDS} shards: merge, rank", asked["cpu"], unit="CPU s"),
        row("    of that a merge", asked["merge"], unit="CPU s"),
        row("    peak memory of the process, torch and all", asked["mib"], unit="MiB"),
        row(f"one shard of {SHARDS}, scored at random: memory", told["score"]["mib"], unit="MiB"),
    ]}  # fmt: skip


def _settings(utterances: int):
    own = replace(load_settings("paper"), scenarios=("even",), rates=(), model=MODEL)
    build = replace(own.build, base=1, pool=utterances, validation=1, test=1)
    own = replace(own, build=build, strategies=("random",), shards=SHARDS, seeds=1)
    return own.on("even")


def simulate(utterances: int) -> None:
    """Corpus, features and base model, each in the folder of its step."""
    settings, rng = _settings(utterances), np.random.default_rng(0)
    made = {"base": 1, "pool": utterances, "validation": 1, "test": 1}
    ids = [(split, f"{split}-{i:07d}") for split, n in made.items() for i in range(n)]
    frames = FRAMES * (1 + rng.integers(0, 4, len(ids)))

    def manifest(folder):
        with open(folder / "manifest.jsonl", "w", encoding="utf-8") as file:
            for (split, utt_id), count in zip(ids, frames.tolist(), strict=True):
                line = {"utt_id": utt_id, "audio_filepath": f"audio/{utt_id}.flac",
                        "duration": count / 100, "text": TEXT, "split": split, "speaker": "0001",
                        "chapter": "000001", "kind": "command"}  # fmt: skip
                file.write(json.dumps(line) + "\n")

    def features(folder):
        lines = (f"{utt_id},{n}\n" for (_, utt_id), n in zip(ids, frames.tolist(), strict=True))
        (folder / "index.csv").write_text("utt_id,frames\n" + "".join(lines))
        shape = (int(frames.sum()), BINS)
        data = np.lib.format.open_memmap(folder / "features.npy", "w+", "f2", shape)
        for start in range(0, len(data), 1_000_000):
            part = data[start : start + 1_000_000]
            part[:] = rng.standard_normal(part.shape, dtype="f4")

    def weights(folder):
        write_bytes(folder / "model.pt", torch_bytes(new_model(settings, 0).state_dict()))

    made = {corpus.corpus: manifest, corpus.features: features}
    for make, fill in made.items():
        step = make(settings)
        stored(ROOT / step.place, step.name, step.config, fill)
    step = base_model(settings, 0)
    stored(ROOT / step.place, step.name, step.config, weights)


def score(utterances: int) -> dict:
    """The first shard here, to see the memory that it takes; the others by as many processes as
    there are cores."""
    settings = _settings(utterances)
    shard(settings, "random", 0, 0).folder()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    all_scores(settings)
    shutil.rmtree(pool_scores(settings, "random", 0).folder())  # the merge is timed apart
    return {"mib": peak}


def ask(utterances: int) -> dict:
    """The query step: shares of the pool, all of it, and what an hour of audio buys."""
    settings, begun = _settings(utterances), time.process_time()
    pool_scores(settings, "random", 0).folder()
    merged = time.process_time()
    for amount in settings.query_percents:
        chosen = queried(settings, "random", amount, 0)
        assert len(chosen) == round(utterances * amount / 100)
    assert len(queried(settings, ALL, 100, 0)) == utterances
    assert queried(replace(settings, query_seconds=(3600.0,)), "random", 3600.0, 0)
    return {
        "cpu": time.process_time() - begun, "merge": merged - begun,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def workers() -> dict:
    """EGL of the laptop preset's pool by one process and by two, which take turns: others may use
    the machine as well."""
    if cores() < 2:
        raise UserError("workers: two processes are held against one: a second core is needed")
    call = [sys.executable, "-c", "import pool; pool.worker()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(call, cwd=Path(__file__).parent, **pipes) for _ in range(2)]
    try:
        for process in both:
            process.stdout.readline()  # it is warm
        scored = {1: 0, 2: 0}
        for count in (1, 2, 2, 1, 1, 2):
            for process in both[:count]:
                print(file=process.stdin, flush=True)
            scored[count] += sum(int(process.stdout.readline()) for process in both[:count])
    finally:
        for process in both:
            process.kill()
    one, two = (1e3 * 3 * SECONDS / scored[count] for count in (1, 2))  # ms an utterance
    return {"rows": [row("EGL scoring by two processes (theirs: by one)", two, one)]}


def worker() -> None:
    """Scores for so many SECONDS whenever a line comes in, and says how many utterances."""
    torch.set_num_threads(1)
    keep_freed_memory()
    model, batches = pool_batches()
    with torch.no_grad():
        for batch in batches[:2]:
            egl(model, batch)
        print("ready", flush=True)
        for _ in sys.stdin:
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < SECONDS:
                batch = batches[done % len(batches)]
                egl(model, batch)
                done += 1
            print(sum(len(batches[i % len(batches)]) for i in range(done)), flush=True)
