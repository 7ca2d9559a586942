"""What others offer, called as they are meant to be called, on our inputs.

Legend: B batch, T frames, V symbols (0 = blank), K labelings, U labels.
"""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import tempfile

import numpy as np
import torch
from measure import REPEATS, K
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from alspeech.ctc import labelings_log_p
from alspeech.decoding import Hypotheses
from alspeech.speech.text import ENGLISH
from alspeech.workshop.config import ROOT

RIVALS = ROOT / "build" / "rivals"  # made by `make bench`

# ---------------------------------------------------------------- gradients


def total_squares(gradients) -> Tensor:
    return sum(gradient.square().sum() for gradient in gradients)


def one_by_one(model, features: Tensor, g: Tensor) -> Tensor:
    """A backward pass for each gradient by the logits, g [K, T', V] → [K]."""
    logits, parameters = model(features)[0], list(model.parameters())
    passes = (torch.autograd.grad(logits, parameters, row, retain_graph=True) for row in g)
    return torch.stack([total_squares(gradients) for gradients in passes])


def grads_batched(model, features: Tensor, g: Tensor) -> Tensor:
    logits = model(features)[0]
    gradients = torch.autograd.grad(logits, list(model.parameters()), g, is_grads_batched=True)
    return sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients)


def vmap_vjp(model, features: Tensor, g: Tensor) -> Tensor:
    """torch.func: the pull-back of one forward pass, vmapped over labelings. (F.ctc_loss has no
    batching rule, and recurrent layers none for a batched input.)"""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    pull_back = vjp(lambda p: functional_call(model, (p, buffers), (features,))[0], parameters)[1]
    return vmap(lambda row: total_squares(pull_back(row)[0].values()))(g)


AUTOGRAD = {"one by one": one_by_one, "is_grads_batched": grads_batched, "vmap": vmap_vjp}

# ---------------------------------------------------------------- n-best

# beam, symbols a frame, threshold: nothing pruned; and the fastest found whose mass reaches ours
FLASHLIGHT = {"beam 100": (K, len(ENGLISH), math.inf), "beam 120, pruned": (120, 10, 15.0)}


def flashlight(beam: int, symbols: int, threshold: float):
    """flashlight-text through torchaudio, log_probs [B, T, V] → B lists of labelings; None where it
    is not installed. The silence is the blank: else every labeling would begin and end with it."""
    sys.path.append(str(RIVALS / "flashlight"))
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError):
        return None
    decoder = ctc_decoder(
        lexicon=None, tokens=["<blank>", *ENGLISH.characters], nbest=beam, beam_size=beam,
        beam_size_token=symbols, beam_threshold=threshold, lm_weight=0, log_add=True,
        blank_token="<blank>", sil_token="<blank>",
    )  # fmt: skip
    return lambda log_probs: [[y.tokens.tolist() for y in row] for row in decoder(log_probs)]


def pyctcdecode_worker(source, characters, beam, options, repeats):
    """Runs in pyctcdecode's own environment, without this module: median seconds of a pass, and the
    labelings. A space must look like any other character: it would be merged and cut."""
    import json
    from time import perf_counter

    import numpy
    from pyctcdecode import build_ctcdecoder

    characters = characters.replace(" ", "~")
    decoder = build_ctcdecoder(["", *characters])
    log_probs, seconds = numpy.load(source), []
    for _ in range(repeats + 1):
        begun = perf_counter()
        beams = [decoder.decode_beams(frames, beam_width=beam, **options) for frames in log_probs]
        seconds.append(perf_counter() - begun)
    labelings = [[[characters.index(c) + 1 for c in found[0]] for found in row] for row in beams]
    print(json.dumps([sorted(seconds[1:])[repeats // 2], labelings]))


def pyctcdecode(log_probs: Tensor) -> dict:
    """name → (seconds of a pass, B lists of labelings); nothing where it is not installed."""
    python = RIVALS / "pyctcdecode" / "bin" / "python"
    if not python.exists():
        print("pyctcdecode is not installed: its rows are left out (see the Makefile)")
        return {}
    found = {}
    for name, options in {"beam 100": {}}.items():
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file.name, log_probs.numpy())
            program = inspect.getsource(pyctcdecode_worker)
            program += f"pyctcdecode_worker{file.name, ENGLISH.characters, K, options, REPEATS}"
            done = subprocess.run([python, "-c", program], check=True, stdout=subprocess.PIPE)
        found[name] = tuple(json.loads(done.stdout))
    return found


def rescored(log_probs: Tensor, labelings, k: int = K) -> Hypotheses:
    """Another search's B lists of labelings as decoding.n_best would return them: unique, scored
    exactly by CTC, the best k."""
    unique = [list(dict.fromkeys(map(tuple, row))) for row in labelings]
    longest = max(1, max(len(y) for row in unique for y in row))
    shape = (len(unique), max(k, max(map(len, unique))))
    labels, lengths = np.zeros((*shape, longest), np.int64), np.full(shape, -1)
    for b, row in enumerate(unique):
        for n, y in enumerate(row):
            labels[b, n, : len(y)], lengths[b, n] = y, len(y)
    labels, lengths = torch.from_numpy(labels), torch.from_numpy(lengths)
    log_p = labelings_log_p(log_probs, labels, lengths.clamp_min(0))
    log_p = log_p.masked_fill(lengths < 0, -torch.inf)
    log_p, order = (a[:, :k] for a in log_p.sort(dim=1, descending=True, stable=True))
    labels = labels.gather(1, order[..., None].expand(-1, -1, longest))
    return Hypotheses(labels, lengths.clamp_min(0).gather(1, order), log_p)


# ---------------------------------------------------------------- training


class Packed(nn.Module):
    """A recurrent layer on packed sequences, as padded batches need it."""

    def __init__(self, layer):
        super().__init__()
        self.rnn = layer.rnn

    def forward(self, x):
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        y = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
        return y.unflatten(-1, (2, -1)).sum(dim=2)
