"""A step: found by what it depends on, computed once, one at a time or side by side."""

import json
import os
import pickle
from dataclasses import replace

import joblib
import pytest

from alspeech.workshop import engines, steps, store
from alspeech.workshop.config import ModelConfig, Settings
from alspeech.workshop.processes import cores, end_workers
from alspeech.workshop.steps import Step, in_parallel
from alspeech.workshop.store import Checkpoint


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setenv("ALSPEECH_JOBS", "1")  # tasks run in this process, which has that root
    return tmp_path


def word(text: str, **changes) -> Step:
    return Step("word", lambda folder: (folder / "word").write_text(text) and None, **changes)


def test_a_step_is_described_first_and_computed_once():
    calls = []
    step = Step("x", lambda folder: calls.append(1))
    assert step.find() is None and calls == []
    assert step.folder() == step.find() == step.folder() and calls == [1]
    assert step.folder().name == f"x-{step.key}"


def test_what_compute_returns_is_written_with_its_seconds_and_no_checkpoint_is_left():
    def compute(folder):
        Checkpoint(folder).save({"half": 1})
        return {"wer": 12.5}

    folder = Step("x", compute).folder()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("seconds") >= 0 and metrics == {"wer": 12.5}
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "config.json", "checksums.json"
    }  # fmt: skip


@pytest.mark.parametrize("change", [
    {"name": "y"},
    {"given": {"model": ModelConfig(layers=7)}},
    {"given": {"model": ModelConfig(), "seed": 1}},
    {"after": (Step("z", print),)},
    {"after": (Step("before", print, given={"seed": 2}),)},
])  # fmt: skip
def test_whatever_a_step_depends_on_is_in_its_key(change):
    before = Step("before", print, given={"seed": 1})
    step = Step("x", print, after=(before,), given={"model": ModelConfig()})
    assert replace(step).key == step.key != replace(step, **change).key


@pytest.mark.parametrize("cores, tasks, processes", [(1, 3, 1), (16, 40, 16), (16, 3, 3)])
def test_as_many_processes_as_there_are_cores_and_something_to_do(
    monkeypatch, cores, tasks, processes
):
    class Serial(joblib.Parallel):
        def __init__(self, n_jobs, **options):
            asked.append(n_jobs)
            super().__init__(n_jobs=1, **options)

    asked = []
    monkeypatch.delenv("ALSPEECH_JOBS")
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(joblib, "Parallel", Serial)
    make = lambda settings, n: Step(f"step-{n}", lambda folder: {"n": n})  # noqa: E731
    folders = in_parallel(make, None, [(n,) for n in range(tasks)], "steps")
    assert asked == [processes] and len(set(folders)) == tasks


def test_what_an_exception_came_from_is_told_in_a_line_however_much_a_task_holds():
    def fail(folder):
        raise ValueError("no")

    make = lambda settings, texts, seed: Step("x", fail)  # noqa: E731
    with pytest.raises(ValueError) as error:
        in_parallel(make, None, [(("text",) * 1000, 0)], "steps")
    (note,) = error.value.__notes__
    assert note.startswith("<lambda> ('text'") and note.endswith("… seed 0") and len(note) < 100


def test_workers_that_have_nothing_left_to_do_are_ended_and_others_start_when_there_is():
    ids = lambda: set(joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(4)))  # noqa: E731
    found = ids()
    assert os.getpid() not in found
    end_workers()
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert found.isdisjoint(ids())
    end_workers()
    end_workers()  # there are none


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="binds a process to a core")
def test_a_process_that_is_bound_to_one_core_counts_one(monkeypatch):
    monkeypatch.delenv("ALSPEECH_JOBS")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_step_that_was_killed_goes_on_or_begins_anew():
    def compute(folder):
        found.append((folder / "half").exists())
        (folder / "half").write_text("")
        if len(found) < 2:
            raise KeyboardInterrupt

    for resume in (True, False):
        found = []
        step = Step(f"x{resume}", compute, resume=resume)
        with pytest.raises(KeyboardInterrupt):
            step.folder()
        step.folder()
        assert found == [False, resume]


def test_a_cache_of_another_house_is_left_alone(root):
    """A folder of the same name whose key, or whose files, are those of older code."""
    step = word("new")
    old = root / "build" / "cells" / "word-0123456789"
    old.mkdir(parents=True)
    (old / "config.json").write_text('{"step": "word", "code": "older"}')
    (old / "word").write_text("old")
    assert (step.folder() / "word").read_text() == "new"
    assert (old / "word").read_text() == "old"


MADE = []


def numbered(settings: Settings, number: int, seed: int) -> Step:
    def compute(folder):
        if number == 13:
            raise ValueError("no luck")
        MADE.append(number)

    return Step(f"numbered-{number}", compute, given={"seed": seed})


def test_of_many_only_those_are_computed_that_are_missing(capsys):
    MADE.clear()
    settings = Settings("tiny")
    first = numbered(settings, 2, 0).folder()
    folders = in_parallel(numbered, settings, [(n, 0) for n in range(4)], "numbers")
    assert sorted(MADE) == [0, 1, 2, 3] and folders[2] == first
    assert [folder.name.split("-")[1] for folder in folders] == ["0", "1", "2", "3"]
    in_parallel(numbered, settings, [(n, 0) for n in range(4)], "numbers")
    assert len(MADE) == 4


def test_an_error_names_its_step_and_task():
    with pytest.raises(ValueError, match="no luck") as error:
        in_parallel(numbered, Settings("tiny"), [(13, 5)], "numbers")
    assert error.value.__notes__ == ["numbered 13 seed 5"]


def corpus() -> Step:
    return word("large")


def learned(settings: Settings, seed: int) -> Step:
    return Step(f"learned-{seed}", lambda folder: {}, after=(corpus(),))


def judged(settings: Settings, seed: int) -> Step:
    return Step(f"judged-{seed}", lambda folder: {}, after=(learned(settings, seed),))


def both(settings: Settings, what: str, seed: int) -> Step:
    return {"learned": learned, "judged": judged}[what](settings, seed)


def test_a_machine_elsewhere_does_not_read_again_what_was_found_intact(monkeypatch):
    """Neither the corpus nor, when it comes to the second wave, what the first one has made."""
    checksum, read, here = store.checksum, [], set()

    def reads(path):
        read.append(path)
        return checksum(path)

    def elsewhere(work, tasks, names, processes):
        for task in tasks:
            sent = pickle.dumps((work, task))
            here.update(store.intact)
            store.intact.clear()  # another process begins
            monkeypatch.setattr(store, "checksum", reads)
            work, task = pickle.loads(sent)
            work(task)
            monkeypatch.setattr(store, "checksum", checksum)
            store.intact.clear()
            store.intact.update(here)
            yield

    monkeypatch.setenv("ALSPEECH_ENGINE", "ray")
    monkeypatch.setattr(engines, "_ray", elsewhere)
    monkeypatch.setattr(engines, "_see", lambda step: step.find())
    corpus().folder()
    tasks = [("learned", 0), ("judged", 0), ("learned", 1), ("judged", 1)]
    folders = in_parallel(both, Settings("tiny"), tasks, "both")
    assert len(read) == 2 * len(folders)  # what they write: config.json and metrics.json
    assert {path.parent.name.strip(".").removesuffix(".unfinished") for path in read} == {
        folder.name for folder in folders
    }
