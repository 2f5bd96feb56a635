"""Shards: names, the index of a tar, and what becomes of damaged ones."""

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.data import BadSample, BadShard, Shard, expand_shards
from packvit.data.samples import decode as decode_module
from packvit.data.samples.decode import read_native_size
from packvit.data.shards import index as index_module
from packvit.data.shards import shard as shard_module
from packvit.data.shards.tar_file import LocalFile
from packvit.packing.images import files as image_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of cached indices, empty at the start of each test."""
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "cache"))
    shard_module.forget()
    return tmp_path / "cache" / "index"


def image(kind: str = "png", height: int = 6, width: int = 9, **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(
    path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT, encoding: str = "utf-8"
) -> Path:
    with tarfile.open(path, "w", format=kind, encoding=encoding) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys(shard: Shard) -> list[str]:
    return [shard.key(index) for index in range(len(shard))]


def three_samples(path: Path) -> Path:
    fields = (("png", image()), ("cls", b"1"))
    return tar_of(path, [(f"s{i}.{field}", data) for i in range(3) for field, data in fields])


def reopen(path: Path) -> Shard:
    """The shard as another process finds it: with the cache on disk alone."""
    shard_module.forget()
    return Shard.open(path)


# ---- names ----


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    for name in ("a-1", "a-2", "a-9", "a-10", "b-1", "more/c-1"):
        (folder / f"{name}.tar").touch()
    (folder / "classes.json").touch()
    return folder


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("", "a-1 a-2 a-9 a-10 b-1"),
        ("*.tar", "a-1 a-2 a-9 a-10 b-1"),
        ("a-*.tar", "a-1 a-2 a-9 a-10"),
        ("a-?.tar", "a-1 a-2 a-9"),
        ("a-{9..10}.tar", "a-9 a-10"),
        ("{b,a}-1.tar", "b-1 a-1"),
        ("a-{1,1[0]}.tar", "a-1 a-10"),
        ("{more,.}/*-1.tar", "more/c-1 ./a-1 ./b-1"),
        ("b-1.tar", "b-1"),
        (["more", "b-1.tar", "a-[29].tar"], "more/c-1 b-1 a-2 a-9"),
    ],
)
def test_patterns_name_shards(patterns, names, folder):
    if isinstance(patterns, str):
        found = expand_shards(os.path.join(folder, patterns))
    else:
        found = expand_shards([str(folder / pattern) for pattern in patterns])
    assert found == [f"{folder}/{name}.tar" for name in names.split()]


def test_a_path_may_hold_what_patterns_are_made_of(tmp_path):
    folder = tmp_path / "set [v1]*"
    folder.mkdir()
    (folder / "a[0].tar").touch()
    assert expand_shards(str(folder)) == [str(folder / "a[0].tar")]
    assert expand_shards(str(folder / "a[0].tar")) == [str(folder / "a[0].tar")]


@pytest.mark.parametrize("name", ["a-{1,2}.tar", "{x}{1..3}.tar", "open{.tar", "shut}.tar"])
def test_braces_may_be_part_of_a_name(name, tmp_path):
    (tmp_path / name).touch()
    assert expand_shards(str(tmp_path / name)) == [str(tmp_path / name)]


def test_unbalanced_braces_of_a_command_are_its_own():
    assert expand_shards("pipe:awk '}' x.tar") == ["pipe:awk '}' x.tar"]


def test_natural_order_takes_any_digits(tmp_path):
    names = ["1²2.tar", "x10.tar", "x2.tar", "y٣.tar"]
    for name in names:
        (tmp_path / name).touch()
    found = [Path(path).name for path in expand_shards(str(tmp_path))]
    assert found == ["1²2.tar", "x2.tar", "x10.tar", "y٣.tar"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "no shards are named"),
        (["more/c-2.tar"], r"more/c-2\.tar: no such shard"),
        (["a-{9..11}.tar"], r"a-11\.tar: no such shard"),
        (["z*.tar"], r"no file matches .*z\*\.tar"),
        (["empty"], "empty is a folder without .tar files"),
        (["b-1.tar", "b-1.tar"], r"b-1\.tar is named twice"),
        (["a-*.tar", "a-9.tar"], r"a-9\.tar is named twice"),
        (["", "more/../b-1.tar"], r"more/\.\./b-1\.tar is named twice"),
    ],
)
def test_names_that_are_no_shards_are_errors(patterns, message, folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        expand_shards([str(folder / pattern) if pattern else str(folder) for pattern in patterns])


# ---- members ----


def test_samples_are_the_members_side_by_side_of_one_key(tmp_path):
    first, second = image("png"), image("jpeg", 8, 5)
    members = [("a.png", first), ("a.cls", b" 7\n"), ("b.jpg", second), ("b.txt", b"a cat")]
    shard = Shard.open(tar_of(tmp_path / "x.tar", members))
    assert len(shard) == 2
    assert keys(shard) == ["a", "b"]
    assert [shard.fields(0), shard.fields(1)] == [("png", "cls"), ("jpg", "txt")]
    assert [shard.image(0), shard.image(1)] == [first, second]
    assert [read_native_size(shard, 0), read_native_size(shard, 1)] == [(6, 9), (8, 5)]
    assert [shard.label(0), shard.label(1)] == [7, None]
    assert shard.read(1, "txt") == b"a cat"
    assert shard.read(1, "txt", 3) == b"a c"
    assert shard.read(1, "txt", 99) == b"a cat"
    assert shard.problems == []


def test_the_key_ends_at_the_first_dot_behind_the_last_folder(tmp_path):
    members = [
        ("./v1.2/cat.v/01.left.png", b"l"),
        ("./v1.2/cat.v/01.png", b"i"),
        ("./v1.2/cat.v/01.left.cls", b"3"),
        ("02.Seg.PNG", b"s"),
        ("02.JPG", b"j"),
        ("02.CLS", b"4"),
    ]
    shard = Shard.open(tar_of(tmp_path / "x.tar", members))
    assert keys(shard) == ["./v1.2/cat.v/01", "02"]
    assert shard.fields(0) == ("left.png", "png", "left.cls")
    assert shard.fields(1) == ("seg.png", "jpg", "cls")
    assert [shard.image(0), shard.image(1)] == [b"i", b"j"]
    assert [shard.label(0), shard.label(1)] == [None, 4]


def test_other_members_are_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("README"))
        tar.addfile(tarfile.TarInfo("cats/._a.png"))
        folder = tarfile.TarInfo("cats.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "cats/a.png"
        tar.addfile(link)
        info = tarfile.TarInfo("cats/a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    shard = Shard.open(path)
    assert keys(shard) == ["cats/a"]
    assert shard.image(0) == b"abc"


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_keys(kind, tmp_path):
    names = ["long/" * 60 + "a", "katze-äöü/猫", "short"]
    members = [(f"{name}.{field}", name.encode()) for name in names for field in ("png", "cls")]
    shard = Shard.open(tar_of(tmp_path / "x.tar", members, kind))
    assert keys(shard) == names
    assert [shard.image(index).decode() for index in range(3)] == names


def test_names_in_another_encoding_are_keys_that_can_be_printed(tmp_path):
    members = [("kätzchen.png", b"1"), ("kötzchen.png", b"2")]
    path = tar_of(tmp_path / "x.tar", members, encoding="latin-1")
    for shard in (Shard.open(path), reopen(path)):
        assert keys(shard) == [r"k\xe4tzchen", r"k\xf6tzchen"]
        assert [shard.image(0), shard.image(1)] == [b"1", b"2"]


def test_a_field_twice_is_a_problem_and_the_first_one_counts(tmp_path):
    members = [("a.png", b"1"), ("a.PNG", b"2"), ("b.png", b"3")]
    shard = Shard.open(tar_of(tmp_path / "x.tar", members))
    assert [shard.image(0), shard.image(1)] == [b"1", b"3"]
    assert shard.problems == ["member 'a.PNG' is there twice: the first one is used"]


@pytest.mark.parametrize("label", [b"cat", b"", b"1.5", b"\xff\xfe"])
def test_a_label_that_is_no_number_is_a_bad_sample(label, tmp_path):
    path = tar_of(tmp_path / "x.tar", [("a.png", image()), ("a.cls", label)])
    with pytest.raises(BadSample, match=r"x\.tar: sample 'a': its label .* is not a number") as caught:
        Shard.open(path).label(0)
    assert (caught.value.shard, caught.value.key) == (str(path), "a")


def test_a_sample_without_an_image_is_bad(tmp_path):
    shard = Shard.open(tar_of(tmp_path / "x.tar", [("a.cls", b"1"), ("a.txt", b"cat")]))
    for use in (Shard.image, read_native_size):
        with pytest.raises(BadSample, match="sample 'a': it has no image, only cls, txt"):
            use(shard, 0)
    with pytest.raises(BadSample, match=r"sample 'a': it has no \.json"):
        shard.read(0, "json")


@pytest.mark.parametrize("data", [b"", b"<html>", image()[:20]])
def test_an_image_without_a_header_is_a_bad_sample(data, tmp_path):
    shard = Shard.open(tar_of(tmp_path / "x.tar", [("a.png", data)]))
    with pytest.raises(BadSample, match="sample 'a': it cannot be decoded"):
        read_native_size(shard, 0)


def test_a_decompression_bomb_is_a_bad_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 50)
    shard = Shard.open(tar_of(tmp_path / "x.tar", [("a.png", image())]))
    with pytest.raises(BadSample, match="sample 'a': 9x6 pixels are more than 50"):
        read_native_size(shard, 0)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("block", ["icc", "exif"])
def test_headers_longer_than_what_is_read_first(kind, block, tmp_path):
    long = bytes(np.random.default_rng(0).integers(0, 256, 40_000, np.uint8))
    tags = Image.Exif()
    tags[image_files.ORIENTATION] = 6
    tags[0x9286] = long
    options = {"icc_profile": long} if block == "icc" else {"exif": tags.tobytes()}
    data = image(kind, 30, 20, **options)
    assert len(data) > 2 * decode_module.HEAD_BYTES
    shard = Shard.open(tar_of(tmp_path / "x.tar", [(f"a.{kind}", data)]))
    assert read_native_size(shard, 0) == ((20, 30) if block == "exif" else (30, 20))


def test_the_native_size_of_a_large_image_needs_its_head_only(tmp_path, monkeypatch):
    data = image("jpeg", 200, 300, quality=98)
    shard = Shard.open(tar_of(tmp_path / "x.tar", [("a.jpg", data)]))
    sizes = []

    def spy(self, index, field, size=None, read=Shard.read):
        sizes.append(size)
        return read(self, index, field, size)

    monkeypatch.setattr(Shard, "read", spy)
    assert read_native_size(shard, 0) == (200, 300)
    assert sizes == [decode_module.HEAD_BYTES]


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def declaring(shape: str, descr: str = "<f4") -> bytes:
    """A .npy file that says its array is of this shape, and holds 16 bytes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (117 - len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.float16(3), np.zeros((0, 4), np.uint8)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(array, order, tmp_path):
    array = np.asarray(array, order=order)
    path = tar_of(tmp_path / "x.tar", [("a.png", image()), ("a.npy", npy(array))])
    found = Shard.open(path).array(0, "npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)
    assert found.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        declaring("(2000000000, 1000)"),
        declaring("(-1, -4)"),
        declaring("(" * 300 + ")" * 300),
        declaring("(4,)", "|O"),
        declaring("(5,)"),
        declaring("(2,)", "nonsense"),
        npy(np.array([{}, 1], object), pickled=True),
        zipped(),
        b"",
        b"\x93NUMPY",
        b"\x80\x04]\x94.",
    ],
    ids=["huge", "negative", "deep", "objects", "short", "dtype", "pickled", "npz", "empty", "cut", "pickle"],
)
def test_an_array_that_is_none_is_a_bad_sample_and_takes_no_memory(data, tmp_path):
    path = tar_of(tmp_path / "x.tar", [("a.png", image()), ("a.npy", data)])
    tracemalloc.start()
    with pytest.raises(BadSample, match=r"sample 'a': its \.npy is not a \.npy file"):
        Shard.open(path).array(0, "npy")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_other_programs_would_have_to_decode_is_a_bad_sample(tmp_path, monkeypatch):
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "eps")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tar_of(tmp_path / "x.tar", [("a.jpg", eps.getvalue())])
    with pytest.raises(BadSample, match="sample 'a': it cannot be decoded"):
        read_native_size(Shard.open(path), 0)


