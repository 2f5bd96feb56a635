"""What benchmarks/loaders.py relies on: the packing that a peer's user writes, and the clock."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import cut_patches
from pipelines.clock import cpu_seconds
from pipelines.pack import PATCH, SEQ_LEN, SEQUENCES, pack
from pipelines.page import over

grids = st.tuples(st.integers(1, 16), st.integers(1, 16))


@given(sizes=st.lists(grids, max_size=60), seed=st.integers(0, 9))
def test_every_patch_is_in_one_slot_in_order(sizes, seed):
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(1, 256, (rows * PATCH, cols * PATCH, 3), np.uint8) for rows, cols in sizes]
    shown = 0
    for batch in pack((pixels, place) for place, pixels in enumerate(pictures)):
        assert batch.patches.shape == (SEQUENCES, SEQ_LEN, PATCH * PATCH * 3)
        for image, label in enumerate(batch.labels):
            assert label == shown
            mine = batch.image_index == image
            rows, cols = sizes[shown]
            np.testing.assert_array_equal(batch.patches[mine], cut_patches(pictures[shown], PATCH, None))
            np.testing.assert_array_equal(batch.coords[mine], np.argwhere(np.ones((rows, cols))))
            shown += 1
        assert not batch.patches[batch.image_index < 0].any()
    assert sum(rows * cols for rows, cols in sizes[shown:]) <= SEQUENCES * SEQ_LEN


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_clock_counts_processes_that_run_and_that_ended():
    spin = "import time\nwhile time.process_time() < 0.3: pass\n"
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", spin], check=True)
    ended = cpu_seconds() - before
    assert ended > 0.25
    running = subprocess.Popen(
        [sys.executable, "-c", spin + "print('x', flush=True)\ninput()"], stdin=-1, stdout=-1
    )
    assert running.stdout is not None
    running.stdout.readline()
    assert cpu_seconds() - before > ended + 0.25
    running.communicate(os.linesep.encode())


def test_the_best_rounds_are_compared():
    found = {
        "packvit": {"cpu": [3.0, 4.0]},
        "litdata": {"cpu": [1.0, 2.0]},
        "grain": {"error": "it is not there"},
    }
    assert over(found, "packvit", ["litdata", "grain"], "cpu") == "2.00x"
    assert over(found, "packvit", ["grain"], "cpu") == over({}, "packvit", ["litdata"], "cpu") == "-"
