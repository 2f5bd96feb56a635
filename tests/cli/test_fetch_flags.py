"""Every command that reads shards fetches them as its flags say."""

from pathlib import Path

import pytest

from packvit.cli import dispatch
from packvit.models import PackedViT, ViTConfig, save_model

STALLED = "pipe:sleep 20"  # a source that no byte comes from
COMMON = ["--device", "cpu", "--out", "OUT"]
EVAL = ["eval", "MODEL", "--shards", STALLED, "--resolutions", "16", "--patch-sizes", "8", *COMMON]
TEACH = ["teach", STALLED, "--teacher", "MODEL", "--patch-size", "8", "--resolution", "16", *COMMON]
ANALYZE = ["analyze", "--shards", STALLED, "--out", "OUT", "--workers"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    config = ViTConfig(width=32, depth=1, heads=2, num_classes=10)
    return save_model(PackedViT(config), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "flags",
    [EVAL, TEACH, ["shards", "check", STALLED], [*ANALYZE, "1"], [*ANALYZE, "2"]],
    ids=["eval", "teach", "shards check", "analyze", "analyze in two processes"],
)
def test_a_command_gives_a_stalled_source_up_as_its_flag_says(flags: list[str], model, tmp_path, capsys):
    paths = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    assert dispatch([*(paths.get(flag, flag) for flag in flags), "--fetch.timeout", "0.2"]) == 2
    printed = capsys.readouterr()
    assert "no byte came in 0.2 s" in printed.out + printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_run_gives_stalled_validation_shards_up_as_its_flag_says(run_flags, tmp_path, capsys):
    run = run_flags(tmp_path / "run", data__val_shards=STALLED, data__fetch__timeout=0.2)
    assert dispatch(["train", *run]) == 2
    assert "no byte came in 0.2 s" in capsys.readouterr().err
