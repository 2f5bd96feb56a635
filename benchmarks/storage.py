"""Libraries that read object stores, and packvit's loader on one, beside the disk.

    pip install obstore s3fs
    python benchmarks/storage.py [--megabytes 64] [--write]

A server that speaks as much of S3 as reading takes, in this process, serves an object of random bytes. Each
library reads it `READS` times in each of `ROUNDS` processes that have read it once before, in turns. CPU time
and memory are those of the reader and of the processes that it started. One connection is cut in its middle
to see who goes on; a process that has read forks to see whether the child can read, as workers of a run do.

The loader goes once over photographs in shards, from the disk and from the store with an empty cache, in
turns; the server is then in a process of its own, whose CPU time is not the loader's. The best of `PASSES`
counts: whatever else the machine does only adds to CPU time.
"""

import argparse
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from packaging.requirements import Requirement
from PIL import Image

from faults.server import FaultyServer
from faults.store import KEYS
from gpu.results import replace_section
from packvit.common.stores.again import try_again
from packvit.common.stores.objects import close_idle
from packvit.common.stores.partial import Partial
from packvit.data import DataConfig, DataPlan, FetchConfig, Stream, write_shards
from packvit.data.make.write import Sample
from packvit.data.shards.download import download
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

PAGE = Path(__file__).parent.parent / "docs/data.md"
CHUNK, BLOCK = 1 << 18, 8 << 20  # bytes
ROUNDS, READS = 3, 4
FORK_LIMIT = 10  # seconds for a read in a child
SHARDS, IMAGES = 4, 200  # images in each shard
PASSES = 6  # over the images, from the disk and from the store
uncounted: set[str] = set()  # processes whose CPU time and memory are not the reader's
READ_BY = {"obstore": ["obstore"], "s3fs": ["s3fs"], "packvit": ["obstore"]}


def read_obstore() -> int:
    """Bytes of the object, in order, in this process."""
    import obstore  # pyright: ignore[reportMissingImports]
    from obstore.store import from_url  # pyright: ignore[reportMissingImports]

    store = from_url("s3://bucket", client_options={"allow_http": True})
    return sum(len(piece) for piece in obstore.get(store, "object").stream(min_chunk_size=CHUNK))


def read_s3fs() -> int:
    """The same by fsspec's s3fs, which reads files in blocks."""
    import s3fs  # pyright: ignore[reportMissingImports]

    store = s3fs.S3FileSystem()
    with store.open("bucket/object", "rb", block_size=BLOCK, cache_type="readahead") as file:
        return sum(len(piece) for piece in iter(lambda: file.read(CHUNK), b""))


def read_packvit() -> int:
    """The same by packvit, for which obstore reads in a process of its own, into a file."""
    with tempfile.TemporaryDirectory() as folder:
        partial = Partial(Path(folder) / "object")
        try_again(lambda: download("s3://bucket/object", partial, 60, 1, lambda size: None), 4)
        return partial.path.stat().st_size


READERS: dict[str, Callable[[], int]] = {"obstore": read_obstore, "s3fs": read_s3fs, "packvit": read_packvit}


def own_children() -> list[str]:
    """Numbers of the processes that this one started, but for those that are not counted."""
    tasks = Path("/proc/self/task").iterdir()
    found = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in found if pid not in uncounted]


