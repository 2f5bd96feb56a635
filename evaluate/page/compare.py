"""Numbers side by side: models, sets, and every setting with all its numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from packvit.common.markup import el
from packvit.evaluate.measures import classification, retrieval
from packvit.evaluate.page.blocks import (
    NOTHING,
    Cell,
    amount,
    fold,
    heat_map,
    note,
    number,
    percent,
    section,
    sortable,
)
from packvit.evaluate.page.budgets import interval, strength
from packvit.evaluate.page.charts import short
from packvit.evaluate.page.corrupted import corrupted_sets
from packvit.evaluate.page.folder import (
    MAIN,
    Results,
    Row,
    best_of,
    frugal_of,
    full_name,
    measure_of,
    model_name,
)
from packvit.evaluate.report import title, words

MOST_ROWS = 500  # of a table
SHARES = {
    *(name for name, kind in classification.VALUES.items() if kind == "share"),
    classification.AVERAGE_PRECISION,
    *retrieval.VALUES,
}
# Fields of a row as headings; what is not here is headed by its own name.
HEADS = {
    "model": "model",
    "set": "set",
    "setting": "setting",
    "resolution": "pixels",
    "patch_size": "patch",
    "stride": "stride",
    "tokens": "tokens at most",
    "protocol": "protocol",
    "images": "images",
    "tokens_per_image": "tokens",
    "gflops_per_image": "GFLOPs",
    "accuracy": "accuracy",
    "accuracy_low": "from",
    "accuracy_high": "to",
    "top5": "top 5",
    "average_precision": "average precision",
    "texts": "captions",
    "image_to_text_r1": "image to text @1",
    "image_to_text_r1_low": "from",
    "image_to_text_r1_high": "to",
    "image_to_text_r5": "@5",
    "image_to_text_r10": "@10",
    "text_to_image_r1": "text to image @1",
    "text_to_image_r5": "@5",
    "text_to_image_r10": "@10",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "temperature": "temperature",
    "nll_calibrated": "NLL calibrated",
    "ece_calibrated": "ECE calibrated",
    "images_per_s": "images/s",
    "latency_ms_p50": "p50, ms",
    "latency_ms_p99": "p99, ms",
    "latency_tokens": "tokens timed",
    "memory_mb": "memory, MB",
}


def models_section(results: Results) -> Element | None:
    """The models by their best settings, and by every setting; None if there is one."""
    if len(results.names) < 2:
        return None
    measure = results.measure
    rows = []
    for name in results.names:
        own = [row for row in results.main if model_name(row) == name]
        model = results.model(name)
        cells = [el("td", name), el("td", str(model.get("hash") or NOTHING)[:12]), el("td", _size(model))]
        for row in (best_of(own, measure), frugal_of(own, measure)):
            chosen = row or {"setting": NOTHING}
            value = chosen.get(measure)
            cells += [el("td", str(chosen["setting"])), number(value, percent(value))]
            cells.append(number(chosen.get("gflops_per_image")))
        rows.append(cells)
    heads = ["model", "hash", "size", "best setting", words(measure), "GFLOPs"]
    heads += ["cheapest within 1 point", words(measure), "GFLOPs"]
    return section(
        "models", "Models side by side", sortable("Models", heads, rows), _models_by_setting(results)
    )


def _models_by_setting(results: Results) -> Element | None:
    """The measure at each setting that several models have; None if no setting has."""
    numbers = Counter(str(row["setting"]) for row in results.main)
    settings = [name for name, models in numbers.items() if models > 1][:MOST_ROWS]
    cells = {}
    for row in results.main:
        value = row.get(results.measure)
        if value is not None and row["setting"] in settings:
            place = settings.index(row["setting"]), results.names.index(model_name(row))
            reach = interval(row, results.measure)
            hint = full_name(row) + (f": {percent(reach[0])} to {percent(reach[1])}" if reach else "")
            cells[place] = Cell(strength(results, value), f"{100 * value:.1f}", hint, row is results.best)
    if not cells:
        return None
    name = f"{title(results.measure)} in % by setting and model"
    return heat_map(name, "setting", (settings, results.names), cells)


def sets_section(results: Results) -> Element | None:
    """What the model reaches on the other sets but for corrupted ones; None if there are none."""
    others: dict[tuple[str, str], dict[str, Row]] = {}
    corrupted = corrupted_sets(results)
    for row in results.rows:
        if row["set"] != MAIN and row["set"] not in corrupted:
            others.setdefault((model_name(row), str(row["set"])), {})[str(row["setting"])] = row
    if not others:
        return None
    chosen = [str(row["setting"]) for row in (results.best, results.frugal) if row is not None]
    names = list(dict.fromkeys(chosen))
    several = len(results.names) > 1
    rows = [_set_cells(place, own, names, several) for place, own in list(others.items())[:MOST_ROWS]]
    heads = [*(["model"] if several else []), "set", "measure", "images"]
    heads += [*(f"at {name}" for name in names), "its best setting", "there"]
    return section("sets", "Other sets", sortable("Other sets", heads, rows), _left_out(len(others)))


def _set_cells(
    place: tuple[str, str], own: Mapping[str, Row], names: Sequence[str], several: bool
) -> list[Element]:
    """A line of the other sets: `own` has a set's rows by setting, `names` the settings that are shown."""
    model, name = place
    measure = measure_of(own.values())
    best = best_of(own.values(), measure) or {"setting": NOTHING}
    cells = [el("td", model)] if several else []
    cells += [el("td", name), el("td", words(measure))]
    cells.append(number(max((row.get("images") or 0 for row in own.values()), default=None)))
    values = [own.get(setting, {}).get(measure) for setting in names]
    cells += [number(value, percent(value)) for value in values]
    return [*cells, el("td", str(best["setting"])), number(best.get(measure), percent(best.get(measure)))]


def table_section(results: Results) -> Element:
    """Every number of every row of the main set; other sets' rows unfold."""
    others = [row for row in results.rows if row["set"] != MAIN]
    text = "A click on a heading sorts. results.csv and results.json hold the same in full precision."
    more = fold("Rows of the other sets", _all_numbers("Rows of the other sets", others)) if others else None
    return section(
        "settings",
        "All settings",
        note(text),
        _all_numbers("All settings", results.main),
        _left_out(max(len(results.main), len(others))),
        more,
    )


def _left_out(rows: int) -> Element | None:
    more = rows - MOST_ROWS
    return note(f"{amount(more, 'more row')} of a set in results.csv.") if more > 0 else None


def _all_numbers(name: str, rows: Sequence[Row]) -> Element:
    shown = rows[:MOST_ROWS]
    extra = (key for row in shown for key in row if key not in HEADS)
    fields = [key for key in dict.fromkeys((*HEADS, *extra)) if any(_plain(row.get(key)) for row in shown)]
    if {row["set"] for row in shown} == {MAIN}:
        fields.remove("set")
    return sortable(
        name, [HEADS.get(key, key) for key in fields], [[_cell(row, key) for key in fields] for row in shown]
    )


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _cell(row: Row, key: str) -> Element:
    value = row.get(key)
    if isinstance(value, str):
        return el("td", value)
    if not isinstance(value, int | float):
        return number(None)
    if key in SHARES:
        return number(value, percent(value, 2))
    return number(value, f"{value:,}" if isinstance(value, int) else short(value))


def _size(model: dict) -> str:
    config = model.get("config") or {}
    if "width" not in config or "depth" not in config:
        return NOTHING
    return f"{config['width']} x {config['depth']}"
