"""A new kind of target fits without a change anywhere else: boxes and masks follow every view and mix.

Both kinds are defined here. A third one notes how every image is shown and mixed, from which the tests work
out by themselves where boxes and masks must be.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from webdataset.writer import TarWriter

from packvit.data import (
    BadSample,
    DataConfig,
    DataPlan,
    EvalSet,
    LoadedBatch,
    Mix,
    MixConfig,
    Mixing,
    Shard,
    Target,
    TrainLoader,
    pixel_box,
)
from packvit.evaluate import Setting
from packvit.packing import PackedBatch, PackingConfig, Ragged, ResolutionConfig, View, ViewsConfig

SAMPLES, BATCHES = 14, 5
HAIR = (-1e-3, 1e-3)  # pixels
VIEWS = ViewsConfig(
    (4, 8), resolution=ResolutionConfig(24, 48, "uniform"), crop=0.15, crop_aspect=1.5, flip=0.5
)
PACKING = PackingConfig(seq_len=160, sequences=3, lookahead=8, balance=1)
MIXES = {"plain": MixConfig(), "mixup": MixConfig(mixup=0.5), "cutmix": MixConfig(cutmix=1.0)}


# ---- the new kinds ----


@dataclass(frozen=True)
class BoxTarget(Target):
    """The list `boxes` of a JSON field: top, left, bottom, right of each in native pixels.

    In a view they are float32 [n, 5]: the same in the view's pixels, and the share of their image. A crop
    cuts boxes off, and loses those outside. A mixed image has the boxes of both images.
    """

    field: str = "json"

    def read(self, shard: Shard, member: int) -> np.ndarray:
        """float32 [n, 4]."""
        boxes = json.loads(shard.read(member, self.field))["boxes"]
        return np.array(boxes, np.float32).reshape(-1, 4)

    def follow(self, value: np.ndarray, view: View, native_size: tuple[int, int]) -> np.ndarray:
        """See Target."""
        top, left, height, width = view.box
        size = (view.height, view.width)
        corners = (value.reshape(-1, 2, 2) - (top, left)) * (size[0] / height, size[1] / width)
        corners = corners.clip(0, size)  # [n, 2 corners, (y, x)]
        if view.flip:
            corners[..., 1] = view.width - corners[:, ::-1, 1]
        kept = corners[(corners[:, 1] > corners[:, 0]).all(1)].reshape(-1, 4)
        return np.concatenate([kept, np.ones((len(kept), 1))], 1).astype(np.float32)

    def mix(self, own: np.ndarray, partner: np.ndarray, mixing: Mixing) -> np.ndarray:
        """See Target; an image of which nothing is seen has no boxes."""
        view, other = mixing.view, mixing.partner_view
        scale = np.tile([view.height / other.height, view.width / other.width], 2)
        parts = [(own, 1.0, mixing.share), (partner, scale, 1 - mixing.share)]
        rows = [np.column_stack([rows[:, :4] * by, rows[:, 4] * part]) for rows, by, part in parts if part]
        return np.concatenate(rows).astype(np.float32)

    def collate(self, values: Sequence[np.ndarray]) -> Ragged:
        """Ragged float32 [rows, 5]."""
        return Ragged.join(values, np.empty((0, 5), np.float32))


@dataclass(frozen=True)
class MaskTarget(Target):
    """A .npy field, uint8 [H, W] as the image: a class for every pixel.

    Views take the nearest pixel. In cutmix the partner's rectangle comes with its mask, in mixup the image,
    which has the larger share, keeps its own. In a batch masks are a Ragged uint8 [pixels], row by row.
    """

    field: str = "mask.npy"

    def read(self, shard: Shard, member: int) -> np.ndarray:
        """uint8 [H, W]."""
        mask = shard.array(member, self.field)
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise BadSample(shard.path, shard.key(member), f"its .{self.field} is no mask")
        return mask

    def follow(self, value: np.ndarray, view: View, native_size: tuple[int, int]) -> np.ndarray:
        """uint8 [view.height, view.width]."""
        if value.shape != native_size:
            raise ValueError(f"its mask has {value.shape[0]}x{value.shape[1]} pixels, not those of the image")
        shown = take_nearest(value, view.box, (view.height, view.width))
        return shown[:, ::-1] if view.flip else shown

    def mix(self, own: np.ndarray, partner: np.ndarray, mixing: Mixing) -> np.ndarray:
        """See Target."""
        top, left, bottom, right = pixel_box(mixing.mix, *own.shape)
        resized = take_nearest(partner, (0, 0, *partner.shape), own.shape)
        mixed = own.copy()
        mixed[top:bottom, left:right] = resized[top:bottom, left:right]
        return mixed

    def collate(self, values: Sequence[np.ndarray]) -> Ragged:
        """Ragged uint8 [pixels]."""
        return Ragged.join([mask.ravel() for mask in values], np.empty(0, np.uint8))


def take_nearest(mask: np.ndarray, box: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A box of a mask, resized to (height, width) by taking the pixel under each centre."""
    rows, cols = ((2 * np.arange(size[i]) + 1) * box[2 + i] // (2 * size[i]) + box[i] for i in range(2))
    return mask[np.ix_(rows, cols)]


class NoteTarget(Target):
    """Notes, as JSON, how an image is shown and mixed."""

    def read(self, shard: Shard, member: int) -> None:
        """There is nothing to read."""

    def follow(self, value: None, view: View, native_size: tuple[int, int]) -> dict:
        """Note the view."""
        return {"view": asdict(view), "mix": None, "share": 1.0}

    def mix(self, own: dict, partner: dict, mixing: Mixing) -> dict:
        """Note the mix."""
        return own | {"mix": asdict(mixing.mix), "share": mixing.share}

    def collate(self, values: Sequence[dict]) -> list[str]:
        """N texts."""
        return [json.dumps(value) for value in values]


TARGETS = {"boxes": BoxTarget(), "mask": MaskTarget(), "note": NoteTarget()}


# ---- what they are tried on ----


@dataclass(frozen=True)
class Scene:
    """An image with white boxes on black, and its mask, which numbers the boxes from 1."""

    boxes: list[list[int]]
    mask: np.ndarray


def draw_scene(rng: np.random.Generator, number: int) -> Scene:
    """A scene of 0 to 3 boxes, which may overlap."""
    size = rng.integers(40, 80, 2)
    mask, boxes = np.zeros(size, np.uint8), []
    for k in range(number % 4):
        extent = rng.integers(14, 30, 2)
        top, left = (int(rng.integers(0, size[i] - extent[i])) for i in range(2))
        boxes.append([top, left, top + int(extent[0]), left + int(extent[1])])
        mask[top : boxes[k][2], left : boxes[k][3]] = k + 1
    return Scene(boxes, mask)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    rng = np.random.default_rng(0)
    return {f"s{i:02d}": draw_scene(rng, i) for i in range(SAMPLES)}


@pytest.fixture(scope="module")
def shard(scenes, tmp_path_factory) -> Path:
    """The scenes, a sample without boxes, one whose mask is none, and one whose mask is of another size."""
    path = tmp_path_factory.mktemp("scenes") / "a.tar"
    members: dict[str, dict[str, bytes]] = {}
    for key, scene in scenes.items():
        buffer = io.BytesIO()
        Image.fromarray(np.repeat(scene.mask[:, :, None] > 0, 3, 2) * np.uint8(255)).save(buffer, "png")
        document = json.dumps({"boxes": scene.boxes}).encode()
        members[key] = {"png": buffer.getvalue(), "json": document, "mask.npy": npy(scene.mask)}
    whole = members["s01"]
    members["unboxed"] = {name: data for name, data in whole.items() if name != "json"}
    members["unmasked"] = whole | {"mask.npy": npy(np.zeros(9))}
    members["small"] = whole | {"mask.npy": npy(np.zeros((9, 9), np.uint8))}
    with TarWriter(str(path), encoder=False) as writer:
        for key, fields in members.items():
            writer.write({"__key__": key, **fields})
    return path


def make_loader(shard: Path, mix: MixConfig, workers: int = 1) -> TrainLoader:
    data = DataConfig((str(shard),), workers=workers, streams=2, mix=mix)
    return TrainLoader(DataPlan(data, VIEWS, PACKING, 5, TARGETS, teachers=((4, 40),)))


def take(loader: TrainLoader, number: int = BATCHES) -> list[LoadedBatch]:
    batches = iter(loader)
    return [next(batches) for _ in range(number)]


def batches_of(loaded: LoadedBatch) -> list[PackedBatch]:
    """The student's batch and the teacher's."""
    return [loaded.batch, *loaded.teachers]


def rows_of(batch: PackedBatch, name: str, index: int) -> np.ndarray:
    """The rows of one image."""
    ragged = batch.targets[name]
    assert isinstance(ragged, Ragged)
    return ragged.rows(index).numpy()


def mask_of(batch: PackedBatch, index: int) -> np.ndarray:
    """uint8 [height, width] of one image's view."""
    return rows_of(batch, "mask", index).reshape((batch.grids[index] * batch.cells[index]).tolist())


def pixels_of(batch: PackedBatch, index: int) -> np.ndarray:
    """uint8 [height, width] of one image's first channel; nothing is dropped."""
    p, shape = int(batch.patch_sizes[index]), (batch.grids[index] * batch.cells[index]).tolist()
    slots = batch.slots[p, p]
    mine = batch.image_index[slots] == index
    pixels = np.empty(shape, np.uint8)
    patches = batch.patches[p, p][mine].numpy().reshape(-1, p, p, 3)
    for patch, (row, col) in zip(patches, batch.coords[slots][mine].tolist(), strict=True):
        pixels[row * p : (row + 1) * p, col * p : (col + 1) * p] = patch[:, :, 0]
    return pixels


# ---- where boxes and masks must be ----


def box_in_view(box: Sequence[float], view: View) -> list[float] | None:
    """A native box in pixels of the view; None if nothing of it is seen."""

    def place(value: float, axis: int, length: int) -> float:
        return min(max((value - view.box[axis]) / view.box[2 + axis] * length, 0), length)

    top, bottom = (place(value, 0, view.height) for value in box[::2])
    left, right = (place(value, 1, view.width) for value in box[1::2])
    if top == bottom or left == right:
        return None
    return [top, view.width - right, bottom, view.width - left] if view.flip else [top, left, bottom, right]


def mask_in_view(mask: np.ndarray, view: View) -> np.ndarray:
    """The native pixel under the centre of each pixel of the view."""
    y, x = np.arange(view.height) + 0.5, np.arange(view.width) + 0.5
    x = view.width - x if view.flip else x
    rows = np.floor(view.box[0] + y * view.box[2] / view.height).astype(int)
    cols = np.floor(view.box[1] + x * view.box[3] / view.width).astype(int)
    return mask[rows][:, cols]


def check(batch: PackedBatch, scenes: dict[str, Scene]) -> tuple[int, int]:
    """Compare every image of a batch with what its note says; returns the numbers of boxes seen and lost."""
    notes: list[dict[str, Any]] = [json.loads(str(text)) for text in batch.targets["note"]]
    views = [View(**note["view"]) for note in notes]
    found = [scenes[key] for key in batch.keys]
    seen = lost = 0
    for i, (note, view) in enumerate(zip(notes, views, strict=True)):
        assert [view.height, view.width] == (batch.grids[i] * batch.cells[i]).tolist()
        parts = [(i, 1.0)]
        mask = mask_in_view(found[i].mask, view)
        if note["mix"] is not None:
            partner = note["mix"]["partner"]
            parts = [(i, note["share"]), (partner, 1 - note["share"])]
            top, left, bottom, right = pixel_box(Mix(**note["mix"]), view.height, view.width)
            other = mask_in_view(found[partner].mask, views[partner])
            rows = np.floor((np.arange(view.height) + 0.5) * len(other) / view.height).astype(int)
            cols = np.floor((np.arange(view.width) + 0.5) * other.shape[1] / view.width).astype(int)
            mask[top:bottom, left:right] = other[rows][:, cols][top:bottom, left:right]
        np.testing.assert_array_equal(mask_of(batch, i), mask)
        boxes = []
        for place, share in parts:
            height, width = view.height / views[place].height, view.width / views[place].width
            shown = [box_in_view(box, views[place]) for box in found[place].boxes if share]
            lost += shown.count(None)
            boxes += [[*np.multiply(box, [height, width] * 2), share] for box in shown if box is not None]
        seen += len(boxes)
        expected = np.array(boxes, np.float32).reshape(-1, 5)
        np.testing.assert_allclose(rows_of(batch, "boxes", i), expected, rtol=1e-6, atol=1e-4)
    return seen, lost


def assert_same(one: PackedBatch, two: PackedBatch) -> None:
    assert one.keys == two.keys
    assert one.targets["note"] == two.targets["note"]
    for name in ("boxes", "mask"):
        ragged, same = one.targets[name], two.targets[name]
        assert isinstance(ragged, Ragged)
        assert isinstance(same, Ragged)
        assert ragged.values.dtype == same.values.dtype
        assert torch.equal(ragged.values, same.values)
        assert torch.equal(ragged.offsets, same.offsets)


def fill_boxes(size: Sequence[int], boxes: np.ndarray, margin: float) -> np.ndarray:
    """bool [height, width]: whose centre lies in a box that is larger by `margin`."""
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
    filled = np.zeros(size, bool)
    for top, left, bottom, right, _ in boxes.tolist():
        rows, cols = (y > top - margin) & (y < bottom + margin), (x > left - margin) & (x < right + margin)
        filled |= rows & cols
    return filled


# ---- the tests ----


@pytest.mark.parametrize("mix", MIXES)
def test_boxes_and_masks_are_where_the_views_put_them(mix, shard, scenes):
    seen, flips, crops, shares, skipped = np.zeros(2, int), 0, 0, [], []
    for loaded in take(make_loader(shard, MIXES[mix]), 8):
        skipped += [(line["key"], line["reason"]) for line in loaded.skipped]
        for batch in batches_of(loaded):
            boxes, mask = batch.targets["boxes"], batch.targets["mask"]
            assert isinstance(boxes, Ragged)
            assert isinstance(mask, Ragged)
            assert (boxes.values.dtype, boxes.values.shape[1:]) == (torch.float32, (5,))
            assert (mask.values.dtype, mask.offsets.dtype) == (torch.uint8, torch.int64)
            assert len(boxes.offsets) == len(mask.offsets) == batch.num_images + 1
            seen += check(batch, scenes)
            for key, text in zip(batch.keys, batch.targets["note"], strict=True):
                note = json.loads(str(text))
                flips += note["view"]["flip"]
                crops += note["view"]["box"][2:] != list(scenes[key].mask.shape)
                shares.append(note["share"])
    # The cases that matter were there.
    assert min(*seen, flips, crops) > 10
    assert (len(set(shares)) > 10) == (mix != "plain")
    assert set(skipped) == {
        ("unboxed", "it has no .json"),
        ("unmasked", "its .mask.npy is no mask"),
        ("small", "its mask has 9x9 pixels, not those of the image"),
    }


def test_masks_lie_on_the_pixels_and_boxes_around_them(shard):
    white = black = 0
    for loaded in take(make_loader(shard, MIXES["plain"])):
        for batch in batches_of(loaded):
            for i in range(batch.num_images):
                mask, pixels = mask_of(batch, i) > 0, pixels_of(batch, i)
                # Away from the boxes' edges, which resizing blurs.
                around = sliding_window_view(np.pad(mask, 2, "edge"), (5, 5)).reshape(*mask.shape, 25)
                inside, outside = around.all(2), ~around.any(2)
                assert (pixels[inside] > 127).all()
                assert (pixels[outside] < 128).all()
                white, black = white + inside.sum(), black + outside.sum()
                # What is a hair's breadth from an edge may fall on either side of it.
                covered, touched = (fill_boxes(mask.shape, rows_of(batch, "boxes", i), by) for by in HAIR)
                assert not (covered & ~mask).any()
                assert not (mask & ~touched).any()
    assert min(white, black) > 1000


@pytest.mark.parametrize("mix", MIXES)
def test_other_devices_processes_and_resumed_runs_keep_them(mix, shard):
    whole = take(make_loader(shard, MIXES[mix], workers=0))
    first = make_loader(shard, MIXES[mix])
    begun = take(first, 2)
    again = make_loader(shard, MIXES[mix])
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one, two in zip(whole, begun + take(again, BATCHES - 2), strict=True):
        for batch, same in zip(batches_of(one), batches_of(two), strict=True):
            assert_same(batch, same)
            assert_same(batch, same.to("cpu"))
        for batch, same in zip(batches_of(one), batches_of(two.to(torch.device("cpu"))), strict=True):
            assert_same(batch, same)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_them_too(workers, shard, scenes):
    images = EvalSet(str(shard), TARGETS)
    assert {line["key"] for line in images.skipped} == {"unboxed", "unmasked"}
    keys = []
    for piece in images.pieces([Setting(4, 32)], 128, [range(len(images.headers))], workers):
        seen, lost = check(piece.batch, scenes)
        assert lost == 0
        assert seen == sum(len(scenes[key].boxes) for key in piece.batch.keys)
        keys += piece.batch.keys
    assert sorted(keys) == sorted(scenes)


def test_a_batch_without_images_has_none_of_them():
    boxes, mask = TARGETS["boxes"].collate([]), TARGETS["mask"].collate([])
    assert isinstance(boxes, Ragged)
    assert isinstance(mask, Ragged)
    assert (boxes.values.shape, boxes.offsets.tolist()) == ((0, 5), [0])
    assert (mask.values.dtype, len(mask.values), mask.offsets.tolist()) == (torch.uint8, 0, [0])
