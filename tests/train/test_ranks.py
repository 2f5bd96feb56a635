"""One process, accumulation, and several ranks with either way of sharing compute the same step."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch

PROGRAM = "ranks_program.py"
TASKS = ("gradient", "distill", "whole", "contrastive")
WAYS = ("ddp", "fsdp")
# From one to the next a checkpoint goes on.
CHECKPOINTS = {
    "adamw": ((2, "fsdp"), (1, "ddp")),
    "muon": ((2, "fsdp"), (1, "ddp"), (4, "fsdp"), (2, "ddp")),
}
Case = tuple[int, str, str, str]  # number of ranks, task, parallel, optimizer
CASES: list[Case] = [
    *((1, task, "ddp", "adamw") for task in TASKS),
    *((2, task, way, "adamw") for task, way in product(TASKS, WAYS)),
    (2, "bf16", "fsdp", "muon"),
    (3, "muon", "fsdp", "muon"),
    *((ranks, "checkpoint", way, kind) for kind, ways in CHECKPOINTS.items() for ranks, way in ways),
]
SLOW: list[Case] = [
    *((1, task, "ddp", "adamw") for task in ("gradient", "compiled")),
    *(
        (ranks, task, way, "adamw")
        for (ranks, task), way in product(((4, "gradient"), (2, "compiled")), WAYS)
    ),
]


class Results:
    """What cases gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, ranks: int, task: str, parallel: str = "ddp", kind: str = "adamw") -> dict:
        return torch.load(self.folder / f"{task}-{kind}" / f"{parallel}-{ranks}.pt")


@pytest.fixture(scope="session")
def result(made_once, run_ranks) -> Results:
    return Results(made_once("ranks", lambda folder: run_ranks(PROGRAM, json.dumps(CASES), str(folder))))


@pytest.fixture(scope="session")
def slow_result(made_once, run_ranks) -> Results:
    return Results(made_once("slow-ranks", lambda folder: run_ranks(PROGRAM, json.dumps(SLOW), str(folder))))


@pytest.mark.parametrize("pool", ["mean", "map", "cls"])
@pytest.mark.parametrize("pos_embed", ["factorized", "grid_2d", "rope_2d"])
def test_a_batch_without_images_gives_every_parameter_a_gradient(pool, pos_embed):
    """Ranks that have images would otherwise wait for it for ever."""
    config = ViTConfig(
        width=16, depth=2, heads=2, num_classes=3, cls=True, registers=2, pool=pool, pos_embed=pos_embed
    )
    model = PackedViT(config)
    logits = model(PackedBatch.build([[], []], 8))
    assert logits.shape == (0, 3)
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def assert_gradients_are_those_alone(result: Results, ranks: int, task: str) -> None:
    alone = result(1, task)
    for parallel in WAYS:
        shared = result(ranks, task, parallel)
        assert alone.keys() == shared.keys()
        for name, gradient in alone.items():
            error = (gradient - shared[name]).norm()
            assert error <= 1e-6 * gradient.norm(), (parallel, name)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_do_not_depend_on_how_images_are_shared(task, result):
    """Batches hold 1 to 5 images, one none; the gradient stays that of the mean over all of them."""
    assert_gradients_are_those_alone(result, 2, task)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "task"), [(4, "gradient"), (2, "compiled")])
def test_gradients_do_not_depend_on_ranks_without_images_or_on_compiling(ranks, task, slow_result):
    """One of four ranks has no images."""
    assert_gradients_are_those_alone(slow_result, ranks, task)


def test_half_precision_sends_half_and_sums_whole(result):
    """Blocks are gathered as bf16, embedding and head as fp32; all is summed and kept in fp32."""
    found = result(2, "bf16", "fsdp", "muon")
    sent = found["sent"]
    # Two batches of each rank, two blocks; the model's own part stays gathered, a block is gathered again.
    assert sent["allgather_base torch.bfloat16"] == 2 * 2 * 2
    assert sent["allgather_base torch.float32"] == 2
    assert sent["reduce_scatter_base torch.float32"] == 3
    assert not any("reduce" in name and "bfloat16" in name for name in sent)
    assert found["dtypes"] == ["torch.float32"]
    for name, gradient in found["alone"].items():
        error = (gradient - found["gradient"][name]).norm()
        assert error <= 0.06 * gradient.norm(), name  # each is up to 0.04 from the gradient in fp32
    assert found["left_out"]


def test_muon_of_matrices_that_are_cut_is_that_of_whole_ones(result):
    """On two and on three ranks, with two exchanges a step however many matrices there are."""
    results = result(3, "muon", "fsdp", "muon")
    for size in (2, 3):
        assert results[size]["sent"] == {"alltoall_base torch.bfloat16": 2}
        for tensor, expected in zip(results[size]["tensors"], results[0]["tensors"], strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_compiled_and_recomputed_blocks_have_the_gradients_of_plain_ones(slow_result):
    plain, compiled = (slow_result(1, task) for task in ("gradient", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_sharded_checkpoint_goes_on_with_any_number_of_ranks(kind, result):
    first, *others = (result(ranks, "checkpoint", parallel, kind) for ranks, parallel in CHECKPOINTS[kind])
    after = first["after"]
    for found in others:
        assert after.keys() == found["before"].keys()
        assert all(torch.equal(tensor, found["before"][name]) for name, tensor in after.items())
        assert any(not torch.equal(tensor, found["after"][name]) for name, tensor in after.items())
        after = found["after"]
