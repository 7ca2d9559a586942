"""Recognisers that were trained elsewhere: any torch module with CTC outputs.

    recogniser: package.module:function     # in a preset; `make query` then asks it
    weights: path/to/file.pt                # if the function takes one

Legend: B batch, T frames, F bins, N samples, D features, V symbols (0 = blank).

The function is called with the path of ``weights``, if the preset names one, and returns three
things: a ``torch.nn.Module``; its alphabet, V strings, the symbol of each logit, of which the blank
is "" (``|`` is a space, ``<unk>`` and the like are nothing); and which features it wants:

- ``"samples"``: the module is called with [1, N] in [-1, 1], at ``model: sample_rate``, 16 kHz;
- ``"log-mel"``: with [1, T, F], the log-mels that ``model:`` describes (speech/features.py).

It returns logits (or their log-softmax) [1, T', V], which may come first in a tuple, or as the
``logits`` of an object. They must be the outputs of a last ``nn.Linear``, or convolution of kernel
1: last-layer gradients are of that. Of the rest nothing need be known (taps.py).

Here it is taken apart into ``layers`` like Deep Speech 2's, all but the last and the last, with the
blank first. So all scores, first passes and selections run on it as they are. What it looks at is
made from the audio when it is asked for; samples are not padded, and one utterance goes at a time.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pickle
import sys
import sysconfig
import traceback
from pathlib import Path

import pandas as pd
import torch
import torchaudio
from torch import Tensor, nn

from ..devices import device
from ..speech.features import Batch, FeatureExtractor, FeatureStore, input_frames
from ..speech.manifests import read_audio
from ..speech.text import Alphabet
from ..workshop.config import ROOT, ModelConfig, Settings
from ..workshop.errors import UserError, cut, cut_path
from .taps import Body, is_matrix, positions

FEATURES = ("samples", "log-mel")


class Symbols(Alphabet):
    """What a foreign recogniser writes: V − 1 strings, letters or longer pieces."""

    def __init__(self, symbols):
        super().__init__(tuple(map(_written, symbols)))

    @property
    def letters(self) -> set[str]:
        return set("".join(self.characters))

    def decode(self, labels) -> str:
        return " ".join(super().decode(labels).split())


def _written(symbol: str) -> str:
    """A symbol as transcripts have it."""
    if symbol[:1] == "<" and symbol[-1:] == ">":
        return ""
    return symbol.replace("|", " ").replace("▁", " ").lower()


class Heard(FeatureStore):
    """Features of utterances, made from their audio when they are asked for, as [T, F] of log-mels
    or [N, 1] of samples. Lengths are those that the manifest's durations say."""

    def __init__(self, utterances: pd.DataFrame, features: str, config: ModelConfig):
        self._rows = {row.utt_id: row for row in utterances.itertuples(index=False)}
        self._rate = config.sample_rate
        self._extract, self.frames = None, {x: self._samples(x) for x in self._rows}
        if features == "log-mel":
            self._extract = FeatureExtractor(config)
            self.frames = {x: input_frames(config, n) for x, n in self.frames.items()}

    def _samples(self, utt_id: str) -> int:
        return max(1, round(self._rows[utt_id].duration * self._rate))

    def __getitem__(self, utt_id: str) -> Tensor:
        row, count = self._rows[utt_id], self._samples(utt_id)
        where = (row.offset, row.duration) if hasattr(row, "offset") else ()
        audio, rate = read_audio(row.path, *where)
        wave = torchaudio.functional.resample(torch.from_numpy(audio), rate, self._rate)
        wave = nn.functional.pad(wave, (0, max(0, count - len(wave))))[:count]
        return wave[:, None] if self._extract is None else self._extract(wave, self._rate)

    def batch(self, utterances: pd.DataFrame, encode=None) -> Batch:
        utt_ids = tuple(utterances["utt_id"])
        labels = tuple(map(encode, utterances["text"])) if encode else ()
        return Batch(utt_ids, torch.stack([self[utt_id] for utt_id in utt_ids]), labels)


