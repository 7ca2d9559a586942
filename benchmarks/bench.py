"""``make bench``: speed as ratios within one run. Prints a table; writes build/bench.json and .png.

Legend: B batch, T frames, V symbols, K labelings, R directions.

Every part runs in a process of its own, on one thread, warmed up, both sides of a ratio on the same
inputs and in the same process; times are medians of REPEATS. The inputs are the laptop preset's
pool and its first base model, which are made if they are not there yet (two minutes).

    python benchmarks/bench.py [PART …]

where the parts are egl, autograd, beam, training, loss_prediction, aloe, growth and gpu.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from alspeech import experiment, plots
from alspeech.config import ROOT, UserError, load_settings
from alspeech.processes import keep_freed_memory

K, REPEATS, UTTERANCES = 100, 5, 128
OUTPUT = ROOT / "build" / "bench"
PARTS = ("egl", "autograd", "beam", "training", "loss_prediction", "aloe", "growth", "gpu")


def row(name: str, ours: float, theirs: float | None = None, unit: str = "ms an utterance") -> dict:
    """One line of the table: a time (or number) of ours, of a rival, how many times faster."""
    ratio = theirs / ours if theirs is not None and ours else None
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit}


def median_ms(call, utterances: int, repeats: int = REPEATS) -> float:
    """Median milliseconds an utterance of ``call()``, which handles so many of them."""
    call()  # warm-up: kernels compiled, memory allocated
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times) / utterances


def pool_batches(size: int = 32) -> tuple:
    """The laptop preset's first base model, and at least UTTERANCES of its pool in batches drawn at
    random, with transcripts."""
    settings = load_settings("laptop")
    data = experiment.prepare(settings)
    model = experiment.load_base(settings, seed=0).cpu()
    pool = data.split("pool")
    batches = []
    for index in data.store.groups(pool, size, np.random.default_rng(0)):
        batches.append(data.store.batch(pool.iloc[index], data.alphabet.encode))
        if sum(map(len, batches)) >= UTTERANCES:
            return model, batches


def table(rows: list[dict]) -> str:
    lines = [f"{'':<64}{'ours':>10}{'theirs':>10}{'ratio':>9}"]
    number = lambda x, width: " " * width if x is None else f"{x:>{width}.4g}"  # noqa: E731
    for r in rows:
        ratio = f"{r['ratio']:>8.1f}x" if r["ratio"] is not None else " " * 9
        cells = number(r["ours"], 10) + number(r["theirs"], 10)
        lines.append(f"{r['name']:<64}{cells}{ratio}  {r['unit']}")
    return "\n".join(lines)


def main(parts: list[str]) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"unknown part '{unknown[0]}': choose of {', '.join(PARTS)}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    experiment.base_models(replace(load_settings("laptop"), seeds=1))  # before any clock runs
    for part in parts:
        print(f"# {part}", flush=True)
        subprocess.run([sys.executable, __file__, "--part", part], check=True)
    found = [OUTPUT / f"{part}.json" for part in PARTS]
    records = {path.stem: json.loads(path.read_text()) for path in found if path.exists()}
    rows = [r for record in records.values() for r in record["rows"]]
    where = {**experiment.surroundings(), "utterances": UTTERANCES, "repeats": REPEATS}
    experiment.write_json(ROOT / "build" / "bench.json", {"where": where, "rows": rows})
    print("\n" + table(rows))
    if {"egl", "growth"} <= records.keys():
        picture(records["egl"]["curve"], records["growth"]["curve"])


def picture(directions: list[dict], growth: list[dict]) -> None:
    """build/bench.png: cost and agreement of EGL by R; time and memory by the size of the pool."""
    plots.use_style()
    figure, axes = plt.subplots(1, 3, figsize=(6.5, 2.2), layout="constrained")
    for ax, points, x, y in (
        (axes[0], directions, "ms", "spearman"),
        (axes[1], growth, "utterances", "ms"),
        (axes[2], growth, "utterances", "mib"),
    ):
        ax.plot([p[x] for p in points], [p[y] for p in points], color="#D55E00", marker="D")
    for p in directions:
        axes[0].annotate(p["directions"], (p["ms"], p["spearman"]), (4, -8),
                         textcoords="offset points", fontsize=7)  # fmt: skip
    axes[0].set(
        xlabel="ms an utterance", ylabel="Spearman's ρ with plain EGL", title="R directions"
    )
    axes[1].set(xlabel="utterances in the pool", ylabel="ms an utterance", xscale="log")
    axes[2].set(xlabel="utterances in the pool", ylabel="memory (MiB)", xscale="log")
    axes[0].margins(0.12)
    for ax, y in zip(axes[1:], ("ms", "mib"), strict=True):
        ax.set_ylim(0, 1.2 * max(p[y] for p in growth))
    plots.save(figure, ROOT / "build", "bench")


def run_part(part: str) -> None:
    import parts

    torch.set_num_threads(1)
    keep_freed_memory()
    record = getattr(parts, part)()
    experiment.write_json(OUTPUT / f"{part}.json", record)
    print(table(record["rows"]), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        run_part(sys.argv[2]) if sys.argv[1:2] == ["--part"] else main(sys.argv[1:] or list(PARTS))
    except UserError as error:
        sys.exit(f"error: {error}")
