"""AdamW with weight decay on weight matrices only, and the moving average of the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from packvit.train.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over three groups: weight matrices of the body, of the head, and everything that never decays.

    Biases, norms, position tables, probes and registers do not decay (FlexiViT, NaViT: kernels only).
    """
    body, head, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not is_kernel(name, parameter):
            rest.append(parameter)
        elif name.startswith("head."):
            head.append(parameter)
        else:
            body.append(parameter)
    groups = [
        {"params": body, "weight_decay": config.weight_decay},
        {"params": head, "weight_decay": config.head_weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


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
