"""``make bench``: speed as ratios within one run. Prints a table; writes build/bench.json and .png.

Legend: B batch, T frames, V symbols, K labelings, R directions.

Every part runs in a process of its own, on one thread, warmed up, both sides of a ratio on the same
inputs and in the same process; times are medians of REPEATS. The inputs are the laptop preset's
pool and its first base model, which are made if they are not there yet (two minutes).

    python benchmarks/bench.py [PART …]

where the parts are egl, autograd, beam, cell, training, variance, selecting, recognising,
shortlist, loss_prediction, aloe, growth, million, workers and gpu.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import parts
import torch
from measure import REPEATS, UTTERANCES, table

from alspeech import experiment
from alspeech.workshop import plots
from alspeech.workshop.config import ROOT, load_settings
from alspeech.workshop.errors import UserError, one_of
from alspeech.workshop.processes import keep_freed_memory
from alspeech.workshop.provenance import surroundings
from alspeech.workshop.store import write_json

OUTPUT = ROOT / "build" / "bench"
PARTS = (
    "egl", "autograd", "beam", "cell", "training", "variance", "selecting", "recognising",
    "shortlist", "loss_prediction", "aloe", "growth", "million", "workers", "gpu",
)  # fmt: skip


def main(names: list[str]) -> None:
    for part in names:
        one_of("part", part, PARTS)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    experiment.base_models(replace(load_settings("laptop"), seeds=1))  # before any clock runs
    for part in names:
        print(f"# {part}", flush=True)
        subprocess.run([sys.executable, __file__, "--part", part], check=True)
    found = [OUTPUT / f"{part}.json" for part in PARTS]
    records = {path.stem: json.loads(path.read_text()) for path in found if path.exists()}
    rows = [r for record in records.values() for r in record["rows"]]
    where = {part: record["where"] for part, record in records.items()}
    write_json(ROOT / "build" / "bench.json", {"where": where, "rows": rows})
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
    torch.set_num_threads(1)
    keep_freed_memory()
    where = {**surroundings(), "utterances": UTTERANCES, "repeats": REPEATS}
    record = getattr(parts, part)() | {"where": where}
    write_json(OUTPUT / f"{part}.json", record)
    print(table(record["rows"]), flush=True)


if __name__ == "__main__":
    try:
        run_part(sys.argv[2]) if sys.argv[1:2] == ["--part"] else main(sys.argv[1:] or list(PARTS))
    except UserError as error:
        sys.exit(f"error: {error}")
