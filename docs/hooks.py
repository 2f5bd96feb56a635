"""What `mkdocs build` adds to the pages of this folder: pages of the root, and the help of every command.

The root's pages link to `docs/x.md` and these pages to `../X.md`, so that links also work where the
repository is read; on the site all lie in one folder.
"""

import io
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# The arguments that print the help of a command; those of train print what all recipes share.
CALLS = {
    "train": (["digits", "--help"],),
    "shards": (["write", "--help"], ["demo", "--help"], ["check", "--help"]),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in this folder."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links between this folder and the root lead to the pages of the site."""
    for name, page in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(name)}", f"]({page}", markdown)
    return re.sub(r"\]\(docs/", "](", markdown)


def commands_page() -> str:
    """The help of every command, as the commands print it."""
    from packvit.cli.commands import COMMANDS, MODULES

    parts = ["# Commands", "", "Every command and its options, as `--help` prints them.", ""]
    parts += ["| command | purpose |", "| --- | --- |"]
    purposes = {name: purpose for name, (_, purpose) in COMMANDS.items()}
    parts += [f"| [`packvit {name}`](#packvit-{name}) | {purpose} |" for name, purpose in purposes.items()]
    for name, purpose in purposes.items():
        module = import_module(f"packvit.cli.{MODULES.get(name, name)}")
        parts += ["", f"## packvit {name}", "", f"{purpose[0].upper()}{purpose[1:]}."]
        for call in CALLS.get(name, (["--help"],)):
            parts += ["", block(printed(module.main, call))]
    return "\n".join(parts) + "\n"


def printed(main: object, arguments: Sequence[str]) -> str:
    """What a command prints, in 78 columns and without colours."""
    out = io.StringIO()
    os.environ.update(COLUMNS="78", NO_COLOR="1", TERM="dumb")
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
        main(list(arguments))  # type: ignore[operator]
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def block(text: str) -> str:
    """The text as code."""
    return "\n".join(["```text", *(line.rstrip() for line in text.strip("\n").splitlines()), "```"])
