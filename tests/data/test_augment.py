"""Changes of colour: what each does, that all views get the same, and that nothing else decides them."""

import colorsys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from packvit.data import AugmentConfig, DataConfig, DataPlan, TrainLoader
from packvit.data.samples.augment import COLOURS, MOVES, Draw, apply, augment, draw_operations
from packvit.data.samples.sample import Decoded
from packvit.packing import PackedBatch, PackingConfig, ResolutionConfig, View, ViewsConfig

ALL = AugmentConfig(0.4, 0.4, 0.4, 0.1, randaugment_ops=2)


def noise(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sample(*pixels: np.ndarray, seed: int = 0) -> Decoded:
    views = [View((x.shape[0] // 4, x.shape[1] // 4), (4, 4), 1, (0, 0, *x.shape[:2])) for x in pixels]
    return Decoded("k", pixels[0].shape[:2], seed, views, pixels, [{} for _ in views])


def test_nothing_is_changed_unless_asked_for():
    image = noise()
    assert augment(sample(image), AugmentConfig()).pixels[0] is image


def test_brightness_is_a_factor_within_its_range():
    image = np.full((8, 8, 3), 100, np.uint8)
    values = [
        int(apply(image, draw_operations(Random(i), AugmentConfig(brightness=0.3)))[0, 0, 0])
        for i in range(300)
    ]
    assert 69 <= min(values) < 73
    assert 127 < max(values) <= 130


def test_contrast_keeps_the_mean_and_saturation_the_greys():
    image = noise()
    for i in range(20):
        contrast = apply(image, draw_operations(Random(i), AugmentConfig(contrast=0.5)))
        grey, before = (np.asarray(Image.fromarray(x).convert("L"), float) for x in (contrast, image))
        assert abs(grey.mean() - before.mean()) < 6  # what is clipped moves it a little
        greys = np.repeat(image[:, :, :1], 3, 2)
        saturated = apply(greys, draw_operations(Random(i), AugmentConfig(saturation=0.9)))
        assert np.abs(saturated.astype(int) - greys).max() <= 1


def test_hue_moves_around_the_circle():
    red = np.full((4, 4, 3), (200, 50, 50), np.uint8)
    moved = [apply(red, draw_operations(Random(i), AugmentConfig(hue=0.1)))[0, 0] for i in range(300)]
    hues = np.array([colorsys.rgb_to_hsv(*(pixel / 255))[0] for pixel in moved])
    hues = (hues + 0.5) % 1 - 0.5
    assert -0.11 < hues.min() < -0.08
    assert 0.08 < hues.max() < 0.11
    assert np.array(moved).max() <= 202


def change(operation, image: Image.Image, strength: float, sign: int = 1) -> np.ndarray:
    return np.asarray(operation(image, strength=strength, draw=Draw(sign, 0.5, 0.25))).astype(int)


def test_randaugment_has_the_sixteen_operations_at_their_strongest():
    pixels = noise().astype(int)
    image = Image.fromarray(noise())
    assert len(COLOURS + MOVES) == 16
    invert, posterize, solarize, solarize_add, colour, _, brightness = COLOURS[2:9]
    assert (change(invert, image, 1) == 255 - pixels).all()
    assert set(np.unique(change(posterize, image, 1) % 16)) == {0}
    assert (change(solarize, image, 1) == pixels).all()  # the threshold is 256 then
    assert (change(solarize, image, 0.5) == np.where(pixels < 128, pixels, 255 - pixels)).all()
    assert (change(solarize_add, image, 1) == np.where(pixels < 128, pixels + 110, pixels)).all()
    assert np.abs(change(brightness, image, 1) - np.minimum(255, pixels * 1.9)).max() <= 1
    grey = change(colour, image, 0)  # a factor of 0.1
    assert (grey.max(2) - grey.min(2)).max() < 0.11 * 255


def test_randaugments_moves_leave_grey_behind():
    image = Image.fromarray(np.full((24, 48, 3), 200, np.uint8))
    turn, cut_out, shear_x, shear_y, shift_x, shift_y = (
        (change(operation, image, 1) == 128).all(2) for operation in MOVES
    )
    assert turn[0, 0]
    assert not turn[12, 24]
    assert cut_out.nonzero()[0].tolist() == sorted([*range(8, 16)] * 16)
    assert set(cut_out.nonzero()[1]) == set(range(4, 20))
    assert shear_x.any(0)[-7:].all()
    assert not shear_x[:, :40].any()
    assert shear_y.any(1)[-14:].all()
    assert shift_x.all(0).tolist() == [False] * 28 + [True] * 20
    assert shift_y.all(1).tolist() == [False] * 14 + [True] * 10
    still = [change(operation, image, 0) for operation in MOVES]
    assert all((pixels == 200).all() for pixels in still)


def test_moves_are_drawn_unless_they_are_left_out():
    def drawn(moves: bool) -> set:
        config = AugmentConfig(randaugment_ops=3, randaugment_moves=moves)
        operations = [operation for i in range(100) for operation in draw_operations(Random(i), config)]
        return {getattr(operation, "func", None) for operation in operations}

    assert drawn(True) == {*COLOURS, *MOVES}
    assert drawn(False) == {*COLOURS}


def test_all_views_of_a_sample_get_the_same_and_samples_differ():
    image = noise()
    one = augment(sample(image, image, seed=1), ALL)
    np.testing.assert_array_equal(one.pixels[0], one.pixels[1])
    np.testing.assert_array_equal(one.pixels[0], augment(sample(image, seed=1), ALL).pixels[0])
    others = [augment(sample(image, seed=i), ALL).pixels[0] for i in range(2, 6)]
    assert not any(np.array_equal(one.pixels[0], other) for other in others)
    # A view of another size has its own pixels and the same factors.
    flat = [np.full((h, w, 3), (90, 60, 30), np.uint8) for h, w in ((8, 8), (24, 12))]
    for seed in range(20):
        small, large = augment(sample(*flat, seed=seed), ALL).pixels
        np.testing.assert_array_equal(small[0, 0], large[0, 0])


def test_batches_change_in_colour_alone_and_resume(digits_set):
    views = ViewsConfig((4, 8), resolution=ResolutionConfig(16, 40, "uniform"))
    packing = PackingConfig(seq_len=64, sequences=2, lookahead=8, balance=1)
    data = DataConfig((str(digits_set / "train"),), workers=0, streams=2)

    def take(config: AugmentConfig, number: int, state: dict | None = None) -> tuple[list[PackedBatch], dict]:
        targets = {"label": data.class_target(10)}
        loader = TrainLoader(DataPlan(replace(data, augment=config), views, packing, 0, targets))
        if state:
            loader.load_state_dict(state)
        batches = iter(loader)
        taken = [next(batches).batch for _ in range(number)]
        return [batch for batch in taken if batch is not None], loader.state_dict()

    plain, _ = take(AugmentConfig(), 6)
    whole, _ = take(ALL, 6)
    first, state = take(ALL, 2)
    rest, _ = take(ALL, 4, state)
    for one, two, without in zip(whole, first + rest, plain, strict=True):
        assert one.keys == two.keys == without.keys
        assert torch.equal(one.coords, without.coords)
        assert all(torch.equal(one.patches[p], two.patches[p]) for p in one.patches)
        assert not all(torch.equal(one.patches[p], without.patches[p]) for p in one.patches)


def test_impossible_values_name_their_field():
    wrong = {"hue": 0.6, "contrast": -1, "randaugment_ops": -1, "randaugment_magnitude": 11}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=rf"data\.augment\.{field}={value}"):
            AugmentConfig(**{field: value})
