"""`packvit probe TRAIN TEST`: the quality of frozen features, by few-shot linear probes and nearest
neighbours.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro

from packvit.cli.options import read_options
from packvit.common.display import Bar, Display
from packvit.common.files import check_writable, write_whole
from packvit.evaluate.measures.features import StoredFeatures, read_features, stored_model
from packvit.evaluate.measures.fewshot import DRAWS, RIDGE, SHOTS, check_classes, fit_shots, probe_accuracy
from packvit.evaluate.measures.knn import NEIGHBOURS, Vote, classify_by_neighbours
from packvit.evaluate.results import RESULTS, predictions_name

VOTES: dict[str, Vote] = {"knn": "weighted", "knn_majority": "majority"}


@dataclass(frozen=True)
class Probe:
    """Classify images by frozen features that `packvit eval --features` has stored.

    Args:
        train: predictions.npz, or the folder with it, of the images to learn from.
        test: likewise, of the images to classify.
        shots: numbers of images per class that a linear probe learns from; if empty, there are no probes.
        draws: number of random draws of these images, over which the accuracy is averaged.
        ridge: penalty on the squared weights of a probe.
        knn: number of nearest neighbours that vote; 0: no k-NN.
        across: also learn from the features of each setting and classify those of every other one.
        out: a JSON file for the results.
    """

    train: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    test: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEST")]
    shots: tuple[int, ...] = SHOTS
    draws: int = DRAWS
    ridge: float = RIDGE
    knn: int = NEIGHBOURS
    across: bool = False
    out: Path | None = None


def main(arguments: Sequence[str]) -> None:
    """Probe, print, write."""
    options = read_options(Probe, "packvit probe", arguments)
    check_values(options)
    train, test = read_features(options.train), read_features(options.test)
    pairs = pair_settings(train, test, options.across)
    check_same_model(train, test)
    check_classes(train.labels, test.labels)
    display = Display()
    rows = []
    with Bar(display.console, "settings", len(pairs), transient=True) as bar:
        for row in probe(train, test, pairs, options):
            rows.append(row)
            bar.update(len(rows))
    show(rows, display)
    if options.out:
        images = {"train": len(train.labels), "test": len(test.labels)}
        methods = {"draws": options.draws, "ridge": options.ridge, "k": options.knn or None}
        paths = {"train": str(train.path), "test": str(test.path)}
        result = {**paths, "images": images, **methods, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps(result, indent=1, allow_nan=False) + "\n")
        display.say(f"Wrote {options.out}")


def check_values(options: Probe) -> None:
    """Refuse invalid options, before anything is read.

    Raises:
        ValueError: names the flag.
    """
    if any(count < 1 for count in options.shots) or len(set(options.shots)) < len(options.shots):
        raise ValueError(f"--shots {' '.join(map(str, options.shots))}: different numbers of at least 1")
    if options.draws < 1:
        raise ValueError(f"--draws {options.draws} must be at least 1")
    if not 0 < options.ridge < float("inf"):
        raise ValueError(f"--ridge {options.ridge:g} must be positive and finite")
    if options.knn < 0:
        raise ValueError(f"--knn {options.knn} must not be negative")
    if not options.shots and not options.knn:
        raise ValueError("--shots and --knn 0 leave nothing to do")
    if options.out:
        if options.out.is_dir():
            raise ValueError(f"--out {options.out} is a folder: name the file to write, such as probe.json")
        if options.out.name in (RESULTS, predictions_name()):
            raise ValueError(
                f"--out {options.out} would replace a file of an evaluation: choose another name"
            )
        check_writable(options.out.parent)


def pair_settings(train: StoredFeatures, test: StoredFeatures, across: bool) -> list[tuple[str, str]]:
    """(setting learnt from, setting classified): the same setting for both, or with `across` all pairs.

    Raises:
        ValueError: there is none.
    """
    if across:
        return [(one, other) for one in train.settings for other in test.settings]
    pairs = [(name, name) for name in test.settings if name in train.settings]
    if not pairs:
        raise ValueError(
            f"{train.path} ({', '.join(train.settings)}) and {test.path} ({', '.join(test.settings)}) have "
            "no setting in common: add --across"
        )
    return pairs


def check_same_model(train: StoredFeatures, test: StoredFeatures) -> None:
    """Refuse features of two models.

    Raises:
        ValueError: names both files.
    """
    if train.width != test.width:
        raise ValueError(
            f"{train.path} has features of width {train.width}, {test.path} of width {test.width}: they are "
            "of different models"
        )
    hashes = stored_model(train.path), stored_model(test.path)
    if None not in hashes and hashes[0] != hashes[1]:
        raise ValueError(f"{train.path} and {test.path} are of different models, by the results.json beside")


def probe(
    train: StoredFeatures, test: StoredFeatures, pairs: Sequence[tuple[str, str]], options: Probe
) -> Iterator[dict[str, Any]]:
    """A row for each pair of settings, as soon as it is known."""
    learnt, probes = None, {}
    for source, target in pairs:
        known, features = train.settings[source], test.settings[target]
        if source != learnt:
            learnt = source
            probes = fit_shots(known, train.labels, options.shots, options.draws, options.ridge)
        row: dict[str, Any] = {"train_setting": source, "setting": target, "fewshot": {}}
        for count, drawn in probes.items():
            found = [probe_accuracy(one, features, test.labels) for one in drawn]
            row["fewshot"][str(count)] = {"accuracy": fmean(found), "draws": found}
        if options.knn:
            for name, vote in VOTES.items():
                answers = classify_by_neighbours((known, train.labels), features, options.knn, vote)
                row[name] = float((answers == test.labels).double().mean())
        yield row


def show(rows: Sequence[dict[str, Any]], display: Display) -> None:
    """Print a table of the accuracies."""
    shots = list(rows[0]["fewshot"])
    neighbours = [name for name in VOTES if name in rows[0]]
    columns = ["learnt from", "classified", *(f"{count}-shot" for count in shots), *neighbours]
    lines = [
        [
            row["train_setting"],
            row["setting"],
            *(f"{row['fewshot'][count]['accuracy']:.1%}" for count in shots),
            *(f"{row[name]:.1%}" for name in neighbours),
        ]
        for row in rows
    ]
    display.table("Accuracy by frozen features", columns, lines)
