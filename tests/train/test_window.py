"""A window: means over the images, slots and groups of some steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.packing import BatchStats, ImageFacts, PackedBatch
from packvit.train.step.interface import StepResult
from packvit.train.watch.peak import Peaks
from packvit.train.watch.window import (
    BOUNDS,
    Came,
    Coming,
    Means,
    Taken,
    Window,
    resolution_groups,
    resolution_name,
)

ALONE = Ranks(0, 1, torch.device("cpu"))


def batch_stats(images: int, tokens: int) -> BatchStats:
    return BatchStats(images=images, tokens=tokens, slots=40, sequences=2, squared_lengths=tokens**2)


def facts_of(images: list[tuple[int, int, float]]) -> list[ImageFacts]:
    """Of a batch with images of (patch size, resolution, drop rate)."""
    columns: list[Any] = [np.array(column) for column in zip(*images, strict=True)]
    return [ImageFacts(*columns)]


def test_a_window_gives_means_over_images_and_slots():
    window = Window()
    window.add_batches(Taken(stats=batch_stats(3, 30), flops=1e9))
    window.add_batches(Taken(stats=batch_stats(1, 38), flops=1e9))
    window.add_step(
        Came(1, facts_of([(8, 64, 0.5), (16, 60, 0.0), (8, 128, 0.1)]), np.array([1, 0.5, 1.5]), 3.0)
    )
    window.add_step(Came(2, facts_of([(8, 120, 0.2)]), np.array([5]), 2.0))
    summary = window.summary(ALONE, Peaks(None, None))
    assert summary["loss"] == pytest.approx(2.0)
    assert summary["grad_norm"] == 2.0
    assert summary["loss_by_patch_size"] == {"8": pytest.approx(2.5), "16": 0.5}
    assert summary["loss_by_resolution"] == {"52-72": 0.75, "104-144": 3.25}
    assert summary["drop_rate"] == pytest.approx(0.2)
    assert summary["drop_rate_by_resolution"] == {"52-72": 0.25, "104-144": pytest.approx(0.15)}
    assert summary["padding_fraction"] == pytest.approx(12 / 80)
    assert summary["images_per_sequence"] == pytest.approx(1.0)
    assert summary["images_per_step"] == 2.0  # four images in two steps
    assert summary["mfu"] is summary["mfu_measured"] is None
    shares = window.summary(ALONE, Peaks(2.0, 1.0))
    assert shares["mfu_measured"] == pytest.approx(2 * shares["mfu"])
    assert shares["mfu"] / shares["images_per_s"] == pytest.approx(2e9 / 4 / 2e12)
    assert summary["tokens_per_s"] / summary["images_per_s"] == pytest.approx(17)
    assert 0.01 < summary["memory_gb"] < 100


def test_a_step_that_was_left_out_has_no_loss():
    window = Window()
    window.add_batches(Taken(stats=batch_stats(1, 30), flops=1e9))
    window.add_step(Came(1, facts_of([(8, 64, 0.5)]), None, None))
    summary = window.summary(ALONE, Peaks(None, None))
    assert summary["loss"] is None
    assert summary["loss_by_patch_size"] == {}
    assert summary["drop_rate"] == 0.5


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """This rank, and another that holds `other`."""

    other: Means

    def gather(self, value: object) -> list:
        return [value, self.other.sums]


def test_means_by_group_are_over_the_images_of_all_ranks():
    """Ranks need not have seen the same groups."""
    here, there = Means(), Means()
    here.add(np.array([8, 8, 16]), np.array([1, 2, 3]))
    there.add(np.array([4, 8]), np.array([5, 6]))
    there.add(np.array([], np.int64), np.array([]))
    assert here.over(TwoRanks(0, 2, torch.device("cpu"), there)) == {4: 5, 8: 3, 16: 3}


def test_images_are_grouped_by_what_is_seen_of_them(cut_image):
    big = cut_image(np.zeros((64, 128, 3), np.uint8), 16, keep=np.arange(8))  # sqrt(64 * 128) = 90.5 pixels
    small = cut_image(np.zeros((16, 16, 3), np.uint8), 8)
    facts = PackedBatch.build([[big, small]], 16).facts()
    assert facts.patch_size.tolist() == [16, 8]
    assert facts.resolution.tolist() == [np.sqrt(64 * 128), 16]
    assert facts.drop_rate.tolist() == [0.75, 0]
    assert all(len(column) == 0 for column in PackedBatch.build([[]], 16).facts())
    assert [resolution_name(group) for group in resolution_groups(facts.resolution)] == ["72-104", "0-18"]
    assert resolution_name(len(BOUNDS)) == "13312-"


@pytest.mark.parametrize("norm", [2.0, np.inf, np.nan])
def test_a_step_without_a_finite_gradient_came_to_nothing(norm: float):
    facts = facts_of([(8, 64, 0.5), (8, 64, 0.0)])
    losses = torch.tensor([1.0, np.nan if np.isnan(norm) else 3.0])
    came = Coming(7, facts, StepResult(losses, torch.tensor(norm))).read()
    assert (came.step, came.facts) == (7, facts)
    if norm == 2.0:
        assert came.grad_norm == 2.0
        assert came.losses is not None
        assert came.losses.tolist() == [1.0, 3.0]
    else:
        assert came.grad_norm is None
        assert came.losses is None
