"""Contrastive training: an image and its caption should be alike, and unlike all others of the step.

This is NaViT's second objective (arXiv 2307.06304, 2.3), and the only one of CLIP and SigLIP. The loss
compares all images of a step with all its texts, over all batches and ranks. If a step has several batches,
they are first embedded without a gradient; then the loss gives the gradient of each embedding, and each batch
is embedded again, with the same random numbers, to propagate it. So at most one batch's activations are in
memory.

With a completely frozen image tower this is LiT (arXiv 2111.07991): images are embedded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from packvit.data import CaptionTarget, EvalSet, LoadedBatch, ShardSet, Target, read_captions
from packvit.evaluate import (
    Evaluator,
    MakeEvaluator,
    SideCaptions,
    TextEmbedder,
    make_retrieval,
    read_set_captions,
)
from packvit.models import (
    LogitScale,
    PackedText,
    PackedViT,
    TextEncoder,
    TextTower,
    Tokenizer,
    TwoTowers,
    TwoTowersConfig,
    describe_model,
    describe_text_tower,
    find_own_tokenizer,
    has_text_tower,
    load_tokenizer,
    load_two_towers,
    save_two_towers,
    start_projection,
    train_tokenizer,
    unit,
)
from packvit.models.text.tokenizer import FILES, Tokens
from packvit.packing import PackedBatch
from packvit.train.config import Config
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.step import Engine
from packvit.train.tasks.contrastive_loss import contrastive_losses
from packvit.train.tasks.start import check_same


class Contrastive:
    """Two towers that learn from images and their captions; see Task.

    The softmax loss of a step with a single pair is zero, because there is nothing to compare it with.

    Raises:
        FileNotFoundError: there is no tokeniser at `contrastive.tokenizer`.
        ValueError: the configuration asks for what this task cannot do, the towers' widths differ, no sample
            has a caption, or the tokeniser belongs to another model.
    """

    teachers: tuple[tuple[int, int], ...] = ()

    def __init__(self, config: Config) -> None:
        refuse_others(config)
        self.config = config
        options = config.contrastive
        width = config.model.num_classes or config.model.feature_dim
        self.towers = TwoTowersConfig(
            image=config.model,
            text=replace(config.text, embed_dim=config.text.embed_dim or width),
            temperature=options.temperature,
            bias=options.bias if options.loss == "sigmoid" else None,
        )
        self.found = find_tokenizer(config)
        encode = TextEncoder(self.found.tokenizer, self.towers.text)
        self.targets: Mapping[str, Target] = {"caption": CaptionTarget(options.captions, encode, pack_tokens)}
        self.eval_targets: Mapping[str, Target] = {"caption": SideCaptions(options.captions)}
        self.evaluators: Sequence[MakeEvaluator] = (self.retrieval,)
        self.encode = encode
        self.frozen = False
        self.engine: Engine | None = None

    def initial(self) -> None:
        """See Task."""

    def build(self, model: PackedViT) -> TrainedModule:
        """See Task."""
        return Pairs(model, self.towers, self.found)

    def prepare(self, engine: Engine) -> None:
        """See Task; keeps the tokeniser in the run's folder."""
        self.engine = engine
        self.frozen = not any(parameter.requires_grad for parameter in engine.model.parameters())
        if self.frozen:
            engine.model.eval()
        folder = self.config.folder
        if engine.ranks.is_main and not any((folder / name).exists() for name in FILES):
            folder.mkdir(parents=True, exist_ok=True)
            self.found.tokenizer.save(folder)

    def retrieval(self, images: EvalSet) -> Evaluator:
        """The evaluator of the trained towers: retrieval of captions and images."""
        assert self.engine is not None
        ranks, options = self.engine.ranks, self.config
        with torch.device(ranks.device):
            tower = TextTower(self.towers.text)
        tower.load_state_dict(self.engine.whole_heads()[0])
        tokens = options.packing.seq_len * options.eval.sequences
        embed = TextEmbedder(tower.eval(), self.encode, ranks, options.train.precision, tokens)
        return make_retrieval(embed, read_set_captions(images, options.contrastive.captions))

    def flops(self, loaded: LoadedBatch, depth: int | None = None) -> int:
        """See Task."""
        text = captions_of(loaded.batch)
        # A backward pass costs two forward passes, and embedding first is one more.
        passes = 3 + (self.config.train.accumulate > 1)
        image = self.config.model.batch_flops(loaded.batch, depth) * (1 if self.frozen else passes)
        return image + passes * self.towers.text.flops(text.num_texts, len(text.ids), text.squares)

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """See Task."""
        batches = [loaded.to(engine.ranks.device).batch for loaded in step.batches]
        if len(batches) > 1:
            return self._embed_and_replay(engine, batches)
        with engine.sharing(last=True):
            with engine.autocast:
                embedded = engine.forward(batches[0])
            loss, losses = self.loss(*embedded)
            engine.backward(loss, 1)
        return losses

    def _embed_and_replay(self, engine: Engine, batches: Sequence[PackedBatch]) -> Tensor:
        """The gradient of a loss over several batches, with the activations of one at a time."""
        device = engine.ranks.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), engine.autocast:
            seen = [engine.forward(batch) for batch in batches]
        images, texts, scales, biases = zip(*seen, strict=True)
        leaves = [torch.cat(images), torch.cat(texts), scales[0].clone(), biases[0].clone()]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        loss, losses = self.loss(*leaves)
        # The scaler of half precision scales what is carried on below.
        by_image, by_text, by_scale, by_bias = torch.autograd.grad(loss, leaves)
        sizes = [len(text) for text in texts]
        parts = zip(batches, images, by_image.split(sizes), by_text.split(sizes), strict=True)
        for number, (batch, image, image_part, text_part) in enumerate(parts):
            with engine.sharing(last=number + 1 == len(batches)):
                with engine.autocast:
                    again, text, scale, bias = engine.forward(batch, image if self.frozen else None)
                carried = (again * image_part).sum() + (text * text_part).sum()
                carried = carried + ((scale * by_scale).sum() + (bias * by_bias).sum()) / len(batches)
                engine.backward(carried, 1)
        return losses

    def loss(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of all ranks' pairs, and the part of each of this rank's, [N]."""
        options = self.config.contrastive
        assert options.loss
        return contrastive_losses(image, text, scale, bias, options.loss, options.chunk or None)


class Pairs(TrainedModule):
    """An image tower, which is the model, with a text tower and the scale of their logits."""

    def __init__(self, model: PackedViT, config: TwoTowersConfig, found: "FoundTokenizer") -> None:
        super().__init__(model)
        start_projection(model)
        self.config, self.found = config, found
        self.text_start = ""
        self.text = TextTower(config.text)
        self.logits = LogitScale(config.temperature, config.bias)

    def heads(self) -> list[nn.Module]:
        """The text tower, and the scale and bias of the logits."""
        return [self.text, self.logits]

    def forward(self, batch: PackedBatch, image: Tensor | None = None) -> tuple[Tensor, ...]:
        """Embeddings of images and of their captions, [N, E] of length 1, and the logits' scale and bias.

        Args:
            image: the images' embeddings, if they are already known.
        """
        image = unit(self.model(batch)) if image is None else image
        return image, unit(self.text(captions_of(batch))), *self.logits()

    @torch.no_grad()
    def start_heads(self, path: Path) -> None:
        """See TrainedModule; a model of two towers has the text tower, the scale and the bias as well."""
        if not has_text_tower(path):
            return
        other = load_two_towers(path).float()
        check_same(self.text.config, other.text.config, "text", str(path))
        self.text.load_state_dict(other.text.state_dict())
        self.logits.t.copy_(other.logits.t)
        self.text_start = f", from {path}"
        if self.logits.b is not None and other.logits.b is not None:
            self.logits.b.copy_(other.logits.b)

    def describe(self) -> list[str]:
        """See TrainedModule."""
        tokenizer, source = self.found
        frozen = "" if any(p.requires_grad for p in self.model.parameters()) else ", frozen"
        return [
            f"Image tower: {describe_model(self.model)}{frozen}",
            f"Text tower: {describe_text_tower(self.text)}{self.text_start}",
            f"Embeddings: {self.config.embed_dim} channels",
            f"Tokeniser: {source}, {tokenizer.vocab_size:,} tokens",
        ]

    def save(self, model: PackedViT, heads: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """See TrainedModule; both towers and the tokeniser."""
        with torch.device("meta"):
            towers = TwoTowers(self.config)
        parts = (towers.image, towers.text, towers.logits)
        for part, state in zip(parts, (model.state_dict(), *heads), strict=True):
            part.load_state_dict(state, assign=True)
        save_two_towers(towers, folder)
        self.found.tokenizer.save(folder)


def captions_of(batch: PackedBatch) -> PackedText:
    """The captions of a batch."""
    text = batch.targets["caption"]
    assert isinstance(text, PackedText)
    return text


def pack_tokens(texts: Sequence[Tokens]) -> PackedText:
    """The captions of a batch."""
    return PackedText.build([text.ids for text in texts], sum(text.cut for text in texts))


class FoundTokenizer(NamedTuple):
    """A tokeniser, and where it comes from, in a few words."""

    tokenizer: Tokenizer
    source: str


def find_tokenizer(config: Config) -> FoundTokenizer:
    """The run's tokeniser: the one in its folder, the configured one, that of the text tower that it starts
    with, or a new one.

    Every rank trains the same new tokeniser.

    Raises:
        FileNotFoundError, ImportError, ValueError: there is none, or it cannot be read or trained.
    """
    options, init = config.contrastive, config.train.init
    if any((config.folder / name).exists() for name in FILES):
        return FoundTokenizer(load_tokenizer(config.folder), f"kept in {config.folder}")
    if options.tokenizer:
        return FoundTokenizer(load_tokenizer(options.tokenizer), f"from {options.tokenizer}")
    if init and has_text_tower(init):
        found = find_own_tokenizer(init)
        if found is None:
            raise ValueError(
                f"{init} has a text tower, and no tokeniser beside it: name its own, contrastive.tokenizer"
            )
        return FoundTokenizer(found[0], f"from {found[1]}")
    shards = ShardSet.find(config.data.shards, config.data.fetch)
    captions = read_captions(shards, CaptionTarget(options.captions), options.tokenizer_captions)
    if not captions:
        raise ValueError(
            f"contrastive.captions: no sample of data.shards has a caption in {options.captions}"
        )
    trained = train_tokenizer(captions, config.text.vocab_size)
    return FoundTokenizer(trained, f"new, trained on {len(captions):,} captions")


def refuse_others(config: Config) -> None:
    """Refuse fields that are incompatible with two towers.

    Raises:
        ValueError: names the field.
    """
    if config.data.mix.active:
        raise ValueError("contrastive.loss: a mixed image has no caption: set data.mix.probability=0")
    if config.distill.active:
        raise ValueError("contrastive.loss and distill.* are two tasks: give one")
