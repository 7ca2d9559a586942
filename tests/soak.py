"""Small runs killed at random moments, at random depth: ``make soak KILLS=1000 SEED=0``.

A run of each system in turn is killed by SIGKILL, begun again and killed again, until it comes to
its end; then its tables must equal, byte for byte, those of a run that nobody disturbed, and
nothing may be left behind. A kill hits

    the process, by the clock          its group, by the clock
    a worker, by the clock             the process, in one of its file operations

of which the last is where half-written things would come from. Mostly a run has one process (beside
those that speak the corpus), at times two workers. What is drawn is drawn from the seed; what the
clock hits also depends on the machine.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
PART = 20  # kills a campaign
SECONDS = 300  # after which a run is called endless
WAYS = ("process", "group", "worker", "file operation")
OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
SMALL = """
strategies: [random, egl]
query_percents: [50]
seeds: 1
labelings: 10
directions: 2
build: {base: 24, pool: 30, validation: 8, test: 12}
model: {layers: 1, hidden: 12, channels: 4}
training: {base_updates: 6, updates: 4}
"""
PRESETS = {  # system: what it adds to that, for a run of a second or two
    # the paper's figures are in it
    "map": "studies: {seeds: 1, factors: [1.0], rounds: 2, amount: 40, strategies: [egl]}\n",
    "loss-prediction": "loss_prediction: {rounds: [20], decoder: 8, predictor: 8,\n"
    "  strategies: [loss_prediction], variants: [joint, no_prediction]}\n",
    "pseudo-labels": "pseudo_labels: {labelled: 16, warm_up: 2, warm_up_rate: 1.e-4, blocks: 2,\n"
    "  unsupervised: 1, cache: 2, every: 3, watched: 6, free_blocks: 2, joined_blocks: 3,\n"
    "  query_percents: [50],\n"
    "  rate: 1.e-4, free_rate: 1.e-4, anchored: [hard], free: [soft],\n"
    "  strategies: [random]}\n",
    "aloe": "aloe: {pool: 40, validation: 16, test: 16, runs: 1, steps: 3, epochs: 5,\n"
    "  seed_clips: 1, encoders: [logmel, recogniser], tasks: [accent]}\n",
}


@functools.cache
def laboratory() -> Path:
    """A folder that this process's alspeech takes for its repository; with all imports done, which
    take longer than the runs, this process is what they are forked from."""
    root = Path(tempfile.mkdtemp())
    (root / "configs").mkdir()
    for system, text in PRESETS.items():
        (root / "configs" / f"{system}.yaml").write_text(SMALL + text)
    os.environ.update(ALSPEECH_ROOT=str(root), ALSPEECH_JOBS="1", OMP_NUM_THREADS="1")
    import torch
    import torch._dynamo

    import alspeech.studies  # noqa: F401
    from alspeech.decoding import n_best
    from alspeech.sisters import aloe, loss_prediction, pseudo_labels  # noqa: F401
    from alspeech.workshop.config import load_settings

    load_settings("map")  # imports, too
    torch.set_num_threads(1)  # threads do not outlive a fork
    n_best(torch.rand(1, 3, 4).log(), 2)  # compiled, or read from numba's cache
    return root


def begin(system: str, jobs: int = 1, pause: float = 0.0, at: int = 0) -> int:
    """Fork a run, a process group of its own, with a checkpoint every ``pause`` seconds; it kills
    itself before its ``at``-th file operation (0: never). Returns its process id."""
    root = laboratory()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.setpgid(child, child)  # here, too: it may be killed at once
        return child
    try:
        os.setpgid(0, 0)
        log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ["ALSPEECH_JOBS"] = str(jobs)
        from alspeech.__main__ import main
        from alspeech.workshop import store

        store.CHECKPOINT_SECONDS = pause
        seen = counted(root, at)
        sys.argv = ["alspeech", "run", "--system", system, "--preset", system]
        status = main()
        (root / "operations").write_text(str(seen[0]))
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


def counted(root: Path, at: int) -> list[int]:
    """A list whose one number is how many file operations in ``root`` this process has begun. It
    dies before the ``at``-th; if that is a file to be written, as soon as the file is there, empty,
    which is when writing in place does most harm."""
    seen, own, process = [0], str(root), os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        if event in OPERATIONS and str(arguments[0]).startswith(own):
            seen[0] += 1
            if seen[0] == at and os.getpid() == process:
                if event == "open" and arguments[2] & os.O_TRUNC:
                    os.open(arguments[0], arguments[2])
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def end(child: int, seconds: float = SECONDS) -> int | None:
    """The exit status of a run, once it has ended; None where it has not within some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def workers(group: int) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,pgid="], capture_output=True, text=True)
    pairs = (map(int, line.split()) for line in listing.stdout.splitlines())
    return sorted(pid for pid, its_group in pairs if its_group == group and pid != group)


def kill(child: int, way: str, rng: random.Random) -> None:
    found = workers(child) if way == "worker" else []
    try:
        if way == "group":
            os.killpg(child, signal.SIGKILL)
        else:
            os.kill(rng.choice(found) if found else child, signal.SIGKILL)
    except ProcessLookupError:  # a worker that has just ended
        pass


