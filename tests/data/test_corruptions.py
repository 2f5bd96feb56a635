"""Corruptions do what their definitions say, the same for an image whenever it is shown, and more at each
strength.
"""

import colorsys
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.data import Corruption, every_corruption, parse_corruptions
from packvit.data.samples.corrupt import KINDS, SIDE, STRENGTHS, bring_to_area, corrupt
from packvit.data.samples.corruptions import filters
from packvit.data.samples.corruptions.digital import brightness
from packvit.data.samples.corruptions.weather import PLASMA_SIDE, plasma

# What follows from the picture alone.
CERTAIN = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def smooth_picture(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], grey values 0.15 to 0.8, waves 10 to 60 pixels long."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 30), np.cos(y / 2.5 - x / 8), np.sin(x * y / 700 + 1) * np.cos(x / 3)]
    return (255 * (0.475 + 0.325 * np.stack(waves, 2))).round().astype(np.uint8)


PICTURE = smooth_picture(96, 128)


def rmse(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((one.astype(float) - other) ** 2).mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_follows_from_the_seed_and_keeps_the_shape(kind):
    for picture in (PICTURE, smooth_picture(61, 40), smooth_picture(12, 300)):
        before = picture.copy()
        changed = corrupt(picture, kind, 5, seed=1)
        assert changed.dtype == np.uint8
        assert changed.shape == picture.shape
        assert (changed == corrupt(picture, kind, 5, seed=1)).all()
        assert (changed == corrupt(picture, kind, 5, seed=2)).all() == (kind in CERTAIN)
        assert (picture == before).all()
        assert rmse(changed, picture) > 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("elastic_transform", "frost")])
def test_damage_grows_with_the_strength(kind):
    seeds = range(1 if kind in CERTAIN else 4)
    damage = [
        np.mean([rmse(corrupt(PICTURE, kind, strength, seed), PICTURE) for seed in seeds])
        for strength in STRENGTHS
    ]
    assert damage == sorted(damage)
    assert damage[4] > 1.2 * damage[0]


def test_elastic_damage_grows_among_the_wide_and_among_the_fine_displacements():
    """Strengths 1 and 2 move the picture far and smoothly, 3 to 5 a little and roughly."""
    damage = [
        np.mean([rmse(corrupt(PICTURE, "elastic_transform", strength, seed), PICTURE) for seed in range(8)])
        for strength in STRENGTHS
    ]
    assert damage[0] < damage[1]
    assert damage[2] < damage[3] < damage[4]


def test_frost_leaves_less_of_the_picture_with_each_strength():
    """Ice may be as bright as what it hides; so what is compared is how well pictures can be told apart."""
    dark, darker = PICTURE // 4, PICTURE // 8
    left = [rmse(corrupt(dark, "frost", s, 0), corrupt(darker, "frost", s, 0)) for s in STRENGTHS]
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(rmse(dark, darker), rel=0.05)
    assert left[4] == pytest.approx(0.6 * rmse(dark, darker), rel=0.05)


def test_shares_and_sizes_are_the_published_ones():
    grey = np.full((200, 200, 3), 128, np.uint8)
    salted = corrupt(grey, "impulse_noise", 5, 0)
    assert (salted == 0).mean() == pytest.approx(0.135, abs=0.01)
    assert (salted == 255).mean() == pytest.approx(0.135, abs=0.01)
    assert (corrupt(grey, "gaussian_noise", 1, 0) / 255).std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(grey, "shot_noise", 1, 0) / 255
    assert (shot.mean(), shot.var()) == pytest.approx((128 / 255, 128 / 255 / 60), rel=0.02)
    blocks = corrupt(PICTURE, "pixelate", 5, 0)
    assert (blocks.reshape(24, 4, 32, 4, 3) == blocks[::4, None, ::4, None]).all()
    faint = corrupt(PICTURE, "contrast", 5, 0).astype(float)
    assert faint.std((0, 1)) == pytest.approx(0.05 * PICTURE.std((0, 1)), rel=0.1)
    assert faint.mean((0, 1)) == pytest.approx(PICTURE.mean((0, 1)), abs=0.5)


@pytest.mark.parametrize(
    "kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"]
)
def test_blurs_and_displacements_leave_an_even_picture_as_it_is(kind):
    grey = np.full((50, 70, 3), 99, np.uint8)
    assert (corrupt(grey, kind, 5, 0) == grey).all()


# ---- the filters against their definitions ----


@pytest.mark.parametrize(("edge", "mode"), [("nearest", "edge"), ("symmetric", "symmetric")])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 20.0])
def test_a_gaussian_blur_is_the_weighted_mean_of_neighbours(edge, mode, sigma):
    image = np.random.default_rng(0).random((9, 14), dtype=np.float32)
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    wide = np.pad(image, radius, mode)
    slow = [
        [weights @ wide[r : r + 2 * radius + 1, c : c + 2 * radius + 1] @ weights for c in range(14)]
        for r in range(9)
    ]
    assert filters.gaussian(image, sigma, edge) == pytest.approx(np.array(slow), abs=1e-5)


