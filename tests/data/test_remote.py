"""What a web server or a command can do wrong, and what never leaves the process."""

import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from faults.server import FaultyServer
from packvit.data import (
    BadShard,
    DataConfig,
    DataPlan,
    FetchConfig,
    Shard,
    Stream,
    TrainLoader,
    read_class_names,
    shard_folders,
)
from packvit.data.shards import shard as shard_module
from packvit.data.shards.redact import redact
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

pytestmark = pytest.mark.usefixtures("cache")

QUICK = FetchConfig(timeout=2, retries=2)


@pytest.fixture
def web(digits_set):
    with FaultyServer(digits_set / "train") as server:
        yield server


def left_over(cache: Path) -> list[Path]:
    return [file for file in cache.iterdir() if file.suffix not in (".tar", ".json", ".lock")]


# ---- a server ----


@pytest.mark.parametrize("fault", ["cut", "unsized cut", "page", "drop", 503, 429])
def test_what_breaks_once_is_fetched_again(fault, web, digits_set, cache, contents):
    web.answers = [fault, fault]
    shard = Shard.open(f"http://{web.address}/shard-000000.tar", QUICK)
    assert contents(shard) == contents(Shard.open(digits_set / "train/shard-000000.tar"))
    assert [method for method, *_ in web.seen] == ["GET"] * 3
    # What came before a connection broke is not asked for again, unless it may be no part of the shard.
    assert (web.ranges[-1] is not None) == (fault == "cut")
    assert not left_over(cache)


@pytest.mark.parametrize(
    ("fault", "reason", "attempts"),
    [
        ("cut", "the connection broke, .* bytes before the end", 3),
        ("unsized cut", "it breaks off", 3),
        ("page", "not a readable tar file .a page of HTML", 3),
        ("drop", "no connection|no answer|closed connection", 3),
        (500, "the server answers 500", 3),
        (404, "the server answers 404 Not Found", 1),
    ],
)
def test_what_stays_broken_is_a_bad_shard_and_never_kept(fault, reason, attempts, web, cache):
    path = f"http://{web.address}/shard-000000.tar"
    web.answers = [fault] * 3
    for _ in range(2):  # a source that failed is left alone for a while
        with pytest.raises(BadShard, match=reason):
            Shard.open(path, QUICK)
    assert len(web.seen) == attempts
    assert not list(cache.glob("*.tar")) + left_over(cache)
    web.answers = []
    shard_module.forget()
    assert len(Shard.open(path, QUICK)) == 40


def test_a_drip_is_a_stall(web, cache):
    web.answers = ["drip"]
    config = FetchConfig(timeout=0.4, retries=0, min_kb_per_s=1)
    with pytest.raises(BadShard, match=r"only \d+ bytes came in 0\.4 s"):
        Shard.open(f"http://{web.address}/shard-000000.tar", config)
    assert not left_over(cache)


def test_changed_contents_are_fetched_again_by_the_next_process(web, digits_set, contents):
    path = f"http://{web.address}/shard-000000.tar"
    first = contents(Shard.open(path))
    other = (digits_set / "train/shard-000001.tar").read_bytes()
    web.body = other
    assert contents(Shard.open(path)) == first  # within a process a shard stays what it is
    web.tag = "two"
    shard_module.forget()
    assert contents(Shard.open(path)) == contents(Shard.open(digits_set / "train/shard-000001.tar")) != first
    assert [method for method, *_ in web.seen] == ["GET", "HEAD", "HEAD", "GET"]  # again under the lock


