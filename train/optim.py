"""AdamW or Muon with weight decay on weight matrices only, and the moving average of the weights."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from packvit.train.config import OptimConfig


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """The optimizers that together hold every parameter once; `set_lr` gives each group its learning rate.

    `adamw` has three groups: weight matrices of the body, of the head, and everything that never decays,
    which are biases, norms, position tables, probes and registers (FlexiViT, NaViT: kernels only). `muon`
    takes the blocks' matrices out of the first and orthogonalises their updates (Jordan et al. 2024), scaled
    to the size of AdamW's (arXiv 2502.16982, 2.2); embedding, pooling and head stay with AdamW.
    """
    hidden, body, head, rest = [], [], [], []
    for name, parameter in model.named_parameters():
        if not is_kernel(name, parameter):
            rest.append(parameter)
        elif name.startswith("head."):
            head.append(parameter)
        elif config.kind == "muon" and name.startswith("blocks.") and parameter.ndim == 2:
            hidden.append(parameter)
        else:
            body.append(parameter)
    groups = [
        {"params": body, "weight_decay": config.weight_decay, "peak_lr": config.lr},
        {"params": head, "weight_decay": config.head_weight_decay, "peak_lr": config.lr},
        {"params": rest, "weight_decay": 0.0, "peak_lr": config.lr},
    ]
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
    ]
    if hidden:
        group = {"params": hidden, "peak_lr": config.muon_lr}
        optimizers.append(
            torch.optim.Muon(
                [group],
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


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
