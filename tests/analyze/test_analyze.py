"""Packing analysis: laws of its numbers, the recommendation's rule, and the command on real files."""

import csv
import json
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.analyze.analysis import NATIVE, AnalysisConfig, analyze, draw_tokens, histogram, recommend
from packvit.analyze.cost import CostConfig, Work, alone, pad_to_longest, sorted_buckets
from packvit.analyze.measure import measure
from packvit.cli import dispatch
from packvit.models import ViTConfig
from packvit.packing import DropConfig, ViewsConfig, derive_seed, draw_view, full_view
from packvit.packing.packers.config import PACKERS

ALGORITHMS = sorted(PACKERS)
SIZES = np.random.default_rng(0).integers(20, 400, (300, 2))
cases = st.integers(1, 40).flatmap(
    lambda limit: st.tuples(st.lists(st.integers(1, limit), min_size=1, max_size=60), st.just(limit))
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=cases, lookahead=st.integers(1, 9))
def test_padding_is_slots_minus_tokens_and_nothing_is_lost(algorithm, case, lookahead):
    lengths, seq_len = np.array(case[0]), case[1]
    packed = measure(lengths, seq_len, algorithm, lookahead)
    slots = packed.sequences * seq_len
    assert packed.images == len(lengths)
    assert packed.tokens + packed.dropped == lengths.sum()
    assert packed.padding_fraction == pytest.approx((slots - packed.tokens) / slots)
    assert packed.images_per_sequence == pytest.approx(len(lengths) / packed.sequences)
    assert 1 <= packed.images_p1 <= packed.images_p99 <= len(lengths)
    if packed.dropped == 0:
        assert packed.fill_drop == 0
        assert packed.squares == (lengths**2).sum()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=cases, model=st.builds(CostConfig, st.integers(1, 64), st.integers(1, 4)))
def test_packed_costs_no_more_than_dense_and_no_less_than_its_tokens(algorithm, case, model):
    lengths, seq_len = np.array(case[0]), case[1]
    packed = measure(lengths, seq_len, algorithm, 4)
    assert model.flops(packed.work) <= model.flops(packed.dense_work)
    assert model.flops(packed.work) >= model.flops(Work(packed.tokens, packed.squares))


@given(data=st.data(), batch=st.integers(1, 9))
def test_sorting_pads_no_more_than_arrival_order(data, batch):
    # Batches are full and all in one sorted run, where neighbours in order of length are the best batches.
    count = batch * data.draw(st.integers(1, 9))
    lengths = np.array(data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count)))
    least, ordered, padded = alone(lengths), sorted_buckets(lengths, batch), pad_to_longest(lengths, batch)
    assert least.slots <= ordered.slots <= padded.slots
    assert least.squares <= ordered.squares <= padded.squares
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    assert padded.slots == sum(len(b) * max(b) for b in batches)


def test_blocks_change_nothing(monkeypatch):
    lengths = np.random.default_rng(1).integers(1, 200, 1000)
    whole = measure(lengths, 256, "oldest_first", 32)
    monkeypatch.setattr("packvit.analyze.measure.BLOCK", 50)
    blocks = measure(lengths, 256, "oldest_first", 32)
    assert replace(blocks, microseconds=0) == replace(whole, microseconds=0)


def test_the_cost_model_is_that_of_the_real_model():
    config = ViTConfig(width=96, depth=5, heads=3, num_classes=10)
    four_blocks = config.flops(100, 16) - replace(config, depth=1).flops(100, 16)
    model = CostConfig(96, 4)
    assert four_blocks == model.flops(alone(np.array([100])))
    assert model.flops(Work(7, 3)) == model.linear_flops(Work(7, 3)) + model.attention_flops(Work(7, 3))


def test_views_are_those_of_training_and_shrink_to_each_length():
    views = ViewsConfig(patch_sizes=(8, 16), drop=DropConfig("beta"))
    tokens = draw_tokens(SIZES, views, (64, 4096), seed=3)
    for i, size in enumerate(SIZES.tolist()):
        drawn, shrunk = (
            draw_view(Random(derive_seed(3, "view", i)), tuple(size), views, limit).num_tokens
            for limit in (None, 64)
        )
        assert tokens[:, i].tolist() == [drawn, shrunk, drawn]
    assert np.array_equal(draw_tokens(SIZES[100:], views, (64, 4096), 3, first=100), tokens[:, 100:])
    native = draw_tokens(SIZES, ViewsConfig(resolution=NATIVE), (), seed=0)[0]
    assert native.tolist() == [full_view((h, w), 16).num_tokens for h, w in SIZES.tolist()]


@given(tokens=st.lists(st.integers(1, 5000), min_size=1, max_size=60).map(np.array))
def test_the_histogram_counts_every_view(tokens):
    result = histogram(tokens)
    assert sum(result["counts"]) == len(tokens)
    assert len(result["edges"]) == len(result["counts"]) + 1
    assert result["edges"][0] == tokens.min()
    widths = np.diff(result["edges"])
    assert min(widths) >= 1
    assert (len(set(widths.tolist())) == 1) or np.percentile(tokens, 99) >= 20 * tokens.min()


