"""The peak of a device, of which MFU is a share: the data sheet's, and the measured one."""

import time
from typing import NamedTuple

import torch

SIDE, REPEATS = 8192, 20  # of the measured product; some milliseconds on a GPU of 2020 and later

# Dense bf16 peak in TFLOP/s by device name, from the vendor's data sheets.
PEAK_TFLOPS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "GB200": 2500.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}


class Peaks(NamedTuple):
    """TFLOP/s of a device; None if it is unknown.

    sheet: as configured, or from the vendor's data sheet.
    measured: the best of some large matrix products in bf16; not measured on a CPU.
    """

    sheet: float | None
    measured: float | None


def find_peaks(device: torch.device, stated: float | None) -> Peaks:
    """The peaks of a device; takes a fraction of a second on a GPU."""
    measured = measure_tflops(device, SIDE, REPEATS) if device.type == "cuda" else None
    return Peaks(peak_tflops(device, stated), measured)


def measure_tflops(device: torch.device, side: int, repeats: int) -> float:
    """TFLOP/s of a product of two bf16 matrices [side, side]: the best of `repeats`, after a warm-up."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in "ab")
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:]) / 1e12


def peak_tflops(device: torch.device, stated: float | None) -> float | None:
    """The peak of the data sheet in TFLOP/s: as configured, from the table, or None if it is unknown."""
    if stated is not None or device.type != "cuda":
        return stated
    name = torch.cuda.get_device_name(device)
    # "L4" is also the start of "L40" and "B200" the end of "GB200": the longest match is the device.
    matches = [part for part in PEAK_TFLOPS if part in name]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None
