"""pack_images: images in memory come out as they went in, in their order."""

import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from packvit.data import pack_images
from packvit.packing import PackedBatch


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def image_of(batch: PackedBatch, index: int) -> np.ndarray:
    """Image `index`, put together from its patches."""
    p = int(batch.patch_sizes[index])
    rows, cols = batch.grids[index].tolist()
    slots = batch.slots[p, p]
    mine = batch.image_index[slots] == index
    coords = batch.coords[slots][mine]
    assert coords.tolist() == [[row, col] for row in range(rows) for col in range(cols)]
    patches = batch.patches[p, p][mine].numpy()
    return rearrange(patches, "(r c) (p q ch) -> (r p) (c q) ch", r=rows, p=p, q=p)


def test_mixed_patch_sizes_pass_bit_exact_in_one_full_sequence():
    sizes, patch_sizes = [(32, 48), (24, 24), (16, 80), (36, 12)], [8, 6, 16, 12]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    batch = pack_images(images, patch_sizes)
    tokens = [h * w // p**2 for (h, w), p in zip(sizes, patch_sizes, strict=True)]
    assert batch.seq_len == batch.num_slots == sum(tokens)
    assert batch.image_lengths().tolist() == tokens
    assert batch.patch_sizes.tolist() == patch_sizes
    assert batch.native_sizes.tolist() == [list(size) for size in sizes]
    assert batch.keys == ["0", "1", "2", "3"]
    assert batch.labels is None
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image_of(batch, index), image)


@pytest.mark.parametrize("seq_len", [9, 12, 40])
def test_several_sequences_keep_the_order_of_the_images(seq_len):
    sides = [12, 4, 8, 4, 12, 8, 4]
    images = [noise(side, side, seed) for seed, side in enumerate(sides)]
    batch = pack_images(images, 4, seq_len=seq_len)
    assert batch.seq_len == seq_len
    assert batch.num_slots % seq_len == 0
    assert batch.keys == [str(index) for index in range(len(images))]
    assert batch.image_lengths().tolist() == [(side // 4) ** 2 for side in sides]
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image_of(batch, index), image)
        rows = (batch.image_index == index).nonzero().flatten() // seq_len
        assert len(rows.unique()) == 1


def test_resolution_resizes_to_the_nearest_grid():
    image = noise(60, 120)
    batch = pack_images([image, image, image], [8, 16, 8], resolution=[64, 64, 17])
    assert batch.grids.tolist() == [[6, 11], [3, 6], [2, 3]]
    for index, size in enumerate([(88, 48), (96, 48), (24, 16)]):
        wanted = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(image_of(batch, index), wanted)
    assert batch.native_sizes.tolist() == [[60, 120]] * 3


def test_sides_that_the_patch_size_does_not_divide_are_resized():
    image = noise(30, 50)
    batch = pack_images([image], 16)
    assert batch.grids.tolist() == [[2, 3]]
    wanted = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(image_of(batch, 0), wanted)


def test_views_and_read_only_arrays_are_accepted():
    image = noise(32, 32)
    mirrored = image[:, ::-1]
    mirrored.flags.writeable = False
    np.testing.assert_array_equal(image_of(pack_images([mirrored], 8), 0), mirrored)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images is empty"),
        (
            [noise(8, 8), noise(8, 8).astype(np.float32)],
            {},
            r"images\[1\] must be a uint8 array, not float32",
        ),
        ([noise(8, 8), "cat.jpg"], {}, r"images\[1\] must be a uint8 array, not str"),
        ([noise(8, 8)[:, :, 0]], {}, r"images\[0\] must have shape \[H, W, 3\], not \[8, 8\]"),
        ([noise(8, 8)[:, :, :2]], {}, r"images\[0\] must have shape"),
        ([noise(8, 8), noise(8, 0)], {}, r"images\[1\] must have shape"),
        ([noise(8, 8), noise(8, 8)], {"patch_size": [8, 0]}, r"images\[1\]: patch_size=0"),
        ([noise(8, 8)], {"patch_size": 4.5}, r"images\[0\]: patch_size=4.5"),
        ([noise(8, 8)], {"resolution": -1}, r"images\[0\]: .*resolution=-1"),
        ([noise(8, 8)], {"resolution": float("nan")}, r"images\[0\]: .*resolution=nan"),
        ([noise(8, 8)], {"patch_size": [8, 8]}, "patch_size has 2 values for 1 images"),
        ([noise(8, 8)] * 3, {"resolution": [8, 8]}, "resolution has 2 values for 3 images"),
        (
            [noise(8, 8), noise(32, 32)],
            {"patch_size": 8, "seq_len": 15},
            r"images\[1\] has 16 tokens, seq_len=15",
        ),
    ],
)
def test_errors_name_the_image(images, options, message):
    with pytest.raises(ValueError, match=message):
        pack_images(images, **options)


@pytest.mark.parametrize("wrong", ["16", ["16"], [None], float("nan"), 1.5, 0])
def test_a_patch_size_that_is_no_whole_number_is_named(wrong):
    with pytest.raises(ValueError, match=r"patch_size=.* must be a positive whole number"):
        pack_images([noise(32, 32)], wrong)
    with pytest.raises(ValueError, match=r"resolution=.* must be a positive number"):
        pack_images([noise(32, 32)], 16, resolution=["64"])  # pyright: ignore[reportArgumentType]
