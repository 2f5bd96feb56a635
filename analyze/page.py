"""analysis.html: which sequence length to use, and why, on one self-contained page."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from packvit.analyze.analysis import NATIVE, TOLERANCE, Analysis
from packvit.analyze.plots import draw_flops, draw_histogram, draw_images, draw_padding
from packvit.common.markup import data_uri, el, write_document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = (
    (draw_padding, "How many slots stay empty", "Lower is better. The ring marks the recommendation."),
    (draw_flops, "What an image costs", "Forward FLOPs at the recommended S. Hatched: attention."),
    (draw_images, "How many images share a sequence", "Mean; whiskers hold 98 % of the sequences."),
    (draw_histogram, "How many tokens a view has", "Dashed: lengths tried. The last bar: all longer views."),
)
COLUMNS = {
    "seq_len": ("S", "d"),
    "algorithm": ("algorithm", ""),
    "lookahead": ("lookahead", "d"),
    "padding_fraction": ("padding", ".2%"),
    "images_per_sequence": ("images a sequence", ".1f"),
    "images_per_sequence_p1": ("p1", ".0f"),
    "images_per_sequence_p99": ("p99", ".0f"),
    "gflops_packed": ("GFLOP an image", ".3g"),
    "gflops_dense": ("masked dense", ".3g"),
    "gflops_longest": ("padded to longest", ".3g"),
    "gflops_sorted": ("sorted buckets", ".3g"),
    "fill_drop": ("drop by exact fill", ".2%"),
    "microseconds_per_item": ("µs an item", ".1f"),
    "longer_than_seq_len": ("views longer than S", ",d"),
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1120px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1rem; font-weight: 400; margin: .2rem 0; }
section { margin-bottom: 3rem; }
h2 { font-size: 1.9rem; line-height: 1.25; margin: .4rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 0; }
.answer { border-left: 6px solid #0072B2; background: #f2f7fb; padding: 1rem 1.4rem; margin: 1.2rem 0; }
.answer p { margin: .35rem 0; max-width: 52rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1.2rem 1.6rem; }
.plots figure { margin: 0; }
.plots p, .small { color: #555; font-size: .88rem; margin: 0; }
.plots img { width: 100%; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3; }
th { vertical-align: bottom; font-weight: 600; }
td:nth-child(2), th:nth-child(2) { text-align: left; }
tr.choice td { background: #e3f0f9; font-weight: 600; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.2rem; }
.bad { color: #a33c00; }
"""


def describe(result: Analysis) -> tuple[str, str, str]:
    """The recommendation in three sentences: the choice, its effect, the reason."""
    row = result.choice
    packer = f"{row['algorithm']} (lookahead {row['lookahead']})"
    flags = f"--packing.seq-len {row['seq_len']} --packing.algorithm {row['algorithm']}"
    what = f"Use sequences of S = {row['seq_len']} slots, packed with {packer}: {flags} "
    what += f"--packing.lookahead {row['lookahead']}."
    longest, bucketed, dense = (
        f"{row[f'gflops_{way}'] / row['gflops_packed']:.2f} times" for way in ("longest", "sorted", "dense")
    )
    brings = (
        f"{row['padding_fraction']:.2%} of the slots are padding, and {row['images_per_sequence']:.1f} "
        f"images share a sequence. Padding every batch to its longest view would cost {longest} the FLOPs, "
        f"sorted buckets {bucketed}, packing with dense attention over the sequence {dense}."
    )
    if row["fill_drop"]:
        brings += f" Exact fill takes {row['fill_drop']:.2%} of an image's tokens on average."
    return what, brings, f"Why: {result.why}."


