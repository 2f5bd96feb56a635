"""Muon: momentum with orthogonalised matrices, many at a time, and under FSDP each by the rank that owns it.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with updates of the size of AdamW's (arXiv 2502.16982,
2.2). `torch.optim.Muon` has the same rule but processes one matrix after the other; if they are sharded, each
product in it is an exchange among all ranks.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from math import sqrt

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim.sgd import sgd


def descend(
    tensors: list[Tensor], directions: list[Tensor], lr: float, weight_decay: float, skip: Tensor | None
) -> None:
    """tensors <- tensors - lr * (directions + weight_decay * tensors), in place.

    Args:
        skip: float32 [] on the device, read only there. If it is 1, no bit of the tensors changes, whatever
            the directions are.
    """
    # Of torch's kernels that can be told this way to do nothing, this one does the least.
    sgd(
        tensors,
        directions,
        [None for _ in tensors],
        fused=True,
        found_inf=skip,
        weight_decay=weight_decay,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


def approach(tensors: list[Tensor], targets: list[Tensor], share: float, skip: Tensor | None) -> None:
    """Move tensors a `share` of the way to their targets, in place; `skip` as in `descend`."""
    drift = torch._foreach_sub(tensors, targets)  # pyright: ignore[reportPrivateImportUsage]
    descend(tensors, list(drift), share, 0.0, skip)


class Muon(torch.optim.Muon):
    """torch's Muon with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`, computed in batches.

    The state is torch's: a `momentum_buffer` for each parameter, shaped and sharded like it. Every parameter
    needs a gradient in every step. A block's QKV matrix, [3 D, D], is one matrix, as it is for torch.

    Attributes:
        found_inf: as in torch's fused optimizers, set before a step: float32 [] on the device; if it is 1,
            the step changes nothing.

    Args:
        groups: groups of parameters [rows, cols], all whole, or all sharded along the rows over the same
            ranks (FSDP2).
        lr, momentum: defaults of all groups.

    Raises:
        ValueError: a parameter is not a matrix, or is sharded in another way.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict], lr: float, momentum: float) -> None:
        super().__init__(list(groups), lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        matrices = [p for group in self.param_groups for p in group["params"]]
        self._owners = None
        if any(isinstance(p, DTensor) for p in matrices):
            if any(getattr(p, "placements", None) != (Shard(0),) for p in matrices):
                raise ValueError("Muon takes matrices that are all cut along their rows, or all whole")
            shapes, mesh = [tuple(p.shape) for p in matrices], matrices[0].device_mesh
            self._owners = Owners(shapes, mesh.get_group(), matrices[0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; if they are sharded, every rank calls it."""
        nudged = [update for group in self.param_groups for update in self._add_momentum(group)]
        if self._owners is None:
            updates = self._orthogonalise(nudged)
        else:
            updates = self._owners.spread(self._orthogonalise(self._owners.collect(nudged)))
        remaining = iter(updates)
        for group in self.param_groups:
            params = group["params"]
            directions = [next(remaining).float() for _ in params]
            for direction, parameter in zip(directions, params, strict=True):
                direction *= 0.2 * sqrt(max(parameter.shape))
            held, decay = [local(p) for p in params], group["weight_decay"]
            descend(held, directions, group["lr"], decay, self.found_inf)

    def _add_momentum(self, group: dict) -> list[Tensor]:
        """Move the momentum towards the gradient; gives this rank's rows of what to orthogonalise, bf16."""
        gradients, buffers = [], []
        for parameter in group["params"]:
            assert parameter.grad is not None, "Muon needs a gradient for every parameter"
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            gradients.append(local(parameter.grad))
            buffers.append(local(state["momentum_buffer"]))
        approach(buffers, gradients, 1 - group["momentum"], self.found_inf)
        return [g.lerp(b, group["momentum"]).bfloat16() for g, b in zip(gradients, buffers, strict=True)]

    def _orthogonalise(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """The same matrices with singular values near 1, bf16; a batch for each shape and its transpose."""
        batches = defaultdict(list)
        for i, matrix in enumerate(matrices):
            batches[tuple(sorted(matrix.shape))].append(i)
        found = {}
        for members in batches.values():
            wide = torch.stack([wider(matrices[i]) for i in members])
            steps, eps = self.defaults["ns_steps"], self.defaults["eps"]
            wide = newton_schulz(wide, self.defaults["ns_coefficients"], steps, eps)
            for i, each in zip(members, wide, strict=True):
                found[i] = each if each.shape == matrices[i].shape else each.mT.contiguous()
        return [found[i] for i in range(len(found))]


class Owners:
    """Which rank orthogonalises which matrix, and the exchange of the matrices' rows.

    Each rank has about the same work. One exchange among all ranks brings the rows of all matrices to their
    owners, another brings rows back.

    Args:
        shapes: shapes of all matrices, (rows, cols); rank r holds the r-th of equal parts of the rows,
            rounded up.
        group: the ranks.
        device: device of the tensors.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], group: dist.ProcessGroup, device: torch.device
    ) -> None:
        self.group = group
        self.nothing = torch.empty(0, dtype=torch.bfloat16, device=device)
        self.rank, self.ranks = dist.get_rank(group), range(dist.get_world_size(group))
        self.owned = share_work(shapes, len(self.ranks))
        self.parts = [[part_of(shape, rank, len(self.ranks)) for rank in self.ranks] for shape in shapes]

    def collect(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts of all matrices to the whole matrices that it owns."""
        mine = self.owned[self.rank]
        sent = [[parts[i] for i in owned] for owned in self.owned]
        shapes = [[self.parts[i][rank] for i in mine] for rank in self.ranks]
        received = self._exchange(sent, shapes)
        return [torch.cat(pieces) for pieces in zip(*received, strict=True)]

    def spread(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """The whole matrices that this rank owns to this rank's parts of all matrices."""
        mine = self.owned[self.rank]
        heights = [[rows for rows, _ in self.parts[i]] for i in mine]
        cut = [whole.split(rows) for whole, rows in zip(wholes, heights, strict=True)]
        sent = [[pieces[rank] for pieces in cut] for rank in self.ranks]
        shapes = [[self.parts[i][self.rank] for i in owned] for owned in self.owned]
        received = self._exchange(sent, shapes)
        found = dict(zip(chain(*self.owned), chain(*received), strict=True))
        return [found[i] for i in range(len(found))]

    def _exchange(self, sent: list[list[Tensor]], shapes: list[list[tuple[int, int]]]) -> list[list[Tensor]]:
        """Send tensors, bf16, to each rank, and receive tensors of these shapes from each."""
        sizes = [[rows * cols for rows, cols in each] for each in shapes]
        lengths = [sum(tensor.numel() for tensor in each) for each in sent]
        # A rank may own nothing, and then has nothing to send.
        flat = torch.cat([self.nothing, *(tensor.flatten() for tensor in chain(*sent))])
        received = flat.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(received, flat, [sum(each) for each in sizes], lengths, self.group)
        pieces = iter(received.split(list(chain(*sizes))))
        return [[next(pieces).view(shape) for shape in each] for each in shapes]


def share_work(shapes: Sequence[tuple[int, ...]], ranks: int) -> list[list[int]]:
    """The matrices that each rank owns: the most expensive first, each to the rank with the least work."""
    owned: list[list[int]] = [[] for _ in range(ranks)]
    work = [0] * ranks
    for i in sorted(range(len(shapes)), key=lambda i: -newton_schulz_flops(shapes[i])):
        rank = work.index(min(work))
        owned[rank].append(i)
        work[rank] += newton_schulz_flops(shapes[i])
    return owned


def part_of(shape: tuple[int, ...], rank: int, ranks: int) -> tuple[int, int]:
    """Shape of the part of a matrix that a rank holds: the same number of rows on all, fewer on the last."""
    rows, cols = shape
    most = -(-rows // ranks)
    return max(0, min(most, rows - rank * most)), cols


def newton_schulz_flops(shape: tuple[int, ...]) -> int:
    """FLOPs (2 a multiply-add) of one iteration for a matrix of this shape or its transpose."""
    short, long = sorted(shape)
    return 2 * short**2 * (short + 2 * long)


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float) -> Tensor:
    """Bring singular values close to 1 by iterating an odd polynomial of degree 5.

    Args:
        x: [..., short, long]; its dtype is that of all products.
        coefficients: coefficients of the polynomial, lowest degree first.
        eps: smallest norm to divide by.
    """
    a, b, c = coefficients
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def wider(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose if that has fewer rows."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
