"""plan.json: what is written is read, and what is wrong is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packvit.evaluate.plan.plan import (
    Measured,
    Plan,
    PlannedModel,
    Preprocessing,
    Stage,
    read_plan,
    write_plan,
)
from packvit.evaluate.setting import Setting

SHARES = st.floats(0, 1)
TEMPERATURES = st.floats(0.01, 100)
SETTINGS = st.one_of(
    st.builds(Setting, st.integers(1, 64), st.integers(1, 512), st.none(), st.just("crop:0.75")),
    st.builds(Setting, st.integers(1, 64), st.none(), st.integers(1, 512), st.just("square")),
)
LAST = st.builds(Stage, SETTINGS, TEMPERATURES, st.none())
OTHERS = st.lists(st.builds(Stage, SETTINGS, TEMPERATURES, SHARES), max_size=2)
THREE = st.tuples(*[st.floats(0.1, 1)] * 3)
PLANS = st.builds(
    Plan,
    st.builds(PlannedModel, st.text(), st.text()),
    st.builds(lambda others, last: (*others, last), OTHERS, LAST),
    st.builds(Preprocessing, THREE, THREE),
    st.builds(Measured, SHARES, SHARES, SHARES, st.none() | SHARES, SHARES, SHARES, st.none() | SHARES),
    st.none() | st.lists(st.text(), max_size=3).map(tuple),
    st.just(({"budget": 1.5, "single": None},)) | st.just(()),
)
EXAMPLE = Plan(
    PlannedModel("runs/a", "ab" * 32),
    (Stage(Setting(8, 32), 1.1, 0.9), Stage(Setting(8, tokens=64, protocol="crop:0.875"), 1.0)),
    Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    Measured(0.9, 0.8, 0.95, None, 10, 0.1, None),
    ("cat", "dog"),
)


@settings(max_examples=20)  # each waits for the disk
@given(PLANS)
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, plan):
    path = tmp_path_factory.getbasetemp() / "plans" / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan


def test_a_plan_has_the_documented_fields():
    values = EXAMPLE.to_dict()
    assert values["stages"][1] == {
        "setting": "t64-p8-crop0.875",
        "resolution": None,
        "patch_size": 8,
        "tokens": 64,
        "protocol": "crop:0.875",
        "temperature": 1.0,
        "threshold": None,
    }
    assert values["preprocessing"]["resize"] == "bicubic_antialias"
    assert values["preprocessing"]["decode"] == "whole"


def test_a_plan_of_another_model_is_refused():
    EXAMPLE.check("ab" * 32)
    with pytest.raises(ValueError, match="another model, runs/a"):
        EXAMPLE.check("cd" * 32)


def place(values: Any, path: str) -> tuple[Any, Any]:
    """The object that holds a field, and the field's name or index."""
    *outer, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in outer:
        values = values[part]
    return values, name


FIELDS = [
    ("model", [], "model' must be an object, not a list"),
    ("model.hash", 3, "model: field 'hash' must be text, not 3"),
    ("stages", [], "stages must not be empty"),
    ("stages.0", 1, "stages[0] must be an object, not 1"),
    ("stages.0.patch_size", 8.5, "stages[0]: field 'patch_size' must be a whole number, not 8.5"),
    ("stages.0.patch_size", 0, "stages[0]: patch_size=0"),
    ("stages.0.patch_size", 9, "stages[0]: setting 'r32-p8' does not fit"),
    ("stages.0.tokens", 9, "stages[0]: a setting has either"),
    ("stages.1.protocol", "crop:2", "stages[1]: protocol 'crop:2'"),
    ("stages.1.temperature", True, "stages[1]: field 'temperature' must be a number, not True"),
    ("stages.1.temperature", None, "stages[1]: field 'temperature' must be a number, not null"),
    ("stages.1.temperature", 0, "stages[1]: temperature=0"),
    ("stages.0.threshold", 1.5, "stages[0]: threshold=1.5 must lie in"),
    ("stages.0.threshold", None, "stages[0]: threshold=None: all stages but the last"),
    ("stages.1.threshold", 0.5, "stages[1]: threshold=0.5: the last stage"),
    ("preprocessing.mean", [0.5], "preprocessing: mean must have 3 values, not 1"),
    ("preprocessing.std", [0.5, 0, 0.5], "preprocessing: std="),
    ("preprocessing.resize", "nearest", "preprocessing: resize='nearest'"),
    ("classes.1", 2, "classes[1] must be text, not 2"),
    ("measured.accuracy", None, "measured: field 'accuracy' must be a number, not null"),
    ("curve", [1], "curve[0] must be an object"),
]


@pytest.mark.parametrize(("path", "value", "what"), FIELDS)
def test_a_wrong_value_is_named_with_its_field(tmp_path, path, value, what):
    values = EXAMPLE.to_dict()
    holder, name = place(values, path)
    holder[name] = value
    refuse(tmp_path / "plan.json", json.dumps(values), what)


@pytest.mark.parametrize(
    "path", ["model", "stages.0.threshold", "preprocessing.decode", "measured.accuracy_low"]
)
def test_a_missing_or_unknown_field_is_named(tmp_path, path):
    values = EXAMPLE.to_dict()
    holder, name = place(values, path)
    value = holder.pop(name)
    refuse(tmp_path / "plan.json", json.dumps(values), f"field {name!r} is missing")
    holder |= {name: value, "colour": 1}
    refuse(tmp_path / "plan.json", json.dumps(values), "unknown field 'colour'")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": NaN}', "[" * 100_000, '{"a": 1e999}'])
def test_a_damaged_file_is_named(tmp_path, text):
    refuse(tmp_path / "plan.json", text, "damaged|missing")


def refuse(path: Path, text: str, what: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(what) if "|" not in what else what) as error:
        read_plan(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"plan\.json cannot be read"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_without_a_curve_is_one(tmp_path):
    values = EXAMPLE.to_dict()
    del values["curve"]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert read_plan(tmp_path / "plan.json") == EXAMPLE
