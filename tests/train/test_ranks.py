"""One process, accumulation, and several ranks with either way of sharing compute the same step."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch

PROGRAM = Path(__file__).with_name("ranks_program.py")


def launch(ranks: int, task: str, parallel: str, folder: Path, kind: str = "adamw") -> dict:
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    result = subprocess.run(
        [*command, str(PROGRAM), task, parallel, kind, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return torch.load(folder / f"{task}-{parallel}-{ranks}.pt")


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "numbers"),
    [("gradient", (2, 4)), ("distill", (2,)), ("compiled", (2,)), ("whole", (2,)), ("contrastive", (2,))],
)
def test_gradients_do_not_depend_on_how_images_are_shared(task, numbers: tuple[int, ...], tmp_path):
    """Ranks hold 1 to 9 images, one batch none; the gradient stays that of the mean over all of them."""
    alone = launch(1, task, "ddp", tmp_path)
    for ranks, parallel in product(numbers, ("ddp", "fsdp")):
        shared = launch(ranks, task, parallel, tmp_path)
        assert alone.keys() == shared.keys()
        for name, gradient in alone.items():
            error = (gradient - shared[name]).norm()
            assert error <= 1e-6 * gradient.norm(), (ranks, parallel, name)


@pytest.mark.slow
def test_half_precision_sends_half_and_sums_whole(tmp_path):
    """Blocks are gathered as bf16, embedding and head as fp32; all is summed and kept in fp32."""
    result = launch(2, "bf16", "fsdp", tmp_path, "muon")
    sent = result["sent"]
    # Two batches of each rank, two blocks; the model's own part stays gathered, a block is gathered again.
    assert sent["allgather_base torch.bfloat16"] == 2 * 2 * 2
    assert sent["allgather_base torch.float32"] == 2
    assert sent["reduce_scatter_base torch.float32"] == 3
    assert not any("reduce" in name and "bfloat16" in name for name in sent)
    assert result["dtypes"] == ["torch.float32"]
    for name, gradient in result["alone"].items():
        error = (gradient - result["gradient"][name]).norm()
        assert error <= 0.06 * gradient.norm(), name  # each is up to 0.04 from the gradient in fp32
    assert result["left_out"]


@pytest.mark.slow
def test_muon_of_matrices_that_are_cut_is_that_of_whole_ones(tmp_path):
    """On two and on three ranks, with two exchanges a step however many matrices there are."""
    results = launch(3, "muon", "fsdp", tmp_path)
    for size in (2, 3):
        assert results[size]["sent"] == {"alltoall_base torch.bfloat16": 2}
        for tensor, expected in zip(results[size]["tensors"], results[0]["tensors"], strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_compiled_and_recomputed_blocks_have_the_gradients_of_plain_ones(tmp_path):
    plain, compiled = (launch(1, task, "ddp", tmp_path) for task in ("gradient", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "others"), [("adamw", [(1, "ddp")]), ("muon", [(1, "ddp"), (4, "fsdp"), (2, "ddp")])]
)
def test_a_sharded_checkpoint_goes_on_with_any_number_of_ranks(kind, others, tmp_path):
    after = launch(2, "checkpoint", "fsdp", tmp_path, kind)["after"]
    for ranks, parallel in others:
        result = launch(ranks, "checkpoint", parallel, tmp_path, kind)
        assert after.keys() == result["before"].keys()
        assert all(torch.equal(tensor, result["before"][name]) for name, tensor in after.items())
        assert any(not torch.equal(tensor, result["after"][name]) for name, tensor in after.items())
        after = result["after"]
