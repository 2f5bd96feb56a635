"""Packers: laws that hold for any items, and examples that show the rule."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import PackingConfig, make_packer, pack_lengths
from packvit.packing.policy import PACKERS

ALGORITHMS = sorted(PACKERS)
lengths_and_limit = st.integers(1, 60).flatmap(
    lambda limit: st.tuples(st.lists(st.integers(1, limit), max_size=80), st.just(limit))
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=lengths_and_limit, lookahead=st.integers(1, 20))
def test_every_item_once_and_never_over_the_limit(algorithm, case, lookahead):
    lengths, seq_len = case
    sequences = pack_lengths(lengths, seq_len, algorithm, lookahead)
    assert Counter(i for sequence in sequences for i in sequence) == Counter(range(len(lengths)))
    assert all(sequences)
    assert all(sum(lengths[i] for i in sequence) <= seq_len for sequence in sequences)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=lengths_and_limit, lookahead=st.integers(1, 20), data=st.data())
def test_saving_and_restoring_anywhere_changes_nothing(algorithm, case, lookahead, data):
    lengths, seq_len = case
    cut = data.draw(st.integers(0, len(lengths)))
    packer = make_packer(seq_len, algorithm, lookahead)
    sequences = [s for i in range(cut) for s in packer.add(i, lengths[i])]
    restored = make_packer(seq_len, algorithm, lookahead)
    restored.restore([tuple(pair) for pair in json.loads(json.dumps(packer.waiting()))])
    sequences += [s for i in range(cut, len(lengths)) for s in restored.add(i, lengths[i])]
    assert sequences + restored.flush() == pack_lengths(lengths, seq_len, algorithm, lookahead)


@given(case=lengths_and_limit, lookahead=st.integers(1, 12))
def test_oldest_first_starves_nobody(case, lookahead):
    lengths, seq_len = case
    packer = make_packer(seq_len, "oldest_first", lookahead)
    emitted = 0
    arrived = {}
    for i, length in enumerate(lengths):
        arrived[i] = emitted
        for sequence in packer.add(i, length):
            emitted += 1
            assert all(emitted - arrived.pop(item) <= lookahead for item in sequence)
    assert all(emitted - when < lookahead for when in arrived.values())


@given(case=lengths_and_limit, lookahead=st.integers(1, 12))
def test_oldest_first_equals_a_search_of_all_that_wait(case, lookahead):
    lengths, seq_len = case
    waiting: list[int] = []
    expected = []

    def take():
        sequence = [waiting.pop(0)]
        while True:
            room = seq_len - sum(lengths[i] for i in sequence)
            fitting = [i for i in waiting if lengths[i] <= room]
            if not fitting:
                return sequence
            chosen = max(fitting, key=lambda i: (lengths[i], -i))
            waiting.remove(chosen)
            sequence.append(chosen)

    for i in range(len(lengths)):
        waiting.append(i)
        if len(waiting) >= lookahead:
            expected.append(take())
    while waiting:
        expected.append(take())
    assert pack_lengths(lengths, seq_len, "oldest_first", lookahead) == expected


def test_examples():
    assert pack_lengths([], 8) == []
    assert pack_lengths([3, 5, 7, 2, 2], 8, "oldest_first") == [[0, 1], [2], [3, 4]]
    assert pack_lengths([3, 6, 5, 2], 8, "next_fit") == [[0], [1], [2, 3]]
    assert pack_lengths(np.array([8, 8]), 8) == [[0], [1]]


@pytest.mark.parametrize("bad", [0, -3, 9, 2.5])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bad_length_is_named_by_its_place(algorithm, bad):
    with pytest.raises(ValueError, match=r"lengths\[2\]"):
        pack_lengths([1, 2, bad, 1], 8, algorithm)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="algorithm='middle_out'"):
        pack_lengths([1], 8, "middle_out")
    with pytest.raises(ValueError, match="seq_len=0"):
        pack_lengths([1], 0)
    with pytest.raises(ValueError, match=r"packing\.sequences=0"):
        PackingConfig(sequences=0)


def test_oldest_first_pads_less_than_one_percent_and_next_fit_five_times_more():
    # Views like NaViT's: side uniform in 64..256 pixels, patches of 16.
    side = np.random.default_rng(0).uniform(64, 256, 20_000)
    lengths = (side / 16).round().astype(int) ** 2
    padding = {
        algorithm: 1 - lengths.sum() / (1024 * len(pack_lengths(lengths, 1024, algorithm)))
        for algorithm in ALGORITHMS
    }
    assert padding["oldest_first"] < 0.01
    assert padding["next_fit"] > 5 * padding["oldest_first"]
