"""How views are drawn: the configuration, and how it changes with the images seen.

Resolution follows NaViT 3.2 and A.1, patch size FlexiViT 3.2, dropping NaViT A.4.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from packvit.packing.views.budget import tilt
from packvit.packing.views.drop import DropConfig
from packvit.packing.views.grid import Rounding

STEPS = 256  # parts of the range of resolutions that a budget weighs


@dataclass(frozen=True)
class ResolutionConfig:
    """Side of the square with the view's area, in pixels (NaViT 3.2, A.1).

    Args:
        low: smallest resolution in pixels.
        high: largest resolution in pixels.
        distribution: distribution of u in [-1, 1], which is mapped linearly to the range: uniform, or a
            normal truncated to [-1, 1].
        mean: mean of the normal before truncation; the paper's best is -0.5.
        std: standard deviation of the normal before truncation; the paper's best is 1.
        measure: whether u is mapped to the side or to the area.
        upscale: if False, no image is shown larger than it is stored.
        sides: a fixed list to draw from instead, as in NaFlex (SigLIP 2, arXiv 2502.14786, 2.4.2); low and
            high are then its smallest and largest value.
        weights: relative weight of each of `sides`; empty means equal.
    """

    low: int = 64
    high: int = 256
    distribution: Literal["uniform", "normal"] = "normal"
    mean: float = -0.5
    std: float = 1.0
    measure: Literal["side", "area"] = "side"
    upscale: bool = True
    sides: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.sides:
            object.__setattr__(self, "low", min(self.sides))
            object.__setattr__(self, "high", max(self.sides))
        if not 1 <= self.low <= self.high:
            raise ValueError(
                f"views.resolution: needs 1 <= low <= high, got low={self.low}, high={self.high}"
            )
        if not self.std > 0:
            raise ValueError(f"views.resolution.std={self.std} must be positive")
        check_weights("views.resolution.weights", self.weights, "views.resolution.sides", self.sides)

    def weighed_sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Sides in pixels and their relative weights, float64 [K] each: the list, or parts of the range."""
        if self.sides:
            return np.array(self.sides, float), np.array(self.weights or [1] * len(self.sides), float)
        shares = (np.arange(STEPS) + 0.5) / STEPS
        weights = np.ones(STEPS)
        if self.distribution == "normal":
            weights = np.exp(-(((2 * shares - 1 - self.mean) / self.std) ** 2) / 2)
        sides = self.low + shares * (self.high - self.low)
        if self.measure == "area":
            sides = np.sqrt(self.low**2 + shares * (self.high**2 - self.low**2))
        return sides, weights


@dataclass(frozen=True)
class CurriculumConfig:
    """The end of a curriculum: from `start` to `end`, views change linearly from `views` to these values.

    FlexiViT's change from large to small patches (arXiv 2212.08013, 5.4) and the last phase of NaFlex are
    examples. Empty fields do not change.

    Args:
        start: images seen by all ranks when the change begins.
        end: images seen by all ranks when it is complete; if it equals `start`, the change is a step.
        patch_weights: final relative weight of each of `views.patch_sizes`.
        low: final lower end of the range of `views.resolution` in pixels; 0 does not change it.
        high: final upper end of that range; 0 does not change it.
        resolution_weights: final relative weight of each of `views.resolution.sides`.
        native: square views keep the image's aspect ratio from `end` on.
    """

    start: int = 0
    end: int = 0
    patch_weights: tuple[float, ...] = ()
    low: int = 0
    high: int = 0
    resolution_weights: tuple[float, ...] = ()
    native: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(
                f"views.curriculum needs 0 <= start <= end, not start={self.start}, end={self.end}"
            )

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return bool(self.patch_weights or self.low or self.high or self.resolution_weights or self.native)

    def share(self, images: float) -> float:
        """How far the change has come after `images`: 0..1."""
        if images >= self.end:
            return 1.0
        return max(0.0, (images - self.start) / max(1, self.end - self.start))


