"""What a run learns from: the loss of labels, teachers, and captions."""

import re
from dataclasses import dataclass, field
from typing import Literal

from packvit.packing import ViewsConfig

Measure = Literal["cosine", "smooth_l1"]
EMA = "ema"  # as a teacher's path: the moving average of the weights in training


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Learning from labels; part of `train.*`.

    Args:
        loss: cross-entropy with `softmax` or, for each class, with `sigmoid` (NaViT).
        label_smoothing: share of the target spread evenly over the classes.
        head_bias: initial bias of a new head; for sigmoid losses with many classes it should be low
            (big_vision: -10).
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    head_bias: float = field(default=0.0, metadata={"resume": "free"})

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} must lie in [0, 1)")


@dataclass(frozen=True)
class DistillConfig:
    """Learning from teachers; without teachers, a run learns from labels alone.

    FlexiViT 3.5: a student learns from a teacher's answers to the same crop and flip, which the teacher sees
    at its own patch size and resolution and without dropped tokens.

    Args:
        teachers: models that load_model reads, or `ema`, the run's own moving average. Their losses are
            added.
        patch_sizes: patch size of each teacher's view; empty: the smallest of `views.patch_sizes` for all.
        resolutions: resolution of each teacher's view in pixels; empty: the upper end of `views.resolution`
            for all.
        init: start with the first teacher's weights.
        logits_field: field of every sample with logits that `packvit teach` wrote; acts as one more teacher.
        temperature: t, which divides the logits of both.
        logits_weight: weight of t^2 * KL(teacher || student) over the classes.
        label_weight: weight of the label loss (`train.loss`), which is added to the teachers' losses.
        feature_weight: weight of the distance between the inputs of the heads; if widths differ, a linear
            layer, trained along with the student, maps the student's features.
        token_weight: weight of the mean distance between the last layer's tokens at the student's kept
            patches; tokens are mapped in the same way.
        measure: the distance: `cosine`, 1 - cos, or `smooth_l1`, the mean over channels.
    """

    teachers: tuple[str, ...] = field(default=(), metadata={"resume": "count"})
    patch_sizes: tuple[int, ...] = ()
    resolutions: tuple[int, ...] = ()
    init: bool = False
    logits_field: str = ""
    temperature: float = 1.0
    logits_weight: float = 1.0
    label_weight: float = 0.0
    feature_weight: float = field(default=0.0, metadata={"resume": "switch"})
    token_weight: float = field(default=0.0, metadata={"resume": "switch"})
    measure: Measure = "cosine"

    def __post_init__(self) -> None:
        for name in ("patch_sizes", "resolutions"):
            values = getattr(self, name)
            if values and (len(values) != len(self.teachers) or min(values) < 1):
                raise ValueError(
                    f"distill.{name}={values} must be positive, one for each of the {len(self.teachers)} "
                    "distill.teachers"
                )
        if self.init and (not self.teachers or self.teachers[0] == EMA):
            raise ValueError("distill.init needs a model as the first of distill.teachers")
        if self.temperature <= 0:
            raise ValueError(f"distill.temperature={self.temperature} must be positive")
        weights = ("logits_weight", "label_weight", "feature_weight", "token_weight")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name}={getattr(self, name)} must not be negative")
        if self.active and not any(getattr(self, name) for name in weights):
            raise ValueError(f"all of distill.{', '.join(weights)} are 0: nothing is left to learn")
        if self.logits_field and not self.logits_weight:
            raise ValueError("distill.logits_field needs distill.logits_weight above 0")
        if self.logits_field:
            check_field("distill.logits_field", self.logits_field)

    @property
    def active(self) -> bool:
        """Whether there is anything to imitate."""
        return bool(self.teachers or self.logits_field)

    @property
    def needs_labels(self) -> bool:
        """Whether samples must have a label."""
        return not self.active or self.label_weight > 0

    def budgets(self, views: ViewsConfig) -> tuple[tuple[int, int], ...]:
        """(patch size, resolution) of each teacher's view."""
        patch_sizes = self.patch_sizes or [min(views.patch_sizes)] * len(self.teachers)
        resolutions = self.resolutions or [views.resolution.high] * len(self.teachers)
        return tuple(zip(patch_sizes, resolutions, strict=True))


@dataclass(frozen=True)
class ConsistencyConfig:
    """Every sample is shown twice, at two budgets, and the features at the smaller budget are pulled towards
    those at the larger one.

    Models that see several resolutions may process each in a different mode (C-RADIO, arXiv 2412.07679); here
    the same image must give the same features at all of them.

    Args:
        weight: weight of the distance between the inputs of the head, which is added to the label loss of
            both images; 0 shows every sample once.
        measure: the distance: `cosine`, 1 - cos, or `smooth_l1`, the mean over channels.
    """

    weight: float = 0.0
    measure: Measure = "cosine"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"consistency.weight={self.weight} must not be negative")

    @property
    def active(self) -> bool:
        """Whether samples are shown twice."""
        return self.weight > 0


def check_field(name: str, field: str) -> None:
    """Refuse the name of a field that shards cannot hold or that readers would not read as an array.

    Raises:
        ValueError: names `name`, the flag.
    """
    if not re.fullmatch(r"[^/A-Z_][^/A-Z]*\.npy", field):
        raise ValueError(f"{name} {field!r} must be in lower case and end in .npy, such as teacher.npy")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Learning from images and captions, which two towers embed close to each other; see docs/contrastive.md.

    Args:
        loss: `softmax` (CLIP; NaViT 2.3) or `sigmoid` (SigLIP, arXiv 2303.15343, 3); empty learns from labels
            or teachers instead.
        captions: field of every sample with its captions: `txt`, one caption a line, or `json:PLACE`, a text
            or a list of texts. If a sample has several, each epoch draws one.
        tokenizer: a `.model` of sentencepiece, a `tokenizer.json`, or the folder of a model that has one;
            empty trains one with `text.vocab_size` tokens on the set's captions. It is kept in the run's
            folder.
        tokenizer_captions: maximum number of captions on which a tokeniser is trained.
        temperature: initial factor of the cosines, e^t'.
        bias: initial value that is added to them; for the sigmoid loss.
        chunk: images that are compared at once; 0: as many as make 2^24 logits.
    """

    loss: Literal["", "softmax", "sigmoid"] = ""
    captions: str = "txt"
    tokenizer: str = ""
    tokenizer_captions: int = 200_000
    temperature: float = 10.0
    bias: float = -10.0
    chunk: int = field(default=0, metadata={"resume": "free"})

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"contrastive.temperature={self.temperature} must be positive")
        if self.tokenizer_captions < 1:
            raise ValueError(f"contrastive.tokenizer_captions={self.tokenizer_captions} must be at least 1")
        if self.chunk < 0:
            raise ValueError(f"contrastive.chunk={self.chunk} must not be negative")
