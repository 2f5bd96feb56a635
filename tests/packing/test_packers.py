"""Packers: laws that hold for any items, and examples that show the rule."""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import (
    DropConfig,
    PackingConfig,
    ResolutionConfig,
    ViewsConfig,
    draw_view,
    make_packer,
    pack_lengths,
)
from packvit.packing.packers.config import PACKERS, SHORTENING
from packvit.packing.packers.oldest_first import shorten

ALGORITHMS = sorted(PACKERS)
WHOLE = [name for name in ALGORITHMS if name not in SHORTENING]
lengths_and_limit = st.integers(1, 60).flatmap(
    lambda limit: st.tuples(
        st.lists(st.integers(1, limit), max_size=80)
        | st.integers(1, limit).flatmap(lambda length: st.lists(st.just(length), max_size=80)),
        st.just(limit),
    )
)
caps = st.none() | st.integers(1, 5)


def navit_mix(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of square images: side uniform in 64..256, patches of 16, NaViT's beta drop of mean 1/2."""
    rng = np.random.default_rng(seed)
    patches = (rng.uniform(64, 256, count) / 16).round() ** 2
    m = 0.5 / 0.9
    rate = 0.9 * rng.beta(m * 7 / 3, (1 - m) * 7 / 3, count)
    return np.maximum(1, (patches * (1 - rate)).round()).astype(int)


def any_patch_mix(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of square images: side uniform in 160..320, FlexiViT's ten patch sizes, nothing dropped."""
    rng = np.random.default_rng(seed)
    patch_size = rng.choice([48, 40, 30, 24, 20, 16, 15, 12, 10, 8], count)
    return ((rng.uniform(160, 320, count) / patch_size).round() ** 2).astype(int)


def packed(lengths, seq_len, algorithm, lookahead, max_images=None):
    """All sequences as (index, kept length) pairs."""
    packer = make_packer(seq_len, algorithm, lookahead, max_images)
    rows = [row for i, length in enumerate(lengths) for row in packer.add(i, length)]
    return rows + packer.flush()


def padding(rows, seq_len):
    return 1 - sum(kept for row in rows for _, kept in row) / (seq_len * len(rows))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=lengths_and_limit, lookahead=st.integers(1, 20), max_images=caps)
def test_every_item_once_and_never_over_a_limit(algorithm, case, lookahead, max_images):
    lengths, seq_len = case
    rows = packed(lengths, seq_len, algorithm, lookahead, max_images)
    assert Counter(i for row in rows for i, _ in row) == Counter(range(len(lengths)))
    assert all(rows)
    assert all(sum(kept for _, kept in row) <= seq_len for row in rows)
    assert all(len(row) <= (max_images or len(lengths)) for row in rows)
    assert all(1 <= kept <= lengths[i] for row in rows for i, kept in row)
    if algorithm not in SHORTENING:
        assert all(kept == lengths[i] for row in rows for i, kept in row)
    indices = pack_lengths(lengths, seq_len, algorithm, lookahead, max_images)
    assert indices == [[i for i, _ in row] for row in rows]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=lengths_and_limit, lookahead=st.integers(1, 20), max_images=caps, data=st.data())
def test_saving_and_restoring_anywhere_changes_nothing(algorithm, case, lookahead, max_images, data):
    lengths, seq_len = case
    cut = data.draw(st.integers(0, len(lengths)))
    packer = make_packer(seq_len, algorithm, lookahead, max_images)
    rows = [row for i in range(cut) for row in packer.add(i, lengths[i])]
    state = json.loads(json.dumps(packer.waiting()))
    restored = make_packer(seq_len, algorithm, lookahead, max_images)
    restored.add("forgotten", 1)
    restored.restore([])
    assert restored.flush() == []
    restored.restore([[tuple(pair) for pair in row] for row in state])
    assert restored.waiting() == packer.waiting()
    rows += [row for i in range(cut, len(lengths)) for row in restored.add(i, lengths[i])]
    assert rows + restored.flush() == packed(lengths, seq_len, algorithm, lookahead, max_images)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=lengths_and_limit, lookahead=st.integers(1, 12), max_images=caps)
