"""The images that went wrong, as the model saw them, and those that could not be used."""

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from packvit.common.markup import data_uri, el
from packvit.data import ShardSet, redact
from packvit.data.samples.decode import read_native_size, show
from packvit.evaluate.page.blocks import amount, note, number, percent, section, sortable
from packvit.evaluate.page.folder import Predictions, Results, Row, full_name, shorten
from packvit.evaluate.results import setting_of
from packvit.packing import View, decode_upright

# From a shard's path, as predictions.npz has it, and a key to the whole upright image: uint8 [H, W, 3].
Picture = Callable[[str, str], np.ndarray]

MOST_PICTURES = 24
LONGEST_SIDE = 256  # pixels of a picture in the page
MOST_CELLS = 40  # along a side; the lines of more would hide the picture
MOST_BYTES = 40_000  # of a picture
QUALITIES = (85, 60, 30, 10)  # of JPEG, until it is small enough
MOST_REASONS = 20
LONGEST_KEY, LONGEST_REASON = 120, 300  # signs
EXAMPLES = 3  # of images for each reason


class ShardPictures:
    """Reads images again from the shards that were evaluated; a `Picture`.

    Args:
        shards: that they lie in.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        names = [os.path.basename(path) for path in shards.paths]
        times = Counter(names)
        # A shard that lies elsewhere now is found by its name, where no other has the same.
        self._by_name = {redact(name): n for n, name in enumerate(names) if times[name] == 1}
        self._by_path = {redact(path): number for number, path in enumerate(shards.paths)}
        self._members: dict[int, dict[str, int]] = {}

    def __call__(self, shard: str, key: str) -> np.ndarray:
        """The upright image: uint8 [H, W, 3].

        Raises:
            ValueError: there is no such shard or sample, or it cannot be read or decoded.
        """
        path = redact(shard)
        number = self._by_path.get(path, self._by_name.get(os.path.basename(path)))
        if number is None:
            raise ValueError(f"{path} is not one of the shards")
        found = self._shards.open(number)
        if number not in self._members:
            self._members[number] = {found.key(member): member for member in range(len(found))}
        member = self._members[number].get(key)
        if member is None:
            raise ValueError(f"{path} has no sample {key!r}")
        return decode_upright(found.image(member), read_native_size(found, member))


def worst_section(
    results: Results, row: Row, predictions: Predictions | None, picture: Picture | None
) -> Element | None:
    """The wrong predictions of which the model was surest; None without labels or without errors."""
    if predictions is None:
        return None
    wrong = np.flatnonzero(predictions.known & (predictions.prediction != predictions.labels))
    if not len(wrong):
        return None
    order = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:MOST_PICTURES]
    cards = [_card(results, row, predictions, place, picture) for place in order.tolist()]
    text = f"The {amount(len(cards), 'error')} of {full_name(row)} of which the model is surest."
    if picture is not None:
        text += " Pictures are as the model sees them; lines are the borders of patches, unless too many."
    return section(
        "worst",
        "The worst images",
        note(text),
        toggle_patches() if picture else None,
        el("ul", *cards, class_="gallery"),
    )


def _card(
    results: Results, row: Row, predictions: Predictions, place: int, picture: Picture | None
) -> Element:
    key, shard = str(predictions.keys[place]), str(predictions.shards[place])
    name = shorten(key, LONGEST_KEY)
    label, taken = (
        results.class_name(int(values[place])) for values in (predictions.labels, predictions.prediction)
    )
    sure = float(predictions.confidence[place])
    words = el("p", el("b", label), " taken for ", el("b", taken), f", {percent(sure)} sure")
    shown = draw(picture, shard, key, row, f"{name}: {label} taken for {taken}")
    return el("li", shown, words, el("p", name, class_="key", title=shorten(redact(shard), LONGEST_REASON)))


def draw(picture: Picture | None, shard: str, key: str, row: Row, words: str) -> Element | None:
    """An image again, see `draw_patches`; why there is none, or None if pictures are left out."""
    if picture is None:
        return None
    try:
        return draw_patches(picture(shard, key), row, words)
    except (ValueError, OSError) as error:
        return note(shorten(f"No picture: {redact(str(error))}", LONGEST_REASON))


def toggle_patches() -> Element:
    """What hides the borders of patches."""
    label = el("label", el("input", type="checkbox", checked="", id="grid-lines"), " Draw patches")
    return el("p", label, class_="note")


def draw_patches(image: np.ndarray, row: Row, words: str) -> Element:
    """An image as the model sees it at a row's setting, with the borders of its patches, as SVG.

    Args:
        image: uint8 [H, W, 3], whole and upright.
        words: for those who cannot see it.
    """
    native = image.shape[0], image.shape[1]
    view = setting_of(row).view(native)
    pixels = Image.fromarray(show(Image.fromarray(image), view, native))
    small = max(pixels.size) <= LONGEST_SIDE // 2
    pixels.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    width, height = 100.0, 100.0 * view.height / view.width
    kind = "pixels" if small else None
    return el(
        "svg",
        el("title", words),
        el("image", href=encode(pixels), width=f"{width:.2f}", height=f"{height:.2f}", class_=kind),
        _borders(view, width, height),
        viewBox=f"0 0 {width:.2f} {height:.2f}",
        role="img",
        aria_label=words,
    )


def _borders(view: View, width: float, height: float) -> Element | None:
    rows, cols = view.grid
    if max(rows, cols) > MOST_CELLS:
        return None
    # Where patches overlap, a line is where the next one begins.
    step, scale = view.stride or view.patch_size, width / view.width
    lines = [f"M{scale * step * col:.2f},0V{height:.2f}" for col in range(1, cols)]
    lines += [f"M0,{scale * step * row:.2f}H{width:.2f}" for row in range(1, rows)]
    return el("path", d="".join(lines), class_="patches") if lines else None


def encode(image: Image.Image) -> str:
    """A picture as a data URI of at most about `MOST_BYTES`: PNG where that is small, else JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    if buffer.tell() <= MOST_BYTES // 4:
        return data_uri(buffer.getvalue(), "image/png")
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=quality)
        if buffer.tell() <= MOST_BYTES:
            break
    return data_uri(buffer.getvalue(), "image/jpeg")


def skipped_section(skipped: Sequence[dict]) -> Element | None:
    """How many images could not be used, by reason; None if all could."""
    if not skipped:
        return None
    numbers, names = Counter[str](), defaultdict[str, list[str]](list)
    for line in skipped:
        reason = str(line.get("reason"))
        numbers[reason] += 1
        if len(names[reason]) < EXAMPLES:
            names[reason].append(str(line.get("shard") if line.get("key") is None else line["key"]))
    rows = []
    for reason, count in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:MOST_REASONS]:
        examples = ", ".join(shorten(redact(name), LONGEST_KEY) for name in names[reason])
        words = shorten(redact(reason), LONGEST_REASON)
        rows.append((el("td", words), number(count), el("td", examples, class_="key")))
    text = f"{amount(len(skipped), 'image')} could not be used; skipped.jsonl names each."
    if len(numbers) > MOST_REASONS:
        text += f" The table has the {MOST_REASONS} most frequent of {len(numbers):,} reasons."
    heads = "reason", "images", "such as"
    return section("skipped", "Skipped images", note(text), sortable("Skipped images", heads, rows))