@dataclass(frozen=True)
class ViewsConfig:
    """How views are drawn in training.

    Args:
        patch_sizes: patch sizes in pixels; one is drawn for every image (FlexiViT 3.3).
        patch_weights: relative weight of each patch size; empty means equal.
        resolution, drop: see their classes.
        budget: mean tokens of a view, reached by showing small patches at lower and large ones at higher
            resolutions of the range; S / budget images fit in a sequence. None leaves the resolutions
            unchanged. Views that are shrunk to fit S or are not upscaled lower the mean.
        crop: smallest share of the image's area that a random crop keeps; 1 shows the whole image.
        crop_aspect: largest factor by which a crop's aspect ratio differs from the image's; 1 keeps it. With
            `square`, the crop's own aspect ratio lies between 1 / crop_aspect and crop_aspect, as in
            Inception's crops.
        flip: probability of mirroring left and right.
        square: views are squares; crops are squashed, as usual for models with one fixed grid.
        rounding: how sides become whole patches: `nearest`; `floor` as in NaViT; or `ceil` as in NaFlex, the
            largest grid with sides rounded up that has at most (resolution / patch size)**2 tokens.
        curriculum: what changes with the images seen.
        patch_size_per: whether each image has its own patch size, or shares it with the other images of its
            sequence or of its batch (FlexiViT draws one for each step). Images are drawn with the same
            weights in all cases; how many sequences or batches have a patch size follows from the slots that
            its images fill.
        strides: pixels from one patch to the next, drawn for every image and not larger than a patch, so that
            patches overlap (FlexiViT 7, flexible stride); empty: the patch size.
    """

    patch_sizes: tuple[int, ...] = (16,)
    patch_weights: tuple[float, ...] = ()
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    budget: float | None = None
    crop: float = 1.0
    crop_aspect: float = 1.0
    flip: float = 0.0
    square: bool = False
    rounding: Rounding = "nearest"
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    patch_size_per: Literal["image", "sequence", "batch"] = "image"
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.patch_sizes or min(self.patch_sizes) < 1:
            raise ValueError(f"views.patch_sizes={self.patch_sizes} needs at least one size, all positive")
        if len(set(self.patch_sizes)) != len(self.patch_sizes):
            raise ValueError(f"views.patch_sizes={self.patch_sizes} names a size twice")
        if self.strides and not (min(self.strides) >= 1 and max(self.strides) <= min(self.patch_sizes)):
            raise ValueError(
                f"views.strides={self.strides} must lie in 1..{min(self.patch_sizes)}, the smallest of "
                "views.patch_sizes: patches may overlap and leave no gaps"
            )
        if len(set(self.strides)) != len(self.strides):
            raise ValueError(f"views.strides={self.strides} names a stride twice")
        sizes = ("views.patch_sizes", self.patch_sizes)
        check_weights("views.patch_weights", self.patch_weights, *sizes)
        if not 0 < self.crop <= 1:
            raise ValueError(f"views.crop={self.crop} must lie in (0, 1]")
        if self.crop_aspect < 1:
            raise ValueError(f"views.crop_aspect={self.crop_aspect} must be at least 1")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"views.flip={self.flip} must lie in [0, 1]")
        moves = self.curriculum
        check_weights("views.curriculum.patch_weights", moves.patch_weights, *sizes)
        sides = ("views.resolution.sides", self.resolution.sides)
        check_weights("views.curriculum.resolution_weights", moves.resolution_weights, *sides)
        if moves.native and not self.square:
            raise ValueError("views.curriculum.native changes views that start with views.square=True")
        if self.resolution.sides and (moves.low or moves.high):
            raise ValueError("views.curriculum.low and high cannot move what views.resolution.sides fixes")
        if self.moves:
            for images in (0, self.curriculum.end, math.inf):
                views_at(self, images)  # refuses what it could not show
        elif self.budget is not None:
            try:
                budget_shares(self)
            except ValueError as error:
                raise ValueError(f"views.budget: {error}") from None

    @property
    def moves(self) -> bool:
        """Whether views depend on the images seen."""
        return self.curriculum.active or self.drop.kind == "schedule"

    def token_share(self, tokens: Any) -> Any:
        """Where numbers of tokens lie between the fewest and the most that can be drawn, in 0..1."""
        fewest = (self.resolution.low / max(self.strides or self.patch_sizes)) ** 2
        most = (self.resolution.high / min(self.strides or self.patch_sizes)) ** 2
        return np.clip((tokens - fewest) / max(most - fewest, 1e-9), 0, 1)


