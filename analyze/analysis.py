"""How well views pack, from sizes alone: drawn, packed and measured without a pixel or a tensor.

Every image gets a view drawn as in training, and the token counts go through training's packers in a shuffled
order. This takes 4 bytes of memory for each view and sequence length.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from packvit.analyze.cost import CostConfig, Work, alone, pad_to_longest, sorted_buckets
from packvit.analyze.measure import Packed, measure
from packvit.packing import ResolutionConfig, ViewsConfig, derive_seed, draw_view, make_packer, views_at
from packvit.packing.packers.config import PACKERS

WIDE = 20  # times the fewest tokens, from which on a histogram is logarithmic
TOLERANCE = 0.001  # waste that counts as equal to the best, and share of views that may be longer than S
CHUNK = 20_000  # views drawn by one job
NATIVE = ResolutionConfig(low=2**24, high=2**24, distribution="uniform", upscale=False)

# (what, function, argument tuples) -> results in order: `packvit.common.engine` runs them in processes.
Run = Callable[[str, Callable[..., Any], Sequence[tuple]], Iterable[Any]]


@dataclass(frozen=True)
class AnalysisConfig:
    """What is tried.

    Args:
        seq_lens: sequence lengths S.
        algorithms: names of packers.
        lookaheads: views that a packer may choose among.
        model: the model whose FLOPs are estimated.
        batch_images: images in a padded batch, with which packing is compared.
        epochs: number of views drawn of every image.
        seed: seed of the views and of the images' order.
    """

    seq_lens: tuple[int, ...] = (256, 512, 1024, 2048)
    algorithms: tuple[str, ...] = tuple(PACKERS)
    lookaheads: tuple[int, ...] = (256,)
    model: CostConfig = field(default_factory=CostConfig)
    batch_images: int = 128
    epochs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seq_lens", "algorithms", "lookaheads"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} needs at least one value")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        for name in ("batch_images", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for seq_len in self.seq_lens:
            for algorithm in self.algorithms:
                for lookahead in self.lookaheads:
                    make_packer(seq_len, algorithm, lookahead)


@dataclass(frozen=True)
class Analysis:
    """The results for one way to draw views.

    Args:
        tokens: int32 [views], as drawn.
        longer: {S: number of views that are longer, and are shrunk}.
        rows: a dict for each S, algorithm and lookahead; see docs/analyze.md for the keys.
        choice: the recommended one of the rows.
        why: reasons for it, in words.
    """

    tokens: np.ndarray
    longer: dict[int, int]
    rows: list[dict[str, Any]]
    choice: dict[str, Any]
    why: str


def run_here(_: str, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
    """The simplest `Run`: one after the other, in this process."""
    return (function(*job) for job in jobs)


def analyze(sizes: np.ndarray, views: ViewsConfig, config: AnalysisConfig, run: Run = run_here) -> Analysis:
    """Draw views of int [N, 2] native sizes, N >= 1, and pack them in every way that `config` names."""
    jobs = []
    for epoch in range(config.epochs):
        shuffled = sizes[np.random.default_rng([config.seed, epoch]).permutation(len(sizes))]
        for start in range(0, len(sizes), CHUNK):
            first = epoch * len(sizes) + start
            jobs.append((shuffled[start : start + CHUNK], views, config.seq_lens, config.seed, first))
    tokens = np.concatenate(list(run("drawing views", draw_tokens, jobs)), axis=1)
    shown = dict(zip(config.seq_lens, tokens[1:], strict=True))
    cases = [
        (shown[seq_len], seq_len, algorithm, lookahead)
        for seq_len in config.seq_lens
        for algorithm in config.algorithms
        for lookahead in config.lookaheads
    ]
    packed = list(run("packing", measure, cases))
    longer = {seq_len: int((tokens[0] > seq_len).sum()) for seq_len in config.seq_lens}
    choice, why = recommend(packed, {s: n / tokens.shape[1] for s, n in longer.items()}, config.model)
    padded = {
        seq_len: {
            "alone": alone(lengths),
            "longest": pad_to_longest(lengths, config.batch_images),
            "sorted": sorted_buckets(lengths, config.batch_images),
        }
        for seq_len, lengths in shown.items()
    }
    rows = [_row(result, longer[result.seq_len], padded[result.seq_len], config.model) for result in packed]
    return Analysis(tokens[0], longer, rows, rows[packed.index(choice)], why)


def _row(packed: Packed, longer: int, padded: dict[str, Work], model: CostConfig) -> dict[str, Any]:
    works = {"packed": packed.work, "dense": packed.dense_work, **padded}
    gflops = {f"gflops_{name}": model.flops(work) / packed.images / 1e9 for name, work in works.items()}
    attention = {
        f"attention_gflops_{name}": model.attention_flops(work) / packed.images / 1e9
        for name, work in works.items()
    }
    return {
        "seq_len": packed.seq_len,
        "algorithm": packed.algorithm,
        "lookahead": packed.lookahead,
        "images": packed.images,
        "sequences": packed.sequences,
        "tokens": packed.tokens,
        "padding_fraction": packed.padding_fraction,
        "waste_fraction": packed.waste,
        "images_per_sequence": packed.images_per_sequence,
        "images_per_sequence_p1": packed.images_p1,
        "images_per_sequence_p99": packed.images_p99,
        "longer_than_seq_len": longer,
        "fill_drop": packed.fill_drop,
        "fill_images": packed.fill_images,
        "fill_worst": packed.fill_worst,
        "microseconds_per_item": packed.microseconds,
        **gflops,
        **attention,
    }


def draw_tokens(
    sizes: np.ndarray, views: ViewsConfig, seq_lens: Sequence[int], seed: int, first: int = 0
) -> np.ndarray:
    """Token counts of one view for each image; about 10 µs a view.

    Args:
        sizes: int [N, 2], native heights and widths.
        views: how views are drawn; with `NATIVE` as resolution, images are shown as large as stored.
        seq_lens: sequence lengths S.
        seed: seed of all views.
        first: number of the first image, so that parts of a set may be drawn apart.

    Returns:
        int32 [1 + len(seq_lens), N]: as drawn; then, for each S, with views longer than S shrunk, as in
        training.
    """
    views = views_at(views, 0)
    tokens = np.empty((1 + len(seq_lens), len(sizes)), np.int32)
    for i, (height, width) in enumerate(sizes.tolist()):
        image_seed = derive_seed(seed, "view", first + i)
        drawn = draw_view(Random(image_seed), (height, width), views).num_tokens
        tokens[:, i] = min(drawn, np.iinfo(np.int32).max)
        for row, seq_len in enumerate(seq_lens, 1):
            if drawn > seq_len:
                shrunk = draw_view(Random(image_seed), (height, width), views, seq_len)
                tokens[row, i] = shrunk.num_tokens
    return tokens


def histogram(tokens: np.ndarray, bins: int = 40) -> dict[str, Any]:
    """Token counts over about `bins` bars: {"edges": [...], "counts": [...]}.

    All bars have the same whole width. If the longest views have `WIDE` times as many tokens as the shortest,
    as at native sizes, each bar is wider than the previous one by the same factor.
    """
    low, high = int(tokens.min()), int(np.percentile(tokens, 99))
    if high >= WIDE * low:
        edges = np.unique(np.geomspace(low, high + 1, bins + 1).round().astype(int))
    else:
        width = max(1, -(-(high + 1 - low) // bins))
        edges = np.arange(low, high + 1 + width, width)
    # The last bar takes the few views beyond the 99th percentile, so that they don't squeeze the rest.
    places = np.minimum(np.searchsorted(edges, tokens, side="right") - 1, len(edges) - 2)
    return {"edges": edges.tolist(), "counts": np.bincount(places, minlength=len(edges) - 1).tolist()}


def recommend(packed: Iterable[Packed], longer: dict[int, float], cost: CostConfig) -> tuple[Packed, str]:
    """The result with the smallest S whose waste is within `TOLERANCE` of the best, and why, in words.

    Waste is padding plus the tokens that exact fill dropped, so that dropping is not mistaken for packing.
    Lengths that would shrink many views are left out as long as others remain; among results with the same S,
    the fewest FLOPs per image win.

    Args:
        packed: at least one result.
        longer: {S: share of views that are longer}.
        cost: the model.
    """
    results = list(packed)
    bound = max(TOLERANCE, min(longer[row.seq_len] for row in results))
    roomy = [row for row in results if longer[row.seq_len] <= bound]
    best = min(roomy, key=lambda row: row.waste)
    close = [row for row in roomy if row.waste <= best.waste + TOLERANCE]
    seq_len = min(row.seq_len for row in close)
    choice = min(
        (row for row in close if row.seq_len == seq_len),
        # What drops nothing comes first: all of these waste alike.
        key=lambda row: (row.dropped > 0, cost.flops(row.work) / row.images, row.lookahead, row.microseconds),
    )
    too_short = sorted({row.seq_len for row in results} - {row.seq_len for row in roomy})
    reasons = []
    if bound > TOLERANCE:
        reasons.append(f"{longer[seq_len]:.2%} of the views are longer still and get shrunk: try larger ones")
    if choice.seq_len != best.seq_len:
        least = f"{best.waste:.2%} at S = {best.seq_len}"
        reasons.append(f"it is the smallest S within {TOLERANCE:.1%} of the least waste, {least}")
    elif seq_len > min(row.seq_len for row in roomy):
        reasons.append(f"it wastes least, and no smaller S comes within {TOLERANCE:.1%} of it")
    elif seq_len < max(row.seq_len for row in roomy):
        reasons.append(f"it is the smallest S, and no larger one wastes less by {TOLERANCE:.1%}")
    else:
        reasons.append(
            "it is the only S tried" + (" that leaves most views as they are" if too_short else "")
        )
    if too_short:
        shares = ", ".join(f"{longer[length]:.2%} at S = {length}" for length in too_short)
        reasons.append(f"smaller ones would shrink too many views ({shares})")
    return choice, "; ".join(reasons)
