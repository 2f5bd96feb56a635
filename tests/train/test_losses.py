"""Losses against their definitions."""

import pytest
import torch

from packvit.packing import Mixed
from packvit.train.tasks.classification import classification_loss, mixed_labels


@pytest.fixture
def logits():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_the_negative_log_likelihood(logits, smoothing):
    targets = torch.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    expected = -(targets * logits.log_softmax(-1)).sum(1)
    assert torch.allclose(classification_loss(logits, labels, "softmax", smoothing), expected)


def test_sigmoid_is_the_binary_cross_entropy_over_classes(logits):
    targets = torch.eye(5)[labels]
    probability = logits.sigmoid()
    expected = -(targets * probability.log() + (1 - targets) * (1 - probability).log()).sum(1)
    assert torch.allclose(classification_loss(logits, labels, "sigmoid"), expected)


def test_a_batch_weighs_what_its_parts_weigh(logits):
    whole = classification_loss(logits, labels, "softmax")
    parts = [
        classification_loss(logits[:3], labels[:3], "softmax"),
        classification_loss(logits[3:], labels[3:], "softmax"),
    ]
    assert torch.allclose(whole, torch.cat(parts))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_mixed_labels_are_two_targets_by_weight(logits, kind):
    others, weights = labels.flip(0), torch.linspace(0, 1, 7)
    mixed = mixed_labels(Mixed(labels, others, weights), 5)
    rows = [
        w * classification_loss(x, a, kind) + (1 - w) * classification_loss(x, b, kind)
        for x, a, b, w in zip(logits.split(1), labels.split(1), others.split(1), weights, strict=True)
    ]
    # Both losses are linear in the target.
    torch.testing.assert_close(classification_loss(logits, mixed, kind), torch.cat(rows))
    alone = mixed_labels(Mixed(labels, others, torch.ones(7)), 5)
    torch.testing.assert_close(
        classification_loss(logits, alone, kind, 0.1), classification_loss(logits, labels, kind, 0.1)
    )
