"""What tests of remote shards share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from packvit.common.stores import again
from packvit.data import Shard
from packvit.data.shards import shard as shard_module

Contents = Callable[[Shard], list[tuple[str, bytes, int | None]]]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of fetched shards, new and empty; nothing of an earlier test is known, and nobody waits long
    before another attempt."""
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(again, "BACKOFF", 0.01)
    shard_module.forget()
    return tmp_path / "cache" / "shards"


@pytest.fixture(scope="session")
def contents() -> Contents:
    """contents(shard): keys, encoded images and labels of all samples."""
    return lambda shard: [(shard.key(i), shard.image(i), shard.label(i)) for i in range(len(shard))]
