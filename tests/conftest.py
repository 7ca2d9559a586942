"""Small models, batches and corpora that the tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import companion
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from alspeech.model import DeepSpeech2
from alspeech.sisters.joint import JointRecogniser
from alspeech.speech.features import Batch
from alspeech.workshop.config import LossPredictionConfig, ModelConfig

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
TINY = ModelConfig(bins=12, channels=3, layers=2, hidden=5)
SYMBOLS = 5


# processes that the tests start inherit it: two threads of small work wait for each other, and
# on a busy machine for long
os.environ["OMP_NUM_THREADS"] = "1"


# fixtures that take long to make, by the process that is to make them: tests that share one stand
# together, and none waits for another's
LONG = (("executed", "house", "computed"), ("undisturbed", "spoken"))
SLOW = "test_a_few_malformed_corpora_and_a_few_kills_end_as_they_must"


def pytest_collection_modifyitems(items):
    """What takes long comes first: at the beginning, and in the middle. A process that has done
    its share takes from the end of another's. Three of them keep two cores busy: tests wait, too.
    """
    parts = [[], [], []]
    for item in items:
        found = [
            (i, place) for i, names in enumerate(LONG) for place, name in enumerate(names)
            if name in item.fixturenames
        ] or [(1, -1) if item.name == SLOW else (2, 0)]  # fmt: skip
        parts[found[0][0]].append((found[0][1], item))
    first, second, rest = ([item for _, item in sorted(p, key=lambda x: x[0])] for p in parts)
    half = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *rest[:half], *second, *rest[half:]]


@pytest.fixture(autouse=True)
def deterministic():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_model(cell: str = "lstm", dtype=torch.float64, symbols: int = SYMBOLS, seed: int = 0):
    """A model in evaluation mode whose batch norms have statistics and weights worth testing."""
    torch.manual_seed(seed)
    model = DeepSpeech2(dataclasses.replace(TINY, cell=cell), symbols).to(dtype).eval()
    for layer in model.modules():
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight, 1, 0.2)
            torch.nn.init.normal_(layer.bias, 0, 0.2)
    return model


def tiny_joint(dtype=torch.float32, seed: int = 0, **options) -> JointRecogniser:
    """A joint recogniser in evaluation mode; ``options`` of its loss_prediction section."""
    torch.manual_seed(seed)
    config = LossPredictionConfig(**{"decoder": 6, "predictor": 7, **options})
    return JointRecogniser(TINY, config, SYMBOLS).to(dtype).eval()


def tiny_batch(size: int = 3, frames: int = 16, dtype=torch.float64, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, frames, TINY.bins, generator=generator, dtype=dtype)
    return Batch(tuple(f"u{i}" for i in range(size)), features)


def make_root(folder: Path) -> Path:
    """An empty companion: configs only, with a preset ``tiny`` that trains in seconds."""
    (folder / "configs").mkdir()
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        shutil.copy(path, folder / "configs")
    (folder / "configs" / "tiny.yaml").write_text(
        "strategies: [random, entropy, pctc, egl]\n"
        "query_percents: [20, 50]\nseeds: 2\nlabelings: 10\ndirections: 2\n"
        "build: {base: 24, pool: 30, validation: 8, test: 12}\n"
        "model: {layers: 1, hidden: 12, channels: 4}\n"
        "training: {base_updates: 6, updates: 4}\n"
    )
    return folder


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


@contextlib.contextmanager
def shared_folder(tmp_path_factory, name: str):
    """A folder that all processes of a test run share, for one of them at a time."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> Path:
    """A companion with the preset ``tiny``'s corpus: to speak it takes longer than to train on it.
    The first process that asks makes it, others wait."""
    with shared_folder(tmp_path_factory, "spoken") as folder:
        if not (folder / "configs").exists():
            done = alspeech(make_root(folder), "check", "--preset", "tiny")
            assert done.returncode == 0, done.stderr
    return folder


# one process for all notebooks, without kernels and their imports
EXECUTE = """
import sys, nbformat, matplotlib
matplotlib.use("Agg")
preset, corpus, data, *paths = sys.argv[1:]
for path in paths:
    names = {}
    for cell in nbformat.read(path, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "colab" not in tags:  # which asks IPython where it is
            exec(cell.source, names)
        if "parameters" in tags:
            names.update(preset=preset, corpus=corpus, data=data, rounds=2)
"""
ON_A_GPU = f"""
import torch
from fake_gpu import FakeGPU
from alspeech import devices
devices.device = lambda: torch.device("cuda")  # before others import it
with FakeGPU() as gpu:
    exec({EXECUTE!r})
assert gpu.moves > 100
"""
SMALL = """
scenarios: [rare_topics, unintelligible]
strategies: [random, entropy, pctc, egl]
query_percents: [50]
seeds: 1
labelings: 10
directions: 2
build: {base: 24, pool: 30, validation: 8, test: 12}
model: {layers: 1, hidden: 12, channels: 4}
training: {base_updates: 6, updates: 4}
studies: {seeds: 1, factors: [0.5, 1.0], rounds: 2, amount: 50, strategies: [random, egl]}
beyond: {strategies: [random, egl, egl_renormalised, fisher_ratio], seeds: 1, ridge: [10],
  directions: [], numbers: [], heard: [], target: [none], argued: 1, components: 1, labelled: 8,
  tested: 4, resamples: 2}
loss_prediction: {rounds: [20, 50], decoder: 8, predictor: 8, variants: [joint, no_prediction]}
pseudo_labels:
  {warm_up: 4, warm_up_rate: 8.e-3, blocks: 3, supervised: 1, unsupervised: 2, cache: 1, every: 3,
   watched: 6, free_blocks: 2, free_cache: 1, joined_blocks: 3, query_percents: [50],
   anchored: [supervised, supervised_longer, hard, sampled_text, sampled_frames],
   free: [hard, soft, sampled_text, sampled_frames]}
aloe: {pool: 200, validation: 40, test: 40, runs: 2, steps: 3, epochs: 3,
  encoders: [recogniser, logmel]}
"""