def spent() -> float:
    """CPU seconds of this process and of those that it started."""
    total = 0
    for pid in ("self", *own_children()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def memory(field: str) -> float:
    """Megabytes of this process and of those that it started: VmRSS, or VmHWM at the peak."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in ("self", *own_children())]
    return sum(int(text.split(f"{field}:")[1].split()[0]) / 1e3 for text in texts)


def read_here(name: str) -> dict[str, float]:
    """Megabytes per second, CPU seconds per gigabyte, and peak megabytes beyond those before."""
    without = memory("VmRSS")
    READERS[name]()
    before, began = spent(), time.perf_counter()
    size = sum(READERS[name]() for _ in range(READS))
    seconds = time.perf_counter() - began
    return {
        "mb_per_s": size / seconds / 1e6,
        "cpu_s_per_gb": (spent() - before) / size * 1e9,
        "peak_mb": memory("VmHWM") - without,
    }


def read_after_fork(name: str) -> bool:
    """Whether a child can read, too."""
    READERS[name]()
    child = os.fork()
    if child == 0:
        READERS[name]()
        os._exit(0)
    end = time.monotonic() + FORK_LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def elsewhere(task: str, name: str) -> str:
    """The answer of this file in another process; empty if it failed."""
    command = [sys.executable, __file__, "--task", task, "--name", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_megabytes(names: list[str]) -> float:
    """Of the packages and what they need beyond packvit's own."""

    def closure(name: str, found: set[str]) -> set[str]:
        if name not in found:
            found.add(name)
            for text in importlib.metadata.requires(name) or ():
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    closure(need.name.lower().replace("_", "-"), found)
        return found

    own: set[str] = set()
    for name in ("torch", "webdataset", "tyro", "rich", "numpy"):
        closure(name, own)
    total = 0
    for package in set().union(*(closure(name, set()) for name in names)) - own:
        files = importlib.metadata.distribution(package).files or ()
        total += sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
    return total / 1e6


def compare(server: FaultyServer) -> list[list[str]]:
    """A row for each library."""
    rounds: dict[str, list[dict]] = {name: [] for name in READERS}
    for _ in range(ROUNDS):
        for name, found in rounds.items():
            found.append(json.loads(elsewhere("read", name)))
    rows = []
    for name, found in rounds.items():
        server.answers = [None, "cut"]  # the first read is to warm up
        goes_on = bool(elsewhere("read", name))
        server.answers = []
        forks = elsewhere("fork", name) == "True"
        cells = [f"{median(one[key] for one in found):,.{digits}f}" for key, digits in DIGITS.items()]
        size = f"{installed_megabytes(READ_BY[name]):.0f}"
        rows.append([name, *cells, size, "yes" if goes_on else "no", "yes" if forks else "hangs"])
    return rows


DIGITS = {"mb_per_s": 0, "cpu_s_per_gb": 2, "peak_mb": 0}
HEADER = (
    "| read by | MB/s | CPU s per GB | memory, MB | installed, MB "
    "| continues after a cut | works after a fork |"
)


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 640x480 with as many bytes as a photograph has."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480))
    pixels = np.asarray(coarse) + rng.normal(0, 8, (480, 640, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=85)
    return buffer.getvalue()


def images_per_cpu_second(shards: tuple[str, ...]) -> float:
    """Of the loader over all images once, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PACKVIT_CACHE"] = cache
        data = DataConfig(shards, workers=0, streams=1, shuffle_shards=1, fetch=FetchConfig())
        views = ViewsConfig(patch_sizes=(16,), resolution=ResolutionConfig(64, 256, "uniform"))
        plan = DataPlan(data, views, PackingConfig(seq_len=1024, sequences=4, balance=4))
        before, images, stream = spent(), 0, Stream(plan, 0)
        while images < SHARDS * IMAGES * 0.8:
            batch = stream.next_batch().batch
            assert batch is not None
            images += batch.num_images
        return images / (spent() - before)


@contextmanager
def server_elsewhere(folder: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, __file__, "--task", "serve", "--name", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    uncounted.add(str(process.pid))
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def serve(folder: Path) -> None:
    """Serve a folder until standard input ends."""
    with FaultyServer(folder) as server:
        print(f"http://{server.address}", flush=True)
        sys.stdin.read()


def compare_loader(folder: Path) -> float:
    """Images per CPU second from the store as a share of those from the disk."""
    rng = np.random.default_rng(0)
    samples = (Sample(f"s{i:04d}", photograph(rng), "jpg", 0) for i in range(SHARDS * IMAGES))
    shards = write_shards(samples, folder, IMAGES)
    places = {"disk": tuple(map(str, shards)), "store": tuple(f"s3://bucket/{path.name}" for path in shards)}
    rates: dict[str, list[float]] = {name: [] for name in places}
    with server_elsewhere(folder) as address:
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": address}
        close_idle()
        for _ in range(1 + PASSES):
            for name, paths in places.items():
                rates[name].append(images_per_cpu_second(paths))
    # The first pass starts the process that reads.
    return max(rates["store"][1:]) / max(rates["disk"][1:])


def main() -> None:
    """Measure, print, and with --write put the table into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--task", choices=["read", "fork", "serve"])
    parser.add_argument("--name")
    options = parser.parse_args()
    if options.task == "serve":
        serve(Path(options.name))
        return
    if options.task:
        print(
            json.dumps(read_here(options.name)) if options.task == "read" else read_after_fork(options.name)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "object").write_bytes(os.urandom(options.megabytes * 10**6))
        with FaultyServer(Path(folder)) as server:
            os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://{server.address}"}
            rows = compare(server)
        share = compare_loader(Path(folder))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("obstore", "s3fs"))
    lines = [HEADER, "| --- |" + " ---: |" * 6, *("| " + " | ".join(row) + " |" for row in rows)]
    lines += [
        "",
        f"{versions}; an object of {options.megabytes} MB. With an empty cache the loader reads {share:.2f}x",
        "as many photographs of 640x480 per CPU second from the store as from the disk.",
    ]
    print("\n".join(lines))
    if options.write:
        replace_section("storage", lines, PAGE)


if __name__ == "__main__":
    main()
