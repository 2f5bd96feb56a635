"""Predictions of one model for any images, at one setting or along a cascade of settings.

Images of all sizes are packed into batches with a limited number of tokens, without padding. At most one
batch is on the device and one more is decoded ahead, so memory does not grow with the number of images.
"""

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from pathlib import Path

from packvit.common.ranks import find_ranks
from packvit.evaluate.checks import check_settings, mean_tokens
from packvit.evaluate.loss import loss_kind
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.plan.plan import Plan, Stage
from packvit.evaluate.predict.answer import Asked, answer, is_unsure
from packvit.evaluate.predict.choose import Choice, Wish, choose, for_labels, stages_of_plan
from packvit.evaluate.predict.heads import Head, OwnHead, TextHead
from packvit.evaluate.predict.known import find_classes, read_results
from packvit.evaluate.predict.prediction import Prediction
from packvit.evaluate.predict.read import Break, Source, in_order, read_view
from packvit.models import (
    AS_IT_IS,
    PackedViT,
    Tokenizer,
    TwoTowers,
    find_own_tokenizer,
    has_text_tower,
    hash_model,
    load_model,
    load_tokenizer,
    load_two_towers,
    local_model,
)
from packvit.packing import PackedImage, check_list, check_source

MOST_IMAGES = 1024  # of a batch, and decoded ahead of one
WINDOW = 2048  # images that a cascade takes from its first stage to its last before it begins with the next


