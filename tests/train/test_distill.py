"""Distillation: what teachers are shown, what is compared, and that a distilling run resumes."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import Ranks
from packvit.data import (
    BadSample,
    DataConfig,
    DataPlan,
    LoadedBatch,
    LogitsTarget,
    Shard,
    TrainLoader,
    write_shards,
    write_with_logits,
)
from packvit.data.make.write import Sample
from packvit.data.samples.targets import collate_targets
from packvit.models import PackedViT, ViTConfig, load_model, save_model
from packvit.models.position.embedding import Places
from packvit.packing import DropConfig, PackedBatch, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.interface import StepBatches
from packvit.train.step.step import Engine
from packvit.train.tasks.config import DistillConfig
from packvit.train.tasks.distillation import Distillation, distillation_loss, image_means, sample_tokens
from packvit.train.tasks.make import make_task
from packvit.train.tasks.start import make_module, start_from

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = ViTConfig(width=32, depth=2, heads=2, num_classes=10, patch_buffer=16, pos_grid=(4, 4))
VIEWS = ViewsConfig((8,), resolution=ResolutionConfig(32, 32), crop=0.5, flip=0.5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A random model that is sure of its answers."""
    return random_teacher(tmp_path_factory.mktemp("teacher"), MODEL, seed=1)


def random_teacher(folder: Path, config: ViTConfig, seed: int) -> str:
    torch.manual_seed(seed)
    model = PackedViT(config)
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight, std=0.3)
    return str(save_model(model, folder))


def make_config(digits_set: Path, distill: DistillConfig, **changes: Any) -> Config:
    data = DataConfig((str(digits_set / "train"),), workers=0, streams=4)
    fields: dict[str, Any] = {"data": data, "views": VIEWS, "model": MODEL} | changes
    return Config(
        packing=PackingConfig(seq_len=64, sequences=4, lookahead=16, balance=1),
        distill=distill,
        **fields,
    )


class Run:
    """The part of the loop that makes a loss, and its gradient."""

    def __init__(self, config: Config) -> None:
        self.task = make_task(config)
        module = make_module(config, self.task)
        self.engine = Engine(module, config.train, config.optim, ALONE, config.seed)
        self.task.prepare(self.engine)
        targets, teachers = self.task.targets, self.task.teachers
        plan = DataPlan(config.data, config.views, config.packing, 0, targets, teachers)
        self.loaded = next(iter(TrainLoader(plan)))

    @property
    def teachers(self) -> list[PackedViT]:
        """The models that the student imitates."""
        assert isinstance(self.task, Distillation)
        return self.task.models

    def losses(self) -> torch.Tensor:
        """Of each image; their mean's gradient is added to the parameters'."""
        step = StepBatches([self.loaded], images=self.loaded.batch.num_images)
        return self.task.backward(self.engine, step)

    def loss(self) -> torch.Tensor:
        """Mean over images."""
        return self.losses().mean()


def test_a_student_starts_as_its_teacher_and_differs_at_other_patch_sizes(digits_set, teacher):
    distill = DistillConfig((teacher,), (8,), (32,), init=True)
    assert Run(make_config(digits_set, distill)).loss().abs() < 1e-6
    dropped = replace(VIEWS, drop=DropConfig("constant", 0.5))
    assert Run(make_config(digits_set, distill, views=dropped)).loss() > 1e-3
    # Two patch sizes in one batch: images of the teacher's have no loss, the others have.
    mixed = replace(VIEWS, patch_sizes=(8, 4), resolution=ResolutionConfig(32, 32))
    run = Run(make_config(digits_set, distill, views=mixed))
    with torch.no_grad():
        logits = run.engine.forward(run.loaded.batch).logits
        answer = load_model(teacher)(run.loaded.teachers[0])
    losses = [distillation_loss(a, b) for a, b in zip(logits.split(1), answer.split(1), strict=True)]
    sizes = run.loaded.batch.patch_sizes.tolist()
    assert set(sizes) == {4, 8}
    for p, loss in zip(sizes, losses, strict=True):
        assert loss.abs() < 1e-6 if p == 8 else loss > 1e-3
    torch.testing.assert_close(run.loss(), torch.cat(losses).mean())


