"""Jobs: all are done, once each, in order, whatever is lost on the way."""

import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.jobs import JobQueue
from packvit.common.engine.local import LocalEngine
from packvit.common.engine.make import make_engine
from packvit.data import BadSample, BadShard

QUIET = Console(quiet=True)


@given(st.integers(0, 12), st.integers(1, 5), st.data())
def test_results_come_in_order_whatever_finishes_first_or_is_lost(number, ahead, data):
    queue, got, losses = JobQueue(number, retries=2), [], dict.fromkeys(range(number), 0)
    held: list[int] = []
    while not queue.is_over:
        while (job := queue.take(ahead)) is not None:
            assert job < len(got) + ahead
            held.append(job)
        assert queue.left == number - queue.done
        place = data.draw(st.integers(0, len(held) - 1))
        if losses[held[place]] < 2 and data.draw(st.booleans()):
            lost = held[place : place + 2]  # the second one was not begun, so it is not counted
            del held[place : place + 2]
            losses[lost[0]] += 1
            assert queue.lose(lost) == losses[lost[0]]
        else:
            job = held.pop(place)
            queue.finish(job, job * 10)
            got += queue.results()
    assert got == [job * 10 for job in range(number)]
    assert (queue.done, queue.given_up, queue.left) == (number, [], 0)


def test_a_job_that_is_lost_too_often_is_given_up_and_the_others_are_done():
    queue = JobQueue(3, retries=1)
    assert [queue.take(9), queue.take(9), queue.take(9), queue.take(9)] == [0, 1, 2, None]
    queue.finish(2, "c")
    assert queue.lose([1]) == 1
    assert queue.take(9) == 1
    assert queue.lose([1]) is None
    assert list(queue.results()) == []
    queue.finish(0, "a")
    assert list(queue.results()) == ["a", "c"]
    assert queue.is_over
    assert queue.given_up == [1]


def test_an_error_is_raised_in_its_turn_and_nothing_behind_it_is_begun():
    queue = JobQueue(9, retries=0)
    for number in range(4):
        assert queue.take(9) == number
    queue.fail(3, OSError("late"))
    queue.fail(1, ValueError("early"))
    queue.finish(2, "c")
    assert queue.take(9) is None
    assert list(queue.results()) == []
    queue.finish(0, "a")
    results = queue.results()
    assert next(results) == "a"
    assert not queue.is_over
    with pytest.raises(ValueError, match="early"):
        next(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_what_one_gives(workers):
    jobs = [(base, 3) for base in range(20)]
    with make_engine(EngineConfig(), QUIET, workers) as engine:
        assert engine.workers == workers
        assert list(engine.run("powers", pow, jobs)) == [base**3 for base in range(20)]
        assert list(engine.run("powers", pow, [])) == []
        with pytest.raises(TypeError):
            list(engine.run("powers", pow, [("1", 1)]))
        assert list(engine.run("texts", str.upper, [("a",)])) == ["A"]


def test_a_process_that_is_killed_is_one_sentence_that_names_what_it_worked_on():
    jobs = [("a.tar",), ("b.tar",), ("c.tar",)]
    with LocalEngine(2) as engine, pytest.raises(RuntimeError, match=r"worked on one of (\w\.tar, )*c\.tar$"):
        list(engine.run("killing", kill_myself, jobs))


def test_processes_end_at_once_when_they_are_interrupted(tmp_path):
    jobs = [(tmp_path / "now", 0.0), *((tmp_path / name, 3.0) for name in "abcd")]
    with suppress(KeyboardInterrupt), LocalEngine(2) as engine:
        next(engine.run("waking", write_late, jobs))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["now"]


def write_late(path: Path, seconds: float) -> None:
    time.sleep(seconds)
    path.touch()


def kill_myself(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_setup_makes_is_made_once_and_gets_every_job():
    made = []
    with LocalEngine() as engine:
        results = engine.run(
            "adding", list.__add__, [([1],), ([2],)], lambda device: made.append(device) or [device]
        )
        assert list(results) == [["cpu", 1], ["cpu", 2]]
    assert made == ["cpu"]


def test_flags_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="--workers -1 must not be negative"):
        make_engine(EngineConfig(), QUIET, -1)
    with pytest.raises(ValueError, match="--retries -1 must not be negative"):
        EngineConfig(retries=-1)
    with pytest.raises(ValueError, match="--ray-address here:1 is for --engine ray"):
        EngineConfig(ray_address="here:1")


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'packvit[ray]'")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.machine:6379", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer_is_named(address):
    with pytest.raises(ValueError, match=f"--ray-address {address}: no Ray cluster can be used"):
        make_engine(EngineConfig("ray", address), QUIET)


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray: pip install 'packvit\[ray\]'"):
        make_engine(EngineConfig("ray"), QUIET)


@pytest.mark.parametrize("error", [BadShard("a.tar", "it is no tar"), BadSample("a.tar", "k", "it is cut")])
def test_what_is_wrong_with_shards_can_be_told_by_another_process(error):
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
