"""Files that appear whole, and folders that can be written to."""

import os
from pathlib import Path

import pytest

from packvit.common.files import check_writable, hash_file, whole, write_whole


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
