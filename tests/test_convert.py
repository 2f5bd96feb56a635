"""Imported weights give what their own implementations gave, with all patch sizes in one pack."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from packvit.models import PackedViT, load_model
from packvit.packing import PackedBatch

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name.split(".")[0] for path in GOLDEN.glob("*.expected.npz"))


def load(name: str) -> PackedViT:
    path = next(GOLDEN.glob(f"{name}.weights.*"))
    return load_model(path) if path.suffix == ".npz" else load_model(path, heads=4)


def cases(name: str):
    """(image [H, W, 3], patch size, {output: expected}) for every image and patch size of a golden file."""
    with np.load(GOLDEN / f"{name}.expected.npz") as file:
        data = {key: file[key] for key in file.files}
    if name.startswith("big_vision"):
        for key in (k for k in data if k.startswith("logits")):
            side = int(key.split("=")[1])
            for i, image in enumerate(data["image"]):
                features = data[key.replace("logits", "pre_logits")][i]
                yield image, 120 // side, {"logits": data[key][i], "features": features}
    elif name == "timm_flexivit":
        yield data["image"], 16, {"logits": data["logits"][0]}
    else:
        for key in (k for k in data if k.startswith("image_")):
            case = key.removeprefix("image_")
            patch = re.search(r"_p(\d+)", case)
            outputs = {k.removesuffix("_" + case): v[0] for k, v in data.items() if k.endswith("_" + case)}
            yield (
                data[key],
                int(patch[1]) if patch else 16,
                {k: v for k, v in outputs.items() if k != "image"},
            )


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs_with_every_patch_size_in_one_pack(cut_image, name: str):
    model = load(name)
    images, patch_sizes, expected = zip(*cases(name), strict=True)
    cut = [cut_image(image, p) for image, p in zip(images, patch_sizes, strict=True)]
    seq_len = max(len(c.patches) for c in cut)
    one_row = PackedBatch.build([cut], sum(len(c.patches) for c in cut))
    own_rows = PackedBatch.build([[c] for c in cut], seq_len)
    for batch in (one_row, own_rows):
        got = {"logits": model(batch), "features": model.features(batch)}
        got["pooler_output"] = got["features"]
        got["last_hidden_state"] = [t.flatten(0, 1) for t in model.tokens(batch)]
        for i, outputs in enumerate(expected):
            for key, value in outputs.items():
                torch.testing.assert_close(got[key][i], torch.from_numpy(value), atol=1e-4, rtol=0)
