"""`packvit shards write|demo|check|index ...`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from packvit.cli.options import refused_plainly
from packvit.common.display import Bar
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import EngineFlags, make_engine
from packvit.data import (
    BadShard,
    ClassTarget,
    FetchConfig,
    ShardSet,
    check_shards,
    write_digits,
    write_emoji,
    write_images,
    write_scenes,
)
from packvit.data.make.beside import write_indices
from packvit.data.make.digits import CLUTTER
from packvit.data.make.images import WriteConfig, hash_source
from packvit.data.stores.stage import write_folder

Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True)
class Write:
    """Pack images into shards. If the command is killed, repeat it to continue.

    Args:
        source: a folder with one folder of images for each class; a .csv file with the columns path and
            label; or a .parquet file, or a folder of them, in the layout of Hugging Face's image datasets.
        out: folder for the shards; with a val fraction, for train and val. It may be in an object store
            (s3://bucket/folder): all shards are then written to the cache folder before they are uploaded.
        workers: processes of this machine; 0: one for each CPU.
        engine: see its flags.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    options: Annotated[WriteConfig, tyro.conf.arg(name="")] = field(default_factory=WriteConfig)
    workers: int = 1
    engine: EngineFlags = field(default_factory=EngineConfig)

    def run(self) -> None:
        """Write the shards and say what was left out."""
        task = repr((self.source, self.options))
        write_folder(self.out, task, partial(hash_source, self.source, self.options), self._write)

    def _write(self, out: Path) -> None:
        if self.engine.engine == "local" and self.workers == 1:
            with Bar(Console(), "writing") as bar:
                report = write_images(self.source, out, self.options, bar.update)
        else:
            with make_engine(self.engine, Console(), self.workers) as engine:
                report = write_images(self.source, out, self.options, engine=engine)
        for target, images in report.images.items():
            print(f"{target}: {images} images of {len(report.classes)} classes")
        for name, lines in (
            ("broken images left out", report.broken),
            ("others left out", report.left_out),
            ("classes without images", report.empty),
        ):
            if lines:
                print(f"{len(lines)} {name}:")
                print("\n".join(f"  {line}" for line in lines))


@dataclass(frozen=True)
class Demo:
    """Write a demo set: handwritten digits, scenes with captions, or emoji.

    Args:
        out: folder in which out/train and out/val are made, and for scenes out/held_out.
        kind: digits on canvases of many sizes, over clutter, to be classified; scenes, a coloured digit with
            captions of its colour, size and side; or emoji with their names, with one designer's pictures
            held out.
        train_images: number of canvases for training, for digits and scenes.
        test_images: number of canvases for validation, from scans that training lacks, for digits.
        seed: seed of every canvas.
        clutter: strength of the clutter, for digits; 0 = none, 1 = as strong as the digit.
        packages: a folder with the npm packages emoji-datasource-google, -twitter, -facebook and -apple; by
            default npm fetches them.
    """

    out: Out
    kind: Literal["digits", "scenes", "emoji"] = "digits"
    train_images: int = 20_000
    test_images: int = 2_000
    seed: int = 0
    clutter: float = CLUTTER
    packages: Path | None = None

    def run(self) -> None:
        """Write the set."""
        train = self.out / "train"
        if self.kind == "scenes":
            write_scenes(self.out, self.train_images, self.seed)
            print(f"{train}: {self.train_images} scenes with captions, val and held_out beside it")
            return
        if self.kind == "emoji":
            concepts = write_emoji(self.out, self.packages, self.seed)
            print(f"{train}: {concepts} concepts by three designers, val beside it by a fourth")
            return
        with Bar(Console(), "drawing") as bar:
            write_digits(
                self.out,
                self.train_images,
                self.test_images,
                self.seed,
                clutter=self.clutter,
                progress=bar.update,
            )
        print(
            f"{self.out / 'train'}: {self.train_images} images\n{self.out / 'val'}: {self.test_images} images"
        )


@dataclass(frozen=True)
class Check:
    """Read every sample of some shards and name what is wrong.

    Args:
        shards: files, patterns or folders.
        label_field: field of the label, like data.label_field of a run: cls, json:label, targets.npy.
        multi_label: images have any number of classes.
        workers: processes of this machine; 0: one for each CPU.
        fetch: how remote and gzipped shards are fetched.
        engine: see its flags.
    """

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS...")]
    label_field: str = "cls"
    multi_label: bool = False
    workers: int = 1
    fetch: FetchConfig = field(default_factory=FetchConfig)
    engine: EngineFlags = field(default_factory=EngineConfig)

    def run(self) -> None:
        """Check the shards.

        Raises:
            ValueError: there are problems.
        """
        labels = ClassTarget(self.label_field, self.multi_label)
        with make_engine(self.engine, Console(), self.workers) as engine:
            report = check_shards(self.shards, None, labels, self.fetch, engine)
        print(report)
        if report.problems:
            raise ValueError(f"{sum(map(len, report.problems.values()))} problems found")


@dataclass(frozen=True)
class Index:
    """Write an index beside each shard, NAME.tar.idx, and list local shards in their folder's manifest.json.

    With an index, the headers of tars and images are not needed to read shards from a server: `packvit
    analyze` reads some 70 bytes a sample. Shards that already have an index are left alone.

    Args:
        shards: files, patterns or folders, here or in an object store.
        workers: processes of this machine; 0: one for each CPU.
        fetch: how remote shards are read.
        engine: see its flags.
    """

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS...")]
    workers: int = 1
    fetch: FetchConfig = field(default_factory=FetchConfig)
    engine: EngineFlags = field(default_factory=EngineConfig)

    def run(self) -> None:
        """Index the shards.

        Raises:
            ValueError: some cannot be read.
        """
        shards = ShardSet.find(self.shards, self.fetch)
        bad, samples = [], 0
        with make_engine(self.engine, Console(), self.workers) as engine:
            for _, found in write_indices(shards, engine):
                if isinstance(found, BadShard):
                    bad.append(found)
                else:
                    samples += found
        print(f"{len(shards) - len(bad)} shards, {samples} samples")
        for error in bad:
            print(f"  {error}")
        if bad:
            raise ValueError(f"{len(bad)} of {len(shards)} shards cannot be indexed")


def main(arguments: Sequence[str]) -> None:
    """Run one of the subcommands."""
    kinds = {"write": Write, "demo": Demo, "check": Check, "index": Index}
    read = partial(tyro.extras.subcommand_cli_from_dict, kinds, prog="packvit shards", args=arguments)
    refused_plainly(read).run()
