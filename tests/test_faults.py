"""Whatever ends a run, the same command goes on from there and ends with the same tables. (Kills at
random moments are soak.py's; a few of them are test_properties.py's last test.)
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Command, alspeech, make_root

RUN = ("run", "--preset", "tiny")


def small_root(folder: Path) -> Path:
    """A companion whose preset ``tiny`` has fewer cells than elsewhere: it is run many times."""
    preset = make_root(folder) / "configs" / "tiny.yaml"
    text = preset.read_text().replace("[20, 50]", "[50]").replace("entropy, pctc, ", "")
    preset.write_text(text)
    return folder


@pytest.fixture
def root(tmp_path):
    return small_root(tmp_path)


def start(root: Path, jobs: int = 2, **options) -> Command:
    return Command(root, *RUN, ALSPEECH_JOBS=str(jobs), **options)


def tables(root: Path) -> dict:
    return {path.name: path.read_bytes() for path in (root / "results").rglob("*.csv")}


def leftovers(root: Path) -> list:
    return [p for d in ("data", "build", "results") for p in (root / d).rglob(".*")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(tables, spoken corpus) of a run that nobody disturbs."""
    root = small_root(tmp_path_factory.mktemp("undisturbed"))
    run = start(root, jobs=1)
    assert run.wait() == 0, run.told()
    assert tables(root).keys() == {
        "error_curves.csv", "scores.csv", "comparisons.csv", "cell_errors.csv", "claims.csv"
    }  # fmt: skip
    assert not leftovers(root)
    (corpus,) = (path for path in root.glob("data/synthetic-*") if "-features-" not in path.name)
    return tables(root), corpus


def give(root: Path, corpus: Path) -> None:
    """A corpus that has been spoken: to speak it takes longer than all the rest."""
    shutil.copytree(corpus, root / "data" / corpus.name)


# ---------------------------------------------------------------- with workers, by the command


def until(root: Path, pattern: str, run: Command) -> None:
    while not list(root.glob(pattern)):
        assert run.poll() is None, run.told()
        time.sleep(0.02)


def workers(run: Command) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,sid="], capture_output=True, text=True)
    pairs = (map(int, line.split()) for line in listing.stdout.splitlines())
    return [pid for pid, session in pairs if session == run.pid and pid != run.pid]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes")
def test_no_end_leaves_workers_behind_or_says_more_than_a_line(root, undisturbed):
    give(root, undisturbed[1])
    # Ctrl-C in a terminal: the whole group
    run = start(root)
    until(root, "build/cells/.base-*.lock", run)
    os.killpg(run.pid, signal.SIGINT)
    status, said = run.wait(), run.told()
    assert status == 130 and "Traceback" not in said and "leaked" not in said, said
    assert said.strip().splitlines()[-1] == "interrupted: the same command goes on from here"
    gone(run)
    # a worker is killed, as by the system when memory runs out
    run = start(root)
    while not (busy := [pid for pid in workers(run) if holds_a_lock(pid)]):
        assert run.poll() is None, run.told()
        time.sleep(0.02)
    os.kill(busy[0], signal.SIGKILL)
    status, said = run.wait(), run.told().strip().splitlines()[-1]
    assert status == 2 and said.startswith("error: a worker process died")
    assert "the same command goes on" in said
    gone(run)
    # the process that started the workers is killed, they are not
    run = start(root)
    until(root, "build/cells/[a-z]*-*", run)
    assert workers(run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    gone(run)
    # two runs at once end well, and with the tables of one
    pair = [start(root, jobs=1), start(root, jobs=1)]
    for run in pair:
        assert run.wait() == 0 and "Traceback" not in run.told(), run.told()
    assert tables(root) == undisturbed[0] and not leftovers(root)


def holds_a_lock(pid: int) -> bool:
    try:
        opened = [os.path.realpath(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:  # it has ended
        return False
    return any(path.endswith(".lock") for path in opened)


def gone(run: Command) -> None:
    deadline = time.monotonic() + 10
    while workers(run):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)


@pytest.mark.parametrize("change, status, words", [
    (("{base_up", "{base_rate: 1.e+30, base_up"), 2, ["the training loss is", "learning rate"]),
    # more memory than an address has room for
    (("hidden: 12", "hidden: 1000000000000"), 1, ["RuntimeError", "synthetic-bad/error.log"]),
])  # fmt: skip
def test_an_error_in_a_worker_is_one_line_with_what_and_where(
    root, undisturbed, change, status, words
):
    give(root, undisturbed[1])
    tiny = (root / "configs" / "tiny.yaml").read_text()
    (root / "configs" / "bad.yaml").write_text(tiny.replace(*change))
    done = alspeech(root, "run", "--preset", "bad", ALSPEECH_JOBS=str(3 - status))
    assert done.returncode == status and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: computing base model seed"), line
    assert all(word in line for word in words), line
    log = root / "build" / "synthetic-bad" / "error.log"
    assert log.exists() == (status == 1) and (status == 2 or "Traceback" in log.read_text())


# ---------------------------------------------------------------- disks


def test_a_full_disk_is_one_line_and_damage_is_mended(root, undisturbed):
    give(root, undisturbed[1])
    full = start(root, largest=200_000)
    status, line = full.wait(), full.told().strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in full.told()
    assert line.startswith("error: ") and "File too large" in line and "make room" in line
    assert start(root, jobs=1).wait() == 0 and tables(root) == undisturbed[0]
    harmed = [
        next(root.glob("data/*-features-*/features.npy")),
        next(root.glob("data/*/audio/pool/*3.wav")),
        next(root.glob("build/cells/base-seed1-*/model.pt")),
        next(root.glob("build/cells/scores-egl-seed0-*/scores.csv")),
        next(root.glob("build/cells/egl-50-seed0-*/metrics.json")),
    ]
    for path in harmed:
        os.truncate(path, path.stat().st_size // 2)
    shutil.rmtree(root / "results")
    run = start(root, jobs=1)
    assert run.wait() == 0 and tables(root) == undisturbed[0] and not leftovers(root)
    said = run.told()
    for path in harmed:
        name = path.relative_to(next(p for p in path.parents if (p / "checksums.json").exists()))
        assert f"is damaged ({name} has changed): computing it again" in said
