"""Everything that is measured on a GPU: `python -P -m gpu`, with benchmarks/ on the path (`make gpu`).

Each part is a process of its own with a time limit; one that fails is recorded with its last lines, and the
rest goes on. After every part benchmarks/results/gpu-DEVICE.json is written, at the end docs/gpu.md from all
such files. The status is 1 if a part failed, a step waited or was compiled again, or a rate lacks more than
5 % of the best one stored for the same device.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.compare import best, errors, goals, rates, slower
from gpu.page import write_page
from gpu.part import PARTS
from gpu.results import FOLDER, ROOT, commit, load, save, slug

LIMITS = {  # seconds
    "versions": 120,
    "peaks": 60,
    "tests": 240,
    "syncs": 120,
    "recompiles": 120,
    "mfu": 240,
    "attention": 120,
    "patch_sizes": 90,
    "peers": 200,
    "training": 240,
}
LAST_LINES = 25  # of a part that failed
NAME = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"


def device_name() -> str:
    """Of the first GPU, empty without one; asked in another process, which gives its memory back."""
    done = subprocess.run([sys.executable, "-P", "-c", NAME], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run_part(name: str, limit: float, flags: list[str]) -> dict[str, Any]:
    """A part's entry in the results: status, seconds, result so far, and last lines unless all went well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "part.json", Path(folder) / "log"
        command = [sys.executable, "-P", "-m", "gpu.part", name, "--out", str(out), *flags]
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
            )
            try:
                code = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_group(process)
        result, lines = load(out), log.read_text(errors="replace").splitlines()
    status = status_of(code, result)
    entry = {"status": status, "seconds": round(time.monotonic() - began, 1), "commit": commit()}
    if status not in ("ok", "skipped"):
        entry["lines"] = lines[-LAST_LINES:]
        print("\n".join(lines[-LAST_LINES:]), flush=True)
    return {**entry, "result": result}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever a part left running, such as workers or a compiler's processes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def status_of(code: int | None, result: dict[str, Any]) -> str:
    """ok, skipped, failed, or out of time.

    Args:
        code: the process's status; None where it had to be ended.
    """
    if code is None:
        return "out of time"
    if code or errors(result) or not result:
        return "failed"
    return "skipped" if "skipped" in result else "ok"


def problems(results: dict[str, Any], ran: list[str], stored: dict[str, float]) -> list[str]:
    """A sentence for everything that makes the command fail.

    Args:
        ran: the parts of this call.
        stored: the best rates so far.
    """
    found = []
    for name in ran:
        part = results["parts"][name]
        sentences = errors(part["result"])
        if part["status"] in ("failed", "out of time"):
            found += [f"{name}: {sentence}" for sentence in sentences] or [f"{name}: {part['status']}"]
    return found + slower(rates(results["parts"]), stored)


def main() -> int:
    """Run the parts, write the results; the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes for a trial on a CPU, kept in runs/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--seconds", type=float, default=600, help="for all parts together")
    parser.add_argument("--accept", action="store_true", help="forget the best rates stored so far")
    options = parser.parse_args()
    device = device_name() if options.device == "cuda" else "cpu"
    if not device:
        print("torch finds no GPU: make gpu-dry counts without one, --device cpu --tiny tries the code")
        return 2
    folder = ROOT / "runs" if options.tiny else FOLDER
    path = folder / f"gpu-{slug(device)}.json"
    results = {"best": {}, "parts": {}, **load(path), "device": device}
    flags = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    end = time.monotonic() + options.seconds
    ran = []
    for name in options.only:
        left = end - time.monotonic()
        print(f"---- {name} ({left:.0f} s left)", flush=True)
        if left < 10:
            entry = {"status": "out of time", "seconds": 0.0, "commit": commit(), "result": {}}
            results["parts"].setdefault(name, entry)
            print(f"{name}: out of time; --only {name} runs it alone", flush=True)
            continue
        results["parts"][name] = run_part(name, min(LIMITS[name], left), flags)
        ran.append(name)
        print(f"{name}: {results['parts'][name]['status']}", flush=True)
        save(path, results)
    found = problems(results, ran, {} if options.accept else results["best"])
    found += [f"{name}: out of time" for name in options.only if name not in ran]
    # A trial's rates are no measure for the next one.
    kept = {} if options.accept else results["best"]
    results["best"] = {} if options.tiny else best(rates(results["parts"]), kept)
    save(path, results)
    write_page(folder, show=options.tiny)
    for name, value, goal, reached in goals(results["parts"]):
        print(f"{'reached' if reached else 'not reached'}: {name}: {value} (goal {goal})")
    for sentence in found:
        print(f"failed: {sentence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
