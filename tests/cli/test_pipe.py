"""Commands as shards are run only for whoever starts the run."""

from pathlib import Path

import pytest
import yaml

from packvit.cli import dispatch
from packvit.cli import train as train_module
from packvit.cli.train import main


@pytest.fixture
def runs(monkeypatch) -> list:
    """The configurations of the runs that were started."""
    started: list = []
    monkeypatch.setattr(train_module, "run", started.append)
    return started


def saved(tmp_path: Path, **data) -> str:
    config = tmp_path / "theirs.yaml"
    config.write_text(yaml.safe_dump({"data": {"shards": ["a.tar"]} | data}))
    return str(config)


@pytest.mark.parametrize("shards", ["pipe:touch {mark}", "PIPE:touch {mark}", "{{p,q}}ipe:touch {mark}"])
@pytest.mark.parametrize("field", ["shards", "val_shards"])
def test_a_configuration_runs_no_command_unasked(shards, field, tmp_path, runs, capsys):
    mark = tmp_path / "mark"
    path = saved(tmp_path, **{field: ["b.tar", shards.format(mark=mark)]})
    assert dispatch(["train", path]) == 2
    assert "the configuration names a command as shards" in capsys.readouterr().err
    assert not runs
    assert not mark.exists()
    main([path, "--allow-pipe"])
    assert len(runs) == 1


def test_the_command_line_may_name_commands(tmp_path, runs):
    path = saved(tmp_path, shards=["pipe:cat theirs.tar"])
    main([path, "--data.shards=a.tar"])
    main([path, "--data.shards", "pipe:cat mine.tar", "b.tar"])
    main(["digits", "--data.shards=pipe:cat mine.tar"])
    shards = [config.data.shards for config in runs]
    assert shards == [("a.tar",), ("pipe:cat mine.tar", "b.tar"), ("pipe:cat mine.tar",)]


def test_a_refused_command_shows_no_secret(tmp_path, runs, capsys):
    path = saved(tmp_path, shards=["pipe:curl -H 'Authorization: Bearer S3cret' https://host/a.tar"])
    assert dispatch(["train", path]) == 2
    assert "S3cret" not in capsys.readouterr().err