def test_pictures_of_two_frames_are_jpegs(tmp_path):
    buffer = io.BytesIO()
    frame = Image.open(io.BytesIO(image("jpeg", 10, 12)))
    frame.save(buffer, "mpo", save_all=True, append_images=[frame])
    shard = Shard.open(tar_of(tmp_path / "x.tar", [("a.jpg", buffer.getvalue())]))
    assert read_native_size(shard, 0) == (10, 12)


# ---- damage ----


def test_a_shard_that_is_missing_or_no_tar_is_bad(tmp_path):
    with pytest.raises(BadShard, match=r"none\.tar: it cannot be read \(No such file") as caught:
        Shard.open(tmp_path / "none.tar")
    assert caught.value.shard == str(tmp_path / "none.tar")
    for data in (b"", b"x", b"<html>" * 500, image("png", 40, 40)):
        path = tmp_path / f"{len(data)}.tar"
        path.write_bytes(data)
        with pytest.raises(BadShard, match="it is not a readable tar file"):
            Shard.open(path)
    with pytest.raises(BadShard, match="it cannot be read"):
        Shard.open(tmp_path)


def test_an_empty_tar_has_no_samples_and_no_problems(tmp_path):
    shard = Shard.open(tar_of(tmp_path / "x.tar", []))
    assert (len(shard), shard.problems) == (0, [])