def clear(corpus: bool) -> None:
    """Remove what runs have made, with the corpus or but for it."""
    root = laboratory()
    made = [root / "data"] if corpus else root.glob("data/*-features-*")
    for path in (root / "build", root / "results", *made):
        shutil.rmtree(path, ignore_errors=True)


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (laboratory() / "results").rglob("*.csv")}


@functools.cache
def undisturbed(system: str) -> tuple[dict, list[float], int]:
    """(tables, seconds without and with speaking the corpus, file operations) of runs that nobody
    disturbs."""
    found, seconds = [], []
    for corpus in (True, False):
        clear(corpus)
        begun = time.monotonic()
        assert end(begin(system)) == 0, (laboratory() / "log").read_text()
        seconds.insert(0, time.monotonic() - begun)
        found.append(tables())
    assert found[0] == found[1] != {}
    return found[0], seconds, int((laboratory() / "operations").read_text())


def campaign(system: str, kills: int, seed: int) -> tuple[Counter, str]:
    """Kill runs of a system so many times, and let the last one end. Returns counts, and what was
    wrong, if anything: the laboratory is left as it is then."""
    rng, counts = random.Random(seed), Counter()
    expected, seconds, operations = undisturbed(system)
    log, lives, done = laboratory() / "log", 0, 0
    while done < kills or lives:
        if not lives:  # a new run; one in eight begins with speaking the corpus
            clear(corpus=rng.random() < 1 / 8)
        spoken = any(laboratory().glob("data/synthetic-*"))
        jobs = 2 if rng.random() < 1 / 40 else 1
        way = rng.choice(WAYS[:3] if jobs > 1 else WAYS) if done < kills else None
        # half of a run at most, since what a run has done the next one need not do; workers import
        share = rng.random() * (0.5 if spoken else 1)
        wait = share * seconds[not spoken] + (jobs > 1) * 10 * rng.random()
        at = max(1, round(share * operations)) if way == WAYS[-1] else 0
        child = begin(system, jobs, rng.choice([0, 0, 0.1, 5]), at)
        status = end(child, wait if way in WAYS[:-1] else SECONDS)
        if status is None and way in WAYS[:-1]:
            kill(child, way, rng)
            status, killed = end(child), True
        else:
            killed = status == -signal.SIGKILL
        done += killed
        counts[system, way] += killed
        lives += 1
        said, wrong = log.read_text(), ""
        if status is None:
            os.killpg(child, signal.SIGKILL)
            wrong = f"no end in {SECONDS} seconds"
        elif status not in (0, 2, -signal.SIGKILL) or "Traceback" in said or "damaged" in said:
            wrong = f"exit code {status}"
        elif status == 2 and "error: a worker process died" not in said:
            wrong = "an error that is none"
        elif status == 0:
            found = tables()
            other = [name for name in expected if found.get(name) != expected[name]]
            hidden = [str(path) for name in ("data", "build", "results")
                      for path in (laboratory() / name).rglob(".*")]  # fmt: skip
            if other or hidden or found.keys() != expected.keys():
                wrong = f"{other or sorted(found)} differ, or left behind: {hidden}"
            counts[system, "ended"] += 1
            lives = 0
        if wrong:
            kept = REPOSITORY / "build" / "soak" / f"{system}-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(laboratory(), kept, symlinks=True)
            how = f"life {lives} ({way}, {jobs} jobs), all of it in {kept}"
            return counts, f"FAILED {system}, seed {seed}: {how}\n{wrong}\n{said[-3000:]}"
    return counts, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", choices=PRESETS, action="append", help="only this one")
    options = parser.parse_args()
    rng, begun, systems = random.Random(options.seed), time.time(), options.system or list(PRESETS)
    parts = [min(PART, options.kills - done) for done in range(0, options.kills, PART)]
    tasks = [(systems[i % len(systems)], n, rng.randrange(2**32)) for i, n in enumerate(parts)]
    counts, wrong = Counter(), ""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # fsync costs nothing there
    with (
        tempfile.TemporaryDirectory(
            "", "soak", memory, ignore_cleanup_errors=True
        ) as tempfile.tempdir,
        ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool,
    ):
        running = [pool.submit(campaign, *task) for task in tasks]
        for done, ended in enumerate(as_completed(running), start=1):
            found, wrong = ended.result()
            counts += found
            if wrong:
                print(wrong, flush=True)
                pool.shutdown(cancel_futures=True)
                break
            kills = sum(counts[system, way] for system in systems for way in WAYS)
            left = (time.time() - begun) / done * (len(tasks) - done) / 60
            print(f"{kills} kills, {left:.1f} minutes left", flush=True)
    tried = {way: [counts[system, way] for system in systems] for way in (*WAYS, "ended")}
    print(pd.DataFrame(tried, index=pd.Index(systems)).to_string())
    kills, runs = (sum(counts[s, what] for s in systems for what in part) for part in
                   (WAYS, ("ended",)))  # fmt: skip
    print(
        f"{kills} kills in {(time.time() - begun) / 60:.1f} minutes: {runs} runs came to their "
        f"end, {'NOT ' if wrong else ''}all with the bytes of an undisturbed one"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
