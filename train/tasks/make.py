"""The task for a configuration."""

from packvit.train.config import Config
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.consistency import Consistency
from packvit.train.tasks.contrastive import Contrastive
from packvit.train.tasks.distillation import Distillation
from packvit.train.tasks.task import Task


def make_task(config: Config) -> Task:
    """The task of a run; raises like the tasks."""
    if config.consistency.active:
        return Consistency(config)
    if config.contrastive.loss:
        return Contrastive(config)
    return Distillation(config) if config.distill.active else Classification(config)