def test_teachers_and_labels_add(digits_set, teacher, tmp_path):
    other = random_teacher(tmp_path, replace(MODEL, width=16, depth=1), seed=2)

    def loss(**fields: Any) -> torch.Tensor:
        return Run(make_config(digits_set, DistillConfig(**fields))).loss()

    one = loss(teachers=(teacher,), patch_sizes=(8,), resolutions=(32,))
    two = loss(teachers=(other,), patch_sizes=(4,), resolutions=(24,))
    both = {"teachers": (teacher, other), "patch_sizes": (8, 4), "resolutions": (32, 24)}
    torch.testing.assert_close(loss(**both), one + two)
    labels = loss()
    torch.testing.assert_close(loss(**both, label_weight=0.5), one + two + 0.5 * labels)


def test_the_temperature_flattens_both_and_keeps_the_size_of_the_gradient():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    p = (teacher / 3).softmax(1)
    expected = 9 * (p * (p.log() - (student / 3).log_softmax(1))).sum(1)
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)


@pytest.mark.parametrize("measure", ["cosine", "smooth_l1"])
def test_features_and_tokens_match_at_the_start_and_gradients_reach_only_the_student(
    digits_set, teacher, measure, tmp_path
):
    inside: dict[str, Any] = {
        "feature_weight": 1.0,
        "token_weight": 1.0,
        "logits_weight": 0.0,
        "measure": measure,
    }
    distill = DistillConfig((teacher,), (8,), (32,), init=True, **inside)
    run = Run(make_config(digits_set, distill))
    assert run.loss().abs() < 1e-6
    assert not run.engine.module.heads()
    wide = random_teacher(tmp_path, replace(MODEL, width=48, num_classes=3), seed=2)
    run = Run(make_config(digits_set, DistillConfig((wide, teacher), (4, 8), (32, 32), **inside)))
    assert len(run.engine.module.heads()) == 2
    stepped = {p for group in run.engine.optimizers[0].param_groups for p in group["params"]}
    assert stepped == set(run.engine.module.parameters())
    run.losses()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.engine.module.parameters())
    assert all(p.grad is None for model in run.teachers for p in model.parameters())


