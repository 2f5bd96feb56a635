"""Real training: workers that read and decode, a GPU, checkpoints, a kill, and the same run on the CPU."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.options import Options
from gpu.standins import missing

STEPS, SAVE = 30, 10
TOLERANCE = 0.03  # of a loss in bf16 on two devices, relative; kernels round in other orders
LIMIT = 240  # seconds of one run


def flags(folder: Path, name: str, device: str, **changes: Any) -> list[str]:
    """Arguments of a run of the demo's recipe."""
    values: dict[str, Any] = {
        "run-dir": folder / name,
        "device": device,
        "data.shards": folder / "set/train",
        "data.workers": 2,
        "train.steps": STEPS,
        "train.log-every": 1,
        "train.checkpoint-every": SAVE,
        "train.compile": "off",
        "optim.warmup": 5,
        **changes,
    }
    return ["digits", *(text for key, value in values.items() for text in (f"--{key}", str(value)))]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """A run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "packvit.train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(arguments: list[str]) -> None:
    """A run to its end.

    Raises:
        RuntimeError: it failed, or took too long; with its last lines.
    """
    process = start(arguments)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise RuntimeError(f"not done after {LIMIT} s: {output[-500:]}") from None
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {output[-800:]}")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are complete."""
    path = folder / name / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_after(arguments: list[str], folder: Path, name: str, step: int) -> None:
    """Start a run and kill it, workers too, as soon as it has logged `step`."""
    process = start(arguments)
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if any(line["step"] >= step for line in read(folder, name)):
            break
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def furthest(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest relative difference of the losses of two runs, and `error` beyond the tolerance."""
    first, second = ({line["step"]: line["loss"] for line in lines} for lines in (one, two))
    difference = max(abs(first[step] - second[step]) / abs(first[step]) for step in first if step in second)
    result: dict[str, Any] = {"steps": len(first), "largest_difference": difference}
    if first.keys() != second.keys() or difference > TOLERANCE:
        result["error"] = f"losses differ by {difference:.1%} of {TOLERANCE:.0%}; {len(second)} steps"
    return result


def data_wait(folder: Path, options: Options) -> dict[str, Any]:
    """A larger model in compiled training on many workers: how long it waits for data, after its start."""
    cores = len(os.sched_getaffinity(0))
    size = {} if options.tiny else {"model.width": 768, "model.depth": 12, "model.heads": 12}
    views = (
        {}
        if options.tiny
        else {"views.resolution.low": 128, "views.resolution.high": 320, "views.patch-sizes": 16}
    )
    views |= {} if options.tiny else {"packing.seq-len": 1024, "packing.sequences": 32}
    workers = {"data.workers": max(1, min(14, cores - 2)), "data.streams": 56}
    train = {
        "train.steps": 20 if options.tiny else 120,
        "train.log-every": 5,
        "train.checkpoint-every": 10**6,
    }
    train |= {"train.compile": "off" if options.tiny else "auto"}
    finish(flags(folder, "wait", options.device.type, **size, **views, **workers, **train))
    lines = read(folder, "wait")
    later = lines[len(lines) // 2 :]  # workers start, and the compiler works, in the first half
    keys = ("images_per_s", "tokens_per_s", "mfu")
    return {
        "data_wait": sum(line["data_wait_fraction"] for line in later) / len(later),
        "workers": workers["data.workers"],
        **{key: later[-1][key] for key in keys},
    }


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Losses beside the CPU's, those of a run that was killed, and the share of time without data."""
    absent = missing()
    if absent:
        yield "skipped", f"reading shards needs {', '.join(absent)}, which this Python lacks"
        return
    from packvit.data import write_digits

    device = options.device.type
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "set", 600 if options.tiny else 4000, 10, shard_size=100)
        small = {"packing.sequences": 2} if options.tiny else {}
        finish(flags(folder, "device", device, **small))
        finish(flags(folder, "cpu", "cpu", **small))
        yield "beside the CPU", furthest(read(folder, "cpu"), read(folder, "device"))
        arguments = flags(folder, "killed", device, **small)
        kill_after(arguments, folder, "killed", SAVE + 2)
        finish(arguments)
        yield "killed and resumed", furthest(read(folder, "device"), read(folder, "killed"))
        yield from data_wait(folder, options).items()
