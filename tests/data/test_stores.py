"""Shards in object stores: read, listed, indexed and written, beside what is on the disk."""

import json
import multiprocessing
import os
import subprocess
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from faults.server import FaultyServer
from faults.store import KEYS, FaultyFront, moto_server, send
from packvit.analyze.sizes import shard_sizes
from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.common.stores import objects
from packvit.common.stores.source import Changed
from packvit.data import BadShard, DataConfig, DataPlan, FetchConfig, Shard, TrainLoader, expand_shards
from packvit.data.shards import shard as shard_module
from packvit.data.shards.beside import SUFFIX, decode
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

pytestmark = [
    pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore (packvit[storage])"),
    pytest.mark.usefixtures("cache"),
]

QUICK = FetchConfig(timeout=2, retries=2)
IN_PLACE = FetchConfig(timeout=2, retries=2, cache_gb=0)


@pytest.fixture(scope="module")
def moto():
    """The URL of an S3 server."""
    pytest.importorskip("moto.server", reason="needs moto and flask")
    with moto_server() as url:
        yield url


@pytest.fixture(scope="module")
def stored(moto, digits_set):
    """An S3 server whose bucket `sets` has the demo set; its buckets and objects stay as they are."""
    send(f"{moto}/sets", "PUT")
    with pytest.MonkeyPatch.context() as patch:
        use(moto, patch)
        for file in digits_set.rglob("*.tar"):
            objects.write_object(file, f"s3://sets/{file.relative_to(digits_set)}")
    return moto


