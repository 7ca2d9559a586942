"""On a GPU, too: every call that a notebook makes, where tensors of two devices are refused."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import manifest_of, tiny_batch, tiny_joint, tiny_model
from fake_gpu import FakeGPU
from test_loss_prediction import LABELS, Store

from alspeech import devices, gradients
from alspeech.acquisition import ACQUISITIONS, gradient_length
from alspeech.decoding import n_best
from alspeech.devices import has_bf16
from alspeech.gradients import METHODS, Tape, expected_gradient_length, plain_egl
from alspeech.metrics import evaluate
from alspeech.querying import score
from alspeech.sisters.encoders import layers_of, recogniser
from alspeech.sisters.joint import objective
from alspeech.speech.text import Alphabet
from alspeech.training import fit
from alspeech.workshop.config import TrainingConfig
from alspeech.workshop.store import Checkpoint

ALPHABET = Alphabet("abcd")
POOL = manifest_of(["ab", "c", "dab", "", "aba", "cd"])


@pytest.fixture
def gpu():
    with FakeGPU() as mode:
        yield mode


def here_and_there(call, model):
    """What ``call`` of the model returns on the CPU, and on a GPU."""
    here = call(copy.deepcopy(model))
    with FakeGPU() as gpu:
        there = call(model.to("cuda"))
        assert gpu.moves
    return here, there


# ---------------------------------------------------------------- the fake itself

MISTAKES = {
    "a model and a batch": lambda here, there: there.matmul(here),
    "two in a list": lambda here, there: torch.cat([here, there]),
    "an index": lambda here, there: here[there.argmax(dim=-1)],
    "a value at some places": lambda here, there: there.__setitem__(there > 0, here[here > 0]),
    "transcripts": lambda here, there: torch.nn.functional.ctc_loss(
        there[:, None].log_softmax(-1), here.argmax(-1)[None], torch.tensor([3]), torch.tensor([3])
    ),
    "numpy": lambda here, there: there.numpy(),
    "pandas": lambda here, there: pd.DataFrame({"loss": there[0]}),
    "a view": lambda here, there: np.asarray(there.T.unbind(0)[1]),
    "random numbers": lambda here, there: torch.rand(
        3, device=there.device, generator=torch.Generator()
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_a_gpu_refuses_is_refused(gpu, what):
    here = torch.randn(3, 3)
    there = here.to("cuda")
    with pytest.raises((RuntimeError, TypeError), match="cuda"):
        MISTAKES[what](here, there)
    assert here.device.type == "cpu" and there.device == torch.device("cuda:0")


def test_what_a_gpu_allows_is_allowed(gpu):
    here = torch.randn(3, 3)
    there = here.to("cuda")
    assert there[here.argmax(dim=-1)].device.type == "cuda"  # by places that the CPU knows
    assert (there * torch.tensor(2.0)).device.type == "cuda"  # a number of the CPU's
    there[1:] = here[:2]
    assert torch.equal(there[1:].cpu(), here[:2]) and here.copy_(there).device.type == "cpu"
    assert there.to(torch.double).dtype == torch.double and there.to(here).device.type == "cpu"


def test_cudnn_goes_back_through_a_recurrent_layer_in_training_mode_only(gpu):
    model, features = tiny_model().to("cuda"), tiny_batch().features.to("cuda")
    with pytest.raises(RuntimeError, match="only be called in training mode"):
        model(features).sum().backward()
    model.train()(features).sum().backward()
    assert next(model.parameters()).grad.device.type == "cuda"


# ---------------------------------------------------------------- the package


@pytest.mark.parametrize("model", [tiny_model, tiny_joint])
@pytest.mark.parametrize("strategy", sorted(ACQUISITIONS))
def test_every_score_is_taken_where_the_model_is(strategy, model):
    if strategy == "loss_prediction" and model is tiny_model:
        pytest.skip("needs a joint recogniser")
    options = {"labelings": 10} if "egl" in strategy else {}
    scores = here_and_there(
        lambda m: score(m, Store(6), POOL, strategy, alphabet=ALPHABET, **options),
        model(dtype=torch.float32),
    )
    np.testing.assert_allclose(*scores, rtol=1e-2)  # bf16 here, perhaps, and none there


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_egl_stays_where_the_model_is(method, half, monkeypatch):
    monkeypatch.setattr(gradients, "has_bf16", lambda device: half)

    def egl(model):
        batch = tiny_batch(dtype=torch.float32).to(next(model.parameters()).device)
        tape = Tape(model, batch.features)
        hypotheses = n_best(tape.logits.log_softmax(-1), 10)
        return expected_gradient_length(tape, hypotheses, method, directions=2).cpu()

    here, there = here_and_there(egl, tiny_model(dtype=torch.float32))
    assert torch.allclose(here, there, rtol=5e-2 if half else 1e-3)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_of_single_utterances_on_a_gpu(cell):
    def lengths(model):
        batch = dataclasses.replace(tiny_batch(), labels=LABELS).to(next(model.parameters()).device)
        hypotheses = n_best(model(batch.features).detach().log_softmax(-1), 5)
        plain = plain_egl(model, batch.features[:1], hypotheses)  # autograd's, in evaluation mode
        return [plain, *gradient_length(model, batch).tolist()]

    here, there = here_and_there(lengths, tiny_model(cell))
    assert there == pytest.approx(here, rel=1e-8)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("joint", [False, True])
def test_a_training_on_a_gpu_ends_as_on_the_cpu_after_an_interruption_too(
    joint, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    config = TrainingConfig(batch=2)

    def train(model, checkpoint=None, report=None):
        return fit(
            model, Store(6), POOL, POOL, ALPHABET, config, updates=6, rate=1e-2, seed=1,
            objective=objective if joint else None, report=report, checkpoint=checkpoint,
        )  # fmt: skip

    class Always(Checkpoint):
        def due(self):
            return True

    def stop(row):
        raise Interrupted

    make = tiny_joint if joint else lambda: tiny_model(dtype=torch.float32)
    expected = train(make())
    with FakeGPU():
        with pytest.raises(Interrupted):
            train(make().to("cuda"), Always(tmp_path), stop)
        model = make().to("cuda")
        history = train(model, Always(tmp_path))
        tested = evaluate(model, Store(6), POOL, ALPHABET)
    pd.testing.assert_frame_equal(history, expected)
    assert len(tested) == len(POOL)
    assert {x.device.type for x in model.state_dict().values()} == {"cpu"}  # as seen without a GPU


def test_encoders_read_clips_from_the_cpu_and_answer_there(monkeypatch):
    clips = [torch.randn(4000), torch.randn(4000), torch.randn(6000)]
    here, there = here_and_there(
        lambda m: recogniser(None, m)(clips), tiny_model(dtype=torch.float32)
    )
    assert torch.equal(here, there)

    class Pretrained(torch.nn.Linear):
        def extract_features(self, batch):
            return [self(batch[..., None])], None

    model = Pretrained(1, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with FakeGPU() as gpu, torch.no_grad():
        assert layers_of(model)(clips).numpy().shape == (3, 6) and gpu.moves


def test_bf16_is_used_where_a_gpu_multiplies_it_and_not_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    for capability, able in ((7, False), (8, True)):  # Turing can hold them, Ampere multiplies them
        properties = type("Properties", (), {"major": capability})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, p=properties: p)
        assert has_bf16("cuda") is able


TRAINED = """
import torch
from alspeech import devices, gradients
from alspeech.acquisition import egl
from alspeech.model import DeepSpeech2
from alspeech.training import fit
from conftest import TINY, manifest_of, tiny_batch, tiny_model
from test_devices import ALPHABET, POOL, Store, TrainingConfig

def trained():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DeepSpeech2(TINY, len(ALPHABET))
    history = fit(model, Store(6), POOL, POOL, ALPHABET, TrainingConfig(batch=2), updates=6,
                  rate=1e-3, seed=1)
    scores = egl(tiny_model(dtype=torch.float32), tiny_batch(dtype=torch.float32), labelings=10)
    return [*history["validation_loss"], *scores.tolist()]
"""


def test_a_processor_without_avx512_and_bf16_comes_to_the_same_numbers():
    names = {}
    exec(TRAINED, names)
    here = names["trained"]()
    single = "devices.has_bf16 = gradients.has_bf16 = lambda device: False"
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    old = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", f"{TRAINED}\n{single}\nprint(trained())"], check=True,
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, **old, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    there = json.loads(done.stdout)
    assert len(there) == len(here) == 9
    np.testing.assert_allclose(here, there, rtol=2e-2)


def test_the_notebooks_leave_no_tensor_behind_on_a_gpu(executed):
    assert (executed / "told").read_text() == ""
