"""Charts as inline SVG: one pair of axes, points, lines and whiskers.

Colours come from the page's style sheet, by class: `s0`, `s1`, ... for series, so that a chart follows the
reader's light or dark theme. A chart is 400 units wide, which a phone shows at about its size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element

from packvit.common.markup import el

WIDTH, HEIGHT = 400, 290
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 40  # margins
COLOURS = 6  # series of different colours that the style sheet has
# Outlines around (0, 0), so that series differ without colour, too.
SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.5,-3.5h7v7h-7z",
    "M0,-4.6l4.4,7.6h-8.8z",
    "M0,-5l5,5l-5,5l-5,-5z",
    "M0,4.6l4.4,-7.6h-8.8z",
    "M-4.5,-1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
    "M-5,0l2.5,-4.3h5l2.5,4.3l-2.5,4.3h-5z",
)
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # between the ticks of an axis, times a power of ten
ROOM = 8  # ticks of a logarithmic axis, at most
LABEL = 6.6  # width of a sign of a label, on average
LEADER = 62  # from a point to a label below it


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        title: with its unit.
        low, high: its ends; `low` is positive on a logarithmic axis.
        log: whether it is logarithmic.
        percent: whether values are shares, shown as percentages.
    """

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    @staticmethod
    def around(title: str, values: Iterable[float], *, log: bool = False, percent: bool = False) -> "Axis":
        """An axis with all values, and a margin; shares stay within 0 and 1."""
        found = list(values)
        low, high = min(found), max(found)
        if log:
            margin = max(1.15, (high / low) ** 0.06)
            return Axis(title, low / margin, high * margin, True, percent)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
        low, high = low - margin, high + margin
        return Axis(title, max(0.0, low), min(1.0, high) if percent else high, False, percent)

    def place(self, value: float) -> float:
        """Where a value is between the ends: 0..1, or beyond them."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values with their labels."""
        found = self._log_ticks() if self.log else []
        if len(found) < 2:
            step = _step((self.high - self.low) / 4)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            found = [i * step for i in range(first, last + 1) if not self.log or i > 0]
        return [(value, f"{100 * value:.4g}" if self.percent else tick(value)) for value in found]

    def _log_ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**power for power in powers for s in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= ROOM:
                return found
        return found[:: -(-len(found) // ROOM)]


class Chart:
    """One pair of axes; what is added later lies above.

    Args:
        title: what the chart shows, in a sentence for those who cannot see it.
        x, y: the axes.
    """

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self.title, self.x, self.y = title, x, y
        self._parts: list[Element] = []
        self._labels: list[Element] = []

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points; `kind` is the style sheet's class."""
        way = "".join(f"{'L' if i else 'M'}{self._at(*point)}" for i, point in enumerate(points))
        self._parts.append(el("path", d=way, class_=kind))

    def stairs(self, points: Sequence[tuple[float, float]], end: float, kind: str) -> None:
        """What the points reach at each cost: level to the next point, then up; level to `end` at last."""
        corners = [points[0]]
        for before, after in pairwise(points):
            corners += [(after[0], before[1]), after]
        self.line([*corners, (end, points[-1][1])], kind)

    def whisker(self, low: tuple[float, float], high: tuple[float, float], series: int) -> None:
        """An interval, upright or level."""
        kind = f"whisker s{series % COLOURS}"
        self._parts.append(el("path", d=f"M{self._at(*low)}L{self._at(*high)}", class_=kind))

    def bar(self, left: float, right: float, height: float) -> None:
        """A pale bar from the bottom; `height` is a share of the chart's."""
        x, tall = self._x(left), height * (HEIGHT - TOP - BOTTOM)
        size = {"width": _f(self._x(right) - x), "height": _f(tall)}
        self._parts.append(el("rect", x=_f(x), y=_f(HEIGHT - BOTTOM - tall), class_="bar", **size))

    def point(self, x: float, y: float, series: int, text: str, kind: str = "") -> None:
        """A mark of a series; `text` is shown when it is pointed at."""
        shape = SHAPES[series % len(SHAPES)]
        classes = f"mark s{series % COLOURS} {kind}".strip()
        place = f"translate({self._at(x, y)})"
        self._parts.append(el("path", el("title", text), d=shape, transform=place, class_=classes))

    def label(self, x: float, y: float, text: str, below: bool = False) -> None:
        """A text at a point, inside the chart: above it, or well below, at the end of a line."""
        half = LABEL * len(text) / 2
        middle = min(max(self._x(x), LEFT + half), WIDTH - RIGHT - half)
        height = self._y(y) + (LEADER if below else -9)
        height = min(max(height, TOP - 4), HEIGHT - BOTTOM - 5)
        if below:
            start = f"M{_f(self._x(x))},{_f(self._y(y) + 6)}"
            self._labels.append(el("path", d=f"{start}V{_f(height - 11)}", class_="leader"))
        self._labels.append(el("text", text, x=_f(middle), y=_f(height), class_="label"))

    def element(self) -> Element:
        """The chart."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = [el("title", self.title)]
        for value, text in self.x.ticks():
            x = _f(self._x(value))
            parts.append(el("path", d=f"M{x},{TOP}V{bottom}", class_="grid"))
            parts.append(el("text", text, x=x, y=bottom + 15, class_="tick middle"))
        for value, text in self.y.ticks():
            y = self._y(value)
            parts.append(el("path", d=f"M{LEFT},{_f(y)}H{right}", class_="grid"))
            parts.append(el("text", text, x=LEFT - 6, y=_f(y + 4), class_="tick end"))
        parts.append(el("text", self.y.title, x=4, y=13, class_="axis"))
        parts.append(el("text", self.x.title, x=right, y=HEIGHT - 6, class_="axis end"))
        return el(
            "svg",
            *parts,
            *self._parts,
            *self._labels,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=self.title,
            class_="chart",
        )

    def _x(self, value: float) -> float:
        return LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)

    def _at(self, x: float, y: float) -> str:
        return f"{_f(self._x(x))},{_f(self._y(y))}"


def swatch(series: int, kind: str = "") -> Element:
    """The mark of a series, for a legend."""
    classes = f"mark s{series % COLOURS} {kind}".strip()
    mark = el("path", d=SHAPES[series % len(SHAPES)], class_=classes)
    return el("svg", mark, viewBox="-7 -7 14 14", class_="swatch", aria_hidden="true")


def tick(value: float) -> str:
    """A number beside an axis: thousands as `10k`, so that neighbours don't meet."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else short(value)


def short(value: float) -> str:
    """A number of at most three digits that matter; from 1,000 on with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _step(least: float) -> float:
    """The smallest round step not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in STEPS if step * power >= least * (1 - 1e-9))


def _f(value: float) -> str:
    return f"{value:.1f}"
