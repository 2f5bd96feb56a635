"""The cost of every rank's part of a step, simulated on a trace of views.

Each rank is a stream with training's packer and dealer; nothing is decoded and nothing trained. A step takes
as long as its slowest rank, so what counts is max / mean over the ranks of a step.

The rules of other projects are written anew from their sources, at the commits named here:

- VeOmni (ByteDance-Seed/VeOmni d9774494, veomni/utils/data_balance/balance_sorting_algo.py): the images of
  all ranks in a step, longest first, each to the rank with the least sum of n^2; their pixels travel.
- NeMo Automodel (NVIDIA-NeMo/Automodel 36044ad3d): the cost n (n + 3 D) of an image of n patches
  (components/distributed/cp_vision_frame_shard.py), by which it cuts the images of one batch into contiguous
  parts; here it takes the place of n^2 in VeOmni's rule. And `greedy_knapsack_vt_balanced`
  (components/datasets/vlm/neat_packing_vlm.py): the whole set is packed longest first, each image into the
  emptiest sequence or a new one, and sequences are sorted by their tokens, so that ranks get similar ones.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from packvit.models import ViTConfig
from packvit.packing import Dealer, PackingConfig, ViewsConfig, draw_view, views_at

SIZES = ((375, 500), (500, 375), (480, 640), (333, 500), (768, 1024), (427, 640))  # height, width
POOL = 50_000  # views that are drawn; ranks take them in orders of their own
Sequences = list[list[int]]  # the lengths of their views


@dataclass(frozen=True)
class Trace:
    """The batches of some ranks: steps[s][r] are the sequences of rank r in step s."""

    packing: PackingConfig
    model: ViTConfig
    steps: list[list[Sequences]]

    def cost(self, tokens: int, squares: int) -> int:
        """Forward FLOPs of the blocks for so many slots and the sum of squares of the views' lengths."""
        linear, attention = self.model.linear_flops(tokens), self.model.attention_flops(squares)
        return self.model.depth * (linear + attention)

    def packed_cost(self, sequences: Sequences) -> int:
        """The cost of a batch of packed sequences, padding included."""
        squares = sum(n * n for some in sequences for n in some)
        return self.cost(len(sequences) * self.packing.seq_len, squares)

    def first(self, ranks: int) -> "Trace":
        """The same for only some of the ranks."""
        return replace(self, steps=[step[:ranks] for step in self.steps])


def draw_lengths(views: ViewsConfig, seq_len: int) -> np.ndarray:
    """int64 [POOL]: tokens of views, no longer than a sequence."""
    now, rng = views_at(views, 0), Random(0)
    return np.array([draw_view(rng, rng.choice(SIZES), now, seq_len).num_tokens for _ in range(POOL)])


def batches_of_rank(lengths: np.ndarray, packing: PackingConfig, rank: int) -> Iterator[Sequences]:
    """The batches of one rank, forever."""
    rng = np.random.default_rng(rank)
    packer = packing.new_packer()
    dealer: Dealer[int] = Dealer(packing.seq_len, packing.sequences, packing.balance)
    while True:
        for length in rng.choice(lengths, 1024).tolist():
            dealer.add(packer.add(0, length))
            while (batch := dealer.deal()) is not None:
                yield [[slots for _, slots in contents] for contents in batch]


def make_trace(
    lengths: np.ndarray, packing: PackingConfig, model: ViTConfig, ranks: int, steps: int, warm: int
) -> Trace:
    """`steps` steps of all ranks, after `warm` others: packers begin with long views."""
    taken = []
    for rank in range(ranks):
        batches = batches_of_rank(lengths, packing, rank)
        taken.append([next(batches) for _ in range(warm + steps)][warm:])
    return Trace(packing, model, [[own[step] for own in taken] for step in range(steps)])


def as_packed(trace: Trace) -> list[list[int]]:
    """The cost of each rank in each step, as packvit deals."""
    return [[trace.packed_cost(batch) for batch in step] for step in trace.steps]


def exchanged(trace: Trace, weight: Callable[[int], int]) -> list[list[int]]:
    """The same if the images of a step are dealt anew to the ranks by VeOmni's rule; without padding."""
    costs = []
    for step in trace.steps:
        images = sorted((n for batch in step for some in batch for n in some), reverse=True)
        ranks = [(0, rank) for rank in range(len(step))]
        tokens, squares = [0] * len(step), [0] * len(step)
        for n in images:
            load, rank = ranks[0]
            heapq.heapreplace(ranks, (load + weight(n), rank))
            tokens[rank] += n
            squares[rank] += n * n
        costs.append([trace.cost(*pair) for pair in zip(tokens, squares, strict=True)])
    return costs


def sorted_knapsack(trace: Trace) -> list[list[int]]:
    """The same if all images of all steps are packed and sorted by NeMo Automodel's rule."""
    images = sorted(
        (n for step in trace.steps for batch in step for some in batch for n in some), reverse=True
    )
    packs: Sequences = []
    emptiest: list[tuple[int, int]] = []  # (tokens, place)
    for n in images:
        if emptiest and emptiest[0][0] + n <= trace.packing.seq_len:
            tokens, place = emptiest[0]
            packs[place].append(n)
            heapq.heapreplace(emptiest, (tokens + n, place))
        else:
            heapq.heappush(emptiest, (n, len(packs)))
            packs.append([n])
    packs.sort(key=sum)
    ranks, each = len(trace.steps[0]), trace.packing.sequences
    # A step takes ranks x B consecutive sequences, and each rank every ranks-th of them.
    whole = len(packs) // (ranks * each)
    steps = [packs[step * ranks * each : (step + 1) * ranks * each] for step in range(whole)]
    return [[trace.packed_cost(step[rank::ranks]) for rank in range(ranks)] for step in steps]


def max_over_mean(costs: Sequence[Sequence[int]]) -> dict[str, float]:
    """How much the slowest rank takes over the mean: in the mean of all steps, and in the worst."""
    table = np.array(costs, float)
    over = table.max(1) / table.mean(1)
    return {"mean": round(float(over.mean()), 5), "worst": round(float(over.max()), 5)}
