"""The configuration of a run: composes what each room owns, reads and writes it as YAML.

The metadata of a field, or of a whole section, says whether it may change when a run resumes. A section can
also say it for some of its fields by name:

- `free`: changes nothing of what a run computes;
- no metadata: the change applies from the checkpoint on, and is reported;
- `fixed`: refused, because the content of the checkpoint would mean something else, such as its tensors or
  the places of its data streams;
- refused in part: a `switch` must stay zero or stay nonzero and a `count` must keep its number of values,
  because the checkpoint has tensors or reading places for them; a `scaled` precision may not become fp16,
  because the checkpoint lacks a loss scale.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import dacite
import tyro
import yaml

from packvit.common.files import refuse_url
from packvit.common.stores.copies import copy_place, url_of
from packvit.data import DataConfig
from packvit.evaluate import LARGEST_PATCH, EvalConfig
from packvit.models import TextConfig, ViTConfig
from packvit.packing import PackingConfig, ViewsConfig
from packvit.train.step.kept import CheckpointConfig
from packvit.train.step.length import LengthConfig
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import EngineConfig
from packvit.train.tasks.config import (
    EMA,
    ConsistencyConfig,
    ContrastiveConfig,
    DistillConfig,
    LossConfig,
)

FREE, FIXED = {"resume": "free"}, {"resume": "fixed"}
MOST_THREADS = 1024  # many more end in a fault of memory
# What runs did before a field was added, where that is not its default.
EARLIER = {"data.resize": "pillow"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LengthConfig, CheckpointConfig, EngineConfig, LossConfig):
    """The training loop; its other fields are defined next to the code that they configure.

    Args:
        accumulate: batches of each rank in one step.
        log_every: steps between lines of metrics.jsonl.
        max_nonfinite: number of consecutive steps that are skipped because their gradient is not finite; one
            more stops the run.
        peak_tflops: the device's peak for MFU; None takes it from a table of known GPUs.
        trackers: where to show the run besides metrics.jsonl: `tensorboard`, `wandb`.
        profile: number of steps to profile, after some warm-up steps; 0 profiles none.
        init: a model that load_model reads, whose weights a new run starts with; a head for other classes is
            initialised anew.
        timeout: minutes that a rank waits for the others before it gives up. A dead rank is noticed after
            this time; it must be long enough for a slow checkpoint or shard.
    """

    accumulate: int = 1
    log_every: int = field(default=20, metadata=FREE)
    max_nonfinite: int = 10
    peak_tflops: float | None = field(default=None, metadata=FREE)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = field(default=(), metadata=FREE)
    profile: Annotated[int, tyro.conf.arg(aliases=["--profile"])] = field(default=0, metadata=FREE)
    init: str = field(default="", metadata=FREE)
    timeout: float = field(default=30.0, metadata=FREE)

    def __post_init__(self) -> None:
        for part in TrainConfig.__bases__:
            part.__post_init__(self)
        for name in ("accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("max_nonfinite", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        if not self.timeout > 0:
            raise ValueError(f"train.timeout={self.timeout} must be positive")


@dataclass(frozen=True)
class Config:
    """A whole run.

    Args:
        run_dir: the run's folder, here or in an object store; starting again with the same folder resumes
            the run.
        seed: seed of initialisation, data order, views and dropping.
        device: auto uses a GPU if there is one.
        threads: CPU threads of a rank's matrix products, 0 = torch's choice. Sums depend on it, so a run
            repeats bit for bit only with the same number.
    """

    run_dir: Path = field(default=Path("runs/train"), metadata=FREE)
    seed: int = field(default=0, metadata=FIXED)
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=FREE)
    threads: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    # If views or packing change, samples that wait to be packed get new views and are packed again.
    views: ViewsConfig = field(default_factory=ViewsConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    model: ViTConfig = field(default_factory=ViTConfig, metadata=FIXED)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"resume": {"precision": "scaled"}})
    distill: DistillConfig = field(default_factory=DistillConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig, metadata=FIXED)
    text: TextConfig = field(default_factory=TextConfig, metadata=FIXED)
    eval: EvalConfig = field(default_factory=EvalConfig, metadata=FREE)

    def __post_init__(self) -> None:
        for name, value in _flat(plain_config(self)).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{name}={number} must be a finite number")
        if self.url is None:
            refuse_url(self.run_dir, "run_dir")
        if not 0 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads={self.threads} must lie in 0..{MOST_THREADS}")
        if max(self.views.patch_sizes) > LARGEST_PATCH:
            raise ValueError(
                f"views.patch_sizes={self.views.patch_sizes}: a side has at most {LARGEST_PATCH} pixels"
            )
        if self.views.strides:
            self.model.check_overlap(f"views.strides={self.views.strides}")
        depths, depth = self.train.depths, self.model.depth
        if depths and not (len(set(depths)) == len(depths) and min(depths) >= 1 and max(depths) == depth):
            raise ValueError(
                f"train.depths={depths} must be different numbers of blocks, the largest of them "
                f"model.depth={depth}"
            )
        if EMA in self.distill.teachers and not self.train.ema:
            raise ValueError("distill.teachers names ema, the moving average: set train.ema above 0")
        if self.distill.logits_field and self.data.mix.active:
            raise ValueError("distill.logits_field holds answers to images alone: set data.mix.probability=0")
        if self.train.init and self.distill.init:
            raise ValueError("train.init and distill.init both name the weights to start with: give one")

    @property
    def url(self) -> str | None:
        """The run's folder, if it is in an object store."""
        return url_of(self.run_dir)

    @property
    def folder(self) -> Path:
        """The folder of this machine in which the run works: its own, or a copy of one in a store."""
        return self.run_dir if self.url is None else copy_place("runs", self.url)

    @property
    def place(self) -> str:
        """The run's folder, for people and for YAML."""
        return self.url or str(self.run_dir)


