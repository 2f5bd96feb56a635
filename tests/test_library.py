"""What the documentation shows of packvit as a library runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packvit.models import PackedViT, ViTConfig, save_model

ROOT = Path(__file__).parent.parent


def run_blocks(page: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a page's blocks of Python, each by itself; returns the names that each has at its end."""
    found = []
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)):
        own = dict(names)
        exec(compile(code, f"{page}, block {number}", "exec"), own)
        found.append(own)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch, digits_set) -> Path:
    """A working folder with the shards and the run that the pages name."""
    (tmp_path / "shards").symlink_to(digits_set)
    save_model(PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10)), tmp_path / "runs/digits")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_scripts_of_the_page_on_the_library_run(folder, capsys):
    torch.manual_seed(0)
    packer, loader = run_blocks("docs/library.md", {})
    assert sorted(length for one in packer["packed"] for _, length in one) == sorted(
        map(len, packer["documents"])
    )
    sequences = re.match(r"(\d+) sequences, ([\d.]+)% padding", capsys.readouterr().out)
    assert sequences is not None
    assert float(sequences[2]) < 10  # in their order they would pad about 25%
    assert loader["loss"].isfinite()
    assert loader["loader"].start == 11  # batches that were taken


def test_the_python_of_the_readme_runs(folder):
    photo, scan = np.zeros((40, 60, 3), np.uint8), np.full((24, 24, 3), 255, np.uint8)
    with torch.no_grad():
        assert run_blocks("README.md", {"photo": photo, "scan": scan})
