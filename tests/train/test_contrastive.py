"""Contrastive training: the loss of a whole step, what may be frozen, what a run leaves, what it refuses."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import ALONE
from packvit.data import LoadedBatch, pack_images
from packvit.models import (
    PackedText,
    PackedViT,
    TextConfig,
    TextTower,
    ViTConfig,
    load_model,
    load_tokenizer,
    load_two_towers,
    save_model,
    save_two_towers,
    train_tokenizer,
)
from packvit.packing import PackedBatch
from packvit.train.config import Config, TrainConfig, load_config
from packvit.train.recipes.find import find_recipe, start_with
from packvit.train.step.interface import StepBatches
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.config import ContrastiveConfig
from packvit.train.tasks.contrastive import Contrastive
from packvit.train.tasks.contrastive_loss import contrastive_losses
from packvit.train.tasks.start import make_module

WORDS = ("red", "green", "blue", "cat", "dog")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    texts = [f"a {one} {two} and {three}" for one in WORDS for two in WORDS for three in WORDS]
    return train_tokenizer(texts, 40).save(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def config(tokenizer, tmp_path) -> Config:
    return Config(
        run_dir=tmp_path / "run",
        model=ViTConfig(width=16, depth=2, heads=2, num_classes=0, patch_buffer=8, drop_path=0.4),
        text=TextConfig(width=24, depth=1, heads=2, vocab_size=40, max_tokens=8),
        contrastive=ContrastiveConfig(loss="softmax", tokenizer=str(tokenizer)),
        optim=OptimConfig(warmup=0),
        train=TrainConfig(steps=2),
    )


def make_engine(config: Config) -> tuple[Engine, Contrastive]:
    task = Contrastive(config)
    module = make_module(config, task)
    for name, parameter in module.named_parameters():
        if "logits" not in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    engine = Engine(module, config.train, config.optim, ALONE, config.seed)
    task.prepare(engine)
    return engine, task


def make_batch(images: int, seed: int = 0) -> PackedBatch:
    """Random pictures of several sizes with random texts."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, (images, 2)) * 8
    pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    batch = pack_images(pixels, patch_size=8) if images else PackedBatch.build([[]], 8)
    texts = [rng.integers(3, 40, rng.integers(1, 8)).tolist() for _ in range(images)]
    return replace(batch, targets={"caption": PackedText.build(texts)})


def step_of(*batches: PackedBatch) -> StepBatches:
    images = sum(batch.num_images for batch in batches)
    return StepBatches([LoadedBatch(batch, batch.facts()) for batch in batches], images)


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None}
    engine.module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", [(3, 4), (1, 0, 5)])
def test_accumulated_batches_have_the_gradient_of_all_their_pairs_at_once(config, kind, sizes):
    """With the same random numbers: images skip branches."""
    config = replace(config, contrastive=replace(config.contrastive, loss=kind))
    engine, task = make_engine(config)
    batches = [make_batch(size, seed) for seed, size in enumerate(sizes)]
    torch.manual_seed(5)
    losses = task.backward(engine, step_of(*batches))
    found = gradients(engine)
    assert found.keys() == {name for name, _ in engine.module.named_parameters()}
    torch.manual_seed(5)
    seen = [engine.forward(batch) for batch in batches]
    images, texts = (torch.cat([part[place] for part in seen]) for place in (0, 1))
    loss, expected = contrastive_losses(images, texts, *seen[0][2:], kind=kind)
    loss.backward()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(losses.mean(), loss.detach())
    for name, gradient in gradients(engine).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_one_batch_is_embedded_once_and_several_twice(config):
    engine, task = make_engine(config)
    calls = []
    engine.module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    train_step(engine, task, step_of(make_batch(3)), 0)
    assert calls == [True]
    calls.clear()
    train_step(engine, task, step_of(make_batch(3), make_batch(2, 1)), 1)
    assert calls == [False, False, True, True]


def test_a_frozen_image_tower_stays_as_it_is_and_runs_without_a_gradient_and_once(config):
    engine, task = make_engine(replace(config, optim=replace(config.optim, freeze=("body",))))
    assert not engine.model.training  # no branch is skipped
    before = {name: p.clone() for name, p in engine.module.named_parameters()}
    tracked = []
    engine.model.register_forward_hook(lambda _, __, output: tracked.append(output.requires_grad))
    train_step(engine, task, step_of(make_batch(3), make_batch(4, 1)), 0)
    assert tracked == [False, False]
    changed = {name for name, p in engine.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith(("text.", "logits.")) for name in changed)


def test_one_pair_alone_has_no_softmax_loss(config):
    engine, task = make_engine(config)
    result = train_step(engine, task, step_of(make_batch(1)), 0)
    assert result.losses.abs().max() < 1e-6
    assert result.grad_norm < 1e-5


