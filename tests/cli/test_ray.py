"""`--engine ray` gives what this machine alone gives, to the byte, while processes are killed."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from rich.console import Console

from packvit.cli import dispatch
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import make_engine
from packvit.common.engine.on_ray import QUIET
from packvit.data import Shard, write_shards
from packvit.data.make.write import Sample
from packvit.evaluate.predict import parts as parts_module
from packvit.models import PackedViT, ViTConfig, save_model

# Not imported, because Ray must see the variables of QUIET then.
without = find_spec("ray") is None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(without, reason="needs Ray: pip install 'packvit[ray]'")]


class Machines:
    """A Ray cluster of two machines with a core each, both of which are this one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster()
        self._start(include_dashboard=False)
        self.second: Any = None
        self.add()

    def _start(self, **options: Any) -> Any:
        """A machine; Ray gives it half a minute, which a busy one may exceed."""
        for _ in range(2):
            with suppress(Exception):
                return self.cluster.add_node(num_cpus=1, **options)
        return self.cluster.add_node(num_cpus=1, **options)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self) -> None:
        """The second machine joins, if it has gone."""
        if self.second is None:
            self.second = self._start()

    def lose(self) -> None:
        """The second machine is gone from one moment to the next."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def workers(self) -> list[int]:
        """The processes that do a command's jobs, on both machines."""
        parents = {
            info.process.pid
            for node in self.cluster.list_all_nodes()
            for info in node.all_processes["raylet"]
        }
        return [
            pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if is_worker(pid, parents)
        ]


def is_worker(pid: int, parents: set[int]) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return parent in parents and Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::Worker")
    except (OSError, IndexError):
        return False  # it has ended


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        machines = Machines()
        yield machines
        machines.cluster.shutdown()


@contextmanager
def disturbed(what: Callable[[Random], bool], times: int) -> Iterator[list[float]]:
    """While the block runs, `what` is done at random moments, until it was done so many times; gives when."""
    done: list[float] = []
    over = threading.Event()

    def disturb() -> None:
        rng = Random(0)
        while len(done) < times and not over.wait(rng.uniform(0.05, 0.5)):
            if what(rng):
                done.append(time.monotonic())

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


@pytest.fixture
def killing(machines) -> Callable[[], Any]:
    """killing(): while the block runs, processes of the cluster are killed at random."""

    def kill(rng: Random) -> bool:
        found = machines.workers()
        if found:
            os.kill(rng.choice(found), signal.SIGKILL)
        return bool(found)

    return lambda: disturbed(kill, times=2)


