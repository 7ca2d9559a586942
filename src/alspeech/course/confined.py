"""The process in which strangers' code runs: what it gives up before it begins.

    python -m alspeech.course.confined    # isolation.py starts it, and speaks with it through pipes

It imports what submissions need, once, and knows nothing else: no seed, no transcript, no test set.
For each call it forks; the child confines itself, reads its input, runs the submission, writes
scores into a pipe, and ends. Nothing that it has done to itself outlives it.

What confines a child, each where the system has it:

- limits: processor time, memory, no files (``setrlimit``);
- Landlock (Linux 5.13): it may read Python and the installed packages, and write nothing;
- a namespace of its own for the network and for users, in which there is no network;
- a filter of system calls (seccomp): no sockets, no new process, no signals, no tracing, no mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np

LIBC = ctypes.CDLL(None, use_errno=True)
LANDLOCK, SECCOMP, NETWORK, SPENDING = "Landlock", "seccomp", "network namespace", "limits"
READ = 0b1101  # Landlock: execute, read a file, read a folder
PRINTED = 2**20  # bytes that a submission may print; they go nowhere
GRACE = 5.0  # seconds between a child's answer and its end


# ---------------------------------------------------------------- giving up


def visible() -> list[Path]:
    """What a child may read: Python, its packages, and this one."""
    own = Path(__file__).parents[1]
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), own}
    paths |= {"/usr/lib", "/usr/lib64", "/lib", "/lib64", "/dev/null", "/dev/urandom"}
    found = {Path(path).resolve() for path in paths if path}
    return sorted(path for path in found if path.exists() and path != Path("/"))


def landlock() -> bool:
    """Nothing is read but :func:`visible`, nothing is written. False where there is no Landlock."""
    create, add, restrict = 444, 445, 446  # the same on all machines
    version = LIBC.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    fields = [(1 << bits) - 1, 0b11, 0b11][: 1 + (version >= 4) + (version >= 6)]
    handled = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = LIBC.syscall(create, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return False
    for path in visible():
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = READ if path.is_dir() else 0b101
        rule = struct.pack("=Qi", rights, file)
        kept = LIBC.syscall(add, ruleset, 1, rule, 0)
        os.close(file)
        if kept < 0:
            return False
    done = LIBC.syscall(restrict, ruleset, 0) == 0
    os.close(ruleset)
    return done


def no_network() -> bool:
    """A user and a network namespace of its own. False where the system allows none."""
    user, network, ipc = 0x10000000, 0x40000000, 0x08000000
    return LIBC.unshare(user | network | ipc) == 0


DENIED = {  # system calls by their numbers; both machines have the same from 424 on
    "x86_64": "41 42 43 44 49 50 53 57 58 59 62 101 134 135 155 160 161 165 166 167 168 169 175 "
    "176 200 234 240 246 248 249 250 272 29 64 68 298 302 303 304 308 310 311 313 319 320 321 322 "
    "323",
    "aarch64": "198 199 200 201 202 203 206 221 129 130 131 117 92 41 164 51 40 39 224 225 142 105 "
    "106 180 104 217 218 219 97 194 190 186 241 261 264 265 268 270 271 273 279 280 281 282",
}
NEWER = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442)
CLONE, CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def system_calls() -> bool:
    """A filter that refuses what a score has no use for. False where there is no such filter."""
    machine = platform.machine()
    if machine not in DENIED:
        return False
    load, equal, above, masked, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    refused, unknown = error | 1, error | 38  # EPERM; ENOSYS, so that threads begin by clone
    code = [(load, 0, 0, 4), (equal, 1, 0, ARCH[machine]), (end, 0, 0, kill), (load, 0, 0, 0)]
    code += [(above, 0, 1, 0x40000000), (end, 0, 0, refused)]  # x32's numbers
    for number in (*map(int, DENIED[machine].split()), *NEWER):
        code += [(equal, 0, 1, number), (end, 0, 0, refused)]
    code += [(equal, 0, 1, CLONE3), (end, 0, 0, unknown)]
    # a thread may begin, a process may not
    code += [(equal, 0, 4, CLONE[machine]), (load, 0, 0, 16), (masked, 1, 0, 0x00010000)]
    code += [(end, 0, 0, refused), (end, 0, 0, allow), (end, 0, 0, allow)]
    program = b"".join(struct.pack("=HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    return LIBC.prctl(22, 2, ctypes.c_char_p(head), 0, 0) == 0  # PR_SET_SECCOMP, a filter


def without_rights() -> None:
    """No privilege is kept, and none can be gained."""
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for capability in range(64):
        LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    LIBC.capset(header, none)


def limited(seconds: float, memory: int) -> bool:
    """Processor seconds, bytes of memory beyond what the process has already, and no files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    space = pages * resource.getpagesize() + memory
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = [(resource.RLIMIT_CPU, int(spent + seconds + 1)), (resource.RLIMIT_FSIZE, 0)]
    limits += [(resource.RLIMIT_CORE, 0)] + ([(resource.RLIMIT_AS, space)] if pages else [])
    for what, most in limits:
        with contextlib.suppress(ValueError):  # it is lower already
            resource.setrlimit(what, (most, most))
    return bool(pages)


