"""The attention kernels of a run on a GPU: the fastest ones there for its segments."""

import torch

from packvit.models import activate_flash, choose_backend, fastest_backend
from packvit.packing import PackedBatch
from packvit.train.step.step import Engine


def choose_kernels(engine: Engine, batch: PackedBatch) -> str:
    """Let the model and its average use the backend that is fastest on the first rank; every rank calls it.

    With `train.deterministic` nothing is measured, because a measurement may have another result the next
    time.

    Args:
        batch: a batch on the device; its segments are taken as typical of the run.

    Returns:
        What was chosen, for the log.

    Raises:
        ValueError: `train.attention` cannot run here; says why.
    """
    config, device, ranks = engine.model.config, engine.ranks.device, engine.ranks
    dtype = torch.float32
    if isinstance(engine.autocast, torch.autocast):
        dtype = engine.autocast.fast_dtype
    name, flash = engine.config.attention, None
    if not engine.config.deterministic:
        flash = activate_flash(device, dtype, config.head_dim)
        if name == "auto":
            lengths = batch.cu_seqlens.diff().tolist()
            measured = fastest_backend(device, dtype, config.heads, config.head_dim, lengths)
            name = ranks.gather(measured)[0]
    name = choose_backend(name, device, dtype, config.head_dim)
    for model in (engine.model, engine.average):
        if model is not None:
            model.backend = name
    return f"Attention: {name}" + (f", {flash}" if flash else "")
