"""Streams and the loader: the order of batches, and that nothing but the seed decides it."""

import io
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packvit.data import (
    DataConfig,
    DataPlan,
    Shard,
    ShardSet,
    Stream,
    TrainLoader,
    end_workers,
    merge_states,
    write_shards,
)
from packvit.data.make.write import Sample
from packvit.data.shards import fingerprint as fingerprint_module
from packvit.data.streams.reader import Lost, SampleReader
from packvit.data.streams.units import epoch_units, parts_of_shard
from packvit.packing import (
    CurriculumConfig,
    DropConfig,
    PackedBatch,
    PackingConfig,
    ResolutionConfig,
    ViewsConfig,
    squeeze_waiting,
    waiting_names,
)
from packvit.packing.packers.config import PACKERS

VIEWS = ViewsConfig(
    patch_sizes=(4, 8),
    resolution=ResolutionConfig(16, 40, "uniform"),
    drop=DropConfig("beta", 0.3, 0.8),
    curriculum=CurriculumConfig(0, 150, patch_weights=(1, 4), low=24),
)
PACKING = PackingConfig(seq_len=64, sequences=2, lookahead=8, balance=1)
SAMPLES, SHARD_SIZE = 60, 15


def jpeg(rng: np.random.Generator) -> bytes:
    height, width = rng.integers(20, 50, 2)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    write_shards((Sample(f"s{i:03d}", jpeg(rng), "jpg", i % 10) for i in range(SAMPLES)), out, SHARD_SIZE)
    return out


def config(shards: Path, **changes) -> DataConfig:
    return replace(DataConfig(shards=(str(shards),), workers=0, streams=4, shuffle_shards=2), **changes)


def make_plan(
    data: DataConfig,
    views: ViewsConfig = VIEWS,
    packing: PackingConfig = PACKING,
    teachers: tuple[tuple[int, int], ...] = (),
) -> DataPlan:
    return DataPlan(data, views, packing, 7, {"label": data.class_target(10)}, teachers)


def make_loader(
    shards: Path, state: dict | None = None, rank: int = 0, ranks: int = 1, **changes
) -> TrainLoader:
    loader = TrainLoader(make_plan(config(shards, **changes)), rank, ranks)
    if state is not None:
        loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


def take(loader: TrainLoader, number: int) -> list[PackedBatch]:
    batches = iter(loader)
    taken = [next(batches).batch for _ in range(number)]
    return [batch for batch in taken if batch is not None]


def next_batch(stream: Stream) -> PackedBatch:
    batch = stream.next_batch().batch
    assert batch is not None
    return batch


