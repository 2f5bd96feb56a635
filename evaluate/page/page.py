"""report.html: an evaluation on one self-contained page."""

import os
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from packvit.common.files import write_whole
from packvit.common.markup import el, write_document
from packvit.data import redact
from packvit.evaluate.page.blocks import amount
from packvit.evaluate.page.budgets import compute_section, cost_section, grid_section, headline
from packvit.evaluate.page.compare import models_section, sets_section, table_section
from packvit.evaluate.page.corrupted import corruption_section
from packvit.evaluate.page.folder import Results, read_results
from packvit.evaluate.page.missed import missed_section
from packvit.evaluate.page.pictures import Picture, skipped_section, worst_section
from packvit.evaluate.page.quality import calibration_section, class_section, confusion_section
from packvit.evaluate.page.style import SCRIPT, STYLE


def write_report(folder: Path, picture: Picture | None = None) -> Path:
    """Write report.html into an evaluation's folder from the files there, and return its path.

    The page depends only on the folder's files and the pictures. It has at most 5 MB for up to 500 settings,
    however many images, classes and other sets there are, because tables and pictures are limited.

    Args:
        folder: folder with results.json and, if they were kept, predictions.npz and skipped.jsonl.
        picture: reads an image again, such as a `ShardPictures`; None leaves pictures out.

    Raises:
        ValueError: the folder holds no evaluation, or one of its files is damaged; names it.
    """
    results = read_results(folder)
    row = results.best
    predictions = results.predictions(row) if row is not None else None
    retrieved = results.retrieved(row) if row is not None else None
    shards = predictions.shards if predictions else retrieved.shards if retrieved else None
    sections = [
        compute_section(results),
        grid_section(results),
        models_section(results),
        cost_section(results),
        sets_section(results),
        corruption_section(results),
        row and calibration_section(results, row, predictions),
        row and confusion_section(results, row, predictions),
        row and class_section(results, row, predictions),
        row and worst_section(results, row, predictions, picture),
        row and missed_section(row, retrieved, picture),
        skipped_section(results.skipped),
        table_section(results),
    ]
    shown = [part for part in sections if part is not None]
    name = _name(results)
    body = el(
        "body",
        el("header", el("h1", name), _facts(results, shards), headline(results), _contents(shown)),
        el("main", *shown),
    )
    path = folder / "report.html"
    write_whole(path, write_document(name, STYLE, body, SCRIPT))
    return path


def _name(results: Results) -> str:
    if len(results.names) > 1:
        return f"Evaluation of {amount(len(results.names), 'model')}"
    path = results.models[0].get("path") if results.models else None
    return f"Evaluation of {redact(str(path))}" if path else "Evaluation"


def _facts(results: Results, shards: np.ndarray | None) -> Element:
    """Model, data and device in a line each."""
    lines = []
    for model in results.models:
        config = model.get("config") or {}
        parts = [redact(str(model["path"]))] if len(results.models) > 1 and model.get("path") else []
        if "width" in config and "depth" in config:
            parts.append(f"width {config['width']}, depth {config['depth']}")
        if model.get("num_classes"):
            parts.append(amount(model["num_classes"], "class", "classes"))
        if model.get("templates"):
            parts.append(amount(len(model["templates"]), "template"))
        if model.get("captions"):
            parts.append(f"captions in {model['captions']}")
        if model.get("loss"):
            parts.append(f"{model['loss']} loss")
        if model.get("hash"):
            parts.append(f"weights {str(model['hash'])[:12]}")
        lines.append(f"Model: {'; '.join(parts)}" if parts else "")
    images = max((row.get("images") or 0 for row in results.main), default=0)
    lines.append(f"Data: {amount(images, 'image')}{_shards(shards)}")
    device = [str(results.device["name"])] if results.device.get("name") else []
    if results.device.get("threads"):
        device.append(amount(results.device["threads"], "thread"))
    lines.append(f"Device: {', '.join(device)}" if device else "")
    return el("div", *(el("div", line) for line in lines if line), class_="facts")


def _shards(shards: np.ndarray | None) -> str:
    """Where the images lie."""
    if shards is None or not len(shards):
        return ""
    paths = [redact(path) for path in np.unique(shards).tolist()]
    if len(paths) == 1:
        return f" of {paths[0]}"
    folders = sorted({os.path.dirname(path) for path in paths})
    more = f" and {amount(len(folders) - 1, 'other folder')}" if len(folders) > 1 else ""
    return f" of {amount(len(paths), 'shard')} in {folders[0] or '.'}{more}"


def _contents(sections: list[Element]) -> Element:
    links = (el("li", el("a", part[0].text, href=f"#{part.get('id')}")) for part in sections)
    return el("nav", el("ul", *links), aria_label="Sections")
