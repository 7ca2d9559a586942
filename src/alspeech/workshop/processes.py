"""Processes: how many, their memory, how they hear of Ctrl-C, and that none outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time

import joblib
from joblib.externals.loky import process_executor, reusable_executor

from .errors import UserError, cut


def cores() -> int:
    """Processor cores that this process may use, or the number in ``ALSPEECH_JOBS``."""
    return _number("ALSPEECH_JOBS") or joblib.cpu_count()


def side_by_side() -> int:
    """Processes that share a GPU: one, or the number in ``ALSPEECH_JOBS``."""
    return _number("ALSPEECH_JOBS") or 1


def sharing() -> int:
    """Processes that share one training: one, or ``PROCESSES=`` (``ALSPEECH_PROCESSES``)."""
    return _number("ALSPEECH_PROCESSES", "PROCESSES") or 1


def _number(variable: str, told: str = "") -> int | None:
    """The number of processes that a variable says, None where it says nothing. Raises
    ``UserError`` for what is no number of them."""
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"{told or variable}={cut(value)}: a number of processes, 1 or more")
    return number


def on_a_gpu() -> bool:
    """Is there a GPU that this process may use?"""
    import torch  # here: what looks only, needs none of it

    return torch.cuda.is_available()


def use_device(here: bool = True) -> None:
    """Hold this process, and those that it starts, to ``DEVICE=`` (``ALSPEECH_DEVICE``): cpu, cuda
    or cuda:1; empty: the GPU, if there is one. To be called before CUDA is used. Where an engine
    computes elsewhere, not ``here``, this machine need have no GPU; a numbered one is this one's.

    Raises ``UserError`` for another word, and for a GPU that is not there.
    """
    name = os.environ.get("ALSPEECH_DEVICE", "")
    if not re.fullmatch("(cpu|cuda(:[0-9]{1,4})?)?", name):
        raise UserError(f"DEVICE={cut(name)}: choose one of cpu, cuda, cuda:0, cuda:1 …")
    kind, _, number = name.partition(":")
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if kind != "cuda" or not (here or number):
        return
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there <= int(number or 0):
        told = f"{there} GPU{'s' if there > 1 else ''}, counted from 0" if there else "no GPU"
        raise UserError(f"DEVICE={name}: {told} to be seen by torch: leave DEVICE out")
    if number:  # of those that may be seen
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(there)))
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(number)]
        os.environ["ALSPEECH_DEVICE"] = "cuda"


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees (glibc only; elsewhere nothing is changed).

    Every step of training and scoring asks for the same large blocks again; glibc gives them back
    to the system meanwhile, and then each page must be faulted in anew: a tenth of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD, bytes
    # joblib takes 300 MB more than after the first task for a leak, and replaces the worker; the
    # next one imports for seconds. (It has no option for it.) Up to half a GiB is what we kept:
    # with that, and a GiB of libraries and a first task, a process has 1.5 GiB. A task that scores
    # by EGL and trains several times in turn (studies.leg) comes to 1.7 within itself.
    process_executor._MAX_MEMORY_LEAK_SIZE = 2**29


@contextlib.contextmanager
def interrupts_held():
    """Ctrl-C waits until the end of the block, and processes started in it never hear of it.

    A terminal sends Ctrl-C to workers, too, and each would answer with a traceback; the process
    that started them ends them instead. (A blocked signal is inherited, and is not lost to the
    process that blocked it.)
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers() -> None:
    """End joblib's workers, which have nothing left to do: asked to leave, they would unload torch
    first, for one or two seconds. (joblib itself only ever asks.)"""
    if reusable_executor._executor is not None:
        reusable_executor._executor.shutdown(wait=True, kill_workers=True)


def end_with_parent(parent: int) -> None:
    """End this worker within a second of its parent (a process id), however that one ended.

    A killed parent cannot tell its workers, which would go on, and hold their locks.
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
