"""The words that a request measures two towers with: names of classes, templates, captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packvit.data import CaptionTarget, ShardSet, read_class_names, shard_folders
from packvit.evaluate.loss import run_field
from packvit.evaluate.request.request import Request
from packvit.evaluate.texts.prompts import Names, read_names
from packvit.models import AS_IT_IS, Tokenizer, load_tokenizer, local_model, read_templates


@dataclass(frozen=True)
class Words:
    """What two towers are measured with.

    Args:
        names: all names of each class; empty: there is no classification.
        templates: templates for the names.
        captions: field of the captions; empty: there is no retrieval.
        source: where the names come from, for messages.
    """

    names: Names
    templates: Sequence[str]
    captions: str
    source: str

    @property
    def facts(self) -> dict[str, Any]:
        """The entries about them in results.json."""
        found: dict[str, Any] = {"templates": list(self.templates)} if self.names else {}
        return found | ({"captions": self.captions} if self.captions else {})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """One name of each class; None without classification."""
        return tuple(own[0] for own in self.names) or None


def find_words(request: Request, model: Path) -> Words:
    """What is measured, from the request, the run that the model belongs to, and the shards.

    Two towers classify by names of classes if these or templates are given, or if classes.json is beside the
    shards and captions are not given. They retrieve if captions are given, or if nothing names classes.

    Raises:
        ValueError: there are templates but no names, a requested measure needs classes, or a file or field
            cannot be used.
    """
    templates = AS_IT_IS if request.templates is None else read_templates(request.templates)
    names, source = find_names(request)
    if request.templates is not None and not names:
        raise ValueError(
            "templates need names of classes: no classes.json is beside the shards, so give class_names"
        )
    captions = request.captions
    if not captions and not names:
        captions = run_field(model, "contrastive", "captions") or "txt"
    if captions:
        CaptionTarget(captions)  # refuses what is no field
    maps = any(own.label_map or own.label_sets for own in request.sets.values())
    if not names and (request.multi_label or maps):
        what = "multi_label is" if request.multi_label else "label_map and label_sets are"
        raise ValueError(f"{what} about classes, which nothing names: give class_names, too")
    return Words(names, templates, captions, source)


def find_names(request: Request) -> tuple[Names, str]:
    """Names of the classes, none if only captions are requested, and where they come from."""
    if request.class_names is not None:
        return read_names(Path(request.class_names)), f"class_names {request.class_names}"
    found = None
    if request.templates is not None or not request.captions:
        first = ShardSet.find(request.shards, request.fetch).paths[:1]
        found = next((read_class_names(folder, request.fetch) for folder in shard_folders(first)), None)
    return [(name,) for name in found or ()], "classes.json of the main set"


def refuse_words(request: Request, model: str) -> None:
    """Refuse words for a model that has no use for them.

    Raises:
        ValueError: names the field.
    """
    for name in ("class_names", "templates", "captions", "tokenizer"):
        if getattr(request, name):
            raise ValueError(f"{name} is for models with a text tower, and {model} has none")


def find_tokenizer(model: Path, given: Path | None) -> Tokenizer:
    """The tokeniser of a text tower.

    Args:
        given: a file or folder; None: the model's folder.

    Raises:
        FileNotFoundError, ValueError: there is none, or it cannot be read.
    """
    model = local_model(model)
    try:
        return load_tokenizer(given or (model.parent if model.is_file() else model))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: name the text tower's with tokenizer") from None
