"""`packvit info` names what a bug report needs, and no secrets."""

import platform
import sys

import torch

from packvit.cli import dispatch, info
from packvit.cli.info import backends, packages


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