class Recogniser(nn.Module):
    """A foreign module as ``layers`` that the scores know: see above. In evaluation mode.

    ``facts`` are what its outputs depend on, beside the source of this package. Raises
    ``UserError``, which begins with its ``name``, for a module whose logits are NaN or have another
    shape, or whose last layer is none that there are gradients of.
    """

    def __init__(
        self, module: nn.Module, symbols, features: str, config: ModelConfig, name: str = "it",
        facts: dict | None = None,
    ):  # fmt: skip
        super().__init__()
        module.eval()
        self.name, self.features, self.config = name, features, config
        self.facts = {**(facts or {}), "alphabet": list(symbols), "reads": features}
        names = ("sample_rate", "window", "hop", "bins", "round_frames", "features")
        self.facts |= {x: getattr(config, x) for x in names[: 1 if features == "samples" else None]}
        self.facts["weights"] = digest_of(module)
        blank = list(symbols).index("")
        order = torch.tensor([blank, *(v for v in range(len(symbols)) if v != blank)])
        self.alphabet = Symbols(symbols[v] for v in order[1:])
        head = self._head(module, order)
        body = Body(module, head, functools.partial(self._call, module), name)
        self.layers = nn.Sequential(body, _blank_first(head, order))
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, T, F] (or samples [B, N, 1]) → logits [B, T', V], the blank first."""
        return self.layers(features[:, None])

    def store(self, utterances: pd.DataFrame) -> Heard:
        """What it reads of the utterances of a manifest."""
        return Heard(utterances, self.features, self.config)

    def _call(self, module: nn.Module, x: Tensor):
        """The module on one utterance's features [1, T, F]."""
        x = x[..., 0] if self.features == "samples" else x
        try:
            return module(x)
        except (UserError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            told = f"recogniser {self.name} fails on {list(x.shape)}: {reason(error)}"
            raise UserError(told) from error

    @torch.no_grad()
    def _head(self, module: nn.Module, order: Tensor) -> nn.Module:
        """The last layer, whose outputs the logits are; found by a second of noise."""
        generator, V = torch.Generator().manual_seed(0), len(order)
        like = next(module.parameters(), torch.zeros(()))
        noise = 0.1 * torch.randn(self.config.sample_rate, generator=generator)
        x = noise[:, None]
        if self.features == "log-mel":
            x = FeatureExtractor(self.config)(noise, self.config.sample_rate)
        calls, handles = [], []
        for layer in module.modules():
            if is_matrix(layer) and len(layer.weight) == V:
                look = lambda layer, _, output: calls.append((layer, output))  # noqa: E731
                handles.append(layer.register_forward_hook(look))
        try:
            logits = self._logits(self._call(module, x[None].to(like)), V)
        finally:
            for handle in handles:
                handle.remove()
        for layer, output in reversed(calls):
            found = positions(layer, output)
            if found.shape != logits[0].shape:
                continue
            known = [p for part in module.modules() for p in part.parameters(recurse=False)]
            once = all(sum(p is own for p in known) == 1 for own in layer.parameters())
            if once and torch.allclose(
                found.log_softmax(-1), logits[0].log_softmax(-1), rtol=1e-3, atol=1e-3
            ):
                return layer
        raise UserError(
            f"recogniser {self.name}: its logits are not what a last nn.Linear (or nn.Conv1d of "
            "kernel 1) of its own returns, or their log-softmax: return that layer's outputs"
        )

    def _logits(self, output, V: int) -> Tensor:
        """What the module returned, if it is logits [1, T', V]."""
        output = output[0] if isinstance(output, tuple | list) and output else output
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise UserError(f"recogniser {self.name} returns {type(logits).__name__}, no logits: "
                            f"return a tensor [1, frames, {V}]")  # fmt: skip
        if logits.dim() != 3 or len(logits) != 1 or logits.shape[2] != V or not logits.shape[1]:
            raise UserError(
                f"recogniser {self.name} returns {list(logits.shape)} for one utterance, and its "
                f"alphabet has {V} symbols: return logits [1, frames, {V}]"
            )
        if not logits.isfinite().all():
            raise UserError(f"recogniser {self.name}: its logits are NaN or infinite on a second "
                            "of noise: check its weights and that it is in float32")  # fmt: skip
        return logits


def _blank_first(head: nn.Module, order: Tensor) -> nn.Linear:
    """A copy of the last layer with its outputs in another order. (The module keeps its own, which
    another load might be handed again.)"""
    linear = nn.Linear(1, 1, bias=head.bias is not None)
    with torch.no_grad():
        weight = head.weight if isinstance(head, nn.Linear) else head.weight[:, :, 0]
        linear.weight = nn.Parameter(weight[order.to(weight.device)])
        if head.bias is not None:
            linear.bias = nn.Parameter(head.bias[order.to(weight.device)])
    linear.out_features, linear.in_features = linear.weight.shape
    return linear


def digest_of(module: nn.Module) -> str:
    """Of all weights and buffers."""
    digest = hashlib.sha256()
    for name, values in sorted(module.state_dict().items()):
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        flat = values.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


# ---------------------------------------------------------------- from the words of a preset


def load(settings: Settings, seed: int = 0) -> Recogniser:
    """The recogniser that a preset names, on the device. It has no seed of its own.

    Raises ``UserError``, in one line, for a function that cannot be imported or called, and for
    what :class:`Recogniser` and :func:`read_weights` raise.
    """
    path = ROOT / settings.weights if settings.weights else None
    stamp = None
    if path:
        try:
            stamp = path.stat().st_mtime_ns, path.stat().st_size
        except OSError:
            raise UserError(
                f"weights: no file {cut_path(path)}: name that of {settings.recogniser}'s weights"
            ) from None
    return _load(settings.recogniser, path, stamp, settings.model)


@functools.lru_cache(maxsize=1)  # a large one takes seconds
def _load(name: str, path: Path | None, _stamp, config: ModelConfig) -> Recogniser:
    function, source = _function(name)
    try:
        # random weights, if it has any, are the same in every process
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            returned = function(path) if path else function()
    except UserError as error:
        raise UserError(f"recogniser {name}: {error}") from None
    except pickle.UnpicklingError:  # it reads its file as it should
        raise _refused(path) from None
    except Exception as error:
        raise UserError(f"recogniser {name}: {reason(error)}") from error
    try:
        module, symbols, features = returned
        known = all(isinstance(x, str) for x in symbols)
    except (TypeError, ValueError):
        known = False
    if not known or not isinstance(module, nn.Module) or features not in FEATURES:
        raise UserError(
            f"recogniser {name} returns {cut(_kinds(returned))}: return a torch.nn.Module, its "
            'alphabet (V strings), and "samples" or "log-mel"'
        )
    symbols = list(symbols)
    if symbols.count("") != 1 or len(symbols) < 2:
        raise UserError(
            f"recogniser {name}: of its alphabet's {len(symbols)} symbols {symbols.count('')} are "
            '"": write the blank, and nothing else, so'
        )
    facts = {"function": name, "source": source, "file": path and _file_digest(path)}
    return Recogniser(module.float(), symbols, features, config, name, facts).to(device())


def _kinds(value) -> str:
    """What was returned, by its types."""
    if isinstance(value, tuple):
        return f"({', '.join(type(x).__name__ for x in value)})"
    return type(value).__name__


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _function(name: str):
    """The function that ``package.module:function`` names, and a digest of its source."""
    module, _, function = name.partition(":")
    if str(ROOT) not in sys.path:  # a module of one's own lies beside configs/
        sys.path.append(str(ROOT))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"recogniser {name}: it cannot be imported: {reason(error)}") from error
    if not callable(getattr(found, function, None)):
        raise UserError(f"recogniser {name}: there is no function {cut(function)} in "
                        f"{cut_path(getattr(found, '__file__', module))}")  # fmt: skip
    sources: dict[str, str] = {}
    _follow(module, sources)
    return getattr(found, function), sources


def _follow(name: str, found: dict) -> None:
    """Digests of a module and of what it imports, by name; of installed packages their versions.
    This package and Python's own are in every key as they are."""
    module, top = sys.modules.get(name), name.partition(".")[0]
    file = getattr(module, "__file__", None)
    own = top in sys.stdlib_module_names or top == __package__
    if name in found or own or not file or not file.endswith(".py"):
        return
    if any(Path(sysconfig.get_path(x)) in Path(file).parents for x in ("purelib", "platlib")):
        try:
            found[top] = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:  # it goes by another name there
            found[top] = "installed"
        return
    text = Path(file).read_bytes()
    found[name] = hashlib.sha256(text).hexdigest()
    names = {name.rpartition(".")[0]} if "." in name else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, module.__package__ or None)
            names |= {base, *(f"{base}.{item.name}" for item in node.names)}
    for other in sorted(names):
        _follow(other, found)