def test_the_recommendation_is_the_smallest_length_near_the_best():
    row = measure(np.full(64, 64), 64, "next_fit", 1)
    made = {
        seq_len: replace(row, seq_len=seq_len, sequences=1, tokens=tokens, dropped=dropped)
        for seq_len, tokens, dropped in (
            (128, 127, 0),
            (1024, 1022, 0),
            (2048, 2046, 0),
            (4096, 4094, 0),
            (8192, 8192, 500),
        )
    }
    model = CostConfig()
    roomy = dict.fromkeys(made, 0.0)
    # Waste: 0.8 %, 0.2 %, 0.1 %, 0.05 %, and 6 % that only looks full because tokens were dropped.
    choice, why = recommend(made.values(), roomy, model)
    assert choice.seq_len == 2048
    assert "0.05% at S = 4096" in why
    assert recommend(made.values(), roomy | {2048: 0.2}, model)[0].seq_len == 4096
    assert "20.00% at S = 2048" in recommend(made.values(), roomy | {2048: 0.2}, model)[1]
    assert recommend([made[128]], {128: 0.5}, model)[0].seq_len == 128
    assert "50.00% of the views are longer" in recommend([made[128]], {128: 0.5}, model)[1]


def test_analysis_covers_every_combination_and_repeats_itself():
    config = AnalysisConfig((256, 512), tuple(ALGORITHMS), (8, 64), epochs=2)
    first, second = (analyze(SIZES, ViewsConfig(), config) for _ in range(2))
    assert len(first.rows) == 2 * len(ALGORITHMS) * 2
    assert first.choice in first.rows
    assert all(row["images"] == 2 * len(SIZES) for row in first.rows)
    for one, two in zip(first.rows, second.rows, strict=True):
        assert {**one, "microseconds_per_item": 0} == {**two, "microseconds_per_item": 0}


@pytest.fixture
def sizes_file(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text("height,width\n0,4\n" + "".join(f"{h},{w}\n" for h, w in SIZES.tolist()))
    return path


def test_the_command_on_a_file_of_sizes(tmp_path, sizes_file, capsys):
    out = tmp_path / "out"
    flags = ["--seq-lens", "128", "512", "--lookaheads", "16", "64", "--epochs", "2", "--workers", "1"]
    flags += ["--resolution", "drawn", "native", "--model.width", "192", "--out", str(out)]
    assert dispatch(["analyze", "--sizes-file", str(sizes_file), *flags]) == 0
    printed = capsys.readouterr().out
    assert f"{sizes_file}:2: height '0', width '4'" in printed
    assert "width D = 192" in printed
    report = json.loads((out / "analysis.json").read_text())
    assert (report["images"], report["views"], report["bad_sizes"]["count"]) == (300, 600, 1)
    assert [sampler["name"] for sampler in report["samplers"]] == ["drawn", "native"]
    with (out / "analysis.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(PACKERS) * 2
    for row in rows:
        slots = int(row["sequences"]) * int(row["seq_len"])
        assert float(row["padding_fraction"]) == pytest.approx(1 - int(row["tokens"]) / slots)
    page = (out / "analysis.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 8
    assert "://" not in page
    assert f"Use sequences of S = {report['samplers'][0]['recommendation']['seq_len']} slots" in page


def test_the_command_on_shards_in_several_processes(tmp_path, digits_set, capsys):
    flags = ["--shards", str(digits_set / "train"), "--seq-lens", "256", "--epochs", "3", "--out"]
    reports = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert dispatch(["analyze", *flags, str(out), "--workers", workers]) == 0
        reports.append(json.loads((out / "analysis.json").read_text()))
    assert "120 sizes from" in capsys.readouterr().out
    for report in reports:
        assert report["images"] == 120
        [row] = [r for r in report["samplers"][0]["rows"] if r["algorithm"] == "oldest_first"]
        assert row["images"] == 360
    assert dispatch(["analyze", *flags, str(tmp_path / "few"), "--limit", "50"]) == 0
    assert json.loads((tmp_path / "few" / "analysis.json").read_text())["images"] == 50


def test_without_matplotlib_the_page_has_no_plots_and_says_so(tmp_path, sizes_file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    flags = ["--seq-lens", "256", "--epochs", "1", "--workers", "1", "--out", str(out)]
    assert dispatch(["analyze", "--sizes-file", str(sizes_file), *flags]) == 0
    assert "The page has no plots: plots need matplotlib" in capsys.readouterr().out
    page = (out / "analysis.html").read_text()
    assert "pip install" in page
    assert "Use sequences of S = 256 slots" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name either --shards or --sizes-file"),
        (["--shards", "/none.tar"], "/none.tar: no such shard"),
        (["--sizes-file", "FILE", "--seq-lens", "0"], "seq_len=0"),
        (["--sizes-file", "FILE", "--algorithms", "middle_out"], "algorithm='middle_out' is not one of"),
        (["--sizes-file", "FILE", "--seq-lens", "8", "8"], "seq_lens names a value twice: 8, 8"),
        (["--sizes-file", "FILE", "--seq-lens"], "seq_lens needs at least one value"),
        (["--sizes-file", "FILE", "--limit", "0"], "limit=0"),
        (["--sizes-file", "FILE", "--recipes", "none"], "'none' is neither a recipe"),
        (["--sizes-file", "FILE", "--out", "FILE"], "cannot be written to: "),
        (["--sizes-file", "FILE", "--limit", "1"], "none of 1 sizes can be used"),
    ],
)
def test_errors_are_one_sentence_and_status_2(sizes_file, capsys, flags, message):
    flags = [str(sizes_file) if flag == "FILE" else flag for flag in flags]
    assert dispatch(["analyze", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