def assert_same(one: PackedBatch, two: PackedBatch) -> None:
    assert one.keys == two.keys
    assert one.patches.keys() == two.patches.keys()
    assert all(torch.equal(one.patches[p], two.patches[p]) for p in one.patches)
    for name in ("image_index", "coords", "grids", "cu_seqlens", "labels"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("shards_and_streams", [(1, 1), (1, 8), (3, 8), (8, 8), (20, 8), (7, 1)])
def test_the_streams_of_an_epoch_cover_every_sample_once(shards_and_streams):
    num_shards, streams = shards_and_streams
    size = 23
    for epoch in range(2):
        seen: Counter = Counter()
        for stream in range(streams):
            for unit in epoch_units(num_shards, streams, stream, epoch, seed=1):
                seen.update((unit.shard, member) for member in range(unit.part, size, unit.parts))
        assert seen == Counter((shard, member) for shard in range(num_shards) for member in range(size))
    assert list(epoch_units(40, 2, 0, 0, 1)) != list(epoch_units(40, 2, 0, 1, 1))


def test_every_sample_of_an_epoch_is_read_once(shards):
    data = config(shards, streams=2)
    keys: Counter = Counter()
    for index in range(2):
        stream = Stream(make_plan(data), index)
        headers = [stream._read([]) for _ in range(SAMPLES // 2)]
        assert {header.reference.epoch for header in headers} == {0}
        keys.update(header.key for header in headers)
        assert stream._read([]).reference.epoch == 1
    assert keys == Counter(f"s{i:03d}" for i in range(SAMPLES))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(shards, workers):
    alone = take(make_loader(shards), 10)
    for one, two in zip(alone, take(make_loader(shards, workers=workers), 10), strict=True):
        assert_same(one, two)


def test_two_ranks_share_the_batches_of_one(shards):
    alone = take(make_loader(shards), 8)
    ranks = [take(make_loader(shards, rank=rank, ranks=2), 4) for rank in range(2)]
    for k, batch in enumerate(alone):
        assert_same(batch, ranks[k % 2][k // 2])


@pytest.mark.parametrize("oversize", ["shrink", "own_row"])
@pytest.mark.parametrize("algorithm", sorted(PACKERS))
def test_every_packer_restores_exactly_and_shows_every_sample_once(shards, algorithm, oversize):
    packing = replace(PACKING, algorithm=algorithm, oversize=oversize, seq_len=48, sequences=4, balance=3)
    plan = make_plan(config(shards, streams=1), packing=packing)

    def make(state=None) -> Stream:
        stream = Stream(plan, 0)
        if state is not None:
            stream.load_state_dict(json.loads(json.dumps(state)))
        return stream

    stream, keys = make(), Counter()
    for _ in range(40):
        state = stream.state_dict()
        batch = next_batch(stream)
        assert_same(batch, next_batch(make(state)))
        assert batch.num_slots == 48 * 4
        assert batch.image_lengths().max() <= batch.max_len
        keys.update(batch.keys)
    waiting = stream.state_dict()
    held = count_waiting(waiting)
    assert keys.total() + held == stream.seen == sum(waiting["taken"])
    assert max(keys.values()) - min(keys.values()) <= 2 + held // SAMPLES


def test_states_are_read_plain_and_squeezed_and_from_an_older_version(shards):
    packing = replace(PACKING, algorithm="exact_fill", sequences=4, balance=3)
    plan = make_plan(config(shards, streams=1), packing=packing)
    stream = Stream(plan, 0)
    for _ in range(6):
        stream.next_batch()
    plain = stream.state_dict()
    assert any(name[-1] != name[-2] for some in plain["ready"][0]["rows"] for name in some)
    squeezed = squeeze_waiting(plain)
    assert len(json.dumps(squeezed)) < len(json.dumps(plain))
    streams = [Stream(plan, 0) for _ in range(3)]
    for again, then in zip(streams, (plain, squeezed, plain | {"version": 5}), strict=True):
        again.load_state_dict(json.loads(json.dumps(then)))
    assert list(waiting_names(squeezed)) == list(waiting_names(plain))
    for _ in range(6):
        batch = next_batch(stream)
        for again in streams:
            assert_same(batch, next_batch(again))


def count_waiting(state: dict) -> int:
    return sum(1 for _ in waiting_names(state))


@pytest.mark.parametrize("per", ["sequence", "batch"])
def test_patch_sizes_are_shared_by_a_sequence_or_a_batch_and_resume_exactly(shards, per):
    views = replace(VIEWS, patch_size_per=per, curriculum=CurriculumConfig())
    packing = replace(PACKING, sequences=4, balance=2)
    plan = make_plan(config(shards, streams=1), views, packing)
    stream, keys, sizes = Stream(plan, 0), Counter(), set()
    for _ in range(30):
        state = json.loads(json.dumps(stream.state_dict()))
        batch = next_batch(stream)
        again = Stream(plan, 0)
        again.load_state_dict(state)
        assert_same(batch, next_batch(again))
        rows = batch.image_index.reshape(-1, packing.seq_len)
        for row in rows if per == "sequence" else [rows]:
            here = set(batch.patch_sizes[row[row >= 0].unique().long()].tolist())
            assert len(here) == 1
            sizes |= here
        keys.update(batch.keys)
    assert sizes == {4, 8}
    assert keys.total() + count_waiting(stream.state_dict()) == stream.seen


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_restored_loader_goes_on_as_if_it_had_not_stopped(shards, cut):
    whole = take(make_loader(shards), 14)
    first = make_loader(shards, workers=2)
    take(first, cut)
    for one, two in zip(whole[cut:], take(make_loader(shards, first.state_dict()), 14 - cut), strict=True):
        assert_same(one, two)


OTHERWISE = {
    "patch sizes": (replace(VIEWS, patch_sizes=(6, 16)), PACKING),
    "a patch size for each sequence": (replace(VIEWS, patch_size_per="sequence"), PACKING),
    "a patch size for each batch": (replace(VIEWS, patch_size_per="batch"), PACKING),
    "resolution": (replace(VIEWS, resolution=ResolutionConfig(32, 48, "uniform")), PACKING),
    "a shorter sequence": (VIEWS, replace(PACKING, seq_len=40)),
    "a longer sequence": (VIEWS, replace(PACKING, seq_len=200)),
    "views of several sequences": (VIEWS, replace(PACKING, oversize="own_row")),
    **{name: (VIEWS, replace(PACKING, algorithm=name)) for name in PACKERS},
}


@pytest.mark.parametrize("change", OTHERWISE)
@pytest.mark.parametrize(("per", "algorithm"), [("image", "oldest_first"), ("sequence", "best_fit")])
def test_views_and_sequences_may_change_and_no_sample_is_lost_or_twice(change, per, algorithm, shards):
    """What waits gets new views and is packed anew."""
    data = config(shards, streams=1)
    views = replace(VIEWS, patch_size_per=per)
    first = Stream(make_plan(data, views, replace(PACKING, algorithm=algorithm, balance=3)), 0)
    seen = Counter(key for _ in range(5) for key in first.next_batch().batch.keys)
    views, packing = OTHERWISE[change]
    plan = make_plan(data, views, replace(packing, balance=3))
    streams = [Stream(plan, 0) for _ in range(2)]
    for stream in streams:
        stream.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert count_waiting(streams[0].state_dict()) == count_waiting(first.state_dict())
    state: dict = {}
    for _ in range(8):
        batch = next_batch(streams[0])
        assert set(batch.patch_sizes.tolist()) <= set(views.patch_sizes)
        assert batch.image_index.numel() == packing.seq_len * packing.sequences
        seen.update(batch.keys)
        # From the new state on, a run goes on as always.
        assert_same(batch, next_batch(streams[1]))
        state = json.loads(json.dumps(streams[1].state_dict()))
        streams[1] = Stream(plan, 0)
        streams[1].load_state_dict(state)
    reader = Stream(plan, 0)
    read = [reader._read([]) for _ in range(streams[0].seen)]
    keys = {header.reference[:3]: header.key for header in read}
    seen.update(keys[epoch, shard, member] for epoch, shard, member, *_ in waiting_names(state))
    assert seen == Counter(header.key for header in read)


def test_what_cannot_be_read_when_views_change_is_named(tmp_path):
    rng = np.random.default_rng(0)
    write_shards((Sample(f"s{i:03d}", jpeg(rng), "jpg", 0) for i in range(60)), tmp_path, 30)
    first = Stream(make_plan(config(tmp_path, streams=1)), 0)
    first.next_batch()
    state = first.state_dict()
    lost = sum(name[1] == 1 for name in waiting_names(state))
    again = Stream(make_plan(config(tmp_path, streams=1), replace(VIEWS, patch_sizes=(8, 16))), 0)
    (tmp_path / "shard-000001.tar").unlink()
    again.load_state_dict(state)
    skipped = again.next_batch().skipped
    assert again.bad - first.bad >= lost > 0
    assert sum("shard-000001" in line["shard"] for line in skipped) >= lost


def test_one_rank_can_go_on_as_two_and_two_as_one(shards):
    whole = take(make_loader(shards), 12)
    one = make_loader(shards)
    take(one, 3)
    ranks = [make_loader(shards, one.state_dict(), rank, 2) for rank in range(2)]
    taken = [take(loader, 2) for loader in ranks]
    for k in range(4):
        assert_same(whole[3 + k], taken[k % 2][k // 2])
    again = make_loader(shards, merge_states([loader.state_dict() for loader in ranks]))
    for k, batch in enumerate(take(again, 5)):
        assert_same(whole[7 + k], batch)


def test_states_are_small_and_refer_to_their_shards(shards, tmp_path):
    loader = make_loader(shards)
    take(loader, 6)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 4000
    with pytest.raises(ValueError, match=r"data\.streams=4"):
        make_loader(shards, state, streams=2)
    rng = np.random.default_rng(0)
    write_shards([Sample("a", jpeg(rng), "jpg", 0)], tmp_path, 1, prefix="other")
    with pytest.raises(ValueError, match="resume with the same"):
        make_loader(tmp_path, state)


def test_bad_samples_are_left_out_named_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    samples = [Sample(f"good{i}", jpeg(rng), "jpg", i % 3) for i in range(20)]
    samples.insert(3, Sample("empty", b"", "jpg", 0))
    samples.insert(9, Sample("cut", jpeg(rng)[:-300], "jpg", 0))
    samples.insert(12, Sample("unlabelled", jpeg(rng), "jpg", None))
    samples.insert(15, Sample("label", jpeg(rng), "jpg", 10))
    write_shards(samples, tmp_path)
    loader = make_loader(tmp_path, streams=1)
    skipped, keys = [], set()
    batches = iter(loader)
    while loader.counts().read < 48:
        loaded = next(batches)
        assert loaded.batch is not None
        assert loaded.batch.labels is not None
        assert set(loaded.batch.labels.tolist()) <= {0, 1, 2}
        skipped += loaded.skipped
        keys.update(loaded.batch.keys)
    assert keys == {f"good{i}" for i in range(20)}
    assert {line["key"] for line in skipped} == {"empty", "cut", "unlabelled", "label"}
    assert all(line["shard"].endswith("shard-000000.tar") and line["reason"] for line in skipped)
    assert loader.counts().bad == len(skipped)


def test_a_stream_without_usable_samples_says_so(tmp_path):
    write_shards([Sample("a", b"no image", "jpg", 0)], tmp_path)
    with pytest.raises(ValueError, match="no usable sample"):
        take(make_loader(tmp_path, streams=1), 1)
    with pytest.raises(ValueError, match="no usable sample"):
        take(make_loader(tmp_path, streams=1, workers=1), 1)


def test_streams_own_equally_many_units_and_shards_stay_whole_where_that_is_nearly_so():
    for num_shards, streams in [(1, 64), (3, 8), (40, 8), (6, 4), (127, 8)]:
        units = [len(epoch_units(num_shards, streams, stream, 0, 0)) for stream in range(streams)]
        assert len(set(units)) == 1
    assert parts_of_shard(130, 8) == 1
    assert parts_of_shard(40, 8) == 1


def test_empty_units_and_broken_shards_stop_no_stream(tmp_path):
    rng = np.random.default_rng(0)
    image = jpeg(rng)
    write_shards((Sample(f"s{i}", image, "jpg", 0) for i in range(41)), tmp_path, 40)  # 40 and 1
    (tmp_path / "shard-000002.tar").write_bytes(b"broken" * 500)
    loader = make_loader(tmp_path, streams=64)
    keys, skipped = Counter(), []
    batches = iter(loader)
    for _ in range(128):
        loaded = next(batches)
        assert loaded.batch is not None
        keys.update(loaded.batch.keys)
        skipped += loaded.skipped
    assert set(keys) == {f"s{i}" for i in range(41)}
    assert {(line["shard"][-16:], line["key"]) for line in skipped} == {("shard-000002.tar", None)}


def test_a_broken_shard_counts_as_many_samples_as_another_holds(tmp_path):
    rng = np.random.default_rng(0)
    image = jpeg(rng)
    write_shards((Sample(f"s{i}", image, "jpg", 0) for i in range(80)), tmp_path, 20)
    (tmp_path / "shard-000001.tar").write_bytes(b"broken" * 500)
    loader = make_loader(tmp_path, streams=1)
    batches = iter(loader)
    while loader.counts().read < 400:
        next(batches)
    counts = loader.counts()
    assert 0.2 < counts.unreadable / counts.read < 0.3
    assert counts.undecodable == 0


def test_other_contents_under_the_same_names_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    write_shards((Sample(f"s{i}", jpeg(rng), "jpg", 0) for i in range(20)), tmp_path / "a", 10)
    write_shards((Sample(f"s{i}", jpeg(rng), "jpg", 0) for i in range(18)), tmp_path / "b", 10)
    loader = make_loader(tmp_path / "a")
    take(loader, 3)
    make_loader(tmp_path / "a", loader.state_dict())
    with pytest.raises(ValueError, match="other contents"):
        make_loader(tmp_path / "b", loader.state_dict())


def test_other_contents_of_the_same_names_and_sizes_are_refused_and_a_damaged_shard_is_not(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        raw = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)) for _ in range(60)]
        samples = []
        for i, picture in enumerate(raw):
            buffer = io.BytesIO()
            picture.save(buffer, "ppm")
            samples.append(Sample(f"s{i:03d}", buffer.getvalue(), "ppm", 0))
        write_shards(samples, tmp_path / name, 10)
    loader = make_loader(tmp_path / "a")
    take(loader, 2)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="other contents"):
        make_loader(tmp_path / "b", state)
    os.replace(tmp_path / "b/shard-000002.tar", tmp_path / "a/shard-000002.tar")
    assert take(make_loader(tmp_path / "a", state), 1)


def test_a_shard_that_is_cut_between_stop_and_resume_is_bad_and_no_other(tmp_path):
    """It is named as any damaged shard; whoever starts a run again and again is not told to give up."""
    image = jpeg(np.random.default_rng(0))
    paths = write_shards((Sample(f"s{i:03d}", image, "jpg", 0) for i in range(80)), tmp_path, 20)
    loader = make_loader(tmp_path)
    take(loader, 2)
    os.truncate(paths[1], paths[1].stat().st_size // 3)
    again = make_loader(tmp_path, loader.state_dict())
    lines = [line for loaded in islice(again, 40) for line in loaded.skipped]
    assert {line["shard"] for line in lines} == {str(paths[1])}
    os.truncate(paths[2], 1000)
    os.truncate(paths[3], 1000)
    with pytest.raises(ValueError, match="other contents"):
        make_loader(tmp_path, loader.state_dict())


def test_the_contents_of_few_of_many_shards_are_looked_at(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fingerprint_module, "_contents", lambda path: asked.append(path) or "x")
    shards = []
    for number in range(500):
        (tmp_path / f"{number}.tar").write_bytes(b"x")
        shards.append(str(tmp_path / f"{number}.tar"))
    ShardSet.find(shards).fingerprint()
    assert len(asked) == fingerprint_module.SAMPLED


def test_a_shard_that_vanishes_or_shrinks_in_the_middle_is_named(tmp_path):
    rng = np.random.default_rng(0)
    image = jpeg(rng)
    write_shards((Sample(f"s{i}", image, "jpg", 0) for i in range(60)), tmp_path / "a", 20)
    write_shards((Sample(f"t{i}", image, "jpg", 0) for i in range(2)), tmp_path / "b", 20)
    loader = make_loader(tmp_path / "a", streams=1, shuffle_shards=3)
    batches = iter(loader)
    skipped = list(next(batches).skipped)
    (tmp_path / "a/shard-000000.tar").unlink()
    os.replace(tmp_path / "b/shard-000000.tar", tmp_path / "a/shard-000001.tar")
    while loader.counts().read < 120:
        skipped += next(batches).skipped
    reasons = {line["shard"][-16:]: line["reason"] for line in skipped if "is lost" in line["reason"]}
    assert set(reasons) == {"shard-000001.tar"}
    assert any("cannot be read" in line["reason"] for line in skipped)


@pytest.mark.parametrize("streams", [1, 4])
def test_sources_are_mixed_by_weight_and_resume_exactly(streams, shards, tmp_path):
    rng = np.random.default_rng(1)
    write_shards((Sample(f"t{i}", jpeg(rng), "jpg", 0) for i in range(7)), tmp_path, 4)
    data = DataConfig(
        (str(shards), str(tmp_path)), weights=(3, 1), workers=0, streams=streams, shuffle_shards=2
    )

    def make(state=None) -> TrainLoader:
        loader = TrainLoader(make_plan(data))
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        return loader

    loader = make()
    batches = iter(loader)
    keys: Counter = Counter()
    for _ in range(60):
        batch = next(batches).batch
        assert batch is not None
        keys.update(key[0] for key in batch.keys)
    # Each stream is off by less than a sample in what it read, and holds some that wait.
    assert abs(keys["s"] / keys.total() - 0.75) < 0.05
    again = iter(make(loader.state_dict()))
    for _ in range(5):
        one, two = next(batches).batch, next(again).batch
        assert one is not None
        assert two is not None
        assert_same(one, two)


def test_changed_weights_count_from_the_change(shards, tmp_path):
    rng = np.random.default_rng(1)
    write_shards([Sample(f"t{i}", jpeg(rng), "jpg", 0) for i in range(30)], tmp_path, 15)
    sources = (str(shards), str(tmp_path))

    def stream(weights: tuple[float, ...], state: dict | None = None) -> Stream:
        data = replace(config(shards), shards=sources if weights else sources[:1], weights=weights, streams=1)
        made = Stream(make_plan(data), 0)
        if state is not None:
            made.load_state_dict(json.loads(json.dumps(state)))
        return made

    first = stream((1, 9))
    for _ in range(200):
        first._read([])
    changed = stream((9, 1), first.state_dict())
    headers = [changed._read([]) for _ in range(100)]
    assert abs(sum(header.key[0] == "s" for header in headers) - 90) <= 1
    assert [header.reference.drawn for header in headers] == list(range(200, 300))
    assert changed.state_dict()["drawn"] == 300
    with pytest.raises(ValueError, match=r"data\.weights of 2 sources, not 1"):
        stream((), first.state_dict())


def test_weights_belong_to_entries(shards):
    with pytest.raises(ValueError, match=r"data\.weights=\(1, 2\)"):
        DataConfig((str(shards),), weights=(1, 2))
    with pytest.raises(ValueError, match=r"data\.weights"):
        DataConfig((str(shards), "x"), weights=(1, 0))


def test_an_oversize_view_is_refused_by_name_or_shrunk(shards):
    views = replace(VIEWS, resolution=ResolutionConfig(200, 200), drop=DropConfig())
    with pytest.raises(ValueError, match=r"packing\.seq_len=64 is shorter than image 's\d+'"):
        take(TrainLoader(make_plan(config(shards), views, replace(PACKING, oversize="error"))), 1)
    batch = take(TrainLoader(make_plan(config(shards), views)), 1)[0]
    assert batch.image_lengths().max() <= 64


def test_ranks_must_divide_streams(shards):
    with pytest.raises(ValueError, match=r"data\.streams=4"):
        make_loader(shards, ranks=3)


def test_workers_that_are_killed_leave_nothing_in_the_temporary_folder(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delitem(vars(multiprocessing.current_process())["_config"], "tempdir", raising=False)
    loader = make_loader(shards, workers=2)
    assert len(list(islice(loader, 4))) == 4  # of both workers
    end_workers()
    assert len(list(tmp_path.iterdir())) == 1  # this process's own, which goes with it


def test_teachers_see_the_same_images_in_the_same_crop_and_flip_and_change_nothing_else(shards):
    views = ViewsConfig(
        patch_sizes=(4, 8),
        resolution=ResolutionConfig(32, 32),
        drop=DropConfig("beta", 0.3, 0.8),
        crop=0.3,
        flip=0.5,
    )
    packing = replace(PACKING, seq_len=128)
    alone = iter(TrainLoader(make_plan(config(shards), views, packing)))
    loader = TrainLoader(make_plan(config(shards, workers=1), views, packing, ((4, 32), (8, 48))))
    batches, patches = iter(loader), 0
    for _ in range(6):
        expected, loaded = next(alone), next(batches)
        batch = loaded.batch
        assert batch is not None
        assert expected.batch is not None
        assert_same(batch, expected.batch)
        assert loaded.state == expected.state
        for teacher, p in zip(loaded.teachers, (4, 8), strict=True):
            assert teacher.keys == batch.keys
            assert teacher.labels is not None
            assert batch.labels is not None
            assert torch.equal(teacher.labels, batch.labels)
            assert (teacher.patch_sizes == p).all()
            assert torch.equal(teacher.image_lengths(), teacher.grids.prod(1).long())
        # The first teacher's budget is that of the student's p=4 views: the same patches, before dropping.
        teacher = loaded.teachers[0]
        seen = {place(teacher, slot): row for slot, row in rows_of(teacher, 4)}
        for slot, row in rows_of(batch, 4):
            assert torch.equal(row, seen[place(batch, slot)])
            patches += 1
    assert patches > 100


def rows_of(batch: PackedBatch, p: int) -> list[tuple[int, torch.Tensor]]:
    """(slot, patch) of all patches of size p."""
    if (p, p) not in batch.slots:
        return []
    return list(zip(batch.slots[p, p].tolist(), batch.patches[p, p], strict=True))


def place(batch: PackedBatch, slot: int) -> tuple[int, ...]:
    """Image, row and column of a slot."""
    return int(batch.image_index[slot]), *batch.coords[slot].tolist()


# ---- samples that a damaged shard has lost ----


def cut_shards(tmp_path: Path, cut: list[int], manifest: bool) -> Path:
    """Ten shards of 30 samples, with or without a manifest; those in `cut` keep a tenth of their bytes."""
    image = jpeg(np.random.default_rng(0))
    paths = write_shards((Sample(f"s{i:03d}", image, "jpg", 0) for i in range(300)), tmp_path, 30)
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    if manifest:
        shards = {path.name: {"samples": 30, "bytes": path.stat().st_size} for path in paths}
        (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    for number in cut:
        os.truncate(paths[number], paths[number].stat().st_size // 10)
    return tmp_path


def read_an_epoch(folder: Path, **changes) -> tuple[int, int, list[dict]]:
    """Samples seen and bad of the first epoch of one stream, and what was named."""
    reader = SampleReader(make_plan(config(folder, streams=1, **changes)), 0)
    found = [reader.next()]
    while reader.state_dict()["readers"][0][0] == 0:
        found.append(reader.next())
    lost = [event for event in found[:-1] if isinstance(event, Lost)]
    good, bad = len(found) - 1 - len(lost), sum(event.samples for event in lost)
    return good + bad, bad, [event.line for event in lost]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_cut_shard_counts_all_samples_that_it_lost(manifest, tmp_path, capsys):
    seen, bad, skipped = read_an_epoch(cut_shards(tmp_path, [2, 5], manifest), shuffle_shards=10)
    # tars are filled up to multiples of 10 kB, which is much for shards as small as these
    assert seen - 300 in (range(1) if manifest else range(25))
    assert bad >= 50
    lines = [line for line in skipped if line["key"] is None]
    assert {line["shard"][-6:] for line in lines} == {"02.tar", "05.tar"}
    source = "its manifest names 30" if manifest else "an estimate: 8 whole shards"
    said = capsys.readouterr().err
    for line in lines:
        assert f"{line['samples']} samples are missing ({source}" in line["reason"]
        assert line["reason"] in said


@pytest.mark.parametrize("manifest", [True, False])
def test_where_all_shards_are_cut_most_samples_are_bad(manifest, tmp_path):
    seen, bad, _ = read_an_epoch(cut_shards(tmp_path, list(range(10)), manifest))
    assert bad / seen >= (0.9 if manifest else 0.5)


def test_a_shard_with_fewer_samples_than_its_manifest_names_is_damaged(tmp_path):
    folder = cut_shards(tmp_path, [], True)
    image = jpeg(np.random.default_rng(0))
    [other] = write_shards([Sample("t", image, "jpg", 0)], tmp_path / "other", 30)
    os.replace(other, folder / "shard-000003.tar")
    assert read_an_epoch(folder)[:2] == (300, 29)


def test_a_shard_that_cannot_be_read_counts_for_what_its_manifest_names(tmp_path):
    folder = cut_shards(tmp_path, [], True)
    (folder / "shard-000003.tar").write_bytes(b"broken" * 500)
    seen, bad, [line] = read_an_epoch(folder)
    assert (seen, bad, line["samples"]) == (300, 30, 30)


# ---- damage between a stop and the resumption ----


@pytest.mark.parametrize("damage", ["header", "shard", "gone"])
def test_what_is_damaged_between_stop_and_resume_is_bad_and_the_rest_stays_in_order(damage, tmp_path):
    rng = np.random.default_rng(0)
    write_shards((Sample(f"s{i:03d}", jpeg(rng), "jpg", i % 10) for i in range(120)), tmp_path, 30)
    packing = replace(PACKING, balance=3)

    def make() -> Stream:
        return Stream(make_plan(config(tmp_path, streams=1, shuffle_shards=4), packing=packing), 0)

    calm = make()
    for _ in range(2):
        calm.next_batch()
    state = json.loads(json.dumps(calm.state_dict()))
    order = [calm._read([]).key for _ in range(120 - state["seen"])]  # to the end of the epoch
    again = make()
    path, lost = tmp_path / "shard-000001.tar", {f"s{i:03d}" for i in range(30, 60)}
    if damage == "header":
        shard = Shard.open(path)
        data = bytearray(path.read_bytes())
        lost = {shard.key(member) for member in range(5, 19)}
        for member in range(5, 19):
            start = data.index(shard.image(member))
            data[start : start + 64] = bytes(64)
        path.write_bytes(data)
    elif damage == "shard":
        path.write_bytes(b"broken" * 500)
    else:
        path.unlink()
    again.load_state_dict(state)
    named, shown = 0, Counter()
    while again.seen < 120:
        loaded = again.next_batch()
        named += sum(line.get("samples", 1) for line in loaded.skipped)
        shown.update(loaded.batch.keys)
    assert again.bad == named > 0
    assert not lost & set(shown)
    again.load_state_dict(state)
    found = [again.reader.next() for _ in order]
    for event, key in zip(found, order, strict=True):
        if isinstance(event, Lost):
            assert key in lost
            assert event.samples == 1
            assert "shard-000001" in event.line["shard"]
        else:
            assert event is not None
            assert event.key == key
