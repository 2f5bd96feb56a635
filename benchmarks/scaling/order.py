"""What the order of many shards takes, and what a stream remembers, each in a process of its own.

`python benchmarks/scaling/order.py permutation NUMBER STREAMS` or `... state RECIPE` prints JSON.
"""

import json
import os
import sys
import time
from random import Random
from typing import Any

from packvit.data.samples.sample import Recalled
from packvit.data.streams.units import epoch_units
from packvit.packing import Batches, draw_view, squeeze_waiting, views_at, waiting_names
from packvit.train.recipes.find import RECIPES
from scaling.balance import SIZES
from scaling.start import memory

SHARDS, SHARD = 100_000, 1000  # shards, and samples of each


def permutation(shards: int, streams: int) -> dict[str, Any]:
    """The order of an epoch, and the first units of every stream: seconds and MB."""
    before, began = memory(os.getpid()), time.perf_counter()
    first = [epoch_units(shards, streams, stream, 0, 0)[:4] for stream in range(streams)]
    assert len({unit.shard for some in first for unit in some}) == 4 * streams
    return {"seconds": time.perf_counter() - began, "mb": memory(os.getpid()) - before}


def state(name: str) -> dict[str, Any]:
    """What waits in a recipe's stream that draws from 100,000 shards of 1000 samples, as bytes of JSON."""
    config = RECIPES[name]()
    packing, views, rng = config.packing, views_at(config.views, 0), Random(0)
    batches: Batches[Recalled] = Batches(packing)
    group: list[tuple[int, int]] = []
    dealt = drawn = 0
    while dealt < packing.balance:
        if not group:
            shards = [rng.randrange(SHARDS) for _ in range(config.data.shuffle_shards)]
            group = [(shard, member) for shard in shards for member in range(SHARD)]
            rng.shuffle(group)
        tokens = draw_view(rng, rng.choice(SIZES), views, packing.seq_len).num_tokens
        batches.add(Recalled(0, *group.pop(), drawn, tokens), tokens)
        drawn += 1
        dealt += batches.next() is not None
    began = time.perf_counter()
    found = squeeze_waiting(batches.state_dict(list))
    seconds = time.perf_counter() - began
    return {
        "images": sum(1 for _ in waiting_names(found)),
        "bytes": len(json.dumps(found)),
        "plain_bytes": len(json.dumps(list(waiting_names(found)))),
        "ms": 1000 * seconds,
        "balance": packing.balance,
        "sequences": packing.sequences,
        "seq_len": packing.seq_len,
    }


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print(json.dumps(state(arguments[0]) if what == "state" else permutation(*map(int, arguments))))
