"""RMSNorm on a CPU equals PyTorch's, and half precision costs it no digits."""

import pytest
import torch
import torch.nn.functional as F

from packvit.models.encoder.block import RMSNorm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def make_norm(dtype: torch.dtype = torch.float32) -> RMSNorm:
    torch.manual_seed(0)
    norm = RMSNorm(16, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    return norm.to(dtype)


def run(norm, x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Values and gradients by x and weight."""
    y = norm(x)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_are_those_of_the_slow_norm(dtype: torch.dtype, autocast: bool):
    norm = make_norm(torch.promote_types(dtype, torch.float32))
    # A view, as queries are one of the fused projection; a row of zeros, as padding is.
    x = torch.randn(50, 3, 2, 16).to(dtype)[:, 1]
    x[7] = 0
    grad = torch.randn(2, 50, 16).to(dtype).transpose(0, 1)
    wide, weight = x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = run(lambda x: F.rms_norm(x, (16,), weight, norm.eps), wide, weight, grad.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = run(norm, x.requires_grad_(), norm.weight, grad)
    assert [t.dtype for t in got] == [dtype, dtype, norm.weight.dtype]
    for a, b in zip(got, expected, strict=True):
        atol = TOLERANCE[dtype] * float(b.abs().max())
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=atol)


def test_gradients_by_finite_differences():
    norm = make_norm(torch.float64)
    x = torch.randn(5, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_has_the_dtype_of_the_input(dtype: torch.dtype, device: str):
    norm = make_norm(torch.bfloat16).to(device)
    assert norm(torch.randn(4, 16, dtype=dtype, device=device)).dtype == dtype


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_in_half_precision_take_no_digits_from_the_input(compiled: bool):
    norm = make_norm(torch.bfloat16)
    x = torch.randn(64, 16)
    expected = F.rms_norm(x.double(), (16,), norm.weight.double(), norm.eps)
    run = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm
    torch.testing.assert_close(run(x).double(), expected, rtol=1e-5, atol=1e-5)
