"""The `packvit` command: finds the command's file, runs it, and turns errors into one sentence."""

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from packvit import __version__

# By name: how a command is called, and what it is for.
COMMANDS = {
    "train": (
        "train RECIPE|CONFIG.yaml [--model MODEL] [--section.field VALUE ...]",
        "train and evaluate a model; the same --run-dir resumes; --model names weights to start from",
    ),
    "eval": (
        "eval MODEL... [--shards ...] [--resolutions ...] [--patch-sizes ...] [--tokens ...]",
        "measure accuracy, calibration and cost of models at any resolution and patch size",
    ),
    "report": (
        "report EVAL [--shards ...]",
        "write report.html of a finished evaluation again",
    ),
    "plan": (
        "plan EVAL [--max-tokens N | --max-gflops G | --max-ms M | --min-accuracy A]",
        "choose the best setting, or cascade of settings, for a budget",
    ),
    "predict": (
        "predict MODEL IMAGES... [--plan plan.json | --resolution R --patch-size P | --tokens N]",
        "classify images: files, folders, globs, shards, names on standard input",
    ),
    "probe": (
        "probe TRAIN TEST [--shots ...] [--knn K] [--across]",
        "measure few-shot and nearest-neighbour accuracy of features stored by `eval --features`",
    ),
    "analyze": (
        "analyze --shards ... | --sizes-file ... [--seq-lens ...] [--algorithms ...]",
        "measure how well the views of a data set pack, and recommend a sequence length",
    ),
    "shards": ("shards write|demo|check|index", "make, verify or index webdataset shards"),
    "teach": (
        "teach SHARDS --teacher MODEL --patch-size P --resolution R --out OUT",
        "write shards with a teacher's logits beside each image, to distil from",
    ),
    "inspect": (
        "inspect MODEL --shards ... --resolutions ... --patch-sizes ...",
        "compare a model's features across patch sizes: CKA, k-NN, ensembles, pictures",
    ),
    "convert": (
        "convert SOURCE TARGET [--heads H ...]",
        "convert weights to packvit's folder, big_vision's .npz or timm's .safetensors",
    ),
    "export": (
        "export MODEL OUT [--format onnx|torch|hub|siglip2]",
        "export a model to use it without packvit: a graph for every budget, or a folder for the hub",
    ),
    "info": (
        "info [MODEL]",
        "show versions, devices and attention backends for bug reports, or describe a model",
    ),
}
# Modules whose names differ from their commands'.
MODULES = {"inspect": "inspection"}  # the standard library has a module `inspect`
INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended: 128 + SIGINT
READER_GONE = 141  # and of one whose output nobody reads any more, as with `| head`: 128 + SIGPIPE
OTHERS_WAIT = 5.0  # seconds that other ranks leave the first one to say what is wrong


def main() -> None:
    """Entry point of the command."""
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit status: the command's, 2 after a sentence on standard error, 130 after Ctrl-C, 141 when the
        reader of the output has gone.
    """
    try:
        status = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        print("packvit: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # Set it to see where an error comes from, and whether it is a bug.
        if os.environ.get("PACKVIT_TRACEBACK"):
            raise
        return fail(str(error), getattr(error, "of_this_rank", False))
    return status


def run(arguments: Sequence[str]) -> int:
    """Run one command; what goes wrong is raised.

    Returns:
        The exit status: 0, unless the command gives another.

    Raises:
        ValueError: there is no such command, and see the commands.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] == "--version":
        print(f"packvit {__version__}")
    elif arguments[0] not in COMMANDS:
        raise ValueError(f"{arguments[0]!r} is not a command: it is one of {', '.join(COMMANDS)}")
    else:
        module = MODULES.get(arguments[0], arguments[0])
        return import_module(f"packvit.cli.{module}").main(arguments[1:]) or 0
    return 0


def usage() -> str:
    """What `packvit --help` prints. It names no recipe, so that it needs none of what recipes import."""
    lines = [f"  {call}\n                    {purpose}" for call, purpose in COMMANDS.values()]
    return "\n".join(
        [
            "usage: packvit COMMAND ...   |   packvit --version",
            "\ncommands:",
            *lines,
            "\n`packvit train` lists the recipes. `packvit COMMAND --help` lists a command's options,",
            "`packvit train RECIPE --help` all of a run's.",
        ]
    )


def fail(message: str, of_this_rank: bool = False) -> int:
    """Say on standard error what is wrong; returns exit status 2.

    What is wrong on all ranks is said once: the others leave the first one of a machine the time to say it
    and to be noticed by torchrun, which then ends them. What is wrong on this rank is said at once, before
    the others notice that it is missing and torchrun ends it.
    """
    if is_other_rank() and not of_this_rank:
        time.sleep(OTHERS_WAIT)
    print(f"packvit: error: {message}", file=sys.stderr)
    return 2


def is_other_rank() -> bool:
    """Whether torchrun started this process and it is not the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
