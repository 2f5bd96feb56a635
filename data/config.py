"""What a run reads, and how."""

from dataclasses import dataclass, field
from typing import get_args

from packvit.data.samples.augment import AugmentConfig
from packvit.data.samples.decode import TRAINING, Resize
from packvit.data.samples.mix import MixConfig
from packvit.data.samples.targets import ClassTarget, Target, TextTarget
from packvit.data.shards.fetch import FetchConfig

FREE, FIXED = {"resume": "free"}, {"resume": "fixed"}  # see packvit.train.config


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from.

    Args:
        shards: to train on: tar files, plain or gzipped, brace patterns, globs, folders, those of object
            stores (`s3://...`, `gs://...`, `az://...`), or URLs (`https://...`, `hf://...`, `pipe:COMMAND`,
            what else webdataset's gopen knows).
        val_shards: to validate and evaluate on, in the same forms; if empty, the run does neither.
        weights: share of the samples for each entry of `shards`, in any unit; empty treats all shards as one
            source. Every source has epochs of its own.
        workers: processes of each rank that read and decode; with 0 the trainer does it.
        streams: number of logical streams; a multiple of the number of ranks.
        shuffle_shards: number of shards, or parts of shards, whose samples are shuffled together.
        audit: write the keys of every step's images to audit.jsonl.
        fetch: how remote and gzipped shards are fetched, for training and validation.
        max_bad_fraction: the run stops if more than this share of the samples had to be skipped.
        resize: what resizes training images: `torch`, in a fraction of the time, as `packvit teach` does, or
            `pillow`, as evaluation does. Whole images are nearly the same; with `torch` crops begin and end
            at whole pixels of the decoded image.
        mix: mixup and cutmix between the images of a batch.
        augment: augmentation of each image, before mixing.
        label_field: field of every sample with its label: `cls`, `json:PLACE` or, with `multi_label`,
            `NAME.npy`.
        multi_label: images have any number of classes, and the loss is `sigmoid`.
        caption_field: field of every sample, such as `txt`, whose text is added to the batch; empty adds
            none.
    """

    shards: tuple[str, ...] = ()
    val_shards: tuple[str, ...] = field(default=(), metadata=FREE)
    weights: tuple[float, ...] = field(default=(), metadata={"resume": "count"})
    workers: int = field(default=2, metadata=FREE)
    streams: int = field(default=64, metadata=FIXED)
    shuffle_shards: int = field(default=4, metadata=FIXED)
    audit: bool = field(default=False, metadata=FREE)
    fetch: FetchConfig = field(default_factory=FetchConfig, metadata=FREE)
    max_bad_fraction: float = 0.05
    resize: Resize = TRAINING
    mix: MixConfig = field(default_factory=MixConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_field: str = "cls"
    multi_label: bool = False
    caption_field: str = ""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers} must not be negative")
        if self.streams < 1 or self.shuffle_shards < 1:
            raise ValueError("data.streams and data.shuffle_shards must be at least 1")
        if self.weights and (len(self.weights) != len(self.shards) or min(self.weights) <= 0):
            raise ValueError(
                f"data.weights={self.weights} must be positive, one for each of the {len(self.shards)} "
                "entries of data.shards"
            )
        if self.resize not in get_args(Resize):
            raise ValueError(f"data.resize={self.resize!r} must be one of {', '.join(get_args(Resize))}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")
        self.class_target(None)

    def class_target(self, classes: int | None) -> ClassTarget:
        """How labels are read.

        Args:
            classes: labels outside 0..classes-1 make a sample bad; None accepts any label, and samples
                without.
        """
        return ClassTarget(self.label_field, self.multi_label, classes)

    def text_targets(self) -> dict[str, Target]:
        """The captions that come with a batch, as the target `text`; none without `caption_field`."""
        return {"text": TextTarget(self.caption_field)} if self.caption_field else {}
