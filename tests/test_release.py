"""What is released works where nothing but its core dependencies is installed."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV"}  # variables that would show the checkout to the wheel
PROGRAM = """
import sys
from importlib.util import find_spec

import numpy as np
import packvit

assert "torch" not in sys.modules
assert find_spec("matplotlib") is None and find_spec("huggingface_hub") is None
images = [np.full((32, 48, 3), 9, np.uint8), np.zeros((24, 24, 3), np.uint8)]
batch = packvit.pack_images(images, patch_size=[8, 12])
model = packvit.PackedViT(packvit.ViTConfig(width=32, depth=1, heads=2, num_classes=5)).eval()
assert model(batch).shape == (2, 5)
print(packvit.__version__, packvit.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment["COLUMNS"] = "200"  # tables are cut to the width of a terminal
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_in_a_new_environment_with_core_dependencies_alone(tmp_path):
    without = shutil.ignore_patterns(
        ".git", ".venv*", ".site", "build", "runs", "tests", "docs", "*.egg-info"
    )
    source = shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=without)
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "-q", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("packvit-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(python, *pip, "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    version, place = run(python, "-c", PROGRAM, cwd=tmp_path).split()
    assert version == PROJECT["version"]
    assert Path(place).is_relative_to(tmp_path / "venv")
    assert "FlexiViT" in run(tmp_path / "venv/bin/packvit", "train", "--recipes", cwd=tmp_path)


def test_the_citation_leaves_the_version_to_the_project_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in citation
    assert citation["license"] == PROJECT["license"]
    assert citation["title"].startswith(f"{PROJECT['name']}:")
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
