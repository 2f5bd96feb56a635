"""Whether shared memory can hold the batches that workers hand to the trainer.

A batch travels from a worker to the trainer as one piece of /dev/shm. If that is full, a worker dies of a bus
error or waits; containers often have only 64 MB of it.
"""

import math
import os
import shutil
from itertools import chain
from pathlib import Path
from random import Random

from packvit.data.streams.feed import AHEAD
from packvit.data.streams.loader import PREFETCH
from packvit.data.streams.plan import DataPlan
from packvit.packing import draw_view, same_crop, views_at

SHARED = Path("/dev/shm")
DRAWN = 256  # views that a batch is estimated by
NATIVE = (4096, 4096)  # pixels of their images: as large as any view is
SLOT = 20  # bytes of a slot beside its pixels: image, place, slot
SPARE = 1.25  # of the memory that is advised to what is needed
SURE = 2.0  # an estimate this far above all of the memory cannot be wrong by as much


def check_shared(plan: DataPlan, ranks: int, held: int) -> str:
    """Compare the space in /dev/shm with the batches that wait in it when workers are ahead of the trainer.

    Args:
        ranks: number of ranks of the run.
        held: number of batches that the trainer of each rank works on, besides those that wait.

    Returns:
        Advice if there may be too little space, otherwise empty.

    Raises:
        ValueError: there is certainly too little.
    """
    workers = min(plan.data.workers, plan.data.streams // ranks)
    if not workers or not SHARED.exists():
        return ""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine
    batches = here * (workers * PREFETCH + AHEAD + 1 + held)
    size = batch_bytes(plan)
    usage = shutil.disk_usage(SHARED)
    if batches * size <= usage.free:
        return ""
    advice = (
        f"up to {batches} batches of about {size / 1e6:.1f} MB wait in {SHARED}, which has "
        f"{usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB free: give it more (docker run "
        f"--shm-size={math.ceil(batches * size / 1e6 * SPARE)}m, or --ipc=host), or use fewer data.workers "
        f"than {plan.data.workers} or fewer packing.sequences than {plan.packing.sequences}"
    )
    if batches * size > SURE * usage.total:
        raise ValueError(advice)
    return advice


def batch_bytes(plan: DataPlan) -> float:
    """Approximate number of bytes of a batch: full sequences of drawn views, and the teachers' sequences."""
    views, packing = plan.views, plan.packing
    longest = packing.seq_len if packing.oversize == "shrink" else None
    most = 0.0
    for images in (0, views.curriculum.end) if views.moves else (0,):
        rng, now = Random(0), views_at(views, images) if views.moves else views
        drawn = [draw_view(rng, NATIVE, now, longest) for _ in range(DRAWN)]
        seen = chain(drawn, (same_crop(view, *teacher) for view in drawn for teacher in plan.teachers))
        size = sum(view.num_tokens * (3 * math.prod(view.cell) + SLOT) for view in seen)
        most = max(most, size / sum(view.num_tokens for view in drawn))
    return most * packing.sequences * packing.seq_len
