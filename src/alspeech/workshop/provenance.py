"""Result tables, written beside the record of where they come from."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

from .config import ROOT, Settings, load_scenario
from .processes import cores
from .store import plain, sweep, write_csv, write_json


def tidy(settings: Settings) -> None:
    """Remove what killed runs left unfinished and nobody will go on from."""
    for folder in ("data", "build/cells", f"results/{settings.run}"):
        sweep(ROOT / folder)


def publish(
    settings: Settings, tables: dict[str, pd.DataFrame], record: str, steps: list[Path],
    begun: float,
) -> Path:  # fmt: skip
    """Write ``results/<run>/<name>.csv`` for every table, and ``<record>.json``: what they came
    from, settings, scenarios, seeds, versions, hardware, times and commit. Returns the folder.

    The record stays as it is where it is of the same settings and newer than all folders of
    ``steps`` that the tables are made of. ``begun`` is the run's first reading of
    ``time.perf_counter``.
    """
    output = ROOT / "results" / settings.run
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_csv(output / f"{name}.csv", table)
    path, steps = output / f"{record}.json", set(steps)
    config = asdict(settings)
    del config["drawn"]  # the current scenario's, of all that are listed
    asked = plain({
        "run": settings.run,
        "config": {**config, "data": Path(settings.data).name},
        "scenarios": {name: asdict(load_scenario(name)) for name in settings.scenarios},
        "seeds": list(range(settings.seeds)),
    })  # fmt: skip
    if path.exists() and path.stat().st_mtime >= max(step.stat().st_mtime for step in steps):
        before = json.loads(path.read_text())
        if asked == {name: before.get(name) for name in asked}:
            return output
    seconds = [json.loads((step / "metrics.json").read_text())["seconds"] for step in steps]
    write_json(path, {
        **asked,
        "wall_seconds": round(time.perf_counter() - begun, 1),
        "process_seconds": round(sum(seconds), 1),  # of every step, models and scores among them
        "steps": len(steps),
        **surroundings(),
    })  # fmt: skip
    return output


def surroundings() -> dict:
    """When, from which commit, with which versions and on which machine something was measured."""
    packages = ("torch", "torchaudio", "numpy", "numba", "pandas", "jiwer", "espeakng-loader")
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "configs")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "hardware": {
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
            "machine": platform.machine(),
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.system(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        out = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout
    return out.stdout.strip()
