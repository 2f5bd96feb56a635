"""The setting, or cascade, that prediction uses: a plan's, the caller's, or the best measured one."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from packvit.evaluate.plan.plan import Plan, Stage, read_plan
from packvit.evaluate.predict.known import WHY, Results
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.favoured import favoured_patch_size
from packvit.models import PackedViT, ViTConfig, hash_model


@dataclass(frozen=True)
class Wish:
    """What the caller requests; None leaves it open.

    Args:
        resolution, patch_size, tokens, protocol: see Setting.
    """

    resolution: int | None = None
    patch_size: int | None = None
    tokens: int | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        for name in ("resolution", "patch_size", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.patch_size is not None and self.resolution is None and self.tokens is None:
            raise ValueError(
                f"patch_size={self.patch_size} alone is not a setting: give a resolution or a number of "
                "tokens"
            )

    @property
    def is_open(self) -> bool:
        """Whether nothing is requested except perhaps a protocol."""
        return self.resolution is None and self.tokens is None


@dataclass(frozen=True)
class Choice:
    """The chosen stages.

    Args:
        stages: one setting, or a cascade.
        why: where they come from, as a sentence.
    """

    stages: tuple[Stage, ...]
    why: str


def stages_of_plan(plan: Plan | str | Path, model: PackedViT, classes: int | None) -> tuple[Plan, Choice]:
    """A plan, read if it is a file, and its stages.

    Args:
        classes: number of classes that the plan must have, if it names any; None for a model whose classes
            are given as texts.

    Raises:
        ValueError: it cannot be read, or is for another model.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    plan.check(hash_model(model))
    config = model.config
    if (tuple(plan.preprocessing.mean), tuple(plan.preprocessing.std)) != (
        config.image_mean,
        config.image_std,
    ):
        raise ValueError(
            f"the plan's preprocessing has mean {plan.preprocessing.mean} and std {plan.preprocessing.std}, "
            f"the model {config.image_mean} and {config.image_std}"
        )
    if classes is not None and plan.classes is not None and len(plan.classes) != classes:
        raise ValueError(f"the plan names {len(plan.classes)} classes, the model has {classes}")
    names = " then ".join(stage.setting.name for stage in plan.stages)
    return plan, Choice(plan.stages, f"Setting {names}, as planned")


def choose(wish: Wish, config: ViTConfig, results: Results | None) -> Choice:
    """The setting that the caller requests; open values are taken from an evaluation, or else from the model.

    Without a resolution and a number of tokens, it is the most accurate setting of the evaluation, with its
    temperature. A number of tokens alone is used with the patch size that the evaluation favours. Without an
    evaluation, the patch size is that of the stored patch embedding, and the number of tokens that of the
    position table.

    Raises:
        ValueError: the request does not make a setting.
    """
    protocol = wish.protocol or "native"
    rows = [row for row in results.rows if wish.protocol in (None, row.setting.protocol)] if results else []
    if rows and results and wish.is_open:
        best = max(rows, key=lambda row: row.accuracy)
        why = f"Setting {best.setting.name}, {WHY[best.measure]} ({best.accuracy:.1%}) in {results.path}"
        return Choice((Stage(best.setting, best.temperature),), why)
    p, tokens, source = wish.patch_size, wish.tokens, "as asked"
    tiled = [row.as_mapping() for row in rows if row.setting.stride is None]
    if p is None and tokens is not None and tiled and results:
        p = favoured_patch_size(tiled, tokens, "accuracy")
        source = f"with the patch size that {results.path} favours"
    elif p is None:
        p, source = config.patch_buffer, "with the patch size of the model's stored patch embedding"
    if wish.is_open:
        tokens = prod(config.pos_grid)
        source += " and as many tokens as its position table: no evaluation says what is better"
    setting = Setting(p, wish.resolution, tokens, protocol)
    return Choice((Stage(setting, 1.0),), f"Setting {setting.name}, {source}")


def for_labels(choice: Choice, labels: Sequence[str], measured: Sequence[str] | None) -> Choice:
    """The choice for classes that are given as texts.

    Temperatures and thresholds hold only for the classes that were measured.

    Args:
        measured: names of the classes for which the choice was made; None if they are not known.

    Raises:
        ValueError: it is a cascade for other classes.
    """
    if measured is not None and tuple(measured) == tuple(labels):
        return choice
    first, *others = choice.stages
    if others:
        raise ValueError("the plan is a cascade with thresholds for other labels: plan a single setting")
    return Choice((Stage(first.setting, 1.0),), choice.why)
