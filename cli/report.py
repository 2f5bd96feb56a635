"""`packvit report EVAL`: write the page of a finished evaluation again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from packvit.cli.options import read_options
from packvit.common.files import check_writable
from packvit.data import FetchConfig, ShardSet
from packvit.evaluate import ShardPictures, write_report


@dataclass(frozen=True)
class Report:
    """Write report.html into an evaluation's folder again.

    Args:
        folder: folder with results.json and, if they were kept, predictions.npz and skipped.jsonl.
        shards: the evaluated shards, for pictures of the worst images; without them the page has none.
        fetch: how remote and gzipped shards are fetched.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EVAL")]
    shards: tuple[str, ...] = ()
    fetch: FetchConfig = field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Write the page and say where it is."""
    options = read_options(Report, "packvit report", arguments)
    check_writable(options.folder, "EVAL")
    pictures = ShardPictures(ShardSet.find(options.shards, options.fetch)) if options.shards else None
    print(write_report(options.folder, pictures))
    if pictures is None:
        print("It has no pictures: name the evaluated shards with --shards to add them")