@pytest.fixture
def on_cluster(machines) -> Callable[[list[str]], list[str]]:
    return lambda command: [*command, "--engine", "ray", "--ray-address", machines.address, "--retries", "9"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_are_indexed_alike(on_cluster, killing, digits_set, tmp_path, capsys):
    printed = []
    for name in ("local", "cluster"):
        shutil.copytree(digits_set / "train", tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()
    assert dispatch(["shards", "index", str(tmp_path / "local")]) == 0
    printed.append(capsys.readouterr().out)
    with killing() as killed:
        assert dispatch(on_cluster(["shards", "index", str(tmp_path / "cluster")])) == 0
    printed.append(capsys.readouterr().out)
    assert killed
    assert printed[0] == printed[1]
    assert contents(tmp_path / "local") == contents(tmp_path / "cluster")
    assert len(contents(tmp_path / "local")) == 8


@pytest.fixture
def damaged(digits_set, tmp_path) -> Path:
    """Shards with a key of another one, a broken image, a label that is none, and an end that is missing."""
    folder = tmp_path / "damaged"
    shutil.copytree(digits_set / "train", folder)
    good = Shard.open(digits_set / "train/shard-000001.tar")
    twice = Sample(good.key(3), good.image(3), "png", 4)
    write_shards([twice, Sample("torn", good.image(0)[:99], "png", -1)], tmp_path / "more", prefix="more")
    (tmp_path / "more/more-000000.tar").rename(folder / "more-000000.tar")
    first = folder / "shard-000000.tar"
    first.write_bytes(first.read_bytes()[:50_000])
    return folder


def test_what_is_wrong_with_shards_is_found_alike(on_cluster, killing, damaged, capsys, monkeypatch):
    monkeypatch.chdir(damaged.parent)  # names are relative to it, on every machine
    command = ["shards", "check", damaged.name]
    assert dispatch(command) == 2
    here = capsys.readouterr()
    with killing() as killed:
        assert dispatch(on_cluster(command)) == 2
    there = capsys.readouterr()
    assert killed
    assert here.out == there.out
    assert here.err in there.err
    assert {"keys used twice: 1", "broken images: 1", "damaged shards: 1"} <= {*here.out.splitlines()}


def test_sizes_are_analysed_alike(on_cluster, killing, damaged, tmp_path, capsys):
    command = ["analyze", "--shards", str(damaged), "--epochs", "1", "--seq-lens", "256", "512", "--out"]
    reports = []
    for name in ("local", "cluster"):
        flags = [*command, str(tmp_path / name)]
        if name == "local":
            assert dispatch([*flags, "--workers", "1"]) == 0
        else:
            with killing() as killed:
                assert dispatch(on_cluster(flags)) == 0
            assert killed
        report = json.loads((tmp_path / name / "analysis.json").read_text())
        reports.append(timeless(report))
    assert reports[0] == reports[1]


def timeless(value: Any) -> Any:
    """The same without the times that packers took."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "microseconds_per_item"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def test_shards_are_written_alike(on_cluster, killing, digits_set, tmp_path, capsys):
    shard = Shard.open(digits_set / "train/shard-000000.tar")
    for member in range(len(shard)):
        folder = tmp_path / f"photos/{member % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        data = shard.image(member)
        (folder / f"{member}.png").write_bytes(data[:50] if member == 7 else data)
    printed = []
    for name in ("local", "cluster", "processes"):
        command = ["shards", "write", "photos", name, "--shard-size", "6", "--val-fraction", "0.2"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            if name == "cluster":
                with killing() as killed:
                    assert dispatch(on_cluster(command)) == 0
                assert killed
            else:
                assert dispatch([*command, "--workers", "2" if name == "processes" else "1"]) == 0
        printed.append(capsys.readouterr().out.replace(name, "OUT"))
    assert printed[0] == printed[1] == printed[2]
    assert "1 broken images left out:\n  1/7.png: " in printed[0]
    assert contents(tmp_path / "local") == contents(tmp_path / "cluster") == contents(tmp_path / "processes")
    assert len(contents(tmp_path / "local")) == 6 + 2 + 2 * 2 + 1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    config = ViTConfig(width=32, depth=2, heads=2, num_classes=10)
    return str(save_model(PackedViT(config), tmp_path_factory.mktemp("model")))


def test_teachers_answer_alike(on_cluster, killing, model, digits_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_set / "train", "shards")
    printed = []
    for name in ("local", "cluster"):
        command = ["teach", "shards", "--teacher", model, "--patch-size", "8", "--resolution", "48"]
        command += ["--device", "cpu", "--out", name]
        if name == "cluster":
            with killing() as killed:
                assert dispatch(on_cluster(command)) == 0
            assert killed
        else:
            assert dispatch(command) == 0
        printed.append(capsys.readouterr().out.replace(name, "OUT"))
    assert printed[0] == printed[1]
    assert contents(tmp_path / "local") == contents(tmp_path / "cluster")
    assert len(contents(tmp_path / "local")) == 3 + 2


def test_predictions_are_alike(on_cluster, killing, model, damaged, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard = Shard.open(damaged / "shard-000002.tar")
    Path("photos").mkdir()
    for member in range(5):
        Path(f"photos/{member}.png").write_bytes(shard.image(member))
    command = ["predict", model, "damaged", "photos", "--resolution", "48", "--patch-size", "8", "--features"]
    command += ["--device", "cpu", "--batch-tokens", "300", "--out"]
    assert dispatch([*command, "local.jsonl"]) == 1  # some are broken
    here = capsys.readouterr()
    with killing() as killed:
        assert dispatch(on_cluster([*command, "cluster.jsonl"])) == 1
    there = capsys.readouterr()
    assert killed
    assert Path("local.jsonl").read_bytes() == Path("cluster.jsonl").read_bytes()
    assert here.out == there.out == ""
    assert here.err.splitlines()[-1].split(",")[:2] == there.err.splitlines()[-1].split(",")[:2]
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes of a cluster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_models_are_evaluated_alike(
    on_cluster, killing, model, digits_set, tmp_path, monkeypatch, one_thread
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_set / "train", "shards")
    torn = Shard.open("shards/shard-000000.tar").image(0)[:99]
    write_shards([Sample("torn", torn, "png", 1)], Path("shards"), prefix="torn")
    Path("shards/no-tar.tar").write_bytes(b"no tar")
    command = ["eval", model, "--shards", "shards", "--resolutions", "24", "32", "--patch-sizes", "8"]
    command += ["--tokens", "9", "--features", "--save-predictions", "--corruptions", "fog:3"]
    command += ["--no-cost", "--device", "cpu", "--out"]
    assert dispatch([*command, "local"]) == 0
    with killing() as killed:
        assert dispatch(on_cluster([*command, "cluster"])) == 0
    assert killed
    assert contents(tmp_path / "local") == contents(tmp_path / "cluster")
    skipped = contents(tmp_path / "local")["skipped.jsonl"]
    assert b"torn" in skipped
    assert b"no-tar.tar" in skipped


def test_a_machine_that_is_lost_stops_nothing_and_what_was_done_stays_done(
    machines, on_cluster, model, digits_set, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        shutil.copy(digits_set / "train/shard-000000.tar", f"{number}.tar")
    command = ["predict", model, *(f"{number}.tar" for number in range(12)), "--resolution", "64"]
    command += ["--patch-size", "4", "--device", "cpu", "--out"]
    assert dispatch([*command, "local.jsonl"]) == 0
    parts = Path(".cluster.jsonl.parts")

    def lose(_: Random) -> bool:
        if not list(parts.glob("*.json")):
            return False
        machines.lose()
        return True

    try:
        with disturbed(lose, times=1) as lost:
            assert dispatch(on_cluster([*command, "cluster.jsonl"])) == 0
        assert lost
    finally:
        machines.add()
    assert Path("cluster.jsonl").read_bytes() == Path("local.jsonl").read_bytes()


def test_what_was_done_before_a_command_was_killed_is_not_done_again(
    on_cluster, model, digits_set, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["predict", model, str(digits_set / "train"), "--resolution", "16", "--patch-size", "8"]
    command += ["--device", "cpu", "--out", "a.jsonl"]
    written: list[Path] = []
    real = parts_module.write_whole

    def killed_at_the_third(path: Path, text: str) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        real(path, text)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "write_whole", killed_at_the_third)
        assert dispatch(on_cluster(command)) == 130
    assert dispatch(command) == 0  # this machine alone replaces the file, and leaves the parts
    whole = Path("a.jsonl").read_bytes()
    marked = json.loads(written[0].read_text())
    marked[0]["image"] = "from before"
    written[0].write_text(json.dumps(marked))
    assert dispatch(on_cluster(command)) == 0
    first, *others = Path("a.jsonl").read_bytes().splitlines()
    assert b"from before" in first
    assert others == whole.splitlines()[1:]


def test_a_task_that_kills_its_process_is_named_and_the_others_are_done(machines, capfd):
    config = EngineConfig("ray", machines.address, retries=1)
    deadly = "__import__('os').kill(__import__('os').getpid(), 9)"
    with make_engine(config, Console(quiet=True)) as engine:
        assert list(engine.run("adding", eval, [("1 + 1",)])) == [2]
        results = engine.run("adding", eval, [("1 + 2",), (deadly,), ("1 + 3",)])
        assert [next(results), next(results)] == [3, 4]
        with pytest.raises(RuntimeError) as error:
            next(results)
        with pytest.raises(ZeroDivisionError):
            list(engine.run("dividing", eval, [("1 / 0",)]))
    assert str(error.value) == f"1 of 3 are not done, because their process was lost 2 times: {deadly}"
    said = capfd.readouterr()
    assert said.out == ""
    again = f"packvit: {deadly}: its process was lost, and it is begun again (1 of 1)"
    assert said.err.splitlines()[1:] == [again]


def test_processes_begin_anew_for_another_setup(machines):
    with make_engine(EngineConfig("ray", machines.address), Console(quiet=True)) as engine:
        for setup, expected in ((str.upper, "CPU"), (str.title, "Cpu")):
            results = engine.run("adding", str.__add__, [("1",), ("2",)], setup)
            assert list(results) == [f"{expected}1", f"{expected}2"]
        first = engine.run("adding", str.__add__, [(str(number),) for number in range(40)], str.upper)
        assert next(first) == "CPU0"  # nobody wants the others any more
        assert list(engine.run("adding", eval, [("1 + 1",), ("1 + 2",)])) == [2, 3]


def test_what_is_wrong_is_said_as_this_machine_says_it(
    on_cluster, model, digits_set, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for command, sentence in (
        (["shards", "index", "none.tar"], "none.tar: no such shard"),
        (
            ["teach", "none.tar", "--teacher", model, "--patch-size", "8", "--resolution", "8", "--out", "o"],
            "none",
        ),
        (["predict", model, "empty", "--out", "o.csv"], "no image is in empty"),
    ):
        assert dispatch(on_cluster(command)) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"packvit: error: {sentence}")
    assert dispatch(["predict", model, "empty", "--engine", "ray"]) == 2
    assert "--engine ray needs --out" in capsys.readouterr().err
    shutil.copytree(digits_set / "val", "val")
    assert dispatch(on_cluster(["predict", model, "val", "--device", "cuda", "--out", "o.csv"])) == 2
    said = capsys.readouterr().err.splitlines()
    assert "packvit: the answers so far are in .o.csv.parts" in said
    assert said[-1] == "packvit: error: the Ray cluster has no GPU"
