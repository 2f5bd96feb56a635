"""From images in any form to the patches of one view.

Images are decoded whole and turned upright according to EXIF, so that what the model sees depends on the
image and the setting alone, and is the same as in `packvit eval`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from enum import Enum, auto
from typing import TypeVar

from PIL import Image

from packvit.data import BadSample, BadShard, cut_image, show
from packvit.evaluate.setting import Setting
from packvit.packing import PackedImage, to_rgb
from packvit.packing import Source as InMemory

# A callable gives the encoded file when it is asked, as often as it is asked.
Source = InMemory | Callable[[], bytes]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Break(Enum):
    """Stands between two images: no batch has images from both sides of it.

    Sums are rounded differently in batches of other sizes, so without it the last bits of an answer depend
    on all images before.
    """

    BREAK = auto()


def read_view(source: Source | Break, setting: Setting) -> PackedImage | str | Break:
    """The patches of an image at a setting, or a sentence if the image cannot be used."""
    if isinstance(source, Break):
        return source
    try:
        image = read_pixels(source)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    except (BadSample, BadShard) as error:
        return error.reason
    except ValueError as error:
        return str(error)
    native_size = image.height, image.width
    view = setting.view(native_size)
    return cut_image(show(image, view, native_size), view, native_size)


def read_pixels(source: Source) -> Image.Image:
    """All pixels of an image, RGB and upright; see `to_rgb`.

    Raises:
        OSError, ValueError: it cannot be read or decoded.
    """
    return to_rgb(source() if callable(source) else source)


def in_order(
    pool: Executor | None, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`function` of each item, in order; the pool computes at most `ahead` items in advance.

    Args:
        pool: None computes each item when it is needed.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
