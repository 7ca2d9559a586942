"""EGL of recognisers from elsewhere, against plain autograd; what the last layer alone misses."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import torchaudio
from measure import K, laptop, row

from alspeech.ctc import ctc_losses
from alspeech.decoding import n_best
from alspeech.gradients import Tape, expected_gradient_length
from alspeech.model import count_parameters
from alspeech.pretrained import LETTERS, ConformerCTC, Wave
from alspeech.recognisers import Recogniser
from alspeech.speech.features import Batch
from alspeech.statistics import spearman
from alspeech.training import fit
from alspeech.workshop.config import ModelConfig, load_settings

SMALL = [(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2  # convolutions of a small wav2vec 2.0
UPDATES, RATE, POOL, SECONDS, PASSES = 500, 2e-3, 120, 3, 1


def recognising() -> dict:
    """What EGL costs."""
    rows = [row for name, model in small().items() for row in against_autograd(name, model)]
    for line in rows:
        print(line, flush=True)
    return {"rows": rows + large()}


def shortlist() -> dict:
    """What a shortlist by the last layer's EGL misses."""
    model, batches = trained()
    rows = missed("a Conformer trained here", model, batches)
    model, noise = small()["wav2vec 2.0"], torch.Generator().manual_seed(2)
    some = [heard(model, 0.5 + 0.05 * i, noise) for i in range(30)]
    return {"rows": rows + missed("wav2vec 2.0, random weights, noise", model, some)}


def small() -> dict[str, Recogniser]:
    """The shipped kinds in small, with random weights."""
    torch.manual_seed(0)
    wave = lambda mode, first: torchaudio.models.wav2vec2_model(  # noqa: E731
        mode, SMALL, first, 96, 0.0, 31, 4, 2, 4, 0.0, 384, 0.0, 0.0, first, 0.0, len(LETTERS)
    )
    kinds = {
        "wav2vec 2.0": (Wave(wave("group_norm", False), False), "samples"),
        "HuBERT": (Wave(wave("layer_norm", True), True), "samples"),
        "Conformer": (ConformerCTC(40, len(LETTERS), 96, 4, 384, 2, 15), "log-mel"),
    }
    return {
        name: Recogniser(module, LETTERS, features, ModelConfig(), name)
        for name, (module, features) in kinds.items()
    }


def cpu_ms(call) -> float:
    """Milliseconds of the processor that a call takes, on one thread: seconds of the wall would be
    the neighbours' as well, in a call that takes so many."""
    begun = time.process_time()
    call()
    return 1e3 * (time.process_time() - begun)


def heard(model: Recogniser, seconds: float, generator=None) -> Batch:
    """Noise as one utterance of so many seconds."""
    generator = generator or torch.Generator().manual_seed(1)
    length, bins = (16000, 1) if model.features == "samples" else (100, 40)
    return Batch(("x",), torch.randn(1, int(seconds * length), bins, generator=generator))


