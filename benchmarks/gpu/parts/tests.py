"""The tests that need a GPU, in a pytest of their own; in a trial on a CPU their twins there."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.options import Options
from gpu.results import ROOT


def files_with_marker() -> list[str]:
    """Test files that mention the marker; others may import what this machine lacks."""
    return [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()
    ]


def outcomes(report: Path) -> dict[str, Any]:
    """Counts and names of failed tests from pytest's XML; `error` names them, too."""
    counts, failed = {"passed": 0, "failed": 0, "skipped": 0}, {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error")]
        if problems:
            failed[case.get("name", "?")] = (problems[0].get("message") or "").splitlines()[:1]
        kind = "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
    result: dict[str, Any] = {**counts}
    if failed:
        result |= {"failures": failed, "error": f"{len(failed)} failed: {', '.join(failed)}"}
    return result


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Counts of tests by outcome, and what failed."""
    marker = "cuda" if options.device.type == "cuda" else "not cuda and not slow"
    files = files_with_marker() if options.device.type == "cuda" else [str(ROOT / "tests/cuda")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Warnings of a compiler or a new driver are no failures of packvit here.
        flags = ["-q", "-x"] if options.tiny else ["-q"]
        flags += ["-p", "gpu.standins", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
        command = [sys.executable, "-m", "pytest", *flags, "-m", marker, f"--junitxml={report}", *files]
        # pytest adds the root's folder to the path by itself; Python must not: packvit/ would hide packvit.
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        print(done.stdout[-6000:], done.stderr[-2000:])
        if not report.exists():
            last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-3:]
            yield "pytest", {"error": f"status {done.returncode}: {' | '.join(last)}"}
            return
        yield "pytest", outcomes(report)
