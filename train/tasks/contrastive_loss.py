"""The loss of image-text pairs over all ranks, without ever storing an N x N matrix.

Each rank compares its images with every rank's texts. The texts travel round a ring, padded to the largest
number of pairs, and the logits of a few images at a time are computed, summed up and discarded. For the
softmax loss, a row's log-sum-exp stays with its image and a column's travels with its text. The backward pass
goes round once more: it computes the same logits again, and the texts' gradients travel with them. A rank
stores only its own embeddings, computes each logit twice, and passes on 3 * E + 2 numbers for each pair.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, assert_never, cast, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["softmax", "sigmoid"]
MOST_LOGITS = 1 << 24  # held at once where no chunk is given: 64 MiB of float32


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    kind: Kind = "softmax",
    chunk: int | None = None,
) -> Tensor:
    """The contrastive loss of N pairs, where l = scale * image text^T + bias and pairs are on the diagonal.

    softmax: -(1 / 2N) sum_i (log softmax(l_i.)_i + log softmax(l_.i)_i) (CLIP, arXiv 2103.00020, 2.3; NaViT
    2.3). sigmoid: (1 / N) sum_ij softplus(-z_ij l_ij), where z is 1 for pairs and -1 otherwise (SigLIP, arXiv
        2303.15343, 3). If torch.distributed is initialised, every rank calls this with any number of its own
        pairs,
    and the loss is that of all pairs: N is the sum over ranks.

    The gradient is that of the whole loss with respect to this rank's inputs. For `scale` and `bias` it is
    this rank's share, and the shares of all ranks add up. DDP takes the mean of gradients over ranks, so with
    DDP the loss must first be multiplied by the number of ranks, as `Engine.backward` does. Second
    derivatives are not available.

    Args:
        image, text: [N, E], floating, usually of length 1; row i of both is a pair. Half precision is
            computed in float32.
        scale: one number, e^t' in the papers; a tensor may require a gradient.
        bias: one number, b in the papers, or None for 0.
        kind: `softmax` or `sigmoid`.
        chunk: number of images that are compared at once; any number gives the same loss. None: as many as
            make 2^24 logits.

    Returns:
        float32 or float64 [], the same on all ranks.

    Raises:
        ValueError: the shapes are not those of N pairs, `kind` is unknown or `chunk` is not positive.
    """
    return contrastive_losses(image, text, scale, bias, kind, chunk)[0]


def contrastive_losses(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    kind: Kind = "softmax",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`contrastive_loss`, and each pair's part of it for the log, [N], without a gradient.

    The mean of the parts over the pairs of all ranks is the loss.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"a contrastive loss needs images and texts of one shape [N, E], not {list(image.shape)} and "
            f"{list(text.shape)}"
        )
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is neither softmax nor sigmoid")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    scale, bias = (
        torch.as_tensor(0.0 if value is None else value, device=image.device).to(dtype).reshape(())
        for value in (scale, bias)
    )
    inputs = image.to(dtype), text.to(dtype), scale, bias
    return cast(tuple[Tensor, Tensor], _Contrast.apply(*inputs, kind, chunk))


class _Contrast(torch.autograd.Function):
    """Two rings; see the head of this file. All tensors are of one dtype, `scale` and `bias` []."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, kind: Kind, chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            ring = Ring(len(image))
            compare = Comparison(image, scale, bias, chunk)
            column = image.new_full((len(text), 1), -torch.inf)
            match kind:
                case "softmax":
                    row = image.new_full((len(image),), -torch.inf)
                    column = ring.turn(text, column, lambda *block: add_exponents(compare, row, *block))[:, 0]
                    each = (row + column) / 2 - compare.pairs(text)
                case "sigmoid":
                    row = image.new_zeros(len(image))
                    ring.turn(text, column, lambda *block: add_softplus(compare, row, *block))
                    each, column = row, column[:, 0]
                case _ as unknown:
                    assert_never(unknown)
            loss = ring.sum(each.sum()) / max(1, ring.total)
        ctx.save_for_backward(image, text, scale, bias, row, column)
        ctx.kind, ctx.chunk, ctx.ring = kind, chunk, ring
        ctx.mark_non_differentiable(each)
        return loss, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        image, text, scale, bias, row, column = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            compare = Comparison(image, scale, bias, ctx.chunk)
            slope = {"softmax": softmax_slope, "sigmoid": sigmoid_slope}[ctx.kind]
            found = Gradients(compare, lambda *part: slope(row, *part))
            block = torch.cat([text, column[:, None]], 1)
            by_text = ctx.ring.turn(block, torch.zeros_like(text), found.add)
            factor = grads[0] / max(1, ctx.ring.total)
            by_scale = (image * found.by_image).sum()
            by_image, by_text = found.by_image * (factor * scale), by_text * (factor * scale)
        return by_image, by_text, by_scale * factor, found.by_bias * factor, None, None


