"""One model, any budget: accuracy at every resolution and patch size asked for."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import product

import torch

from packvit.data import EvalSet
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackingConfig
from packvit.train.distributed import Ranks
from packvit.train.losses import expected_calibration_error


def check_budgets(
    model: ViTConfig, resolutions: Sequence[int], patch_sizes: Sequence[int], device: torch.device
) -> None:
    """Refuse what cannot be evaluated, before any work is done.

    Raises:
        ValueError: a single view takes more memory than there is.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for resolution, p in product(resolutions, patch_sizes):
        tokens = round((resolution / p) ** 2)
        # A patch as bytes and as float32, and a block's activations: at the least what a token takes.
        if tokens * (15 * p * p + 32 * model.width) > memory:
            raise ValueError(
                f"a view of resolution {resolution} at patch size {p} has {tokens} tokens, too many for the "
                f"{memory / 1e9:.0f} GB of memory of this {device.type}: evaluate at lower resolutions or "
                "larger patch sizes"
            )


def evaluate(
    model: PackedViT,
    images: EvalSet,
    resolutions: Sequence[int],
    patch_sizes: Sequence[int],
    packing: PackingConfig,
    ranks: Ranks,
    autocast: AbstractContextManager,
    workers: int = 0,
    skipped: list[dict] | None = None,
) -> Iterator[dict]:
    """One row of results.json for every pair of resolution and patch size, as soon as it is known.

    Nothing is dropped and every image is whole. tokens_per_image is the mean over images, gflops_per_image
    that of one forward pass (2 FLOPs a multiply-add), ece the expected calibration error over 15 bins.

    Args:
        model: in eval mode, on the ranks' device.
        skipped: gets {"shard", "key", "reason"} of every image of any rank that could not be decoded, once.

    Raises:
        ValueError: the model has no head, or no image could be decoded.
    """
    if model.config.num_classes == 0:
        raise ValueError("the model has no classification head, so there is no accuracy to evaluate")
    named: dict[tuple, dict] = {}
    for patch_size in patch_sizes:
        for resolution in resolutions:
            confidence, correct, lost, tokens, flops = [], [], [], 0, 0.0
            for loaded in images.batches(
                resolution, patch_size, packing, workers, ranks.rank, ranks.world_size
            ):
                lost += loaded.skipped
                assert loaded.batch is not None
                if loaded.batch.num_images == 0:
                    continue
                lengths = loaded.batch.image_lengths().tolist()
                tokens += sum(lengths)
                flops += sum(model.config.flops(length, patch_size) for length in lengths)
                batch = loaded.batch.to(ranks.device)
                with torch.inference_mode(), autocast:
                    probabilities = model(batch).float().softmax(-1)
                top, prediction = probabilities.cpu().max(-1)
                assert loaded.batch.labels is not None
                confidence.append(top)
                correct.append(prediction == loaded.batch.labels)
            parts = ranks.gather((confidence, correct, lost, tokens, flops))
            for line in (line for part in parts for line in part[2]):
                named.setdefault(tuple(line.values()), line)
            all_confidence = torch.cat([torch.zeros(0)] + [t for part in parts for t in part[0]])
            all_correct = torch.cat(
                [torch.zeros(0, dtype=torch.bool)] + [t for part in parts for t in part[1]]
            )
            count = len(all_correct)
            if count == 0:
                raise ValueError(f"no validation image could be decoded ({images.paths[0]}, ...)")
            yield {
                "resolution": resolution,
                "patch_size": patch_size,
                "tokens_per_image": sum(part[3] for part in parts) / count,
                "gflops_per_image": sum(part[4] for part in parts) / count / 1e9,
                "accuracy": float(all_correct.double().mean()),
                "ece": expected_calibration_error(all_confidence, all_correct),
                "images": count,
            }
    if skipped is not None:
        skipped += named.values()
