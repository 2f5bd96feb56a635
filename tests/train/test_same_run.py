"""What may change when a run resumes: every field is free, counts from here on, or is refused by its name."""

import re
from dataclasses import replace
from itertools import islice

import pytest

from packvit.common.display import Display
from packvit.data import DataConfig, DataPlan, TrainLoader
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig, must_stay, plain_config, resume_rules
from packvit.train.watch.checks import SameRun


class Said(Display):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """See Display."""
        self.lines.append(text)


def resume(before: Config, now: Config, ranks: tuple[int, int] = (1, 1)) -> list[str]:
    """What is said when a run of `before`, on the first number of ranks, goes on as `now`, on the second."""
    said = Said()
    old, new = SameRun(before, said), SameRun(now, said)
    old.ranks, new.ranks = ranks
    new.load_state_dict(old.state_dict())
    return said.lines


DATA = DataConfig(shards=("a", "b"), weights=(1, 9))
REFUSED = {
    "seed": Config(seed=1),
    "data.streams": Config(data=DataConfig(streams=8)),
    "data.shuffle_shards": Config(data=DataConfig(shuffle_shards=1)),
    "train.precision": Config(train=TrainConfig(precision="fp16")),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_checkpoint_cannot_follow_is_refused_by_its_name(field):
    with pytest.raises(ValueError, match=rf"was saved with {re.escape(field)}=.*: resume with the same, or"):
        resume(Config(), REFUSED[field])


def test_sources_stay_as_many_and_their_weights_count_from_here_on():
    for before, now in ((DATA, replace(DATA, weights=())), (replace(DATA, weights=()), DATA)):
        with pytest.raises(ValueError, match=r"was saved with data\.weights="):
            resume(Config(data=before), Config(data=now))
    said = resume(Config(data=DATA), Config(data=replace(DATA, weights=(9, 1))))
    assert said == ["Changed since the checkpoint: data.weights was [1, 9], is [9, 1]"]


def test_a_field_of_a_later_version_counts_with_what_was_done_before():
    said = Said()
    saved = SameRun(Config(), said).state_dict()
    del saved["data"]["resize"], saved["data"]["max_bad_fraction"]
    SameRun(Config(data=DataConfig(resize="pillow")), said).load_state_dict(saved)
    assert said.lines == []
    SameRun(Config(), said).load_state_dict(saved)
    assert said.lines == ["Changed since the checkpoint: data.resize was pillow, is torch"]


def test_no_change_is_told_of_a_run_that_may_not_go_on():
    with pytest.raises(ValueError, match="was saved with seed=0"):
        resume(Config(), Config(seed=1, train=TrainConfig(steps=5)))
    assert resume(Config(), Config(train=TrainConfig(precision="bf16"))) == [
        "Changed since the checkpoint: train.precision was auto, is bf16"
    ]


HERE_ON = {
    "packing.seq_len": (32, 128),
    "packing.algorithm": ("exact_fill", "next_fit"),
    "packing.oversize": ("own_row",),
    "packing.lookahead": (2, 40),
    "packing.sequences": (1, 5),
    "packing.balance": (1, 9),
    "packing.max_images": (1, 3),
    "packing.max_batch_images": (8, 16),
    "data.weights": ((9.0, 1.0), (1.0, 1.0)),
    "data.max_bad_fraction": (0.5, 1.0),
    "data.resize": ("pillow",),
}


def test_views_count_from_here_on():
    """tests/data/test_streams.py shows that streams can follow."""
    now = replace(Config(), views=ViewsConfig(patch_sizes=(8, 16), patch_size_per="sequence"))
    assert [line.split(" was ")[0].split()[-1] for line in resume(Config(), now)] == [
        "views.patch_sizes",
        "views.patch_size_per",
    ]


@pytest.mark.parametrize("algorithm", ["oldest_first", "best_fit_decreasing"])
def test_streams_go_on_with_whatever_is_not_refused(algorithm, digits_set):
    """For every field of the data and the packing that decides which batches come."""
    decided = [name for name, rule in resume_rules(Config()).items() if rule in ("", "count")]
    decided = [name for name in decided if name.startswith(("data.", "packing."))]
    aside = (
        "data.shards",
        "data.mix.",
        "data.augment.",
        "data.label_field",
        "data.multi_label",
        "data.caption",
    )
    assert sorted(HERE_ON) == sorted(name for name in decided if not name.startswith(aside))

    folders = tuple(str(digits_set / name) for name in ("train", "val"))
    views = ViewsConfig(patch_sizes=(4, 8), resolution=ResolutionConfig(16, 40))
    data = DataConfig(shards=folders, weights=(1, 9), streams=2, workers=0)
    packing = PackingConfig(seq_len=64, sequences=2, lookahead=8, balance=4, algorithm=algorithm)
    loader = TrainLoader(DataPlan(data, views, packing))
    list(islice(loader, 4))
    for name, values in HERE_ON.items():
        for value in values:
            section, field = name.split(".")
            changed = {"data": data, "packing": packing}
            changed[section] = replace(changed[section], **{field: value})
            again = TrainLoader(DataPlan(changed["data"], views, changed["packing"]))
            again.load_state_dict(loader.state_dict())
            assert all(loaded.batch.num_images for loaded in islice(again, 4)), (name, value)


@pytest.mark.parametrize(
    ("ranks", "accumulate", "said"),
    [
        (
            (2, 1),
            1,
            "now it is 8 (1 of 1), with 50% of the images: --train.accumulate 2 keeps it",
        ),
        (
            (1, 2),
            1,
            "with 200% of the images: --train.accumulate 1 comes nearest to it",
        ),
        (
            (3, 2),
            1,
            "with 67% of the images: --train.accumulate 2 comes nearest to it",
        ),
        ((2, 1), 2, None),
        ((2, 2), 1, None),
    ],
)
def test_other_ranks_say_what_became_of_a_step(ranks, accumulate, said):
    lines = resume(Config(), Config(train=TrainConfig(accumulate=accumulate)), ranks)
    steps = [line for line in lines if line.startswith("A step was")]
    assert len(steps) == (said is not None)
    assert said is None or steps[0].endswith(said)


def test_checkpoints_without_the_number_of_ranks_are_read():
    same = SameRun(Config(), Said())
    same.load_state_dict(plain_config(Config()))


def test_rules_are_known():
    assert set(resume_rules(Config()).values()) == {"free", "", "fixed", "switch", "count", "scaled"}
    assert not must_stay("scaled", "fp16", "bf16")