def reason(error: BaseException) -> str:
    """What went wrong in somebody's module: where, of which kind, and the first line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = tuple(sysconfig.get_path(x) for x in ("stdlib", "purelib", "platlib"))
    theirs = [f for f in frames if not f.filename.startswith((*packages, "<")) and
              Path(f.filename).name != Path(__file__).name]  # fmt: skip
    where, line = (theirs[-1].filename, theirs[-1].lineno) if theirs else ("", 0)
    if isinstance(error, SyntaxError):
        where, line = error.filename or "", error.lineno
    told = cut(" ".join(str(error).split()), 160)
    place = f"{cut_path(where)}:{line}: " if where else ""
    return f"{place}{type(error).__name__}: {told}"


def read_weights(path) -> dict[str, Tensor]:
    """A file's state dict. Nothing in it is run: a pickle that asks for that is refused.

    Raises ``UserError`` for that, and for a file that is none.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _refused(path) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"weights {cut_path(path)} cannot be read: {reason(error)}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"weights {cut_path(path)} are no state dict: save module.state_dict()")
    return state


def _refused(path) -> UserError:
    return UserError(
        f"weights {cut_path(path)}: refused, since it holds more than tensors (a pickle can run "
        "code), or is damaged: save module.state_dict() by torch.save, and name that file"
    )