def test_nobody_starves(algorithm, case, lookahead, max_images):
    lengths, seq_len = case
    bounds = {"next_fit": 2, "exact_fill": max(lookahead, seq_len), "best_fit_decreasing": 2 * lookahead}
    bound = bounds.get(algorithm, lookahead)
    packer = make_packer(seq_len, algorithm, lookahead, max_images)
    finished = 0
    arrived = {}
    for i, length in enumerate(lengths):
        arrived[i] = finished
        for row in packer.add(i, length):
            finished += 1
            assert all(finished - arrived.pop(item) <= bound for item, _ in row)
        assert all(finished - when < bound for when in arrived.values())
        assert sum(map(len, packer.waiting())) == len(arrived) <= max(bound, seq_len)


@given(case=lengths_and_limit, lookahead=st.integers(1, 20))
def test_exact_fill_pads_only_the_last_sequence_and_cuts_no_more_than_one_item_too_many(case, lookahead):
    lengths, seq_len = case
    rows = packed(lengths, seq_len, "exact_fill", lookahead)
    assert all(sum(kept for _, kept in row) == seq_len for row in rows[:-1])
    assert all(sum(lengths[i] for i, _ in row[:-1]) < seq_len for row in rows)


@given(
    st.integers(1, 60).flatmap(
        lambda limit: st.tuples(st.lists(st.integers(1, limit), min_size=1, max_size=limit), st.just(limit))
    )
)
def test_cuts_are_shared_in_proportion(case):
    lengths, seq_len = case
    kept = [length for _, length in shorten(list(enumerate(lengths)), seq_len)]
    total = sum(lengths)
    assert sum(kept) == min(total, seq_len)
    assert min(kept) >= 1
    share = max(0, total - seq_len) / max(1, total - len(lengths))
    assert all(
        before - after <= share * (before - 1) + 1 for before, after in zip(lengths, kept, strict=True)
    )


@given(case=lengths_and_limit, lookahead=st.integers(1, 12))
def test_oldest_first_equals_a_search_of_all_that_wait(case, lookahead):
    lengths, seq_len = case
    waiting: list[int] = []
    expected = []

    def choose(room):
        fitting = [i for i in waiting if lengths[i] <= room]
        if not fitting:
            return []
        longest = min(fitting, key=lambda i: (-lengths[i], i))
        scarce = 2 * sum(lengths[i] for i in waiting) > seq_len * len(waiting)
        pairs = [(i, j) for i in fitting for j in fitting if i != j and lengths[i] + lengths[j] == room]
        if lengths[longest] == room or scarce or not pairs:
            return [longest]
        return min(pairs, key=lambda pair: (-lengths[pair[0]], pair))

    def fill():
        sequence = [waiting.pop(0)]
        while chosen := choose(seq_len - sum(lengths[i] for i in sequence)):
            for i in chosen:
                waiting.remove(i)
                sequence.append(i)
        return sequence

    for i in range(len(lengths)):
        waiting.append(i)
        if len(waiting) >= lookahead:
            expected.append(fill())
    while waiting:
        expected.append(fill())
    assert pack_lengths(lengths, seq_len, "oldest_first", lookahead) == expected


@pytest.mark.parametrize("algorithm", ["first_fit", "best_fit"])
@given(case=lengths_and_limit, lookahead=st.integers(1, 12), max_images=caps)
def test_fits_equal_a_search_of_all_open_sequences(algorithm, case, lookahead, max_images):
    lengths, seq_len = case
    opened: list[list[int]] = []
    expected = []

    def room(sequence):
        return seq_len - sum(lengths[i] for i in sequence) if len(sequence) < (max_images or 99) else 0

    for i, length in enumerate(lengths):
        fitting = [sequence for sequence in opened if room(sequence) >= length]
        if not fitting:
            opened.append([i])
        elif algorithm == "first_fit":
            fitting[0].append(i)
        else:
            min(fitting, key=room).append(i)
        if sum(map(len, opened)) >= lookahead:
            expected.append(opened.pop(0))
    assert pack_lengths(lengths, seq_len, algorithm, lookahead, max_images) == expected + opened


