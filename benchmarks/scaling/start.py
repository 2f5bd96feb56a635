"""One rank of a run that ends with its first step: when its first batch came, and what it took.

`torchrun --nproc-per-node N benchmarks/scaling/start.py OUT SHARDS STREAMS` writes OUT/rank-R.json.
"""

import json
import multiprocessing
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from packvit.packing import PackingConfig
from packvit.train import loop
from packvit.train.recipes.digits import digits
from packvit.train.run import run

BEGAN = time.perf_counter()  # with everything imported, as the imports are the same for any data


def memory(process: int, name: str = "VmRSS") -> float:
    """MB of a process: VmRSS is what it has, VmHWM the most that it had."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1000


def private(process: int) -> float:
    """MB of a process that it does not share with the process that it was forked from."""
    found = re.findall(r"Private_\w+:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
    return sum(map(int, found)) / 1000


def main() -> None:
    """Train one step and note what the first batch took."""
    out, shards, streams = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rank = int(os.environ.get("RANK", "0"))
    imported = memory(os.getpid())
    noted: dict[str, Any] = {}
    take = loop.take_batches

    def noting(*arguments: Any) -> Any:
        taken = take(*arguments)
        if not noted:
            noted.update(
                seconds=time.perf_counter() - BEGAN,
                imported_mb=imported,
                mb=memory(os.getpid()),
                most_mb=memory(os.getpid(), "VmHWM"),
                workers_mb=[private(child.pid) for child in multiprocessing.active_children() if child.pid],
                first_keys=taken.batches[0].batch.keys[:4],
            )
        return taken

    loop.take_batches = noting
    config = digits()
    config = replace(
        config,
        run_dir=out / "run",
        data=replace(config.data, shards=(shards,), streams=streams),
        packing=PackingConfig(seq_len=256, sequences=2, lookahead=32, balance=1),
        train=replace(config.train, steps=1, precision="fp32", timeout=3.0),
    )
    run(config, measure=False)
    (out / f"rank-{rank}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main()