def plain_ms(model: Recogniser, features, log_p, labels, count: int) -> tuple[float, float]:
    """Equation 4 as it stands, by so many of the labelings: the milliseconds of a pass, and what
    the passes come to."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    log_probs, total = model(features).log_softmax(-1), 0.0
    begun = time.process_time()
    for k in range(count):
        loss = ctc_losses(log_probs, [labels[k]]).sum()
        found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        norm = sum(x.square().sum() for x in found if x is not None)
        total += float(log_p[k].double().exp() * norm)
    return 1e3 * (time.process_time() - begun) / count, total


def scored(model: Recogniser, batch: Batch, **options) -> torch.Tensor:
    with torch.no_grad():
        tape = Tape(model, batch.features)
        found = n_best(tape.logits.log_softmax(-1), K)
        return expected_gradient_length(tape, found, **options)


def against_autograd(name: str, model: Recogniser) -> list[dict]:
    """One utterance of a second, all K labelings."""
    batch = heard(model, 1.0)
    exact = scored(model, batch, method="exact").item()
    found = n_best(model(batch.features).log_softmax(-1).detach(), K)
    labels = [found.labeling(0, k) for k in range(K)]
    pass_ms, truth = plain_ms(model, batch.features, found.log_p[0], labels, K)
    five_ms = cpu_ms(lambda: scored(model, batch))
    title = f"{name} of {count_parameters(model) / 1e6:.1f} M parameters"
    return [
        row(f"{title}: EGL, K = {K}, R = 5, against plain autograd", five_ms, K * pass_ms),
        row(f"{title}: EGL, exact: relative error", abs(exact / truth - 1), unit=""),
    ]


def large() -> list[dict]:
    """wav2vec 2.0 of the size that people use, an utterance of some seconds."""
    torch.manual_seed(0)
    module = torchaudio.models.wav2vec2_base(aux_num_out=len(LETTERS))
    model = Recogniser(Wave(module, False), LETTERS, "samples", ModelConfig(), "wav2vec 2.0 base")
    scored(model, heard(model, 0.5))  # warm-up; the rules are checked
    batch = heard(model, SECONDS)
    with torch.no_grad():
        logits = model(batch.features)
        forward_ms = cpu_ms(lambda: model(batch.features))
    found = n_best(logits.log_softmax(-1), K)
    labels = [found.labeling(0, k) for k in range(PASSES)]
    pass_ms, _ = plain_ms(model, batch.features, found.log_p[0], labels, PASSES)
    last_ms = cpu_ms(lambda: scored(model, batch, method="last_layer"))
    five_ms = cpu_ms(lambda: scored(model, batch))
    print(f"{forward_ms:.0f} {pass_ms:.0f} {last_ms:.0f} {five_ms:.0f} ms", flush=True)
    title = f"wav2vec 2.0, {count_parameters(model) / 1e6:.0f} M parameters, {SECONDS} s"
    return [
        row(f"{title}: EGL, K = {K}, R = 5, against {K} times a plain pass", five_ms, K * pass_ms),
        row(f"{title}: EGL of the last layer, against the same", last_ms, K * pass_ms),
        row(f"{title}: EGL, R = 5", five_ms / forward_ms, unit="forward passes"),
        row(f"{title}: EGL of the last layer", last_ms / forward_ms, unit="forward passes"),
    ]


def trained() -> tuple[Recogniser, list[Batch]]:
    """A small Conformer, trained on the laptop preset's base set, and some of its pool."""
    data, _ = laptop()
    settings, base = load_settings("laptop"), data.split("base")
    torch.manual_seed(0)
    module = ConformerCTC(settings.model.bins, len(data.alphabet), 96, 4, 192, 3, 15)
    config = replace(settings.training, clip=1.0)
    known = fit(module, data.store, base, data.split("validation"), data.alphabet, config,
                updates=UPDATES, rate=RATE, seed=0, measured=1)  # fmt: skip
    print(known.to_string(index=False), flush=True)
    symbols = ["", *data.alphabet.characters]
    model = Recogniser(module, symbols, "log-mel", settings.model, "a Conformer")
    some = data.split("pool").sample(POOL, random_state=0).reset_index(drop=True)
    return model, list(data.store.batches(some, 32))


def missed(name: str, model: Recogniser, batches: list[Batch]) -> list[dict]:
    """What the last layer's EGL alone, and a shortlist by it, miss of the full one."""
    parts = []
    for batch in batches:
        with torch.no_grad():
            tape = Tape(model, batch.features)
            found = n_best(tape.logits.log_softmax(-1), K)
            both = [expected_gradient_length(tape, found, method, renormalise=True)
                    for method in ("exact", "last_layer")]  # fmt: skip
        parts.append(torch.stack([*both, found.mass()]))
    full, last, mass = torch.cat(parts, dim=1)
    rows, few, many = [], round(0.1 * len(full)), round(0.3 * len(full))
    for told, factor in (("EGL as printed", mass), ("EGL, renormalised", 1.0)):
        best = set((full * factor).argsort()[-few:].tolist())
        on_it = set((last * factor).argsort()[-many:].tolist())
        rows += [
            row(f"{name}: {told}: Spearman of the last layer's with the full one, {len(full)} "
                "utterances", spearman(last * factor, full * factor), unit=""),
            row(f"{name}: {told}: of the best tenth on a shortlist three times as long",
                len(best & on_it) / few, unit=""),
        ]  # fmt: skip
    return rows
