"""A run whose folder is in an object store equals one on the disk, wherever it stops and goes on."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load

from faults.bucket import Bucket, Write
from faults.store import KEYS
from packvit.cli import dispatch
from packvit.common.ranks import ALONE
from packvit.common.stores import again, objects
from packvit.train.api import merge
from packvit.train.config import Config, parse_config, plain_config
from packvit.train.mirror.mirror import Mirror
from packvit.train.recipes.find import find_recipe
from packvit.train.run import run
from packvit.train.step.kept import CheckpointConfig

pytestmark = pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore (packvit[storage])")

URL, KEY = "s3://bucket/runs/x", "bucket/runs/x"
EXACT = ("step", "images_seen", "loss", "grad_norm", "lr", "validation")
STEPS = 8


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(again, "BACKOFF", 0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make_config(digits_set) -> Callable[..., Config]:
    """make_config(run_dir, **fields of train): a tiny run that validates between checkpoints."""

    def make(run_dir: str | Path, **train) -> Config:
        changes = {
            "run_dir": str(run_dir),
            "seed": 2,  # its best models are those of steps 1, 3 and 4, beside checkpoints and between them
            "data": {
                "shards": [str(digits_set / "train")],
                "val_shards": [str(digits_set / "val")],
                "streams": 2,
                "workers": 0,
            },
            "packing": {"seq_len": 64, "sequences": 2, "lookahead": 16},
            "model": {"width": 32, "depth": 1, "heads": 2},
            "views": {"patch_sizes": [8]},
            "eval": {"every": 1, "images": 30, "resolutions": [24], "patch_sizes": [8]},
            "optim": {"warmup": 1, "lr": 0.003, "schedule": "constant"},
            "train": {"steps": STEPS, "log_every": 1, "checkpoint_every": 3, "keep_checkpoints": 1, **train},
        }
        return parse_config(merge(plain_config(find_recipe("digits")), changes, ""), "test")

    return make


@pytest.fixture(scope="module")
def disk(make_config, tmp_path_factory) -> Path:
    """The folder of such a run on the disk."""
    folder = tmp_path_factory.mktemp("disk")
    torch.set_num_threads(1)
    run(make_config(folder), measure=False)
    return folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A store without objects."""
    with Bucket() as server:
        use(server, tmp_path / "machine", monkeypatch)
        yield server


def use(server: Bucket, machine: Path, monkeypatch) -> None:
    """From here on runs are on `machine` and their store is `server`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.address, "PACKVIT_CACHE": str(machine)}.items():
        monkeypatch.setenv(name, value)
    objects.close_idle()


def replay(writes: list[Write], number: int) -> dict[str, bytes]:
    """The objects of a store after so many writes."""
    there: dict[str, bytes] = {}
    for key, data in writes[:number]:
        if data is None:
            there.pop(key, None)
        else:
            there[key] = data
    return there


def assert_equals_disk(server: Bucket, disk: Path) -> None:
    """Logs, the last checkpoint's weights and state, and the best model are those of a run on the disk."""
    ours = server.objects[f"{KEY}/metrics.jsonl"].decode().splitlines()
    theirs = (disk / "metrics.jsonl").read_text().splitlines()
    exact = [[[json.loads(text).get(name) for name in EXACT] for text in lines] for lines in (ours, theirs)]
    assert exact[0] == exact[1]
    last = f"checkpoints/step-{STEPS:08d}"
    for name in (f"{last}/model.safetensors", "best/model.safetensors"):
        one, two = load(server.objects[f"{KEY}/{name}"]), load((disk / name).read_bytes())
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert server.objects[f"{KEY}/best/best.json"] == (disk / "best/best.json").read_bytes()


def steps_of(there: dict[str, bytes]) -> list[int]:
    """The complete checkpoints in a store; all files of each have to be there as they were written."""
    steps = []
    for key in there:
        if found := re.fullmatch(rf"{KEY}/checkpoints/step-(\d+)/progress.json", key):
            steps.append(int(found[1]))
            place = key.rpartition("/")[0]
            ranks = json.loads(there[key])["ranks"]
            lists = [json.loads(there[f"{place}/hashes-{rank:05d}.json"]) for rank in range(ranks)]
            for name, digest in [pair for hashes in lists for pair in hashes.items()]:
                assert hashlib.sha256(there[f"{place}/{name}"]).hexdigest() == digest
    return sorted(steps)


