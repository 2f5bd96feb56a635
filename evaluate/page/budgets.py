"""What each budget buys: the headline, accuracy over compute and over measured cost, the grid of settings."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from packvit.common.markup import el
from packvit.evaluate.page.blocks import (
    Cell,
    amount,
    figure,
    figures,
    fold,
    heat_map,
    legend,
    note,
    percent,
    section,
)
from packvit.evaluate.page.charts import COLOURS, Axis, Chart, short
from packvit.evaluate.page.folder import CLOSE, Results, Row, cost, front_of, full_name, model_name
from packvit.evaluate.report import describe_patches, patches_of, title, words
from packvit.evaluate.setting import patch_name

MOST_GRIDS = 8  # shown at once; further ones unfold
SPAN = 0.2  # of the colours of the grid
# By field of a row: the title of its axis, and the unit.
COMPUTE = {
    "tokens_per_image": ("tokens per image", "tokens"),
    "gflops_per_image": ("GFLOPs per image", "GFLOPs"),
}
MACHINE = {
    "latency_ms_p50": ("latency of one image, ms", "ms"),
    "images_per_s": ("images per second", "images/s"),
    "memory_mb": ("peak memory, MB", "MB"),
}
FASTEST = "images_per_s"  # the one field of which more is better


def headline(results: Results) -> Element:
    """The best setting, and the cheapest that is nearly as good."""
    best, frugal, measure = results.best, results.frugal, results.measure
    if best is None or frugal is None:
        return el("div", el("p", "No setting has an accuracy.", class_="big"), class_="answer")
    what = f"Best {words(measure)}: "
    first = el("p", what, el("b", full_name(best)), f", {describe_row(best, measure)}.", class_="big")
    if frugal is best:
        second = el("p", f"No cheaper setting comes within {100 * CLOSE:g} point of it.")
    else:
        saved = 1 - cost(frugal) / cost(best) if cost(best) else 0.0
        less = f"; that is {percent(saved, 0)} less compute" if saved > 0 else ""
        what = f"Cheapest within {100 * CLOSE:g} point of it: "
        second = el("p", what, el("b", full_name(frugal)), f", {describe_row(frugal, measure)}{less}.")
    return el("div", first, second, class_="answer")


def describe_row(row: Row, measure: str) -> str:
    """Such as `93.1 % (91.9 to 94.2) with 256 tokens and 0.12 GFLOPs an image`."""
    ends = interval(row, measure)
    reach = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    spent = [f"{short(row[key])} {unit}" for key, (_, unit) in COMPUTE.items() if row.get(key) is not None]
    return f"{percent(row[measure])}{reach}" + (f" with {' and '.join(spent)} an image" if spent else "")


def interval(row: Row, measure: str) -> tuple[float, float] | None:
    """The 95 % interval of a measure, where there is one."""
    low, high = row.get(f"{measure}_low"), row.get(f"{measure}_high")
    return None if low is None or high is None else (low, high)


def compute_section(results: Results) -> Element:
    """The measure over tokens and over GFLOPs."""
    charts = [chart for key in COMPUTE if (chart := _trade(results, key)) is not None]
    text = (
        "A mark is a setting; point at it to see which. The dashed stairs are the Pareto front: what is "
        "reached at most at each cost. Whiskers are 95 % intervals (Wilson)."
    )
    return section(
        "compute", f"{title(results.measure)} over compute", note(text), *_with_legend(results, charts)
    )


def cost_section(results: Results) -> Element | None:
    """The measure over what was measured on this machine; None if nothing was."""
    charts = [chart for key in MACHINE if (chart := _trade(results, key)) is not None]
    if not charts:
        return None
    lengths = sorted({row["latency_tokens"] for row in results.main if row.get("latency_tokens")})
    text = "Level whiskers reach from the median of the latency at batch 1 to its 99th percentile."
    if lengths:
        between = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
        text += f" The image had {between} tokens."
    return section("cost", "Cost on this machine", note(text), *_with_legend(results, charts))


def grid_section(results: Results) -> Element | None:
    """The measure by resolution or tokens and patch size, for each model and protocol."""

    def kind(row: Row) -> tuple[int, str, str]:
        side = "tokens" if row.get("tokens") else "resolution"
        return results.names.index(model_name(row)), _protocol(row), side

    known = [row for row in results.main if row.get(results.measure) is not None]
    maps = []
    for (_, protocol, side), group in groupby(sorted(known, key=kind), kind):
        rows = list(group)
        parts = (model_name(rows[0]), f"patch size by {side}", protocol)
        maps.append(_grid(results, rows, side, ", ".join(filter(None, parts))))
    if not maps:
        return None
    hidden = maps[MOST_GRIDS:]
    more = fold(amount(len(hidden), "more grid"), *hidden) if hidden else None
    text = (
        f"{title(results.measure)} in %. Frames mark the best setting and the cheapest that comes close. "
        f"Colours tell the {100 * SPAN:.0f} points below the best apart."
    )
    shown = el("div", *maps[:MOST_GRIDS], class_="beside")
    return section("grid", "The grid of settings", note(text), shown, more)


def strength(results: Results, value: float) -> float:
    """Of the colour of a value of the main set: 1 for the best, 0 for `SPAN` and more below it."""
    best = results.best[results.measure] if results.best is not None else value
    return min(1.0, max(0.0, 1 - (best - value) / SPAN))


def _protocol(row: Row) -> str:
    """Empty for native, which sorts first."""
    protocol = str(row.get("protocol") or "native")
    return "" if protocol == "native" else protocol


def _grid(results: Results, rows: Sequence[Row], side: str, name: str) -> Element:
    sizes, across = sorted(set(map(patches_of, rows))), sorted({row[side] for row in rows})
    cells = {}
    for row in rows:
        value = row[results.measure]
        hint = f"{full_name(row)}: {describe_row(row, results.measure)}"
        marked = row is results.best or row is results.frugal
        place = sizes.index(patches_of(row)), across.index(row[side])
        cells[place] = Cell(strength(results, value), f"{100 * value:.1f}", hint, marked)
    patches = [patch_name(p, None if stride == p else stride) for p, stride in sizes]
    names = patches, [f"{'r' if side == 'resolution' else 't'}{n}" for n in across]
    return el("div", el("h3", name), heat_map(f"{title(results.measure)} by {name}", "", names, cells))


def _with_legend(results: Results, charts: Sequence[Element]) -> Iterator[Element]:
    """Charts below the names of their marks."""
    rows = [row for row in results.main if row.get(results.measure) is not None]
    names = dict(sorted((_series(results, row), _series_name(results, row)) for row in rows))
    yield legend((number, "", name) for number, name in names.items())
    yield figures(*charts) if charts else note("No setting has both a measure and a cost.")


def _series(results: Results, row: Row) -> int:
    """The number of a row's mark: of its patch size, or of its model where there are several."""
    if len(results.names) > 1:
        return results.names.index(model_name(row))
    return sorted(set(map(patches_of, results.main))).index(patches_of(row))


