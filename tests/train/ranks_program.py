"""Run by test_ranks: the gradient of a step, or a checkpoint read and written, on ranks that it forks.

In the task `distill` the gradient is that of labels, a wider teacher and the moving average together, in
`compiled` that of compiled blocks, one of which is recomputed, in `whole` that of a loss that compares all
images of the step, where the last block does not run, in `contrastive` that of images and texts, in `bf16`
that of half precision. AdamW's checkpoint is of images and texts, too. `bf16` also says what ranks send each
other, and takes a step that one rank's gradient spoils. `muon` is steps of Muon on matrices that no number of
ranks divides.
"""

import json
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fork_ranks import fork_ranks
from packvit.common.ranks import Ranks, start_ranks, stop_ranks
from packvit.data import ClassTarget, LoadedBatch
from packvit.data.samples.targets import collate_targets
from packvit.models import PackedText, PackedViT, TextConfig, ViTConfig, save_model, train_tokenizer
from packvit.packing import PackedBatch, PackedImage
from packvit.train.config import Config, TrainConfig
from packvit.train.step.checkpoint import Checkpointer
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.kept import CheckpointConfig, find_checkpoints
from packvit.train.step.muon import Muon, local
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.config import ContrastiveConfig, DistillConfig
from packvit.train.tasks.make import make_task
from packvit.train.tasks.start import make_module
from packvit.train.tasks.task import Task

Case = tuple[int, str, str, str]  # number of ranks, task, parallel, optimizer

LIMIT = 500  # seconds for all cases
BATCHES = 4  # of one step, over all ranks
COUNTS = (1, 3, 0, 5)  # images in each: as unequal as can be
WORDS = 30  # tokens of texts
TARGETS = {"label": ClassTarget(classes=3)}


def make_batch(number: int) -> PackedBatch:
    """Batch `number` of the step: random images of two patch sizes in two sequences."""
    rng = np.random.default_rng(number)
    images = []
    for index in range(COUNTS[number]):
        p, rows, cols = (8, 2, 2) if index % 2 else (4, 1, 3)
        patches = rng.integers(0, 256, (rows * cols, p * p * 3), dtype=np.uint8)
        coords = np.stack(np.divmod(np.arange(rows * cols), cols), 1).astype(np.int32)
        label = int(rng.integers(3))
        images.append(
            PackedImage({(p, p): patches}, coords, (rows, cols), (p, p), (8, 8), targets={"label": label})
        )
    batch = PackedBatch.build([images[:2], images[2:]], 16, collate=partial(collate_targets, TARGETS))
    texts = [rng.integers(WORDS, size=rng.integers(1, 5)).tolist() for _ in images]
    return replace(batch, targets=batch.targets | {"caption": PackedText.build(texts)})


def make_engine(
    ranks: Ranks,
    parallel: str,
    kind: str,
    seed: int = 0,
    distill: DistillConfig | None = None,
    compiled: bool = False,
    whole_step: bool = False,
    precision: str = "auto",
    contrastive: ContrastiveConfig | None = None,
) -> tuple[Engine, Task]:
    every = 2 if compiled else 0
    model = ViTConfig(width=16, depth=2, heads=2, num_classes=3, registers=1, checkpoint_every=every)
    if precision == "bf16":
        model = replace(model, norm="rms")
    compiler = "on" if compiled else "off"
    train = TrainConfig(parallel=parallel, ema=0.5, compile=compiler, precision=precision)  # pyright: ignore[reportArgumentType]
    optim = OptimConfig(kind=kind)  # pyright: ignore[reportArgumentType]
    config = Config(model=model, optim=optim, train=train, distill=distill or DistillConfig(), seed=seed)
    if contrastive is not None:
        text = TextConfig(width=16, depth=1, heads=2, vocab_size=WORDS, max_tokens=4)
        folder = Path(contrastive.tokenizer).parent
        config = replace(config, contrastive=contrastive, text=text, run_dir=folder)
    task = Likeness(config) if whole_step else make_task(config)
    module = make_module(config, task)
    assert module.model.head is not None
    torch.manual_seed(seed)
    torch.nn.init.normal_(module.model.head.weight)  # zeros would hide the body's gradient
    engine = Engine(module, config.train, config.optim, ranks, config.seed)
    engine.model.depth = 1 if whole_step else 2
    task.prepare(engine)
    return engine, task