def end_with_parent() -> None:
    """None of these processes outlives the one that started it (Linux)."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def confine(seconds: float, memory: int) -> list[str]:
    """Give up what can be given up; returns what of it the system has."""
    found = [SPENDING] if limited(seconds, memory) else []
    if sys.platform != "linux":
        return found
    found += [NETWORK] if no_network() else []
    without_rights()
    found += [LANDLOCK] if landlock() else []
    return found + ([SECCOMP] if system_calls() else [])


# ---------------------------------------------------------------- the child


def serve(source: str, name: str, config: dict, data: dict, out: int) -> None:
    """Score the batches of ``data`` by a submission's function; scores go into the pipe ``out``."""
    import torch

    from ..model import DeepSpeech2
    from ..speech.features import Batch
    from ..workshop.config import ModelConfig

    kernels = {name: tuple(map(tuple, config[name])) for name in ("kernels", "strides")}
    model = DeepSpeech2(ModelConfig(**{**config, **kernels}), int(data["symbols"]))
    weights = {x.removeprefix("weight:"): v for x, v in data.items() if x.startswith("weight:")}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    model.to(torch.from_numpy(data["features:0"]).dtype).eval()
    torch.manual_seed(0)
    batches = [
        Batch(tuple(data[f"ids:{i}"].tolist()), torch.from_numpy(data[f"features:{i}"]))
        for i in range(int(data["batches"]))
    ]
    # what a forward pass costs, before anything of the submission's has run; clocks may be coarse
    passes, begun = -1, time.process_time()  # the first one warms up
    with torch.no_grad():
        while passes < 1 or (time.process_time() - begun < 0.1 and passes < 200):
            for batch in batches:
                model(batch.features)
            passes += 1
            begun = begun if passes else time.process_time()
    spent = time.process_time()
    os.write(out, struct.pack("=2d", (spent - begun) / passes, spent))
    try:
        scores = _scores(source, name, model, batches)
        _write(out, b"S" + np.concatenate(scores).astype("<f8").tobytes())
    except BaseException as error:  # strangers' code raises what it likes
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "allocate memory" in told:
            told = "it asks for more memory than it may have"
        _write(out, b"E" + told.encode(errors="replace")[:500])


def _scores(source: str, name: str, model, batches) -> list[np.ndarray]:
    import torch

    names = {"__name__": name}
    exec(compile(source, f"{name}.py", "exec"), names)
    function, found = names[entry(source)], []
    with torch.no_grad():
        for batch in batches:
            values = function(model, batch)
            values = torch.as_tensor(values).detach().double().numpy()
            if values.shape != (len(batch),):
                raise ValueError(
                    f"the scores have the shape {tuple(values.shape)} where ({len(batch)},) is "
                    "asked for, one an utterance of the batch"
                )
            found.append(values)
    return found


