"""How far the pixels of training views are from those of a picture that is decoded whole."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from packvit.data.samples.decode import Resize, decode
from packvit.packing import full_view

FILTERS: tuple[Resize, ...] = ("pillow", "torch")


def distances(pictures: Sequence[bytes], sides: Sequence[float], patch_size: int) -> dict[str, list[float]]:
    """Mean and largest difference in grey levels, by filter, to Pillow's filter on the whole picture; and as
    `both` between the two filters.

    Args:
        pictures: JPEGs.
        sides: each picture is shown at each of these sides.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for picture in pictures:
        whole = Image.open(io.BytesIO(picture)).convert("RGB")
        for side in sides:
            view = full_view((whole.height, whole.width), patch_size, side)
            shown = {name: decode(picture, view, (whole.height, whole.width), name) for name in FILTERS}
            exact = np.array(whole.resize((view.width, view.height), Image.Resampling.BICUBIC))
            pairs = {name: (pixels, exact) for name, pixels in shown.items()} | {
                "both": tuple(shown.values())
            }
            for name, (one, other) in pairs.items():
                difference = np.abs(one.astype(int) - other.astype(int))
                found.setdefault(name, []).append((float(difference.mean()), int(difference.max())))
    return {
        name: [round(float(np.mean([mean for mean, _ in some])), 2), max(most for _, most in some)]
        for name, some in found.items()
    }
