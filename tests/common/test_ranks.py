"""Where a process stands among the others, found before CUDA or a group is started."""

import os

import pytest
import torch
import torch.distributed as dist

from packvit.common.ranks import find_ranks, ranks_of_call


def test_tests_that_are_not_marked_cuda_see_no_gpu():
    """Processes that they start see none either."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert find_ranks("auto").device == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        find_ranks("cuda")


def test_a_place_is_found_before_cuda_and_the_group_start(monkeypatch):
    """Workers are forked in between."""

    def refuse() -> bool:
        raise AssertionError("is_available starts CUDA")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    for name, value in {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    ranks = find_ranks("auto")
    assert (ranks.rank, ranks.world_size, ranks.device) == (6, 8, torch.device("cuda", 2))
    assert find_ranks("cpu").device == torch.device("cpu")
    assert not dist.is_initialized()


def test_a_part_of_a_program_leaves_the_group_as_it_was(tmp_path, monkeypatch):
    with ranks_of_call("cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
    assert not dist.is_initialized()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with ranks_of_call("cpu"):
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
