"""Where a process stands among the others, found before CUDA or a group is started."""

import os

import pytest
import torch

from packvit.common.ranks import find_ranks


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
    assert not torch.distributed.is_initialized()
