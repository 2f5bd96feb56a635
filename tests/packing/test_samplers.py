"""Distributions of views: what the papers say, measured on many draws."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import DropConfig, ResolutionConfig, ViewsConfig, draw_view
from packvit.packing.views.budget import tilt
from packvit.packing.views.view import draw_box, draw_rate, draw_resolution

DRAWS = 20_000


def many(draw, config):
    rng = Random(0)
    return np.array([draw(rng, config) for _ in range(DRAWS)])


def test_uniform_side_has_uniform_quantiles():
    sides = many(draw_resolution, ResolutionConfig(64, 256, "uniform"))
    assert np.allclose(np.quantile(sides, [0, 0.25, 0.5, 0.75, 1]), [64, 112, 160, 208, 256], atol=3)


def test_uniform_area_has_uniform_quantiles_of_the_area():
    sides = many(draw_resolution, ResolutionConfig(64, 256, "uniform", measure="area"))
    quantiles = np.quantile(sides**2, [0, 0.5, 1])
    assert np.allclose(quantiles, [64**2, (64**2 + 256**2) / 2, 256**2], rtol=0.03)


def test_truncated_normal_has_the_mean_of_the_formula():
    # Mean of N(-0.5, 1) truncated to [-1, 1], from the standard normal's density and distribution.
    low, high = -0.5, 1.5
    density = np.exp(-(np.array([low, high]) ** 2) / 2) / np.sqrt(2 * np.pi)
    mass = 0.9331927987 - 0.3085375387
    mean = -0.5 + (density[0] - density[1]) / mass
    sides = many(draw_resolution, ResolutionConfig(64, 256, "normal", mean=-0.5, std=1))
    assert sides.min() >= 64
    assert sides.max() <= 256
    assert np.isclose((sides.mean() - 160) / 96, mean, atol=0.02)


@pytest.mark.parametrize(("mean", "maximum"), [(0.5, 0.9), (0.25, 0.75), (0.1, 1.0)])
def test_beta_drop_has_navits_mean_and_variance(mean, maximum):
    rates = many(draw_rate, DropConfig("beta", mean, maximum))
    m = mean / maximum
    assert np.isclose(rates.mean(), mean, atol=0.01)
    assert np.isclose(rates.var(), maximum**2 * 0.3 * m * (1 - m), rtol=0.05)
    assert rates.max() <= maximum


def test_patch_sizes_come_by_weight():
    config = ViewsConfig(patch_sizes=(8, 16, 32), patch_weights=(1, 3, 0))
    rng = Random(0)
    counts = Counter(draw_view(rng, (100, 100), config).patch_size for _ in range(4000))
    assert counts[32] == 0
    assert np.isclose(counts[16] / counts[8], 3, rtol=0.15)


BUDGETS = [
    ViewsConfig(budget=60, drop=DropConfig("beta")),
    ViewsConfig(budget=200),
    ViewsConfig(
        (8, 16, 32), (1, 3, 2), ResolutionConfig(96, 384, "uniform"), DropConfig("constant", 0.25), 300
    ),
    ViewsConfig((48, 40, 30, 24, 20, 16, 15, 12, 10, 8), resolution=ResolutionConfig(160, 320), budget=150),
    ViewsConfig((12, 24), resolution=ResolutionConfig(64, 256, "uniform", measure="area"), budget=100),
]


@pytest.mark.parametrize("config", BUDGETS)
def test_a_budget_is_met_on_average_and_keeps_the_patch_sizes(config):
    rng = Random(0)
    sizes = [(300, 400), (400, 300), (333, 333), (250, 400)]
    views = [draw_view(rng, sizes[i % 4], config) for i in range(3 * DRAWS)]
    assert np.isclose(np.mean([view.num_tokens for view in views]), config.budget, rtol=0.02)
    counts = Counter(view.patch_size for view in views)
    weights = np.array(config.patch_weights or [1] * len(config.patch_sizes))
    shares = [counts[p] / len(views) for p in config.patch_sizes]
    assert np.allclose(shares, weights / weights.sum(), atol=0.01)


def test_a_budget_is_the_nearest_distribution_with_that_mean():
    base, tokens, weights = np.array([1.0, 2, 3, 0]), np.array([[1.0, 4, 9, 16], [4, 16, 36, 64]]), np.ones(2)
    mean = (np.array([1, 2, 3, 0]) / 6 * tokens).sum(1).mean()
    assert np.allclose(tilt(base, tokens, weights, mean), [base / 6, base / 6])
    tilted = tilt(base, tokens, weights, 10)
    assert np.isclose((tilted * tokens).sum(1).mean(), 10)
    # log(tilted / base) is linear in tokens, with one slope for all patch sizes.
    slopes = np.diff(np.log(tilted[:, :3] / base[:3])) / np.diff(tokens[:, :3])
    assert np.allclose(slopes, slopes[0, 0])


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(0, 2**32),
    st.integers(1, 300),
    st.sampled_from(["none", "constant", "beta"]),
)
def test_a_view_never_exceeds_the_limit_and_depends_on_the_seed_alone(native, seed, limit, kind):
    config = ViewsConfig(patch_sizes=(4, 16, 48), drop=DropConfig(kind, 0.5), crop=0.3, flip=0.5)
    view = draw_view(Random(seed), native, config, limit)
    assert view == draw_view(Random(seed), native, config, limit)
    assert 1 <= view.num_tokens <= limit
    top, left, height, width = view.box
    assert 0 <= top <= top + height <= native[0]
    assert 0 <= left <= left + width <= native[1]


def test_never_upscaled_when_so_configured():
    config = ViewsConfig(resolution=ResolutionConfig(200, 256, upscale=False), patch_sizes=(8,))
    view = draw_view(Random(0), (64, 64), config)
    assert (view.height, view.width) == (64, 64)


def test_crops_differ_in_aspect_up_to_a_factor_and_fit():
    rng = Random(0)
    boxes = [draw_box(rng, (300, 400), 0.2, 4 / 3) for _ in range(2000)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.19 < height * width / 120_000 <= 1
    factors = [height / width * 4 / 3 for _, _, height, width in boxes]
    assert max(factors) < 4 / 3 * 1.02
    assert min(factors) > 3 / 4 / 1.02
    assert sum(factor > 1 for factor in factors) == pytest.approx(1000, abs=100)
    assert draw_box(Random(1), (300, 400), 0.2) == draw_box(Random(1), (300, 400), 0.2, 1.0)


def test_rates_that_depend_on_resolution_grow_with_the_tokens():
    """NaViT A.5: a line from `minimum` at the fewest tokens to `maximum` at the most, and little spread."""
    drop = DropConfig("resolution", minimum=0.1, maximum=0.7)
    config = ViewsConfig((16,), resolution=ResolutionConfig(64, 512, "uniform"), drop=drop)
    rng = Random(0)
    views = [draw_view(rng, (300, 300), config) for _ in range(4000)]
    for low, high, expected in ((16, 50, 0.11), (480, 560, 0.4), (980, 1024, 0.69)):
        rates = [v.drop_rate for v in views if low <= v.num_cells <= high]
        assert np.mean(rates) == pytest.approx(expected, abs=0.02)
        assert np.std(rates) < 0.04
    with pytest.raises(ValueError, match=r"views\.drop: resolution"):
        DropConfig("resolution", minimum=0.5, maximum=0.2)


def test_crops_keep_at_least_the_share_asked_for():
    rng = Random(0)
    shares = [h * w / 60_000 for _, _, h, w in (draw_box(rng, (200, 300), 0.25) for _ in range(500))]
    assert min(shares) > 0.24
    assert max(shares) > 0.9


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ViewsConfig(patch_sizes=()), "views.patch_sizes"),
        (lambda: ViewsConfig(patch_sizes=(8, 8)), "views.patch_sizes"),
        (lambda: ViewsConfig(patch_sizes=(8, 16), patch_weights=(1,)), "views.patch_weights"),
        (lambda: ViewsConfig(crop=0), "views.crop"),
        (lambda: ViewsConfig(crop_aspect=0.5), "views.crop_aspect"),
        (lambda: ViewsConfig(budget=15), "views.budget: a mean of 15 tokens is out of reach"),
        (lambda: ViewsConfig(budget=257), "allow 16.0 to 256.0"),
        (lambda: ResolutionConfig(300, 200), "views.resolution"),
        (lambda: DropConfig("beta", 0.9, 0.5), "views.drop"),
    ],
)
def test_impossible_settings_name_their_field(make, field):
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        make()
