"""The command that measures on a GPU: what it makes of parts that fail, and that its parts run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dry.roofline import predict
from dry.stub import source
from gpu.__main__ import LIMITS, problems, status_of
from gpu.batches import make_batch, segments_of
from gpu.compiling import count_graphs, fresh
from gpu.options import Options
from gpu.page import lines_of
from gpu.part import PARTS
from gpu.results import load, replace_section, save, slug
from gpu.standins import Finder, Nothing
from packvit.models import preset

CPU = Options(torch.device("cpu"), tiny=True)


def test_batches_are_full_and_of_all_patch_sizes():
    batch = make_batch(3, 256, (8, 16, 48), seed=1)
    assert batch.num_slots == 768
    assert batch.stats().padding_fraction < 0.02
    assert sorted(batch.patches) == [(8, 8), (16, 16), (48, 48)]
    assert segments_of(batch).sum() == 768
    assert batch.labels is not None
    again = make_batch(3, 256, (8, 16, 48), seed=1)
    assert all(torch.equal(batch.patches[shape], again.patches[shape]) for shape in batch.patches)


@pytest.mark.parametrize(
    ("code", "result", "status"),
    [
        (0, {"a": 1}, "ok"),
        (0, {"skipped": "no data"}, "skipped"),
        (0, {}, "failed"),
        (1, {"a": 1}, "failed"),
        (0, {"a": {"error": "it waits"}}, "failed"),
        (None, {"a": 1}, "out of time"),
    ],
)
def test_how_a_part_ended(code, result, status):
    assert status_of(code, result) == status


def test_a_failed_part_and_a_slower_step_make_the_command_fail():
    ok = {"status": "ok", "result": {"B": {"tflops": 94.0}}}
    waits = {"status": "failed", "result": {"Muon": {"error": "it waits"}}}
    late = {"status": "out of time", "result": {}}
    results = {"parts": {"mfu": ok, "syncs": waits, "peers": late}}
    assert problems(results, ["mfu", "syncs", "peers"], {"B": 100.0}) == [
        "syncs: Muon: it waits",
        "peers: out of time",
        "B was 100 -6.0%",
    ]
    assert problems(results, ["mfu"], {"B": 98.0}) == []


def test_every_part_has_a_limit_and_a_module():
    assert list(LIMITS) == list(PARTS)
    for name in PARTS:
        assert callable(importlib.import_module(f"gpu.parts.{name}").run)


@pytest.mark.parametrize("name", ["peaks", "syncs", "patch_sizes", "attention"])
def test_parts_run_on_a_cpu(name):
    found = dict(importlib.import_module(f"gpu.parts.{name}").run(CPU))
    json.dumps(found)
    assert status_of(0, found) == "ok"


def test_graphs_are_counted_after_every_batch():
    fresh()
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", dynamic=False)
    counts = count_graphs(lambda n: compiled(torch.ones(n)), [3, 3, 4, 4])  # pyright: ignore[reportArgumentType]
    fresh()
    assert counts["graphs"] == [1, 1, 2, 2]
    assert counts["recompiles"] == 1


def test_results_and_sections_of_the_page(tmp_path: Path):
    assert slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    path = tmp_path / "gpu-x.json"
    assert load(path) == {}
    save(path, {"a": 1})
    assert load(path) == {"a": 1}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu -->\nold\n<!-- /gpu -->\nafter\n")
    for _ in range(2):
        replace_section("gpu", ["new"], page)
    assert page.read_text() == "before\n<!-- gpu -->\n\nnew\n\n<!-- /gpu -->\nafter\n"


def test_the_page_shows_what_there_is():
    cell = {"tflops": 400.0, "ms": 80.0, "tokens_per_s": 1e6, "images_per_s": 4e3, "gb": 40.0}
    mfu = {"B, 65536, compiled": cell, "L, 65536, compiled": {"not_measured": "out of memory"}}
    parts = {"mfu": mfu, "peaks": {"matmul_tflops": 800.0, "data_sheet_tflops": 1000.0}}
    entry = {"status": "ok", "seconds": 3.0, "commit": "abc"}
    results = {"device": "X", "parts": {name: {**entry, "result": part} for name, part in parts.items()}}
    text = "\n".join(lines_of(results))
    assert "| B, 65536, compiled | 80.0 | 1,000,000 | 50.0 | 40.0 | 40.0 |" in text
    assert "| L, 65536, compiled | out of memory | " in text


def test_stand_ins_let_imports_succeed():
    program = """
from gpu.standins import install
install(["absent", "gone"])
import absent.inner
from gone import name, Kind, KindError
assert name(1).other and issubclass(type("Own", (Kind,), {}), Kind)
print(issubclass(KindError, Exception))
"""
    # The folder of the scripts, as make gives it.
    path = next(entry for entry in sys.path if entry.endswith("benchmarks"))
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
    assert Finder(["absent"]).find_spec("present") is None
    assert isinstance(Nothing()(1), Nothing)


def test_the_stub_answers_every_call_of_the_driver():
    text = source(["cuInit", "cuLaunchKernel"])
    assert "int cuLaunchKernel() { return 100; }" in text
    assert "int cuInit(unsigned) { return 0; }" in text
    assert text.count("cuInit") == 1


def test_the_prediction_grows_with_what_it_is_made_of():
    segments, traffic = np.full(256, 256), {"block": 8.0, "ends": 30.0}
    base = predict(preset("B"), segments, 256, traffic, waits=0)
    assert base["ms_a_step"] == pytest.approx(sum(base["ms"].values()), abs=0.3)
    # 6 FLOPs a weight and token, at 87 % of the rate.
    products = 6 * 12 * 12 * 768**2 * 65_536 / (790e12 * 0.87) * 1e3
    assert base["ms"]["products"] == pytest.approx(products, abs=0.1)
    assert predict(preset("B"), segments, 256, traffic, waits=1)["mfu"] < base["mfu"]
    lean = predict(preset("B"), segments, 256, {"block": 4.0, "ends": 10.0}, waits=0)
    assert lean["mfu"] > base["mfu"]
    longer = predict(preset("B"), np.full(64, 1024), 64, traffic, waits=0)
    assert longer["ms"]["attention"] == pytest.approx(4 * base["ms"]["attention"], abs=0.3)
