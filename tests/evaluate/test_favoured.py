"""The patch size for a number of tokens, as a grid's measurements favour it."""

import pytest

from packvit.evaluate.sweep.favoured import favoured_patch_size


def rows(points: dict[int, dict[float, float]]) -> list[dict]:
    return [
        {"patch_size": p, "tokens_per_image": tokens, "accuracy": value}
        for p, line in points.items()
        for tokens, value in line.items()
    ]


GRID = rows({4: {64: 0.5, 256: 0.9}, 8: {16: 0.5, 64: 0.7, 256: 0.7}, 16: {4: 0.1, 16: 0.4}})


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (256, 4),
        (64, 8),
        (100, 8),
        (160, 4),
        (16, 8),
        (4, 16),  # the others were not measured near it
        (1, 16),
        (1000, 4),  # beyond all: those that come nearest are compared
        (20, 8),
    ],
)
def test_the_highest_interpolated_value_wins(tokens, wanted):
    assert favoured_patch_size(GRID, tokens, "accuracy") == wanted


def test_of_equal_patch_sizes_the_largest_is_taken():
    tie = rows({4: {64: 0.5}, 8: {64: 0.5}, 16: {64: 0.5}})
    assert favoured_patch_size(tie, 64, "accuracy") == 16


def test_a_patch_size_that_was_not_measured_near_counts_less_than_one_that_was():
    far = rows({4: {400: 1.0}, 8: {64: 0.1}})
    assert favoured_patch_size(far, 70, "accuracy") == 8
    assert favoured_patch_size(far, 300, "accuracy") == 4
