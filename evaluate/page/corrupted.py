"""What corruptions cost: by strength, by kind, and at every setting."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from packvit.common.markup import el
from packvit.data import Corruption, every_corruption
from packvit.evaluate.page.blocks import (
    Cell,
    figure,
    figures,
    heat_map,
    legend,
    note,
    number,
    percent,
    section,
    sortable,
)
from packvit.evaluate.page.charts import Axis, Chart
from packvit.evaluate.page.folder import Results, full_name, model_name
from packvit.evaluate.report import title, words

MOST_ROWS = 500  # of the table
MOST_LINES = 6  # of the chart


def corrupted_sets(results: Results) -> dict[str, Corruption]:
    """The names of the sets that corruptions made; none where nothing was corrupted."""
    return {one.name: one for one in every_corruption()} if results.corruptions else {}


def corruption_section(results: Results) -> Element | None:
    """The measure under corruption; None if nothing was corrupted."""
    summaries = results.corruptions
    if not summaries:
        return None
    kinds = list(dict.fromkeys(kind for summary in summaries for kind in summary["kinds"]))
    text = (
        "The images of the main set, corrupted as in ImageNet-C. A mean is over kinds, of each kind's mean "
        "over its strengths."
    )
    shown = _chosen(results, summaries)
    names = legend((place, "", full_name(dict(summary))) for place, summary in enumerate(shown))
    parts = [figures(*filter(None, (_over_strength(results, shown), _by_kind(results, shown[0], kinds))))]
    heads = ["setting", "clean", "mean", "lost", *(kind.replace("_", " ") for kind in kinds)]
    rows = [_cells(summary, kinds) for summary in summaries[:MOST_ROWS]]
    return section(
        "corruptions",
        "Under corruption",
        note(text),
        names,
        *parts,
        sortable(f"{title(results.measure)} under corruption", heads, rows),
    )


def _chosen(results: Results, summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summaries of the settings of the headline, and of those that lose least."""
    wanted = [(model_name(row), row["setting"]) for row in (results.best, results.frugal) if row is not None]
    by_place = {(model_name(summary), summary["setting"]): summary for summary in summaries}
    firm = sorted(summaries, key=lambda summary: -summary["corrupted"])
    found = [by_place[place] for place in wanted if place in by_place] + firm[:1]
    return list({id(summary): summary for summary in found}.values())[:MOST_LINES]


def _over_strength(results: Results, shown: Sequence[dict[str, Any]]) -> Element:
    """Lines over strength; 0 is without corruption."""
    lines = []
    for summary in shown:
        points = [] if summary["clean"] is None else [(0.0, summary["clean"])]
        strengths: Mapping[str, float] = summary["strengths"]
        lines.append(points + sorted((float(strength), value) for strength, value in strengths.items()))
    values = [value for line in lines for _, value in line]
    chart = Chart(
        f"{title(results.measure)} by strength of corruption",
        Axis("strength of corruption, 0 = none", -0.2, 5.2),
        Axis.around(f"{words(results.measure)}, %", values, percent=True),
    )
    for place, (line, summary) in enumerate(zip(lines, shown, strict=True)):
        chart.line(line, f"thin s{place}")
        for strength, value in line:
            chart.point(
                strength, value, place, f"{full_name(summary)}, strength {strength:g}: {percent(value)}"
            )
    return figure("By strength", chart)


def _by_kind(results: Results, summary: dict[str, Any], kinds: Sequence[str]) -> Element | None:
    """Kinds by strengths at one setting, coloured by what is left of the measure."""
    known, name = corrupted_sets(results), full_name(summary)
    own = [row for row in results.rows if row["set"] in known and full_name(row) == name]
    found = {known[row["set"]]: row.get(results.measure) for row in own}
    strengths = sorted({corruption.strength for corruption in found})
    most = max([summary["clean"] or 0.0, *(value or 0.0 for value in found.values())]) or 1.0
    cells = {}
    for corruption, value in found.items():
        if value is not None and corruption.kind in kinds:
            hint = f"{corruption.kind.replace('_', ' ')} {corruption.strength}: {percent(value)}"
            place = kinds.index(corruption.kind), strengths.index(corruption.strength)
            cells[place] = Cell(value / most, f"{100 * value:.1f}", hint)
    if not cells:
        return None
    heading = f"{title(results.measure)} in % at {name}, by kind and strength"
    sides = [kind.replace("_", " ") for kind in kinds], [str(strength) for strength in strengths]
    return el("div", el("h3", heading), heat_map(heading, "", sides, cells))


def _cells(summary: dict[str, Any], kinds: Sequence[str]) -> list[Element]:
    clean, corrupted = summary["clean"], summary["corrupted"]
    lost = None if clean is None else clean - corrupted
    cells = [el("td", full_name(summary))]
    values = [clean, corrupted, lost, *(summary["kinds"].get(kind) for kind in kinds)]
    return cells + [number(value, percent(value)) for value in values]
