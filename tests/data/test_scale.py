"""What must not grow with the number of shards, ranks or waiting images."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.data import DataConfig, DataPlan, ShardSet, TrainLoader, count_samples, expand_shards
from packvit.data.make.manifest import list_shards
from packvit.data.shards import paths as paths_module
from packvit.data.shards.index import build_index
from packvit.data.shards.paths import in_natural_order
from packvit.data.shards.shard import Known, Memory
from packvit.data.shards.tar_file import LocalFile
from packvit.data.streams.units import Unit, epoch_units
from packvit.packing import PackingConfig, ViewsConfig

FEW, MANY = 100, 1000
PATTERNS = {"folder": "{}", "glob": "{}/*.tar", "braces": "{}/{{000..{last:03d}}}.tar"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """Folders of empty tars by their number, with manifests."""
    made = {}
    for number in (FEW, MANY):
        made[number] = folder = tmp_path_factory.mktemp(f"shards{number}")
        for place in range(number):
            (folder / f"{place:03d}.tar").write_bytes(bytes(1024))
        list_shards(folder, {f"{place:03d}.tar": (3, 1024) for place in range(number)})
    return made


@pytest.fixture
def looks(monkeypatch) -> Counter:
    """Counts the files that are looked at, by the call."""
    found: Counter = Counter()

    def counting(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments, **options):
            found[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "open", "access", "scandir", "listdir"):
        counting(name)
    return found


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_rank_looks_at_as_few_of_many_shards_as_of_few(kind, folders, looks):
    asked = {}
    for number, folder in folders.items():
        looks.clear()
        pattern = PATTERNS[kind].format(folder, last=number - 1)
        plan = DataPlan(DataConfig((pattern,), workers=1, streams=4), ViewsConfig(), PackingConfig())
        loader = TrainLoader(plan, 1, 2)
        assert len(plan.shards) == number
        assert count_samples(plan.shards.paths) == 3 * number
        assert loader.state_dict()["shards"]["number"] == number
        asked[number] = looks.total()
    assert asked[MANY] == asked[FEW] < FEW


def test_a_folder_is_listed_once(folders, looks):
    assert len(expand_shards(str(folders[FEW]))) == FEW
    assert looks["scandir"] + looks["listdir"] == 1


def test_brace_patterns_still_name_what_is_missing(folders):
    with pytest.raises(ValueError, match=r"100\.tar: no such shard"):
        ShardSet.find(f"{folders[FEW]}/{{000..100}}.tar")
    braces = f"{folders[FEW]}/{{000..099}}.tar"
    assert ShardSet.find(braces).paths == ShardSet.find(str(folders[FEW])).paths
    (folders[FEW] / "sub").mkdir()
    mixed = f"{folders[FEW]}/{{sub/../000,{','.join(f'{n:03d}' for n in range(1, 100))}}}.tar"
    assert len(ShardSet.find(mixed)) == FEW


@given(
    st.lists(st.text("aé01239٣-", max_size=5), max_size=6)
    | st.lists(st.integers(0, 999).map("x{:03d}.tar".format), max_size=9)
)
def test_names_that_differ_only_in_digits_sort_as_all_others(names):
    assert in_natural_order(names) == sorted(names, key=paths_module._natural)


def test_manifests_that_state_only_samples_count(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    (tmp_path / "manifest.json").write_text('{"shards": {"a.tar": {"samples": 7}, "b.tar": {"bytes": 1}}}')
    assert count_samples([str(tmp_path / "a.tar")]) == 7
    assert count_samples([str(tmp_path / "b.tar")]) is None
    assert count_samples([str(tmp_path / "a.tar"), "https://host/a.tar"]) is None


def test_the_order_of_units_stays_as_it_is():
    """A run that was begun with an older version goes on with the same units."""
    shards = [6, 39, 20, 4, 19, 37, 16, 33, 23, 26, 34, 25, 24, 0, 30, 18, 32, 38, 35, 13]
    units = epoch_units(40, 2, 0, 0, 1)
    assert list(units) == [Unit(shard, 0, 1) for shard in shards]
    assert units[4:7] == [Unit(shard, 0, 1) for shard in shards[4:7]]
    assert list(epoch_units(3, 8, 3, 5, 1)) == [Unit(0, 2, 8), Unit(1, 0, 8), Unit(0, 7, 8)]


def test_memory_of_indices_is_bounded_and_used_ones_stay(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    index = build_index(LocalFile(str(tmp_path / "x.tar")))
    memory = Memory(10 * index.nbytes)
    for number in range(1000):
        memory.put(f"{number}.tar", Known("", (0, 0, 0), index))
        memory.put("often.tar", Known("", (0, 0, 0), index))
    kept = [number for number in range(1000) if memory.get(f"{number}.tar")]
    assert kept == list(range(991, 1000))
    assert memory.get("often.tar")


def test_links_to_nothing_are_no_shards(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    (tmp_path / "c.tar").symlink_to("gone.tar")
    for pattern in (tmp_path, tmp_path / "*.tar"):
        with pytest.raises(ValueError, match=r"c\.tar: no such shard: it links to .*gone\.tar"):
            ShardSet.find(str(pattern))
