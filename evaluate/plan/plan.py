"""A plan: the setting, or cascade of settings, at which a model is run, and its measured accuracy and cost.

plan.json holds everything that prediction needs besides the weights. It names its model by the hash of the
weights, so that no plan is used with another model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packvit.common.files import write_whole
from packvit.common.json_fields import check_fields, check_list, read_object
from packvit.evaluate.setting import Setting

NONE = type(None)
RESIZE, DECODE = "bicubic_antialias", "whole"


@dataclass(frozen=True)
class PlannedModel:
    """The model that a plan is for.

    Args:
        path: path of the model when it was evaluated.
        hash: SHA-256 of its weights in hexadecimal digits.
    """

    path: str
    hash: str


@dataclass(frozen=True)
class Stage:
    """One pass of the model over the images that reach it.

    Args:
        setting: how images are shown.
        temperature: divisor of the logits before they become confidences.
        threshold: images whose confidence in their predicted class is below it continue to the next stage; in
            [0, 1], None at the last stage.

    Raises:
        ValueError: names the field.
    """

    setting: Setting
    temperature: float
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1]")


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of a view become the model's input.

    Args:
        mean, std: of each channel, for pixels in [0, 1].
        resize: the filter that resizes images.
        decode: `whole`: images are decoded at full size before they are resized.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = RESIZE
    decode: str = DECODE

    def __post_init__(self) -> None:
        if (self.resize, self.decode) != (RESIZE, DECODE):
            raise ValueError(
                f"resize={self.resize!r} and decode={self.decode!r} are not known: "
                f"they must be {RESIZE!r} and {DECODE!r}"
            )
        if not min(self.std) > 0:
            raise ValueError(f"std={self.std} must be positive")


@dataclass(frozen=True)
class Measured:
    """The measurements of a plan: a setting on all images, a cascade on the half that it was not chosen on.

    Values that were not measured are None.

    Args:
        accuracy, accuracy_low, accuracy_high: share of images, with its 95 % interval (Wilson).
        ece_calibrated: expected calibration error of the confidences.
        tokens_per_image, gflops_per_image: means over images, of all stages that an image passes.
        latency_ms_p50: median at batch 1; for a cascade, the mean over images of the sum of the medians of
            the stages that an image passes.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ece_calibrated: float | None
    tokens_per_image: float
    gflops_per_image: float
    latency_ms_p50: float | None


@dataclass(frozen=True)
class Plan:
    """The content of plan.json.

    Args:
        model: the model that the plan is for.
        stages: one setting, or a cascade: every image begins at the first stage.
        preprocessing: how images become the model's input.
        measured: the measurements.
        classes: names of the model's classes, if they are known.
        curve: accuracy of the best single setting and of the best cascade at several budgets, as JSON
            objects; for figures, not needed for prediction.
        measure: the value that `measured` calls accuracy: accuracy, or image_to_text_r1 (recall@1).

    Raises:
        ValueError: there is no stage, or a threshold is missing or superfluous.
    """

    model: PlannedModel
    stages: tuple[Stage, ...]
    preprocessing: Preprocessing
    measured: Measured
    classes: tuple[str, ...] | None = None
    curve: tuple[Mapping[str, Any], ...] = ()
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages must not be empty")
        for index, stage in enumerate(self.stages):
            last = index == len(self.stages) - 1
            if last != (stage.threshold is None):
                rule = "the last stage has threshold null" if last else "all stages but the last need one"
                raise ValueError(f"stages[{index}]: threshold={stage.threshold}: {rule}")

    def check(self, model_hash: str) -> None:
        """Refuse a plan for another model.

        Args:
            model_hash: SHA-256 of the weights, as `hash_model` returns it.

        Raises:
            ValueError: the plan was made for other weights.
        """
        if model_hash != self.model.hash:
            raise ValueError(
                f"the plan was made for another model, {self.model.path} (hash {self.model.hash[:12]}), not "
                f"for this one (hash {model_hash[:12]}): evaluate this model and run packvit plan on that"
            )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values; `read_plan` reads them."""
        return {
            "model": asdict(self.model),
            "stages": [
                {
                    "setting": stage.setting.name,
                    "resolution": stage.setting.resolution,
                    "patch_size": stage.setting.patch_size,
                    "tokens": stage.setting.tokens,
                    "protocol": stage.setting.protocol,
                    "temperature": stage.temperature,
                    "threshold": stage.threshold,
                }
                for stage in self.stages
            ],
            "preprocessing": {
                "resize": self.preprocessing.resize,
                "decode": self.preprocessing.decode,
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
            },
            "classes": None if self.classes is None else list(self.classes),
            "measure": self.measure,
            "measured": asdict(self.measured),
            "curve": [dict(point) for point in self.curve],
        }


def write_plan(plan: Plan, path: Path) -> None:
    """Write plan.json; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plan.to_dict(), indent=1, allow_nan=False) + "\n")


