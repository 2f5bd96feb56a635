"""packvit's loader and those of litData, grain and webdataset: packed images per second, end to end.

    make .venv/peers.stamp
    PYTHONPATH=benchmarks .venv/bin/python benchmarks/loaders.py [--rounds 5]

All read the same photograph-like JPEGs, each from files in its own format, show each picture at a side drawn
from U(64, 256), cut it into patches of 16 and pack these into batches of 4 sequences of 1024 tokens. Peers do
not pack, so their user does, next-fit, in numpy (pipelines/pack.py). Every peer runs twice: with the decoder
that its users usually have, and with the fastest that Python users can have. Each measurement is a process
of its own, all take turns, and the best round counts: what else the machine does only adds to CPU time.

"disk" is one process on one core. With "worker", one more process reads, and so it does with "s3": from the
server of moto, whose time is not counted, with an empty cache, from the start of the worker on.

A run can be divided: --data keeps the pictures, --add what earlier calls measured, and --sizes, --modes,
--contestants and --decoders choose. Writes benchmarks/results/loaders.json and the tables of docs/data.md.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import need_peers, versions_of

from faults.store import KEYS, moto_server, send
from gpu.results import FOLDER, load, save
from packvit.common.device import device_name
from pipelines.clock import cpu_seconds, descendants
from pipelines.pack import SEQ_LEN, SEQUENCES
from pipelines.page import MODES, write_page
from pipelines.photograph import photograph
from pipelines.pictures import DECODERS, RNG
from pipelines.readers import CONTESTANTS, Task
from pipelines.sets import write_chunks, write_records, write_tars

RESULTS = FOLDER / "loaders.json"
PHOTOS = 60  # different ones
SIZES = {"640x480": (2000, 200), "1920x1080": (600, 60)}  # pictures in a set, and in a file
SETS = {"tars": write_tars, "chunks": write_chunks, "records": write_records}
COUNTED = {"disk": 0.4, "worker": 0.4, "s3": 0.85}  # of the pictures of a set
ENDINGS = (".tar", ".array_record")  # of files that are given by name
BUCKET = "loaders"
LIMIT = 300  # seconds for one measurement
LIBRARIES = ("torch", "numpy", "pillow", "simplejpeg", "torchvision", "torchcodec")
LIBRARIES += ("webdataset", "litdata", "grain", "array-record", "obstore", "boto3", "moto")


def make_sets(folder: Path, size: str) -> None:
    """Write the pictures of one size in every format that can be written here, if they are not there."""
    number, per_file = SIZES[size]
    width, height = map(int, size.split("x"))
    pictures: list[bytes] = []
    for name, write in SETS.items():
        made = folder / size / name
        missing = {one.module: why_not(one.module) for one in CONTESTANTS.values() if one.set == name}
        if made.exists() or all(missing.values()):
            continue
        if not pictures:
            rng = np.random.default_rng(0)
            pictures = [photograph(rng, width, height) for _ in range(PHOTOS)]
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            write(pictures, number, per_file, Path(unfinished) / name)
            made.parent.mkdir(exist_ok=True)
            (Path(unfinished) / name).rename(made)


def why_not(module: str) -> str:
    """Why a module cannot be used here; empty if it can."""
    try:
        import_module(module)
    except Exception as error:  # libraries that do not fit to one another fail in many ways
        return f"{module} cannot be imported ({type(error).__name__})"
    return ""


def measure(asked: dict[str, Any]) -> dict[str, float]:
    """Packed images per second of CPU time and of the clock, and the padding, of one contestant."""
    contestant, mode = CONTESTANTS[asked["contestant"]], asked["mode"]
    decoder = DECODERS[contestant.decoder]
    torch.set_num_threads(1)
    if mode == "disk":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # a worker still writes
        task = Task(asked["place"], asked["names"], int(mode != "disk"), cache)
        batches = contestant.batches(task, decoder)
        if mode != "s3":
            for _ in range(contestant.warm):
                next(batches)  # what is done once does not count
        images, tokens, number, cpu, wall = 0, 0, 0, cpu_seconds(), time.perf_counter()
        while images < COUNTED[mode] * asked["pictures"]:
            batch = next(batches)
            images, tokens, number = images + batch.images, tokens + batch.tokens, number + 1
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    padding = 1 - tokens / (number * SEQUENCES * SEQ_LEN)
    return {"cpu": images / cpu, "wall": images / wall, "padding": padding}


def measure_decoder(name: str, size: str) -> dict[str, float]:
    """Pictures per second of CPU time that are decoded and resized, and nothing else."""
    torch.set_num_threads(1)
    width, height = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    pictures = [photograph(rng, width, height) for _ in range(4)]
    number = SIZES[size][0] // 5
    DECODERS[name].show(pictures[0])
    RNG.seed(0)
    began = time.process_time()
    for place in range(number):
        DECODERS[name].show(pictures[place % len(pictures)])
    return {"cpu": number / (time.process_time() - began)}


def elsewhere(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer of a process of its own: numbers, or `error`."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", json.dumps(asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {LIMIT} seconds"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def answer(asked: dict[str, Any]) -> None:
    """What `elsewhere` asked for, on standard output; libraries that hold threads do not keep the process."""
    found = measure(asked) if "contestant" in asked else measure_decoder(asked["decoder"], asked["size"])
    print("\n" + json.dumps(found), flush=True)
    for pid in descendants():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    os._exit(0)


@contextmanager
def store(folder: Path, sizes: list[str]) -> Iterator[str]:
    """The URL of an S3 server with the sets of these sizes."""
    with moto_server() as url:
        send(f"{url}/{BUCKET}", "PUT")
        for path in (path for size in sizes for path in (folder / size).rglob("*") if path.is_file()):
            if path.relative_to(folder).parts[1] != "records":
                send(f"{url}/{BUCKET}/{path.relative_to(folder)}", "PUT", path.read_bytes())
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": KEYS["AWS_REGION"]}
        os.environ["AWS_ALLOW_HTTP"] = "true"
        yield url


def ask(folder: Path, name: str, size: str, mode: str, url: str) -> dict[str, Any]:
    """What `measure` is asked for."""
    contestant, number = CONTESTANTS[name], SIZES[size][0]
    made = folder / size / contestant.set
    asked: dict[str, Any] = {"contestant": name, "mode": mode, "pictures": number, "place": str(made)}
    asked["names"] = sorted(
        path.name for path in made.glob("*.*") if path.suffix in (".tar", ".array_record")
    )
    if mode != "s3":
        return asked
    # webdataset reads what a program writes, and of those that sign requests curl is the lightest.
    keys = ":".join((KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]))
    curl = f"pipe:curl -s -f --aws-sigv4 aws:amz:{KEYS['AWS_REGION']}:s3 --user {keys} {url}"
    beginning = curl if contestant.library == "webdataset" else "s3:/"
    return asked | {"place": f"{beginning}/{BUCKET}/{size}/{contestant.set}"}


def run_round(
    options: argparse.Namespace, folder: Path, url: str, results: dict[str, Any], number: int
) -> None:
    """Measure what is asked for and has been measured only `number` times; every answer is saved at once."""

    def once(size: str, kind: str, name: str, modules: list[str], asked: dict[str, Any]) -> None:
        found = results["rates"].setdefault(size, {}).setdefault(kind, {})
        if len(found.get(name, {}).get("cpu", [])) > number:
            return
        why = next(filter(None, map(why_not, modules)), "")
        new = {"error": why} if why else elsewhere(asked)
        print(size, kind, name, new, flush=True)
        keep(found, name, new)
        save(RESULTS, results)

    for size in options.sizes:
        for name in options.decoders:
            once(size, "decoders", name, [DECODERS[name].module], {"decoder": name, "size": size})
        for mode in options.modes:
            for name in options.contestants:
                contestant = CONTESTANTS[name]
                modules = [contestant.module, DECODERS[contestant.decoder].module]
                if mode != "s3" or contestant.stores:
                    once(size, mode, name, modules, ask(folder, name, size, mode, url))


def keep(found: dict[str, Any], name: str, new: dict[str, Any]) -> None:
    """Add one round's numbers; an error stands alone."""
    if "error" in new:
        found.setdefault(name, new)
        return
    if "error" in found.get(name, {}):
        del found[name]
    for key, value in new.items():
        found.setdefault(name, {}).setdefault(key, []).append(round(value, 4))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "command": "PYTHONPATH=benchmarks python benchmarks/loaders.py",
        "hardware": device_name(torch.device("cpu")),
        "python": platform.python_version(),
        "versions": versions_of(LIBRARIES) | {"torch": torch.__version__},
    }


def main() -> None:
    """Measure, save every answer, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, earlier ones included")
    parser.add_argument("--data", type=Path, help="a folder that keeps the pictures")
    parser.add_argument("--add", action="store_true", help="keep what earlier calls measured")
    for name, choices in (
        ("sizes", SIZES),
        ("modes", MODES),
        ("contestants", CONTESTANTS),
        ("decoders", DECODERS),
    ):
        parser.add_argument(f"--{name}", nargs="*", choices=list(choices), default=list(choices))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        answer(json.loads(options.measure))
    need_peers("litdata", "grain", "simplejpeg", "torchvision", "torchcodec")
    with ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for size in options.sizes:
            make_sets(folder, size)
        why = why_not("moto.server") if "s3" in options.modes else ""
        if why:
            raise SystemExit(
                f"{why}, which serves S3: pip install 'moto[s3]' flask flask-cors, or leave out --modes s3"
            )
        url = stack.enter_context(store(folder, options.sizes)) if "s3" in options.modes else ""
        results = machine() | {"rates": load(RESULTS).get("rates", {}) if options.add else {}}
        for number in range(options.rounds):
            run_round(options, folder, url, results, number)
    write_page(results)


if __name__ == "__main__":
    main()
