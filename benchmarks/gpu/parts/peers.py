"""packvit beside timm: NaFlexViT on the same images, and a plain ViT on images of one size at equal tokens.

All are ViT-B with mean pooling and without norms of queries, see patches of 16 in bf16 autocast and learn
with the same fused AdamW; a step is forward and backward passes over all images and one update. Each peer
gets its best number of images in a forward pass, found without compilation, and is then tried compiled, too.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu.batches import CLASSES, make_batch
from gpu.options import Options
from gpu.steps import model_config
from gpu.timing import best_seconds, effort
from packvit.models import PackedViT
from packvit.packing import PackedBatch

P = 16
SIDE = 16  # rows and columns of the plain ViT's images: 256 tokens, the mean of the others
FIELDS: dict[str, Any] = {"pool": "mean", "qk_norm": "none"}
Pass = Callable[[], Tensor]  # one forward pass over a part of the images: the sum of their losses


def loss_of(logits: Tensor) -> Tensor:
    """Sum of cross-entropies against class 0."""
    return F.cross_entropy(logits.float(), logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")


def seconds_of(model: nn.Module, passes: list[Pass], options: Options) -> float:
    """The best time of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        for one in passes:
            with torch.autocast(options.device.type, torch.bfloat16):
                loss = one()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first = best_seconds(step, options.device, 1, 1)
    return best_seconds(step, options.device, 3, 1 if options.tiny else effort(first, 0.5))


def packed(batch: PackedBatch, options: Options, compiled: bool) -> float:
    """packvit's seconds for a step on a batch."""
    with torch.device(options.device):
        model = PackedViT(model_config("B", options.tiny, patch_buffer=P, **FIELDS))
    if compiled:
        model.compile_blocks()
    placed = batch.to(options.device)
    return seconds_of(model, [lambda: loss_of(model(placed))], options)


def sizes_of(options: Options) -> dict[str, int]:
    """Width, depth and heads as timm names them."""
    config = model_config("B", options.tiny)
    return {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}


def padded(grids: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """NaFlexViT's batch of random images of these grids, padded to the longest."""
    longest = max(rows * cols for rows, cols in grids)
    patches = torch.randn(len(grids), longest, P * P * 3, device=device)
    coords = torch.zeros(len(grids), longest, 2, dtype=torch.long)
    valid = torch.zeros(len(grids), longest, dtype=torch.bool)
    for i, (rows, cols) in enumerate(grids):
        places = torch.arange(rows * cols)
        coords[i, : rows * cols] = torch.stack([places // cols, places % cols], 1)
        valid[i, : rows * cols] = True
    return {"patches": patches, "patch_coord": coords.to(device), "patch_valid": valid.to(device)}


def naflex(grids: list[list[int]], options: Options, size: int, by_length: bool, compiled: bool) -> float:
    """timm's NaFlexViT's seconds for a step, `size` images in a forward pass."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg  # pyright: ignore[reportMissingImports]

    config = NaFlexVitCfg(patch_size=P, pos_embed="factorized", global_pool="avg", **sizes_of(options))
    model: Any = NaFlexVit(config, num_classes=CLASSES).to(options.device)
    run = torch.compile(model) if compiled else model
    ordered = sorted(grids, key=lambda grid: grid[0] * grid[1]) if by_length else grids
    parts = [padded(ordered[start : start + size], options.device) for start in range(0, len(grids), size)]
    return seconds_of(model, [lambda part=part: loss_of(run(part)) for part in parts], options)


def fixed(count: int, options: Options, size: int, compiled: bool) -> float:
    """A plain ViT's seconds for a step on `count` images of one size; `size` in a pass, which divides it."""
    from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]

    model: Any = VisionTransformer(
        img_size=SIDE * P,
        patch_size=P,
        num_classes=CLASSES,
        class_token=False,
        global_pool="avg",
        **sizes_of(options),
    ).to(options.device)
    run = torch.compile(model) if compiled else model
    images = torch.randn(size, 3, SIDE * P, SIDE * P, device=options.device)
    return seconds_of(model, [lambda: loss_of(run(images))] * (count // size), options)


def best_of(name: str, tries: dict[str, Callable[[bool], float]], compiled: bool) -> dict[str, Any]:
    """Seconds of every setting without compilation, and of the best one compiled."""
    seconds: dict[str, Any] = {}
    for setting, call in tries.items():
        seconds[setting] = attempt(call, False)
    fits = {setting: value for setting, value in seconds.items() if isinstance(value, float)}
    if not fits:
        return {"not_measured": f"{name}: {seconds}"}
    chosen = min(fits, key=lambda setting: fits[setting])
    if compiled:
        seconds[f"{chosen}, compiled"] = attempt(tries[chosen], True)
    fits = {setting: value for setting, value in seconds.items() if isinstance(value, float)}
    chosen = min(fits, key=lambda setting: fits[setting])
    return {"seconds": fits[chosen], "setting": chosen, "tried": seconds}


def attempt(call: Callable[[bool], float], compiled: bool) -> float | str:
    """Seconds, or why there are none: a peer may lack memory or not compile."""
    try:
        return call(compiled)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Images or tokens a second of each, and packvit's over theirs."""
    batch = make_batch(2, 64) if options.tiny else make_batch(64, 1024)
    grids: list[list[int]] = batch.grids.tolist()
    tokens = batch.stats().tokens
    yield "images", len(grids)
    yield "tokens", tokens
    compiled = not options.tiny
    ours = best_of("packvit", {"packed": lambda compiled: packed(batch, options, compiled)}, compiled)
    broken = [reason for reason in ours.get("tried", ours).values() if isinstance(reason, str)]
    yield "packvit", {**ours, **({"error": broken[0]} if broken else {})}
    sizes = (4,) if options.tiny else (32, 64, 128, len(grids))
    count = max(1, tokens // SIDE**2)
    parts = [k for k in (count, count // 2, count // 4) if k]  # which leave no image over
    plain = {f"{k} images": lambda compiled, k=k: fixed(count, options, k, compiled) for k in parts}
    one_size = best_of("one size", plain, compiled)
    yield "one_size", one_size
    if "seconds" in ours and "seconds" in one_size:
        yield "over_fixed", (tokens / ours["seconds"]) / (count * SIDE**2 / one_size["seconds"])
    tries = {
        f"{k} images{', sorted' if order else ''}": (
            lambda compiled, k=k, order=order: naflex(grids, options, k, order, compiled)
        )
        for k in sizes
        for order in (False, True)
    }
    other = best_of("NaFlexViT", tries, compiled)
    yield "naflex", other
    if "seconds" in ours and "seconds" in other:
        yield "over_naflex", other["seconds"] / ours["seconds"]
