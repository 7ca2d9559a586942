"""Engines: where tasks are computed changes nothing but the place."""

import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, alspeech

from alspeech.workshop import engines, processes, steps, store
from alspeech.workshop.config import Settings
from alspeech.workshop.errors import Detached, UserError, explain
from alspeech.workshop.steps import Step, in_parallel


@pytest.fixture
def home(tmp_path, monkeypatch):
    for module in (steps, engines):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def first(settings: Settings, seed: int) -> Step:
    return Step(f"first-{seed}", lambda folder: {"seed": seed})


def second(settings: Settings, seed: int) -> Step:
    return Step(f"second-{seed}", lambda folder: {"seed": seed}, after=(first(settings, seed),))


def shared(settings: Settings, seed: int) -> Step:
    return Step(f"shared-{seed}", lambda folder: {}, processes=processes.sharing())


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("variable, value, words", [
    ("ALSPEECH_ENGINE", "dask", ["unknown engine 'dask'", "local, ray, slurm"]),
    ("ALSPEECH_DEVICE", "tpu", ["DEVICE=tpu", "cpu, cuda, cuda:0"]),
    ("ALSPEECH_DEVICE", "cpu:1", ["DEVICE=cpu:1"]),
    ("ALSPEECH_DEVICE", "cuda", ["DEVICE=cuda", "no GPU", "leave DEVICE out"]),
    ("ALSPEECH_DEVICE", "cuda:²", ["DEVICE=cuda:²", "cpu, cuda, cuda:0"]),
    ("ALSPEECH_PROCESSES", "two", ["PROCESSES=two", "1 or more"]),
    ("ALSPEECH_PROCESSES", "²", ["PROCESSES=²", "1 or more"]),
    ("ALSPEECH_JOBS", "two", ["ALSPEECH_JOBS=two", "1 or more"]),
    ("ALSPEECH_JOBS", "0", ["ALSPEECH_JOBS=0", "1 or more"]),
    ("ALSPEECH_CHECKPOINT_SECONDS", "often", ["ALSPEECH_CHECKPOINT_SECONDS=often", "0 or more"]),
    ("ALSPEECH_CHECKPOINT_SECONDS", "nan", ["ALSPEECH_CHECKPOINT_SECONDS=nan", "0 or more"]),
])  # fmt: skip
def test_a_wrong_word_is_told_in_one_line_before_anything_is_done(root, variable, value, words):
    done = alspeech(
        root, "run", "--preset", "tiny", **{variable: value, "CUDA_VISIBLE_DEVICES": ""}
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and all(word in line for word in words)
    assert not (root / "build").exists() and not (root / "data").exists()


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_where_an_engine_computes_elsewhere_this_machine_needs_no_gpu(root, engine):
    words = {"ALSPEECH_ENGINE": engine, "ALSPEECH_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = alspeech(root, "data", "--corpus", "none of them", **words)  # told after the words are
    assert "none of them" in done.stderr and "GPU" not in done.stderr
    done = alspeech(root, "data", **{**words, "ALSPEECH_DEVICE": "cuda:1"})
    assert "DEVICE=cuda:1: no GPU to be seen" in done.stderr


@pytest.mark.parametrize("word, detached", [
    ("", False), ("0", False), ("no", False), ("False", False), ("1", True), ("yes", True),
])  # fmt: skip
def test_no_is_a_word_for_not_detached(monkeypatch, word, detached):
    monkeypatch.setenv("ALSPEECH_DETACH", word)
    assert engines.detached() == detached


@pytest.mark.parametrize("name, module", [("ray", "ray"), ("slurm", "submitit")])
def test_an_extra_that_is_missing_is_named(home, monkeypatch, name, module):
    monkeypatch.setenv("ALSPEECH_ENGINE", name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")
    told = str(error.value)
    assert all(x in told for x in (f"ENGINE={name}", f"'.[{name}]'")) and "\n" not in told


def test_only_who_asks_for_an_engine_imports_it():
    program = ("import sys, alspeech.experiment, alspeech.workshop.engines;"
               "print({'ray', 'submitit'} & sys.modules.keys())")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("device, seen, there, left", [
    ("cpu", None, 2, ""), ("cuda", None, 2, None), ("cuda:1", None, 2, "1"),
    ("cuda:1", "4,7", 2, "7"), ("", None, 2, None),
])  # fmt: skip
def test_a_device_is_what_this_process_may_see(monkeypatch, device, seen, there, left):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setenv("ALSPEECH_DEVICE", device)
    for name, value in {"CUDA_VISIBLE_DEVICES": seen}.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    processes.use_device()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_more_gpus_than_there_are_is_one_line(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("ALSPEECH_DEVICE", "cuda:2")
    with pytest.raises(UserError, match="DEVICE=cuda:2: 2 GPUs, counted from 0"):
        processes.use_device()
    monkeypatch.setenv("ALSPEECH_DEVICE", "cuda")
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        engines._gpus([{"CPU": 4.0}], 1)


@pytest.mark.parametrize("device, machines, gpus", [
    ("cpu", [(2, 0), (2, 0)], "4 cores"), ("cpu", [(2, 8), (4, 0)], 0),
    ("", [(2, 0), (2, 0)], "4 cores"), ("", [(4, 0)], 0),
    ("", [(8, 2), (8, 2)], "4 cores and 4 GPUs"), ("cuda", [(8, 0), (2, 4)], "4 cores and 4 GPUs"),
    ("cuda", [(8, 1), (4, 4)], 4),
])  # fmt: skip
def test_processes_that_share_a_training_want_one_machine_with_room_for_all(
    monkeypatch, device, machines, gpus
):
    monkeypatch.setenv("ALSPEECH_DEVICE", device)
    machines = [{"CPU": float(cores), "GPU": float(there)} for cores, there in machines]
    if isinstance(gpus, int):
        assert engines._gpus(machines, 4) == gpus
        return
    with pytest.raises(UserError, match=f"PROCESSES=4: .* none of the Ray cluster has {gpus}$"):
        engines._gpus(machines, 4)


def test_where_no_machine_has_room_for_all_processes_nothing_waits(home, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    two = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [*two, {"Alive": False, "Resources": {"CPU": 9.0}}])
    monkeypatch.setenv("ALSPEECH_ENGINE", "ray")
    monkeypatch.setenv("ALSPEECH_PROCESSES", "4")
    with pytest.raises(UserError, match="none of the Ray cluster has 4 cores"):
        in_parallel(shared, Settings("tiny"), [(0,)], "shared")


def test_small_trainings_share_a_gpu(monkeypatch):
    """As many side by side as ALSPEECH_JOBS says, each with its fraction."""
    monkeypatch.setattr(engines, "on_a_gpu", lambda: True)
    asked = []
    monkeypatch.setattr(
        engines.joblib, "Parallel", lambda n_jobs, **more: asked.append(n_jobs) or list
    )
    for jobs in ("", "3"):
        monkeypatch.setenv("ALSPEECH_JOBS", jobs)
        list(engines._local(print, [(i,) for i in range(5)], 1))
    one = [{"CPU": 4.0, "GPU": 1.0}]
    assert asked == [1, 3] and engines._gpus(one, 1) == 1 / 3
    monkeypatch.setenv("ALSPEECH_DEVICE", "cpu")
    assert engines._gpus(one, 1) == 0


def test_out_of_gpu_memory_is_one_line(capsys, tmp_path):
    class OutOfMemoryError(RuntimeError):
        pass

    error = OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\n…")
    error.add_note("base model seed 0")
    assert explain(error, tmp_path / "log") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "base model seed 0: out of GPU memory: end what else holds it" in line


# ---------------------------------------------------------------- what waits for what


def test_on_a_cluster_a_step_begins_when_those_before_it_are_done():
    settings = Settings("tiny")
    found = [second(settings, 0), first(settings, 1), first(settings, 0), second(settings, 1)]
    assert engines.waves(found) == [[1, 2], [0, 3]]
    between = Step("between", print, after=(second(settings, 0),))  # not asked for
    last = Step("last", print, after=(between,))
    assert engines.waves([last, *found]) == [[2, 3], [1, 4], [0]]


def test_a_folder_that_is_seen_late_is_waited_for_and_one_that_never_comes_is_one_line(
    home, monkeypatch
):
    step, asked = first(Settings("tiny"), 0), []
    monkeypatch.setattr(engines, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(engines, "SEEN_SECONDS", 0.05)
    with pytest.raises(UserError, match="do all machines see this folder"):
        engines._see(step)

    def late(self):
        asked.append(self)
        return Path() if len(asked) > 2 else None

    monkeypatch.setattr(Step, "find", late)
    engines._see(step)
    assert len(asked) == 3


# ---------------------------------------------------------------- one store, two engines


WRITE = """
import sys, time
from pathlib import Path
from alspeech.workshop import store
folder, locks = Path(sys.argv[1]), sys.argv[2] == "locks"
if not locks:
    store.fcntl = None
def fill(unfinished):
    with open(folder / "begun", "a") as file:
        file.write("x")
    until = time.monotonic() + (3 if locks else 60)
    while time.monotonic() < until and (locks or len((folder / "begun").read_text()) < 2):
        time.sleep(0.05)
    (unfinished / "word").write_text("the same")
print("ready", flush=True)
input()
print(store.stored(folder, "step", {"n": 1}, fill, True))
"""


@pytest.mark.parametrize("locks, times", [("locks", 1), ("no locks", 2)])
def test_two_engines_on_one_store_end_with_one_folder(tmp_path, locks, times):
    """Where the file system locks, one waits; where it does not, both work, and one result stays.
    Either way it is whole, and nothing else is left."""
    call = [sys.executable, "-c", WRITE, str(tmp_path), locks]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    both = [subprocess.Popen(call, **pipes, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        print(file=process.stdin, flush=True)
    told = [process.communicate() for process in both]
    assert len({out for out, _ in told}) == 1 and (tmp_path / "begun").read_text() == "x" * times
    folder = Path(told[0][0].strip())
    assert (folder / "word").read_text() == "the same"
    sums = json.loads((folder / store.CHECKSUMS).read_text())
    assert {path.name for path in folder.iterdir()} == {*sums, store.CHECKSUMS}
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "begun"}
    waited = [err for _, err in told if "waiting for what it has begun" in err]
    assert len(waited) == (1 if locks == "locks" else 0)


# ---------------------------------------------------------------- Slurm


@pytest.fixture
def cluster(home, monkeypatch):
    """Commands as Slurm has them: sbatch keeps its script, sacct says what ``state`` holds."""
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    submitit.SlurmJob.watcher.clear()
    bin_ = home / "bin"
    bin_.mkdir()
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cp "$1" {home}/sbatch.$(ls {home} | grep -c sbatch)\n'
        'echo "Submitted batch job 77"',
        "sacct": f'echo "JobID|State|NodeList"; cat {home}/state 2>/dev/null; true',
    }
    for name, text in scripts.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("ALSPEECH_ENGINE", "slurm")
    monkeypatch.setenv("ALSPEECH_DETACH", "1")
    monkeypatch.setenv("ALSPEECH_SLURM", "slurm_partition=gpu timeout_min=90 gpus_per_node=1")
    return home


def submit(*seeds):
    with pytest.raises(Detached) as told:
        in_parallel(first, Settings("tiny"), [(seed,) for seed in seeds], "firsts")
    return str(told.value)


def test_what_is_missing_is_submitted_once_as_one_array(cluster):
    first(Settings("tiny"), 0).folder()  # is done already
    told = submit(0, 1, 2)
    assert "2 jobs are with Slurm (77)" in told and "the same command goes on" in told
    (script,) = cluster.glob("sbatch.*")
    lines = script.read_text().splitlines()
    wanted = [
        "--array=0-1",
        "--partition=gpu",
        "--time=90",
        "--gpus-per-node=1",
        "--mem=8GB",
        "--cpus-per-task=1",
        "--job-name=alspeech",
        "--signal=USR2@90",
        "--open-mode=append",
    ]
    for option in wanted:
        assert any(line.startswith(f"#SBATCH {option}") for line in lines), option
    assert any(line.startswith("srun") and "submitit.core._submit" in line for line in lines)


def test_what_is_in_the_queue_is_not_submitted_again_and_what_was_cancelled_is(cluster):
    submit(0, 1)
    becomes(cluster, "77_0|RUNNING|n1", "77_1|CANCELLED|n2")
    submit(0, 1, 2)
    scripts = [path.read_text() for path in sorted(cluster.glob("sbatch.*"))]
    assert len(scripts) == 2 and "--array=0-1" in scripts[1]  # 1, which was cancelled, and 2


def becomes(cluster, *lines):
    """What sacct says from now on."""
    (cluster / "state").write_text("".join(f"{line}\n" for line in lines))
    sys.modules["submitit"].SlurmJob.watcher.clear()


def leaves(cluster, job: str, error):
    """A job has come to its end with what its task has raised, or None."""
    kind = sys.modules["submitit"].SlurmJob
    path = kind(cluster / "build" / "slurm" / "%j", job).paths.result_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(("success", error)))


def submissions(cluster) -> int:
    return len(list(cluster.glob("sbatch.*")))


def test_what_a_detached_task_has_raised_is_told_once_and_nothing_submitted(cluster):
    submit(0, 1)
    leaves(cluster, "77_1", UserError("the loss is nan: lower training: rate"))
    becomes(cluster, "77_0|RUNNING|n1", "77_1|COMPLETED|n2")
    with pytest.raises(UserError, match="^the loss is nan"):
        in_parallel(first, Settings("tiny"), [(0,), (1,), (2,)], "firsts")
    assert submissions(cluster) == 1
    submit(0, 1, 2)  # who has been told may try again
    assert submissions(cluster) == 2 and "0-1" in (cluster / "sbatch.1").read_text()


def test_a_detached_task_that_is_done_but_whose_folder_was_removed_is_submitted_again(cluster):
    submit(0)
    leaves(cluster, "77", None)
    becomes(cluster, "77|COMPLETED|n1")
    submit(0)
    assert submissions(cluster) == 2


@pytest.mark.parametrize("state", ["FAILED", "OUT_OF_MEMORY", "PREEMPTED", "CANCELLED by 1"])
def test_a_detached_job_that_is_cut_short_is_tried_again_three_times(cluster, capsys, state):
    submit(0)
    becomes(cluster, f"77|{state}|n1")
    for times in range(1, engines.TRIES + 1):
        submit(0)
        assert submissions(cluster) == 1 + times
        assert f"its job 77 ({state}) left no result" in capsys.readouterr().err
    with pytest.raises(UserError, match="4 times in a row") as error:
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")
    assert f"first-0-{first(Settings('tiny'), 0).key}: its job 77 ({state})" in str(error.value)
    assert "\n" not in str(error.value) and submissions(cluster) == 4
    submit(0)  # from here on the count is a new one
    submit(0)


def test_a_job_that_sacct_does_not_know_yet_is_not_submitted_again(cluster, monkeypatch):
    submit(0, 1)
    submit(0, 1)
    assert submissions(cluster) == 1
    monkeypatch.setattr(engines, "KNOWN_SECONDS", -1.0)
    submit(0, 1)
    assert submissions(cluster) == 2


@pytest.fixture
def waiting(cluster, monkeypatch):
    monkeypatch.setenv("ALSPEECH_DETACH", "0")
    monkeypatch.setattr(engines, "POLL_SECONDS", 0.01)
    return cluster


def test_a_job_that_is_cut_short_is_tried_again_while_we_wait(waiting, monkeypatch):
    becomes(waiting, "77|OUT_OF_MEMORY|n1")
    submit, asked = engines._submit, []

    def third_is_done(*what):
        asked.append(what)
        if len(asked) == 3:
            leaves(waiting, "77", None)
        return submit(*what)

    monkeypatch.setattr(engines, "_submit", third_is_done)
    assert list(engines._slurm(print, [("task",)], ["name"], 1)) == [None]
    assert submissions(waiting) == 3 and not engines._record("name").exists()


def test_a_job_that_is_always_cut_short_is_one_line_in_the_end(waiting):
    becomes(waiting, "77|NODE_FAIL|n1")
    with pytest.raises(UserError, match=r"its job 77 \(NODE_FAIL\) .* 4 times in a row"):
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")
    assert submissions(waiting) == engines.TRIES + 1


def test_a_job_that_made_room_is_waited_for_as_long_as_slurm_may_queue_it_again(
    tmp_path, monkeypatch
):
    class Job:
        paths = SimpleNamespace(result_pickle=tmp_path / "result")

        def done(self):  # submitit takes a job that is suspended for one that has ended
            return self.state == "SUSPENDED" or self.paths.result_pickle.exists()

        def get_info(self, mode):
            self.state = self.anew

    job, since = Job(), {}
    for seconds, job.state, job.anew, ended in [
        (0, "PREEMPTED", "", False), (299, "PREEMPTED", "", False),
        (301, "PREEMPTED", "PREEMPTED", True), (302, "PREEMPTED", "RUNNING", False),
        (303, "RUNNING", "", False), (304, "SUSPENDED", "", False), (400, "PREEMPTED", "", False),
    ]:  # fmt: skip
        monkeypatch.setattr(engines.time, "monotonic", lambda: seconds)  # noqa: B023
        assert engines._ended(job, "name", since) == ended
    job.paths.result_pickle.touch()
    assert engines._ended(job, "name", since)


def test_what_ends_a_job_that_slurm_will_not_queue_again_is_not_the_task_s_error():
    pytest.importorskip("submitit", reason="the extra slurm is not installed")

    def work(refused):
        if refused:
            again.append(job.checkpoint())
        raise subprocess.CalledProcessError(1, "scontrol requeue")

    again, job = [], engines.Job(work, False)
    assert isinstance(job(), subprocess.CalledProcessError)
    job = engines.Job(work, True)
    with pytest.raises(subprocess.CalledProcessError):
        job()
    assert again[0].function.task and not again[0].function.cut_short


def test_a_training_by_several_processes_gets_a_core_for_each(cluster, monkeypatch):
    monkeypatch.setenv("ALSPEECH_PROCESSES", "3")
    for make, options, cores in [(shared, "", 3), (first, "", 1), (shared, "cpus_per_task=6", 6)]:
        monkeypatch.setenv("ALSPEECH_SLURM", options)
        number = submissions(cluster)
        with pytest.raises(Detached):
            in_parallel(make, Settings("tiny"), [(number,)], "steps")
        script = (cluster / f"sbatch.{number}").read_text()
        assert f"#SBATCH --cpus-per-task={cores}\n" in script


@pytest.mark.parametrize("options, words", [
    ("timeout_min=²", ["ENGINE=slurm", "timeout_min"]),
    ("time", ["SLURM: time is no name=value"]),
    ("slurm_hours=3", ["ENGINE=slurm", "slurm_hours"[6:]]),
])  # fmt: skip
def test_an_option_that_slurm_has_not_is_one_line(cluster, monkeypatch, options, words):
    monkeypatch.setenv("ALSPEECH_SLURM", options)
    with pytest.raises(UserError) as error:
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_where_there_is_no_slurm_is_one_line(home, monkeypatch):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setenv("ALSPEECH_ENGINE", "slurm")
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(UserError, match="srun"):
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")


# ---------------------------------------------------------------- a run, some of which is lost


def driven(engine: str, folder: Path) -> dict[str, bytes]:
    """The tables of driver.py's run."""
    import driver

    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "tiny.yaml").write_text(driver.PRESET)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "driver.py"), engine], text=True,
        env={**os.environ, "ALSPEECH_ROOT": str(folder), "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lost = {"local": "", "ray": "a node is lost", "slurm": "a job is preempted"}[engine]
    assert done.returncode == 0 and lost in done.stdout, done.stdout[-2000:]
    return {path.name: path.read_bytes() for path in folder.glob("results/*/*.csv")}


@functools.cache
def undriven(folder: Path) -> dict[str, bytes]:
    return driven("local", folder)


@pytest.mark.parametrize("engine, module", [("slurm", "submitit"), ("ray", "ray")])
def test_a_run_that_loses_a_node_or_a_job_ends_with_the_tables_of_a_local_one(
    tmp_path_factory, engine, module
):
    if engine == "ray":  # what imports it takes seconds, and processes
        pytest.importorskip("ray.cluster_utils", reason="the extra ray is not installed")
    pytest.importorskip(module, reason=f"the extra {engine} is not installed")
    alone = undriven(tmp_path_factory.getbasetemp() / "undriven")
    assert len(alone) >= 5
    assert driven(engine, tmp_path_factory.mktemp(engine)) == alone


def test_no_cluster_at_an_address_is_one_line(home, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    def refuses(address, **options):
        raise ConnectionError(f"ray is not\nat {address}")

    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setenv("ALSPEECH_ENGINE", "ray")
    with pytest.raises(UserError, match="no Ray cluster at RAY_ADDRESS=127.0.0.1:1") as error:
        in_parallel(first, Settings("tiny"), [(0,)], "firsts")
    assert "\n" not in str(error.value)