def test_a_kill_while_a_copy_is_replaced_leaves_none_that_passes_for_the_new_one(
    web, digits_set, contents, monkeypatch
):
    path = f"http://{web.address}/shard-000000.tar"
    Shard.open(path)
    web.body, web.tag = (digits_set / "train/shard-000001.tar").read_bytes(), "two"

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    shard_module.forget()
    with monkeypatch.context() as patch:
        patch.setattr("packvit.data.shards.fetch.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Shard.open(path)
    shard_module.forget()
    assert contents(Shard.open(path)) == contents(Shard.open(digits_set / "train/shard-000001.tar"))


def test_a_server_that_cannot_be_asked_leaves_the_copy(web, contents):
    path = f"http://{web.address}/shard-000000.tar"
    first = contents(Shard.open(path))
    web.body, web.tag = b"", "two"
    shard_module.forget()
    web.closed = True
    assert contents(Shard.open(path, QUICK)) == first
    assert [method for method, *_ in web.seen] == ["GET", "HEAD"]


def test_a_gzip_bomb_fills_nothing(web, cache):
    web.body = gzip.compress(bytes(30_000_000))
    path = f"http://{web.address}/bomb.tar.gz"
    largest = 0

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.002):
            with suppress(OSError):  # files come and go
                largest = max(largest, sum(file.stat().st_size for file in cache.iterdir()))

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(BadShard, match=r"more than fetch\.cache_gb=0\.001 GB"):
        Shard.open(path, FetchConfig(cache_gb=0.001, retries=3))
    done.set()
    watcher.join()
    assert largest < 1_300_000
    assert len(web.seen) == 1
    assert not list(cache.glob("*.tar")) + left_over(cache)


def test_a_cache_that_is_too_small_loses_no_sample(web, digits_set):
    config = FetchConfig(cache_gb=1.2 * (digits_set / "train/shard-000000.tar").stat().st_size / 1e9)
    urls = tuple(f"http://{web.address}/shard-00000{i}.tar" for i in range(3))
    views = ViewsConfig(patch_sizes=(8,), resolution=ResolutionConfig(16, 16, "uniform"))
    packing = PackingConfig(seq_len=32, sequences=1, lookahead=8, balance=1)
    data = DataConfig(urls, workers=0, streams=2, shuffle_shards=3, fetch=config)
    streams = [Stream(DataPlan(data, views, packing), index) for index in range(2)]
    for _ in range(12):
        assert all(not stream.next_batch().skipped for stream in streams)


def test_an_index_goes_with_the_copy_that_it_is_of(web, digits_set, cache):
    """Otherwise every shard that is fetched again would leave one."""
    config = FetchConfig(cache_gb=1.2 * (digits_set / "train/shard-000000.tar").stat().st_size / 1e9)
    for number in (0, 1, 2, 0, 1, 2):
        Shard.open(f"http://{web.address}/shard-00000{number}.tar", config)
    assert len(list(cache.glob("*.tar"))) == len(list(cache.with_name("index").glob("*.npz"))) == 1
    web.tag, web.body = "two", (digits_set / "val/shard-000000.tar").read_bytes()
    shard_module.forget()
    assert len(Shard.open(f"http://{web.address}/shard-000002.tar", config)) == 30
    assert len(list(cache.with_name("index").glob("*.npz"))) == 1


def test_an_open_shard_outlives_its_copy(web, cache, contents):
    shard = Shard.open(f"http://{web.address}/shard-000000.tar")
    before = contents(shard)
    shutil.rmtree(cache)
    assert contents(shard) == before


# ---- manifests and contents ----


def plan_of(address: str, number: int = 3, **changes) -> DataPlan:
    shards = tuple(f"http://{address}/shard-00000{i}.tar" for i in range(number))
    data = DataConfig(shards, workers=0, streams=1, shuffle_shards=number, fetch=QUICK, **changes)
    views = ViewsConfig(patch_sizes=(8,), resolution=ResolutionConfig(16, 16, "uniform"))
    return DataPlan(data, views, PackingConfig(seq_len=32, sequences=1, lookahead=8, balance=1))


def manifest_requests(web: FaultyServer) -> int:
    return sum(path.endswith("manifest.json") for method, path, _ in web.seen if method == "GET")


@pytest.mark.parametrize("manifest", [True, False])
def test_losses_of_remote_shards_are_counted_by_the_manifest_beside_them(manifest, digits_set, tmp_path):
    folder = Path(shutil.copytree(digits_set / "train", tmp_path / "served"))
    os.truncate(folder / "shard-000001.tar", 30_000)
    (folder / "shard-000002.tar").unlink()
    if not manifest:
        (folder / "manifest.json").unlink()
    with FaultyServer(folder) as web:
        kept = len(Shard.open(folder / "shard-000001.tar"))
        lines = {line["shard"][-10:]: line for line in Stream(plan_of(web.address), 0).next_batch().skipped}
        assert manifest_requests(web) == 1
    if manifest:
        assert lines["000001.tar"]["samples"] == 40 - kept
        assert "its manifest names 40 samples" in lines["000001.tar"]["reason"]
    else:
        assert "a guess" in lines["000001.tar"]["reason"]
    assert lines["000002.tar"]["samples"] == 40


