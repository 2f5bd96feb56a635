"""Hit runs with faults of all kinds, again and again: was anything lost, seen twice, hung or left over?

`.venv/bin/python benchmarks/chaos.py` (half an hour on two cores; Linux; root, for a small disk of its own)
prints a table, writes benchmarks/results/chaos.json and the table of docs/reliability.md, and ends with
status 1 if anything was wrong. `--faults 200 --seed 0 --minutes 60` are the defaults; `--keep FOLDER` leaves
all files there.

Two runs of a tiny model under torchrun read six shards from a folder and six from a web server that
misbehaves. Each life of a run has 1, 2 or 3 ranks with 0, 1 or 2 workers and writes its checkpoints in the
foreground or the background; a fault ends it, and the same command starts the next. The batches of a step are
the same for any number of ranks.

- `nothing-lost`: faults of processes, checkpoints, logs, the disk and the network. In the end the run is
  repeated in peace, with the same ranks for the same steps, and has to be equal bit for bit: losses, samples,
  weights.
- `samples-lost`: shards are damaged, too. Every sample of the epochs has to be in audit.jsonl or
  skipped.jsonl, once.

Every life has to end within its time-out, without a process or a file left over. A fault is counted when it
was done: a signal sent, a wrong answer given, damage to a shard named by the run.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch

from faults.audit import check_equal, check_left_over, check_samples
from faults.campaign import BATCHES, LIMIT, TIMEOUT, Campaign
from faults.damage import Damage
from faults.kinds import ENDINGS, FULL, GONE, LOCAL_LOSSES, NETWORK, RESTING
from faults.network import Network
from faults.record import Deck, Injected
from faults.server import FaultyServer
from gpu.results import FOLDER, ROOT, commit, replace_section, save, table
from packvit.data import write_digits

SHARDS, IMAGES = 12, 40  # half of the shards are on the server; images of a shard
SEED = 0  # of the runs
DISK = 64  # MB of the disk that becomes full
MORE = 20  # steps after the last fault
SHARED = Path("/dev/shm")
FLAGS = f"""
    digits --seed {SEED} --data.streams {BATCHES} --data.shuffle-shards 1 --data.audit
    --data.max-bad-fraction 1 --data.fetch.timeout 2 --data.fetch.cache-gb 0.0006
    --views.patch-sizes 8 16 --views.resolution.low 24 --views.resolution.high 40
    --packing.seq-len 64 --packing.sequences 2 --packing.lookahead 16 --packing.balance 4
    --model.width 32 --model.depth 1 --model.heads 2 --optim.kind adamw --optim.warmup 2
    --optim.schedule constant --train.ema 0 --train.precision fp32 --train.log-every 1
    --train.checkpoint-every 10 --train.timeout {TIMEOUT / 60}