def check_weights(name: str, weights: tuple[float, ...], what: str, values: tuple) -> None:
    """Refuse relative weights that are not one for each of `values`, >= 0, with a positive sum.

    Raises:
        ValueError: names the field.
    """
    if weights and len(weights) != len(values):
        raise ValueError(f"{name} needs one weight for each of {what}")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{name}={weights} must be >= 0 with a positive sum")


def views_at(config: ViewsConfig, images: float) -> ViewsConfig:
    """The configuration of views after `images` seen by all ranks, which no longer changes.

    Curricula proceed in steps of a thousandth, scheduled drop rates in steps of 0.0001.

    Raises:
        ValueError: no view can be drawn then; names the field.
    """
    if not config.moves:
        return config
    share = round(config.curriculum.share(images), 3) if config.curriculum.active else 0.0
    rate = round(config.drop.scheduled_rate(images), 4) if config.drop.kind == "schedule" else None
    return _moved(config, share, rate)


@lru_cache(maxsize=64)
def _moved(config: ViewsConfig, share: float, rate: float | None) -> ViewsConfig:
    to, resolution = config.curriculum, config.resolution
    low = round(resolution.low + share * ((to.low or resolution.low) - resolution.low))
    high = round(resolution.high + share * ((to.high or resolution.high) - resolution.high))
    weights = _between(resolution.weights, to.resolution_weights, len(resolution.sides), share)
    return replace(
        config,
        patch_weights=_between(config.patch_weights, to.patch_weights, len(config.patch_sizes), share),
        resolution=replace(resolution, low=low, high=high, weights=weights),
        drop=config.drop if rate is None else replace(config.drop, kind="constant", mean=rate),
        square=config.square and not (to.native and share == 1),
        curriculum=CurriculumConfig(),
    )


def _between(first: tuple, last: tuple, count: int, share: float) -> tuple[float, ...]:
    """Weights, each set summing to 1, `share` of the way from one to the other; an empty `last` stays."""
    if not last:
        return first
    first = first or (1,) * count
    pairs = zip(first, last, strict=True)
    return tuple((1 - share) * a / sum(first) + share * b / sum(last) for a, b in pairs)


@lru_cache(maxsize=16)
def budget_shares(config: ViewsConfig) -> dict[tuple[int, int], list[float]]:
    """Cumulative probability of each of the resolution's `weighed_sides`, by patch size and stride.

    Raises:
        ValueError: the budget is out of reach.
    """
    sides, base = config.resolution.weighed_sides()
    # Square views; others have as many tokens within the rounding of their sides.
    whole = np.rint if config.rounding == "nearest" else np.floor
    pairs = [(p, stride) for p in config.patch_sizes for stride in config.strides or (p,)]
    sizes, strides = (np.array(column)[:, None] for column in zip(*pairs, strict=True))
    patches = np.maximum(1, whole(sides / strides - (sizes / strides - 1))) ** 2  # [P, K]
    kept = np.maximum(1, patches * (1 - config.drop.mean_rate(config.token_share(patches))))
    weights = np.array(config.patch_weights or [1] * len(config.patch_sizes), float)
    weights = weights.repeat(len(config.strides) or 1)
    assert config.budget is not None
    tilted = tilt(base, kept, weights, config.budget)
    return dict(zip(pairs, tilted.cumsum(1).tolist(), strict=True))
