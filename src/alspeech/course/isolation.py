"""Strangers' acquisition functions, run where they can do no harm (confined.py says how).

    with Isolation() as isolation:
        run = isolation.score(name, source, model, batches)   # scores, and what they cost

The parent keeps transcripts, test set and seeds. A child gets the model's weights, the features of
the pool in batches, and names for the utterances that stand for nothing: arrays through a pipe.
What comes back is numbers, and is looked at before it is used.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..workshop.errors import UserError, cut
from .confined import LANDLOCK, SECCOMP, SPENDING

NEEDED = (SPENDING, LANDLOCK, SECCOMP)  # without these nothing of a stranger's is run
MISSING = (
    "this machine cannot confine strangers' code ({missing} missing): run the leaderboard on Linux "
    "5.13 or newer, or, for files that you have read yourself, with ISOLATION=none"
)


@dataclass(frozen=True)
class Limits:
    """What a call may take."""

    # of processor time; on the clock three times as long, and half a minute
    seconds: float = 300.0
    memory: int = 2 * 2**30  # bytes, beyond what Python and torch have taken already


LIMITS = Limits()


class Refused(Exception):
    """A submission that does not stand: one line that says why."""


@dataclass(frozen=True)
class Scored:
    """What came back: scores in the batches' order, what they cost in forward passes, and what the
    child was confined by."""

    scores: np.ndarray
    forward_passes: float
    layers: tuple[str, ...]


class Isolation:
    """A process that forks a confined child for each call; start it by ``with``.

    ``needed`` are the layers without which a call is refused (``UserError``).
    """

    def __init__(self, limits: Limits = LIMITS, needed: tuple[str, ...] = NEEDED):
        self.limits, self.needed, self._process = limits, needed, None

    def __enter__(self) -> Isolation:
        self._folder = tempfile.TemporaryDirectory(prefix="alspeech-")
        return self

    def __exit__(self, *_) -> None:
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _start(self) -> None:
        keep = ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
        # a folder of its own as ROOT: there is nothing of a run in it
        home = self._folder.name
        own = {"OMP_NUM_THREADS": "1", "HOME": home, "ALSPEECH_ROOT": home}
        environment = {name: os.environ[name] for name in keep if name in os.environ} | own
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.confined"], env=environment,
            cwd=self._folder.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def score(self, name: str, source: str, model, batches) -> Scored:
        """Scores of ``batches`` (features and ids, no labels) by a submission's ``source``.

        Raises ``Refused`` for one that fails, takes too much, or returns no numbers, and
        ``UserError`` where the machine cannot confine it.
        """
        config = dataclasses.asdict(model.config)
        arrays = {f"weight:{x}": v.cpu().numpy() for x, v in model.state_dict().items()}
        arrays |= {"symbols": model.layers[-1].out_features, "batches": len(batches)}
        for i, batch in enumerate(batches):
            arrays[f"ids:{i}"] = np.array(batch.utt_ids)
            arrays[f"features:{i}"] = batch.features.cpu().numpy()
        count = sum(map(len, batches))
        told, found = self._call(name, source, config, arrays, 8 * count)
        head, _, rest = found.partition(b"\n")
        try:
            layers = tuple(json.loads(head))
        except ValueError:
            raise Refused(told["stopped"] or "its process ended before it began") from None
        if missing := [layer for layer in self.needed if layer not in layers]:
            raise UserError(MISSING.format(missing=", ".join(missing)))
        if told["stopped"]:
            raise Refused(told["stopped"])
        if len(rest) < 17:
            raise Refused("its process ended without an answer")
        forward, before = struct.unpack("=2d", rest[:16])
        if rest[16:17] != b"S":
            raise Refused(cut(rest[17:].decode(errors="replace"), 160))
        if len(rest) != 17 + 8 * count:
            raise Refused(f"{(len(rest) - 17) / 8:g} scores came back for {count} utterances")
        scores = np.frombuffer(rest[17:], "<f8").astype(float)
        if wrong := int((~np.isfinite(scores)).sum()):
            raise Refused(f"{wrong} of {count} scores are NaN or infinite")
        return Scored(scores, max(0.0, told["cpu"] - before) / max(forward, 1e-9), layers)

    def _call(self, name, source: str, config, arrays, most: int) -> tuple[dict, bytes]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        buffer, text = io.BytesIO(), source.encode()
        np.savez(buffer, **arrays)
        data, limits = buffer.getvalue(), self.limits
        call = {"seconds": 3 * limits.seconds + 30, "most": most + 4096}
        header = {
            "name": name, "model": config, "source": len(text), "data": len(data),
            "seconds": limits.seconds, "memory": limits.memory, "needed": self.needed,
        }  # fmt: skip
        try:
            for part in (_line(call), _line(header), text, data):
                self._process.stdin.write(part)
            self._process.stdin.flush()
            told = json.loads(self._process.stdout.readline())
            return told, self._process.stdout.read(told["bytes"])
        except (OSError, ValueError):
            self._end()  # whatever the child has left unread belongs to no other
            raise Refused("its process took the one that watches it down") from None


def _line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"