def entry(source: str) -> str:
    """The name of a submission's only public function. Raises ``ValueError`` for another number."""
    import ast

    found = [
        node.name for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]  # fmt: skip
    if len(found) != 1:
        told = ", ".join(found[:5]) or "none"
        raise ValueError(f"one function of (model, batch) is asked for, and it defines {told}: "
                         "let helpers' names begin with _")  # fmt: skip
    return found[0]


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _child(out: int, printed: int) -> None:
    """The forked process: its input from standard input, then nothing but the pipe."""
    end_with_parent()
    given = os.fdopen(0, "rb", closefd=False)
    header = json.loads(given.readline())
    source = given.read(header["source"]).decode()
    with np.load(io.BytesIO(given.read(header["data"]))) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.dup2(out, 3)
    os.closerange(4, 65536)
    layers = confine(header["seconds"], header["memory"])
    missing = [layer for layer in header["needed"] if layer not in layers]
    _write(3, json.dumps(layers).encode() + b"\n")
    if not missing:
        serve(source, header["name"], header["model"], data, 3)


# ---------------------------------------------------------------- the process that forks


def _watched(child: int, out: int, printed: int, seconds: float, most: int) -> tuple[bytes, str]:
    """What a child writes into its pipe, and why it was stopped ("": it was not)."""
    begun, found, count, open_ = time.monotonic(), b"", 0, {out, printed}
    while out in open_:
        left = begun + seconds - time.monotonic()
        ready = select.select(list(open_), [], [], max(left, 0))[0] if left > 0 else []
        if not ready:
            return found, f"it is not done after {seconds:.0f} s"
        for file in ready:
            chunk = os.read(file, 65536)
            if not chunk:
                open_.discard(file)
            elif file == out:
                found += chunk
            else:
                count += len(chunk)
        if len(found) > most:
            return b"", "it writes more than scores into the pipe"
        if count > PRINTED:
            return found, f"it prints more than {PRINTED >> 20} MB"
    return found, ""


def _fork(seconds: float, most: int) -> dict:
    """Fork a child for the call that waits in standard input; what became of it, and its bytes."""
    (out, into), (printed, prints) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _child(into, prints)
        finally:
            os._exit(0)
    os.close(into), os.close(prints)
    found, stopped = _watched(child, out, printed, seconds, most)
    ended, begun = 0, time.monotonic()
    while not stopped and not ended and time.monotonic() < begun + GRACE:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0 if ended else 0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        stopped = stopped or "it has closed its pipe and goes on"
    os.close(out), os.close(printed)
    code = os.waitstatus_to_exitcode(status)
    if not stopped and code in (-signal.SIGXCPU, -signal.SIGKILL):
        stopped = "it takes more processor time, or memory, than it may have"
    elif not stopped and code:
        name = signal.Signals(-code).name if code < 0 else code
        stopped = f"its process ended by itself ({name})"
    cpu = usage.ru_utime + usage.ru_stime
    return {"stopped": stopped, "cpu": cpu, "found": found}


def main() -> None:
    """Answer calls from standard input until it ends: a line of limits, then a child's input."""
    import torch

    from .. import acquisition  # what submissions import, too
    from ..gradients import METHODS, Tape, expected_gradient_length
    from ..model import DeepSpeech2
    from ..workshop.config import ModelConfig

    end_with_parent()
    torch.set_num_threads(1)
    # what is compiled is compiled, or read, here: a child may not
    small = Tape(DeepSpeech2(ModelConfig(hidden=8), symbols=5).eval(), torch.randn(1, 40, 40))
    found = acquisition.n_best(small.logits.log_softmax(-1), k=2)
    for way in METHODS:
        expected_gradient_length(small, found, way)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    given = os.fdopen(0, "rb", buffering=0, closefd=False)  # what follows is the child's to read
    while line := given.readline():
        call = json.loads(line)
        told = _fork(call["seconds"], call["most"])
        found = told.pop("found")
        answers.write(json.dumps({**told, "bytes": len(found)}).encode() + b"\n" + found)
        answers.flush()


if __name__ == "__main__":
    main()
