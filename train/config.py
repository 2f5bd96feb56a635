"""The configuration of a run: composes what each folder owns, reads and writes it as YAML."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import dacite
import tyro
import yaml

from packvit.data import DataConfig
from packvit.models import ViTConfig
from packvit.packing import PackingConfig, ViewsConfig
from packvit.train.distill import EMA, DistillConfig


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate over time.

    Args:
        kind: `adamw`, or `muon` for the matrices of the blocks and AdamW for the rest.
        lr: peak learning rate of AdamW.
        muon_lr, momentum: of Muon; its updates have the size of AdamW's at the same learning rate.
        betas, eps: of AdamW.
        weight_decay, head_weight_decay: decoupled, times the learning rate (PyTorch's convention), on
            weight matrices only; the classification head has its own (NaViT: 0.03 body, 3.0 head).
        layer_decay: factor of the learning rate from each block to the one before it; 1 has none (BEiT A).
        freeze: starts of the names of parameters that stay as they are; `body` is all but the head.
        schedule: shape of the learning rate; see packvit.train.schedule.
        warmup: linear from 0 to the peak. This and the next two count what the run's length counts: steps,
            or images, tokens or GFLOPs where `train.images`, `train.tokens` or `train.gflops` is set.
        timescale: after which `rsqrt` begins to fall; at least the warm-up.
        cooldown: linear to 0 at the end.
        clip: largest global gradient norm; 0 does not clip.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 1e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    head_weight_decay: float = 0.05
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    warmup: int = 500
    timescale: int = 10_000
    cooldown: int = 0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay={self.layer_decay} must lie in (0, 1]")
        for name in ("lr", "muon_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name}={getattr(self, name)} must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum} must lie in [0, 1)")
        for name in ("weight_decay", "head_weight_decay", "warmup", "cooldown", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        steps: length of the run in optimizer steps, unless one of the next two is set.
        images, tokens, gflops: length of the run in images or tokens seen or GFLOPs spent by all ranks,
            teachers included; all 0 counts steps.
        accumulate: batches of each rank in one step.
        checkpoint_every: steps between checkpoints; the last step always saves one.
        keep_checkpoints: newest checkpoints that stay.
        keep_every: checkpoints of steps that it divides stay too; 0 keeps none of them.
        async_checkpoints: write checkpoints in the background, from a copy in host memory.
        log_every: steps between lines of metrics.jsonl.
        loss: `softmax` or, per class, `sigmoid` cross-entropy (NaViT).
        label_smoothing: share of the target spread evenly over the classes.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU; fp16 scales its gradients.
        max_nonfinite: steps in a row whose gradient is not finite; each is skipped, one more stops the run.
        parallel: how several ranks share the model: `ddp` copies it, `fsdp` cuts it into shards.
        ema: decay of the weights' moving average that is evaluated and saved as the model; 0 has none.
        peak_tflops: the device's peak for MFU; None takes it from a table of GPUs where known.
        compile: whether torch.compile fuses what blocks do to each token; auto is on for CUDA and off for a
            CPU, where a C++ compiler is needed. Sums are rounded in another order, so it changes bits.
        trackers: where to show the run besides metrics.jsonl: `tensorboard`, `wandb`.
        profile: steps to record into the run's folder, after some to warm up; 0 records none.
        init: a model, as load_model reads it, whose weights a new run starts with; a head of other classes
            starts anew.
        head_bias: of a head that starts anew; sigmoid losses of many classes start low (big_vision: -10).
        timeout: minutes that a rank waits for the others before it gives up: a rank that died is noticed
            after that long, while a slow checkpoint or shard must not be taken for a dead one.
    """

    steps: int = 1000
    images: int = 0
    tokens: int = 0
    gflops: int = 0
    accumulate: int = 1
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    keep_every: int = 0
    async_checkpoints: bool = False
    log_every: int = 20
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    max_nonfinite: int = 10
    ema: float = 0.0
    peak_tflops: float | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    profile: Annotated[int, tyro.conf.arg(aliases=["--profile"])] = 0
    init: str = ""
    head_bias: float = 0.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if (self.images > 0) + (self.tokens > 0) + (self.gflops > 0) > 1:
            raise ValueError(
                "only one of train.images, train.tokens and train.gflops can be the run's length"
            )
        for name in ("images", "tokens", "gflops", "max_nonfinite", "keep_every", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if not self.timeout > 0:
            raise ValueError(f"train.timeout={self.timeout} must be positive")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema={self.ema} must lie in [0, 1)")

    @property
    def length(self) -> tuple[str, int]:
        """The field of metrics.jsonl that tells how far the run is, and its value at the end."""
        if self.images:
            return "images_seen", self.images
        if self.tokens:
            return "tokens_seen", self.tokens
        if self.gflops:
            return "gflops_seen", self.gflops
        return "step", self.steps


@dataclass(frozen=True)
class EvalConfig:
    """What the trained model is evaluated at.

    Args:
        resolutions, patch_sizes: every pair is one row of eval/results.json; pixels.
        sequences: sequences in a batch.
    """

    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    sequences: int = 8

    def __post_init__(self) -> None:
        if any(value < 1 for value in (*self.resolutions, *self.patch_sizes, self.sequences)):
            raise ValueError("eval.resolutions, eval.patch_sizes and eval.sequences must be positive")


@dataclass(frozen=True)
class Config:
    """A whole run.

    Args:
        run_dir: the run's folder; starting again with the same one resumes.
        seed: of initialisation, data order, views and dropping.
        device: auto takes a GPU when there is one.
        threads: CPU threads of a rank's matrix products, 0 = torch's choice. Sums depend on it, so a run is
            only repeated bit for bit with the same number.
    """

    run_dir: Path = Path("runs/train")
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    model: ViTConfig = field(default_factory=ViTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        for name, value in _flat(plain_config(self)).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{name}={number} must be a finite number")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} must not be negative")
        if EMA in self.distill.teachers and not self.train.ema:
            raise ValueError("distill.teachers names ema, the moving average: set train.ema above 0")
        if self.distill.logits_field and self.data.mix.active:
            raise ValueError("distill.logits_field holds answers to images alone: set data.mix.probability=0")
        if self.data.multi_label and self.distill.needs_labels and self.train.loss == "softmax":
            raise ValueError("data.multi_label: softmax wants one class for an image; set train.loss=sigmoid")
        if self.data.multi_label and self.data.val_shards:
            raise ValueError("data.multi_label: several labels have no accuracy; leave data.val_shards out")
        if self.train.init and self.distill.init:
            raise ValueError("train.init and distill.init both name the weights to start with: give one")


def save_config(config: Config, path: Path) -> None:
    """Write YAML that `load_config` reads back equal."""
    path.write_text(yaml.safe_dump(plain_config(config), sort_keys=False))


def plain_config(config: Config) -> dict:
    """The fields as nested dictionaries, lists, numbers and strings, as YAML and JSON hold them."""
    plain = _plain(asdict(config) | {"run_dir": str(config.run_dir)})
    assert isinstance(plain, dict)
    return plain


# Fields that change nothing of what a run computes, or only what comes after it.
FREE_FIELDS = ("run_dir", "device", "data.workers", "data.val_shards", "data.audit", "data.fetch.", "eval.")
FREE_FIELDS += (
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_",
    "train.async_checkpoints",
    "train.peak_tflops",
    "train.trackers",
    "train.profile",
    "train.init",
    "train.head_bias",
    "train.timeout",
)


def changed_fields(saved: dict, config: Config) -> dict[str, tuple]:
    """{"section.field": (saved value, value now)} of fields that differ and matter to what a run computes.

    Args:
        saved: from `plain_config`; fields that it lacks are new since and count as unchanged.
    """
    old, new = _flat(saved), _flat(plain_config(config))
    changed = {name: (old[name], new[name]) for name in new if name in old and old[name] != new[name]}
    return {name: pair for name, pair in changed.items() if not name.startswith(FREE_FIELDS)}


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
        if not isinstance(values, dict):
            raise ValueError(f"{path} is not a configuration: it holds no fields")
        return dacite.from_dict(Config, values, dacite.Config(strict=True, cast=[tuple, Path]))
    except (yaml.YAMLError, dacite.DaciteError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _plain(value: object) -> object:
    """Tuples as lists: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
