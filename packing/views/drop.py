"""How many of an image's tokens are dropped in training (NaViT A.4)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, assert_never


@dataclass(frozen=True)
class DropConfig:
    """Fraction of an image's tokens removed in training (NaViT A.4).

    Args:
        kind: none; constant: always `mean`; beta: `maximum` * u, u ~ Beta with mean m = mean / maximum and
            variance 0.3 m (1 - m); resolution: normal with deviation 0.02, truncated at twice that, around a
            rate that grows with the view's tokens from `minimum`, for the fewest that can be drawn, to
            `maximum`; schedule: minimum + (maximum - minimum) * sigmoid((n - middle) / tau) after n images.
        mean: expected drop rate of constant and beta.
        maximum: upper end of the range of beta, resolution and schedule.
        minimum: lower end of the range of resolution and schedule.
        middle: images seen by all ranks halfway through a schedule.
        tau: width of a schedule in images: the larger, the slower it rises; below 0 it falls.
        pattern: which tokens are removed: random ones; a block, the patches nearest to a random place; or by
            importance, patches with little variance more likely (see packvit.data.samples.cut).
    """

    kind: Literal["none", "constant", "beta", "resolution", "schedule"] = "none"
    mean: float = 0.5
    maximum: float = 0.9
    minimum: float = 0.1
    middle: int = 0
    tau: float = -1.0
    pattern: Literal["random", "block", "importance"] = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.mean < 1:
            raise ValueError(f"views.drop.mean={self.mean} must lie in [0, 1)")
        if self.kind == "beta" and not 0 < self.mean < self.maximum <= 1:
            raise ValueError(
                f"views.drop: beta needs 0 < mean < maximum <= 1, not {self.mean} and {self.maximum}"
            )
        if self.kind in ("resolution", "schedule") and not 0 <= self.minimum <= self.maximum < 1:
            raise ValueError(
                f"views.drop: {self.kind} needs 0 <= minimum <= maximum < 1, not {self.minimum} and "
                f"{self.maximum}"
            )
        if not math.isfinite(self.tau) or self.tau == 0:
            raise ValueError(f"views.drop.tau={self.tau} must be a number of images other than 0")

    def scheduled_rate(self, images: float) -> float:
        """Drop rate of a schedule after `images`; design of NaViT A.4."""
        # Beyond 40 the sigmoid is 0 or 1 to all digits.
        x = max(-40.0, min(40.0, (images - self.middle) / self.tau))
        return self.minimum + (self.maximum - self.minimum) / (1 + math.exp(-x))

    def mean_rate(self, share: Any) -> Any:
        """Expected drop rate of views with this `token_share`, a number or an array; schedules have none."""
        match self.kind:
            case "none":
                return 0.0
            case "constant" | "beta":
                return self.mean
            case "resolution":
                return self.minimum + share * (self.maximum - self.minimum)
            case "schedule":
                raise AssertionError("schedules are resolved by views_at")
            case _ as unknown:
                assert_never(unknown)
