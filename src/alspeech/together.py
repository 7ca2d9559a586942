"""One training by several processes on one machine, a core or a GPU each: torch's own
DistributedDataParallel, started and, where a process is lost, started again by torchrun.

    PROCESSES=4 → every batch is divided into four shares

Every process draws the same batches and masks; of a batch's rows each has every fourth, none has
one twice. Gradients are averaged (as many rows as there are in all count), and batch norms see the
whole batch, so that the parameters are those of one process but for rounding.

Legend: B utterances of a batch, T frames, C channels or features.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
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
from .workshop.errors import AGAIN, UserError, cut
from .workshop.processes import on_a_gpu

RESTARTS = 3


def spread(part, processes: int, folder: Path) -> dict:
    """``part(folder)`` by so many processes, of which the first one's folder is ``folder`` and what
    it returns is returned. After a loss of one all begin again, from the first one's checkpoint.

    Raises what ``part`` raises as ``UserError``, and one where there are fewer GPUs, or a process
    was lost too often. ``part`` must be picklable; its objective is a :class:`SharedLoss`.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    there = torch.cuda.device_count() if on_a_gpu() else processes
    if processes > there:
        raise UserError(f"PROCESSES={processes}, and {there} GPUs are there: a GPU for each")
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=RESTARTS,
        monitor_interval=0.5, start_method="spawn",
    )  # fmt: skip
    try:
        found = elastic_launch(config, _one)(part, str(folder))[0]
    except ChildFailedError as error:
        told = cut(" ".join(str(error.get_first_failure()[1].message).split()), 120)
        raise UserError(f"one of {processes} processes that train together was lost "
                        f"{RESTARTS + 1} times ({told}); {AGAIN}") from None  # fmt: skip
    if isinstance(found, UserError):
        raise found
    return found


def _one(part, folder: str):
    """One of the processes."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    if on_a_gpu():
        torch.cuda.set_device(rank)
    # torchrun's store outlives a restart, with the addresses of the processes that died in it
    times, port = os.environ["TORCHELASTIC_RESTART_COUNT"], int(os.environ["MASTER_PORT"])
    kept = distributed.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False)
    distributed.init_process_group(
        "nccl" if on_a_gpu() else "gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]),
        store=distributed.PrefixStore(f"begun again {times} times", kept),
    )  # fmt: skip
    try:
        if rank == 0:
            distributed.barrier()
            return part(Path(folder))
        with tempfile.TemporaryDirectory() as own:  # all go on from the first one's checkpoint
            store.CHECKPOINT_SECONDS = math.inf
            if (saved := Path(folder) / store.CHECKPOINT).exists():
                shutil.copy(saved, own)
            distributed.barrier()  # from here on the first one may write a newer one
            return part(Path(own))
    except UserError as error:  # all have it: it is told once, and not tried again
        return error
    finally:
        distributed.destroy_process_group()


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
