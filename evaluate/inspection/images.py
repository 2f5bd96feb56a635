"""The images that are inspected, each of them decoded once and shown at every setting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from packvit.data import BadSample, BadShard, ClassTarget, EvalSet, FetchConfig
from packvit.data.samples.cut import cut_image
from packvit.data.samples.decode import show
from packvit.data.samples.sample import Header, describe_skipped
from packvit.evaluate.inspection.cka import LEAST_ROWS
from packvit.evaluate.setting import Setting
from packvit.packing import PackedImage, decode_upright, derive_seed


@dataclass(frozen=True)
class Shown:
    """One image at every setting.

    Args:
        header: names the image.
        label: its class.
        views: the whole image, in the order of the settings.
    """

    header: Header
    label: int
    views: list[PackedImage]


class InspectedImages:
    """Some images of a labelled set, always the same ones for the same set.

    Args:
        shards: files, patterns or folders.
        count: maximum number of images, drawn from the whole set by a hash of their names.
        target: their labels.
        fetch: how remote and gzipped shards are fetched.

    Attributes:
        set: all images.
        headers: headers of all images with a label, in the order in which they are drawn.
        skipped: {"shard", "key", "reason"} of the images that could not be used.

    Raises:
        ValueError: no shard matches, or too few images can be used and have labels.
    """

    def __init__(self, shards: Sequence[str], count: int, target: ClassTarget, fetch: FetchConfig) -> None:
        self.set = EvalSet(shards, {"label": target}, fetch)
        self.shards, self.skipped = self.set.shards, self.set.skipped
        self.target, self.count = target, count
        labelled = self.set.headers
        if target.classes is None:  # then it takes images without a label, too
            labelled = [header for header in labelled if self._label(header) is not None]
        if len(labelled) < LEAST_ROWS:
            raise ValueError(
                f"{len(labelled)} images can be used and have a label ({target.field}): CKA needs at least "
                f"{LEAST_ROWS}"
            )
        self.headers = sorted(labelled, key=lambda header: derive_seed("inspect", header.key))

    def minibatches(self, settings: Sequence[Setting], size: int) -> Iterator[list[Shown]]:
        """The images in groups of nearly equal size, which is at least `size` if there are enough images.

        Images that cannot be decoded are added to `skipped`, and others take their place.
        """
        count = min(self.count, len(self.headers))
        groups = max(1, count // size)
        images = self._show(settings)
        for group in range(groups):
            shown = list(islice(images, count // groups + (group < count % groups)))
            if shown:
                yield shown

    def pixels(self, header: Header) -> np.ndarray:
        """The whole image, upright: uint8 [H, W, 3].

        Raises:
            BadSample, BadShard: it cannot be read or decoded.
        """
        shard, member = self.shards.open(header.reference.shard), header.reference.member
        data = shard.image(member)
        try:
            return decode_upright(data, header.native_size)
        except ValueError as error:
            raise BadSample(shard.path, header.key, str(error)) from error

    def _show(self, settings: Sequence[Setting]) -> Iterator[Shown]:
        for header in self.headers:
            try:
                label = self._label(header)
                pixels = self.pixels(header)
            except (BadSample, BadShard) as error:
                self.skipped.append(describe_skipped(error))
                continue
            assert isinstance(label, int)
            yield Shown(header, label, [show_at(pixels, setting, header.key) for setting in settings])

    def _label(self, header: Header) -> int | np.ndarray | None:
        return self.target.read(self.shards.open(header.reference.shard), header.reference.member)


def show_at(pixels: np.ndarray, setting: Setting, key: str) -> PackedImage:
    """A whole image, uint8 [H, W, 3], as a setting shows it."""
    native = pixels.shape[0], pixels.shape[1]
    view = setting.view(native)
    return cut_image(show(Image.fromarray(pixels), view, native), view, native, key)
