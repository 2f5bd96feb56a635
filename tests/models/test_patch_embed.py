"""PI-resize equals the full pseudo-inverse, keeps inner products, and is differentiable."""

from functools import reduce
from itertools import product
from typing import cast, get_args

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from packvit.models.resample import Kernel, Operator, pi_matrix, pi_resize, resize_matrix
from packvit.models.vit import PatchEmbed

BUFFER = 32
SIZES = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)  # FlexiViT's
OPERATORS: tuple[Operator, ...] = get_args(Operator)
INVERSES = [operator for operator in OPERATORS if not operator.startswith("plain_")]
CPU = torch.device("cpu")


def full_resize(size_in: int, size_out: int, mode: str, antialias: bool) -> torch.Tensor:
    """B [size_out**2, size_in**2] float64, by resizing every unit image with torch."""
    basis = torch.eye(size_in**2, dtype=torch.float64).view(-1, 1, size_in, size_in)
    out = F.interpolate(basis, (size_out, size_out), mode=mode, antialias=antialias, align_corners=False)
    return out.flatten(1).T


def full_pseudo_inverse(operator: Operator, size: int) -> torch.Tensor:
    """(B^T)^+ [p**2, P**2], or (L^T B^T)^+ L^T for `natural`."""
    mode = "bicubic" if operator == "bicubic_antialias" else "bilinear"
    b_t = full_resize(BUFFER, size, mode, operator.endswith("_antialias")).T
    if operator != "natural":
        return torch.linalg.pinv(b_t)
    distance = (torch.arange(BUFFER)[:, None] - torch.arange(BUFFER)).abs().double()
    covariance = 0.97**distance
    l_t = torch.linalg.cholesky(torch.kron(covariance, covariance)).T
    return torch.linalg.pinv(l_t @ b_t) @ l_t


def sizes_and_operators():
    for size, operator in product(SIZES, INVERSES):
        yield pytest.param(size, operator, marks=pytest.mark.slow if size > 12 else [])


