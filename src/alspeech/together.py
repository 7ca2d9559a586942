"""One training by several processes on one machine, a core or a GPU each, with torch's own
DistributedDataParallel; where one is lost, all begin again from the checkpoint.

    PROCESSES=4 → every batch is divided into four shares

Every process draws the same batches and masks; of a batch's rows each has every fourth, none has
one twice. Gradients are averaged (as many rows as there are in all count), and batch norms see the
whole batch, so that an update is that of one process but for rounding. A training makes much of
rounding: after hundreds of updates, in bf16 above all, two numbers of processes have two models,
as two seeds have. So the number is in the key of what they train.

Legend: B utterances of a batch, T frames, C channels or features.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
from multiprocessing import connection
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from .ctc import training_losses
from .devices import autocast
from .model import SequenceNorm
from .speech.features import Batch
from .workshop import store
from .workshop.errors import AGAIN, UserError
from .workshop.processes import end_with_parent, interrupts_held, keep_freed_memory, on_a_gpu

RESTARTS = 3
RAISED = 1  # a process's exit code after an exception, which it has written down


def spread(part, processes: int, folder: Path) -> dict:
    """``part(folder)`` by so many processes, of which the first one's folder is ``folder`` and what
    it returns is returned. After a loss of one all begin again, from the first one's checkpoint.

    Raises what ``part`` raises, and ``UserError`` where there are fewer GPUs, or a process was lost
    too often. ``part`` must be picklable; its objective is a :class:`SharedLoss`. (torchrun would
    begin again, too, but it keeps the addresses of the dead, takes Ctrl-C for itself, and tells
    every exception in pages.)
    """
    there = torch.cuda.device_count() if on_a_gpu() else processes
    if processes > there:
        raise UserError(f"PROCESSES={processes}, and {there} GPUs are there: a GPU for each")
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        # one of joblib's workers: what Python starts would look for a method of that name
        multiprocessing.set_start_method("spawn", force=True)
    for _ in range(1 + RESTARTS):
        store.remove_half_written(folder)
        lost, said = _once(part, processes, folder)
        if not lost:
            break
    else:
        raise UserError(f"one of {processes} processes that train together was lost "
                        f"{RESTARTS + 1} times (out of memory, or killed); {AGAIN}")  # fmt: skip
    if isinstance(said, Exception):
        raise said
    return said


def _once(part, processes: int, folder: Path) -> tuple:
    """Was a process lost? And what was said: what the first one returned, or the exception that
    one of them raised first."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        given = processes, part, str(folder), place, os.getpid()
        each = [context.Process(target=_one, args=(rank, *given)) for rank in range(processes)]
        try:
            with interrupts_held():
                for process in each:
                    process.start()
            # where one has failed, the others wait for it for ever
            while (left := [p for p in each if p.exitcode is None]) and not any(
                p.exitcode for p in each
            ):
                connection.wait([p.sentinel for p in left])
            codes = {p.exitcode for p in each}
        finally:
            for process in each:
                if process.pid:
                    process.kill()
                    process.join()
        if codes - {None, 0, RAISED}:
            return True, None
        told = sorted(Path(place).glob("said-*"), key=lambda path: path.stat().st_mtime_ns)
        # one that could not even write down what it raised is as good as lost
        return (False, pickle.loads(told[0].read_bytes())) if told else (True, None)


def _one(rank: int, processes: int, part, folder: str, place: str, parent: int) -> None:
    """One of the processes; writes what :func:`_once` reads."""
    end_with_parent(parent)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        if on_a_gpu():
            torch.cuda.set_device(rank)
        distributed.init_process_group(
            "nccl" if on_a_gpu() else "gloo", rank=rank, world_size=processes,
            store=distributed.FileStore(f"{place}/meeting", processes),
        )  # fmt: skip
        said = _share(part, rank, Path(folder))
        distributed.destroy_process_group()
    except Exception as error:
        said, code = _picklable(error), RAISED
    else:
        code = 0
    if rank == 0 or code:
        store.write_bytes(Path(place) / f"said-{rank}", pickle.dumps(said))
    sys.exit(code)


def _share(part, rank: int, folder: Path) -> dict:
    if rank == 0:
        distributed.barrier()
        return part(folder)
    with tempfile.TemporaryDirectory() as own:  # all go on from the first one's checkpoint
        store.CHECKPOINT_SECONDS = math.inf
        if (saved := folder / store.CHECKPOINT).exists():
            shutil.copy(saved, own)
        distributed.barrier()  # from here on the first one may write a newer one
        return part(Path(own))


def _picklable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class asks for
        return RuntimeError(f"{type(error).__name__}: {error}")


def rows_of(count: int, rank: int, processes: int) -> tuple[list[int], float]:
    """The rows of a batch that a process takes, and what they weigh. One that is left without any
    goes through the motions with the first row, which weighs nothing."""
    rows = list(range(rank, count, processes))
    return (rows, 1.0) if rows else ([0], 0.0)


class SharedLoss:
    """The mean CTC loss of a batch, as :func:`training.ctc_loss`, of which this process computes
    its share: an objective for :func:`training.fit`."""

    def __init__(self):
        self.model, self.weight = None, 1.0

    def __call__(self, model, batch: Batch, device, progress: float) -> Tensor:
        count, processes = len(batch), distributed.get_world_size()
        if self.model is None:
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                    norm.forward = functools.partial(self._normalised, norm, norm.forward)
            self.model = DistributedDataParallel(model, broadcast_buffers=False)
        rows, self.weight = rows_of(count, distributed.get_rank(), processes)
        with autocast(device):
            logits = self.model(batch.features[rows])
        own = training_losses(logits.float(), [batch.labels[row] for row in rows]).sum()
        own = own * self.weight / count
        whole = own.detach().clone()
        distributed.all_reduce(whole)
        # DDP takes the mean of the processes' gradients; what is told is the whole batch's loss
        return processes * own + (whole - processes * own).detach()

    def _normalised(self, norm, alone, x: Tensor) -> Tensor:
        """A batch norm over all processes' rows; [B, T, C] of a sequence, else [B, C, …]."""
        if not norm.training:
            return alone(x)
        y = x.flatten(0, 1) if isinstance(norm, SequenceNorm) else x
        over = [dim for dim in range(y.dim()) if dim != 1]
        wide = lambda z: z.view(1, -1, *[1] * (y.dim() - 2))  # noqa: E731
        y = y.float()
        mine = self.weight * y.numel() / y.shape[1]
        sums = all_reduce(torch.cat([self.weight * y.sum(over), y.new_tensor([mine])]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        variance = all_reduce(self.weight * (y - wide(mean)).square().sum(over)) / n
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * n / (n - 1), norm.momentum)
        y = (y - wide(mean)) * wide((variance + norm.eps).rsqrt() * norm.weight) + wide(norm.bias)
        return y.to(x.dtype).view_as(x)
