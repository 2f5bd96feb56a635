"""Every backend keeps to its segments; on the CPU by numbers, for CUDA by the masks that they are given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packvit.models import BACKENDS, Segments, attention, choose_backend
from packvit.models.attention.sdpa import BUCKET_COST, TOKEN_COST, choose_cuts

CASES = {
    "mixed": [3, 1, 17, 5, 5, 9, 1, 40, 2],
    "one segment": [64],
    "single tokens": [1] * 12,
    "equal": [8] * 6,
    "no padding of blocks": [100, 28, 128],
}


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def tokens(total: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (total, 2, 8)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def dense_mask(cu: torch.Tensor) -> torch.Tensor:
    return Segments.build(cu, 64, "dense").plan


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_sdpa_equals_dense(name: str, dtype: torch.dtype, tolerance: float):
    cu = offsets(CASES[name])
    total = int(cu[-1])
    outs, grads = [], []
    for backend in ("sdpa", "dense"):
        # The oracle works in float64 on the same rounded values.
        q, k, v = (
            x.detach().to(dtype if backend == "sdpa" else torch.float64).requires_grad_()
            for x in tokens(total, dtype)
        )
        out = attention(q, k, v, Segments.build(cu, total, backend))
        out.square().sum().backward()
        outs.append(out.double())
        grads.append([x.grad.double() for x in (q, k, v) if x.grad is not None])
    torch.testing.assert_close(outs[0], outs[1], atol=tolerance, rtol=tolerance)
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, atol=4 * tolerance, rtol=4 * tolerance)


def test_dense_is_softmax_within_each_segment():
    cu = offsets([2, 3])
    q, k, v = tokens(5, torch.float64)
    out = attention(q, k, v, Segments.build(cu, 3, "dense"))
    for part in (slice(0, 2), slice(2, 5)):
        scores = torch.einsum("qhd,khd->hqk", q[part], k[part]) / 8**0.5
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[part])
        torch.testing.assert_close(out[part], expected)


def test_sdpa_gradients_pass_gradcheck():
    segments = Segments.build(offsets([3, 1, 2]), 3, "sdpa")
    inputs = tokens(6, torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, segments), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_in_its_segment(dtype: torch.dtype):
    cu = offsets([4, 3, 5])
    q, k, v = (x.detach() for x in tokens(12, dtype))
    for x in (q, k, v):
        x[4:7] = torch.nan
    out = attention(q, k, v, Segments.build(cu, 5, "sdpa"))
    assert out[4:7].isnan().all()
    assert not out[:4].isnan().any()
    assert not out[7:].isnan().any()


@pytest.mark.parametrize("name", CASES)
def test_flex_mask_is_the_dense_mask(name: str):
    cu = offsets(CASES[name] + [150, 7])
    total = int(cu[-1])
    mask = BACKENDS["flex"].prepare(cu, total, total)
    expected = dense_mask(cu)
    slots = torch.arange(total)
    got = mask.mask_mod(0, 0, slots[:, None], slots)
    assert torch.equal(got, expected)
    blocks = -(-total // 128)
    padded = torch.zeros(blocks * 128, blocks * 128, dtype=torch.bool)
    padded[:total, :total] = expected
    tiles = padded.view(blocks, 128, blocks, 128).transpose(1, 2)
    assert torch.equal(mask.to_dense()[0, 0].bool(), tiles.any(-1).any(-1))
    full = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        full[row, mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].long()] = True
    assert not (full & ~tiles.all(-1).all(-1)).any()


def test_flex_computes_with_the_mask_on_the_cpu():
    from torch.nn.attention.flex_attention import flex_attention

    cu = offsets([70, 58, 5, 130])
    total = int(cu[-1])
    q, k, v = (x.detach() for x in tokens(total, torch.float32))
    mask = BACKENDS["flex"].prepare(cu, 130, total)
    q4, k4, v4 = (x.transpose(0, 1)[None] for x in (q, k, v))
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        out = flex_attention(q4, k4, v4, block_mask=mask)
    assert isinstance(out, torch.Tensor)
    expected = attention(q, k, v, Segments.build(cu, 130, "dense"))
    torch.testing.assert_close(out[0].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_xformers_mask_is_the_dense_mask(name: str):
    pytest.importorskip("xformers")
    cu = offsets(CASES[name])
    total = int(cu[-1])
    bias = BACKENDS["xformers"].prepare(cu, total, total).materialize((total, total))
    assert torch.equal(bias == 0, dense_mask(cu))


def test_varlen_gets_int32_offsets():
    cu, bound = BACKENDS["varlen"].prepare(offsets([3, 4]), 16, 7)
    assert cu.dtype == torch.int32
    assert cu.tolist() == [0, 3, 7]
    assert bound == 16


@pytest.mark.parametrize("name", CASES)
def test_empty_segments_at_the_end_change_nothing(name: str):
    cu = offsets(CASES[name])
    total = int(cu[-1])
    filled = torch.cat([cu, cu[-1:].expand(5)])
    for backend in ("sdpa", "dense"):
        results = []
        for offsets_ in (cu, filled):
            q, k, v = tokens(total, torch.float32)
            out = attention(q, k, v, Segments.build(offsets_, total, backend))
            out.square().sum().backward()
            results.append([out, q.grad, k.grad, v.grad])
        assert all(map(torch.equal, *results))
    flex, expected = (BACKENDS["flex"].prepare(c, total, total) for c in (filled, cu))
    slots = torch.arange(total)
    assert torch.equal(
        flex.mask_mod(0, 0, slots[:, None], slots), expected.mask_mod(0, 0, slots[:, None], slots)
    )
    for field in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(flex, field), getattr(expected, field))
    assert BACKENDS["varlen"].prepare(filled, 16, total)[0].tolist() == filled.tolist()


def test_empty_segments_at_the_end_are_no_part_of_the_xformers_mask():
    pytest.importorskip("xformers")
    filled = offsets([3, 4, 0, 0])
    bias = BACKENDS["xformers"].prepare(filled, 4, 7)
    assert bias.q_seqinfo.seqstart_py == [0, 3, 7]
    assert torch.equal(bias.materialize((7, 7)) == 0, dense_mask(filled))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["varlen", "xformers", "flex", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_cuda_backends_equal_dense(backend: str, name: str):
    cu = offsets(CASES[name]).cuda()
    total = int(cu[-1])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((total, 2, 64), generator=generator).cuda().bfloat16() for _ in range(3))
    try:
        choose_backend(backend, "cuda", torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))
    results = []
    for name_ in (backend, "dense"):
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        out = attention(x[0], x[1], x[2], Segments.build(cu, total, name_))
        results.append([out, *torch.autograd.grad(out.square().sum(), x)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


def test_choice_of_backend():
    assert choose_backend("auto", "cpu", torch.float32) == "sdpa"
    assert choose_backend("dense", "cpu", torch.float64) == "dense"
    with pytest.raises(ValueError, match="'varlen' needs a CUDA device, not cpu: use sdpa"):
        choose_backend("varlen", "cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="not one of auto, varlen, xformers, flex, sdpa, dense"):
        choose_backend("fast", "cpu", torch.float32)
    with pytest.raises(ValueError, match="not one of auto"):
        Segments.build(offsets([1]), 1, "fast")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_bucket_cuts_are_the_cheapest(lengths: list[int]):
    def cost(ends: list[int]) -> int:
        padded = [min(e for e in ends if e >= n) for n in lengths]
        return sum(n * n + TOKEN_COST * n for n in padded) + BUCKET_COST * len(ends)

    sizes = sorted(set(lengths))
    subsets = (
        [s for i, s in enumerate(sizes[:-1]) if bits >> i & 1] + sizes[-1:]
        for bits in range(2 ** (len(sizes) - 1))
    )
    assert cost(choose_cuts(np.array(lengths))) == min(map(cost, subsets))