def save_config(config: Config, path: Path) -> None:
    """Write YAML that `load_config` reads back equal."""
    path.write_text(yaml.safe_dump(plain_config(config), sort_keys=False))


def plain_config(config: Config) -> dict:
    """The fields as nested dictionaries, lists, numbers and strings, as YAML and JSON hold them."""
    plain = _plain(asdict(config) | {"run_dir": config.place})
    assert isinstance(plain, dict)
    return plain


def changed_fields(saved: dict, config: Config) -> dict[str, tuple]:
    """{"section.field": (saved value, value now)} of fields that differ and affect what a run computes.

    Args:
        saved: from `plain_config`; fields that it lacks were added later, and have the value of EARLIER or,
            if they are not in it, their default.
    """
    old = _flat(plain_config(Config())) | EARLIER | _flat(saved)
    new, rules = _flat(plain_config(config)), resume_rules(config)
    changed = {name: (old[name], new[name]) for name in new if name in old and old[name] != new[name]}
    return {name: pair for name, pair in changed.items() if rules.get(name) != "free"}


def resume_rules(config: Any, prefix: str = "", rule: str | Mapping[str, str] = "") -> dict[str, str]:
    """{"section.field": rule} of all fields; see the top of this file."""
    rules = {}
    for f in fields(config):
        above = rule if isinstance(rule, str) else rule.get(f.name, "")
        value, own = getattr(config, f.name), f.metadata.get("resume", above)
        inner = resume_rules(value, f"{prefix}{f.name}.", own) if is_dataclass(value) else {}
        rules |= inner or {f"{prefix}{f.name}": own}
    return rules


def must_stay(rule: str, old: Any, new: Any) -> bool:
    """Whether the rule forbids a resumed run to change a field from `old` to `new`."""
    if rule == "switch":
        return (old == 0) != (new == 0)
    if rule == "scaled":
        return new == "fp16"
    return len(old) != len(new) if rule == "count" else rule == "fixed"


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        flat |= inner
    return flat


def load_config(path: Path) -> Config:
    """Read a saved config.yaml.

    Raises:
        ValueError: not YAML, an unknown field or a value of the wrong type; names the file and the field.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a configuration: it holds no fields")
    return parse_config(values, str(path))


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """The inverse of `plain_config`.

    Args:
        source: where the values come from, for messages.

    Raises:
        ValueError: an unknown field or a value of the wrong type; names the source and the field.
    """
    try:
        return dacite.from_dict(Config, values, dacite.Config(strict=True, cast=[tuple, Path]))
    except dacite.DaciteError as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error


def _plain(value: object) -> object:
    """Tuples as lists: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
