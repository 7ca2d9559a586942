"""Steps: folders found by what they depend on, computed if they are missing, and never twice.

    step = base_model(settings, seed=0)    # described: nothing is done yet
    step.folder()                          # where it is; computed first, if it is missing
    in_parallel(base_model, settings, [(0,), (1,)], "base models")    # many of them

A step says its name, how to compute it, and what else its content depends on: the steps before it
and settings. Together with the source that computes it (sources.py) these are its key.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from . import engines
from .config import ROOT, Settings
from .errors import cut
from .processes import end_with_parent, keep_freed_memory, use_device
from .sources import code
from .store import CHECKPOINT, fingerprint, intact, plain, stored, write_json


@dataclass(frozen=True)
class Step:
    """A folder ``place/name-<key>`` and how it comes about."""

    name: str
    # fills a folder; what it returns, if anything, becomes metrics.json, beside its seconds (of
    # the process that came to the end, where others had been killed). Its source is in the key;
    # what it is handed by the function around it must be in ``given``, or follow from ``after``
    compute: Callable[[Path], dict | None]
    after: tuple = ()  # steps that it goes on from
    given: dict = field(default_factory=dict)  # settings and whatever else decides its content
    place: str = "build/cells"
    resume: bool = True  # does compute go on from what a killed run left in its folder?
    processes: int = 1  # how many compute starts, each of which wants a core or a GPU

    @functools.cached_property
    def config(self) -> dict:
        """The key in full: what ``config.json`` in the folder says."""
        after = {step.name: step.key for step in self.after}
        record = {"step": self.name, "after": after, "given": self.given}
        return plain({**record, "code": code(self.compute)})

    @property
    def key(self) -> str:
        return fingerprint(self.config)

    def find(self) -> Path | None:
        """The folder if it is there, whole; else None."""
        return stored(ROOT / self.place, self.name, self.config, None)

    def folder(self) -> Path:
        """The folder, computed first if it is missing."""
        return stored(ROOT / self.place, self.name, self.config, self._fill, self.resume)

    def _fill(self, folder: Path) -> None:
        for step in self.after:  # else its seconds would be counted as this one's
            step.folder()
        begun = time.perf_counter()
        metrics = self.compute(folder)
        if metrics is not None:
            seconds = round(time.perf_counter() - begun, 2)
            write_json(folder / "metrics.json", {**metrics, "seconds": seconds})
        (folder / CHECKPOINT).unlink(missing_ok=True)


def in_parallel(make, settings: Settings, tasks: list[tuple], label: str) -> list[Path]:
    """The folders of the steps ``make(settings, *task)``: those that are missing are computed, one
    process a core (one in all on a GPU) or by another engine (engines.py), with a progress bar
    that shows the time left.

    An exception of a worker is raised here, with a note of its step and task.
    """
    steps = [make(settings, *task) for task in tasks]
    missing = [i for i, step in enumerate(steps) if step.find() is None]
    if missing:
        # an engine's work is pickled when it is handed out: what came back until then is in it
        local = engines.chosen() == "local"
        known = (os.getpid(), frozenset(intact)) if local else (0, intact)
        work = functools.partial(_worker, make, settings, *known)
        todo = [tasks[i] for i in missing], [steps[i] for i in missing]
        with tqdm(total=len(missing), desc=label, unit="task") as bar:
            for _ in engines.run(work, *todo):
                bar.update()
    return [step.folder() for step in steps]


def _worker(make, settings: Settings, parent: int, unharmed: Set[Path], task: tuple) -> None:
    """Runs in a worker process, which has one core to itself (or in the parent, if that has one).

    ``parent`` is the process that started it, 0 where an engine did, on whatever machine;
    ``unharmed`` are the folders that the process which described the work has found intact: a
    corpus is not read whole by each of hundreds of tasks.
    """
    import torch

    if not parent:
        use_device()
    elif os.getpid() != parent:
        _once_a_worker(parent)
    intact.update(unharmed)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        make(settings, *task).folder()
    except Exception as error:
        *what, seed = task
        told = [make.__name__.replace("_", " "), *what, "seed", seed]
        error.add_note(" ".join(map(cut, told)))
        raise


_once_a_worker = functools.cache(end_with_parent)