class Likeness(Classification):
    """A loss of the whole step: how alike each image is to all others, at a learned scale."""

    def build(self, model: PackedViT) -> TrainedModule:
        return Scaled(model)

    def backward(self, engine: Engine, step: StepBatches) -> torch.Tensor:
        ranks, batches = engine.ranks, [loaded.batch for loaded in step.batches]
        with torch.random.fork_rng(), torch.no_grad(), engine.autocast:
            seen = [engine.forward(batch) for batch in batches]
        own = torch.cat([features for features, _ in seen])
        parts = ranks.gather(own)
        features, scale = torch.cat(parts).requires_grad_(), seen[0][1].clone().requires_grad_()
        losses = (features @ features.T * scale).logsumexp(1)  # [N]
        by_feature, by_scale = torch.autograd.grad(losses.sum() / step.images, (features, scale))
        start = sum(len(part) for part in parts[: ranks.rank])
        by_batch = by_feature[start : start + len(own)].split([batch.num_images for batch in batches])
        for number, (batch, part) in enumerate(zip(batches, by_batch, strict=True)):
            with engine.sharing(last=number + 1 == len(batches)):
                with engine.autocast:
                    again, scale = engine.forward(batch)
                share = by_scale / (ranks.world_size * len(batches))
                engine.backward((again * part).sum() + (scale * share).sum(), 1)
        return losses[start : start + len(own)].detach()


class Scaled(TrainedModule):
    """A model's features, and a number to learn."""

    def __init__(self, model: PackedViT) -> None:
        super().__init__(model)
        self.scale = Scale()

    def heads(self) -> list[torch.nn.Module]:
        return [self.scale]

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model.outputs(batch)
        return outputs.features + 0 * outputs.logits.sum(), self.scale()


class Scale(torch.nn.Module):
    """A number to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.full((1,), 0.1))

    def forward(self) -> torch.Tensor:
        return 1 * self.value


def write_teacher(folder: Path) -> DistillConfig:
    """A teacher of another width, and the average; both match all that can be matched."""
    torch.manual_seed(1)
    path = save_model(PackedViT(ViTConfig(width=24, depth=1, heads=2, num_classes=3)), folder / "teacher")
    return DistillConfig(
        (str(path), "ema"), (8, 8), (8, 8), label_weight=0.5, feature_weight=1, token_weight=1
    )


def write_tokenizer(folder: Path) -> ContrastiveConfig:
    """A tokeniser of no account: batches hold tokens."""
    folder.mkdir()
    path = train_tokenizer([f"{one}{two}" for one in "abcdef" for two in "abcdef"], WORDS).save(folder)
    return ContrastiveConfig(loss="softmax", tokenizer=str(path))


def gradients(engine: Engine, task: Task, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The gradient of one step on all batches, before clipping."""
    share = range(ranks.rank, BATCHES, ranks.world_size)
    batches = [make_batch(number) for number in share]
    (images,) = ranks.sum([sum(batch.num_images for batch in batches)])
    # Whole views, which serve as the teachers' too.
    loaded = [LoadedBatch(batch, batch.facts(), teachers=(batch,) * len(task.teachers)) for batch in batches]
    task.backward(engine, StepBatches(loaded, images=images))
    found = {}
    for name, parameter in engine.module.named_parameters():
        assert parameter.grad is not None, name
        found[name] = whole(parameter.grad)
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    found = {}
    for kind, parts in (("weights", engine.module), ("average", engine.averaged)):
        assert parts is not None
        for number, part in enumerate((parts.model, *parts.heads())):
            found |= {f"{kind}.{number}.{name}": whole(p) for name, p in part.named_parameters()}
    for number, optimizer in enumerate(engine.optimizers):
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                for name, value in optimizer.state[parameter].items():
                    found[f"optimizer.{number}.{g}.{i}.{name}"] = whole(value)
    return found


