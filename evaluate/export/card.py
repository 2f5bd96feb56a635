"""A folder for the Hugging Face hub: packvit's own files, and a model card with what was measured."""

from pathlib import Path

import yaml

from packvit.common.files import write_whole
from packvit.evaluate.export.verify import expected_outputs, largest_difference, random_images
from packvit.evaluate.results import ResultsFile, Row, read_results_file
from packvit.models import PackedViT, describe_positions, hash_model, load_model, save_model

USE = """\
```python
from packvit import pack_images
from packvit.models import PackedViT

model = PackedViT.from_pretrained("{name}")  # a folder, or ORGANISATION/NAME on the hub
batch = pack_images([image], patch_size={p}, resolution={resolution})  # uint8 [height, width, 3] each
{call}
```
"""
COLUMNS = {
    "setting": "setting",
    "tokens_per_image": "tokens/image",
    "gflops_per_image": "GFLOPs/image",
    "accuracy": "top-1 in % (95 % interval)",
    "top5": "top-5 in %",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "images": "images",
}


def write_hub(
    model: PackedViT, folder: Path, name: str, results: ResultsFile | None, licence: str | None
) -> None:
    """model.safetensors, config.json and README.md, to a folder that exists.

    Args:
        name: name of the model, for the card.
        results: result of `read_results`, or None.
        licence: licence as the hub names it, such as apache-2.0, or None.
    """
    save_model(model, folder)
    write_whole(folder / "README.md", model_card(model, name, results, licence))


def hub_difference(model: PackedViT, folder: Path) -> float:
    """The largest difference of any output between the model and the models that `load_model` and
    `PackedViT.from_pretrained` read from the folder; see `largest_difference`."""
    images, p = random_images(), model.config.patch_buffer
    settings = [max(1, p // 2 * (1 + i % 2)) for i in range(len(images))], [3.0 * p] * len(images)
    expected = expected_outputs(model, images, *settings)
    again = (load_model(folder), PackedViT.from_pretrained(folder))
    return max(largest_difference(expected_outputs(other, images, *settings), expected) for other in again)


def read_results(path: Path, model: PackedViT) -> ResultsFile:
    """The results.json of an evaluation of this model.

    Args:
        path: the file, or the evaluation's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, has no rows, or belongs to other models; names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"--results {path}: {path} does not exist")
    results = read_results_file(path)
    file, evaluated = results.path, results.model
    if not results.rows:
        raise ValueError(f"{file} has no rows: evaluate the model again")
    if isinstance(evaluated, list):
        raise ValueError(f"{file} is of several models: evaluate this one alone")
    if evaluated is None or evaluated.get("hash") != hash_model(model):
        where = (evaluated or {}).get("path")
        raise ValueError(f"{file} is of another model, {where}: its weights are not these")
    return results


def model_card(model: PackedViT, name: str, results: ResultsFile | None, licence: str | None) -> str:
    """README.md: the hub's metadata, how to use the model, its architecture, and its accuracy by budget."""
    c = model.config
    about = {
        "library_name": "packvit",
        **({"license": licence} if licence else {}),
        "pipeline_tag": "image-classification" if c.num_classes else "image-feature-extraction",
        "tags": ["packvit", "vision-transformer", "flexivit", "navit", "pytorch_model_hub_mixin"],
    }
    call = (
        "logits = model(batch)  # [images, {}]"
        if c.num_classes
        else "features = model(batch)  # [images, {}]"
    )
    p = c.patch_buffer
    use = USE.format(name=name, p=p, resolution=14 * p, call=call.format(c.num_classes or c.feature_dim))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "parameters": f"{parameters / 1e6:.1f} M",
        "width, depth, heads": f"{c.width}, {c.depth}, {c.heads}",
        "classes": c.num_classes or "none: it answers with features",
        "positions": describe_positions(c),
        "pooling": c.pool,
        "stored patch size": f"{p} pixels; others by {c.patch_operator}",
        "pixels": f"mean {list(c.image_mean)}, standard deviation {list(c.image_std)} of values in [0, 1]",
    }
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
        f"# {name}\n",
        "A Vision Transformer for any patch size and resolution, trained on packed sequences by packvit.\n",
        f"## Use\n\n{use}",
        "## Model\n\n| | |\n| --- | --- |",
        "\n".join(f"| {key} | {value} |" for key, value in rows.items()) + "\n",
    ]
    return "\n".join([*parts, *([_accuracy(results)] if results else [])])


def _accuracy(results: ResultsFile) -> str:
    """The table, one for each set of images."""
    rows = results.rows
    sets = list(dict.fromkeys(row["set"] for row in rows))
    shown = {key: title for key, title in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    parts = ["## Accuracy by budget\n"]
    for name in sets:
        if len(sets) > 1:
            parts.append(f"### {name}\n")
        parts.append(f"| {' | '.join(shown.values())} |\n|{' --- |' * len(shown)}")
        chosen = [row for row in rows if row["set"] == name]
        parts.append(
            "\n".join(f"| {' | '.join(_cell(row, key) for key in shown)} |" for row in chosen) + "\n"
        )
    return "\n".join(parts)


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or "-"
    if key == "accuracy" and row.get("accuracy_low") is not None and row.get("accuracy_high") is not None:
        return f"{100 * value:.1f} ({100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f})"
    if key in ("accuracy", "top5"):
        return f"{100 * value:.1f}"
    digits = {"images": 0, "tokens_per_image": 1}.get(key, 3)
    return f"{value:.{digits}f}"
