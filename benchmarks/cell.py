"""Where a cell's seconds go: the updates of its training, operation by operation, and its test."""

from __future__ import annotations

import contextlib
import time
from unittest import mock

import numpy as np
import torch
from measure import laptop, median_ms, row
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from alspeech import metrics, training
from alspeech.devices import autocast
from alspeech.experiment import new_model
from alspeech.model import Bidirectional, DeepSpeech2
from alspeech.speech.features import FeatureStore
from alspeech.workshop.config import load_settings

UPDATES, TESTED = 100, 1000
PARTS = {  # what the profiler calls it begins with …; the longest that fits counts
    "recurrent layers, forward": ("aten::mkldnn_rnn_layer",),
    "recurrent layers, backward": ("aten::mkldnn_rnn_layer_backward",),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::_convolution"),
    "convolutions, backward": ("aten::convolution_backward",),
    "batch norm": ("aten::native_batch_norm",),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone"),
    "optimiser, clipping, mean of the weights": (
        "aten::_fused_adamw_", "Optimizer", "aten::linalg_vector_norm", "aten::_foreach",
        "aten::zero_", "aten::fill_", "torch::autograd::Acc", "aten::add_",
    ),
}  # fmt: skip
TOLD = {  # parts of their own, with all that happens in them
    "reading": (FeatureStore, "batch"),
    "SpecAugment": (training, "spec_augment"),
    "CTC": (training, "training_losses"),
}

REST = "all else"


def cell() -> dict:
    settings = load_settings("laptop")
    data, _ = laptop()
    model, train = new_model(settings, 0), data.split("base")
    fit = lambda updates: training.fit(  # noqa: E731
        model, data.store, train, data.split("validation")[:1], data.alphabet, settings.training,
        updates=updates, rate=5e-3, seed=0, measured=1,
    )  # fmt: skip
    fit(UPDATES)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        fit(UPDATES)
        seconds.append(time.perf_counter() - begun)
    update = 1e3 * np.median(seconds) / UPDATES
    with contextlib.ExitStack() as stack, profile(activities=[ProfilerActivity.CPU]) as profiled:
        for name, (owner, attribute) in TOLD.items():
            stack.enter_context(
                mock.patch.object(owner, attribute, _recorded(name, getattr(owner, attribute)))
            )
        fit(UPDATES)
    spent = dict.fromkeys([*PARTS, *TOLD, REST], 0.0)
    for event in profiled.events():
        spent[part_of(event)] += event.self_cpu_time_total
    whole, rest = sum(spent.values()), spent.pop(REST)
    rows = [row("cell: an update", update, unit="ms")]
    for part, microseconds in [*sorted(spent.items(), key=lambda item: -item[1]), (REST, rest)]:
        rows.append(row(f"cell: … {part}", 100 * microseconds / whole, unit="%"))
    peak, work = gemm_peak(), multiply_adds(model, data, train)
    rows += [
        row("cell: multiply-adds of an update", work / 1e9, unit="10^9"),
        row("cell: at the processor's peak in bf16 products", 2e3 * work / peak, unit="ms"),
        row("cell: share of that peak", 100 * 2e3 * work / peak / update, unit="%"),
    ]
    return {"rows": rows + test_rows(model.eval(), data)}


def part_of(event) -> str:
    """The one part that an event's own time belongs to."""
    caller = event
    while caller is not None:
        if caller.name in TOLD:
            return caller.name
        if "_LossesBackward" in caller.name:
            return "CTC"
        caller = caller.cpu_parent
    # the longest beginning: rnn_layer_backward is no rnn_layer
    fitting = [
        (len(start), part) for part, starts in PARTS.items() for start in starts
        if event.name.startswith(start)
    ]  # fmt: skip
    return max(fitting)[1] if fitting else REST


def test_rows(model, data) -> list[dict]:
    """Milliseconds an utterance of the test, and of its forward passes."""
    test = data.split("test")[:TESTED]
    batches = list(data.store.batches(test, 64))

    def forward():
        with torch.no_grad(), autocast("cpu"):
            for batch in batches:
                model(batch.features)

    def align():
        for text, hypothesis in zip(test["text"], tested["hypothesis"], strict=True):
            metrics.errors(text, hypothesis, data.vocabulary)

    whole = lambda: metrics.evaluate(  # noqa: E731
        model, data.store, test, data.alphabet, known=data.vocabulary
    )
    tested = whole()
    return [
        row("cell: the test", median_ms(whole, len(test), 3)),
        row("cell: … its forward passes", median_ms(forward, len(test), 3)),
        row("cell: … alignment by jiwer", median_ms(align, len(test), 3)),
    ]


def _recorded(name: str, function):
    def call(*arguments, **options):
        with record_function(name):
            return function(*arguments, **options)

    return call


def gemm_peak(size: int = 1024) -> float:
    """Operations a second of the best of ten products of bf16 matrices."""
    a = torch.randn(size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def multiply_adds(model: DeepSpeech2, data, train) -> float:
    """Of an update's products, forward and backward, on average over a pass."""
    found = []

    def count(layer, inputs, output):
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            each = output.numel() * layer.weight[0].numel()
            found.append(each * (2 + (x.shape[1] > 1)))  # nothing goes back to the features
        elif isinstance(layer, Bidirectional):
            found.append(3 * x.shape[0] * x.shape[1] * sum(w.numel() for w in matrices(layer.rnn)))
        elif isinstance(layer, nn.Linear):
            found.append(3 * output[..., 0].numel() * layer.weight.numel())

    hooks = [layer.register_forward_hook(count) for layer in model.layers]
    groups = data.store.groups(train, load_settings("laptop").training.batch)
    with torch.no_grad():
        for index in groups:
            model(data.store.batch(train.iloc[index]).features)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(groups)


def matrices(rnn) -> list:
    return [weight for weight in rnn.parameters() if weight.dim() == 2]
