"""A run that is killed and started again equals one that ran through, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.train.step.kept import find_checkpoints, step_of

EXACT = ("step", "images_seen", "tokens_seen", "gflops_seen", "loss", "grad_norm", "lr", "padding_fraction")
THREADS = {"OMP_NUM_THREADS": "1"}


def start(flags: list[str], command: Sequence[str] = (sys.executable,)) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, "-m", "packvit.train", *flags],
        env=os.environ | THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(flags: list[str]) -> None:
    process = start(flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def wait_for(process: subprocess.Popen, metrics: Path, step: int) -> None:
    """Wait until a run has logged `step`."""
    deadline = time.monotonic() + 120
    while not (metrics.exists() and any(line["step"] >= step for line in read_json_lines(metrics))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_at(flags: list[str], metrics: Path, step: int, group: bool) -> None:
    """Start a run and kill it as soon as it has logged `step`; with `group` its workers, too."""
    process = start(flags)
    wait_for(process, metrics, step)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def exact_part(run_dir):
    return [[line[name] for name in EXACT] for line in read_json_lines(run_dir / "metrics.jsonl")]


def assert_equal_runs(one, two):
    assert exact_part(one) == exact_part(two)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(run_flags, tmp_path):
    steps = {"train__steps": 60, "train__checkpoint_every": 5}
    finish(run_flags(tmp_path / "whole", **steps))
    # Steps before the first checkpoint, right at one and between two; other numbers of workers on the way.
    for step, workers in ((3, 1), (15, 2), (38, 0)):
        flags = run_flags(tmp_path / "killed", data__workers=workers, **steps)
        # The trainer alone dies: its workers live on for a while and must keep nothing from the next one.
        kill_at(flags, tmp_path / "killed/metrics.jsonl", step, group=step == 38)
    finish(run_flags(tmp_path / "killed", **steps))
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_and_repeat_nothing(run_flags, tmp_path):
    flags = {"train__steps": 400, "train__checkpoint_every": 7, "data__audit": True}
    finish(switch(run_flags(tmp_path / "whole", data__workers=2, **flags)))
    rng = Random(0)
    for number in range(10):
        process = start(switch(run_flags(tmp_path / "killed", data__workers=number % 3, **flags)))
        steps = rng.randrange(1, 40)
        wait_for(process, tmp_path / "killed/metrics.jsonl", steps + newest_step(tmp_path / "killed"))
        time.sleep(rng.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(switch(run_flags(tmp_path / "killed", data__workers=1, **flags)))
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    audits = [read_json_lines(tmp_path / name / "audit.jsonl") for name in ("whole", "killed")]
    assert audits[0] == audits[1]
    assert [line["step"] for line in audits[0]] == list(range(1, 401))
    # 120 images, read by streams that are an epoch or so apart: all are seen, about equally often.
    counts = Counter(key for line in audits[0] for key in line["keys"])
    assert len(counts) == 120
    assert max(counts.values()) - min(counts.values()) <= 4


def newest_step(run_dir: Path) -> int:
    """The step that a run would go on from."""
    found = find_checkpoints(run_dir / "checkpoints")
    return step_of(found[-1]) if found else 0


def switch(flags: list[str]) -> list[str]:
    """`--data.audit True` as the flag without a value that it is."""
    place = flags.index("--data.audit")
    return flags[: place + 1] + flags[place + 2 :]


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(run_flags, tmp_path):
    """The whole group is asked, workers too, as schedulers do."""
    steps = {"train__steps": 60, "train__checkpoint_every": 1000}
    finish(run_flags(tmp_path / "whole", **steps))
    process = start(run_flags(tmp_path / "asked", **steps))
    wait_for(process, tmp_path / "asked/metrics.jsonl", 5)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "the same command resumes from there" in output
    assert not (tmp_path / "asked/model.safetensors").exists()
    finish(run_flags(tmp_path / "asked", **steps))
    assert_equal_runs(tmp_path / "whole", tmp_path / "asked")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ASKED = {
    "Ctrl-C": ([sys.executable], signal.SIGINT, 130),
    "Slurm's warning": ([sys.executable], signal.SIGUSR1, 0),
    "timeout": (["timeout", "--signal", "TERM", "600", sys.executable], signal.SIGTERM, 0),
    "torchrun": (TORCHRUN, signal.SIGTERM, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ASKED)
def test_every_way_of_asking_saves(how, run_flags, tmp_path):
    """With a teacher, and with checkpoints that are written in the background."""
    command, number, status = ASKED[how]
    flags = run_flags(tmp_path, train__steps=3000, train__checkpoint_every=10, train__ema=0.9)
    flags += ["--train.async-checkpoints", "--distill.teachers", "ema"]
    process = start(flags, command)
    wait_for(process, tmp_path / "metrics.jsonl", 12)
    if how == "timeout":
        process.send_signal(number)  # which timeout hands on to its group
    else:
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert status is None or process.returncode == status, output
    steps = read_json_lines(tmp_path / "metrics.jsonl")[-1]["step"]
    assert f"saved step {steps}" in output
    assert newest_step(tmp_path) == steps
    assert steps < 3000
    assert list((tmp_path / "checkpoints").glob("partial-*")) == []
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_three_ranks_go_on_bit_for_bit(run_flags, tmp_path):
    """Of three terms, unlike of two, a sum depends on their order in its last bit."""
    command = [*TORCHRUN[:-1], "3", "-m", "packvit.train"]
    for name, stops in (("whole", (8,)), ("parts", (3, 8))):
        for steps in stops:
            flags = run_flags(tmp_path / name, data__streams=3, train__steps=steps, data__workers=0)
            flags += ["--optim.schedule", "constant"]
            done = subprocess.run(
                [*command, *flags], env=os.environ | THREADS, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_ranks_save_and_end_when_torchrun_is_killed(run_flags, tmp_path):
    """They would otherwise train on, and keep the folder from the next run."""
    flags = run_flags(tmp_path, train__steps=3000, train__checkpoint_every=1000)
    process = start(flags, TORCHRUN)
    wait_for(process, tmp_path / "metrics.jsonl", 3)
    process.kill()
    output, _ = process.communicate(timeout=60)  # to its end, which comes when the last rank has ended
    assert f"saved step {newest_step(tmp_path)}" in output
    assert newest_step(tmp_path) == read_json_lines(tmp_path / "metrics.jsonl")[-1]["step"] < 3000


def stop_worker(process: subprocess.Popen) -> None:
    """Stop a run's first worker, which then neither answers nor ends."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGSTOP)
    time.sleep(1.0)  # what it had ready is used up


