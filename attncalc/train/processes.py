"""Training of one model by several processes: sums over all of them, and a common end.

Each process has the whole model and takes a share of every batch. The optimizer gets the sum of the
gradients, one flat tensor per step. PyTorch's `DistributedDataParallel` forms this sum within
`backward`, which our steps, traced or with double backward, never call.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attncalc.text import one_line
from attncalc.train.recipe import Recipe

T = TypeVar("T")

LOST = (
    "another process of this training was killed or ended with an error: "
    "the same command continues from the last checkpoint"
)


class Processes:
    """All processes of one training, seen from one of them; usually there is only one.

    An error in one process ends all of them: it raises the error, the others exit silently
    (`SystemExit`), and none waits for a process that has ended. If several have an error, the first
    of them raises it.

    Args:
        rank: rank of this process, from 0.
        n: number of processes.
        local_rank: rank among the processes of this machine, from 0.
    """

    def __init__(self, rank: int = 0, n: int = 1, local_rank: int = 0) -> None:
        self.rank, self.n, self.local_rank = rank, n, local_rank
        self.is_first = rank == 0
        self.asked_to_stop = False

    @property
    def device(self) -> torch.device:
        """Device of this process: a CUDA device of its own if there are any, else the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.n == 1:
            return torch.device("cuda")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that this number of processes cannot train.

        Raises:
            ValueError: it has denoising, or fewer structures per step than there are processes.
        """
        if self.n == 1:
            return
        if recipe.denoising is not None:
            raise ValueError("recipe: denoising is trained by one process; this is one of several")
        if recipe.batch_size < self.n and recipe.batch_edges is None:
            raise ValueError(
                f"recipe: batch_size {recipe.batch_size} is the number of structures of a step of "
                f"all {self.n} processes together: raise it, or start fewer processes"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """End all processes if one has an error inside; they wait for each other at its end.

        Raises:
            SystemExit: another process has an error and reports it.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as failure:
            if self.n == 1:
                raise
            error = failure
        if self.n > 1:
            self._end_if_any(error)

    def from_first(self, function: Callable[[], T]) -> T:
        """Return the result of a function that only the first process calls."""
        box: list[Any] = [None]
        with self.together():
            if self.is_first:
                box[0] = function()
        if self.n > 1:
            with _connection():
                dist.broadcast_object_list(box, src=0)
        return box[0]

    def error_of_all(self, error: BaseException) -> BaseException:
        """Return the error to raise in this process if all have it: only the first reports it."""
        return error if self.is_first else SystemExit(0)

    def all(self, here: bool) -> bool:
        """Return True if a condition holds in all processes.

        Args:
            here: whether it holds in this process.
        """
        missing = torch.tensor(float(not here))
        self.all_reduce(missing)
        return missing.item() == 0

    def all_reduce(self, values: Tensor) -> None:
        """Add up a tensor over all processes, in place; all get the same bits."""
        if self.n > 1:
            with _connection():
                dist.all_reduce(values)

    def copy_first(self, values: Sequence[Tensor]) -> None:
        """Copy the first process's values to all, in place, as machines may round differently."""
        if self.n > 1:
            with _connection(), torch.no_grad():
                for value in values:
                    dist.broadcast(value, src=0)

    def sum_of_gradients(
        self, share: Callable[[], tuple[Tensor, list[Tensor]] | None], like: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return loss and gradient of a batch, summed over the shares of all processes.

        Args:
            share: function that returns loss and gradient of the share of this process; None if
                the share is empty.
            like: the parameters.

        Raises:
            KeyboardInterrupt: one of the processes was asked to end; all end after this step.
        """
        if self.n == 1 and (alone := share()) is not None:
            return alone
        sizes = [parameter.numel() for parameter in like]
        # three more numbers: the loss, how many processes have failed, how many were asked to end
        flat, error = like[0].new_zeros(sum(sizes) + 3), None
        try:
            if (found := share()) is not None:
                torch.cat([gradient.reshape(-1) for gradient in found[1]], out=flat[:-3])
                flat[-3] = found[0]
        except Exception as failure:
            error = failure
            flat.zero_()
            flat[-2] = 1
        flat[-1] = float(self.asked_to_stop)
        self.all_reduce(flat)
        failed, stopped = flat[-2:].tolist()
        if failed:
            self._end_if_any(error)
        if stopped:
            raise KeyboardInterrupt
        parts = zip(flat[:-3].split(sizes), like, strict=True)
        # pair terms have parameters in double precision beside a network in single precision
        return flat[-3].double(), [part.view_as(p).to(p.dtype) for part, p in parts]

    def listen(self) -> None:
        """Let Ctrl-C and SIGTERM from now on act at the next step, in all processes at once."""

        def hear(*_: object) -> None:
            self.asked_to_stop = True

        if self.n > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, hear)
            signal.signal(signal.SIGTERM, hear)

    def _end_if_any(self, error: BaseException | None) -> None:
        """Raise the error if this process is the first with one; exit silently if it is another."""
        first = torch.tensor(self.n if error is None else self.rank)
        with _connection():
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if int(first) == self.rank and error is not None:
            raise error
        if int(first) < self.n:
            # a launcher must see success: it would kill the process that reports the error
            raise SystemExit(0) from error


def connect() -> Processes:
    """Connect to the processes that torchrun or SLURM's srun has started for this training.

    A process group that the caller has made is used as it is; one made here lasts as long as the
    process. Without a launcher, there is one process.

    Raises:
        RuntimeError: the other processes cannot be reached.
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if (found := _launched()) is None:
            return Processes()
        rank, n, address = found
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=n)
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    processes = Processes(dist.get_rank(), dist.get_world_size(), int(local_rank))
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    return processes


def _launched() -> tuple[int, int, str] | None:
    """Return rank, number of processes and their address from the launcher; None without one.

    An environment of `sbatch` or `salloc` alone is no launcher: SLURM has started one process.
    """
    said = os.environ
    if "RANK" in said and int(said.get("WORLD_SIZE", "1")) > 1:
        return int(said["RANK"]), int(said["WORLD_SIZE"]), "env://"
    if int(said.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return None
    # the first host of "node[07-09,12],other3"
    nodes = said.get("SLURM_STEP_NODELIST", "localhost")
    host = re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).partition(",")[0]
    # two steps of one job may run at the same time
    step = int(said.get("SLURM_JOB_ID", "0")) * 11 + int(said.get("SLURM_STEP_ID", "0"))
    place = f"{said.get('MASTER_ADDR', host)}:{said.get('MASTER_PORT', 20_000 + step % 10_000)}"
    return int(said["SLURM_PROCID"]), int(said["SLURM_STEP_NUM_TASKS"]), f"tcp://{place}"


@contextmanager
def _connection() -> Iterator[None]:
    """Turn the library's errors for a lost process into a ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        # "Connection closed by peer" and a page of addresses add nothing to this message
        why = "" if "onnection" in str(error) else f" ({one_line(error)})"
        raise ConnectionError(LOST + why) from error
