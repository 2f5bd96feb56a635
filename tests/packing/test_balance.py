"""Dealing sequences into batches: nothing lost, nobody left behind, equal cost."""

import json
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import Dealer, make_packer
from packvit.packing.packers.batches import attention_cost

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


def test_ranks_cost_the_same():
    def batch_costs(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        packer, dealer = make_packer(256), Dealer(256, 8, 16)
        rows = [row for n in rng.integers(1, 200, 40_000).tolist() for row in packer.add(0, n)]
        return [sum(map(attention_cost, batch)) for batch in deal_all(dealer, rows)]

    costs = [batch_costs(seed) for seed in range(8)]
    steps = min(map(len, costs))
    for ranks in (2, 4):
        table = np.array([stream[:steps] for stream in costs]).reshape(8 // ranks, ranks, steps)
        spread = (table.max(1) - table.min(1)) / table.mean(1)
        assert spread.mean() < 0.02