def test_a_tar_that_is_cut_off_anywhere_keeps_whole_samples_and_names_the_loss(tmp_path):
    whole = three_samples(tmp_path / "whole.tar")
    shard = Shard.open(whole)
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 512
    for size in range(128, end + 512, 128):
        path = tmp_path / f"{size}.tar"
        path.write_bytes(data[:size])
        try:
            cut = Shard.open(path)
        except BadShard:
            assert size <= members[0].offset_data
            continue
        assert len(cut.problems) == 1, size
        assert "it breaks off in or after" in cut.problems[0]
        assert "read length" not in cut.problems[0]
        # The last sample that began may lack members, so it is left out.
        assert len(cut) == sum(sample.offset + 512 <= size for sample in members[::2]) - 1
        for index in range(len(cut)):
            assert cut.key(index) == shard.key(index)
            assert cut.image(index) == shard.image(index)
            assert cut.label(index) == 1


def test_a_damaged_header_in_the_middle_is_named(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        header = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"?" * 512
    path.write_bytes(data)
    shard = Shard.open(path)
    assert keys(shard) == ["s0"]
    [problem] = shard.problems
    assert "it breaks off in or after 's1.cls'" in problem
    assert "what follows is lost" in problem


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_damaged_tars_raise_nothing_but_value_error(kind, tmp_path):
    whole = tar_of(tmp_path / "x.tar", [("ä" * 60 + f"/{i}.png", b"123") for i in range(2)], kind)
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "broken.tar"
    written = np.flatnonzero(np.frombuffer(data, np.uint8))
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.choice(written, 2):
            broken[place] = rng.integers(256)
        path.write_bytes(repair_checksums(broken))
        try:
            index_module.build_index(LocalFile(str(path)))
        except ValueError as error:
            assert "not a readable tar" in str(error)  # noqa: PT017


def test_an_impossible_size_is_damage(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        header = tar.getmembers()[2].offset
    broken = bytearray(path.read_bytes())
    broken[header + 124 : header + 136] = b"\x80" + b"\x7f" * 11  # 2**87, as GNU tar writes large numbers
    path.write_bytes(repair_checksums(broken))
    shard = Shard.open(path)
    assert keys(shard) == ["s0"]
    assert len(shard.problems) == 1


def repair_checksums(data: bytearray) -> bytearray:
    """Give every header in a tar the sum of its bytes, so that damage elsewhere in it comes to light."""
    for header in range(0, len(data), 512):
        if data[header + 257 : header + 262] == b"ustar":
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    return data


def test_a_file_that_vanishes_or_shrinks_after_opening_is_a_bad_shard(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    shard = Shard.open(path)
    os.truncate(path, 600)
    with pytest.raises(BadShard, match="became shorter"):
        shard.image(2)
    path.unlink()
    with pytest.raises(BadShard, match="cannot be read"):
        Shard.open(path)


def test_an_open_shard_stays_what_it_was_when_its_file_is_replaced_or_removed(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    shard, pictures = Shard.open(path), [image("png", 9, height) for height in (4, 5, 7)]
    members = [
        (f"t{i}.{end}", data) for i, png in enumerate(pictures) for end, data in [("png", png), ("cls", b"7")]
    ]
    os.replace(tar_of(tmp_path / "y.tar", members), path)
    assert [shard.label(member) for member in range(3)] == [1, 1, 1]
    assert shard.image(2) == image()
    assert [Shard.open(path).label(member) for member in range(3)] == [7, 7, 7]
    path.unlink()
    assert shard.label(0) == 1


def test_a_file_that_is_written_to_gives_no_sample_of_another(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    shard, status = Shard.open(path), path.stat()
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(64))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**6))
    with pytest.raises(BadShard, match="it was written to"):
        shard.image(0)


def test_shards_that_nothing_uses_hold_no_descriptors(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    before = len(os.listdir("/proc/self/fd"))
    shards = [Shard.open(path) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    shards.clear()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_tars_one_behind_the_other_are_one_shard(kind, tmp_path):
    names = [f"{'x' * (90 if kind == tarfile.PAX_FORMAT else 1)}/katze-ä{i}" for i in range(3)]
    parts = [tar_of(tmp_path / f"{i}.tar", [(f"{n}.png", n.encode())], kind) for i, n in enumerate(names)]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(part.read_bytes() for part in parts) + bytes(10_240))
    shard = Shard.open(path)
    assert keys(shard) == names
    assert [shard.image(index).decode() for index in range(3)] == names
    assert shard.problems == []
    path.write_bytes(path.read_bytes() + b"rubbish" * 1000)
    shard = Shard.open(path)
    assert keys(shard) == names[:-1]  # as behind any damage, the last sample may lack members
    assert "it breaks off" in shard.problems[0]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("size", ["-1536", "-512", "-1", "-99999999"])
def test_a_size_below_zero_is_damage_and_ends(size, place, tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"s{number}.png")
            info.size = 1
            if number == place:
                info.pax_headers = {"size": size}
            tar.addfile(info, io.BytesIO(b"x"))
    if place == 0:
        with pytest.raises(BadShard, match="not a readable tar"):
            Shard.open(path)
    else:
        [problem] = Shard.open(path).problems
        assert "it breaks off in or after 's0.png'" in problem


def test_headers_inside_headers_without_end_are_damage(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    block = info.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")
    path = tmp_path / "x.tar"
    path.write_bytes(block * 3000)
    with pytest.raises(BadShard, match="not a readable tar"):
        Shard.open(path)


def test_a_header_that_names_an_impossible_size_takes_no_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**34
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    tracemalloc.start()
    with pytest.raises(BadShard, match="not a readable tar"):
        Shard.open(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


# ---- two ways to walk a tar ----


def walked(path: Path) -> tuple[list | None, list | str]:
    """What plain_members and all_members give; the name of the error of the latter."""
    file = LocalFile(str(path))
    plain = index_module.plain_members(file)
    try:
        return plain, list(index_module.all_members(file))
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        return plain, type(error).__name__


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_tars_are_walked_alike_and_others_are_left_to_tarfile(kind, tmp_path):
    names = ["a.jpg", "b/c.d.jpg", "b/c.cls", "d" * 90 + "/" + "e" * 60 + ".jpg"]
    path = tar_of(tmp_path / "x.tar", [(name, b"x" * (300 * i)) for i, name in enumerate(names)], kind)
    plain, every = walked(path)
    assert [name for name, _, _ in every] == names
    assert plain == (every if kind == tarfile.USTAR_FORMAT else None)  # the others write an entry of its own
    plain, every = walked(tar_of(tmp_path / "short.tar", [(name, b"1") for name in names[:3]], kind))
    assert plain == every
    with tarfile.open(tmp_path / "folder.tar", "w") as tar:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert walked(tmp_path / "folder.tar") == (None, [])


def test_damage_is_never_walked_over(tmp_path):
    whole = three_samples(tmp_path / "x.tar").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "broken.tar"
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        plain, every = walked(path)
        assert plain in (None, every)


# ---- the index on disk ----


def forbid_indexing(monkeypatch) -> None:
    monkeypatch.setattr(index_module, "build_index", lambda file: pytest.fail(f"{file} was indexed again"))


def test_an_index_is_built_once_and_kept(tmp_path, cache, monkeypatch):
    path = three_samples(tmp_path / "x.tar")
    first = Shard.open(path)
    [file] = cache.iterdir()
    assert file.suffix == ".npz"
    forbid_indexing(monkeypatch)
    second = reopen(path)
    for index in range(3):
        assert second.key(index) == first.key(index)
        assert second.fields(index) == first.fields(index)
        assert second.image(index) == first.image(index)


def test_problems_are_kept_with_the_index(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "x.tar", [("a.png", b"1"), ("a.png", b"2")])
    problems = Shard.open(path).problems
    forbid_indexing(monkeypatch)
    assert reopen(path).problems == problems != []


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "changed", "no fields"])
def test_a_damaged_index_is_made_again(damage, tmp_path, cache):
    path = three_samples(tmp_path / "x.tar")
    Shard.open(path)
    [file] = cache.iterdir()
    good = file.read_bytes()
    if damage == "no fields":
        np.savez(file, keys=np.zeros(3))
    else:
        middle = len(good) // 2
        changed = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
        file.write_bytes({"empty": b"", "text": b"{}", "cut": good[:-30], "changed": changed}[damage])
    assert keys(reopen(path)) == ["s0", "s1", "s2"]
    with np.load(file) as stored, np.load(io.BytesIO(good)) as again:
        assert all(np.array_equal(stored[name], again[name]) for name in again.files)


def test_an_index_takes_little_memory_and_old_ones_are_let_go(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for path in paths:
        tar_of(path, [(f"s{i:06d}.{end}", b"1") for i in range(500) for end in ("jpg", "cls")])
    index = index_module.open_index(LocalFile(str(paths[0])), None)
    assert index.nbytes / len(index.key_ends) < 70
    memory = shard_module.Memory(2 * index.nbytes)
    monkeypatch.setattr(shard_module, "_memory", memory)
    for path in [paths[0], *paths]:
        Shard.open(path)
    assert [memory.get(str(path)) is not None for path in paths] == [False, True, True]


def test_no_cache_is_needed(tmp_path, monkeypatch):
    path = three_samples(tmp_path / "x.tar")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "file"))
    assert keys(Shard.open(path)) == ["s0", "s1", "s2"]
    monkeypatch.setenv("PACKVIT_CACHE", "/proc/none")
    assert keys(reopen(path)) == ["s0", "s1", "s2"]


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    def full_disk(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(index_module.np, "savez", full_disk)
    assert len(Shard.open(three_samples(tmp_path / "x.tar"))) == 3
    assert list(cache.iterdir()) == []


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("PACKVIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Shard.open(three_samples(tmp_path / "x.tar"))
    assert len(list((tmp_path / "xdg" / "packvit" / "index").iterdir())) == 1


def test_a_replaced_file_is_indexed_anew(tmp_path):
    path = three_samples(tmp_path / "x.tar")
    assert keys(Shard.open(path)) == ["s0", "s1", "s2"]
    other = tar_of(tmp_path / "y.tar", [("t0.png", image()), ("t0.cls", b"2")])
    os.replace(other, path)
    shard = Shard.open(path)
    assert keys(shard) == ["t0"]
    assert shard.label(0) == 2
    # Of the same size, and a moment later.
    status = path.stat()
    tar_of(path, [("u0.png", image()), ("u0.cls", b"3")])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert path.stat().st_size == status.st_size
    assert keys(Shard.open(path)) == ["u0"]
