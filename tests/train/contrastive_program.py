"""Run by test_contrastive_loss: the loss of its cases and the gradients on 1, 2 and 4 ranks, which one start
forks.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fork_ranks import fork_ranks
from packvit.common.ranks import stop_ranks
from packvit.train import contrastive_loss

Case = dict[str, Any]

LIMIT = 250  # seconds


def compute(case: Case, rank: int) -> list[torch.Tensor]:
    """The loss, and its gradients by this rank's inputs."""
    image, text, scale, bias = case["pairs"]
    own = slice(sum(case["split"][:rank]), sum(case["split"][: rank + 1]))
    leaves = [t.clone().requires_grad_() for t in (image[own], text[own], scale, bias)]
    loss = contrastive_loss(*leaves, kind=case["kind"], chunk=case["chunk"])
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def be_rank(rank: int, world_size: int, folder: Path) -> None:
    store = f"file://{folder}/store-{world_size}"
    dist.init_process_group("gloo", store, rank=rank, world_size=world_size)
    cases = torch.load(folder / "cases.pt")
    found = [compute(case, rank) if len(case["split"]) == world_size else [] for case in cases]
    torch.save(found, folder / f"{world_size}-{rank}.pt")
    dist.barrier()
    stop_ranks()


def main(folder: Path) -> None:
    ranks = [partial(be_rank, rank, size, folder) for size in (1, 2, 4) for rank in range(size)]
    fork_ranks(ranks, time.monotonic() + LIMIT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
