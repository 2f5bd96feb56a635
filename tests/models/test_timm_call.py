"""The call that a conversion prints makes a model of timm's that takes the file.

timm_calls.json holds calls that timm itself has run, and the names and shapes of the models that they made:
their logits were ours within 2e-6, and load_state_dict found every key.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from packvit.cli import dispatch
from packvit.models import PackedViT, ViTConfig, export_model, load_model, save_model
from packvit.models.files.timm_call import timm_call

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/timm_calls.json").read_text())
SMALL = {"width": 16, "depth": 2, "heads": 2, "num_classes": 3, "patch_buffer": 16, "pos_grid": (4, 4)}
SMALL |= {"patch_operator": "bicubic_antialias", "pos_resize": "bicubic_antialias", "qk_norm": "none"}


@pytest.mark.parametrize(
    "case", GOLDEN["calls"], ids=lambda case: "-".join(map(str, case["fields"].values()))
)
def test_a_file_has_the_names_and_shapes_of_the_model_that_the_call_makes(case, tmp_path):
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in case["fields"].items()}
    model = PackedViT(ViTConfig(**{**SMALL, **fields}))
    if model.pre_norm is not None:
        torch.nn.init.zeros_(model.patch_embed.bias)
    export_model(model, tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in written.items()} == case["shapes"]
    assert timm_call(model.config, "FILE") == case["call"]


class StandIn:
    """A model of timm's where timm is not installed: the names and shapes that it has."""

    def __init__(self, name: str, **fields: int) -> None:
        call = ", ".join([name, *(f"{key}={value}" for key, value in fields.items())])
        self.state = {key: torch.rand(shape) for key, shape in GOLDEN[call].items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        shapes = {key: tensor.shape for key, tensor in state.items()}
        assert shapes == {key: tensor.shape for key, tensor in self.state.items()}


def test_the_script_of_the_page_on_models_goes_to_timm_and_back(tmp_path, monkeypatch, capsys):
    [script] = re.findall(
        r"```python\n(import timm\n.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL
    )
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=StandIn))  # pyright: ignore
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    first, again = (load_model(tmp_path / f"{name}.safetensors") for name in ("vit_tiny", "back"))
    assert first.config == again.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    folder = save_model(first, tmp_path / "ours")
    assert dispatch(["convert", str(folder), "printed.safetensors"]) == 0
    printed = (
        "timm.create_model('vit_tiny_patch16_224', num_classes=10, checkpoint_path='printed.safetensors')"
    )
    assert printed in capsys.readouterr().out
