"""The sizes that the documentation promises are those that models have."""

import re
from pathlib import Path

import pytest
import torch

from packvit.models import PackedViT
from packvit.models.presets import PRESETS, preset

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()
ROWS = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) M \| ([\d.]+) \|$", PAGE, re.M)


def test_every_preset_is_in_the_documentation():
    assert [row[0] for row in ROWS] == list(PRESETS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_presets_have_the_parameters_and_flops_of_the_documentation(row):
    name, *numbers = row
    config = preset(name)
    with torch.device("meta"):
        model = PackedViT(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = config.flops((224 // 16) ** 2, 16)
    assert [config.width, config.depth, config.heads, config.hidden] == list(map(int, numbers[:4]))
    assert numbers[4:] == [f"{parameters / 1e6:.1f}", f"{flops / 1e9:.1f}"]