@pytest.mark.filterwarnings("ignore:::torch", "ignore:The .grad attribute")
def test_both_towers_and_their_averages_are_compiled_and_take_the_same_step(config, monkeypatch):
    compiled, results = [], {}
    for tower in (PackedViT, TextTower):

        def compile_blocks(self, really=tower.compile_blocks) -> None:
            compiled.append(type(self))
            really(self, "eager")

        monkeypatch.setattr(tower, "compile_blocks", compile_blocks)
    for wish in ("off", "on"):
        engine, task = make_engine(replace(config, train=replace(config.train, compile=wish, ema=0.5)))
        results[wish] = train_step(engine, task, step_of(make_batch(3), make_batch(4, 1)), 0)
    assert sorted(each.__name__ for each in compiled) == ["PackedViT"] * 2 + ["TextTower"] * 2
    torch.testing.assert_close(results["on"].losses, results["off"].losses)
    torch.testing.assert_close(results["on"].grad_norm, results["off"].grad_norm)
    torch._dynamo.reset()


def test_both_towers_have_a_moving_average_which_is_what_is_saved(config, tmp_path):
    engine, task = make_engine(replace(config, train=replace(config.train, ema=0.5)))
    names = [name for name, _ in engine.module.named_parameters()]
    expected = [parameter.clone() for parameter in engine.module.parameters()]
    for number in range(3):
        train_step(engine, task, step_of(make_batch(3, number), make_batch(2)), number)
        decay = min(0.5, (1 + number) / (10 + number))
        pairs = zip(expected, engine.module.parameters(), strict=True)
        expected = [decay * old + (1 - decay) * new for old, new in pairs]
    engine.module.save(engine.whole(), engine.whole_heads(), tmp_path / "saved")
    saved = load_two_towers(tmp_path / "saved").state_dict()
    assert {name.replace("model.", "image.", 1) for name in names} == saved.keys()
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(saved[name.replace("model.", "image.", 1)], value, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {"logits_field": "logits.npy"}}, "two tasks"),
        ({"text": {"vocab_size": 20}}, "the tokeniser has .* it belongs to another model"),
        ({"text": {"embed_dim": 5}}, "images are embedded in 16 .* texts in 5"),
        ({"contrastive": {"tokenizer": "none.model"}}, "there is no tokeniser at none.model"),
        ({"contrastive": {"captions": "TXT"}}, "lower case"),
    ],
)
def test_what_it_cannot_do_is_refused(config, changes, message):
    for section, fields in changes.items():
        config = replace(config, **{section: replace(getattr(config, section), **fields)})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Contrastive(config)


# ---- Runs -----------------------------------------------------------------------------------------------


def flags(run_dir: Path, scenes: Path, *more: str) -> list[str]:
    fields = f"""
        --run-dir {run_dir} --data.shards {scenes / "train"} --data.workers 0 --data.streams 2
        --views.patch-sizes 16 --packing.seq-len 32 --packing.sequences 1 --packing.lookahead 8
        --model.width 32 --model.depth 1 --model.heads 2 --model.num-classes 0
        --text.width 16 --text.depth 1 --text.heads 2 --text.vocab-size 60 --text.max-tokens 12
        --contrastive.loss sigmoid --train.ema 0 --train.precision fp32 --optim.kind adamw
        --train.steps 4 --train.log-every 1 --train.checkpoint-every 2 --optim.warmup 1
    """
    return ["digits", *fields.split(), *more]


@pytest.fixture(scope="session")
def finished(scenes_set, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "clip"
    assert dispatch(["train", *flags(run_dir, scenes_set, "--train.accumulate", "2", *val(scenes_set))]) == 0
    return run_dir


def val(scenes: Path) -> list[str]:
    settings = "--eval.resolutions 24 40 --eval.no-cost --eval.every 2"
    return ["--data.val-shards", str(scenes / "held_out"), *settings.split()]


def check_evaluation(run: Path, tmp_path: Path) -> None:
    """The run has ended with what `packvit eval` says of it."""
    sizes = ["--seq-len", "32", "--sequences", "8", "--precision", "fp32", "--device", "cpu", "--no-cost"]
    assert dispatch(["eval", str(run), *sizes, "--out", str(tmp_path)]) == 0
    table = (tmp_path / "results.csv").read_text()
    assert "image_to_text_r1" in table
    assert (run / "eval/results.csv").read_text() == table


def test_a_run_ends_with_what_eval_says_of_it(finished, tmp_path):
    check_evaluation(finished, tmp_path)


def test_validation_is_by_retrieval_and_keeps_both_towers(finished):
    found = [
        line["validation"] for line in read_json_lines(finished / "metrics.jsonl") if "validation" in line
    ]
    assert len(found) == 2
    assert all(0 <= part["image_to_text_r1"] <= 1 for part in found)
    assert load_two_towers(finished / "best").config == load_two_towers(finished).config


@pytest.mark.slow
def test_sharded_towers_are_evaluated_as_whole_ones(scenes_set, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = flags(tmp_path / "run", scenes_set, "--train.parallel", "fsdp", *val(scenes_set))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, "-m", "packvit.train", *run], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    check_evaluation(tmp_path / "run", tmp_path / "eval")


def test_a_run_leaves_both_towers_and_their_tokenizer(finished):
    towers, tokenizer = load_two_towers(finished), load_tokenizer(finished)
    config = load_config(finished / "config.yaml")
    assert towers.config.text == replace(config.text, embed_dim=32)
    assert tokenizer.vocab_size <= 60
    image = load_model(finished)
    assert image.config == config.model
    assert all(torch.equal(t, towers.image.get_parameter(n)) for n, t in image.named_parameters())
    started = towers.logits()
    assert abs(started[0] - 10) > 1e-6  # they have learned
    assert started[1] != -10
    lines = read_json_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 and line["texts_cut"] > 0 for line in lines)
    assert len(tokenizer.encode("on the left is a 3, small and red")) > 3


