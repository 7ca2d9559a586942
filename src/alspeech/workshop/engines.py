"""Where tasks are computed: on this machine, on a Ray cluster, or as jobs of Slurm.

``ENGINE=local|ray|slurm`` (``ALSPEECH_ENGINE``) chooses, and changes nothing but the place and the
time: every task fills a folder of the store, from where a lost one is gone on with. Ray and
submitit are extras, imported only when they are asked for. CONTRIBUTING.md says what the file
system must promise that all machines see.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib

from .config import ROOT
from .errors import AGAIN, Detached, UserError, cut, one_of
from .processes import cores, interrupts_held, on_a_gpu, side_by_side
from .store import write_text

ENGINES = ("local", "ray", "slurm")
TRIES = 3  # of a task that its worker did not live to finish, and of its job that was cut short
SEEN_SECONDS = 60.0  # a network file system may show a new folder only after so long
# Slurm may know a new job only after so long, or queue again one that had to make room
KNOWN_SECONDS = 300.0
POLL_SECONDS = 1.0


def chosen() -> str:
    """The engine's name. Raises ``UserError`` for one that there is not."""
    name = os.environ.get("ALSPEECH_ENGINE") or "local"
    one_of("engine", name, ENGINES)
    return name


def run(work, tasks: list[tuple], steps: list) -> Iterator[None]:
    """``work(task)`` for every task, to fill the folder of its step; yields as each is done. On a
    cluster a step that needs another one's folder begins when that one is done.

    Raises what a task raises, and ``UserError`` where a worker was lost, or an engine is not there.
    """
    name = chosen()
    if name == "local":
        yield from _local(work, tasks, max(step.processes for step in steps))
        return
    engine = {"ray": _ray, "slurm": _slurm}[name]
    for wave in waves(steps):
        names = [f"{steps[i].name}-{steps[i].key}" for i in wave]
        processes = max(steps[i].processes for i in wave)
        yield from engine(work, [tasks[i] for i in wave], names, processes)
        for i in wave:
            _see(steps[i])


def waves(steps: list) -> list[list[int]]:
    """Numbers of steps that wait for none of the others, of those that wait for these, and so on.

    ``steps`` have a ``key`` and the steps that come before them, ``after``."""
    places = {step.key: i for i, step in enumerate(steps)}
    depths: dict[str, int] = {}

    def depth(step) -> int:
        if step.key not in depths:
            before = max(map(depth, step.after), default=0)
            depths[step.key] = before + (step.key in places)
        return depths[step.key]

    found: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        found.setdefault(depth(step), []).append(i)
    return [found[number] for number in sorted(found)]


def _see(step) -> None:
    """Wait until a folder that another machine has finished is to be seen on this one."""
    begun = time.monotonic()
    while step.find() is None:
        if time.monotonic() - begun > SEEN_SECONDS:
            raise UserError(
                f"{step.name}-{step.key} is finished elsewhere and not to be seen in "
                f"{ROOT / step.place}: do all machines see this folder? {AGAIN}"
            )
        time.sleep(POLL_SECONDS)


