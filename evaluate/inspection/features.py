"""A model's features for a minibatch of images at every setting, gathered layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from packvit.evaluate.inspection.cka import LEAST_ROWS, MinibatchCKA
from packvit.evaluate.inspection.images import Shown
from packvit.evaluate.inspection.taps import places, tapped
from packvit.models import Layout, PackedViT
from packvit.models.encoder.pool import mean_pool
from packvit.packing import PackedBatch, PackedImage, derive_seed

TOKENS_AT_ONCE = 8192  # in one forward pass, which holds at least one image
MOST_ROWS = 512  # of a minibatch's tokens that are compared; a Gram matrix has their square


@dataclass(frozen=True)
class Cells:
    """The places at which the tokens of one image are compared across settings.

    Args:
        grid: (rows, cols) to which its tokens are resampled at every setting: the fewest of any setting.
        chosen: int64 [n], raster positions in this grid.
    """

    grid: tuple[int, int]
    chosen: Tensor

    @staticmethod
    def of(image: Shown, most: int) -> "Cells":
        """At most `most` cells, drawn by a hash of the image's name."""
        rows, cols = (min(view.grid[axis] for view in image.views) for axis in (0, 1))
        drawn = Random(derive_seed("cells", image.header.key)).sample(
            range(rows * cols), min(most, rows * cols)
        )
        return Cells((rows, cols), torch.tensor(sorted(drawn)))

    def read(self, tokens: Tensor) -> Tensor:
        """[rows, cols, D] of any setting -> float32 [n, D], resampled bilinearly with antialiasing."""
        whole = tokens.float().permute(2, 0, 1)[None]
        if whole.shape[2:] != self.grid:
            whole = F.interpolate(whole, self.grid, mode="bilinear", antialias=True)
        return whole[0].flatten(1).T[self.chosen.to(tokens.device)]


@dataclass(frozen=True)
class Passed:
    """A minibatch of n images at one setting; on the CPU.

    Args:
        logits: float32 [n, classes], or the features if the model has no head.
        features: float32 [n, feature_dim], the inputs of the head.
        pooled: by place, float32 [n, D]: the mean over each image's tokens.
        tokens: by place, float32 [rows, D]: the images' tokens at their cells.
        num_tokens: number of tokens of all images.
        flops: forward FLOPs of all images.
    """

    logits: Tensor
    features: Tensor
    pooled: dict[str, Tensor]
    tokens: dict[str, Tensor]
    num_tokens: int
    flops: int


def run_setting(
    model: PackedViT, images: Sequence[PackedImage], cells: Sequence[Cells], autocast: AbstractContextManager
) -> Passed:
    """Run a model over images that are shown at one setting, without padding.

    Args:
        model: in eval mode, its blocks not compiled.
        cells: the cells of each image.
        autocast: context in which the model runs.
    """
    device = model.patch_embed.weight.device
    pooled: dict[str, list[Tensor]] = {name: [] for name in places(model)}
    tokens: dict[str, list[Tensor]] = {name: [] for name in pooled}
    outputs, num_tokens, flops, done = [], 0, 0, 0

    def take(name: str, x: Tensor, layout: Layout) -> None:
        pooled[name].append(mean_pool(x, layout).float().cpu())
        # One sequence holds the images in their order.
        parts = x[layout.is_own].split(lengths)
        for part, image, where in zip(parts, group, cells[done:], strict=False):
            tokens[name].append(where.read(part.unflatten(0, image.grid)).cpu())

    with torch.inference_mode(), autocast, tapped(model, take):
        for group in limit_tokens(images, TOKENS_AT_ONCE):
            lengths = [len(image.coords) for image in group]
            batch = PackedBatch.build([group], sum(lengths)).to(device)
            num_tokens += sum(lengths)
            flops += model.config.batch_flops(batch)
            found = model.outputs(batch)
            outputs.append((found.logits.float().cpu(), found.features.float().cpu()))
            done += len(group)
    return Passed(
        torch.cat([logits for logits, _ in outputs]),
        torch.cat([features for _, features in outputs]),
        {name: torch.cat(parts) for name, parts in pooled.items()},
        {name: torch.cat(parts) for name, parts in tokens.items()},
        num_tokens,
        flops,
    )


def limit_tokens(images: Sequence[PackedImage], most: int) -> Iterator[list[PackedImage]]:
    """Images in their order, in groups of at most `most` tokens or a single image."""
    group, used = [], 0
    for image in images:
        if group and used + len(image.coords) > most:
            yield group
            group, used = [], 0
        group.append(image)
        used += len(image.coords)
    if group:
        yield group


class Gathered:
    """A model's outputs for all images at S settings.

    Attributes:
        pooled, tokens: CKA between the settings, by place; `pooled` also of `features`, the inputs of the
            head.
    """

    def __init__(self, model: PackedViT, settings: int) -> None:
        names = places(model)
        self.pooled = {name: MinibatchCKA(settings) for name in [*names, "features"]}
        self.tokens = {name: MinibatchCKA(settings) for name in names}
        self._labels: list[int] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._costs = torch.zeros(2, settings, dtype=torch.float64)  # tokens and FLOPs

    def add(self, model: PackedViT, images: Sequence[Shown], autocast: AbstractContextManager) -> None:
        """Run the model over one minibatch at every setting; fewer than four images take no part in CKA."""
        cells = [Cells.of(image, max(1, MOST_ROWS // len(images))) for image in images]
        passes = [
            run_setting(model, [image.views[s] for image in images], cells, autocast)
            for s in range(len(images[0].views))
        ]
        self._labels += [image.label for image in images]
        self._outputs.append(
            (torch.stack([p.logits for p in passes]), torch.stack([p.features for p in passes]))
        )
        self._costs += torch.tensor([[p.num_tokens for p in passes], [p.flops for p in passes]])
        if len(images) < LEAST_ROWS:
            return
        for name, cka in self.pooled.items():
            cka.add([p.features if name == "features" else p.pooled[name] for p in passes])
        for name, cka in self.tokens.items():
            cka.add([p.tokens[name] for p in passes])

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return torch.tensor(self._labels)

    @property
    def logits(self) -> Tensor:
        """float32 [S, N, classes]."""
        return torch.cat([logits for logits, _ in self._outputs], 1)

    @property
    def features(self) -> Tensor:
        """float32 [S, N, feature_dim]."""
        return torch.cat([features for _, features in self._outputs], 1)

    @property
    def tokens_per_image(self) -> list[float]:
        """Mean over images, by setting."""
        return (self._costs[0] / len(self._labels)).tolist()

    @property
    def gflops_per_image(self) -> list[float]:
        """Forward, mean over images, by setting; 2 FLOPs a multiply-add."""
        return (self._costs[1] / len(self._labels) / 1e9).tolist()
