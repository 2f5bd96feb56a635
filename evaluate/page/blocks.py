"""What the sections of a report are made of: headings, figures with legends, tables, numbers as texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from packvit.common.markup import el
from packvit.evaluate.page.charts import Chart, short, swatch

NOTHING = "-"  # where a value is null


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Args:
        strength: 0..1, of the colour.
        text: what it says.
        hint: shown when it is pointed at.
        marked: whether it has a frame.
    """

    strength: float
    text: str
    hint: str
    marked: bool = False


def section(name: str, title: str, *children: Element | str | None) -> Element:
    """A part of the report, with a heading that links can name."""
    return el("section", el("h2", title), *children, id=name)


def note(*children: Element | str) -> Element:
    """A paragraph of explanation."""
    return el("p", *children, class_="note")


def figure(title: str, chart: Chart, caption: str = "") -> Element:
    """A chart under its title."""
    explained = el("p", caption, class_="note") if caption else None
    return el("figure", el("figcaption", el("h3", title), explained), chart.element())


def figures(*children: Element) -> Element:
    """Figures side by side where there is room."""
    return el("div", *children, class_="figures")


def legend(names: Iterable[tuple[int, str, str]]) -> Element:
    """What the marks mean: (series, kind, text) of each."""
    return el("ul", *(el("li", swatch(series, kind), text) for series, kind, text in names), class_="legend")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}\u00a0%"


def number(value: float | None, text: str | None = None, shade: float | None = None) -> Element:
    """A cell of a table with a number, by which the table can be sorted.

    Args:
        text: what is shown; by default the number, short.
        shade: 0..1, length of a bar behind the text.
    """
    if value is None:
        return el("td", NOTHING, class_="n")
    shown = short(value) if text is None else text
    style = None if shade is None else f"--v:{shade:.3f}"
    return el("td", shown, class_="n" if shade is None else "n bar", data_v=repr(value), style=style)


def sortable(title: str, heads: Sequence[str], rows: Iterable[Sequence[Element]]) -> Element:
    """A table that a click on a heading sorts; it scrolls by itself where it is too wide or too long.

    Args:
        title: what the table holds, for those who cannot see it.
        heads: one for each column.
        rows: cells, as `number` makes them or `el("td", text)`.
    """
    head = el("tr", *(el("th", el("button", text, type="button"), scope="col") for text in heads))
    body = el("tbody", *(el("tr", *cells) for cells in rows))
    table = el("table", el("caption", title), el("thead", head), body, class_="sortable")
    return scroll(title, table)


def heat_map(
    title: str,
    corner: str,
    sides: tuple[Sequence[str], Sequence[str]],
    cells: Mapping[tuple[int, int], Cell],
    kind: str = "",
) -> Element:
    """A table whose cells are coloured.

    Args:
        corner: what rows and columns are, such as `patch size \\ resolution`.
        sides: names of the rows and of the columns.
        cells: by row and column; others stay empty.
        kind: further class of the style sheet.
    """
    names, heads = sides
    rows = [el("tr", el("th", corner, scope="col"), *(el("th", head, scope="col") for head in heads))]
    for i, name in enumerate(names):
        row = el("tr", el("th", name, scope="row"))
        for j in range(len(heads)):
            cell = cells.get((i, j))
            if cell is None:
                row.append(el("td"))
                continue
            marked = "marked" if cell.marked else None
            style = f"--v:{cell.strength:.2f}"
            row.append(el("td", cell.text, style=style, title=cell.hint, class_=marked))
        rows.append(row)
    table = el("table", el("caption", title), el("tbody", *rows), class_=f"heat {kind}".strip())
    return scroll(title, table)


def scroll(title: str, child: Element) -> Element:
    """A box that scrolls when its content is larger, with the arrow keys, too."""
    return el("div", child, class_="scroll", tabindex="0", role="region", aria_label=title)


def fold(summary: str, *children: Element) -> Element:
    """Something that is shown on demand."""
    return el("details", el("summary", summary), *children)


def amount(number: int, what: str, several: str = "") -> str:
    """Such as `1 image` and `2,000 images`; `several` is the plural where it does not end in a mere s."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"
