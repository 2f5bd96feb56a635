"""Defaults of a request from the run of its first model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dacite
import yaml

from packvit.common.stores.copies import url_of
from packvit.data import DataConfig, FetchConfig, find_commands, redact
from packvit.evaluate.config import EvalConfig
from packvit.evaluate.loss import find_run_config, run_section
from packvit.evaluate.request.request import Request, distinct
from packvit.packing import ViewsConfig


@dataclass(frozen=True)
class RunSections:
    """The sections of a run's config.yaml that evaluation looks at."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def read_sections(path: Path) -> RunSections:
    """These sections of a config.yaml; a section that it lacks is as usual.

    Raises:
        ValueError: it is not YAML, or has an unknown field or a value of the wrong type; names it.
        OSError: it cannot be read.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} is not a configuration: it holds no fields")
    sections: dict[str, Any] = {name: values[name] for name in ("data", "views", "eval") if name in values}
    try:
        return dacite.from_dict(RunSections, sections, dacite.Config(strict=True, cast=[tuple, Path]))
    except dacite.DaciteError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def find_folder(request: Request) -> Path:
    """Where the results go: `out`, or the folder `eval` in that of the model.

    Raises:
        ValueError: there are several models, one of fewer blocks, in memory or in a store, and no `out`.
    """
    if request.out is not None:
        return request.out
    model, *others = request.models
    if others:
        raise ValueError("several models need a folder of their own for the results: name it with out")
    if request.depths:
        raise ValueError("models of other depths need a folder for their results: name it with out")
    if not isinstance(model, Path):
        raise ValueError("a model in memory has no folder for the results: name one with out")
    if url := url_of(model):
        raise ValueError(f"{url} is in a store, and results need a folder of this machine: name it with out")
    return (model if model.is_dir() else model.parent) / "eval"


def complete(request: Request) -> Request:
    """The request with omitted values taken from the run of its first model.

    Raises:
        ValueError: neither names shards and settings, or the run names a command as shards.
    """
    model, shown = request.models[0], bool(request.resolutions or request.tokens)
    path = find_run_config(model) if isinstance(model, Path) else None
    if isinstance(model, Path) and request.label_field is None:
        data = run_section(model, "data")
        several = request.multi_label or bool(data.get("multi_label"))
        request = replace(request, label_field=data.get("label_field"), multi_label=several)
    if path is not None and not (request.shards and request.patch_sizes and shown):
        run = read_sections(path)
        settings = run.eval.grid(run.views)
        if not request.shards:
            # Whoever evaluates a run of others did not choose the commands that it names.
            for command in find_commands(run.data.val_shards):
                raise ValueError(
                    f"{path} names a command as shards, {redact(command)!r}: it runs only if it is given "
                    "as shards"
                )
            fetch = run.data.fetch if request.fetch == FetchConfig() else request.fetch
            request = replace(request, shards=run.data.val_shards, fetch=fetch)
        if not (request.patch_sizes or request.strides or (request.tokens and request.resolutions)):
            request = replace(request, strides=run.eval.strides or run.views.strides)
        if not request.patch_sizes:
            request = replace(request, patch_sizes=distinct(s.patch_size for s in settings))
        if not shown:
            request = replace(request, resolutions=distinct(s.resolution or 0 for s in settings))
    request.check_complete()
    return request