@pytest.mark.parametrize("places", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_wherever_its_machine_vanishes_another_goes_on_bit_for_bit(
    places, bucket, make_config, disk, tmp_path, monkeypatch
):
    """What is in the store after each write is what another machine would find."""
    run(make_config(URL), measure=False)
    assert_equals_disk(bucket, disk)
    writes, completed = list(bucket.writes), []
    for number in range(len(writes) + 1):
        there = replay(writes, number)
        steps = steps_of(there)
        completed = completed if steps == completed[-1:] else [*completed, *steps[-1:]]
        assert len(steps) <= 2  # an old one goes when a new one is complete
        assert steps[-1:] == completed[-1:]
        notes = [
            json.loads(there[f"{KEY}/{part}/best.json"])
            for part in ("best", ".best-before")
            if f"{KEY}/{part}/best.json" in there
        ]
        if steps:  # the best model of then
            assert any(note["step"] <= steps[-1] for note in notes)
    assert completed == [3, 6, 8]
    chosen = Random(0).sample(range(len(writes)), min(places, len(writes)))
    for attempt, number in enumerate(chosen):
        with Bucket(replay(writes, number)) as server:
            use(server, tmp_path / f"other{attempt}", monkeypatch)
            run(make_config(URL), measure=False)
            assert_equals_disk(server, disk)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_the_store_does_not_take_is_said_and_nothing_is_lost(
    in_background, bucket, make_config, disk, capsys
):
    """Requests fail at random; then nothing of the checkpoint in the middle is taken, however often."""
    rng = Random(0)

    def choose(method: str, key: str) -> str | int | None:
        if "step-00000006" in key and "model" in key:
            return 403
        return rng.choice(["drop", "late", 503]) if rng.random() < 0.1 else None

    bucket.choose = choose
    with pytest.raises(OSError, match=r"the run lies in .*, and the same command goes on with it"):
        run(make_config(URL, keep_every=6, async_checkpoints=in_background), measure=False)
    said = capsys.readouterr().out
    assert "step-00000006/model.safetensors cannot be written: the store refuses access" in said
    assert "and the next checkpoint tries again" in said
    bucket.choose = lambda method, key: None
    run(make_config(URL, keep_every=6, async_checkpoints=in_background), measure=False)
    assert steps_of(bucket.objects) == [6, 8]
    assert_equals_disk(bucket, disk)


def test_a_copy_that_missed_something_is_fetched_anew_and_so_is_what_a_run_goes_back_to(
    bucket, make_config, disk, tmp_path, monkeypatch, capsys
):
    def on(machine: str, **train) -> str:
        monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / machine))
        run(make_config(URL, keep_checkpoints=3, **train), measure=False)
        return capsys.readouterr().out

    on("one", steps=3)
    assert "Fetched s3://bucket/runs/x/checkpoints/step-00000003" in on("two")
    assert "has gone on without the copy" in on("one")
    assert "Fetched" not in on("one")
    back = on("three", resume_from="step-3")
    assert "Resuming from s3://bucket/runs/x/checkpoints/step-00000003" in back
    assert_equals_disk(bucket, disk)
    asides = {key.split("/")[4] for key in bucket.objects if "/aside-" in key}
    assert asides == {"aside-step-00000006-0", "aside-step-00000008-0"}
    assert "Nothing to train" in on("four", resume_from="step-3")  # it has gone back already
    with pytest.raises(ValueError, match=r"resume_from=step-4: s3://bucket/runs/x has step-00000003, step-0"):
        on("five", resume_from="step-4")
    bucket.objects.clear()
    assert "Resuming" not in on("three", steps=1)


def test_a_damaged_checkpoint_in_the_store_is_passed_over(bucket, make_config, disk, capsys):
    run(make_config(URL, keep_checkpoints=3), measure=False)
    shutil.rmtree(os.environ["PACKVIT_CACHE"])
    name = f"{KEY}/checkpoints/step-{STEPS:08d}/state/__0_0.distcp"
    bucket.objects[name] = bucket.objects[name][:-1] + b"?"
    run(make_config(URL, keep_checkpoints=3), measure=False)
    said = "".join(capsys.readouterr().out.split())  # lines are broken where paths are long
    assert "changedafteritwaswritten):resumingfromthepreviouscheckpoint" in said
    assert steps_of(bucket.objects) == [3, 6, 8]
    assert_equals_disk(bucket, disk)


