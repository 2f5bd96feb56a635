"""pack_images: images in memory come out as they went in, in their order."""

import io

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from packvit.data.samples.decode import decode
from packvit.packing import PackedBatch, Source, full_view, pack_images
from packvit.packing.images.files import ORIENTATION


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


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pack_one(source: Source) -> np.ndarray:
    return image_of(pack_images([source], 4), 0)


def test_every_kind_of_image_is_packed_as_its_pixels(tmp_path):
    pixels, alpha = noise(8, 12), noise(8, 12, 1)[:, :, :1]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for source in (
        Image.fromarray(pixels), path, str(path), path.read_bytes(), tensor, tensor.contiguous(),
        tensor / 255, (tensor / 255).double().requires_grad_(), pixels / 255, pixels.astype(np.float32) / 255,
        np.concatenate([pixels, alpha], 2), torch.cat([tensor, torch.from_numpy(alpha).permute(2, 0, 1)]),
        Image.fromarray(np.concatenate([pixels, alpha], 2)),
    ):  # fmt: skip
        np.testing.assert_array_equal(pack_one(source), pixels)
    grey = np.repeat(alpha, 3, 2)
    for source in (alpha, alpha[:, :, 0], Image.fromarray(alpha[:, :, 0]), torch.from_numpy(alpha[:, :, 0])):
        np.testing.assert_array_equal(pack_one(source), grey)
    batch = pack_images(torch.stack([tensor, tensor]), 4)  # what can be iterated over is a list
    np.testing.assert_array_equal(image_of(batch, 1), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_a_pil_image_is_packed_as_the_loader_would_show_its_file(mode):
    rgb = Image.fromarray(noise(8, 8))
    image = (
        Image.fromarray(np.arange(0, 64000, 1000).reshape(8, 8).astype(np.uint16)) if mode == "I;16" else None
    )
    image = image or rgb.convert(mode)
    kind = "tiff" if mode in ("F", "CMYK", "YCbCr") else "png"
    reopened = Image.open(io.BytesIO(encode(image, kind)))
    np.testing.assert_array_equal(pack_one(reopened), pack_one(image))
    if kind == "png":
        data = encode(image, kind)
        np.testing.assert_array_equal(pack_one(image), decode(data, full_view((8, 8), 4), (8, 8)))


def test_images_are_turned_as_people_see_them():
    image = Image.fromarray(noise(8, 12))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(image, "png", exif=exif)
    wanted = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(pack_one(data), wanted)
    np.testing.assert_array_equal(pack_one(Image.open(io.BytesIO(data))), wanted)
    assert pack_images([data], 4).native_sizes.tolist() == [[12, 8]]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images is empty"),
        ([noise(8, 8), noise(8, 8).astype(np.int64)], {}, r"images\[1\] must be a uint8 array, .*int64"),
        (
            [noise(8, 8), noise(8, 8).astype(np.float32)],
            {},
            r"images\[1\]: its floats lie in 0..2.., not in 0",
        ),
        ([torch.tensor(float("nan")).expand(3, 8, 8)], {}, r"images\[0\]: its floats lie in nan"),
        ([torch.zeros(3, 8, 8, dtype=torch.int32)], {}, r"images\[0\] must be a uint8 tensor, .*int32"),
        ([torch.zeros(8, 8, 3)], {}, r"images\[0\] must have the shape \[3, H, W\], .*not \[8, 8, 3\]"),
        ([noise(8, 8), 7], {}, r"images\[1\] must be an array \[H, W, 3\], .* not int"),
        ([noise(8, 8), "cat.jpg"], {}, r"images\[1\] \(cat\.jpg\): it cannot be read \(No such file"),
        ([b"no image"], {}, r"images\[0\]: it cannot be decoded"),
        ([noise(8, 8)[:, :, :2]], {}, r"images\[0\] must have the shape \[H, W, 3\], .*not \[8, 8, 2\]"),
        ([noise(8, 8), noise(8, 0)], {}, r"images\[1\] must have the shape"),
        (noise(8, 8), {}, "images must be a list, also of a single image"),
        ("cat.jpg", {}, "images must be a list"),
        (7, {}, "images must be a list"),
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