class Comparison:
    """The logits of this rank's images with a block of texts, a few rows at a time."""

    def __init__(self, image: Tensor, scale: Tensor, bias: Tensor, chunk: int | None) -> None:
        self.image, self.scale, self.bias, self.chunk = image, scale, bias, chunk

    def logits(self, text: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and their logits [rows, texts], which the caller may overwrite."""
        step = self.chunk or max(1, MOST_LOGITS // max(1, len(text)))
        for start in range(0, len(self.image) if len(text) else 0, step):
            rows = slice(start, start + step)
            yield rows, (self.image[rows] @ text.T).mul_(self.scale).add_(self.bias)

    def pairs(self, text: Tensor) -> Tensor:
        """The logits of this rank's pairs, [N]."""
        return self.scale * (self.image * text).sum(1) + self.bias


class Ring:
    """Blocks of rows that travel from rank to rank until each has visited all ranks.

    Args:
        rows: number of rows of this rank's block.
    """

    def __init__(self, rows: int) -> None:
        alone = not dist.is_initialized()
        self.rank, self.size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        counts = torch.tensor([rows])
        every = [torch.empty_like(counts) for _ in range(self.size)]
        if alone:
            every = [counts]
        else:
            dist.all_gather(every, counts)  # in host memory: no device waits
        self.counts = [int(count) for count in every]
        self.total = sum(self.counts)

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def turn(self, block: Tensor, sums: Tensor, visit: Callable[[Tensor, Tensor, bool], None]) -> Tensor:
        """Show every rank's block to every rank.

        Args:
            block: [rows, n], read only; it is sent on while it is visited.
            sums: [rows, m], sums about the block, which follow it.
            visit: called with a block, its sums, which it changes in place, and whether it is this rank's
                own.

        Returns:
            The sums of this rank's own block, [rows, m].
        """
        rows = len(block)
        block, sums = self._pad(block), self._pad(sums)
        for step in range(self.size):
            owner = (self.rank + step) % self.size
            receive = self._pass_on(block) if step + 1 < self.size else None
            count = self.counts[owner]
            visit(block[:count], sums[:count], step == 0)
            sums = self._pass_on(sums)()
            block = block if receive is None else receive()
        return sums[:rows]

    def _pad(self, rows: Tensor) -> Tensor:
        return F.pad(rows, (0, 0, 0, max(self.counts) - len(rows)))

    def _pass_on(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Send to the rank before this one; what is returned waits for what the rank after it sends."""
        if self.size == 1:
            return lambda: tensor
        before, after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        coming = torch.empty_like(tensor)
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, tensor, before), dist.P2POp(dist.irecv, coming, after)]
        )

        def wait() -> Tensor:
            for work in works:
                work.wait()
            return coming

        return wait


def add_exponents(compare: Comparison, row: Tensor, text: Tensor, column: Tensor, own: bool) -> None:
    """Add a block of texts [n, E] to the log-sum-exps of rows [N] and of its columns [n, 1]."""
    for rows, logits in compare.logits(text):
        row[rows] = torch.logaddexp(row[rows], logits.logsumexp(1))
        column[:, 0] = torch.logaddexp(column[:, 0], logits.logsumexp(0))


def add_softplus(compare: Comparison, row: Tensor, text: Tensor, column: Tensor, own: bool) -> None:
    """Add a block of texts [n, E] to the sums over rows [N] of softplus(-z l)."""
    for rows, logits in compare.logits(text):
        if own:
            _diagonal(logits, rows).neg_()
        row[rows] += F.softplus(logits).sum(1)


def softmax_slope(row: Tensor, logits: Tensor, rows: slice, column: Tensor, own: bool) -> Tensor:
    """N times the loss's derivative by some rows' logits; row [N] and column [n] are log-sum-exps."""
    slope = (logits - row[rows, None]).exp_().add_(logits.sub_(column).exp_()).mul_(0.5)
    if own:
        _diagonal(slope, rows).sub_(1)
    return slope


def sigmoid_slope(row: Tensor, logits: Tensor, rows: slice, column: Tensor, own: bool) -> Tensor:
    """N times the loss's derivative by some rows' logits."""
    if not own:
        return logits.sigmoid_()
    _diagonal(logits, rows).neg_()
    slope = logits.sigmoid_()
    _diagonal(slope, rows).neg_()
    return slope


def _diagonal(part: Tensor, rows: slice) -> Tensor:
    """The pairs among some rows of a rank's images with its own texts; a view."""
    return part.diagonal(rows.start)


class Gradients:
    """The sums of the second ring.

    Args:
        slope: function of (logits, rows, column, own), like `softmax_slope` without its first argument.

    Attributes:
        by_image: [N, E], N times the gradient by the images over the scale.
        by_bias: [], N times the gradient by the bias.
    """

    def __init__(self, compare: Comparison, slope: Callable[[Tensor, slice, Tensor, bool], Tensor]) -> None:
        self.compare, self.slope = compare, slope
        self.by_image = torch.zeros_like(compare.image)
        self.by_bias = compare.image.new_zeros(())

    def add(self, block: Tensor, by_text: Tensor, own: bool) -> None:
        """Add a block [n, E + 1] of texts with the sums of their columns; `by_text` [n, E] travels with
        it."""
        text, column = block[:, :-1], block[:, -1]
        for rows, logits in self.compare.logits(text):
            slope = self.slope(logits, rows, column, own)
            self.by_image[rows] += slope @ text
            self.by_bias += slope.sum()
            by_text += slope.T @ self.compare.image[rows]
