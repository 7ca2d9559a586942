"""One training by several processes ends as by one."""

import errno
import functools
import os
import signal
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import TINY, manifest_of

from alspeech import devices, metrics, together, training
from alspeech.experiment import base_model
from alspeech.model import DeepSpeech2
from alspeech.speech.features import Batch, group_by_length
from alspeech.speech.text import Alphabet
from alspeech.workshop.config import TrainingConfig, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import Checkpoint

TEXTS = ["ab", "c", "dab", "", "aba", "cd", "d"]


class Store:
    """Utterances of three lengths, one of which has one only: its batch is for one process."""

    def groups(self, utterances, size, rng=None):
        lengths = [64 if utt_id == "u6" else 32 + 16 * (int(utt_id[1:]) % 2)
                   for utt_id in utterances["utt_id"]]  # fmt: skip
        return group_by_length(lengths, size, rng)

    def batch(self, utterances, encode):
        ids = tuple(utterances["utt_id"])
        frames = 64 if ids[0] == "u6" else 32 + 16 * (int(ids[0][1:]) % 2)
        draw = [torch.Generator().manual_seed(int(utt_id[1:])) for utt_id in ids]
        features = torch.stack([torch.randn(frames, TINY.bins, generator=g) for g in draw])
        return Batch(ids, features, tuple(map(encode, utterances["text"])))

    def batches(self, utterances, size, encode=None, rng=None):
        for index in self.groups(utterances, size, rng):
            yield self.batch(utterances.iloc[index], encode)


def trained(folder: Path, lost: Path | None = None, alone: bool = False) -> dict:
    """A training in single precision; with ``lost`` the second process dies once in the middle."""
    devices.has_bf16 = lambda device: False
    model = DeepSpeech2(TINY, 5)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    objective = None if alone else together.SharedLoss()

    def watched(model, batch, device, progress):
        second = torch.distributed.get_rank() == 1
        if lost and second and progress >= 0.5 and not lost.exists():
            lost.touch()
            os._exit(9)
        return objective(model, batch, device, progress)

    history = training.fit(
        model, Store(), manifest_of(TEXTS), manifest_of(TEXTS), Alphabet("abcd"),
        TrainingConfig(batch=3), updates=10, rate=1e-3, seed=1, measured=2,
        objective=watched if objective else None, checkpoint=Checkpoint(folder),
    )  # fmt: skip
    torch.save(model.state_dict(), folder / "model.pt")
    return {"losses": history["train_loss"].tolist()}


@pytest.fixture
def single_precision(monkeypatch):
    for module in (devices, training, metrics):
        if hasattr(module, "has_bf16"):
            monkeypatch.setattr(module, "has_bf16", lambda device: False)


def test_two_processes_end_with_the_parameters_of_one_though_one_of_them_dies(
    tmp_path, monkeypatch, single_precision
):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one = trained(folders[0], alone=True)
    monkeypatch.setenv("ALSPEECH_CHECKPOINT_SECONDS", "0")
    lost = tmp_path / "lost"
    two = together.spread(functools.partial(trained, lost=lost), 2, folders[1])
    assert lost.exists()
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-5)
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in folders]
    begun = DeepSpeech2(TINY, 5).state_dict()
    assert weights[0].keys() == weights[1].keys() == begun.keys()
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=1e-5, err_msg=name)


def full(folder: Path) -> None:
    """The second of two finds no room, and the first waits for it."""
    with open(folder / "begun", "a") as file:
        file.write("x")
    if torch.distributed.get_rank() == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    (folder / ".half-written").touch()
    torch.distributed.barrier()


def in_a_worker(folder: Path):
    """What a worker of joblib's sees, as of a training of two among several that go on at once."""
    handlers = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    try:
        together.spread(full, 2, folder)
    except OSError as error:
        found = error.errno
    return found, handlers == [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]


def test_an_error_of_one_is_that_error_once_in_workers_too(tmp_path, capfd):
    (told,) = joblib.Parallel(n_jobs=2)([joblib.delayed(in_a_worker)(tmp_path)])
    assert told == (errno.ENOSPC, True)
    assert (tmp_path / "begun").read_text() == "x"
    assert "Traceback" not in capfd.readouterr().err


def test_one_that_ends_without_a_word_is_lost(tmp_path):
    """As when the disk is full, so that what it raised cannot be written down."""
    assert together._once(functools.partial(ending, together.RAISED), 2, tmp_path) == (True, None)


def ending(code: int, folder: Path) -> None:
    os._exit(code)


def interrupting(folder: Path) -> None:
    (folder / "child").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)


def test_ctrl_c_ends_all_that_train_together(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            together.spread(interrupting, 1, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_a_model_of_two_processes_is_not_taken_for_one_of_one(monkeypatch):
    keys = []
    for processes in ("", "1", "2", "4"):
        monkeypatch.setenv("ALSPEECH_PROCESSES", processes)
        step = base_model(load_settings("smoke"), 0)
        keys.append(step.key)
        assert step.processes == int(processes or 1)  # as many cores is what an engine gives it
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize("count, processes", [(17, 2), (16, 4), (1, 2), (3, 8), (32, 8)])
def test_every_row_of_a_batch_is_one_process_s(count, processes):
    shares = [together.rows_of(count, rank, processes) for rank in range(processes)]
    assert sorted(row for rows, weight in shares for row in rows if weight) == [*range(count)]
    assert all(rows for rows, _ in shares)


def test_more_processes_than_gpus_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(together, "on_a_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="PROCESSES=2, and 1 GPUs are there"):
        together.spread(trained, 2, tmp_path)
