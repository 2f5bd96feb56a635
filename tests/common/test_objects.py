"""Objects in a store: what is wrong is one sentence, and what is kept of them is of what is there now."""

import io
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from faults.bucket import Bucket
from faults.store import KEYS
from packvit.common.stores import again, objects
from packvit.common.stores.copies import copy_folder, fetch_object
from packvit.common.stores.source import Hopeless
from packvit.data import BadShard, Shard
from packvit.data.shards.shard import forget
from packvit.data.stores.stage import write_folder
from packvit.evaluate.predict.parts import Stamps
from packvit.evaluate.predict.sources import Place

pytestmark = pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore (packvit[storage])")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A store without objects."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with Bucket() as server:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(again, "BACKOFF", 0.01)
        objects.close_idle()
        yield server
    objects.close_idle()


@pytest.mark.parametrize(
    "address", ["localhost:9000", "http://[bad", "http://a:99999", "https://", "http://a b"]
)
def test_an_address_that_is_none_is_one_sentence(address, bucket, monkeypatch, capfd):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    objects.close_idle()
    with pytest.raises(Hopeless) as error:
        objects.list_objects("s3://bucket/folder")
    assert str(error.value) == f"AWS_ENDPOINT_URL={address} must be a URL such as https://host:9000"
    assert capfd.readouterr().err == ""


def test_schemes_are_known_however_they_are_written(bucket):
    bucket.objects["bucket/x/a"] = b"1"
    assert objects.list_objects("S3://bucket/x") == ["S3://bucket/x/a"]


@pytest.mark.parametrize("most", [10, 10**9])
def test_objects_that_are_too_large_to_be_copied_are_renamed(most, bucket, monkeypatch):
    from packvit.common.stores import serve

    data = bytes(range(256)) * 45_000  # more than two parts
    bucket.objects["bucket/a b/é"] = data
    monkeypatch.setattr(serve, "MOST_COPIED", most)
    serve.store_of.cache_clear()
    out = io.BytesIO()
    request = {"url": "s3://bucket/a b/é", "to": "s3://bucket/c", "timeout": 20, "retries": 1}
    serve.rename(request, serve.Output(out))
    assert out.getvalue() == b"{}\n"
    assert bucket.objects == {"bucket/c": data}


def test_a_copy_that_was_broken_off_is_not_taken_for_what_was_there_before(bucket, monkeypatch):
    bucket.objects |= {"bucket/m/a": b"one", "bucket/m/b": b"one"}
    folder = copy_folder("s3://bucket/m", "models", sorted)

    def broken_off(url: str, file: Path) -> None:
        fetch_object(url, file)
        raise KeyboardInterrupt

    bucket.objects["bucket/m/a"] = b"two"
    with monkeypatch.context() as patch:
        patch.setattr("packvit.common.stores.copies.fetch_object", broken_off)
        with pytest.raises(KeyboardInterrupt):
            copy_folder("s3://bucket/m", "models", sorted)
    assert (folder / "a").read_bytes() == b"two"
    bucket.objects["bucket/m/a"] = b"one"  # it is taken back
    copy_folder("s3://bucket/m", "models", sorted)
    assert (folder / "a").read_bytes() == b"one"


def test_what_could_not_be_uploaded_is_written_anew_if_it_was_made_of_something_else(bucket):
    source, worked = ["one"], []

    def work(folder: Path) -> None:
        worked.append(source[0])
        (folder / "shard-000000.tar").write_text(source[0])
        with pytest.raises(ValueError, match="another command is writing to s3://bucket/out"):
            write()

    def write() -> None:
        write_folder("s3://bucket/out", "task", lambda: source[0], work)

    bucket.choose = lambda method, key: 403 if method == "PUT" else None
    for _ in range(2):  # the second time it is only uploaded
        with pytest.raises(ValueError, match="cannot be written: the store refuses access"):
            write()
    source[0] = "two"
    bucket.choose = lambda method, key: None
    bucket.objects["bucket/out/shard-000001.tar"] = b"one"  # of those that were uploaded
    with pytest.raises(ValueError, match="s3://bucket/out already holds shards"):
        write()
    bucket.objects.clear()
    write()
    assert worked == ["one", "two"]
    assert bucket.objects == {"bucket/out/shard-000000.tar": b"two"}


def test_answers_to_a_shard_are_not_those_to_the_one_before_it_in_the_store(bucket):
    stamps = []
    for contents in (b"1", b"2", b"1"):
        bucket.objects |= {"bucket/s/a.tar": contents, "bucket/s/b.tar": b"3"}
        stamps.append([Stamps().of(Place(f"s3://bucket/s/{name}.tar")) for name in "ab"])
    assert stamps[0] == stamps[2]
    assert stamps[0][0] != stamps[1][0]
    assert stamps[0][1] == stamps[1][1]
    bucket.choose = lambda method, key: 403  # it is said by whoever reads the shard
    assert Stamps().of(Place("s3://bucket/s/a.tar")) not in stamps[0] + stamps[1]


def test_the_copy_of_an_object_that_is_gone_is_not_read(bucket, digits_set):
    path = "s3://bucket/set/a.tar"
    bucket.objects["bucket/set/a.tar"] = (digits_set / "val/shard-000000.tar").read_bytes()
    assert len(Shard.open(path)) == 30
    forget()
    bucket.choose = lambda method, key: 403  # it cannot be asked, so what was there is believed
    assert len(Shard.open(path)) == 30
    forget()
    bucket.choose = lambda method, key: None
    bucket.objects.clear()
    with pytest.raises(BadShard, match="there is no such object"):
        Shard.open(path)