@pytest.mark.parametrize("fault", ["page", 500, "cut"])
def test_a_manifest_that_cannot_be_read_is_none(fault, web, digits_set):
    web.choose = lambda path: fault if path.endswith("manifest.json") else None
    assert not Stream(plan_of(web.address), 0).next_batch().skipped


@pytest.fixture
def own_web(digits_set, tmp_path):
    """A server whose files may be changed."""
    with FaultyServer(Path(shutil.copytree(digits_set / "train", tmp_path / "served"))) as server:
        yield server


@pytest.mark.parametrize("place", ["at its middle", "of its last label"])
def test_contents_of_the_same_names_and_sizes_are_noticed(place, own_web, capfd):
    """What lies where it is looked at is refused; what does not, but has another ETag, is said."""
    state = json.loads(json.dumps(TrainLoader(plan_of(own_web.address)).state_dict()))
    for path in own_web.folder.glob("*.tar"):
        data = bytearray(path.read_bytes())
        at = len(data) // 2 if place == "at its middle" else data.rindex(b".cls\0") // 512 * 512 + 512
        data[at] ^= 1
        path.write_bytes(data)
    own_web.tag = "two"
    loader = TrainLoader(plan_of(own_web.address))
    if place == "at its middle":
        with pytest.raises(ValueError, match="names other contents"):
            loader.load_state_dict(state)
    else:
        loader.load_state_dict(state)
        assert "warning: 3 of 3 remote shards that were checked have another ETag" in capfd.readouterr().err


def test_a_set_that_moved_to_another_server_is_resumed_on_in_silence(web, own_web, capfd):
    state = TrainLoader(plan_of(web.address)).state_dict()
    own_web.tag = "two"
    TrainLoader(plan_of(own_web.address)).load_state_dict(state)
    assert not capfd.readouterr().err


def test_other_contents_on_a_server_are_not_resumed_on(web, digits_set):
    state = TrainLoader(plan_of(web.address)).state_dict()
    for number, fault in ((1, None), (9, "page"), (9, "drop"), (9, 500), (9, "unsized cut")):
        web.answers = [fault] * number  # who does not answer has not changed
        TrainLoader(plan_of(web.address)).load_state_dict(state)
    web.answers = []
    web.body = (digits_set / "val/shard-000000.tar").read_bytes()
    with pytest.raises(ValueError, match="names other contents"):
        TrainLoader(plan_of(web.address)).load_state_dict(state)


# ---- commands ----


def alive(marker: str) -> bool:
    return subprocess.run(["pgrep", "-f", marker], capture_output=True).returncode == 0


def wait_for(condition) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_stalled_command_ends_with_all_that_it_started():
    with pytest.raises(BadShard, match=r"no byte came in 0\.3 s"):
        Shard.open("pipe:(sleep 7654321 & sleep 7654322 | cat)", FetchConfig(timeout=0.3))
    assert wait_for(lambda: not alive("sleep 765432"))


def test_a_command_ends_when_the_process_that_reads_it_is_killed():
    reader = multiprocessing.get_context("fork").Process(
        target=Shard.open, args=("pipe:sleep 8765431 | cat",)
    )
    reader.start()
    assert wait_for(lambda: alive("^sleep 8765431"))
    reader.kill()
    reader.join()
    assert wait_for(lambda: not alive("^sleep 8765431"))


def test_a_command_that_fails_is_no_shard_however_much_it_wrote(digits_set, cache):
    path = f"pipe:cat {digits_set / 'train/shard-000000.tar'}; exit 3"
    with pytest.raises(BadShard, match="its command ended with exit status 3"):
        Shard.open(path)
    assert not list(cache.glob("*.tar"))


@pytest.mark.parametrize("path", ["PIPE:cat x://", " pipe:cat x://", "nobody://knows/a.tar"])
def test_what_only_looks_like_a_command_is_none(path):
    with pytest.raises(BadShard, match="no program is known"):
        Shard.open(path)