@pytest.mark.slow
def test_a_run_whose_worker_does_not_answer_saves_when_asked(run_flags, tmp_path):
    """It goes on as if it had never waited."""
    steps = {"train__steps": 40, "train__checkpoint_every": 1000}
    finish(run_flags(tmp_path / "whole", **steps))
    process = start(run_flags(tmp_path / "stuck", train__accumulate=1, data__workers=2, **steps))
    wait_for(process, tmp_path / "stuck/metrics.jsonl", 3)
    stop_worker(process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"saved step {newest_step(tmp_path / 'stuck')}" in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    finish(run_flags(tmp_path / "stuck", **steps))
    assert_equal_runs(tmp_path / "whole", tmp_path / "stuck")


@pytest.mark.slow
def test_a_run_whose_worker_does_not_answer_ends_after_its_timeout(run_flags, tmp_path):
    process = start(run_flags(tmp_path, train__steps=3000, train__timeout=0.05))
    wait_for(process, tmp_path / "metrics.jsonl", 3)
    stop_worker(process)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "rank 0 has waited 3 s for a batch of data stream" in output
    assert "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_a_run_goes_on_with_other_workers_and_accumulates_the_same(run_flags, tmp_path):
    finish(run_flags(tmp_path / "whole", train__steps=6, train__accumulate=2, data__workers=0))
    finish(run_flags(tmp_path / "parts", train__steps=3, train__accumulate=2, data__workers=0))
    # The shorter run's learning rate falls sooner; the data are the same.
    whole, parts = exact_part(tmp_path / "whole"), exact_part(tmp_path / "parts")
    assert [line[:3] for line in parts] == [line[:3] for line in whole[:3]]
    finish(run_flags(tmp_path / "parts", train__steps=6, train__accumulate=2, data__workers=3))
    assert [line[:3] for line in exact_part(tmp_path / "parts")] == [line[:3] for line in whole]


def finish_here(flags: list[str]) -> None:
    """In this process, which costs no start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert dispatch(["train", *flags]) == 0
    finally:
        torch.set_num_threads(threads)


def assert_runs_are_close(one: Path, two: Path, tolerance: float) -> None:
    lines, others = exact_part(one), exact_part(two)
    assert [line[:3] for line in lines] == [line[:3] for line in others]
    for line, other in zip(lines, others, strict=True):
        assert line[3:5] == pytest.approx(other[3:5], rel=tolerance)


@pytest.mark.parametrize(("parallel", "tolerance"), [("ddp", 1e-5), ("fsdp", 1e-4)])
def test_two_ranks_equal_one_rank_that_accumulates(parallel, tolerance, run_flags, tmp_path):
    """The two ranks write a checkpoint in the background at every step."""
    flags = run_flags(tmp_path / "two", train__steps=3, train__checkpoint_every=1, train__parallel=parallel)
    result = subprocess.run(
        [*TORCHRUN, "-m", "packvit.train", *flags, "--optim.schedule", "rsqrt", "--train.async-checkpoints"],
        env=os.environ | THREADS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    finish_here(
        [*run_flags(tmp_path / "one", train__accumulate=2, train__steps=3), "--optim.schedule", "rsqrt"]
    )
    assert_runs_are_close(tmp_path / "one", tmp_path / "two", tolerance)
    # The two ranks' run goes on as one rank.
    finish_here(
        [*run_flags(tmp_path / "two", train__accumulate=2, train__steps=6), "--optim.schedule", "rsqrt"]
    )
    finish_here(
        [*run_flags(tmp_path / "one", train__accumulate=2, train__steps=6), "--optim.schedule", "rsqrt"]
    )
    assert_runs_are_close(tmp_path / "one", tmp_path / "two", 1e-4)
