"""Whether a training step ever waits for the device: torch refuses every wait after two steps."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu.batches import make_batch
from gpu.compiling import TEN
from gpu.options import Options
from gpu.steps import make_trainer, model_config, plan
from gpu.timing import wait

KINDS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Muon": {"kind": "muon"},
    "moving average": {"ema": 0.999},
    "compiled": {"compiled": True},
    "fp16": {"precision": "fp16"},
}


@contextmanager
def refusing(device: torch.device) -> Iterator[None]:
    """What would wait for a GPU raises instead."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def place_of(error: BaseException) -> str:
    """Where in packvit an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f"{Path(own[-1].filename).name}: {own[-1].name}" if own else "unknown"


def try_step(kind: dict[str, Any], options: Options) -> dict[str, Any]:
    """`ok`, or the error of the third step."""
    compiled = kind.get("compiled", False) and not options.tiny
    trainer = make_trainer(
        plan(model_config("S", options.tiny), **{**kind, "compiled": compiled}), options.device
    )
    rows, seq_len = (2, 64) if options.tiny else (8, 1024)
    made = [make_batch(rows, seq_len, TEN if not options.tiny else (8, 16), seed) for seed in range(3)]
    batches = [batch.to(options.device) for batch in made]
    for batch in batches:
        trainer.step(batch)
    wait(options.device)
    try:
        with refusing(options.device):
            for batch in batches:
                trainer.step(batch)
    except RuntimeError as error:
        return {"error": f"{(str(error).splitlines() or [''])[0]} ({place_of(error)})"}
    wait(options.device)
    return {"ok": True}


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """{kind of training: `ok`, or `error`}."""
    for name, kind in KINDS.items():
        yield name, try_step(kind, options)
