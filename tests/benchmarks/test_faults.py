"""The chaos test's own judgement: it finds what is lost, twice or left over, and nothing else."""

import json
import os
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import chaos
import pytest

from faults.audit import check_left_over, check_samples
from faults.kinds import ENDINGS, GONE, LOCAL_LOSSES, NETWORK, RESTING, break_header, break_image, cut_shard
from packvit.data import DataConfig, DataPlan, TrainLoader
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

STEPS = 60


@pytest.fixture
def whole(digits_set) -> list[Path]:
    return sorted((digits_set / "train").glob("*.tar"))


def record(shards: Path, run: Path) -> None:
    """What a run of STEPS batches leaves of its data."""
    data = DataConfig((str(shards),), workers=0, streams=3, shuffle_shards=1)
    views = ViewsConfig(patch_sizes=(8,), resolution=ResolutionConfig(24, 40, "uniform"))
    loader = TrainLoader(
        DataPlan(data, views, PackingConfig(seq_len=64, sequences=2, lookahead=8, balance=2))
    )
    loaded = list(islice(loader, STEPS))
    audit = [{"step": step + 1, "keys": one.batch.keys} for step, one in enumerate(loaded)]
    skipped = [{"step": step + 1, **line} for step, one in enumerate(loaded) for line in one.skipped]
    newest = run / f"checkpoints/step-{STEPS:08d}"
    newest.mkdir(parents=True)
    (newest / "progress.json").write_text(json.dumps({"data": loader.state_dict()}))
    for name, lines in (("audit.jsonl", audit), ("skipped.jsonl", skipped)):
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("damage", [None, cut_shard, break_image, break_header])
def test_every_sample_is_accounted_for_and_what_is_missing_is_found(damage, whole, tmp_path):
    shards, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(whole[0].parent, shards)
    if damage is not None:
        damage(shards / whole[1].name, Random(0))
    record(shards, run)
    lines = (run / "skipped.jsonl").read_text()
    assert (lines != "") == (damage is not None)
    assert check_samples(run, whole, seed=0) == []
    if damage is not None:
        (run / "skipped.jsonl").write_text("")
        assert check_samples(run, whole, seed=0)
        (run / "skipped.jsonl").write_text(lines)
    audit = (run / "audit.jsonl").read_text().splitlines()
    for change in ("lost", "twice", "strange", "no step"):
        line = json.loads(audit[20])
        keys = line["keys"]
        changes = {"lost": keys[1:], "twice": [*keys, keys[0]], "strange": [*keys, "x"], "no step": keys}
        line["keys"] = changes[change]
        changed = [*audit[:20], json.dumps(line), *audit[20 + (change != "no step") :]]
        (run / "audit.jsonl").write_text("\n".join(changed) + "\n")
        assert check_samples(run, whole, seed=0), change


def test_what_is_left_over_is_found(tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    (run / "checkpoints/step-00000001").mkdir(parents=True)
    (cache / "shards").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    (cache / "shards/a.tar").touch()
    assert check_left_over(run, cache) == []
    for path in (
        run / ".metrics.jsonl.partial",
        run / "checkpoints/partial-00000002",
        cache / "shards/a.partial",
    ):
        path.touch()
        assert check_left_over(run, cache) == [f"{path} is left over"]
        os.unlink(path)


def test_all_kinds_are_dealt():
    kinds = [*ENDINGS, *RESTING, *NETWORK, *LOCAL_LOSSES, GONE]
    decks = chaos.deal(200, kinds, Random(0))
    dealt = Counter(
        kind for deck in decks for kind in (*deck.endings, *deck.resting, *deck.network, *deck.losses)
    )
    assert dealt.total() == sum(deck.left() for deck in decks) == 200
    assert set(dealt) == set(kinds)
    assert min(dealt.values()) >= 5
    assert not decks[0].losses
    assert len(decks[1].endings) >= 5
