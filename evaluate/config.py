"""What a run evaluates its trained model at."""

from dataclasses import dataclass
from itertools import product

from packvit.evaluate.checks import LARGEST_PATCH
from packvit.evaluate.setting import Setting
from packvit.packing import ViewsConfig


@dataclass(frozen=True)
class EvalConfig:
    """What a trained model is evaluated at.

    Args:
        resolutions, patch_sizes: every pair is one row of eval/results.json; pixels.
        sequences: a batch has so many times `packing.seq_len` tokens.
        cost: whether each setting's throughput and latency are measured, which takes seconds.
    """

    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    sequences: int = 8
    cost: bool = True

    def __post_init__(self) -> None:
        if any(value < 1 for value in (*self.resolutions, *self.patch_sizes, self.sequences)):
            raise ValueError("eval.resolutions, eval.patch_sizes and eval.sequences must be positive")
        if max(self.patch_sizes, default=1) > LARGEST_PATCH:
            raise ValueError(
                f"eval.patch_sizes={self.patch_sizes}: a side has at most {LARGEST_PATCH} pixels"
            )

    def settings(self, views: ViewsConfig) -> list[Setting]:
        """Every pair of a patch size and a resolution.

        Args:
            views: of training; what is not configured is all of its patch sizes, and the ends and the middle
                of its range of resolutions.
        """
        low, high = views.resolution.low, views.resolution.high
        resolutions = self.resolutions or tuple(sorted({low, (low + high) // 2, high}))
        return [Setting(p, r) for p, r in product(self.patch_sizes or views.patch_sizes, resolutions)]