def test_dense_maps_are_read_at_the_centres_of_the_students_patches(cut_image):
    """Against a loop over patches, with F.grid_sample as the bilinear reading."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape, np.uint8) for shape in ((16, 32, 3), (24, 16, 3), (8, 8, 3))]
    keeps = ([0, 3, 6], None, [0])
    own = [cut_image(image, 8, keep) for image, keep in zip(pixels, keeps, strict=True)]
    theirs = [cut_image(pixels[i], p) for i, p in ((0, 4), (1, 8), (2, 8))]
    batch = PackedBatch.build([[own[0]], [own[1], own[2]]], 9)
    view = PackedBatch.build([[theirs[2], theirs[0]], [theirs[1]]], 40, [2, 0, 1])
    tokens = torch.randn(view.num_slots, 5, generator=torch.Generator().manual_seed(0))
    read = sample_tokens(tokens, view, batch)
    for slot, image in enumerate(batch.image_index.tolist()):
        if image >= 0:
            grid = tokens[view.image_index == image].unflatten(0, tuple(view.grids[image].tolist()))
            centre = (batch.coords[slot].flip(0) + 0.5) / batch.grids[image].flip(0) * 2 - 1
            expected = F.grid_sample(
                grid.movedim(-1, 0)[None],
                centre[None, None, None],
                padding_mode="border",
                align_corners=False,
            )
            torch.testing.assert_close(read[slot], expected.flatten())
    assert read.isfinite().all()
    means = image_means(read[:, 0], batch)
    for image, mean in enumerate(means):
        torch.testing.assert_close(mean, read[batch.image_index == image, 0].mean())


def test_a_batch_without_images_has_no_loss_and_gradients_of_zeros(digits_set, teacher):
    weights: dict[str, Any] = {
        "logits_weight": 1.0,
        "label_weight": 1.0,
        "feature_weight": 1.0,
        "token_weight": 1.0,
    }
    run = Run(make_config(digits_set, DistillConfig((teacher,), **weights)))
    batch = PackedBatch.build([[], []], 8, collate=partial(collate_targets, run.task.targets))
    run.loaded = LoadedBatch(batch, batch.facts(), (PackedBatch.build([[]], 8),))
    assert run.losses().shape == (0,)
    assert all(p.grad is not None and not p.grad.any() for p in run.engine.module.parameters())


def test_the_average_teaches_at_its_finest_budget(digits_set):
    views = ViewsConfig((4, 8, 16), resolution=ResolutionConfig(16, 40))
    config = make_config(digits_set, DistillConfig(("ema",)), views=views, train=TrainConfig(ema=0.9))
    assert config.distill.budgets(views) == ((4, 40),)
    run = Run(config)
    assert run.teachers[0] is run.engine.average
    assert not run.teachers[0].training
    assert (run.loaded.teachers[0].patch_sizes == 4).all()
    # The head starts with zeros: all answers are the same.
    assert run.loss().abs() < 1e-6


@pytest.mark.parametrize("fields", [{}, {"pos_coords": "absolute"}, {"pos_embed": "grid_2d"}])
def test_a_student_may_have_another_grid_buffer_and_head(fields):
    teacher = PackedViT(replace(MODEL, **fields))
    assert teacher.pos_embed is not None
    ramp = torch.arange(4.0)[:, None].expand(4, MODEL.width)
    with torch.no_grad():  # a position's embedding is row + 10 * column, in every channel
        for name, table in teacher.pos_embed.named_parameters():
            table.copy_({"table_y": ramp, "table_x": 10 * ramp, "table": ramp[:, None] + 10 * ramp}[name])
    student = PackedViT(replace(teacher.config, pos_grid=(8, 12), patch_buffer=32, num_classes=3))
    head = student.get_parameter("head.weight").clone()
    start_from(student, teacher, "teacher")
    assert torch.equal(student.get_parameter("head.weight"), head)
    for name, tensor in teacher.blocks.state_dict().items():
        assert torch.equal(student.blocks.state_dict()[name], tensor)
    # Away from the border, resampling keeps what is linear.
    coords = torch.tensor([[1, 2], [2, 1]])
    places = Places(coords, torch.ones_like(coords), torch.full_like(coords, 4))
    assert student.pos_embed is not None
    for model in (teacher, student):
        assert model.pos_embed is not None
        torch.testing.assert_close(model.pos_embed(places)[:, 0], torch.tensor([21.0, 12.0]))


def test_a_resumed_run_with_learned_maps_equals_one_that_was_not_stopped(run_flags, tmp_path, capsys):
    wide = random_teacher(tmp_path / "wide", replace(MODEL, width=48), seed=2)

    def flags(folder: str, steps: int, workers: int) -> list[str]:
        flags = run_flags(tmp_path / folder, train__steps=steps, data__workers=workers)
        flags += ["--distill.teachers", wide, "ema", "--distill.patch-sizes", "8", "4"]
        flags += ["--distill.resolutions", "32", "24", "--distill.token-weight", "0.5"]
        return [*flags, "--distill.feature-weight", "1", "--optim.schedule", "constant"]

    assert dispatch(["train", *flags("whole", 6, 0)]) == 0
    assert dispatch(["train", *flags("parts", 3, 1)]) == 0
    assert dispatch(["train", *flags("parts", 6, 0)]) == 0
    unmatched = ["--distill.token-weight", "0"]
    alone = ["--distill.teachers", wide, "--distill.patch-sizes", "8", "--distill.resolutions", "32"]
    for change, message in ((unmatched, "distill.token_weight=0.5, not 0"), (alone, "distill.teachers=")):
        assert dispatch(["train", *flags("parts", 9, 0), *change]) == 2
        assert f"was saved with {message}" in capsys.readouterr().err
    for field in ("loss", "grad_norm", "images_seen"):
        one, two = (
            [line[field] for line in read_json_lines(tmp_path / run / "metrics.jsonl")]
            for run in ("whole", "parts")
        )
        assert one == two
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one.keys() == load_model(tmp_path / "whole").state_dict().keys()


def test_taught_shards_replace_the_teacher(digits_set, teacher, tmp_path, capsys):
    out = tmp_path / "taught"
    command = ["teach", str(digits_set / "train"), "--teacher", teacher, "--patch-size", "8"]
    command += ["--resolution", "32", "--out", str(out), "--workers", "0"]
    assert dispatch(command) == 0
    assert capsys.readouterr().out.count(": 40 images") == 3
    assert dispatch(command) == 0
    assert not capsys.readouterr().out
    views = replace(VIEWS, crop=1.0, flip=0.0, patch_sizes=(4, 8))
    data = DataConfig((str(out),), workers=1, streams=4)
    stored = Run(make_config(digits_set, DistillConfig(logits_field="teacher.npy"), views=views, data=data))
    online = Run(make_config(digits_set, DistillConfig((teacher,), (8,), (32,)), views=views))
    assert stored.loaded.batch.keys == online.loaded.batch.keys
    assert isinstance(stored.loaded.batch.targets["logits"], torch.Tensor)
    torch.testing.assert_close(stored.loss(), online.loss(), rtol=1e-3, atol=1e-5)
    assert stored.loss() > 1e-3
    assert dispatch([*command, "--patch-size", "4"]) == 2
    assert "use another --out" in capsys.readouterr().err
    assert dispatch([*command, "--field", "teacher"]) == 2
    assert "--field 'teacher' must" in capsys.readouterr().err
    assert dispatch([*command, "--out", str(tmp_path / "new"), "--seq-len", "0"]) == 2
    assert "packing.seq_len=0 must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert dispatch([*command, "--out", str(digits_set / "train")]) == 2
    assert "holds the shards that are read" in capsys.readouterr().err


def test_stored_logits_that_cannot_be_used_are_named(digits_set, tmp_path):
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    good = np.zeros(10, np.float16)
    write_with_logits(shard, tmp_path / "a.tar", {shard.key(0): good, shard.key(1): good[:3]}, "t.npy")
    taught, stored = Shard.open(tmp_path / "a.tar"), LogitsTarget("t.npy", 10)
    assert len(taught) == 2
    assert taught.image(1) == shard.image(1)
    assert taught.label(1) == shard.label(1)
    assert np.array_equal(stored.read(taught, 0), good)
    with pytest.raises(BadSample, match=r"its \.t\.npy holds float16 \[3\], not floats \[10\]"):
        stored.read(taught, 1)
    with pytest.raises(BadSample, match=r"it has no \.t\.npy"):
        stored.read(shard, 0)
    with pytest.raises(BadSample, match=r"its \.jpg is not a \.npy file"):
        LogitsTarget("jpg", 10).read(shard, 0)


def test_neither_labels_nor_a_head_are_needed(digits_set, run_flags, teacher, tmp_path, capsys):
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    write_shards((Sample(f"s{i}", shard.image(i), "jpg") for i in range(len(shard))), tmp_path / "bare")
    flags = run_flags(tmp_path / "run", data__shards=tmp_path / "bare", data__workers=0, train__steps=2)
    assert dispatch(["train", *flags, "--distill.teachers", teacher]) == 0
    flags = run_flags(tmp_path / "run2", data__shards=tmp_path / "bare", data__workers=0, train__steps=2)
    flags += ["--model.num-classes", "0", "--distill.feature-weight", "1", "--distill.teachers", teacher]
    assert dispatch(["train", *flags]) == 2
    assert "has 10 classes, the model 0" in capsys.readouterr().err
    assert dispatch(["train", *flags, "--distill.logits-weight", "0"]) == 0
    assert load_model(tmp_path / "run2").head is None


def test_wrong_configurations_get_a_sentence_that_names_the_field(digits_set, teacher, tmp_path):
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"teachers": ("a", "b"), "patch_sizes": (8,)},
            r"distill\.patch_sizes=\(8,\) .* 2 distill\.teachers",
        ),
        ({"teachers": ("a",), "resolutions": (0,)}, r"distill\.resolutions=\(0,\)"),
        ({"init": True}, r"distill\.init needs a model"),
        ({"teachers": ("ema",), "init": True}, r"distill\.init needs a model"),
        ({"temperature": 0}, r"distill\.temperature=0"),
        ({"logits_field": "Teacher.npy"}, r"distill\.logits_field 'Teacher\.npy' must be in lower case"),
        ({"label_weight": -1}, r"distill\.label_weight=-1"),
        ({"teachers": ("a",), "logits_weight": 0}, "nothing is left to learn"),
    ]
    for fields, message in wrong:
        with pytest.raises(ValueError, match=message):
            DistillConfig(**fields)
    with pytest.raises(ValueError, match=r"set train\.ema above 0"):
        Config(distill=DistillConfig(("ema",)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Run(make_config(digits_set, DistillConfig(("nowhere",))))
    other = random_teacher(tmp_path, replace(MODEL, depth=1, num_classes=3), seed=2)
    with pytest.raises(ValueError, match=r"has 3 classes, the model 10"):
        Run(make_config(digits_set, DistillConfig((other,))))
    with pytest.raises(ValueError, match=r"are depth=1, not 2"):
        Run(make_config(digits_set, DistillConfig((other,), init=True, logits_weight=0, token_weight=1)))
