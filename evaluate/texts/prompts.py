"""Zero-shot classification: classes are the embeddings of their names, put into templates.

Each prompt of a class is embedded and normalised, their mean is normalised again (CLIP, arXiv 2103.00020,
3.1.4), and an image's logit of the class is e^t' * cosine + b, as in training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from packvit.evaluate.texts.embed import TextEmbedder, fingerprint
from packvit.models import LogitScale, Outputs, average_by_class, unit

Names = Sequence[Sequence[str]]  # of each class, all that it is called


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """The logits of classes that are texts.

    Args:
        classes: float32 [C, E], unit vectors.
        scale, bias: e^t' and b, which turn cosines into logits.
        cut: number of prompts that were too long for the tower and were cut off.
    """

    classes: Tensor
    scale: float
    bias: float
    cut: int = 0

    @property
    def name(self) -> str:
        """A name that distinguishes it from those of other classes, prompts or towers."""
        return fingerprint(self.classes, torch.tensor([self.scale, self.bias], dtype=torch.float64))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    def __call__(self, outputs: Outputs) -> Tensor:
        """Logits of images, float32 [N, C].

        Args:
            outputs: of the image tower.
        """
        return self.logits(unit(outputs.logits))

    def logits(self, images: Tensor) -> Tensor:
        """Logits of images whose unit vectors [N, E] are known, float32 [N, C]."""
        classes = self.classes.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self.scale * images.float() @ classes.T + self.bias


def embed_classes(
    embed: TextEmbedder, logits: LogitScale, names: Names, templates: Sequence[str]
) -> ZeroShot:
    """Make a classifier of names; every rank calls it.

    Args:
        logits: scale and bias of the two towers.
        templates: texts in which `{}` stands for a name.

    Raises:
        ValueError: a prompt has no token.
    """
    prompts = [template.replace("{}", name) for own in names for name in own for template in templates]
    found = embed(prompts)
    classes = average_by_class(found.vectors, [len(own) * len(templates) for own in names])
    scale, bias = (value.item() for value in logits())
    return ZeroShot(classes, scale, bias, found.cut)


def read_names(path: Path) -> Names:
    """Names of classes: one a line, or a JSON list of names or of lists of names that mean the same class.

    Raises:
        ValueError: the file cannot be read or holds something else, or a class has no name; names the file
            and the class.
    """
    text = _read_text(path)
    if not text.lstrip().startswith(("[", "{")):
        names = [(line.strip(),) for line in text.splitlines() if line.strip()]
        if not names:
            raise ValueError(f"{path} holds no name of a class")
        return names
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON document: {error}") from None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} holds no list of names")
    names = [(entry,) if isinstance(entry, str) else entry for entry in found]
    for number, own in enumerate(names):
        good = isinstance(own, list | tuple) and own and all(isinstance(n, str) and n.strip() for n in own)
        if not good:
            raise ValueError(f"{path}: class {number} is neither a name nor a list of names")
    return [tuple(own) for own in names]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
