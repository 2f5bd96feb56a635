"""The scripts of docs/clusters.md, with stand-ins for the scheduler: two machines are two torchruns here."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from packvit.common.json_lines import read_json_lines

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/clusters.md").read_text()
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do "$@" & tasks+=($!); done
echo "${tasks[@]}" > "$TASKS"
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "$status"
"""


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pkill"), reason="the script uses pkill")
def test_a_slurm_job_on_two_machines_saves_is_queued_again_and_finishes(tmp_path, run_flags):
    """SIGUSR1 reaches the task's shell alone; the second start resumes and is not queued again."""
    write_program(tmp_path / "srun", SRUN)
    write_program(tmp_path / "scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/queued\n')
    write_program(tmp_path / "train.sbatch", block("bash"))
    run = tmp_path / "run"
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "packvit", "HOST": "localhost"}
    places = {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TASKS": str(tmp_path / "tasks"),
        "RUN": str(run),
    }

    def start(steps: int, log: Path) -> subprocess.Popen:
        environment = os.environ | slurm | places | {"RANKS": "1", "PORT": str(free_port())}
        flags = run_flags(run, data__workers=0, train__checkpoint_every=1000, train__steps=steps)
        command = ["bash", str(tmp_path / "train.sbatch"), *flags]
        with log.open("w") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    first = start(100_000, tmp_path / "first.log")
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert first.poll() is None, (tmp_path / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    assert first.wait(120) == 0, (tmp_path / "first.log").read_text()
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
    saved = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
    assert saved >= read_json_lines(metrics)[-1]["step"] > 0

    second = start(saved + 2, tmp_path / "second.log")
    assert second.wait(180) == 0, (tmp_path / "second.log").read_text()
    steps = [line["step"] for line in read_json_lines(metrics)]
    assert steps == sorted(set(steps))
    assert steps[-1] == saved + 2
    assert (run / "model.safetensors").exists()
    assert (tmp_path / "queued").read_text() == "requeue 7\n"


def test_the_manifest_is_a_job_and_the_service_by_which_its_pods_find_each_other():
    service, job = yaml.safe_load_all(block("yaml"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(values["NODES"]) == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert values["RANKS"] == container["resources"]["limits"]["nvidia.com/gpu"]
    first_pod = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--rdzv-endpoint {first_pod}:29500" in container["command"][2]
    subprocess.run(["bash", "-n", "-c", container["command"][2]], check=True)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0,
    reason="no docker daemon answers",
)
def test_the_image_has_a_packvit_that_runs(tmp_path):
    subprocess.run(["docker", "build", "-q", "-t", "packvit-test", str(ROOT)], check=True)
    subprocess.run(["docker", "run", "--rm", "packvit-test", "packvit", "info"], check=True)
