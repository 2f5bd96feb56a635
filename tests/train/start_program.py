"""Run by test_start: one rank, and three others, begin a run; each writes what it looked at and got."""

import json
import os
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fork_ranks import fork_ranks
from packvit.common.ranks import Ranks, stop_ranks
from packvit.data import DataConfig, DataPlan, TrainLoader, merge_states
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

LIMIT = 120  # seconds
SIZES = 1, 3  # numbers of ranks


def make_plan(shards: str) -> DataPlan:
    """Tiny batches of many streams."""
    views = ViewsConfig((8,), resolution=ResolutionConfig(16, 32, "uniform"))
    packing = PackingConfig(seq_len=32, sequences=1, lookahead=2, balance=1)
    return DataPlan(DataConfig((shards,), workers=0, streams=6, shuffle_shards=1), views, packing)


def be_rank(rank: int, world_size: int, shards: str, folder: Path) -> None:
    looks, stat = 0, os.stat

    def counting(*arguments: Any, **options: Any) -> os.stat_result:
        nonlocal looks
        looks += 1
        return stat(*arguments, **options)

    os.stat = counting
    loader = TrainLoader(make_plan(shards), rank, world_size)
    os.stat = stat
    dist.init_process_group("gloo", f"file://{folder}/store-{world_size}", rank=rank, world_size=world_size)
    keys = [loaded.batch.keys for loaded in islice(loader, max(SIZES) // world_size)]
    state = merge_states(Ranks(rank, world_size, torch.device("cpu")).gather(loader.state_dict()))
    (folder / f"{world_size}-{rank}.json").write_text(
        json.dumps({"looks": looks, "keys": keys, "state": state})
    )
    dist.barrier()
    stop_ranks()


def main(shards: str, folder: Path) -> None:
    each = [partial(be_rank, rank, size, shards, folder) for size in SIZES for rank in range(size)]
    fork_ranks(each, time.monotonic() + LIMIT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
