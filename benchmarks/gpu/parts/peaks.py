"""What the device can do at best: matrix products in bf16, and copies in its memory."""

from collections.abc import Iterator
from typing import Any

import torch

from gpu.options import Options
from gpu.timing import best_seconds
from packvit.train.watch.peak import REPEATS, measure_tflops, peak_tflops


def copy_tb_per_s(size: int, device: torch.device) -> float:
    """Best rate of a copy within the device's memory; `size` bytes count twice, read and written."""
    a = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / best_seconds(lambda: b.copy_(a), device, 8, 10) / 1e12


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """TFLOP/s of products, by size and the best; TB/s of copies; the data sheet's TFLOP/s."""
    sides = (128, 256) if options.tiny else (4096, 8192, 16384)
    rates = {str(side): measure_tflops(options.device, side, REPEATS) for side in sides}
    yield "matmul_tflops", max(rates.values())
    yield "matmul_tflops_by_side", rates
    yield "copy_tb_per_s", copy_tb_per_s(2**16 if options.tiny else 2**31, options.device)
    yield "data_sheet_tflops", peak_tflops(options.device, None)
