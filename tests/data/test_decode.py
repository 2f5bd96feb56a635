"""Decoding: every kind of file becomes the same upright RGB pixels, whatever the decoder and its scale."""

import io
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from packvit.data.samples import decode as decode_module
from packvit.data.samples.decode import decode
from packvit.packing import View, decode_upright, full_view, native_size_of
from packvit.packing.images import files as image_files


@pytest.fixture(params=["simplejpeg", "pillow"])
def jpeg_decoder(request, monkeypatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(image_files, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


def picture(height: int, width: int) -> np.ndarray:
    """A smooth image without symmetry, uint8 [height, width, 3]."""
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    channels = [y + 0 * x, x * x + 0 * y, 0.5 + 0.4 * np.sin(9 * y + 5 * x * y)]
    return (np.stack(channels, -1) * 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[image_files.ORIENTATION] = orientation
    return tags.tobytes()


def show(data: bytes, patch_size: int = 1, resolution: float | None = None) -> np.ndarray:
    native = native_size_of(data)
    return decode(data, full_view(native, patch_size, resolution), native)


def difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - two.astype(int)).mean())


@pytest.mark.parametrize("kind", ["png", "ppm", "bmp"])
def test_native_size_passes_pixels_unchanged(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 31, 3), np.uint8)
    np.testing.assert_array_equal(show(encode(pixels, kind)), pixels)


def test_a_crop_at_native_scale_passes_pixels_unchanged():
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    view = View((2, 3), (8, 8), 6, (5, 7, 16, 24))
    np.testing.assert_array_equal(decode(encode(pixels, "png"), view, (40, 50)), pixels[5:21, 7:31])
    flipped = View((2, 3), (8, 8), 6, (5, 7, 16, 24), flip=True)
    np.testing.assert_array_equal(
        decode(encode(pixels, "png"), flipped, (40, 50)), pixels[5:21, 7:31][:, ::-1]
    )


def test_resizing_is_pillows_bicubic():
    pixels = picture(60, 90)
    wanted = Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC, (10, 6, 70, 46))
    view = View((4, 6), (8, 8), 24, (6, 10, 40, 60))
    np.testing.assert_array_equal(decode(encode(pixels, "png"), view, (60, 90)), np.asarray(wanted))


def test_webp_is_decoded():
    pixels = picture(33, 47)
    np.testing.assert_array_equal(show(encode(pixels, "webp", lossless=True)), pixels)
    assert difference(show(encode(pixels, "webp", quality=95)), pixels) < 4


def test_jpeg_at_native_size(jpeg_decoder):
    pixels = picture(45, 70)
    data = encode(pixels, "jpeg", quality=95, subsampling=0)
    assert native_size_of(data) == (45, 70)
    assert difference(show(data), pixels) < 2


def test_grey_images_have_three_equal_channels(jpeg_decoder):
    grey = picture(24, 36)[:, :, 1]
    for kind, limit in (("png", 0), ("jpeg", 2)):
        shown = show(encode(grey, kind))
        assert shown.shape == (24, 36, 3)
        assert difference(shown, np.stack([grey] * 3, -1)) <= limit


def test_bilevel_images_become_black_and_white():
    bits = np.indices((9, 13)).sum(0) % 2 == 0
    shown = show(encode(Image.fromarray(bits), "png"))
    np.testing.assert_array_equal(shown, np.stack([bits] * 3, -1) * np.uint8(255))


