"""An inspection: one model run on the same images at every setting, and all comparisons."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from packvit.common.display import Bar, Display
from packvit.data import BadSample, BadShard
from packvit.evaluate.inspection.agreement import find_agreement
from packvit.evaluate.inspection.attention import ATTENTION, look_at
from packvit.evaluate.inspection.cka import LEAST_ROWS, MinibatchCKA
from packvit.evaluate.inspection.ensembles import accuracy, as_fields, compare_ensembles
from packvit.evaluate.inspection.features import Gathered
from packvit.evaluate.inspection.images import InspectedImages, show_at
from packvit.evaluate.inspection.pictures import Looked
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT
from packvit.packing import PackedBatch


@dataclass(frozen=True)
class Inspection:
    """What is inspected, and how.

    Args:
        settings: at least two.
        minibatch: minimum number of images in a minibatch of CKA.
        neighbours: k of the nearest neighbours.
        pictures: number of images that are drawn.
        loss: softmax or sigmoid, as the model was trained.
        autocast: context in which the model runs.

    Raises:
        ValueError: names the value that is too small.
    """

    settings: Sequence[Setting]
    minibatch: int = 64
    neighbours: int = 20
    pictures: int = 4
    loss: LossKind = "softmax"
    autocast: AbstractContextManager = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        if len(set(self.settings)) < len(self.settings) or len(self.settings) < 2:
            raise ValueError(
                "an inspection compares at least two settings, each named once: "
                f"{', '.join(s.name for s in self.settings) or 'none'}"
            )
        for name, least in (("minibatch", LEAST_ROWS), ("neighbours", 1), ("pictures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def names(self) -> list[str]:
        """Of the settings."""
        return [setting.name for setting in self.settings]

    def run(self, model: PackedViT, images: InspectedImages, display: Display) -> dict[str, Any]:
        """The content of inspect.json, except for the model; see docs/inspect.md.

        Args:
            model: in eval mode, its blocks not compiled.

        Raises:
            ValueError: too few images can be decoded.
        """
        gathered = Gathered(model, len(self.settings))
        with Bar(display.console, "images", min(images.count, len(images.headers)), transient=True) as bar:
            for shown in images.minibatches(self.settings, self.minibatch):
                gathered.add(model, shown, self.autocast)
                bar.update(len(gathered.labels))
        count = len(gathered.labels)
        if count < LEAST_ROWS:
            why = f": {images.skipped[-1]['reason']}" if images.skipped else ""
            raise ValueError(f"{count} images can be decoded, and CKA needs {LEAST_ROWS}{why}")
        agreement = find_agreement(gathered.features, gathered.labels, self.neighbours)
        return {
            "images": count,
            "loss": self.loss,
            "settings": self._settings(model, gathered),
            "cka": {"pooled": by_place(gathered.pooled), "tokens": by_place(gathered.tokens)},
            "knn": {
                "neighbours": agreement.neighbours,
                "accuracy": agreement.accuracy.tolist(),
                "mode_switch": agreement.mode_switch,
            },
            "ensembles": self._ensembles(model, gathered),
            "attention": ATTENTION[model.config.pool],
            "skipped": images.skipped,
        }

    def look(self, model: PackedViT, images: InspectedImages) -> list[Looked]:
        """Attention and tokens of the first images that can be decoded."""
        looked = []
        for header in images.headers:
            if len(looked) == self.pictures:
                break
            try:
                pixels = images.pixels(header)
            except (BadSample, BadShard):
                continue  # the run over all images has named it
            looks = []
            for setting in self.settings:
                image = show_at(pixels, setting, header.key)
                batch = PackedBatch.build([[image]], len(image.coords))
                looks.append(look_at(model, batch.to(model.patch_embed.weight.device)))
            looked.append(Looked(header.key, pixels, looks))
        return looked

    def _settings(self, model: PackedViT, gathered: Gathered) -> list[dict[str, Any]]:
        """A row for each setting: what it is, costs and, where the model has a head, gets right."""
        rows = []
        right = gathered.logits.argmax(-1) == gathered.labels  # [S, N]
        costs = zip(gathered.tokens_per_image, gathered.gflops_per_image, strict=True)
        for setting, (tokens, gflops), answers in zip(self.settings, costs, right, strict=True):
            row = {
                "setting": setting.name,
                "resolution": round(setting.side),
                "patch_size": setting.patch_size,
                "tokens_per_image": tokens,
                "gflops_per_image": gflops,
            }
            if model.head is not None:
                row |= as_fields("accuracy", accuracy(answers))
            rows.append(row)
        return rows

    def _ensembles(self, model: PackedViT, gathered: Gathered) -> dict[str, Any] | None:
        """None for a model without a head."""
        if model.head is None:
            return None
        labels, gflops = gathered.labels, gathered.gflops_per_image
        return compare_ensembles(gathered.logits, labels, gflops, self.names, self.loss)


def by_place(accumulators: Mapping[str, MinibatchCKA]) -> dict[str, list[list[float]]]:
    """CKA between all settings by place in the model: [S][S] each."""
    return {name: cka.result().tolist() for name, cka in accumulators.items()}
