"""The contrastive loss is the dense one, whatever the chunk and however ranks share the pairs."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from packvit.train import contrastive_loss
from packvit.train.tasks.contrastive_loss import contrastive_losses

KINDS = ("softmax", "sigmoid")
SPLITS = ((4,), (2, 5), (7, 0), (3, 0, 1, 4), (1, 1, 1, 1), (4, 1, 0, 3), (0, 9, 1, 1))  # pairs of each rank


def make_pairs(number: int) -> tuple[torch.Tensor, ...]:
    """Images and texts [number, 5], the scale and the bias; float64."""
    generator = torch.Generator().manual_seed(number)
    pairs = torch.randn(2, number, 5, generator=generator, dtype=torch.float64)
    image, text = F.normalize(pairs, dim=2)
    return image, text, torch.tensor([7.0], dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)


def dense_parts(image, text, scale, bias, kind):
    """Each pair's part of the loss, from the whole matrix."""
    logits = scale * image @ text.T + bias
    if kind == "softmax":
        return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2
    z = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(z * logits).sum(1)


def dense(number, kind):
    """Loss and gradients of all pairs."""
    leaves = [tensor.requires_grad_() for tensor in make_pairs(number)]
    loss = dense_parts(*leaves, kind=kind).sum() / max(1, number)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_it_is_the_dense_loss(kind, chunk, number):
    leaves = [tensor.requires_grad_() for tensor in make_pairs(number)]
    loss, parts = contrastive_losses(*leaves, kind=kind, chunk=chunk)
    found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    assert_alike(found, dense(number, kind))
    assert_alike([parts], [dense_parts(*make_pairs(number), kind=kind)])
    assert not parts.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    leaves = [tensor.requires_grad_() for tensor in make_pairs(5)]
    assert torch.autograd.gradcheck(lambda *each: contrastive_loss(*each, kind=kind, chunk=2), leaves)


def test_without_a_bias_it_is_zero_and_numbers_serve_as_tensors():
    image, text, scale, _ = make_pairs(4)
    for kind in KINDS:
        found = contrastive_loss(image, text, 7.0, kind=kind)
        assert_alike([found], [dense_parts(image, text, scale, 0.0, kind).mean()])


def test_no_pairs_have_no_loss_and_a_gradient_of_zero():
    for kind in KINDS:
        leaves = [tensor.requires_grad_() for tensor in make_pairs(0)]
        contrastive_loss(*leaves, kind=kind).backward()
        assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_half_precision_is_computed_in_single():
    image, text, scale, bias = make_pairs(6)
    image, text = image.bfloat16().requires_grad_(), text.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(image, text, scale.float(), bias.float())
        loss.backward()
    expected = dense_parts(image.double(), text.double(), scale, bias, "softmax").mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)
    (by_image,) = torch.autograd.grad(expected, image)
    assert image.grad is not None
    torch.testing.assert_close(image.grad, by_image, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_grows_as_the_pairs(kind):
    def kept(number: int) -> int:
        sizes = {}
        image, text, scale, bias = (tensor.requires_grad_() for tensor in make_pairs(number))

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            contrastive_loss(image, text, scale, bias, kind=kind, chunk=16)
        return sum(sizes.values())

    one, two, three = kept(100), kept(200), kept(300)
    assert one < two
    assert two - one == three - two


def test_wrong_input_is_refused():
    image, text, scale, bias = make_pairs(3)
    with pytest.raises(ValueError, match=r"not \[3, 5\] and \[2, 5\]"):
        contrastive_loss(image, text[:2], scale)
    with pytest.raises(ValueError, match="chunk=0"):
        contrastive_loss(image, text, scale, bias, chunk=0)
    with pytest.raises(ValueError, match="kind='tanh'"):
        contrastive_loss(image, text, scale, kind="tanh")  # pyright: ignore[reportArgumentType]


def test_it_does_not_depend_on_how_ranks_share_the_pairs(tmp_path, run_ranks):
    """Also of ranks with one pair or none, in any order of the ring."""
    cases = [
        {"split": split, "kind": kind, "chunk": chunk, "pairs": make_pairs(sum(split))}
        for split, kind, chunk in product(SPLITS, KINDS, (None, 1, 2))
    ]
    torch.save(cases, tmp_path / "cases.pt")
    run_ranks("contrastive_program.py", str(tmp_path))
    found = {
        (size, rank): torch.load(tmp_path / f"{size}-{rank}.pt") for size in (1, 2, 4) for rank in range(size)
    }
    for number, case in enumerate(cases):
        split = case["split"]
        parts = [found[len(split), rank][number] for rank in range(len(split))]
        loss, by_image, by_text, *by_numbers = dense(sum(split), case["kind"])
        own_images, own_texts = by_image.split(split), by_text.split(split)
        for part, own_image, own_text in zip(parts, own_images, own_texts, strict=True):
            assert_alike(part[:3], [loss, own_image, own_text])
        assert_alike([sum(part[place] for part in parts) for place in (3, 4)], by_numbers)
