"""Files of JSON lines survive a kill, and hold nothing but JSON."""

import json

import pytest

from packvit.common.json_lines import JsonLines, read_json_lines


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, 0)
    for step in range(1, 6):
        log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    JsonLines(path, 3).write({"step": 4, "again": True})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        JsonLines(path, 3)


ZEROS = {
    "a whole block": '{"step": 1}\n{"step": 2}\n' + "\0" * 4096,
    "lines of zeros": '{"step": 1}\n{"step": 2}\n\0\0\0\n\0\0\n',
    "half a line": '{"step": 1}\n{"step": 2}\n{"st\0\0\0\0\n',
    "other rubbish": '{"step": 1}\n{"step": 2}\n5\n\udcff\udcfe\n',
    "a line behind them": '{"step": 1}\n' + "\0" * 50 + '{"step": 2}\n',
}


@pytest.mark.parametrize("kind", ZEROS)
def test_what_a_loss_of_power_leaves_at_the_end_does_not_stop_a_resume(kind, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(ZEROS[kind], errors="surrogateescape")
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    JsonLines(path, 2).write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    said = capsys.readouterr().err
    removed = {"lines of zeros": 2, "half a line": 1, "other rubbish": 2}.get(kind)
    expected = f"{path}: its last {removed} lines are damaged and were removed\n" if removed else ""
    assert said == expected


def test_other_ranks_write_nothing(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl", 0, write=False).write({"step": 1})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_lines_are_json(tmp_path):
    line = {"step": 1, "x": None, "nan": float("nan"), "by": {"8": float("inf")}, "list": [1.5]}
    JsonLines(tmp_path / "a.jsonl", 0).write(line)
    written = json.loads((tmp_path / "a.jsonl").read_text())
    assert written == {"step": 1, "x": None, "nan": None, "by": {"8": None}, "list": [1.5]}
