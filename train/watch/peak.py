"""The peak of a device, of which MFU is a share."""

import torch

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


def peak_tflops(device: torch.device, stated: float | None) -> float | None:
    """The device's peak in TFLOP/s: as stated, from the table, or None where it is unknown."""
    if stated is not None or device.type != "cuda":
        return stated
    name = torch.cuda.get_device_name(device)
    # "L4" is also the start of "L40" and "B200" the end of "GB200": the longest match is the device.
    matches = [part for part in PEAK_TFLOPS if part in name]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None
