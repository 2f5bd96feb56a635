"""Files that appear whole, and folders that can be written to."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import load_file

from packvit.common.files import (
    cache_path,
    check_shared,
    check_writable,
    hash_file,
    whole,
    write_nameless,
    write_whole,
)
from packvit.common.tensors import save_tensors


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def power_off(handle: int) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", power_off)
        with pytest.raises(OSError, match="gone"):
            write_whole(path, "new, and longer")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_equal_files_have_equal_hashes(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (hash_file(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    for folder in (tmp_path / "file", tmp_path / "file/a/b", tmp_path / "gone/a", Path("/proc/a/b")):
        with pytest.raises(ValueError, match=f"--out {folder} cannot be written to"):
            check_writable(folder)
    check_writable(tmp_path / "a/b")
    check_writable(Path())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def stop_halfway() -> None:
        with whole(target) as partial:
            partial.write_bytes(b"ha")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_halfway()
    assert target.read_bytes() == b"old"
    with whole(target) as partial:
        partial.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_nameless_file_appears_whole_and_takes_the_place_of_another(nameless, tmp_path, monkeypatch):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    target = tmp_path / "cache.bin"
    for content in (b"one", b"another"):
        write_nameless(target, lambda file, content=content: file.write(content))
        assert target.read_bytes() == content
    with pytest.raises(RuntimeError):
        write_nameless(target, fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"another"]


def fail(file: BinaryIO) -> None:
    file.write(b"half")
    raise RuntimeError


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="the system has no nameless files")
def test_a_process_killed_while_it_writes_leaves_nothing(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from typing import BinaryIO
from packvit.common.files import write_nameless

def die(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_nameless(Path(sys.argv[1]) / "cache.bin", die)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_of_tensors_are_readable_by_whom_any_new_file_is(mask, tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"a": torch.arange(3)}
    before = os.umask(mask)
    try:
        save_tensors(tensors, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(ValueError, match="non contiguous"):
        save_tensors({"a": torch.zeros(2, 2).T}, path)
    assert load_file(path)["a"].tolist() == [0, 1, 2]
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_machines_do_not_share_is_named(tmp_path):
    check_shared(tmp_path)
    with pytest.raises(ValueError, match=r"has no .*/none: all machines must share this folder$"):
        check_shared(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no .*/outputs/1: .* set PACKVIT_CACHE to a shared folder"):
        check_shared(cache_path("outputs") / "1")