def test_what_another_start_has_sent_stays_as_it_is(bucket, tmp_path):
    """The first one comes late with a checkpoint that the second one has completed."""
    starts = []
    for name in ("first", "second"):
        mirror = Mirror(URL, tmp_path / name, ALONE, CheckpointConfig(), print)
        partial = mirror.folder / "checkpoints/partial-00000003"
        partial.mkdir(parents=True)
        for file in ("model.safetensors", "hashes-00000.json"):
            (partial / file).write_text(name)
        (partial / "progress.json").write_text('{"ranks": 1}')
        mirror.join(validates=False)
        mirror.begin(0)
        starts.append((mirror, partial))
    (first, late), (second, partial) = starts
    sent = second.send(3, partial)
    partial.rename(partial.with_name("step-00000003"))
    second.publish(sent)
    there = dict(bucket.objects)
    assert there[f"{KEY}/checkpoints/step-00000003/model.safetensors"] == b"second"
    with pytest.raises(ValueError, match="another run writes to s3://bucket/runs/x by now"):
        first.publish(first.send(3, late))
    assert bucket.objects == there


def test_one_answer_that_is_missing_ends_no_run(bucket, make_config, tmp_path):
    """Of all requests that only the store itself would repeat; the run has trained, and all is there."""
    run(make_config(URL), measure=False)
    dropped: list[str] = []

    def choose(method: str, key: str) -> str | None:
        if method == "GET" and key.endswith("/.writer") and len(dropped) < 1:
            dropped.append(key)
            return "drop"
        return None

    bucket.choose = choose
    run(make_config(URL), measure=False)  # nothing is left to do but to look at the store
    assert dropped


def test_a_run_ends_when_another_has_taken_its_folder(bucket, make_config):
    def choose(method: str, key: str) -> None:
        if method == "PUT" and "step-00000006" in key:
            bucket.objects[f"{KEY}/checkpoints/.writer"] = b"another"

    bucket.choose = choose
    with pytest.raises(ValueError, match="another run writes to s3://bucket/runs/x by now"):
        run(make_config(URL), measure=False)
    assert steps_of(bucket.objects) == [3]


def test_what_is_no_place_in_a_store_is_refused(bucket, make_config, capsys):
    with pytest.raises(ValueError, match=r"run_dir https://a/b must be a folder of this machine"):
        make_config("https://a/b")
    config = make_config(URL)
    assert config.place == URL
    assert parse_config(plain_config(config), "test") == config
    with pytest.raises(ValueError, match=r"s3://bucket/\.\./x is no place in a store"):
        run(make_config("s3://bucket/../x"))
    bucket.choose = lambda method, key: 403
    assert dispatch(["train", "digits", "--run-dir", URL, "--data.shards", "x"]) == 2
    assert f"{URL} cannot be listed: the store refuses access" in capsys.readouterr().err


PROGRAM = """
import os
import sys

if "APART" in os.environ:  # each rank on a machine of its own
    os.environ["PACKVIT_CACHE"] += "-" + os.environ["RANK"]
    os.environ["LOCAL_WORLD_SIZE"] = "1"
from packvit.cli import dispatch

sys.exit(dispatch(["train", *sys.argv[1:]]))
"""


def start(flags: list[str], tmp_path: Path, **variables: str) -> subprocess.Popen:
    """A run of two ranks."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*ranks, str(program), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("apart", [{}, {"APART": "1"}], ids=["one machine", "two machines"])
def test_two_ranks_are_killed_and_go_on_elsewhere_bit_for_bit(
    apart, bucket, run_flags, tmp_path, monkeypatch
):
    """With state that is cut over the ranks, so that each writes a part of a checkpoint."""
    flags = {"train__steps": 12, "train__checkpoint_every": 4, "train__parallel": "fsdp"}
    whole = start(run_flags(tmp_path / "whole", **flags), tmp_path)
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    killed = start(run_flags(URL, **flags), tmp_path, **apart)
    deadline = time.monotonic() + 120
    while not steps_of(dict(bucket.objects)):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "other"))
    for _ in range(1 + len(apart)):  # the second time there is nothing to train
        again = start(run_flags(URL, **flags), tmp_path, **apart)
        said, _ = again.communicate(timeout=200)
        assert again.returncode == 0, said
        lines = [json.loads(text) for text in bucket.objects[f"{KEY}/metrics.jsonl"].decode().splitlines()]
        theirs = [json.loads(text) for text in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
        exact = [[[line.get(name) for name in EXACT] for line in some] for some in (lines, theirs)]
        assert exact[0] == exact[1]
        one = load(bucket.objects[f"{KEY}/model.safetensors"])
        two = load((tmp_path / "whole/model.safetensors").read_bytes())
        assert all(torch.equal(one[name], two[name]) for name in two)
    if apart:
        assert "Nothing to train" in said
    last = [key for key in bucket.objects if "step-00000012" in key]
    assert sum(key.endswith(".distcp") for key in last) == 2
    assert steps_of(bucket.objects) == [4, 8, 12]