def use(address: str, monkeypatch, **variables: str) -> None:
    """Name the store and its keys to the processes that read from it from here on."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address, **variables}.items():
        monkeypatch.setenv(name, value)
    objects.close_idle()


@pytest.fixture
def front(stored, monkeypatch):
    """A store with the demo set that does wrong as it is told."""
    with FaultyFront(stored) as server:
        use(server.address, monkeypatch)
        yield server


@pytest.fixture
def web(digits_set, monkeypatch):
    """A server whose objects may be changed; it lists nothing and takes nothing."""
    with FaultyServer(digits_set / "train") as server:
        use(f"http://{server.address}", monkeypatch)
        yield server


# ---- reading ----


@pytest.mark.parametrize("config", [QUICK, IN_PLACE], ids=["copied", "in place"])
@pytest.mark.parametrize("fault", [None, "drop", "cut", "stall", 503, 429])
def test_objects_hold_the_same_samples_as_files_whatever_breaks_once(
    fault, config, front, digits_set, cache, contents
):
    front.answers = [fault]
    shard = Shard.open("s3://sets/train/shard-000001.tar", config)
    assert contents(shard) == contents(Shard.open(digits_set / "train/shard-000001.tar"))
    assert len(list(cache.glob("*.tar"))) == (config is QUICK)


def test_what_came_before_a_connection_broke_is_not_asked_for_again(front, web, digits_set, monkeypatch):
    size = (digits_set / "train/shard-000000.tar").stat().st_size
    use(front.address, monkeypatch)
    front.answers = ["cut"]
    Shard.open("s3://sets/train/shard-000000.tar", QUICK)
    (_, first), (_, second) = front.ranges
    assert first is None
    assert size // 4 < int(second.removeprefix("bytes=").rstrip("-")) <= size // 2
    web.answers = ["cut"]
    Shard.open(f"http://{web.address}/shard-000000.tar", QUICK)
    assert web.ranges == [None, f"bytes={size // 2 + 100}-"]


def test_other_contents_are_not_put_behind_what_came_before(web, digits_set, contents):
    """The server has another object under the name by the time of the second attempt."""
    others = (digits_set / "train/shard-000001.tar").read_bytes()

    def change(path: str) -> None:
        if len(web.seen) == 1:
            web.tag, web.body = '"two"', others

    for path in ("s3://any/shard-000000.tar", f"http://{web.address}/shard-000000.tar"):
        web.tag, web.body, web.answers, web.choose = '"one"', None, ["cut"], change
        web.seen.clear()
        assert contents(Shard.open(path, QUICK)) == contents(
            Shard.open(digits_set / "train/shard-000001.tar")
        )


def test_an_object_that_changes_while_it_is_read_in_place_is_noticed(web):
    shard = Shard.open("s3://any/shard-000000.tar", IN_PLACE)
    web.tag = '"two"'
    with pytest.raises(BadShard, match="it was changed while it was read"):
        [shard.image(member) for member in range(len(shard))]
    with pytest.raises(Changed):
        objects.read_object("s3://any/shard-000000.tar", 0, 10, 2, '"one"')


def test_who_reads_for_a_process_ends_with_it_even_from_a_read_that_hangs(web):
    web.answers = ["stall"]
    reader = multiprocessing.get_context("fork").Process(
        target=Shard.open, args=("s3://any/shard-000000.tar",)
    )
    reader.start()
    found: list[str] = []
    assert wait_for(lambda: found.extend(children(reader.pid)) or len(found) > 0 < len(web.seen))
    reader.kill()
    reader.join()
    assert wait_for(lambda: not Path(f"/proc/{found[0]}").exists())


def children(process: int | None) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()


def wait_for(condition) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_names_folders_globs_and_braces_are_listed(front):
    shards = [f"s3://sets/train/shard-00000{number}.tar" for number in range(3)]
    for name in (
        "s3://sets/train",
        "s3://sets/train/",
        "s3://sets/t*/shard-*.tar",
        "s3://sets/train/*{0,1,2}.tar",
    ):
        assert expand_shards(name) == shards
    assert expand_shards("s3://sets/train/shard-00000{0..2}.tar") == shards
    assert expand_shards("s3://sets/*/*-000000.tar")[-1] == "s3://sets/val/shard-000000.tar"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("s3://none/train/", "cannot be listed: there is no bucket 'none'"),
        ("s3://sets/", "there is no shard in the store that it names"),
        ("s3://sets/train/a*.tar", "there is no shard in the store that it names"),
    ],
)
def test_what_cannot_be_listed_is_refused(name, reason, front):
    with pytest.raises(ValueError, match=reason):
        expand_shards(name)


def test_what_the_store_refuses_is_one_sentence_without_secrets(front, moto, monkeypatch, capfd):
    path = "s3://sets/train/shard-000000.tar"

    def reason(path: str) -> str:
        shard_module.forget()
        objects.close_idle()
        with pytest.raises(BadShard) as caught:
            Shard.open(path, QUICK)
        return caught.value.reason

    assert "there is no bucket 'none'" in reason("s3://none/a.tar")
    assert "there is no such object" in reason("s3://sets/none.tar")
    send(f"{moto}/moto-api/reset-auth", "POST", b"0")  # from here on it looks at keys
    try:
        assert "the store refuses access (InvalidAccessKeyId): check AWS_ACCESS_KEY_ID" in reason(path)
    finally:
        send(f"{moto}/moto-api/reset-auth", "POST", b"inf")
    use("http://127.0.0.1:9", monkeypatch)
    assert "no connection to the store" in reason(path)
    use(front.address, monkeypatch, AWS_METADATA_ENDPOINT="http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "nothing gives access to s3://: set AWS_ACCESS_KEY_ID" in reason(path)
    assert "S3cret" not in "".join(capfd.readouterr())


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(ImportError, match=r"s3:// needs obstore: pip install 'packvit\[storage\]'"):
        expand_shards("s3://sets/a.tar")


# ---- training ----


def loader(shards: str, fetch: FetchConfig, workers: int) -> TrainLoader:
    views = ViewsConfig(patch_sizes=(8,), resolution=ResolutionConfig(16, 32))
    packing = PackingConfig(seq_len=32, sequences=2, lookahead=8, balance=1)
    data = DataConfig((shards,), workers=workers, streams=2, shuffle_shards=2, fetch=fetch)
    return TrainLoader(DataPlan(data, views, packing))


@pytest.mark.parametrize(("config", "workers"), [(QUICK, 2), (IN_PLACE, 0)], ids=["copied", "in place"])
def test_batches_from_a_store_equal_those_from_the_disk(config, workers, front, digits_set):
    """Also in workers that are forks of a process that has read from the store."""
    config = replace(config, retries=4)  # all faults may meet one shard
    front.answers = [None] * 12 + ["drop", None, "cut", 503]  # behind what tells the shards from others
    ours, theirs = loader(str(digits_set / "train"), QUICK, 0), loader("s3://sets/train/", config, workers)
    for _, one, two in zip(range(8), ours, theirs, strict=False):
        assert one.batch is not None
        assert two.batch is not None
        assert one.batch.keys == two.batch.keys
        assert all(np.array_equal(one.batch.patches[p], two.batch.patches[p]) for p in one.batch.patches)
        assert not two.skipped


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--data.fetch.cache-gb", "0"]], ids=["copied", "in place"])
def test_training_from_a_store_equals_training_from_the_disk(extra, front, digits_set, tmp_path):
    front.answers = [None] * 14 + [None, "drop", None, "cut", None, 503, None, "stall"]

    def train(shards: str, name: str) -> tuple[list, list]:
        flags = ["--train.steps", "12", "--train.log-every", "1", "--data.audit", "--data.streams", "2"]
        flags += ["--model.width", "32", "--model.depth", "1", "--model.heads", "2", "--threads", "1"]
        flags += ["--data.workers", "2", "--data.fetch.timeout", "2", "--data.val-shards", *extra]
        run = ["--run-dir", str(tmp_path / name), "--data.shards", shards]
        assert dispatch(["train", "digits", *run, *flags]) == 0
        lines = read_json_lines(tmp_path / name / "metrics.jsonl")
        losses = [line["loss"] for line in lines if "loss" in line]
        return losses, read_json_lines(tmp_path / name / "audit.jsonl")

    assert train("s3://sets/train/", "store") == train(str(digits_set / "train"), "disk")


# ---- the index beside a shard ----


def test_a_set_with_indices_is_analysed_without_its_shards(front, moto, digits_set, capsys, contents):
    send(f"{moto}/indexed", "PUT")
    local = digits_set / "train/shard-000000.tar"
    path = f"s3://indexed/{local.name}"
    objects.write_object(local, path)
    before = shard_sizes(path, fetch=QUICK).values
    asked = len(front.ranges)
    assert dispatch(["shards", "index", "s3://indexed/"]) == 0
    assert capsys.readouterr().out == "1 shards, 40 samples\n"
    shard_module.forget()
    front.ranges.clear()
    after = shard_sizes(path, fetch=QUICK).values
    assert np.array_equal(before, shard_sizes(str(local)).values)
    assert np.array_equal(before, after)
    assert [name for name, _ in front.ranges] == [f"/indexed/{local.name}", f"/indexed/{local.name}{SUFFIX}"]
    assert asked > 20  # by headers
    assert contents(Shard.look(path, QUICK)) == contents(Shard.open(local))


def test_an_index_of_another_or_damaged_is_not_believed(digits_set, tmp_path):
    path = tmp_path / "shard-000000.tar"
    path.write_bytes((digits_set / "train" / path.name).read_bytes())
    assert dispatch(["shards", "index", str(path)]) == 0
    good, tar = path.with_name(path.name + SUFFIX).read_bytes(), path.read_bytes()
    index = decode(good, tar[:512], len(tar))
    assert index is not None
    assert len(index.key_ends) == 40
    assert decode(good, tar[:512], len(tar) - 1) is decode(good, b"x" + tar[1:512], len(tar)) is None
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            damaged[place] = rng.integers(256)
        found = decode(bytes(damaged[: int(rng.integers(2 * len(good)))]), tar[:512], len(tar))
        if found is not None:  # what is believed leads nowhere else
            assert found.spans.min() >= 0
            assert (found.spans.sum(1) <= len(tar)).all()
    assert json.loads((tmp_path / "manifest.json").read_text())["shards"][path.name]["samples"] == 40


# ---- writing ----


def test_shards_are_written_to_a_store_whole(front, moto, digits_set, tmp_path, capsys):
    send(f"{moto}/out", "PUT")
    images = tmp_path / "images"
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    for member in range(12):
        file = images / f"class{member % 2}" / f"{member}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shard.image(member))
    flags = ["--shard-size", "4", "--val-fraction", "0.34"]
    assert dispatch(["shards", "write", str(images), str(tmp_path / "here"), *flags]) == 0
    assert dispatch(["shards", "write", str(images), "s3://out/set", *flags]) == 0
    local = {p.relative_to(tmp_path / "here").as_posix(): p for p in (tmp_path / "here").rglob("*.*")}
    files = {name: path for name, path in local.items() if not path.name.startswith(".")}
    there = objects.list_objects("s3://out/set")
    assert sorted(there) == sorted(f"s3://out/set/{name}" for name in files)
    for name, path in files.items():
        assert objects.read_object(f"s3://out/set/{name}", 0, 10**9, 20)[0] == path.read_bytes()
    assert not [path for path in (tmp_path / "cache/outputs").iterdir() if path.is_dir()]
    assert dispatch(["shards", "write", str(images), "s3://out/set", *flags]) == 2
    assert "s3://out/set already holds shards" in capsys.readouterr().err


def test_a_store_that_takes_nothing_is_said_before_the_work(front, tmp_path, capsys):
    assert dispatch(["shards", "write", str(tmp_path), "s3://none/set"]) == 2
    assert "s3://none/set cannot be written to: there is no bucket 'none'" in capsys.readouterr().err


def test_where_a_folder_is_needed_a_url_is_refused(capsys):
    assert dispatch(["analyze", "--shards", "x", "--out", "s3://a/b"]) == 2
    assert "--out s3://a/b must be a folder of this machine" in capsys.readouterr().err