# ---- secrets ----

TOKEN = "hf_" + "S3cret" * 5


@pytest.mark.parametrize(
    "text",
    [
        "https://me:S3cretWord@host/a.tar: no connection",
        "https://host/a.tar?X-Amz-Signature=S3cretWord&X-Amz-Date=S3cretWord",
        "https://host/a.tar?sig=S3cretWord%2F",
        "pipe:curl -H 'Authorization: Bearer S3cretWord' https://host/a.tar",
        "(['curl', '-H', 'Authorization:Bearer S3cretWord', 'https://host'],) exit 22",
        "pipe:curl -u me:S3cretWord https://host/a.tar",
        "pipe:AWS_SECRET_ACCESS_KEY=S3cretWord aws s3 cp s3://b/a.tar -",
        "pipe:fetch --token S3cretWord a.tar",
        "{'token': 'S3cretWord'}",
        f"pipe:fetch {TOKEN} a.tar",
        "pipe:curl -H 'X-Auth-Token: S3cretWord' https://host/a.tar",
    ],
)
def test_secrets_are_left_out_of_texts(text):
    assert "S3cret" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "/data/set a:b=c/shard-000001.tar",
        "https://host/folder/shard-000001.tar",
        "it breaks off in or after 'a.cls' (unexpected end of data): what follows is lost",
        "pipe:cat '/data/shard 1.tar'",
        "its label b'cat' is not a number",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_a_password_in_an_url_reaches_the_server_and_nobody_else(web, capfd):
    path = f"http://me:S3cretWord@{web.address}/shard-000000.tar?sig=S3cretWord"
    Shard.open(path)
    assert web.seen == [("GET", "/shard-000000.tar?sig=S3cretWord", "Basic bWU6UzNjcmV0V29yZA==")]
    web.answers = [500] * 9
    data = DataConfig((path.replace("000000", "000001"), path), workers=0, streams=1, shuffle_shards=1)
    plan = DataPlan(data, ViewsConfig(), PackingConfig(seq_len=64, sequences=1, lookahead=1, balance=1))
    stream, lines = Stream(plan, 0), []
    while not lines:
        lines = stream.next_batch().skipped
    assert "500" in lines[0]["reason"]
    assert "S3cret" not in json.dumps(lines) + "".join(capfd.readouterr())


@pytest.mark.parametrize("token", [TOKEN, None])
def test_a_token_goes_to_the_hub_alone_and_none_is_sent_without_login(token, web, capfd, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    class Place:
        repo_id, path_in_repo, repo_type, revision = "me/set", "shard-000000.tar", "dataset", "main"

    monkeypatch.setattr(hub.HfFileSystem, "resolve_path", lambda self, path: Place)
    monkeypatch.setattr(hub, "hf_hub_url", lambda **_: f"http://{web.address}/shard-000000.tar")
    monkeypatch.setattr(hub, "get_token", lambda: token)
    path = "hf://datasets/me/set/shard-000000.tar"
    web.answers = [401]
    with pytest.raises(BadShard, match="the server answers 401") as caught:
        Shard.open(path, QUICK)
    assert [request[2] for request in web.seen] == [token and f"Bearer {token}"]
    assert "S3cret" not in str(caught.value) + "".join(capfd.readouterr())


def test_names_of_classes_beside_remote_shards_are_those_on_the_disk(web, digits_set):
    assert read_class_names(digits_set / "train") == [str(digit) for digit in range(10)]
    for pattern in ("shard-{000000..000002}.tar", "shard-000001.tar?token=x"):
        (folder,) = shard_folders([f"http://{web.address}/{pattern}"])
        assert read_class_names(folder, QUICK) == read_class_names(digits_set / "train")
    assert web.seen[-1][1] == "/classes.json?token=x"
    assert shard_folders(["s3://b/t", "s3://b/t/*.tar", "s3://b/*/a.tar", "pipe:cat a.tar", "s3://b/t/"]) == [
        "s3://b/t",
        "s3://b/t",
        "s3://b/t",
    ]
    web.closed = True
    assert read_class_names(f"http://{web.address}/none", QUICK) is None
