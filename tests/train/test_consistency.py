"""Pairs of images of one sample: in one sequence, at two budgets, with features that are pulled together."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packvit.cli.train import main as train
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import Ranks
from packvit.data import ClassTarget, DataConfig, DataPlan, LoadedBatch
from packvit.data.streams.stream import Stream
from packvit.models import ViTConfig
from packvit.packing import DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config
from packvit.train.step.interface import StepBatches
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.config import ConsistencyConfig, ContrastiveConfig, DistillConfig
from packvit.train.tasks.consistency import Consistency, pair_distances
from packvit.train.tasks.make import make_task
from packvit.train.tasks.start import make_module

ALONE = Ranks(0, 1, torch.device("cpu"))
VIEWS = ViewsConfig(
    (4, 8, 16), resolution=ResolutionConfig(16, 64), crop=0.5, flip=0.5, drop=DropConfig("beta", mean=0.3)
)
CONFIG = Config(
    views=VIEWS,
    model=ViTConfig(width=16, depth=1, heads=2, num_classes=10, pos_grid=(4, 4)),
    consistency=ConsistencyConfig(weight=0.5),
)


def make_stream(digits_set, pairs: bool = True, **packing) -> Stream:
    data = DataConfig(shards=(str(digits_set / "train"),), streams=2)
    packing = PackingConfig(seq_len=300, sequences=2, lookahead=16, balance=2, **packing)
    return Stream(DataPlan(data, VIEWS, packing, 0, {"label": ClassTarget(classes=10)}, pairs=pairs), 0)


def same(one: LoadedBatch, two: LoadedBatch) -> bool:
    a, b = one.batch, two.batch
    return a.keys == b.keys and all(torch.equal(a.patches[shape], b.patches[shape]) for shape in b.patches)


@pytest.fixture(scope="module")
def loaded(digits_set) -> LoadedBatch:
    return make_stream(digits_set).next_batch()


def test_a_pair_is_one_sample_in_one_sequence_at_two_budgets(digits_set, loaded):
    stream = make_stream(digits_set, max_images=5)
    batches = [stream.next_batch().batch for _ in range(4)]
    for batch in (*batches, loaded.batch):
        row = torch.arange(batch.num_slots) // batch.seq_len
        assert batch.num_images % 2 == 0
        assert batch.keys[::2] == batch.keys[1::2]
        assert batch.labels is not None
        assert torch.equal(batch.labels[::2], batch.labels[1::2])
        for first, second in pairwise(range(batch.num_images)):
            if first % 2 == 0:
                places = [row[batch.image_index == image].unique() for image in (first, second)]
                assert len(places[0]) == 1
                assert torch.equal(*places)
    for batch in batches:  # an odd limit leaves room for two pairs
        images = batch.image_index.reshape(2, -1)
        assert max(len(some[some >= 0].unique()) for some in images) <= 4
    first, second = loaded.batch.patch_sizes[::2], loaded.batch.patch_sizes[1::2]
    assert {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)} > {(4, 8), (8, 4)}
    one = loaded.batch.facts().drop_rate
    assert not np.allclose(one[::2], one[1::2])


def test_pairs_survive_a_resume(digits_set):
    stream, other = make_stream(digits_set), make_stream(digits_set)
    state = stream.next_batch().state
    expected = [stream.next_batch() for _ in range(3)]
    other.load_state_dict(state)
    assert all(same(other.next_batch(), batch) for batch in expected)
    # A run that goes on without pairs packs what waits anew.
    single = make_stream(digits_set, pairs=False)
    single.load_state_dict(state)
    batch = single.next_batch().batch
    assert len(set(batch.keys)) == batch.num_images


@pytest.mark.parametrize("measure", ["cosine", "smooth_l1"])
def test_the_smaller_budget_is_pulled_to_the_larger_one(measure):
    torch.manual_seed(0)
    features = torch.randn(6, 8, requires_grad=True)
    tokens = torch.tensor([3, 9, 9, 3, 5, 5])
    apart = pair_distances(features, tokens, measure)
    a, b = features.detach()[[0, 3, 4]], features.detach()[[1, 2, 5]]
    wanted = (
        1 - F.cosine_similarity(a, b)
        if measure == "cosine"
        else F.smooth_l1_loss(a, b, reduction="none").mean(1)
    )
    torch.testing.assert_close(apart, wanted)
    apart.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum(1).ne(0).tolist() == [True, False, False, True, True, False]
    assert pair_distances(features[:0], tokens[:0], measure).shape == (0,)


def test_a_step_is_that_of_labels_and_distances(loaded):
    task = Consistency(CONFIG)
    module = make_module(CONFIG, task)
    engine = Engine(module, CONFIG.train, CONFIG.optim, ALONE, 0)
    torch.manual_seed(0)
    assert engine.model.head is not None
    nn.init.normal_(engine.model.head.weight)
    batch = loaded.batch
    outputs = engine.model.outputs(batch)
    assert batch.labels is not None
    apart = pair_distances(outputs.features, batch.image_lengths(), "cosine")
    loss = F.cross_entropy(outputs.logits, batch.labels) + 0.5 * apart.mean()
    wanted = torch.autograd.grad(loss, list(engine.model.parameters()))
    step = StepBatches([loaded], images=batch.num_images)
    losses = task.backward(engine, step)
    torch.testing.assert_close(losses.mean(), loss)
    for parameter, gradient in zip(engine.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    engine.module.zero_grad()
    result = train_step(engine, task, step, 0)
    torch.testing.assert_close(result.reported["consistency"], apart)
    assert task.flops(loaded) == 3 * CONFIG.model.batch_flops(batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distill": DistillConfig(logits_field="teacher.npy")}, r"distill\.\* are two tasks"),
        ({"contrastive": ContrastiveConfig(loss="softmax")}, r"contrastive\.loss are two tasks"),
        ({"views": replace(VIEWS, patch_size_per="batch")}, r"views\.patch_size_per=image"),
        ({"packing": PackingConfig(algorithm="exact_fill")}, r"packing\.algorithm=exact_fill"),
        ({"packing": PackingConfig(oversize="own_row")}, r"packing\.oversize=shrink"),
        ({"packing": PackingConfig(max_images=1)}, r"packing\.max_images"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        make_task(replace(CONFIG, **change))


def test_a_run_says_how_far_pairs_are_apart(run_flags, tmp_path):
    run = tmp_path / "run"
    train(run_flags(run, data__workers=0, train__accumulate=2, consistency__weight=1))
    lines = read_json_lines(run / "metrics.jsonl")
    assert all(0 < line["consistency"] < line["loss"] for line in lines)
    assert all(line["images_seen"] % 2 == 0 for line in lines)