def extra(module: str, name: str):
    """A module of the extra ``name``. Raises ``UserError`` where that is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"ENGINE={name} needs {module}, which is not installed: run make "
            f".venv/{name}-installed, or pip install '.[{name}]'"
        ) from None


# ---------------------------------------------------------------- this machine


def _local(work, tasks: list[tuple], processes: int) -> Iterator[None]:
    jobs = side_by_side() if on_a_gpu() else max(1, cores() // processes)
    engine = joblib.Parallel(
        n_jobs=min(jobs, len(tasks)), return_as="generator_unordered", batch_size=1
    )
    calls = (joblib.delayed(work)(task) for task in tasks)
    with warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown (oneDNN keeps a kernel a shape), and
        # warns; the tasks are not touched
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        with interrupts_held():
            results = engine(calls)
        for _ in results:
            yield


def _attempt(work, task: tuple) -> Exception | None:
    """A task on another machine: what it raises comes back as it is, with its notes."""
    try:
        work(task)
    except Exception as error:
        return error
    return None


# ---------------------------------------------------------------- Ray


def _ray(work, tasks: list[tuple], names: list[str], processes: int) -> Iterator[None]:
    """A Ray task each, on one core or on its share of a GPU, or as many as its ``processes``; one
    whose worker or node is lost is tried again, on whatever machine there is."""
    ray = extra("ray", "ray")
    _connect(ray)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = _gpus(machines, processes)
    task = ray.remote(num_cpus=processes, num_gpus=gpus, max_retries=TRIES)(_attempt)
    known = zip(tasks, names, strict=True)
    waiting = {task.options(name=name).remote(work, what): name for what, name in known}
    while waiting:
        (done, *_), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(done)
        try:
            error = ray.get(done)
        except ray.exceptions.OutOfMemoryError:
            told = f"its worker ran out of memory {TRIES + 1} times: give it a larger machine"
            raise UserError(f"{name}: {told}; {AGAIN}") from None
        except ray.exceptions.RayError as lost:
            told = cut(" ".join(str(lost).split()), 120)
            raise UserError(f"{name}: Ray lost its worker too often ({told}); {AGAIN}") from None
        if error is not None:
            raise error
        yield


def _connect(ray) -> None:
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    # how often a task is tried again that was ended for its memory; Ray's own default is for ever
    os.environ.setdefault("RAY_task_oom_retries", str(TRIES))
    words = {name: os.environ[name] for name in os.environ if name.startswith("ALSPEECH_")}
    options = {} if address else {"num_cpus": cores(), "include_dashboard": False}
    try:
        ray.init(
            address or "local", runtime_env={"env_vars": words} if words else None,
            logging_level="WARNING", **options,
        )  # fmt: skip
    except Exception as error:  # Ray has many, some of them of no class of their own
        told = cut(" ".join(str(error).split()), 120)
        where = f"at RAY_ADDRESS={cut(address)}" if address else "to be had on this machine"
        raise UserError(f"no Ray cluster {where} ({told}): start one by ray start --head, or leave "
                        "RAY_ADDRESS empty") from None  # fmt: skip


def _gpus(machines: list[dict[str, float]], processes: int) -> float:
    """The GPUs that a task of so many processes gets, a part of one where it is alone, on a cluster
    of machines with so many ``CPU`` and ``GPU``."""
    wanted, gpus = os.environ.get("ALSPEECH_DEVICE", ""), 0
    if wanted != "cpu" and any(machine.get("GPU") for machine in machines):
        gpus = processes if processes > 1 else 1 / side_by_side()
    if wanted not in ("", "cpu") and not gpus:
        raise UserError(f"DEVICE={wanted}: the Ray cluster has no GPU: leave DEVICE out")
    if processes > 1 and not any(
        machine.get("CPU", 0) >= processes and machine.get("GPU", 0) >= gpus for machine in machines
    ):
        told = f"{processes} cores" + (f" and {gpus} GPUs" if gpus else "")
        raise UserError(f"PROCESSES={processes}: they share a machine, and none of the Ray cluster "
                        f"has {told}")  # fmt: skip
    return gpus


# ---------------------------------------------------------------- Slurm


class Job:
    """A task as submitit runs it. Slurm ends a job by a signal and queues it again, and the task
    goes on from the checkpoint in its folder."""

    def __init__(self, work, task: tuple):
        self.work, self.task = work, task
        self.cut_short = False

    def __call__(self) -> Exception | None:
        error = _attempt(self.work, self.task)
        if error is not None and self.cut_short:  # and Slurm refused to queue it again
            raise error
        return error

    def checkpoint(self):
        self.cut_short = True
        again = Job(self.work, self.task)
        return importlib.import_module("submitit").helpers.DelayedSubmission(again)


# minutes until a job is queued again, and what it is given beside its cores
DEFAULTS = {"name": "alspeech", "timeout_min": 240, "mem_gb": 8}
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING")


def _slurm(work, tasks: list[tuple], names: list[str], processes: int) -> Iterator[None]:
    """A job each, in arrays. What an earlier command has submitted and is still queued or runs is
    waited for, what that has failed of is told, the rest is submitted; with ``DETACH=1`` nobody
    waits."""
    submitit = extra("submitit", "slurm")
    executor = _executor(submitit, processes)
    here = executor.cluster != "slurm"  # submitit's local executor starts what it is given at once
    most = max(1, cores() // processes) if here else len(tasks)
    known = dict(zip(names, tasks, strict=True))
    jobs = _submitted(submitit, executor, names)
    left = [name for name in names if name not in jobs]
    made_room: dict[str, float] = {}
    while left or jobs:
        now, left = left[: most - len(jobs)], left[max(0, most - len(jobs)) :]
        if now:
            jobs |= _submit(submitit, executor, work, [(known[name], name) for name in now])
        if detached() and not here:
            ids = {job.job_id.partition("_")[0] for job in jobs.values()}
            raise Detached(f"{len(jobs)} jobs are with Slurm ({', '.join(sorted(ids))}): when they "
                           "are done, the same command goes on from them")  # fmt: skip
        for name in [name for name, job in jobs.items() if _ended(job, name, made_room)]:
            if _finished(submitit, name, jobs.pop(name)):
                yield
            else:
                left.append(name)
        if jobs:
            time.sleep(POLL_SECONDS)


def detached() -> bool:
    """Does ``DETACH=`` (``ALSPEECH_DETACH``) say that nobody waits?"""
    return os.environ.get("ALSPEECH_DETACH", "").lower() not in ("", "0", "no", "false")


def _options() -> dict:
    """``SLURM="slurm_partition=gpu timeout_min=600"`` as submitit names them."""
    found = {}
    for word in os.environ.get("ALSPEECH_SLURM", "").split():
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f'SLURM: {cut(word)} is no name=value: write SLURM="timeout_min=600 …"')
        found[name] = int(value) if value.isdecimal() else value
    return found


def _executor(submitit, processes: int):
    options = DEFAULTS | {"cpus_per_task": processes} | _options()
    cluster = options.pop("cluster", "slurm")
    folder = ROOT / "build" / "slurm"
    try:
        executor = submitit.AutoExecutor(folder / "%j", cluster=cluster, slurm_max_num_timeout=100)
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        told = cut(" ".join(str(error).split()), 200)
        raise UserError(f"ENGINE=slurm: {told}: run where sbatch and srun are, and name SLURM's "
                        "options as submitit does") from None  # fmt: skip
    return executor


def _record(name: str) -> Path:
    """Which job was submitted for a step last, how many there were in a row, and when."""
    return ROOT / "build" / "slurm" / f"{name}.job"


def _recorded(name: str) -> tuple[str, int, float]:
    """What the record says; no job where there is none."""
    try:
        job, times, when = _record(name).read_text().split()
    except (FileNotFoundError, ValueError):  # or one of an older form
        return "", 0, 0.0
    return job, int(times), float(when)


def _submitted(submitit, executor, names: list[str]) -> dict:
    """The jobs that an earlier command has submitted for steps and that are still alive. Raises
    what a task of the others has raised, and ``UserError`` for one that was cut short too often."""
    if executor.cluster != "slurm":  # nobody can say what has become of them
        for name in names:
            _record(name).unlink(missing_ok=True)
        return {}
    kind, folder = executor._executor.job_class, executor.folder
    said = {name: _recorded(name) for name in names}
    jobs = {name: kind(folder, job) for name, (job, *_) in said.items() if job}
    failed = []
    for name, job in list(jobs.items()):
        new = job.state == "UNKNOWN" and time.time() - said[name][2] < KNOWN_SECONDS
        if not job.paths.result_pickle.exists() and (job.state in ALIVE or new):
            continue
        try:
            _finished(submitit, name, jobs.pop(name))
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return jobs


def _submit(submitit, executor, work, tasks: list[tuple]) -> dict:
    try:
        with executor.batch():
            jobs = [executor.submit(Job(work, task)) for task, _ in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        told = cut(" ".join(str(error).split()), 200)
        raise UserError(f"sbatch refuses: {told}: correct SLURM=; {AGAIN}") from None
    names = [name for _, name in tasks]
    for name, job in zip(names, jobs, strict=True):
        write_text(_record(name), f"{job.job_id} {_recorded(name)[1] + 1} {time.time():.0f}")
    return dict(zip(names, jobs, strict=True))


def _ended(job, name: str, made_room: dict[str, float]) -> bool:
    """Has a job left its result, or Slurm given it up? One that had to make room for others may be
    queued again; ``made_room`` keeps since when it has been waited for."""
    if job.state == "PREEMPTED" and not job.paths.result_pickle.exists():
        since = made_room.setdefault(name, time.monotonic())
        if time.monotonic() - since <= KNOWN_SECONDS:
            return False
        job.get_info("force")  # what submitit knows may be ten minutes old
        return job.state == "PREEMPTED"
    made_room.pop(name, None)
    return job.done() and (job.paths.result_pickle.exists() or job.state not in ALIVE)


def _finished(submitit, name: str, job) -> bool:
    """Is the task of a job that has ended done? False where the job was cut short and is to be
    tried again. Raises what the task has raised, and ``UserError`` where it was cut short too
    often; the next command begins to count anew."""
    try:
        if job.state != "COMPLETED" and not job.paths.result_pickle.exists():
            raise submitit.core.utils.UncompletedJobError  # result() would wait for it
        error = job.result()
    except submitit.core.utils.UncompletedJobError:  # FailedJobError is one
        came_to = f"its job {job.job_id} ({job.state}) left no result: killed, or out of memory"
        told, times = f"{name}: {came_to}", _recorded(name)[1]
        if times <= TRIES:
            print(f"{told}; it is tried again", file=sys.stderr)
            return False
        told += f", {times} times in a row: see {job.paths.stderr}"
        error = UserError(f"{told}, give it more by SLURM=; {AGAIN}")
    _record(name).unlink(missing_ok=True)
    if error is not None:
        raise error
    return True