def write_page(path: Path, report: dict[str, Any]) -> str | None:
    """Write the page.

    Args:
        path: HTML file; its folder exists.
        report: the content of analysis.json.

    Returns:
        None, or a sentence about missing matplotlib: the page then has no plots.
    """
    message = None
    sections = []
    for sampler in report["samplers"]:
        what, *reasons = sampler["recommendation"]["words"]
        try:
            plots = el("div", *(_plot(*plot, sampler) for plot in PLOTS), class_="plots")
        except ImportError as error:
            message = f"The page has no plots: {error}"
            plots = el("p", message, class_="bad")
        answer = el("div", el("h2", what), *(el("p", reason) for reason in reasons), class_="answer")
        summary = el("summary", f"All {len(sampler['rows'])} results")
        heading = el("h1", el("b", f"Views {sampler['name']}"), f": {_views(sampler)}")
        sections.append(el("section", heading, answer, plots, el("details", summary, _table(sampler))))
    first = (
        f"Packing analysis of {report['source']}: {report['images']:,} images, {report['views']:,} views, "
        f"packvit {report['packvit']}"
    )
    body = el("body", el("p", first, class_="small"), _bad(report), *sections, _notes(report))
    path.write_text(write_document("Packing analysis", STYLE, body), encoding="utf-8")
    return message


def _plot(draw: Any, title: str, caption: str, sampler: dict[str, Any]) -> Element:
    figure: Figure = draw(sampler)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    # As an image of its own, so that names inside one picture do not meet those of another.
    picture = el("img", alt=title, src=data_uri(buffer.getvalue(), "image/svg+xml"))
    return el("figure", el("h3", title), el("p", caption), picture)


def _table(sampler: dict[str, Any]) -> Element:
    choice = sampler["recommendation"]
    lines = [el("tr", *(el("th", title) for title, _ in COLUMNS.values()))]
    for row in sampler["rows"]:
        same = all(row[key] == choice[key] for key in ("seq_len", "algorithm", "lookahead"))
        cells = (el("td", format(row[key], form)) for key, (_, form) in COLUMNS.items())
        lines.append(el("tr", *cells, class_="choice" if same else None))
    return el("div", el("table", *lines), class_="table")


def _views(sampler: dict[str, Any]) -> str:
    views, resolution, drop = sampler["views"], sampler["views"]["resolution"], sampler["views"]["drop"]
    sizes = ", ".join(map(str, views["patch_sizes"]))
    sides = (
        "native size"
        if resolution["low"] >= NATIVE.low
        else f"{resolution['low']} to {resolution['high']} pixels"
    )
    dropped = "nothing dropped" if drop["kind"] == "none" else f"{drop['mean']:.0%} dropped ({drop['kind']})"
    tokens = sampler["tokens"]
    return (
        f"patch size {sizes}, {sides}, {dropped}: {tokens['mean']:.0f} tokens an image "
        f"(1 % have {tokens['p1']:.0f} or fewer, 1 % {tokens['p99']:.0f} or more)"
    )


def _bad(report: dict[str, Any]) -> Element | None:
    bad = report["bad_sizes"]
    lines = [el("li", line) for line in report["notes"] + bad["first"]]
    if not lines:
        return None
    summary = el("summary", f"{bad['count']:,} bad sizes left out")
    return el("details", summary, el("ul", *lines), class_="bad")


def _notes(report: dict[str, Any]) -> Element:
    settings = report["settings"]
    text = (
        f"Cost model: {report['cost_model']}. Packed: every image attends to itself. Packed, dense "
        "attention: every slot attends to its whole sequence, under a mask. Padded to the longest: batches "
        f"of {settings['batch_images']} images in random order, every row as long as the longest. "
        "Sorted buckets: the same after sorting 50 batches by length, as Hugging Face groups by length; "
        "timm's buckets pad about as much. All work on the same views: those longer than S are shrunk. "
        "Waste is padding plus the tokens that exact fill drops; the recommendation is the smallest S within "
        f"{TOLERANCE:.1%} of the least. p1 and p99 are percentiles over sequences. Seed {settings['seed']}, "
        f"{settings['epochs']} views of each image."
    )
    return el("details", el("summary", "How this was computed"), el("p", text, class_="small"))
