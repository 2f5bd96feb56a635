"""Dealing sequences into batches: nothing lost, nobody left behind, equal cost."""

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import Dealer, make_packer
from packvit.packing.packers.dealer import attention_cost, swap

SEQ_LEN = 10
sequences_of_lengths = st.lists(
    st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=4)
    | st.integers(1, 4 * SEQ_LEN).map(lambda n: [n]),
    max_size=60,
)


def number(rows: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Each length with a number of its own."""
    numbers = iter(range(10**6))
    return [[(next(numbers), length) for length in row] for row in rows]


def deal_all(dealer: Dealer, rows) -> list:
    batches = []
    for row in rows:
        dealer.add([row])
        while (batch := dealer.deal()) is not None:
            batches.append(batch)
    return batches


@given(rows=sequences_of_lengths.map(number), balance=st.integers(1, 5))
def test_sequences_leave_once_whole_and_the_oldest_first(rows, balance):
    dealer = Dealer(SEQ_LEN, 4, balance)
    waiting = []
    for row in rows:
        dealer.add([row])
        waiting.append(row)
        while (batch := dealer.deal()) is not None:
            assert waiting[0] in batch
            assert sum(-(-max(length for _, length in row) // SEQ_LEN) for row in batch) <= 4
            for dealt in batch:
                waiting.remove(dealt)
    assert dealer.state_dict()["rows"] == waiting
    assert len(waiting) < 2 * 4 * balance


@given(rows=st.lists(st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=4), max_size=60).map(number))
def test_without_balance_sequences_leave_in_order(rows):
    batches = deal_all(Dealer(SEQ_LEN, 4, 1), rows)
    assert list(chain.from_iterable(batches)) == rows[: len(rows) // 4 * 4]
    assert all(len(batch) == 4 for batch in batches)


@given(rows=sequences_of_lengths.map(number), balance=st.integers(1, 5), data=st.data())
def test_saving_and_restoring_anywhere_changes_nothing(rows, balance, data):
    cut = data.draw(st.integers(0, len(rows)))
    first, second = Dealer(SEQ_LEN, 4, balance), Dealer(SEQ_LEN, 4, balance)
    batches = deal_all(first, rows[:cut])
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state | {"rows": [[tuple(pair) for pair in row] for row in state["rows"]]})
    batches += deal_all(second, rows[cut:])
    assert batches == deal_all(Dealer(SEQ_LEN, 4, balance), rows)


@given(rows=sequences_of_lengths.map(number), most_items=st.integers(1, 60))
def test_a_window_of_many_items_is_short(rows, most_items):
    dealer, whole = Dealer(SEQ_LEN, 4, 6, most_items), Dealer(SEQ_LEN, 4, 6)
    batches = deal_all(dealer, rows)
    waiting = dealer.state_dict()["rows"]
    long = any(row[0][1] > SEQ_LEN for row in rows)
    assert long or len(waiting) < 2 * 4 or sum(map(len, waiting)) < most_items
    assert sum(map(len, rows)) >= most_items or batches == deal_all(whole, rows)


@given(
    items=st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.booleans()), min_size=1, max_size=12),
    target=st.floats(0, 300),
)
def test_no_swap_brings_the_sum_closer(items, target):
    costs, inside, fixed = (np.array(column) for column in zip(*items, strict=True))
    after = swap(costs.astype(float), inside, fixed, target)
    assert after.sum() == inside.sum()
    assert after[inside & fixed].all()
    gap = target - costs[after].sum()
    assert abs(gap) <= abs(target - costs[inside].sum())
    for leaves in np.flatnonzero(after & ~(inside & fixed)):
        for comes in np.flatnonzero(~after):
            assert abs(gap - costs[comes] + costs[leaves]) > abs(gap) - 1e-9


@pytest.mark.parametrize(
    ("sequences", "lengths", "most"), [(8, range(1, 200), 0.03), (32, (25, 100, 225), 0.02)]
)
def test_ranks_cost_the_same(sequences, lengths, most):
    """Also with many sequences whose costs are far from each other, so that a batch needs many swaps."""

    def batch_costs(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        packer, dealer = make_packer(256), Dealer(256, sequences, 8)
        drawn = rng.choice(lengths, 8000).tolist()
        rows = [row for n in drawn for row in packer.add(0, n)]
        return [sum(map(attention_cost, batch)) for batch in deal_all(dealer, rows)]

    costs = [batch_costs(seed) for seed in range(8)]
    steps = min(map(len, costs))
    for ranks in (2, 4):
        table = np.array([stream[:steps] for stream in costs]).reshape(8 // ranks, ranks, steps)
        spread = (table.max(1) - table.min(1)) / table.mean(1)
        assert spread.mean() < most


def test_an_item_longer_than_a_batch_is_refused():
    dealer = Dealer(10, 4)
    dealer.add([[("a", 40)]])
    for refuse in (
        lambda: Dealer(10, 2).load_state_dict(dealer.state_dict()),
        lambda: Dealer(10, 2).add([[("b", 21)]]),
    ):
        with pytest.raises(ValueError, match="longer than a batch of 2 sequences of 10: raise"):
            refuse()