def test_alpha_is_dropped():
    pixels = picture(20, 30)
    alpha = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
    rgba = np.concatenate([pixels, alpha], -1)
    np.testing.assert_array_equal(show(encode(rgba, "png")), pixels)
    grey = np.concatenate([pixels[:, :, 1:2], alpha], -1)
    np.testing.assert_array_equal(show(encode(grey, "png")), np.repeat(pixels[:, :, 1:2], 3, -1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_palette_images_show_their_colours(transparency):
    image = Image.fromarray(picture(20, 30)).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(show(encode(image, "png", **options)), palette[np.asarray(image)])


@pytest.mark.parametrize("kind", ["png", "ppm"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    grey = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    shown = show(encode(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(shown, np.stack([grey >> 8] * 3, -1))


def test_cmyk_jpeg_is_what_pillow_converts_it_to(jpeg_decoder):
    data = encode(Image.fromarray(picture(32, 40)).convert("CMYK"), "jpeg", quality=95)
    np.testing.assert_array_equal(show(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, kind, jpeg_decoder):
    options = {"lossless": True} if kind == "webp" else {"quality": 95, "subsampling": 0}
    data = encode(picture(32, 48), kind, exif=exif(orientation), **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    size = (48, 32) if orientation >= 5 else (32, 48)
    limit = 1 if kind == "jpeg" else 0

    assert native_size_of(data) == size == upright.shape[:2]
    assert difference(show(data), upright) <= limit
    view = View((2, 3), (8, 8), 6, (9, 4, 16, 24), flip=True)
    assert difference(decode(data, view, size), upright[9:25, 4:28][:, ::-1]) <= limit


@pytest.mark.parametrize("orientation", [0, 9, 255, 1 << 12])
def test_unknown_orientations_count_as_upright(orientation, jpeg_decoder):
    data = encode(picture(32, 48), "jpeg", quality=95, exif=exif(orientation))
    assert native_size_of(data) == (32, 48)
    assert difference(show(data), picture(32, 48)) < 3


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    "block", [b"", b"garbage garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09"]
)
def test_damaged_exif_costs_no_image(block, kind, jpeg_decoder):
    data = encode(picture(32, 48), kind, quality=95, exif=b"Exif\0\0" + block)
    assert native_size_of(data) == (32, 48)
    assert difference(show(data), picture(32, 48)) < 3


@pytest.mark.parametrize("resize", ["pillow", "torch"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resolution", [20, 50, 100, 128, 200, 330, 700])
def test_jpeg_is_decoded_no_smaller_and_little_larger_than_the_view(
    resolution, orientation, resize, jpeg_decoder, monkeypatch
):
    data = encode(picture(250, 400), "jpeg", quality=95, exif=exif(orientation))
    native = native_size_of(data)
    sizes = []

    def spy(*args, decode_whole=decode_module.decode_whole, **options):
        image = decode_whole(*args, **options)
        sizes.append(np.shape(image)[:2])
        return image

    monkeypatch.setattr(decode_module, "decode_whole", spy)
    view = full_view(native, 4, resolution)
    shown = decode(data, view, native, resize)
    full = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    wanted = np.asarray(full.resize((view.width, view.height), Image.Resampling.BICUBIC))

    [(height, width)] = sizes
    assert height >= min(view.height, native[0])
    assert width >= min(view.width, native[1])
    assert height <= max(2 * view.height + 1, native[0] / 8 + 1)
    assert height <= native[0]
    if resize == "torch":
        assert (height, width) in [tuple(-(-side // share) for side in native) for share in (8, 4, 2, 1)]
    assert difference(shown, wanted) < 5


def test_a_small_crop_is_decoded_at_the_scale_of_the_crop(jpeg_decoder):
    data = encode(picture(256, 512), "jpeg", quality=95)
    full = Image.open(io.BytesIO(data))
    view = View((8, 8), (4, 4), 64, (100, 300, 64, 64), flip=True)
    wanted = np.asarray(full.resize((32, 32), Image.Resampling.BICUBIC, (300, 100, 364, 164)))
    assert difference(decode(data, view, (256, 512)), wanted[:, ::-1]) < 3


@settings(max_examples=50)
@given(
    kind=st.sampled_from(["jpeg", "mpo", "png"]),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    orientation=st.sampled_from([None, 1, 6]),
    progressive=st.booleans(),
    broken=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3),
    length=st.sampled_from([40, 400, 10**6]),
)
def test_the_size_of_a_plain_jpeg_is_what_pillow_says(kind, mode, orientation, progressive, broken, length):
    """Also where bytes are wrong: what one of them refuses or overlooks never makes two sizes of an image."""
    options = {} if kind == "png" else {"progressive": progressive, "optimize": True}
    image = Image.fromarray(picture(40, 56)).convert("L" if kind == "png" else mode)
    data = bytearray(encode(image, kind, **options, **({"exif": exif(orientation)} if orientation else {})))
    for place, value in broken:
        data[place % len(data)] = value
    found = image_files._plain_size(bytes(data[:length]))
    if found is None:
        assert broken or length < 700 or orientation or kind != "jpeg" or mode == "CMYK"
    else:
        with suppress(ValueError), image_files._open(bytes(data[:length])) as opened:
            assert image_files._upright_size(opened) == found


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0\x00\x07JFIF\0",
        b"\xff\xe2\x00\x0eICC_PROFILE\0",
        b"\xff\xed\x00\x16Photoshop 3.0\x008BIM\x04\x04",
        b"\xff\xee\x00\x07Adobe",
    ],
)
def test_a_header_that_pillow_refuses_is_refused(segment, jpeg_decoder):
    data = encode(picture(40, 56), "jpeg")
    data = data[:2] + segment + data[2:]
    for call in (lambda: native_size_of(data), lambda: decode_upright(data, (40, 56))):
        with pytest.raises(ValueError, match="cannot be decoded"):
            call()


def test_both_jpeg_decoders_agree(monkeypatch):
    pytest.importorskip("simplejpeg")
    data = encode(picture(300, 200), "jpeg", quality=90)
    one = show(data, 8, 96)
    monkeypatch.setattr(image_files, "simplejpeg", None)
    assert difference(one, show(data, 8, 96)) < 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_a_truncated_image_is_an_error(kind, jpeg_decoder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, kind)
    view = full_view((64, 64), 8)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data[: len(data) // 2], view, (64, 64))


def test_stray_bytes_between_markers_are_overlooked(jpeg_decoder):
    data = encode(picture(40, 40), "jpeg", quality=95)
    tables = data.index(b"\xff\xdb")
    shown = show(data[:tables] + b"\x11\x22\x33" + data[tables:])
    assert difference(shown, show(data)) < 1


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_an_error(data, jpeg_decoder):
    with pytest.raises(ValueError, match=r"cannot be decoded \(\w+"):
        native_size_of(data)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data, full_view((8, 8), 8), (8, 8))


def test_broken_bytes_raise_nothing_but_value_errors(jpeg_decoder):
    rng = np.random.default_rng(0)
    files = [encode(picture(24, 24), kind) for kind in ("png", "jpeg", "webp", "bmp", "ppm")]
    view = full_view((24, 24), 8)
    for data in files:
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, min(len(data), 200), 4):
                broken[place] = rng.integers(256)
            try:
                assert decode(bytes(broken), view, native_size_of(bytes(broken))).shape == (24, 24, 3)
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_another_size_than_the_header_said_is_an_error(jpeg_decoder):
    for kind in ("png", "jpeg"):
        data = encode(picture(32, 48), kind)
        with pytest.raises(ValueError, match=r"32x48.*48x32"):
            decode(data, full_view((48, 32), 8), (48, 32))


def test_too_many_pixels_are_refused_by_the_header(monkeypatch):
    data = encode(picture(40, 50), "png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 2000)
    assert native_size_of(data) == (40, 50)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1999)
    with pytest.raises(ValueError, match="50x40 pixels are more than 1999"):
        native_size_of(data)
    with pytest.raises(ValueError, match="50x40 pixels"):
        decode(data, full_view((40, 50), 8), (40, 50))


def test_pillows_own_limit_does_not_warn(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    np.testing.assert_array_equal(show(encode(picture(40, 50), "png")), picture(40, 50))


def test_phone_pictures_of_several_frames_are_jpegs(jpeg_decoder, monkeypatch):
    frames = [Image.fromarray(picture(160, 240)), Image.fromarray(picture(16, 24))]
    data = encode(frames[0], "mpo", save_all=True, append_images=frames[1:], quality=95)
    assert native_size_of(data) == (160, 240)
    wanted = np.asarray(frames[0].resize((48, 32), Image.Resampling.BICUBIC))
    assert difference(decode(data, View((4, 6), (8, 8), 24, (0, 0, 160, 240)), (160, 240)), wanted) < 3


def test_the_first_frame_of_an_animation_is_shown():
    frames = [Image.fromarray(picture(20, 30)), Image.fromarray(255 - picture(20, 30))]
    for kind in ("png", "webp"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(show(data), picture(20, 30))


@given(
    sizes=st.tuples(*[st.integers(1, 90)] * 2),
    grid=st.tuples(*[st.integers(1, 12)] * 2),
    flip=st.booleans(),
    data=st.data(),
)
def test_torch_resizes_as_pillow_does(sizes, grid, flip, data):
    """What is cut out first and overshoots nowhere, they differ by the last digits of the weights alone."""
    image = np.random.default_rng(sum(sizes)).integers(80, 176, (*sizes, 3), np.uint8)
    top, left = (data.draw(st.integers(0, size - 1)) for size in sizes)
    height, width = data.draw(st.integers(1, sizes[0] - top)), data.draw(st.integers(1, sizes[1] - left))
    view = View(grid, (4, 4), 1, (top, left, height, width), flip)
    fast = decode_module.show(Image.fromarray(image), view, sizes, "torch")
    part = Image.fromarray(image[top : top + height, left : left + width])
    slow = decode_module.show(part, replace(view, box=(0, 0, height, width)), (height, width), "pillow")
    assert fast.shape == slow.shape == (view.height, view.width, 3)
    assert fast.dtype == np.uint8
    assert np.abs(fast.astype(int) - slow).max() <= 3


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (79, 99, 1, 1), (3, 5, 2, 90)])
def test_torch_shows_boxes_that_are_less_than_a_pixel_of_a_smaller_image(box):
    image = Image.fromarray(picture(10, 13))  # at an eighth of its native size
    assert decode_module.show(image, View((2, 2), (4, 4), 4, box), (80, 100), "torch").shape == (8, 8, 3)
