"""AdamW, Muon or SGD, with weight decay on weight matrices only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from packvit.models import PackedViT
from packvit.train.step.muon import Muon


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate over time.

    Args:
        kind: `adamw`; `muon` for the matrices of the blocks and AdamW for the rest; or `sgd`.
        lr: peak learning rate of AdamW or SGD.
        muon_lr: peak learning rate of Muon, whose updates have the size of AdamW's at the same rate.
        momentum: momentum of Muon and SGD.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        weight_decay: decoupled, times the learning rate (PyTorch's convention), on weight matrices only. SGD
            adds it to the gradient.
        head_weight_decay: weight decay of the classification head (NaViT: 0.03 body, 3.0 head).
        layer_decay: factor of the learning rate from each block to the previous one; 1: no decay (BEiT A).
        lr_factors: (prefix, factor) for the learning rates of parameters whose names start with the prefix,
            such as `("text.", 0.1)`. The model's names start with `model.`, those of a task's heads with the
            head's name; if several prefixes match, the longest applies.
        weight_decays: (prefix, decay), which replaces the two above for weight matrices, in the same way.
        freeze: name prefixes of parameters to freeze; `body` is everything except the head.
        schedule: shape of the learning rate; see packvit.train.step.step.
        warmup: length of the linear rise from 0 to the peak. This and the next two are in the unit of the
            run's length: steps, or images, tokens or GFLOPs if `train.images`, `train.tokens` or
            `train.gflops` is set.
        timescale: when `rsqrt` begins to fall; at least the warm-up.
        cooldown: length of the linear fall to 0 at the end.
        clip: largest global gradient norm; 0 does not clip.
    """

    kind: Literal["adamw", "muon", "sgd"] = field(default="adamw", metadata={"resume": "fixed"})
    lr: float = 1e-3
    muon_lr: float = 1e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    head_weight_decay: float = 0.05
    layer_decay: float = 1.0
    lr_factors: tuple[tuple[str, float], ...] = ()
    weight_decays: tuple[tuple[str, float], ...] = ()
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
        for name in ("lr_factors", "weight_decays"):
            for prefix, value in getattr(self, name):
                if value < 0:
                    raise ValueError(f"optim.{name}: {value} of {prefix!r} must not be negative")


def make_optimizers(
    model: PackedViT,
    config: OptimConfig,
    heads: Sequence[nn.Module] = (),
    names: Mapping[nn.Parameter, str] | None = None,
) -> list[Optimizer]:
    """The optimizers that together hold every parameter once; each group has its peak learning rate.

    `adamw` has three groups: weight matrices of the body, of the head, and everything that never decays,
    which are biases, norms, position tables, probes and registers (FlexiViT, NaViT: kernels only). `muon`
    takes the blocks' matrices out of the first; embedding, pooling and head remain with AdamW. With
    `layer_decay`, each block's parameters are a group of their own (BEiT, arXiv 2106.08254, A). `heads`,
    which a task adds to the model, are treated like the layers after the blocks. `sgd` has the groups of
    `adamw`.

    Args:
        names: names of all parameters, for the prefixes of `lr_factors` and `weight_decays`; None: those of
            the model.

    Raises:
        ValueError: no parameter's name starts with a prefix.
    """
    names = {p: f"model.{name}" for name, p in model.named_parameters()} if names is None else names
    for option in ("lr_factors", "weight_decays"):
        for start, _ in getattr(config, option):
            if not any(name.startswith(start) for name in names.values()):
                raise ValueError(f"optim.{option}: no parameter's name starts with {start!r}")
    depth = len(model.blocks)
    adamw: dict[tuple, dict] = {}
    muon: dict[tuple, dict] = {}
    after = nn.ModuleDict({"heads": nn.ModuleList(heads)})
    for name, parameter in chain(model.named_parameters(), after.named_parameters()):
        if not parameter.requires_grad:
            continue
        decay, hidden = 0.0, False
        if is_kernel(name, parameter):
            decay = config.head_weight_decay if name.startswith("head.") else config.weight_decay
            decay = by_prefix(config.weight_decays, names.get(parameter, ""), decay)
            hidden = config.kind == "muon" and name.startswith("blocks.") and parameter.ndim == 2
        scale = config.layer_decay ** (depth + 1 - layer_of(name, depth))
        scale *= by_prefix(config.lr_factors, names.get(parameter, ""), 1.0)
        groups, peak = (muon, config.muon_lr * scale) if hidden else (adamw, config.lr * scale)
        group = groups.setdefault((decay, peak), {"params": [], "weight_decay": decay, "peak_lr": peak})
        group["params"].append(parameter)
    optimizers: list[Optimizer] = []
    match config.kind:
        case "sgd":
            optimizers.append(torch.optim.SGD(list(adamw.values()), config.lr, config.momentum, fused=True))
        case "adamw" | "muon":
            if adamw:
                groups = list(adamw.values())
                optimizers.append(torch.optim.AdamW(groups, config.lr, config.betas, config.eps, fused=True))
            if muon:
                optimizers.append(Muon(muon.values(), config.muon_lr, config.momentum))
        case _ as unknown:
            assert_never(unknown)
    return optimizers


def by_prefix(values: Sequence[tuple[str, float]], name: str, default: float) -> float:
    """The value of the longest prefix of `name`, or `default` if there is none."""
    found = [(len(prefix), value) for prefix, value in values if name.startswith(prefix)]
    return max(found)[1] if found else default


def layer_of(name: str, depth: int) -> int:
    """0 for layers before the blocks, 1..depth for the blocks, depth + 1 for layers after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed.", "pos_embed.", "prefix", "pre_norm.")) else depth + 1


def freeze(model: nn.Module, starts: Sequence[str], heads: Sequence[nn.Module] = ()) -> None:
    """Freeze all parameters of `model` whose names start with one of `starts`.

    Args:
        starts: name prefixes; `body` is everything except the model's head.
        heads: the heads that a task adds to the model; they are not frozen.

    Raises:
        ValueError: no parameter's name starts with one of `starts`, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in starts:
        found = [n for n in names if (not n.startswith("head.") if start == "body" else n.startswith(start))]
        if not found:
            raise ValueError(f"optim.freeze: no parameter's name starts with {start!r}: {', '.join(names)}")
        for name in found:
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for part in (model, *heads) for parameter in part.parameters()):
        raise ValueError("optim.freeze leaves no parameter to train")


def is_kernel(name: str, parameter: Tensor) -> bool:
    """Whether a parameter multiplies activations: the weights of linear layers and of the patch embedding.

    A table from which rows are looked up, of positions or of words, does not.
    """
    looked_up = name.startswith("pos_embed.") or name.endswith(".embed.weight")
    return parameter.ndim >= 2 and name.endswith("weight") and not looked_up