class Sent(TorchDispatchMode):
    """Counts what ranks send each other: {"operation dtype": times}."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # to see what it is made of
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.count[f"{func.overloadpacket.__name__.strip('_')} {tensors[0].dtype}"] += 1
        return func(*args, **(kwargs or {}))


def muon_steps(size: int) -> dict:
    """Weights and momentum after steps of Muon on the first `size` ranks, and what the last one sent.

    If `size` is 0, that of torch's on whole matrices.
    """
    group = dist.new_group(list(range(size))) if size else None  # all ranks must be there when it is made
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        return {}
    mesh = DeviceMesh.from_group(group, "cpu") if isinstance(group, dist.ProcessGroup) else None

    def cut(matrix: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(matrix, mesh, [Shard(0)]) if mesh else matrix

    matrices = [cut(matrix) for matrix in muon_matrices(0)]
    groups = [{"params": matrices[:2], "weight_decay": 0.1}, {"params": matrices[2:], "weight_decay": 0.0}]
    plain = torch.optim.Muon(groups, 0.02, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon(groups, 0.02, 0.9) if size else plain
    sent = Sent()
    for seed in (1, 2, 3):
        for matrix, gradient in zip(matrices, muon_matrices(seed), strict=True):
            matrix.grad = cut(gradient)
        sent.count.clear()
        with sent:
            optimizer.step()
    tensors = [*matrices, *(optimizer.state[matrix]["momentum_buffer"] for matrix in matrices)]
    return {"tensors": list(map(whole, tensors)), "sent": dict(sent.count)}


def muon_matrices(seed: int) -> list[torch.Tensor]:
    """Some have fewer rows than there are ranks."""
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in ((7, 5), (5, 7), (4, 4), (2, 9), (7, 5), (1, 6))]


def update(engine: Engine) -> None:
    """A first update, after which every average has gone nine tenths of its way."""
    before = weights(engine)
    engine.update(engine.clip(), 0, 1.0)
    after = weights(engine)
    for name in (name for name in after if name.startswith("average")):
        now = after[name.replace("average", "weights")]
        torch.testing.assert_close(after[name], 0.1 * before[name] + 0.9 * now, msg=name)
    for number, head in enumerate(engine.whole_heads(), 1):
        assert all(torch.equal(whole(t), after[f"average.{number}.{name}"]) for name, t in head.items())


def half_precision(engine: Engine, task: Task, ranks: Ranks) -> dict:
    """A gradient in bf16, that of one rank alone, and what ranks sent; whether a spoilt step is left out."""
    alone = Ranks(0, 1, ranks.device)
    result: dict = {"alone": gradients(*make_engine(alone, "ddp", "muon", precision="bf16"), alone)}
    with Sent() as sent:
        result |= {"gradient": gradients(engine, task, ranks), "sent": dict(sent.count)}
    engine.update(engine.clip(), 0, 1.0)
    before = weights(engine)
    kept = (*before.values(), *engine.whole().state_dict().values())
    result["dtypes"] = sorted({str(tensor.dtype) for tensor in kept})
    gradients(engine, task, ranks)
    if ranks.rank + 1 == ranks.world_size:
        gradient = engine.model.blocks[0].get_parameter("mlp.fc1.weight").grad
        assert gradient is not None
        local(gradient).fill_(torch.nan)
    engine.update(engine.clip(), 1, 1.0)
    result["left_out"] = all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    return result


def run_case(what: str, parallel: str, kind: str, folder: Path) -> None:
    """What a case gives goes to `folder / {parallel}-{number of ranks}.pt`."""
    ranks = start_ranks("cpu")
    seed = ranks.world_size if what == "checkpoint" else 0
    # Each rank writes the same teacher, for itself.
    distill = write_teacher(folder / f"rank-{ranks.rank}") if what == "distill" else None
    # Graphs without generated code: no C++ compiler is needed.
    aot_eager = partialmethod(PackedViT.compile_blocks, backend="aot_eager")
    setattr(PackedViT, "compile_blocks", aot_eager)  # noqa: B010
    precision = what if what == "bf16" else "auto"
    contrastive = (
        write_tokenizer(folder / f"{parallel}-{ranks.world_size}-{ranks.rank}")
        if what in ("contrastive", "checkpoint") and kind == "adamw"
        else None
    )
    engine, task = make_engine(
        ranks, parallel, kind, seed, distill, what == "compiled", what == "whole", precision, contrastive
    )
    if what == "muon":
        result = {size: muon_steps(size) for size in (0, 2, 3)}
    elif what == "bf16":
        result = half_precision(engine, task, ranks)
    elif what != "checkpoint":
        kept = {
            f"{n}.{name}": t.clone()
            for n, head in enumerate(engine.whole_heads())
            for name, t in head.items()
        }
        result = gradients(engine, task, ranks) | kept
        update(engine)
    else:
        checkpointer = Checkpointer(folder, CheckpointConfig(), ranks, engine, {})
        found = find_checkpoints(folder)
        if found:
            checkpointer.load(found[-1])
        before = weights(engine) if found else {}
        gradients(engine, task, ranks)
        engine.update(engine.clip(), len(found), 1.0)
        checkpointer.save(len(found) + 1)
        result = {"before": before, "after": weights(engine)}
    if ranks.is_main:
        torch.save(result, folder / f"{parallel}-{ranks.world_size}.pt")
    ranks.barrier()
    stop_ranks()


def be_rank(rank: int, case: Case, folder: Path) -> None:
    world_size, what, parallel, kind = case
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    if world_size > 1:
        store = f"file://{folder}/store-{parallel}-{world_size}"
        dist.init_process_group("gloo", store, rank=rank, world_size=world_size)
    run_case(what, parallel, kind, folder)


def main(cases: list[Case], folder: Path) -> None:
    """All cases, one after the other; those of one task and optimizer in one folder."""
    until = time.monotonic() + LIMIT
    for case in cases:
        own = folder / f"{case[1]}-{case[3]}"
        own.mkdir(exist_ok=True)
        print(*case, flush=True)
        fork_ranks([partial(be_rank, rank, case, own) for rank in range(case[0])], until)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
