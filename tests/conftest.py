"""Small models, batches and corpora that the tests share."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
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
    write_tiny(folder)
    return folder


def write_tiny(folder: Path) -> None:
    (folder / "configs" / "tiny.yaml").write_text(
        "strategies: [random, entropy, pctc, egl]\n"
        "query_percents: [20, 50]\nseeds: 2\nlabelings: 10\ndirections: 2\n"
        "build: {base: 24, pool: 30, validation: 8, test: 12}\n"
        "model: {layers: 1, hidden: 12, channels: 4}\n"
        "training: {base_epochs: 2, epochs: 1}\n"
    )


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> Path:
    """A companion with the preset ``tiny``'s corpus: to speak it takes longer than to train on it.
    All processes of a test run share it: the first that asks makes it, others wait."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "spoken"
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    write_tiny(folder)
    done = alspeech(folder, "check", "--preset", "tiny")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def spoken_root(root, spoken):
    """An empty companion whose preset ``tiny`` has its corpus already."""
    shutil.copytree(spoken / "data", root / "data")
    return root


def alspeech(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python -m alspeech …`` with its files under ``root``."""
    return subprocess.run(
        [sys.executable, "-m", "alspeech", *arguments],
        env={**os.environ, "ALSPEECH_ROOT": str(root), **environment},
        capture_output=True,
        text=True,
    )


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
    """A tiny companion with a step of every kind; see companion.py."""
    return companion.Companion(tmp_path_factory.mktemp("house"))


@pytest.fixture
def house(computed):
    """The same, and this test is at home in it: ``house.patch`` is undone at its end."""
    with computed.home() as computed.patch:
        yield computed
