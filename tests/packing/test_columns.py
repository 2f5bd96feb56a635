"""Lists of integers as a little text."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import Batches, PackingConfig, squeeze_waiting, waiting_names
from packvit.packing.packers.columns import expand, squeeze

small = st.integers(-300, 300)
items = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.lists(small | st.just(2**62), min_size=width, max_size=width), max_size=9)
    )
)


@given(items)
def test_lists_come_back_as_they_were(sequences):
    squeezed = json.loads(json.dumps(squeeze(sequences)))
    assert expand(squeezed) == sequences
    assert expand(sequences) == sequences


def test_columns_of_many_values_come_back_as_they_were():
    rng = Random(0)
    sequences = [[[rng.randrange(-(10**12), 10**12), place] for place in range(400)], []]
    assert expand(squeeze(sequences)) == sequences


@pytest.mark.parametrize("step", [1, 256, 65_536, 2**40])
@pytest.mark.parametrize("groups", [1, 200])
def test_columns_with_bytes_of_zeros_come_back_as_they_were(step: int, groups: int):
    """Such as the members of a part of a shard: every 256th."""
    sequences = [[[7 + place % groups + place // groups * step, place] for place in range(700)]]
    assert expand(squeeze(sequences)) == sequences


def test_what_waits_takes_few_bytes():
    """References into shards of 1000 samples, of which four are shuffled together, as a stream has them."""
    rng, batches = Random(0), Batches(PackingConfig(seq_len=256, sequences=32, balance=8))
    for group in range(3):
        members = [(rng.randrange(10**6), member) for member in range(1000)]
        rng.shuffle(members)
        for place, (shard, member) in enumerate(members):
            tokens = rng.randrange(10, 90)
            batches.add((shard % 4, member, 1000 * group + place, tokens), tokens)
        while batches.next() is not None:
            pass
    plain = batches.state_dict(list)
    state = squeeze_waiting(plain)
    waiting = list(waiting_names(state))
    assert waiting == list(map(list, waiting_names(plain)))
    assert len(waiting) > 1000
    assert len(json.dumps(state)) < 7 * len(waiting)
    assert len(json.dumps(waiting)) > 15 * len(waiting)
    assert squeeze_waiting(json.loads(json.dumps(state))) == state
