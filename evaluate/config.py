"""The settings at which a run evaluates its trained model, and how it validates during training."""

from dataclasses import dataclass

from packvit.evaluate.checks import LARGEST_PATCH
from packvit.evaluate.setting import Setting, grid_settings, parse_setting
from packvit.packing import ViewsConfig


@dataclass(frozen=True)
class EvalConfig:
    """The settings at which a model is evaluated when training has ended, and validated during training.

    Args:
        resolutions: sides in pixels of the square with a view's area; the model is evaluated at each with
            each of `patch_sizes`. Empty: both ends and the middle of `views.resolution`.
        patch_sizes: sides of a patch in pixels. Empty: those of `views.patch_sizes`.
        strides: pixels from one patch to the next, with every resolution and every patch size that is at
            least as large. Empty: those of `views.strides`.
        sequences: number of sequences of `packing.seq_len` tokens in a batch.
        cost: whether each setting's throughput and latency are measured, which takes seconds.
        every: steps between validations during training, which also follow the last step; 0: none. `best/` in
            the run's folder keeps the weights of the best one.
        settings: settings of these validations, such as r224-p16 (resolution and patch size) or t64-p16 (at
            most so many tokens). Empty: three settings of the evaluation at the end, with few, a medium
            number of and many tokens.
        images: number of images that these validations show, spread evenly over the validation set; 0: all.
        patience: the run ends when so many validations in a row were no better than the best; 0: never.
    """

    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    sequences: int = 8
    cost: bool = True
    every: int = 0
    settings: tuple[str, ...] = ()
    images: int = 2000
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "images", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"eval.{name}={getattr(self, name)} must not be negative")
        if self.patience and not self.every:
            raise ValueError(
                f"eval.patience={self.patience} counts validations: set eval.every, the steps between them"
            )
        for name in self.settings:
            parse_setting(name)
        if any(value < 1 for value in (*self.resolutions, *self.patch_sizes, *self.strides, self.sequences)):
            raise ValueError(
                "eval.resolutions, eval.patch_sizes, eval.strides and eval.sequences must be positive"
            )
        if max(self.patch_sizes, default=1) > LARGEST_PATCH:
            raise ValueError(
                f"eval.patch_sizes={self.patch_sizes}: a side has at most {LARGEST_PATCH} pixels"
            )

    def grid(self, views: ViewsConfig) -> list[Setting]:
        """Every patch size at every resolution and stride.

        Args:
            views: the views of training; by default all their patch sizes and strides are used, and the ends
                and the middle of their range of resolutions.

        Raises:
            ValueError: a patch size is smaller than all strides.
        """
        low, high = views.resolution.low, views.resolution.high
        resolutions = self.resolutions or tuple(sorted({low, (low + high) // 2, high}))
        return grid_settings(
            self.patch_sizes or views.patch_sizes, resolutions, self.strides or views.strides
        )
