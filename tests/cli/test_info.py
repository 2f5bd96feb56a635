"""`packvit info` names what a bug report needs, and no secrets."""

import platform
import re
import sys

import torch

from packvit.cli import dispatch, info
from packvit.cli.info import backends, packages
from packvit.models import (
    PackedViT,
    TextConfig,
    TwoTowers,
    TwoTowersConfig,
    ViTConfig,
    save_model,
    save_two_towers,
    train_tokenizer,
)


def test_info_names_versions_machine_and_backends(capsys, monkeypatch):
    monkeypatch.setenv("PACKVIT_TRACEBACK", "1")
    monkeypatch.setenv("TORCH_SECRET_KEY", "hunter2")
    assert dispatch(["info"]) == 0
    output = capsys.readouterr().out
    for text in (
        torch.__version__,
        platform.python_version(),
        "matplotlib",
        "CPU",
        "cores",
        "memory",
        "cuDNN",
    ):
        assert text in output
    assert "PACKVIT_TRACEBACK    1" in output
    assert "hunter2" not in output


def test_optional_packages_that_are_missing_are_named(monkeypatch):
    real = info.version

    def without(name: str) -> str:
        if name == "einops":
            raise info.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(info, "version", without)
    found = dict(packages())
    assert found["torch"] == torch.__version__
    assert "einops" not in found
    assert "einops" in found["not installed"]


def test_backends_that_cannot_work_here_say_why():
    found = dict(backends())
    assert found["auto"].startswith("sdpa")
    assert found["sdpa"] == found["dense"] == "works"
    for name in ("varlen", "flex", "xformers"):
        assert found[name].startswith("needs a CUDA device"), sys.platform


def test_a_model_is_described_and_no_machine(tmp_path, capsys):
    torch.manual_seed(0)
    config = ViTConfig(width=32, depth=1, heads=2, num_classes=3)
    save_model(PackedViT(config), tmp_path / "one")
    text = TextConfig(width=16, depth=2, heads=2, vocab_size=30, max_tokens=9, embed_dim=3)
    towers = TwoTowersConfig(image=config, text=text, bias=-2.0)
    save_two_towers(TwoTowers(towers), tmp_path / "two")
    train_tokenizer([f"{a}{b}" for a in "abcdef" for b in "abcdef"], 30).save(tmp_path / "two")
    assert dispatch(["info", str(tmp_path / "one")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"model +ViT of width 32, depth 1, .* parameters\n +classes +3\n", output)
    assert "torch" not in output
    assert dispatch(["info", str(tmp_path / "two")]) == 0
    output = capsys.readouterr().out
    for line in (
        r"image tower +ViT of width 32, depth 1, ",
        r"text tower +width 16, depth 2, .* parameters, texts of at most 9 tokens\n",
        r"embeddings +3 channels",
        r"logits +10 x cosine - 2\n",
        r"tokeniser +.*tokenizer\.model, \d+ tokens\n",
    ):
        assert re.search(line, output), line
    assert dispatch(["info", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().out == ""
