"""``make bench``: speed as ratios within one run. Prints a table and writes build/bench.json.

Everything on one thread, same inputs for both sides, warmed up, medians of REPEATS.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from alspeech.config import ROOT, ModelConfig, TrainingConfig
from alspeech.ctc import ctc_losses
from alspeech.decoding import n_best
from alspeech.gradients import Tape, expected_gradient_length
from alspeech.model import Bidirectional, DeepSpeech2
from alspeech.training import autocast

REPEATS = 5
B, T, U, V, K, R = 16, 176, 18, 29, 100, 6  # 1.76 s of features, 18 characters


def median_seconds(call) -> float:
    call()  # warm-up: kernels compiled, memory allocated
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def trained_a_little(features, labels) -> DeepSpeech2:
    """A model that has seen the batch for a while, so that posteriors are neither flat nor sure."""
    torch.manual_seed(0)
    model = DeepSpeech2(ModelConfig(hidden=96), V)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = ctc_losses(model(features).log_softmax(-1), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def plain_egl(model, features, hypotheses, utterances: int) -> list[float]:
    """Equation 4 as it stands: one utterance at a time, K backward passes."""
    scores = []
    for b in range(utterances):
        log_probs = model(features[b : b + 1]).log_softmax(-1)
        total = 0.0
        for k in range(K):
            loss = ctc_losses(log_probs, [hypotheses.labeling(b, k)])
            gradients = torch.autograd.grad(loss.sum(), list(model.parameters()), retain_graph=True)
            norm = sum(g.square().sum() for g in gradients)
            total += hypotheses.log_p[b, k].exp().item() * norm.item()
        scores.append(total)
    return scores


def training_step(model, features, labels, optimizer) -> None:
    with autocast("cpu"):
        logits = model(features)
    loss = ctc_losses(logits.float().log_softmax(-1), labels).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), TrainingConfig().clip)
    optimizer.step()


class Packed(nn.Module):
    """The same recurrent layer on packed sequences, as padded batches need it."""

    def __init__(self, layer: Bidirectional):
        super().__init__()
        self.rnn = layer.rnn

    def forward(self, x):
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        y = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
        return y.unflatten(-1, (2, -1)).sum(dim=2)


def packed_fp32_step(model, features, labels, optimizer) -> None:
    log_probs = functional.log_softmax(model.layers(features[:, None]), dim=-1)
    loss = ctc_losses(log_probs, labels).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), TrainingConfig().clip)
    optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(B, T, 40, generator=generator)
    labels = torch.randint(1, V, (B, U), generator=generator).tolist()
    model = trained_a_little(features, labels)
    heard = features + 0.7 * torch.randn(B, T, 40, generator=generator)
    few = 2

    def egl(directions, size=B):
        tape = Tape(model, heard[:size])
        found = n_best(tape.logits.log_softmax(-1), K)
        return expected_gradient_length(tape, found, directions)

    with torch.no_grad():
        hypotheses = n_best(model(heard).log_softmax(-1), K)
    estimate, exact = egl(R), egl(0)
    plain = torch.tensor(plain_egl(model, heard, hypotheses, few))
    plain_seconds = median_seconds(lambda: plain_egl(model, heard, hypotheses, few)) / few
    estimate_seconds = median_seconds(lambda: egl(R)) / B
    exact_seconds = median_seconds(lambda: egl(0)) / B
    learner = DeepSpeech2(ModelConfig(hidden=96), V)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, fused=True)
    step = median_seconds(lambda: training_step(learner, features, labels, optimizer)) / B
    packed = DeepSpeech2(ModelConfig(hidden=96), V)
    packed.layers = nn.Sequential(
        *(Packed(layer) if isinstance(layer, Bidirectional) else layer for layer in packed.layers)
    )
    rival = torch.optim.AdamW(packed.parameters(), lr=1e-3)
    packed_step = median_seconds(lambda: packed_fp32_step(packed, features, labels, rival)) / B
    rows = [
        (f"EGL, {R} directions, against {K} backward passes", estimate_seconds, plain_seconds),
        (f"EGL, exact, against {K} backward passes", exact_seconds, plain_seconds),
        (f"EGL, {R} directions, against one training pass", estimate_seconds, step),
        ("training step against packed sequences in fp32", step, packed_step),
    ]
    table = [
        {"name": name, "ours": ours * 1e3, "theirs": theirs * 1e3, "ratio": theirs / ours,
         "unit": "ms an utterance"} for name, ours, theirs in rows
    ]  # fmt: skip
    for row in table:
        print(f"{row['name']:<56}{row['ours']:>9.2f}{row['theirs']:>9.2f} ms{row['ratio']:>8.1f} x")
    quality = {
        "spearman_with_exact": float(spearmanr(estimate, exact)[0]),
        "median_ratio_to_exact": float((estimate / exact).median()),
        "largest_relative_error_of_exact": float((exact[:few] / plain - 1).abs().max()),
    }
    for name, value in quality.items():
        print(f"{name:<56}{value:>9.2g}")
    output = ROOT / "build" / "bench.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"rows": table, "quality": quality}, indent=1) + "\n")


if __name__ == "__main__":
    main()