""".split()


def deal(faults: int, kinds: Sequence[str], rng: Random) -> tuple[Deck, Deck]:
    """So many faults: for the run that loses nothing, and for the other.

    All kinds come equally often; those of which a life has several twice as often as others.
    """
    kinds = [*kinds, *RESTING, *NETWORK]
    cards = [kinds[number % len(kinds)] for number in range(faults)]
    rng.shuffle(cards)
    endings = [kind for kind in cards if kind in ENDINGS]
    fifth = len(endings) // 5
    nothing_lost = Deck(
        endings[fifth:],
        [kind for kind in cards if kind in RESTING],
        [kind for kind in cards if kind in NETWORK],
    )
    losses = [kind for kind in cards if kind in LOCAL_LOSSES or kind == GONE]
    return nothing_lost, Deck(endings[:fifth], losses=losses)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of DISK MB at `folder`; whether that could be done."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def make_shards(folder: Path) -> None:
    """`whole` has all shards, `served` those of the server."""
    write_digits(folder / "digits", SHARDS * IMAGES, 10, shard_size=IMAGES)
    (folder / "digits/train").rename(folder / "whole")
    (folder / "served").mkdir()
    names = sorted(path.name for path in (folder / "whole").glob("*.tar"))
    for name in (*names[SHARDS // 2 :], "manifest.json"):
        shutil.copy(folder / "whole" / name, folder / "served")


def prepare(folder: Path, base: Path, server: FaultyServer, deck: Deck, rng: Random) -> Campaign:
    """A run in `folder`, with its own copies of the local shards of `base`."""
    local, run_dir = folder / "local", folder / "disk/run"
    local.mkdir(parents=True)
    for number in range(SHARDS // 2):
        shutil.copy(base / "whole" / f"shard-{number:06d}.tar", local)
    shutil.copy(base / "whole/manifest.json", local)
    (folder / "tmp").mkdir()
    environment = {
        "PACKVIT_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    url = f"http://{server.address}/shard-{{{SHARDS // 2:06d}..{SHARDS - 1:06d}}}.tar"
    network = Network(server, deck.network, rng)
    damage = Damage(deck.losses, local, base / "whole", run_dir, network, rng)
    flags = [*FLAGS, "--data.shards", str(local), url]
    return Campaign(folder, run_dir, flags, deck, (network, damage), environment, rng)


def repeat(campaign: Campaign, run_dir: Path) -> list[str]:
    """Run the same steps in peace with the same ranks; what is wrong with that."""
    ends = [step for step, _ in campaign.history[1:]] + [campaign.newest()]
    segments = [(end, ranks) for (_, ranks), end in zip(campaign.history, ends, strict=True)]
    calm = Campaign(
        campaign.folder / "calm",
        run_dir,
        campaign.flags,
        Deck(),
        (campaign.network, campaign.damage),
        campaign.environment,
        Random(0),
    )
    calm.folder.mkdir()
    for place, (end, ranks) in enumerate(segments):
        if place + 1 < len(segments) and segments[place + 1][1] == ranks:
            continue
        calm.ranks = ranks
        calm.finish(end - calm.newest())
    return [f"in peace: {sentence}" for sentence in calm.wrong]


def left_in_memory(before: set[str]) -> list[str]:
    """What is in /dev/shm since then, of processes that are gone; other users may use it, too."""
    wrong = []
    for name in sorted({path.name for path in SHARED.iterdir()} - before):
        owner = name.split("_")[1] if name.startswith("torch_") else ""
        if name.startswith("sem.") or (owner and not Path(f"/proc/{owner}").exists()):
            wrong.append(f"{SHARED / name} is left over")
    return wrong


def campaigns(base: Path, decks: tuple[Deck, Deck], rng: Random, deadline: float) -> list[Campaign]:
    """Both runs, with all that is wrong with them."""
    done = []
    for name, deck in zip(("nothing-lost", "samples-lost"), decks, strict=True):
        folder, before = base / name, {path.name for path in SHARED.iterdir()}
        with FaultyServer(base / "served") as server, small_disk(folder / "disk"):
            campaign = prepare(folder, base, server, deck, rng)
            campaign.play(deadline)
            campaign.finish(MORE)
            paths = [base / "whole" / f"shard-{number:06d}.tar" for number in range(SHARDS)]
            campaign.wrong += check_samples(campaign.run_dir, paths, SEED)
            campaign.wrong += check_left_over(campaign.run_dir, folder / "cache")
            if name == "nothing-lost":
                run_dir = folder / "disk/calm"
                campaign.wrong += repeat(campaign, run_dir) or check_equal(campaign.run_dir, run_dir)
            campaign.wrong += left_in_memory(before)
            campaign.faults += campaign.network.records(campaign.lives) + campaign.damage.done
            shutil.copytree(folder / "disk", folder / "kept", symlinks=True)
        done.append(campaign)
    return done


def rows(faults: Sequence[Injected]) -> list[dict[str, Any]]:
    """Of each kind: how often it came, what the run made of it, the longest time to its end and to go on."""
    kinds: dict[str, list[Injected]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    found = []
    for kind in (*ENDINGS, *RESTING, *NETWORK, *LOCAL_LOSSES, GONE):
        some = kinds.get(kind, [])
        ends = [fault.ended for fault in some if fault.ended is not None]
        recoveries = [fault.recovered for fault in some if fault.recovered is not None]
        found.append(
            {
                "fault": kind,
                "times": len(some),
                "outcomes": dict(Counter(fault.outcome for fault in some).most_common()),
                "longest_end_s": round(max(ends), 1) if ends else None,
                "longest_recovery_s": round(max(recoveries), 1) if recoveries else None,
            }
        )
    return found


def lines_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """The same as lines of Markdown."""
    cells = []
    for row in found:
        outcomes = ", ".join(f"{what} ({times})" for what, times in row["outcomes"].items())
        seconds = [
            "" if row[name] is None else f"{row[name]:.1f}"
            for name in ("longest_end_s", "longest_recovery_s")
        ]
        cells.append([row["fault"], str(row["times"]), *seconds, outcomes])
    return table(["fault", "times", "longest end, s", "longest recovery, s", "outcome"], cells)


def summary(results: dict[str, Any]) -> str:
    """A sentence on the whole."""
    steps = " and ".join(f"{number} steps" for number in results["steps"].values())
    return (
        f"{results['faults']} faults of {results['kinds']} kinds in {results['lives']} lives of two runs, "
        f"{steps}, {results['minutes']:.0f} minutes; wrong: {len(results['wrong']) or 'nothing'}. Measured "
        f"at {results['commit']}, torch {results['torch']}, Python {results['python']}, "
        f"{results['machine']}: `.venv/bin/python {results['command']}`."
    )


def main() -> int:
    """Play, look, write down; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    began, rng = time.monotonic(), Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        base = options.keep or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        with small_disk(base / "trial") as mounted:
            kinds = [*ENDINGS, *RESTING, *NETWORK, *LOCAL_LOSSES, GONE]
            if not mounted:
                kinds.remove(FULL)
                print("No disk can be mounted here: none becomes full", flush=True)
        make_shards(base)
        done = campaigns(base, deal(options.faults, kinds, rng), rng, began + 60 * options.minutes)
    faults = [fault for campaign in done for fault in campaign.faults]
    found, wrong = rows(faults), [sentence for campaign in done for sentence in campaign.wrong]
    print("\n".join(lines_of(found)))
    print("\n".join(wrong) or "Nothing lost, nothing hung, nothing left over")
    results = {
        "command": f"benchmarks/chaos.py --faults {options.faults} --seed {options.seed}",
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "faults": len(faults),
        "kinds": sum(row["times"] > 0 for row in found),
        "lives": sum(len(campaign.lives) for campaign in done),
        "steps": {campaign.folder.name: campaign.last for campaign in done},
        "minutes": round((time.monotonic() - began) / 60, 1),
        "time_out_s": TIMEOUT,
        "limit_s": LIMIT,
        "wrong": wrong,
        "table": found,
    }
    save(FOLDER / "chaos.json", results)
    replace_section("chaos", [summary(results), "", *lines_of(found)], ROOT / "docs/reliability.md")
    return 1 if wrong or len(faults) < options.faults else 0


if __name__ == "__main__":
    sys.exit(main())