def test_a_resumed_run_is_one_that_was_never_stopped(scenes_set, tmp_path):
    """With a moving average, which the model is."""
    more = ["--train.accumulate", "2", "--optim.schedule", "constant", "--train.ema", "0.5"]
    run = partial(flags, tmp_path / "run", scenes_set, *more)
    assert dispatch(["train", *run(), "--train.steps", "2"]) == 0
    assert dispatch(["train", *run()]) == 0
    assert dispatch(["train", *flags(tmp_path / "whole", scenes_set, *more)]) == 0
    one, two = (load_two_towers(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    same = [(tmp_path / name / "tokenizer.model").read_bytes() for name in ("run", "whole")]
    assert same[0] == same[1]
    checkpoint = load_two_towers(tmp_path / "run/checkpoints/step-00000004").state_dict()
    assert all(torch.equal(tensor, one[name]) for name, tensor in checkpoint.items())
    assert load_tokenizer(tmp_path / "run/checkpoints/step-00000004").vocab_size <= 60


def test_lit_learns_texts_for_a_model_that_stays_as_it_is(scenes_set, tmp_path):
    """The model is a classifier; what is frozen are its features."""
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10, patch_buffer=16))
    save_model(model, tmp_path / "model")
    more = ["--model", str(tmp_path / "model"), "--optim.freeze", "body"]
    given = [flag for flag in flags(tmp_path / "run", scenes_set) if flag]
    start = given.index("--model.width")
    del given[start : start + 8]
    assert dispatch(["train", *given, "--model.num-classes", "0", *more]) == 0
    towers = load_two_towers(tmp_path / "run")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in towers.image.state_dict().items())


def test_a_run_starts_with_both_towers_their_scale_and_their_tokenizer(finished, tmp_path):
    """Of a run of the sigmoid loss; the softmax loss has no bias."""
    for loss in ("sigmoid", "softmax"):
        recipe = replace(find_recipe("scenes"), run_dir=tmp_path / loss)
        recipe = replace(recipe, contrastive=replace(recipe.contrastive, loss=loss))
        config = start_with(recipe, str(finished))
        assert config.text == load_two_towers(finished).config.text
        task = Contrastive(config)
        assert task.found.tokenizer.encode("red 3") == load_tokenizer(finished).encode("red 3")
        module = make_module(config, task)
        expected = load_two_towers(finished).state_dict()
        found = {name.replace("model.", "image.", 1): p for name, p in module.named_parameters()}
        assert expected.keys() - found.keys() == ({"logits.b"} if loss == "softmax" else set())
        assert all(torch.equal(parameter, expected[name]) for name, parameter in found.items())
        image, text, embeddings, tokenizer = module.describe()
        assert re.fullmatch(r"Image tower: ViT of width 32, depth 1, [\d,]+ parameters", image)
        assert re.fullmatch(r"Text tower: width 16, .*texts of at most 12 tokens, from .*/clip", text)
        assert embeddings == "Embeddings: 32 channels"
        assert tokenizer.startswith(f"Tokeniser: from {finished / 'tokenizer.model'}, ")


def test_another_text_tower_or_one_without_its_tokenizer_is_no_start(finished, tokenizer, tmp_path):
    start = save_two_towers(load_two_towers(finished), tmp_path / "start")
    config = replace(start_with(find_recipe("scenes"), str(start)), run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"has a text tower, and no tokeniser beside it: name its own"):
        Contrastive(config)
    config = replace(config, contrastive=replace(config.contrastive, tokenizer=str(tokenizer)))
    other = replace(config, text=replace(config.text, max_tokens=9, depth=3))
    with pytest.raises(ValueError, match=r"its text\.\* fields are depth=1, not 3, max_tokens=12, not 9"):
        make_module(other, Contrastive(other))
    make_module(config, Contrastive(config))


def test_samples_without_captions_are_bad_and_named(scenes_set, tmp_path, capsys):
    assert dispatch(["train", *flags(tmp_path, scenes_set, "--contrastive.captions", "json:text")]) == 2
    assert "no sample of data.shards has a caption in json:text" in capsys.readouterr().err


def test_validation_without_captions_is_refused_before_training(scenes_set, digits_set, tmp_path, capsys):
    digits = ["--data.val-shards", str(digits_set / "val")]
    assert dispatch(["train", *flags(tmp_path, scenes_set, *digits)]) == 2
    assert "no usable image in 1 shards" in (error := capsys.readouterr().err)
    assert "it has no .txt" in error