@pytest.fixture(scope="session")
def executed(tmp_path_factory, spoken) -> Path:
    """A companion in which every notebook has been executed with the preset ``small``, in one
    process, without workers, and on fake_gpu.py: all that they train, score, decode and draw.
    ``told`` holds what went wrong."""
    with shared_folder(tmp_path_factory, "executed") as folder:
        if not (folder / "configs").exists():
            make_root(folder)
            (folder / "configs" / "small.yaml").write_text(SMALL)
            shutil.copytree(spoken / "data", folder / "data")
            (folder / "results").mkdir()
            for path in (REPOSITORY / "results").glob("paper_*.csv"):
                shutil.copy(path, folder / "results")
            notebooks = sorted(map(str, (REPOSITORY / "notebooks").glob("*.ipynb")))
            tests = str(Path(__file__).parent)
            path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
            own = {"ALSPEECH_ROOT": str(folder), "ALSPEECH_JOBS": "1", "PYTHONPATH": path}
            done = subprocess.run(
                [sys.executable, "-c", ON_A_GPU, "small", "synthetic", "", *notebooks],
                env={**os.environ, **own}, capture_output=True, text=True,
            )  # fmt: skip
            (folder / "told").write_text(done.stderr[-2000:] if done.returncode else "")
    return folder


@pytest.fixture
def spoken_root(root, spoken):
    """An empty companion whose preset ``tiny`` has its corpus already."""
    shutil.copytree(spoken / "data", root / "data")
    return root


# Runs ``python -m alspeech`` in forks of a process that has imported what others wrote (which
# takes longer than most of what is asked for here) and nothing of ours. A line asks, one answers.
COMMANDS = """
import atexit, gc, json, os, resource, runpy, sys, threading, traceback
import alspeech.studies, alspeech.sisters.findings, alspeech.speech.synthesis
import scipy.cluster.vq, scipy.signal, torch._dynamo
for name in [name for name in sys.modules if name.partition(".")[0] == "alspeech"]:
    del sys.modules[name]
gc.collect()
gc.freeze()
def begin(folder, arguments, environment, largest):
    child = os.fork()
    if child:
        return child
    os.setsid()
    for number, name, how in (0, os.devnull, os.O_RDONLY), (1, "out", 577), (2, "err", 577):
        os.dup2(os.open(os.path.join(folder, name), how), number)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, code = ["alspeech", *arguments], 1
    try:
        runpy.run_module("alspeech", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # to tidy up after the imports takes longer than a command
def end(child, flags):
    found, status = os.waitpid(child, flags)
    return os.waitstatus_to_exitcode(status) if found else None
for line in sys.stdin:
    what, *given = json.loads(line)
    print(json.dumps({"begin": begin, "end": end}[what](*given)), flush=True)
"""


@functools.cache
def commands() -> subprocess.Popen:
    """The process that every :class:`Command` is forked from; it ends with this one."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", COMMANDS], stdin=pipe, stdout=pipe, text=True)


class Command:
    """``python -m alspeech …`` with its files under ``root``, in a session of its own, none of them
    larger than ``largest`` bytes."""

    def __init__(self, root: Path, *arguments: str, largest: int | None = None, **environment: str):
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, "ALSPEECH_ROOT": str(root), **environment}
        self.pid = self._ask("begin", self.folder.name, arguments, environment, largest)
        self.status = None

    def _ask(self, *what):
        print(json.dumps(what), file=commands().stdin, flush=True)
        return json.loads(commands().stdout.readline())

    def poll(self, flags: int = os.WNOHANG) -> int | None:
        """Its status, if it has ended."""
        if self.status is None:
            self.status = self._ask("end", self.pid, flags)
        return self.status

    def wait(self) -> int:
        return self.poll(0)

    def told(self, where: str = "err") -> str:
        return (Path(self.folder.name) / where).read_text()


def alspeech(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python -m alspeech …`` with its files under ``root``, to its end."""
    command = Command(root, *arguments, **environment)
    status = command.wait()
    return subprocess.CompletedProcess(arguments, status, command.told("out"), command.told())


@pytest.fixture
def digits(tmp_path):
    """A small folder in FSDD's layout: tones instead of digits."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("ada", "bob"):
            for index in (0, 5, 10, 11, 22, 23):
                time = np.arange(int(8000 * rng.uniform(0.2, 0.4))) / 8000
                tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * digit) * time)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", tone, 8000)
    return folder.parent


def manifest_of(texts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"utt_id": [f"u{i}" for i in range(len(texts))], "text": texts})


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """A tiny companion with a step of every kind; see companion.py. Made once in a test run."""
    with shared_folder(tmp_path_factory, "house") as folder:
        return companion.Companion(folder)


@pytest.fixture
def house(computed):
    """The same, and this test is at home in it: ``house.patch`` is undone at its end."""
    with computed.home() as computed.patch:
        yield computed