@dataclass(eq=False)
class Predictor:
    """A model and how it is run; callable on a list of images, from any number of threads.

    Without plan, resolution and tokens, it uses the most accurate setting of the evaluation in the run's
    folder, or one that fits the model's own shapes; `choice.why` says which.

    Args:
        model: a PackedViT or TwoTowers, which is put in eval mode, or a path that load_model reads.
        plan: a plan for this model, or its file; excludes the next four.
        resolution, patch_size, tokens, protocol: as in Setting.
        top: number of classes in an answer.
        features: whether answers have the model's features or, for two towers, the images' embeddings.
        device: auto uses a GPU if there is one; a model in memory stays on its device.
        precision: precision of matrix products: bf16, fp32, or auto, which is bf16 on CUDA and fp32 on a CPU.
        loss: the loss that the model was trained with, softmax or sigmoid; None: that of the run's
            configuration, or according to the bias of two towers' logits, or softmax.
        batch_tokens: maximum number of tokens in a batch, unless a single image has more.
        workers: threads that decode; 0 decodes in the caller's thread. None: one for each core, at most 16.
        labels: texts that two towers, for images and for texts, choose from.
        templates: texts with `{}` in place of a label; a class is the mean of all its prompts.
        tokenizer: tokeniser of two towers, or its file; None: the one beside their weights.

    Attributes:
        vit: the model, or its image tower.
        choice: the stages that are run, and why.
        classes: names of the classes, or None.
        head: turns the model's outputs into classes.

    Raises:
        ValueError: the plan is for another model, the setting is impossible or beyond all memory, there is
            nothing to predict, or labels are given to a model that takes none.
        FileNotFoundError, ImportError: see load_model.
    """

    model: InitVar[PackedViT | TwoTowers | str | Path]
    plan: InitVar[Plan | str | Path | None] = None
    resolution: InitVar[int | None] = None
    patch_size: InitVar[int | None] = None
    tokens: InitVar[int | None] = None
    protocol: InitVar[str | None] = None
    top: int = 5
    features: bool = False
    device: InitVar[str] = "auto"
    precision: str = "auto"
    loss: LossKind | None = None
    batch_tokens: int = 8192
    workers: int | None = None
    labels: Sequence[str] = ()
    templates: Sequence[str] = AS_IT_IS
    tokenizer: Tokenizer | str | Path | None = None
    vit: PackedViT = field(init=False)
    head: Head = field(init=False)
    choice: Choice = field(init=False)
    classes: tuple[str, ...] | None = field(init=False, default=None)

    def __post_init__(
        self,
        model: PackedViT | TwoTowers | str | Path,
        plan: Plan | str | Path | None,
        resolution: int | None,
        patch_size: int | None,
        tokens: int | None,
        protocol: str | None,
        device: str,
    ) -> None:
        self._check_values()
        wish = Wish(resolution, patch_size, tokens, protocol)
        if plan is not None and wish != Wish():
            raise ValueError("a plan sets the resolution, patch size, tokens and protocol: leave them out")
        folder = None
        if isinstance(model, PackedViT | TwoTowers):
            own = next(model.parameters()).device
            self._device = own if device == "auto" else find_ranks(device).device
        else:
            path = local_model(model)
            if path.exists():  # a model on a hub has no run here
                folder = path if path.is_dir() else path.parent
            self._device = find_ranks(device).device
            model = self._load(path)
        self._take(model.eval())
        self._choose(plan, wish, folder)
        settings = [stage.setting for stage in self.choice.stages]
        check_settings(self.vit.config, settings, self._device)
        self.vit.to(self._device)
        assert self.loss is not None
        self._asked = Asked(self.head, self.loss, self.top, self.features, self.precision, self.classes)
        self._one_batch = threading.Lock()

    def _load(self, path: Path) -> PackedViT | TwoTowers:
        """The model of a file, and the tokeniser beside it where labels need one."""
        if not has_text_tower(path):
            return load_model(path)
        if self.labels and self.tokenizer is None:
            found = find_own_tokenizer(path)
            self.tokenizer = found[0] if found else None
        return load_two_towers(path)

    def _take(self, model: PackedViT | TwoTowers) -> None:
        """Set the model and what reads its outputs."""
        if isinstance(model, TwoTowers):
            if not self.labels and not self.features:
                raise ValueError(
                    "the model has two towers, for images and for texts, and no classes of its own: give "
                    "labels to choose from, or ask for features"
                )
            self.vit = model.image
            if isinstance(self.tokenizer, str | Path):
                self.tokenizer = load_tokenizer(self.tokenizer)
            self.loss = self.loss or ("softmax" if model.config.bias is None else "sigmoid")
            towers = model.to(self._device)
            self.head = TextHead(towers, self.tokenizer, self.labels, self.templates, self.precision)
            return
        if self.labels:
            raise ValueError("the model has no text tower: only models of images and texts take labels")
        if model.config.num_classes == 0 and not self.features:
            raise ValueError("the model has no classification head: it can only give features")
        self.vit, self.head = model, OwnHead(model)

    def _check_values(self) -> None:
        for name, least in (("top", 1), ("batch_tokens", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if isinstance(self.labels, str) or isinstance(self.templates, str):
            raise ValueError("labels and templates must be lists, also of a single one")
        if self.loss not in (None, "softmax", "sigmoid"):
            raise ValueError(f"loss={self.loss!r} is neither softmax nor sigmoid")
        if self.workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.workers = min(16, cores)

    def _choose(self, plan: Plan | str | Path | None, wish: Wish, folder: Path | None) -> None:
        """Set the stages, the names of classes and the kind of loss."""
        config, own = self.vit.config, isinstance(self.head, OwnHead)
        results = read_results(folder, lambda: hash_model(self.vit)) if folder else None
        known = results.classes if results else None
        if plan is not None:
            plan, self.choice = stages_of_plan(plan, self.vit, config.num_classes if own else None)
            self.classes = known = plan.classes
        else:
            self.choice = choose(wish, config, results)
        if len(self.choice.stages) > 1 and self.head.num_classes == 0:
            raise ValueError("the model has no classification head, so a cascade has no confidence to use")
        if not own:
            self.classes = self.head.names
            self.choice = for_labels(self.choice, self.labels, known)
        elif folder is not None and self.classes is None:
            fits = known is not None and len(known) == config.num_classes
            self.classes = known if fits else find_classes(folder, config.num_classes)
        if self.loss is None:
            self.loss = (loss_kind(folder) if folder else None) or "softmax"

    def __call__(self, images: Iterable[Source]) -> list[Prediction]:
        """An answer for each image, in their order; of an image that cannot be used, its error.

        Args:
            images: any mix of what `pack_images` takes: arrays, tensors, PIL images, paths, and the bytes of
                files, of any sizes.

        Raises:
            ValueError: it is no list, or one of them is no image at all; names its place.
        """
        check_list(images)
        images = list(images)
        for index, image in enumerate(images):
            if not callable(image):
                check_source(image, f"images[{index}]")
        return list(self.stream(images))

    def stream(self, images: Iterable[Source | Break]) -> Generator[Prediction, None, None]:
        """Like a call, for any number of images that need not be in memory: an answer is yielded when its
        batch or, in a cascade, its window of images is done.

        Args:
            images: may also be functions that return the bytes of a file; a cascade calls them at each stage.
                Breaks may stand between them, and have no answers.
        """
        with self._decoders(images) as pool:
            if len(self.choice.stages) == 1:
                yield from self._stage(self.choice.stages[0], images, pool)
                return
            for window in cut_windows(images):
                yield from self._cascade(window, pool)

    @contextmanager
    def _decoders(self, images: Iterable[Source | Break]) -> Iterator[Executor | None]:
        """Threads that read and decode; none where there is one image, which they would only delay."""
        assert self.workers is not None
        if self.workers == 0 or (isinstance(images, Sequence) and len(images) < 2):
            yield None
            return
        pool = ThreadPoolExecutor(self.workers, "packvit-decode")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    def _cascade(self, window: Sequence[Source], pool: Executor | None) -> list[Prediction]:
        """The answers to some images; those whose best score is below a stage's threshold go to the next."""
        answers: list[Prediction] = [Prediction()] * len(window)
        going = list(range(len(window)))
        for stage in self.choice.stages:
            found = self._stage(stage, [window[i] for i in going], pool)
            for i, new in zip(going, found, strict=True):
                answers[i] = replace(new, tokens=new.tokens + answers[i].tokens)
            going = [i for i in going if is_unsure(answers[i], stage)]
        return answers

    def _stage(
        self, stage: Stage, images: Iterable[Source | Break], pool: Executor | None
    ) -> Iterator[Prediction]:
        """The answers to images at one setting, a batch at a time."""
        ahead = 1 + min(MOST_IMAGES, self.batch_tokens // mean_tokens(stage.setting))
        batch: list[PackedImage | str] = []
        tokens = 0
        for view in in_order(pool, partial(read_view, setting=stage.setting), images, ahead):
            more = view.num_tokens if isinstance(view, PackedImage) else 0
            is_full = len(batch) == MOST_IMAGES or (batch and tokens + more > self.batch_tokens)
            if is_full or isinstance(view, Break):
                yield from self._batch(batch, stage)
                batch, tokens = [], 0
            if not isinstance(view, Break):
                batch.append(view)
                tokens += more
        yield from self._batch(batch, stage)

    def _batch(self, views: Sequence[PackedImage | str], stage: Stage) -> Iterator[Prediction]:
        """The answers to the images of a batch, and the errors of those that could not be read."""
        good = [view for view in views if isinstance(view, PackedImage)]
        with self._one_batch:  # threads would need the memory of a batch each
            answers = iter(answer(self.vit, good, stage, self._asked) if good else ())
        for view in views:
            yield next(answers) if isinstance(view, PackedImage) else Prediction(error=view)


def cut_windows(images: Iterable[Source | Break]) -> Iterator[list[Source]]:
    """The images that a cascade takes from its first stage to its last at a time; none is empty."""
    window: list[Source] = []
    for image in images:
        if window and (len(window) == WINDOW or isinstance(image, Break)):
            yield window
            window = []
        if not isinstance(image, Break):
            window.append(image)
    if window:
        yield window
