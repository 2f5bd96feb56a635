"""Ranks: one process for each device, started by torchrun; with a single process, everything here is the
identity."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# Seconds before the group is destroyed: gloo's thread needs the interpreter's lock to let go of a finished
# operation, and a thread that destroys the group before that, with the lock, waits for gloo's for ever.
GLOO_WAIT = 0.2


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the log."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks, in float64; host memory only, so no device waits."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """The value of every rank, by rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_main(self, value: object) -> list:
        """The value of every rank, by rank, on the main rank; [] on the others, which receive nothing."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size if self.is_main else []
        dist.gather_object(value, values or None)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


ALONE = Ranks(0, 1, torch.device("cpu"))


def find_ranks(device: str) -> Ranks:
    """The place of this process among those that torchrun started, or alone; starts neither CUDA nor a
    process group.

    Raises:
        ValueError: device is `cuda` and there is none.
    """
    found = torch.cuda.device_count() > 0  # asks the driver's library; is_available would start CUDA
    if device == "cuda" and not found:
        raise ValueError("device=cuda, but torch finds no CUDA device")
    cuda = device != "cpu" and found
    target = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), target)


def join_ranks(ranks: Ranks, timeout: float = 30.0) -> None:
    """Start CUDA, and the group if there are other ranks.

    Args:
        timeout: minutes that a rank waits for the others in one operation; then it ends with an error, and
            torchrun ends the rest.

    Raises:
        ValueError: CUDA does not start.
    """
    cuda = ranks.device.type == "cuda"
    if cuda:
        try:
            torch.cuda.set_device(ranks.device)
        except RuntimeError as error:  # a driver too old for this torch, or a rank without a GPU of its own
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{ranks.device} cannot be used ({reason}): set device=cpu or repair CUDA"
            ) from None
    if ranks.world_size > 1 and not dist.is_initialized():
        # Counts and states of the data go through gloo: through NCCL they would wait for the device.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timedelta(minutes=timeout),
            device_id=ranks.device if cuda else None,
        )


def start_ranks(device: str) -> Ranks:
    """Find this process's place and join the others; see `find_ranks`."""
    ranks = find_ranks(device)
    join_ranks(ranks)
    return ranks


def stop_ranks() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        time.sleep(GLOO_WAIT)
        dist.destroy_process_group()


@contextmanager
def ranks_of_call(device: str) -> Iterator[Ranks]:
    """This process among the others, for a part of a program; an existing process group is kept."""
    before = dist.is_initialized()
    try:
        yield start_ranks(device)
    finally:
        if not before:
            stop_ranks()
