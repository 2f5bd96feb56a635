"""Sizes of many images: real shards and files, with every kind of bad row named and counted."""

import os
import re
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.analyze.sizes import SHOWN, Sizes, read_sizes_file, shard_sizes
from packvit.data import FetchConfig, Shard, write_shards
from packvit.data.make.write import Sample
from packvit.data.samples.decode import read_native_size


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_shards_give_the_native_sizes_in_whatever_parts(digits_set):
    path = str(digits_set / "train" / "shard-000000.tar")
    shard = Shard.open(path)
    expected = [list(read_native_size(shard, i)) for i in range(len(shard))]
    assert shard_sizes(path).values.tolist() == expected
    parts = [size for part in range(3) for size in shard_sizes(path, part, 3).values.tolist()]
    assert parts == expected
    assert shard_sizes(path).values.dtype == np.int32


def test_broken_images_and_shards_are_named(tmp_path, digits_set):
    good = Shard.open(digits_set / "train" / "shard-000000.tar").image(0)
    samples = [Sample("fine", good, "png"), Sample("torn", good[:20], "png"), Sample("empty", b"", "jpg")]
    [path] = write_shards(samples, tmp_path / "s")
    sizes = shard_sizes(str(path))
    assert (len(sizes.values), sizes.bad) == (1, 2)
    assert "'torn'" in sizes.examples[0]
    assert "'empty'" in sizes.examples[1]
    (tmp_path / "noise.tar").write_bytes(os.urandom(2000))
    noise = shard_sizes(str(tmp_path / "noise.tar"))
    assert noise.bad == 1
    assert "noise.tar" in noise.examples[0]
    cut = tmp_path / "cut.tar"
    whole = (digits_set / "train" / "shard-000000.tar").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert re.search(r"cut\.tar: it breaks off", shard_sizes(str(cut)).notes[0])


def test_a_stalled_source_is_given_up_as_configured():
    sizes = shard_sizes("pipe:sleep 5", fetch=FetchConfig(timeout=0.2))
    assert (len(sizes.values), sizes.bad) == (0, 1)
    assert sizes.examples == ["pipe:sleep 5: it cannot be read (no byte came in 0.2 s, after 0)"]


@pytest.mark.parametrize(
    "text",
    [
        "height,width\n480,640\n32,16\n",
        "h,w\n480,640\n32,16\n",
        "key,W,license,H\na,640,x,480\nb,16,y,32\n",
        "480,640\n32,16",
        "\ufeffheight;width\r\n480;640\r\n\r\n32;16\r\n",
        "width\theight\n640\t480\n16.0\t 32\n",
    ],
)
def test_csv_in_any_dress(write, text):
    sizes = read_sizes_file(write("sizes.csv", text))
    assert sizes.values.tolist() == [[480, 640], [32, 16]]
    assert sizes.bad == 0


def test_bad_rows_of_a_csv_are_named_by_line_and_counted(write):
    path = write("sizes.csv", b"h,w\n480,640\n0,5\n-3,5\n,7\nabc,9\n7\n1.5,2\nnan,4\n99999999999,4\n10,20\n")
    sizes = read_sizes_file(path)
    assert sizes.values.tolist() == [[480, 640], [10, 20]]
    assert sizes.bad == 8
    assert sizes.examples[0] == f"{path}:3: height '0', width '5'"
    assert sizes.examples[2] == f"{path}:5: height missing, width '7'"
    assert sizes.examples[3] == f"{path}:6: height 'abc', width '9'"
    assert sizes.examples[4] == f"{path}:7: height '7', width missing"


@given(rows=st.lists(st.tuples(*[st.integers(-2, 3) | st.sampled_from(["", "x", "2.5", "inf"])] * 2)))
def test_every_row_is_a_size_or_bad(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "sizes.csv"
    path.write_text("".join(f"{h},{w}\n" for h, w in [("h", "w"), (1, 1), *rows]))
    sizes = read_sizes_file(path)
    good = [[h, w] for h, w in rows if isinstance(h, int) and isinstance(w, int) and h > 0 and w > 0]
    assert sizes.values.tolist() == [[1, 1], *good]
    assert sizes.bad == len(rows) - len(good)
    assert len(sizes.examples) == min(SHOWN, sizes.bad)


def test_npy_and_parquet(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[480, 640], [0, 5], [32, 16]]))
    np.save(tmp_path / "b.npy", np.array([[480, 640], [np.nan, 5], [32, 16.0]]))
    table = {"name": ["a", "b", "c"], "w": [640, 5, 16], "h": [480, None, 32]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "c.parquet")
    table = {"width": ["640", "5", "16"], "height": ["480", "tall", "32"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "d.parquet")
    for name, value in (("a.npy", "0"), ("b.npy", "nan"), ("c.parquet", "missing"), ("d.parquet", "'tall'")):
        sizes = read_sizes_file(tmp_path / name)
        assert sizes.values.tolist() == [[480, 640], [32, 16]]
        assert sizes.bad == 1
        assert sizes.examples[0].startswith(f"{tmp_path / name}:2: height {value}, width ")


def test_blocks_and_limits(tmp_path, monkeypatch):
    values = np.arange(1, 101).reshape(50, 2)
    values[::7] = 0
    np.save(tmp_path / "sizes.npy", values)
    whole = read_sizes_file(tmp_path / "sizes.npy")
    monkeypatch.setattr("packvit.analyze.sizes.BLOCK", 8)
    blocks = read_sizes_file(tmp_path / "sizes.npy")
    assert blocks.values.tolist() == whole.values.tolist() == values[values[:, 0] > 0].tolist()
    assert (blocks.bad, blocks.examples) == (whole.bad, whole.examples)
    few = read_sizes_file(tmp_path / "sizes.npy", limit=10)
    assert (len(few.values), few.bad) == (8, 2)
    joined = Sizes.join([few, few])
    assert (len(joined.values), joined.bad, len(joined.examples)) == (16, 4, 4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sizes.txt", "1,2", r"sizes\.txt is not a file of sizes.*\.csv"),
        ("sizes.csv", "", "holds no sizes"),
        ("sizes.csv", "h,w\n", "holds no sizes"),
        ("sizes.csv", "name,size\na,2\n", "needs columns height and width .* it has name, size"),
        (
            "sizes.csv",
            "h,w\n0,1\nx,y\n",
            r"none of 2 sizes can be used, the first: .*sizes\.csv:2: height '0'",
        ),
        ("sizes.npy", "noise", r"sizes\.npy is not a readable npy file"),
        ("sizes.parquet", "noise", r"sizes\.parquet is not a readable parquet file"),
    ],
)
def test_files_without_a_size_end_in_one_sentence(write, name, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_sizes_file(write(name, text))
    assert "\n" not in str(error.value)


def test_wrong_arrays_and_missing_files_are_named(tmp_path):
    np.save(tmp_path / "sizes.npy", np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"must hold numbers \[N, 2\], not float64 \[4, 3\]"):
        read_sizes_file(tmp_path / "sizes.npy")
    with pytest.raises(ValueError, match=r"none\.csv: no such file"):
        read_sizes_file(tmp_path / "none.csv")


def test_parquet_without_pyarrow_says_how_to_get_it(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'packvit\[parquet\]'"):
        read_sizes_file(write("sizes.parquet", "x"))
