"""Profiles: written of the steps asked for, by a run that computes the same."""

import gzip
import json

import torch

from packvit.cli import dispatch
from packvit.models import load_model


def test_a_profile_is_written_and_changes_nothing(run_flags, tmp_path, capsys):
    changes = {"data__workers": 0, "train__checkpoint_every": 100}
    assert dispatch(["train", *run_flags(tmp_path / "a", **changes, train__steps=9)]) == 0
    flags = [*run_flags(tmp_path / "b", **changes, train__steps=9), "--profile", "2"]
    assert dispatch(["train", *flags]) == 0
    folder = tmp_path / "b/profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000006.trace.json.gz",
        "step-00000006.txt",
    ]
    assert "aten::" in (folder / "step-00000006.txt").read_text()
    with gzip.open(folder / "step-00000006.trace.json.gz") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name == "ProfilerStep#5" for name in names) == 1
    assert not any(name == "ProfilerStep#7" for name in names)
    a, b = (load_model(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    # Resumed with other values, which are free to change; too short for a profile, which is said.
    capsys.readouterr()
    flags = run_flags(tmp_path / "a", **changes, train__steps=10, train__profile=1)
    assert dispatch(["train", *flags]) == 0
    output = capsys.readouterr().out
    assert "No profile" in output
    assert "train.profile was" not in output
