"""CKA: an unbiased estimate that knows neither rotations nor scales nor how rows are dealt to minibatches."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packvit.evaluate.inspection.cka import MinibatchCKA, centre


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(x: Tensor, y: Tensor) -> float:
    n = len(x)
    return float((centre(x) * centre(y)).sum() / (n * (n - 3)))


def hsic_by_quadruples(x: Tensor, y: Tensor) -> float:
    """Its definition: E[k(a, b) (l(a, b) + l(c, d) - 2 l(a, c))] over all four different rows."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    found = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in permutations(range(len(x)), 4)]
    return float(torch.stack(found).mean())


def hsic_by_pairs(x: Tensor, y: Tensor) -> float:
    """The closed form of Song et al. (2012), equation 5, summed entry by entry."""
    n = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(n)] for i in range(n)]  # noqa: E741
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, l)) / ((n - 1) * (n - 2))
    product = sum(sum(row) * sum(other) for row, other in zip(k, l, strict=True))
    return (trace + sums - 2 / (n - 2) * product) / (n * (n - 3))


def cka(*features: Tensor) -> Tensor:
    found = MinibatchCKA(len(features))
    found.add(features)
    return found.result()


def test_it_is_the_mean_over_quadruples():
    x, y = draw(0, 6, 3), draw(1, 6, 2)
    for a, b in ((x, y), (x, x), (x, x + 0.3 * draw(2, 6, 3))):
        assert hsic(a, b) == pytest.approx(hsic_by_quadruples(a, b), abs=1e-12)


@given(st.integers(4, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_it_is_the_closed_form(n, width, other, seed):
    x, y = draw(seed, n, width) + 5, draw(seed + 100, n, other)
    assert hsic(x, y) == pytest.approx(hsic_by_pairs(x, y), rel=1e-9, abs=1e-9)


@given(st.integers(4, 20), st.integers(1, 8), st.integers(0, 99), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_turning_scaling_and_moving_change_nothing(n, width, seed, scale):
    x, y = draw(seed, n, width), draw(seed + 100, n, 3)
    turn = torch.linalg.qr(draw(seed + 200, width, width)).Q
    found = cka(x, scale * x @ turn + 7, y)
    torch.testing.assert_close(found[0, 1], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found[0, 2], found[1, 2])
    assert found.abs().max() <= 1 + 1e-9


def test_independent_features_are_about_zero_however_wide():
    """The usual, biased CKA of so few rows of so many channels is far above 0."""
    found = MinibatchCKA(2)
    biased = []
    for seed in range(20):
        x, y = draw(seed, 32, 128), draw(seed + 100, 32, 128)
        found.add([x, y])
        gram = [(z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y)]
        biased.append((gram[0] * gram[1]).sum() / gram[0].norm() / gram[1].norm())
    assert abs(float(found.result()[0, 1])) < 0.02
    assert float(torch.stack(biased).mean()) > 0.7


def test_minibatches_average_to_the_whole():
    """The unbiased HSIC of all rows is the mean of those of all minibatches that can be drawn of them."""
    x, y = draw(0, 8, 3), draw(1, 8, 5) + draw(0, 8, 3)[:, :1]
    found = MinibatchCKA(2)
    for rows in map(list, combinations(range(8), 5)):
        found.add([x[rows], y[rows]])
    torch.testing.assert_close(
        found.hsic / found.minibatches,
        torch.tensor([[hsic(x, x), hsic(x, y)], [hsic(y, x), hsic(y, y)]], dtype=torch.float64),
    )
    torch.testing.assert_close(found.result(), cka(x, y))


def test_minibatches_of_several_sizes_count_alike():
    x, y = draw(0, 11, 3), draw(1, 11, 3)
    found = MinibatchCKA(2)
    for rows in (slice(0, 4), slice(4, 11)):
        found.add([x[rows], y[rows]])
    parts = [
        [hsic(a[rows], b[rows]) for rows in (slice(0, 4), slice(4, 11))] for a, b in ((x, y), (x, x), (y, y))
    ]
    both, own, other = map(sum, parts)
    assert float(found.result()[0, 1]) == pytest.approx(both / (own * other) ** 0.5)


def test_features_that_do_not_vary_have_no_cka():
    found = cka(draw(0, 6, 3), torch.ones(6, 4))
    assert found[0, 0] == pytest.approx(1)
    assert found[0, 1].isnan()
    assert found[1, 1].isnan()


def test_three_rows_are_too_few():
    with pytest.raises(ValueError, match="at least 4 rows, not 3"):
        centre(draw(0, 3, 2))
