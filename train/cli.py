"""The `packvit` command: reads arguments, calls what does the work, and turns errors into one sentence."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from packvit.data import Labels, check_shards, write_digits, write_images
from packvit.data.digits import CLUTTER
from packvit.packing import PackingConfig
from packvit.train.analyze import analyze_command
from packvit.train.config import Config
from packvit.train.convert import convert_command
from packvit.train.info import info_command
from packvit.train.recipes import RECIPES, find_recipe, start_with
from packvit.train.run import evaluate_folder, run
from packvit.train.teach import teach_command

USAGE = f"""usage: packvit COMMAND ...

commands:
  train RECIPE|CONFIG.yaml [--model MODEL] [--section.field VALUE ...]
                    train, evaluate and draw; the same --run-dir resumes; with --model, from its weights
  eval CHECKPOINT --shards ... --resolutions ... --patch-sizes ...
                    accuracy of one model at any resolution and patch size
  analyze --shards ... | --sizes-file ... [--seq-lens ...] [--algorithms ...]
                    how well the views of a data set pack, and the sequence length to take
  shards write|demo|check
                    make or verify webdataset shards
  teach SHARDS --teacher MODEL --patch-size P --resolution R --out OUT
                    shards with a teacher's logits beside each image, to distil from
  convert SOURCE TARGET [--heads H ...]
                    weights to packvit's folder, big_vision's .npz or timm's .safetensors
  info              versions, devices and attention backends, for bug reports

recipes: {", ".join(RECIPES)}
`packvit COMMAND --help` lists a command's options, `packvit train RECIPE --help` all of a run's."""

Folder = Annotated[Path, tyro.conf.Positional]
OTHERS_WAIT = 5.0  # seconds


def main() -> None:
    """Entry point of the command."""
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status: 0, or 2 after a sentence on standard error."""
    commands: dict[str, Callable[[Sequence[str]], Any]] = {
        "train": train_command,
        "eval": lambda rest: tyro.cli(evaluate_command, prog="packvit eval", args=rest),
        "analyze": lambda rest: tyro.cli(analyze_command, prog="packvit analyze", args=rest),
        "shards": shards_command,
        "teach": lambda rest: tyro.cli(teach_command, prog="packvit teach", args=rest),
        "convert": lambda rest: tyro.cli(convert_command, prog="packvit convert", args=rest),
        "info": lambda rest: tyro.cli(info_command, prog="packvit info", args=rest),
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] not in commands:
        return fail(f"{arguments[0]!r} is no command: it is one of {', '.join(commands)}")
    try:
        commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return fail("interrupted")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # Set it to see where an error comes from, and whether it is a bug.
        if os.environ.get("PACKVIT_TRACEBACK"):
            raise
        return fail(str(error))
    return 0


def fail(message: str) -> int:
    """Say on standard error what is wrong; returns exit status 2.

    What is wrong on all ranks is said once: the others leave the first one of a machine the time to say it
    and to be noticed by torchrun, which then ends them.
    """
    if is_other_rank():
        time.sleep(OTHERS_WAIT)
    print(f"packvit: error: {message}", file=sys.stderr)
    return 2


