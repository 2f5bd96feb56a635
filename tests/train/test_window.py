"""A window: means over the images, slots and groups of some steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.packing import BatchStats, PackedBatch
from packvit.train.watch.window import BOUNDS, ImageFacts, Means, Window, image_facts, resolution_name

ALONE = Ranks(0, 1, torch.device("cpu"))


def batch_stats(images: int, tokens: int) -> BatchStats:
    return BatchStats(images=images, tokens=tokens, slots=40, sequences=2, squared_lengths=tokens**2)


def facts_of(images: list[tuple[int, int, float]]) -> ImageFacts:
    """Of (patch size, group of resolutions, drop rate)."""
    columns: list[Any] = [np.array(column) for column in zip(*images, strict=True)]
    return ImageFacts(*columns)


def test_a_window_gives_means_over_images_and_slots():
    window = Window()
    window.add_batch(batch_stats(3, 30), 1e9, 0.0)
    window.add_batch(batch_stats(1, 38), 1e9, 0.0)
    window.add_step(facts_of([(8, 4, 0.5), (16, 4, 0.0), (8, 6, 0.1)]), np.array([1, 0.5, 1.5]))
    window.add_step(facts_of([(8, 6, 0.2)]), np.array([5]))
    summary = window.summary(ALONE, peak=None)
    assert summary["loss"] == pytest.approx(2.0)
    assert summary["loss_by_patch_size"] == {"8": pytest.approx(2.5), "16": 0.5}
    assert summary["loss_by_resolution"] == {"52-72": 0.75, "104-144": 3.25}
    assert summary["drop_rate"] == pytest.approx(0.2)
    assert summary["drop_rate_by_resolution"] == {"52-72": 0.25, "104-144": pytest.approx(0.15)}
    assert summary["padding_fraction"] == pytest.approx(12 / 80)
    assert summary["images_per_sequence"] == pytest.approx(1.0)
    assert summary["mfu"] is None
    assert summary["tokens_per_s"] / summary["images_per_s"] == pytest.approx(17)
    assert 0.01 < summary["memory_gb"] < 100


def test_a_step_that_was_left_out_has_no_loss():
    window = Window()
    window.add_batch(batch_stats(1, 30), 1e9, 0.0)
    window.add_step(facts_of([(8, 4, 0.5)]), None)
    summary = window.summary(ALONE, peak=None)
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
    facts = image_facts([PackedBatch.build([[big, small]], 16), PackedBatch.build([[]], 16)])
    assert facts.patch_size.tolist() == [16, 8]
    assert [resolution_name(group) for group in facts.resolution] == ["72-104", "0-18"]
    assert facts.drop_rate.tolist() == [0.75, 0]
    assert resolution_name(len(BOUNDS)) == "13312-"