def test_a_convolution_is_the_sum_over_the_kernel():
    rng = np.random.default_rng(0)
    image, kernel = rng.random((7, 11, 3), dtype=np.float32), rng.random((5, 5)).astype(np.float32)
    kernel += kernel[::-1, ::-1]
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), "symmetric")
    slow = sum(kernel[r, c] * wide[r : r + 7, c : c + 11] for r in range(5) for c in range(5))
    assert filters.convolve(image, kernel) == pytest.approx(slow, abs=1e-4)


@given(st.integers(1, 9), st.integers(0, 40))
def test_mirrored_places_are_those_of_a_padded_row(size, margin):
    places = np.arange(-margin, size + margin)
    assert (filters.mirror(places, size) == np.pad(np.arange(size), margin, "symmetric")).all()


def test_a_point_in_motion_leaves_half_a_gaussian_in_its_direction():
    image = np.zeros((41, 41, 1), np.float32)
    image[20, 20] = 1
    weights = np.exp(-0.5 * (np.arange(21) / 4) ** 2)
    trails = {0: np.s_[20, 20::-1], 90: np.s_[20::-1, 20], -90: np.s_[20:, 20], 180: np.s_[20, 20:]}
    for degrees, trail in trails.items():
        blurred = filters.motion(image, 10, 4, degrees)[..., 0]
        assert blurred[trail] == pytest.approx(weights / weights.sum(), abs=1e-6)
        assert blurred.sum() == pytest.approx(1, abs=1e-5)


def test_sampling_and_zooming_read_bilinearly():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    slope = np.stack([x, 2 * y + x], 2)
    assert (filters.sample(slope, y, x) == slope).all()
    inner = filters.sample(slope, y[:-1, :-1] + 0.25, x[:-1, :-1] + 0.75)
    assert inner[..., 0] == pytest.approx(x[:-1, :-1] + 0.75)
    assert inner[..., 1] == pytest.approx(2 * y[:-1, :-1] + x[:-1, :-1] + 1.25)
    assert filters.zoom(slope, 1.0) == pytest.approx(slope, abs=1e-4)
    zoomed = filters.zoom(slope, 2.0)[5:15, 5:25, 0]
    assert zoomed == pytest.approx(14.5 + (x[5:15, 5:25] - 14.5) / 2, abs=1e-4)


def test_brightness_is_added_to_the_value_of_hsv():
    image = np.random.default_rng(0).random((4, 5, 3), dtype=np.float32)
    image[0, 0] = 0
    brighter = brightness(image, np.random.default_rng(), 0.3)
    for colour, changed in zip(image.reshape(-1, 3), brighter.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, colour))
        assert changed == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)), abs=1e-5)


def test_clouds_are_finer_the_slower_their_amplitude_decays_and_repeat_without_a_seam():
    clouds = [plasma((PLASMA_SIDE + 9, PLASMA_SIDE), decay, np.random.default_rng(0)) for decay in (2, 1.4)]
    for cloud in clouds:
        assert (cloud.min(), cloud.max()) == (0, 1)
        assert (cloud[:9] == cloud[PLASMA_SIDE:]).all()
    smooth, rough = (np.abs(np.diff(cloud, axis=0)).mean() for cloud in clouds)
    assert rough > 1.5 * smooth


# ---- what evaluations use ----


def test_an_image_is_corrupted_at_the_area_that_strengths_are_meant_for():
    corruption = Corruption("gaussian_noise", 3)
    for height, width in ((48, 64), (600, 300), (1, 500)):
        changed = corruption(smooth_picture(height, width), "a")
        assert changed.shape[0] * changed.shape[1] == pytest.approx(SIDE**2, rel=0.05)
        assert changed.shape[1] / changed.shape[0] == pytest.approx(width / height, rel=0.06)
    exact = smooth_picture(SIDE, SIDE)
    assert (bring_to_area(exact) == exact).all()


def test_what_is_random_follows_from_kind_strength_and_key():
    one = Corruption("fog", 3)
    assert (one(PICTURE, "a") == pickle.loads(pickle.dumps(one))(PICTURE, "a")).all()
    assert (one(PICTURE, "a") != one(PICTURE, "b")).any()
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    noise = [Corruption("gaussian_noise", strength)(grey, "a") / 255.0 - 128 / 255 for strength in (1, 2)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.02


def test_names_of_corruptions():
    assert Corruption.parse("fog:3") == Corruption("fog", 3)
    assert Corruption.parse("fog:3").name == "fog-3"
    assert len({corruption.name for corruption in every_corruption()}) == 75
    assert parse_corruptions(["all"]) == every_corruption()
    assert parse_corruptions(["snow:2", "fog", "fog:3"]) == [
        Corruption("snow", 2),
        *(Corruption("fog", strength) for strength in STRENGTHS),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rain", "'rain' is not a corruption: it is one of gaussian_noise, "),
        ("rain:2", "'rain' is not a corruption"),
        ("fog:6", "'fog:6' is not of the form KIND:STRENGTH"),
        ("fog:", "'fog:' is not of the form"),
        ("fog:x", "'fog:x' is not of the form"),
    ],
)
def test_what_is_no_corruption_is_named(text, what):
    with pytest.raises(ValueError, match=what):
        parse_corruptions([text])
    with pytest.raises(ValueError, match="strength 0"):
        Corruption("fog", 0)
