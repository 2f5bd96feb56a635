"""The commands of the tutorial run as they are written, on fewer pictures and for fewer steps."""

import re
import shlex
from pathlib import Path

import pytest

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines

PAGE = (Path(__file__).parent.parent / "docs/tutorial.md").read_text()
SMALLER = {"COUNT = 500": "COUNT = 10", "--train.steps 300": "--train.steps 4 --data.workers 0"}


@pytest.mark.slow
def test_the_tutorial_leads_from_pictures_to_predictions(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    page = PAGE
    for written, smaller in SMALLER.items():
        assert written in page
        page = page.replace(written, smaller)
    ran = []
    for language, text in re.findall(r"^```(python|sh)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), {})
        for command in text.splitlines() if language == "sh" else ():
            assert dispatch(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
            ran.append(shlex.split(command)[1])
    assert {"shards", "analyze", "train", "eval", "plan", "predict", "export"} == set(ran)
    answers = read_json_lines(tmp_path / "predictions.jsonl")
    assert len(answers) == 11
    assert all(set(answer["names"]) < {"dots", "checks", "stripes"} for answer in answers)
    assert (tmp_path / "analysis/analysis.html").exists()
    assert (tmp_path / "exported/model.onnx").exists()
    assert (tmp_path / "runs/photos/eval/report.html").exists()
