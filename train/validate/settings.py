"""How a run is evaluated: on which images, at which settings, in batches of which size."""

from dataclasses import replace

from packvit.data import EvalSet
from packvit.evaluate import Setting, parse_setting
from packvit.packing import PackingConfig
from packvit.train.config import Config
from packvit.train.tasks.task import Task

FEW = 3  # settings of a validation during training, unless they are given


def open_validation(config: Config, task: Task) -> EvalSet | None:
    """The run's validation set, or None if there is none.

    Raises:
        ValueError: it cannot be used, the task has nothing to measure on it, or it is missing where the run
            validates during training.
    """
    if not config.data.val_shards:
        if config.eval.every:
            raise ValueError(
                f"eval.every={config.eval.every} needs images to validate on: add --data.val-shards PATH"
            )
        return None
    if not task.evaluators:
        raise ValueError("data.val_shards: nothing measures a model of this task; leave data.val_shards out")
    return EvalSet(config.data.val_shards, task.eval_targets, config.data.fetch)


def eval_settings(config: Config) -> list[Setting]:
    """The settings of the evaluation; see `EvalConfig.grid`."""
    return config.eval.grid(config.views)


def validation_settings(config: Config) -> list[Setting]:
    """The settings of validation during training: as configured, or FEW of `eval_settings`.

    These are the middle ones of three equal parts, with few, a medium number of and many tokens.
    """
    if config.eval.settings:
        return [parse_setting(name) for name in dict.fromkeys(config.eval.settings)]
    ordered = sorted(
        eval_settings(config),
        key=lambda setting: (setting.side - setting.patch_size) / (setting.stride or setting.patch_size),
    )
    places = [(2 * part + 1) * len(ordered) // (2 * FEW) for part in range(FEW)]
    return [ordered[place] for place in dict.fromkeys(places)]


def eval_packing(config: Config) -> PackingConfig:
    """How evaluation packs."""
    return replace(config.packing, sequences=config.eval.sequences, max_batch_images=None)