def is_other_rank() -> bool:
    """Whether torchrun started this process and it is not the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def train_command(arguments: Sequence[str]) -> None:
    """`packvit train RECIPE|CONFIG.yaml ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: packvit train RECIPE|CONFIG.yaml [--model MODEL] [--section.field VALUE ...]\n\nrecipes:"
        )
        for name, recipe in RECIPES.items():
            print(f"  {name:<24}{(recipe.__doc__ or '').splitlines()[0]}")
        print(
            "\n--model MODEL, whatever load_model reads, gives a run its architecture and first weights."
            "\n`packvit train RECIPE --help` lists every field with the recipe's value."
        )
        return
    default = find_recipe(arguments[0])
    model, rest = take_model(arguments[1:])
    if model:
        default = start_with(default, model)
    prog = f"packvit train {arguments[0]}"
    # All ranks read the same arguments: what is wrong with them is said once.
    with ExitStack() as quiet:
        if is_other_rank():
            quiet.enter_context(redirect_stdout(io.StringIO()))
            quiet.enter_context(redirect_stderr(io.StringIO()))
        config = tyro.cli(Config, default=default, prog=prog, args=rest)
    run(config)


def take_model(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of `--model PATH` or `--model=PATH`, empty without it, and the other arguments.

    Raises:
        ValueError: nothing follows `--model`.
    """
    model, rest = "", []
    left = iter(arguments)
    for argument in left:
        if argument == "--model":
            model = next(left, "")
            if not model or model.startswith("--"):
                raise ValueError("--model needs the path of a model to start with")
        elif argument.startswith("--model="):
            model = argument.removeprefix("--model=")
        else:
            rest.append(argument)
    return model, rest


def evaluate_command(
    checkpoint: Folder,
    /,
    shards: tuple[str, ...],
    resolutions: tuple[int, ...],
    patch_sizes: tuple[int, ...],
    out: Path | None = None,
    seq_len: int = 1024,
    sequences: int = 8,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    label_field: str = "cls",
) -> None:
    """Evaluate one model at every resolution and patch size asked for.

    Args:
        checkpoint: a run's folder, a checkpoint, or any file that load_model reads.
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        out: folder for results.json, accuracy.png and skipped.jsonl; by default CHECKPOINT/eval. Results that
            are there already are kept under another name.
        seq_len: slots in a sequence; raised to the longest view's tokens where it is shorter.
        sequences: sequences in a batch.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes that decode.
        device: auto takes a GPU when there is one.
        label_field: of every sample, such as cls or json:label.
    """
    for name, values in (("resolutions", resolutions), ("patch-sizes", patch_sizes), ("shards", shards)):
        if not values:
            raise ValueError(f"--{name} needs at least one value")
        if any(isinstance(value, int) and value < 1 for value in values):
            raise ValueError(f"--{name} {' '.join(map(str, values))}: every value must be at least 1")
    packing = PackingConfig(seq_len=seq_len, sequences=sequences)
    evaluate_folder(
        checkpoint, shards, resolutions, patch_sizes, out, packing, precision, workers, device, label_field
    )


def shards_command(arguments: Sequence[str]) -> None:
    """`packvit shards write|demo|check ...`."""
    tyro.extras.subcommand_cli_from_dict(
        {"write": write_command, "demo": demo_command, "check": check_command},
        prog="packvit shards",
        args=arguments,
    )


def write_command(
    source: Folder,
    out: Folder,
    /,
    val_fraction: float = 0.0,
    shard_size: int = 1000,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
) -> None:
    """Pack images into shards; the same command after a kill goes on where it was.

    Args:
        source: a folder with one folder of images for each class; a .csv file with the columns path and
            label; or a .parquet file, or a folder of them, as Hugging Face keeps images.
        out: gets the shards; with a val fraction, out/train and out/val.
        val_fraction: share of the images kept for validation.
        shard_size: images in a shard.
        seed: of the shuffled order and of the split.
        image_column: of Parquet files.
        label_column: of .csv and Parquet files.
    """
    with progress_bar("writing") as report_progress:
        report = write_images(
            source,
            out,
            val_fraction=val_fraction,
            shard_size=shard_size,
            seed=seed,
            image_column=image_column,
            label_column=label_column,
            progress=report_progress,
        )
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


def demo_command(
    out: Folder,
    /,
    train_images: int = 20_000,
    test_images: int = 2_000,
    seed: int = 0,
    clutter: float = CLUTTER,
) -> None:
    """Write the demo set: handwritten digits on canvases of every size and shape, over clutter.

    Args:
        out: gets out/train and out/val.
        train_images: canvases for training.
        test_images: canvases for validation, from scans that training never shows.
        seed: of every canvas.
        clutter: 0 = none, 1 = as strong as the digit.
    """
    with progress_bar("drawing") as report_progress:
        write_digits(out, train_images, test_images, seed, clutter=clutter, progress=report_progress)
    print(f"{out / 'train'}: {train_images} images\n{out / 'val'}: {test_images} images")


def check_command(
    shards: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    label_field: str = "cls",
    multi_label: bool = False,
) -> None:
    """Read every sample of some shards and name what is wrong.

    Args:
        shards: files, patterns or folders.
        label_field: as data.label_field of a run: cls, json:label, targets.npy.
        multi_label: images have any number of classes.
    """
    labels = Labels(label_field, multi_label)
    with progress_bar("checking") as report_progress:
        report = check_shards(shards, report_progress, labels)
    print(report)
    if report.problems:
        raise ValueError(f"{sum(map(len, report.problems.values()))} problems found")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, nothing elsewhere; gives a function of (done, total)."""
    console = Console()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
