"""What every part is told."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """Where and how large.

    Args:
        device: cuda, or cpu to try the code.
        tiny: sizes with which every part ends in seconds on a CPU; the numbers mean nothing.
    """

    device: torch.device
    tiny: bool
