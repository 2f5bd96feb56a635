"""AdamW or Muon with weight decay on weight matrices only, and the moving average of the weights."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from packvit.models import PackedViT
from packvit.train.config import OptimConfig


def make_optimizers(model: PackedViT, config: OptimConfig, maps: Sequence[nn.Linear] = ()) -> list[Optimizer]:
    """The optimizers that together hold every parameter once; `set_lr` gives each group its learning rate.

    `adamw` has three groups: weight matrices of the body, of the head, and everything that never decays,
    which are biases, norms, position tables, probes and registers (FlexiViT, NaViT: kernels only). `muon`
    takes the blocks' matrices out of the first and orthogonalises their updates (Jordan et al. 2024), scaled
    to the size of AdamW's (arXiv 2502.16982, 2.2); embedding, pooling and head stay with AdamW. With
    `layer_decay` each block's parameters are a group of their own (BEiT, arXiv 2106.08254, A). `maps`, from
    the model's outputs to teachers' widths, count as what comes after the blocks.
    """
    depth = len(model.blocks)
    adamw: dict[tuple, dict] = {}
    muon: dict[tuple, dict] = {}
    after = nn.ModuleDict({"maps": nn.ModuleList(maps)})
    for name, parameter in chain(model.named_parameters(), after.named_parameters()):
        if not parameter.requires_grad:
            continue
        decay, hidden = 0.0, False
        if is_kernel(name, parameter):
            decay = config.head_weight_decay if name.startswith("head.") else config.weight_decay
            hidden = config.kind == "muon" and name.startswith("blocks.") and parameter.ndim == 2
        scale = config.layer_decay ** (depth + 1 - layer_of(name, depth))
        groups, peak = (muon, config.muon_lr * scale) if hidden else (adamw, config.lr * scale)
        group = groups.setdefault((decay, peak), {"params": [], "weight_decay": decay, "peak_lr": peak})
        group["params"].append(parameter)
    optimizers: list[Optimizer] = []
    if adamw:
        optimizers.append(
            torch.optim.AdamW(list(adamw.values()), config.lr, config.betas, config.eps, fused=True)
        )
    if muon:
        optimizers.append(
            torch.optim.Muon(
                list(muon.values()),
                config.muon_lr,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1..depth for the blocks, depth + 1 for what comes after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed.", "pos_embed.", "prefix", "pre_norm.")) else depth + 1


def freeze(model: nn.Module, starts: Sequence[str]) -> None:
    """Stop the training of all parameters whose names start with one of `starts`; `body` is all but the head.

    Raises:
        ValueError: one of `starts` is no parameter's, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in starts:
        found = [n for n in names if (not n.startswith("head.") if start == "body" else n.startswith(start))]
        if not found:
            raise ValueError(
                f"optim.freeze={start!r} is the start of no parameter's name: {', '.join(names)}"
            )
        for name in found:
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("optim.freeze leaves no parameter to train")


def set_lr(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Every group's learning rate is its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def is_kernel(name: str, parameter: Tensor) -> bool:
    """Whether a parameter multiplies activations: the weights of linear layers and of the patch embedding."""
    return parameter.ndim >= 2 and name.endswith("weight") and not name.startswith("pos_embed.")


@torch.no_grad()
def update_ema(average: Iterable[Tensor], current: Iterable[Tensor], decay: float, updates: int) -> None:
    """average <- decay * average + (1 - decay) * current, in place.

    The decay grows with the number of `updates` made before: early averages forget the initialisation.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    get_ema_multi_avg_fn(decay)(list(average), list(current), updates)
