"""One model at every resolution and patch size asked for."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Any

import torch

from packvit.common.device import total_memory
from packvit.common.ranks import Ranks
from packvit.data import EvalSet, redact
from packvit.evaluate.evaluators import MakeEvaluator
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackingConfig

# Lower bounds: a pixel in three channels is held as uint8 and as float32; a block holds several values for
# each channel of a token.
BYTES_OF_A_PIXEL, BYTES_OF_A_CHANNEL = 15, 32
LARGEST_PATCH = 1024  # pixels; patches of photographs have 8 to 48

# What a row of results.json says besides the evaluators' values.
SETTING_AND_COST = ("resolution", "patch_size", "tokens_per_image", "gflops_per_image", "images")


@dataclass(frozen=True)
class EvalConfig:
    """What a trained model is evaluated at.

    Args:
        resolutions, patch_sizes: every pair is one row of eval/results.json; pixels.
        sequences: sequences in a batch.
    """

    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    sequences: int = 8

    def __post_init__(self) -> None:
        if any(value < 1 for value in (*self.resolutions, *self.patch_sizes, self.sequences)):
            raise ValueError("eval.resolutions, eval.patch_sizes and eval.sequences must be positive")
        if max(self.patch_sizes, default=1) > LARGEST_PATCH:
            raise ValueError(
                f"eval.patch_sizes={self.patch_sizes}: a side has at most {LARGEST_PATCH} pixels"
            )


def check_budgets(
    model: ViTConfig, resolutions: Sequence[int], patch_sizes: Sequence[int], device: torch.device
) -> None:
    """Refuse what cannot be evaluated, before any work is done.

    Raises:
        ValueError: a patch size is out of reach, or a single view takes more memory than there is.
    """
    memory = total_memory(device)
    for resolution, p in product(resolutions, patch_sizes):
        if p > LARGEST_PATCH:
            raise ValueError(f"patch size {p}: a side has at most {LARGEST_PATCH} pixels")
        tokens = max(1, round((resolution / p) ** 2))
        if tokens * (BYTES_OF_A_PIXEL * p * p + BYTES_OF_A_CHANNEL * model.width) > memory:
            raise ValueError(
                f"a view of resolution {resolution} at patch size {p} has {tokens} tokens, too many for the "
                f"{memory / 1e9:.0f} GB of memory of this {device.type}: evaluate at lower resolutions or "
                "larger patch sizes"
            )


def check_memory(packing: PackingConfig, patch_sizes: Sequence[int]) -> None:
    """Refuse batches that this machine's memory does not hold, before a process takes all of it.

    Args:
        patch_sizes: drawn about equally often.

    Raises:
        ValueError: the patches of one full batch, 3 bytes a pixel, are more than that.
    """
    memory = total_memory(torch.device("cpu"))
    mean = sum(p * p for p in patch_sizes) / len(patch_sizes)
    size = 3 * packing.sequences * packing.seq_len * mean
    if size > memory:
        raise ValueError(
            f"a batch of {packing.sequences} sequences of {packing.seq_len} patches of "
            f"{', '.join(map(str, patch_sizes))} pixels a side takes {size / 1e9:.0f} GB, more than the "
            f"{memory / 1e9:.0f} GB of memory of this cpu: take a lower seq_len, fewer "
            "sequences or smaller patches"
        )


@dataclass
class Evaluation:
    """A set of images and how models are run over it; every rank holds one.

    Args:
        images: shown whole, nothing dropped.
        evaluators: made anew for each setting.
        packing: how the views are packed.
        workers: processes of each rank that decode.
        autocast: in which the model runs.

    Attributes:
        skipped: {"shard", "key", "reason"} of every image of any rank that could not be used, once.
    """

    images: EvalSet
    evaluators: Sequence[MakeEvaluator]
    packing: PackingConfig
    ranks: Ranks
    workers: int = 0
    autocast: AbstractContextManager = field(default_factory=nullcontext)
    skipped: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = list(self.images.skipped)

    def grid(
        self, model: PackedViT, resolutions: Sequence[int], patch_sizes: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        """The results of every pair of resolution and patch size, as soon as they are known."""
        for patch_size, resolution in product(patch_sizes, resolutions):
            yield self.measure(model, resolution, patch_size)

    def measure(self, model: PackedViT, resolution: int, patch_size: int) -> dict[str, Any]:
        """One row of results.json: the setting, what it costs, and what each evaluator says.

        tokens_per_image is the mean over images, gflops_per_image that of one forward pass (2 FLOPs a
        multiply-add).

        Args:
            model: in eval mode, on the ranks' device.

        Raises:
            ValueError: no image could be decoded.
        """
        evaluators = [make() for make in self.evaluators]
        lost, images, tokens, flops = [], 0, 0, 0
        ranks = self.ranks
        for loaded in self.images.batches(resolution, patch_size, self.packing, self.workers, ranks):
            lost += loaded.skipped
            if loaded.batch.num_images == 0:
                continue
            images += loaded.batch.num_images
            tokens += loaded.batch.stats().tokens
            flops += model.config.batch_flops(loaded.batch)
            batch = loaded.batch
            with torch.inference_mode(), self.autocast:
                outputs = model.outputs(batch)
            for evaluator in evaluators:
                evaluator.add(outputs, batch)
        known = {tuple(line.values()) for line in self.skipped}
        for line in chain.from_iterable(ranks.gather(lost)):
            if tuple(line.values()) not in known:
                known.add(tuple(line.values()))
                self.skipped.append(line)
        images, tokens, flops = ranks.sum([images, tokens, flops])
        if not images:
            raise ValueError(
                f"no validation image could be decoded ({redact(self.images.shards.paths[0])}, ...)"
            )
        return {
            "resolution": resolution,
            "patch_size": patch_size,
            "tokens_per_image": tokens / images,
            "gflops_per_image": flops / images / 1e9,
            **{name: value for evaluator in evaluators for name, value in evaluator.results(ranks)},
            "images": int(images),
        }
