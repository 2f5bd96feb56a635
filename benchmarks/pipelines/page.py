"""The tables of docs/data.md that benchmarks/loaders.py makes."""

from typing import Any

from gpu.results import ROOT, replace_section, table
from pipelines.pictures import DECODERS
from pipelines.readers import CONTESTANTS

PAGE = ROOT / "docs/data.md"
MODES = {"disk": "disk", "worker": "disk, one worker", "s3": "S3, one worker"}


def write_page(results: dict[str, Any]) -> None:
    """Put the best rounds into the page."""
    rates, versions = results["rates"], results["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = ["Packed images per second of CPU time, all processes counted:", ""]
    lines += compare(rates, "cpu")
    lines += ["", "Packed images per second of the clock, on two cores:", ""]
    lines += compare(rates, "wall")
    lines += ["", "Decoding and resizing alone, images per second of CPU time:", ""]
    sizes = list(rates)
    rows = [
        [decoder.words, *(cell(rates[size], "decoders", name, "cpu") for size in sizes)]
        for name, decoder in DECODERS.items()
    ]
    lines += table(["decoder", *sizes], rows)
    lines += ["", f"{results['hardware']}, Python {results['python']}; {libraries}."]
    replace_section("loaders", lines, PAGE)


def compare(rates: dict[str, Any], unit: str) -> list[str]:
    """A row for each contestant, and packvit as a multiple of the fastest peer."""
    columns = [(size, mode) for size in rates for mode in MODES]
    header = ["", "decoder", *(f"{size}, {MODES[mode]}" for size, mode in columns)]
    rows = []
    for name, contestant in CONTESTANTS.items():
        cells = [cell(rates[size], mode, name, unit) for size, mode in columns]
        rows.append([contestant.library, DECODERS[contestant.decoder].words, *cells])
    peers = [name for name, contestant in CONTESTANTS.items() if contestant.library != "packvit"]
    usual = [name for name in peers if CONTESTANTS[name].decoder != "best"]
    for words, own, others in (
        ("packvit beside the best usual peer", "packvit", usual),
        ("packvit beside the best peer", "packvit", peers),
    ):
        ahead = [over(rates[size].get(mode, {}), own, others, unit) for size, mode in columns]
        rows.append([words, "", *ahead])
    return table(header, rows)


def cell(rates: dict[str, Any], mode: str, name: str, unit: str) -> str:
    """The best round; a dash where a contestant cannot do it, or could not be measured."""
    found = rates.get(mode, {}).get(name, {})
    return f"{max(found[unit]):,.0f}" if unit in found else "-"


def over(found: dict[str, Any], own: str, names: list[str], unit: str) -> str:
    """A contestant's best round as a multiple of the best round of these."""
    best = max((max(found[name][unit]) for name in names if unit in found.get(name, {})), default=0)
    return f"{max(found[own][unit]) / best:.2f}x" if best and unit in found.get(own, {}) else "-"