@pytest.mark.parametrize(("size", "operator"), list(sizes_and_operators()))
def test_pi_resize_is_the_full_pseudo_inverse(size: int, operator: Operator):
    torch.manual_seed(0)
    weight = torch.randn(BUFFER, BUFFER, 3, 2, dtype=torch.float64)
    expected = (full_pseudo_inverse(operator, size) @ weight.flatten(0, 1).flatten(1)).view(size, size, 3, 2)
    torch.testing.assert_close(pi_resize(weight, (size, size), operator), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("operator", INVERSES)
def test_larger_patches_see_upsampled_images_exactly_as_the_buffer_sees_the_original(operator: Operator):
    kernel = "bilinear" if operator == "natural" else operator
    torch.manual_seed(0)
    image, weight = torch.randn(16, 16, dtype=torch.float64), torch.randn(16, 16, 1, 1, dtype=torch.float64)
    b = resize_matrix(16, 24, cast(Kernel, kernel))
    resized = b @ image @ b.T
    product = (resized[:, :, None, None] * pi_resize(weight, (24, 24), operator)).sum()
    torch.testing.assert_close(product, (image[:, :, None, None] * weight).sum(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [6, 20])
def test_plain_resizing_is_that_of_an_image(size: int):
    weight = torch.randn(12, 12, 3, 2, dtype=torch.float64)
    image = weight.flatten(2).permute(2, 0, 1)[None]
    expected = F.interpolate(image, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    got = pi_resize(weight, (size, size), "plain_bilinear_antialias")
    torch.testing.assert_close(got.flatten(2), expected, atol=1e-12, rtol=0)


def test_non_square_patches_apply_one_matrix_an_axis():
    weight = torch.randn(8, 8, 3, 2, dtype=torch.float64)
    k6 = pi_matrix("bilinear", 8, 6, torch.float64, CPU)
    k4 = pi_matrix("bilinear", 8, 4, torch.float64, CPU)
    expected = torch.einsum("pa,qb,abcd->pqcd", k6, k4, weight)
    torch.testing.assert_close(pi_resize(weight, (6, 4), "bilinear"), expected)


@pytest.mark.parametrize("operator", INVERSES)
def test_three_axes_equal_the_full_pseudo_inverse_of_the_kronecker_product(operator: Operator):
    """From a buffer of 3 frames of 4x5 pixels to 2 of 6x3: fewer and more of them at once."""
    stored, shape = (3, 4, 5), (2, 6, 3)
    torch.manual_seed(0)
    weight = torch.randn(*stored, 3, 2, dtype=torch.float64)
    kernel = "bilinear" if operator == "natural" else operator
    resizes = [resize_matrix(n, size, cast(Kernel, kernel)) for n, size in zip(stored, shape, strict=True)]
    b_t = reduce(torch.kron, resizes).T
    expected = torch.linalg.pinv(b_t)
    if operator == "natural":
        distances = [(torch.arange(n)[:, None] - torch.arange(n)).abs().double() for n in stored]
        l_t = torch.linalg.cholesky(reduce(torch.kron, [0.97**distance for distance in distances])).T
        expected = torch.linalg.pinv(l_t @ b_t) @ l_t
    expected = (expected @ weight.flatten(0, 2).flatten(1)).view(*shape, 3, 2)
    torch.testing.assert_close(pi_resize(weight, shape, operator), expected, atol=1e-10, rtol=0)


def test_the_stored_size_is_used_as_it_is():
    weight = torch.randn(8, 8, 3, 2)
    assert pi_resize(weight, (8, 8), "bilinear_antialias") is weight


def test_matrices_are_cached_and_usable_in_training_after_inference():
    pi_matrix.cache_clear()
    weight = torch.randn(9, 9, 3, 2, requires_grad=True)
    with torch.inference_mode():
        pi_resize(weight, (5, 5), "natural")
    pi_resize(weight, (5, 5), "natural").sum().backward()
    assert weight.grad is not None
    assert pi_matrix.cache_info().misses == 1


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", [3, 7])
def test_gradients(operator: Operator, size: int):
    weight = torch.randn(5, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: pi_resize(w, (size, size), operator), weight)


def test_gradients_of_a_batch_of_three_patch_sizes():
    """With the buffer's own size, one below and one above; padding's patch gives none."""
    torch.manual_seed(0)
    embed = PatchEmbed(width=2, buffer=(4, 4)).double()
    shapes, is_own = ((4, 4), (3, 3), (5, 5)), torch.tensor([True, True, False, True])
    slots = {(4, 4): torch.tensor([3]), (3, 3): torch.tensor([0, 2]), (5, 5): torch.tensor([1])}

    def run(weight: torch.Tensor, bias: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        patches = dict(zip(shapes, values, strict=True))
        return torch.func.functional_call(embed, {"weight": weight, "bias": bias}, (patches, slots, is_own))

    patches = [
        torch.randn(len(slots[p, p]), p * p * 3, dtype=torch.float64, requires_grad=True) for p, _ in shapes
    ]
    assert torch.autograd.gradcheck(run, (embed.weight, embed.bias, *patches))
    run(embed.weight, embed.bias, *patches).sum().backward()
    assert patches[1].grad is not None
    assert patches[1].grad.any(1).tolist() == [True, False]


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize(("size_in", "size_out"), [(7, 3), (7, 5), (7, 7), (7, 19), (1, 4), (32, 12)])
def test_resize_matrix_is_that_of_torch(kernel: Kernel, size_in: int, size_out: int):
    line = torch.randn(size_in, dtype=torch.float64)
    image = line[:, None].expand(size_in, 4)  # torch mishandles images that are one pixel wide
    mode, _, antialias = kernel.partition("_")
    out = F.interpolate(image[None, None], (size_out, 4), mode=mode, antialias=bool(antialias))
    got = resize_matrix(size_in, size_out, kernel) @ line
    torch.testing.assert_close(got, out[0, 0, :, 0], atol=1e-12, rtol=0)


def test_embedding_is_a_convolution_of_the_normalised_image_at_the_stored_size(cut_image):
    torch.manual_seed(0)
    embed = PatchEmbed(width=5, buffer=(4, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    pixels = torch.randint(0, 256, (8, 12, 3), dtype=torch.uint8)
    image = cut_image(pixels.numpy(), 4)
    out = embed(
        {(4, 4): torch.from_numpy(image.patches[4, 4])},
        {(4, 4): torch.tensor([6, 1, 2, 3, 4, 5])},
        torch.tensor([False] + [True] * 6),
    )
    x = (pixels / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    expected = F.conv2d(x.permute(2, 0, 1)[None], embed.weight.permute(3, 2, 0, 1), embed.bias, stride=4)
    expected = expected.flatten(2)[0].T
    torch.testing.assert_close(out[[6, 1, 2, 3, 4, 5]], expected, atol=1e-5, rtol=0)
    assert not out[0].any()


def cut_clip(clip: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """uint8 [frames, H, W, 3] to patches [n, prod(shape) * 3] in raster order."""
    t, p, q = shape
    return rearrange(clip, "(f t) (r p) (c q) ch -> (f r c) (t p q ch)", t=t, p=p, q=q)


def test_tubelets_are_a_convolution_in_time_and_space_at_the_stored_size():
    torch.manual_seed(0)
    embed = PatchEmbed(width=5, buffer=(2, 8, 8))
    clip = torch.randint(0, 256, (4, 16, 24, 3), dtype=torch.uint8)
    shape, places = (2, 8, 8), torch.arange(12)
    out = embed({shape: cut_clip(clip, shape)}, {shape: places}, torch.ones(12, dtype=torch.bool))
    x = (clip / 127.5 - 1).permute(3, 0, 1, 2)[None]
    expected = F.conv3d(x, embed.weight.permute(4, 3, 0, 1, 2), embed.bias, stride=shape)
    torch.testing.assert_close(out, expected.flatten(2)[0].T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_clip_of_one_frame_has_exactly_the_tokens_of_the_picture(operator: Operator):
    torch.manual_seed(0)
    picture, clip = (PatchEmbed(5, buffer, operator) for buffer in ((8, 8), (1, 8, 8)))
    clip.load_state_dict({"weight": picture.weight.detach()[None], "bias": picture.bias.detach()})
    frames = {p: torch.randint(0, 256, (1, 2 * p, 3 * p, 3), dtype=torch.uint8) for p in (4, 8, 12)}
    patches = {p: cut_clip(frame, (1, p, p)) for p, frame in frames.items()}
    slots = dict(zip(patches, torch.randperm(20).split(6), strict=False))
    is_own = torch.zeros(20, dtype=torch.bool).index_fill(0, torch.cat(list(slots.values())), True)
    of_picture = picture({(p, p): patches[p] for p in patches}, {(p, p): slots[p] for p in patches}, is_own)
    of_clip = clip({(1, p, p): patches[p] for p in patches}, {(1, p, p): slots[p] for p in patches}, is_own)
    assert torch.equal(of_clip, of_picture)
    assert of_clip.any(1).equal(is_own)
    of_picture.square().sum().backward()
    of_clip.square().sum().backward()
    assert picture.weight.grad is not None
    assert clip.weight.grad is not None
    assert torch.equal(clip.weight.grad[0], picture.weight.grad)


def test_floating_patches_are_taken_as_normalised():
    embed = PatchEmbed(width=5, buffer=(4, 4))
    patches = torch.randint(0, 256, (3, 48), dtype=torch.uint8)
    slots, is_own = {(4, 4): torch.arange(3)}, torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        embed({(4, 4): patches / 127.5 - 1}, slots, is_own), embed({(4, 4): patches}, slots, is_own)
    )


def test_a_constant_patch_has_one_response_at_every_size_with_antialias():
    weight = torch.ones(BUFFER, BUFFER, 3, 1, dtype=torch.float64) / (BUFFER * BUFFER * 3)
    for size in SIZES:
        assert pi_resize(weight, (size, size), "bilinear_antialias").sum() == pytest.approx(1, rel=2e-2)
    # Why new models do not use the operator of FlexiViT's release:
    for size, response in ((8, 0.25), (12, 0.36), (15, 0.54), (16, 1.0)):
        assert pi_resize(weight, (size, size), "bilinear").sum() == pytest.approx(response, abs=0.01)
