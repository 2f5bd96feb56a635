"""Remote and gzipped shards are read like local tars; what goes wrong on the way is a bad shard."""

import gzip
import json

import numpy as np
import pytest

from faults.server import FaultyServer
from packvit.data import (
    BadShard,
    DataConfig,
    DataPlan,
    EvalSet,
    FetchConfig,
    Shard,
    ShardSet,
    TrainLoader,
    check_shards,
    expand_shards,
)
from packvit.data.shards import fetch
from packvit.evaluate import Setting
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

STALLED = "pipe:sleep 5"  # a source that no byte comes from
QUICK = FetchConfig(timeout=0.2)
GAVE_UP = "no byte came in 0.2 s"


@pytest.fixture(scope="module")
def served(digits_set):
    """The address of a web server that has the training shards of the demo set."""

    with FaultyServer(digits_set / "train") as server:
        yield f"http://{server.address}"


@pytest.mark.parametrize("kind", ["http", "pipe", "pipe of gzip", ".tar.gz", ".tgz"])
def test_every_kind_of_source_holds_the_same_samples(kind, digits_set, served, tmp_path, cache, contents):
    local = digits_set / "train/shard-000000.tar"
    zipped = tmp_path / f"x{kind if kind.startswith('.') else '.tar.gz'}"
    zipped.write_bytes(gzip.compress(local.read_bytes()))
    path = {
        "http": f"{served}/{local.name}",
        "pipe": f"pipe:cat {local}",
        "pipe of gzip": f"pipe:cat {zipped}",
    }.get(kind, str(zipped))
    shard = Shard.open(path)
    assert shard.path == path
    assert contents(shard) == contents(Shard.open(local))
    assert len(list(cache.glob("*.tar"))) == 1
    assert not list(cache.glob("*.partial")) + list(cache.glob("*.unpacked"))


def test_a_shard_is_fetched_once(digits_set, tmp_path, cache):
    log = tmp_path / "log"
    path = f"pipe:echo x >> {log}; cat {digits_set / 'train/shard-000000.tar'}"
    for _ in range(3):
        Shard.open(path)
    assert log.read_text() == "x\n"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pipe:exit 3", "exit 3|its source is empty"),
        ("pipe:true", "its source is empty"),
        ("pipe:head -c 700 /dev/zero; sleep 30", r"only 700 bytes came in 0\.3 s"),
        ("pipe:echo no tar at all", "not a readable tar"),
        ("pipe:printf '\\037\\213cut'", "broken gzip"),
        ("http://127.0.0.1:9/none.tar", "no connection"),
    ],
)
def test_what_cannot_be_fetched_is_a_bad_shard(path, reason, cache):
    with pytest.raises(BadShard, match=reason) as caught:
        Shard.open(path, FetchConfig(timeout=0.3 if "sleep" in path else 20, retries=0))
    assert caught.value.shard == path
    assert not list(cache.glob("*.partial")) + list(cache.glob("*.unpacked"))


def test_old_copies_make_room(digits_set, cache, monkeypatch):
    local = digits_set / "train/shard-000000.tar"
    size = local.stat().st_size
    config = FetchConfig(cache_gb=2.5 * size / 1e9)
    paths = [f"pipe:cat {local} #{number}" for number in range(3)]
    for path in (paths[0], paths[1], paths[0], paths[2]):
        Shard.open(path, config)
    assert len(list(cache.glob("*.tar"))) == 2
    monkeypatch.setattr(fetch, "download", lambda path, *_: pytest.fail(f"{path} was fetched again"))
    Shard.open(paths[0], config)
    Shard.open(paths[2], config)


def test_urls_are_expanded_and_not_looked_for_here(tmp_path):
    assert expand_shards("https://host/a-{000..002}.tar") == [f"https://host/a-00{i}.tar" for i in range(3)]
    assert expand_shards("pipe:cat x-{0..1}.tar") == ["pipe:cat x-0.tar", "pipe:cat x-1.tar"]
    with pytest.raises(ValueError, match="named twice"):
        expand_shards(["https://host/a.tar", "https://host/a.tar"])


def test_a_run_on_remote_shards_gives_the_batches_of_the_local_ones_and_resumes(digits_set, served, cache):
    views = ViewsConfig(patch_sizes=(4, 8), resolution=ResolutionConfig(16, 32, "uniform"))
    packing = PackingConfig(seq_len=64, sequences=2, lookahead=16, balance=2)

    def loader(shards: str) -> TrainLoader:
        data = DataConfig((shards,), workers=0, streams=2)
        return TrainLoader(DataPlan(data, views, packing, 0, {"label": data.class_target(10)}))

    local, remote = loader(str(digits_set / "train")), loader(f"{served}/shard-{{000000..000002}}.tar")
    ours, theirs = iter(local), iter(remote)
    for _ in range(6):
        one, two = next(ours).batch, next(theirs).batch
        assert one is not None
        assert two is not None
        assert one.keys == two.keys
        assert all(np.array_equal(one.patches[p], two.patches[p]) for p in one.patches)
    again = loader(f"{served}/shard-{{000000..000002}}.tar")
    again.load_state_dict(json.loads(json.dumps(remote.state_dict())))
    one, two = next(ours).batch, next(iter(again)).batch
    assert one is not None
    assert two is not None
    assert one.keys == two.keys


def test_training_evaluation_and_checking_give_a_stalled_source_up_as_they_are_told(digits_set, cache):
    with pytest.raises(BadShard, match=GAVE_UP):
        ShardSet.find(STALLED, QUICK).open(0)
    with pytest.raises(ValueError, match=f"no usable image .*{GAVE_UP}"):
        EvalSet(STALLED, fetch=QUICK)
    assert check_shards(STALLED, fetch=QUICK).problems == {
        "broken shards": [f"{STALLED}: it cannot be read ({GAVE_UP}, after 0)"]
    }
    data = DataConfig((STALLED, str(digits_set / "val")), workers=0, streams=1, fetch=QUICK)
    packing = PackingConfig(seq_len=64, sequences=1, lookahead=1, balance=1)
    loader = TrainLoader(DataPlan(data, ViewsConfig(), packing))
    [line] = next(iter(loader)).skipped
    assert (line["shard"], line["key"]) == (STALLED, None)
    assert GAVE_UP in line["reason"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_fetches_again_as_it_is_told(workers, digits_set, cache, tmp_path):
    gate, local = tmp_path / "gate", digits_set / "val/shard-000000.tar"
    path = f"pipe:if [ -e {gate} ]; then sleep 5; else cat {local}; fi"
    images = EvalSet(path, fetch=QUICK)
    assert len(images.headers) == 30
    # The copy has made way for others, and the source now stalls.
    gate.touch()
    for copy in cache.glob("*.tar"):
        copy.unlink()
    piece = next(images.pieces([Setting(8, 16)], 64, [range(2)], workers))
    assert len(piece.places) == 0
    assert len(piece.skipped) == 2
    assert all(GAVE_UP in line["reason"] for line in piece.skipped)
