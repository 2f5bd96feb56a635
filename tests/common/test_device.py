"""Settings of the process hold for a run and are put back, whatever they were and however it ends."""

import os

import pytest
import torch

from packvit.common.device import WORKSPACE, arithmetic, choose_precision, make_autocast

CPU = torch.device("cpu")


def settings() -> tuple:
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch._C._get_deterministic_fill_uninitialized_memory(),
        os.environ.get(WORKSPACE),
    )


def test_tf32_is_of_cuda_products_and_ends_with_the_run():
    before = settings()
    for precision, expected in (("fp32", "none"), ("tf32", "tf32"), ("bf16", "none")):
        with arithmetic(precision, deterministic=False):
            assert torch.backends.cuda.matmul.fp32_precision == expected
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")  # older code asks for this
            assert getattr(torch.backends.mkldnn, "matmul").fp32_precision == "none"  # noqa: B009, a CPU's
        assert settings() == before


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_determinism_ends_with_the_run_even_if_it_fails(workspace, monkeypatch):
    if workspace:
        monkeypatch.setenv(WORKSPACE, workspace)
    before = settings()
    with pytest.raises(ValueError, match="failed"), arithmetic("fp32", deterministic=True):  # noqa: PT012
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch._C._get_deterministic_fill_uninitialized_memory()
        assert os.environ[WORKSPACE] == (workspace or ":4096:8")
        raise ValueError("failed")
    assert settings() == before


def test_only_bf16_and_fp16_are_cast_to():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    expected = {"auto": torch.float32, "tf32": torch.float32, "fp32": torch.float32}
    for precision, dtype in (expected | {"bf16": torch.bfloat16, "fp16": torch.float16}).items():
        with make_autocast(precision, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