def test_examples():
    assert pack_lengths([], 8) == []
    assert pack_lengths([3, 5, 7, 2, 2], 8, "oldest_first") == [[0, 1], [2], [3, 4]]
    assert pack_lengths([2, 4, 3, 3, 6], 8, "oldest_first") == [[0, 4], [1, 2], [3]]
    assert pack_lengths([2, 5, 4, 2], 8, "oldest_first") == [[0, 2, 3], [1]]
    assert pack_lengths([3, 6, 5, 2], 8, "next_fit") == [[0], [1], [2, 3]]
    assert pack_lengths([5, 3, 4, 3, 1], 8, "first_fit") == [[0, 1], [2, 3, 4]]
    assert pack_lengths([4, 6, 2], 8, "best_fit") == [[0], [1, 2]]
    assert pack_lengths([2, 3, 6, 5], 8, "best_fit_decreasing") == [[2, 0], [3, 1]]
    assert packed([6, 6, 6], 8, "exact_fill", 3) == [[(0, 4), (1, 4)], [(2, 6)]]
    assert pack_lengths(np.array([8, 8], np.int32), 8) == [[0], [1]]


@pytest.mark.parametrize(
    "bad", [0, -3, 9, 2.5, 2.0, float("nan"), "3", True, None, np.int64(9), np.float32(3)]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bad_length_is_named_by_its_place(algorithm, bad):
    with pytest.raises(
        ValueError, match=r"^lengths\[2\]: length .* is not an integer in 1\.\.8 \(seq_len\)$"
    ):
        pack_lengths([1, 2, bad, 1], 8, algorithm)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="algorithm='middle_out'"):
        pack_lengths([1], 8, "middle_out")
    with pytest.raises(ValueError, match="seq_len=0"):
        pack_lengths([1], 0)
    with pytest.raises(ValueError, match="max_images=0"):
        pack_lengths([1], 8, max_images=0)
    with pytest.raises(ValueError, match=r"packing\.sequences=0"):
        PackingConfig(sequences=0)
    with pytest.raises(ValueError, match=r"packing\.max_batch_images=7"):
        PackingConfig(sequences=8, max_batch_images=7)


def test_a_batch_limit_is_shared_by_its_sequences():
    assert PackingConfig().sequence_images is None
    assert PackingConfig(max_images=5).sequence_images == 5
    assert PackingConfig(max_images=5, sequences=4, max_batch_images=19).sequence_images == 4


@pytest.mark.parametrize(
    ("lengths", "seq_len", "bar"), [(navit_mix(20_000), 256, 0.001), (any_patch_mix(20_000), 2048, 0.0035)]
)
def test_padding_stays_under_its_bar(lengths, seq_len, bar):
    assert padding(packed(lengths, seq_len, "oldest_first", 256), seq_len) <= bar
    exact = packed(lengths, seq_len, "exact_fill", 256)
    assert padding(exact[:-1], seq_len) == 0
    lost = np.array([1 - kept / lengths[i] for row in exact for i, kept in row])
    assert lost.mean() < 0.003
    assert lost.max() < 0.15


def test_exact_fill_keeps_resolutions_and_patch_sizes_and_hardly_any_bias():
    config = ViewsConfig(
        (8, 16, 32), drop=DropConfig("beta"), resolution=ResolutionConfig(64, 256, "uniform")
    )
    views = [draw_view(Random(i), (300, 400), config, 512) for i in range(10_000)]
    kept = sorted(
        pair for row in packed([v.num_tokens for v in views], 512, "exact_fill", 256) for pair in row
    )
    shown = [replace(view, num_tokens=tokens) for view, (_, tokens) in zip(views, kept, strict=True)]
    for feature in (lambda v: v.patch_size, lambda v: v.grid):
        assert Counter(map(feature, shown)) == Counter(map(feature, views))
    for p in config.patch_sizes:
        before, after = (np.mean([v.drop_rate for v in some if v.patch_size == p]) for some in (views, shown))
        assert before <= after < before + 0.002


def test_pairs_do_not_use_up_short_items_where_they_are_scarce():
    lengths = np.random.default_rng(0).integers(1, 1025, 20_000)
    assert padding(packed(lengths, 1024, "oldest_first", 256), 1024) < 0.02
    exact = packed(lengths, 1024, "exact_fill", 256)
    assert sum(kept for row in exact for _, kept in row) > 0.98 * lengths.sum()