def _series_name(results: Results, row: Row) -> str:
    return model_name(row) if len(results.names) > 1 else describe_patches(patches_of(row))


def _trade(results: Results, key: str) -> Element | None:
    """The measure over a cost; None if no row has both."""
    measure = results.measure
    rows = [row for row in results.main if row.get(measure) is not None and (row.get(key) or 0) > 0]
    if not rows:
        return None
    name, unit = {**COMPUTE, **MACHINE}[key]
    ends = [end for row in rows for end in interval(row, measure) or ()]
    tails = {id(row): row.get("latency_ms_p99") or row[key] for row in rows if key == "latency_ms_p50"}
    chart = Chart(
        f"{title(measure)} over {name}: {amount(len(rows), 'setting')}",
        Axis.around(name, [*(row[key] for row in rows), *tails.values()], log=True),
        Axis.around(f"{words(measure)}, %", [*(row[measure] for row in rows), *ends], percent=True),
    )
    for line in _lines(results, rows, key):
        points = [(row[key], row[measure]) for row in line]
        chart.line(points, f"thin s{_series(results, line[0]) % COLOURS}")
    front = [(row[key], row[measure]) for row in _front(results, rows, key)]
    chart.stairs(front, chart.x.low if key == FASTEST else chart.x.high, "front")
    for row in rows:
        series = _series(results, row)
        if reach := interval(row, measure):
            chart.whisker((row[key], reach[0]), (row[key], reach[1]), series)
        if id(row) in tails:
            chart.whisker((row[key], row[measure]), (tails[id(row)], row[measure]), series)
    for row in rows:
        text = f"{full_name(row)}: {describe_row(row, measure)}"
        text += "" if key in COMPUTE else f", {short(row[key])} {unit}"
        chart.point(row[key], row[measure], _series(results, row), text)
    for row, below in ((results.best, False), (results.frugal, True)):
        if row in rows and not (below and row is results.best):
            chart.label(row[key], row[measure], full_name(row), below)
    return figure(f"Over {name}", chart)


def _front(results: Results, rows: Sequence[Row], key: str) -> list[Row]:
    """The Pareto front of the measure and one cost."""
    return front_of(rows, results.measure, lambda row: -row[key] if key == FASTEST else row[key])


def _lines(results: Results, rows: Sequence[Row], key: str) -> Iterator[list[Row]]:
    """Rows to join, at least one in a line: of one patch size by resolution, or each model's own front."""
    several = len(results.names) > 1
    for number in sorted({_series(results, row) for row in rows}):
        own = [row for row in rows if _series(results, row) == number]
        if several:
            yield _front(results, own, key)
        else:
            whole = [row for row in own if not row.get("tokens") and not _protocol(row)]
            if whole:
                yield sorted(whole, key=lambda row: row["resolution"])