def read_plan(path: Path) -> Plan:
    """The plan that `write_plan` wrote; a file without a curve or a measure is accepted, too.

    Raises:
        ValueError: one sentence that names the file and the field.
    """
    place = str(path)
    values = {"curve": [], "measure": "accuracy", **read_object(path)}
    fields = check_fields(
        values,
        {
            "model": (dict,),
            "stages": (list,),
            "preprocessing": (dict,),
            "classes": (list, NONE),
            "measure": (str,),
            "measured": (dict,),
            "curve": (list,),
        },
        place,
    )
    model = check_fields(fields["model"], {"path": (str,), "hash": (str,)}, f"{place}: model")
    optional = {"ece_calibrated", "latency_ms_p50"}
    measured = check_fields(
        fields["measured"],
        {name: (float, NONE) if name in optional else (float,) for name in Measured.__dataclass_fields__},
        f"{place}: measured",
    )
    stages = tuple(
        _read_stage(values, f"{place}: stages[{index}]") for index, values in enumerate(fields["stages"])
    )
    classes = fields["classes"]
    try:
        return Plan(
            PlannedModel(**model),
            stages,
            _read_preprocessing(fields["preprocessing"], f"{place}: preprocessing"),
            Measured(**measured),
            None if classes is None else check_list(classes, (str,), f"{place}: classes"),
            check_list(fields["curve"], (dict,), f"{place}: curve"),
            fields["measure"],
        )
    except ValueError as error:
        raise _named(error, place) from error


def _read_stage(values: Any, place: str) -> Stage:
    fields = check_fields(
        values,
        {
            "setting": (str,),
            "resolution": (int, NONE),
            "patch_size": (int,),
            "tokens": (int, NONE),
            "protocol": (str,),
            "temperature": (float,),
            "threshold": (float, NONE),
        },
        place,
    )
    try:
        setting = Setting(*(fields[name] for name in ("patch_size", "resolution", "tokens", "protocol")))
        if setting.name != fields["setting"]:
            raise ValueError(f"setting {fields['setting']!r} does not fit the other fields ({setting.name})")
        return Stage(setting, fields["temperature"], fields["threshold"])
    except ValueError as error:
        raise _named(error, place) from error


def _read_preprocessing(values: Any, place: str) -> Preprocessing:
    fields = check_fields(
        values, {"resize": (str,), "decode": (str,), "mean": (list,), "std": (list,)}, place
    )
    mean, std = (check_list(fields[name], (float,), f"{place}: {name}", 3) for name in ("mean", "std"))
    try:
        return Preprocessing(mean, std, fields["resize"], fields["decode"])
    except ValueError as error:
        raise _named(error, place) from error


def _named(error: ValueError, place: str) -> ValueError:
    """The error with the place in front, unless it names the place already."""
    return error if str(error).startswith(place) else ValueError(f"{place}: {error}")
