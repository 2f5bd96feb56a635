"""Writing shards and image folders, and checking what was written."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.data import ClassTarget, Shard, check_shards, expand_shards, write_images, write_shards
from packvit.data.make import images as images_module
from packvit.data.make.images import KeyMaker, WriteConfig
from packvit.data.make.manifest import list_shards, read_manifest
from packvit.data.make.sources import number_classes
from packvit.data.make.write import Sample
from packvit.data.samples.decode import read_native_size
from packvit.packing.images import files as image_files


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "cache"))


def image(kind: str = "png", seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def samples(count: int, prefix: str = "s") -> list[Sample]:
    return [Sample(f"{prefix}/{i:02d}", image(seed=i), "png", i % 3) for i in range(count)]


def read_all(folder: Path) -> dict[str, tuple[bytes, int | None]]:
    shards = [Shard.open(path) for path in expand_shards(str(folder))]
    return {shard.key(i): (shard.image(i), shard.label(i)) for shard in shards for i in range(len(shard))}


# ---- write_shards ----


def test_shards_hold_the_samples_in_order(tmp_path):
    written = samples(7)
    paths = write_shards(iter(written), tmp_path / "new" / "set", shard_size=3)
    assert [path.name for path in paths] == [f"shard-{i:06d}.tar" for i in range(3)]
    written_files = {path.name for path in (tmp_path / "new" / "set").iterdir()}
    assert written_files == {*(path.name for path in paths), "manifest.json"}
    assert [len(Shard.open(path)) for path in paths] == [3, 3, 1]
    found = read_all(tmp_path / "new" / "set")
    assert list(found) == [sample.key for sample in written]
    assert list(found.values()) == [(sample.image, sample.label) for sample in written]
    assert all(not Shard.open(path).problems for path in paths)


def test_samples_may_lack_labels(tmp_path):
    [path] = write_shards(
        [Sample("a", image("jpeg"), "jpg"), Sample("b", image("webp"), "webp", 0)], tmp_path
    )
    shard = Shard.open(path)
    assert [shard.fields(0), shard.label(0), shard.label(1)] == [("jpg",), None, 0]
    assert [read_native_size(shard, 0), read_native_size(shard, 1)] == [(8, 10), (8, 10)]


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_shards(samples(3), tmp_path / name)
    one, two = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("written", "options", "message"),
    [
        ([], {}, "there is no sample to write"),
        (samples(2), {"shard_size": 0}, "shard_size=0 must be at least 1"),
        ([*samples(3), samples(1)[0]], {"shard_size": 2}, "sample key 's/00' must be unique"),
        (
            [*samples(1), Sample("a.b", b"", "png")],
            {},
            "sample key 'a.b' must be unique and contain no dot",
        ),
        ([Sample("", b"", "png")], {}, "sample key ''"),
    ],
)
def test_bad_samples_leave_nothing_behind(written, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_shards(written, tmp_path / "set", **options)
    assert list(tmp_path.glob("set/*")) == []


def test_a_source_that_fails_leaves_nothing_behind(tmp_path):
    def failing():
        yield from samples(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_shards(failing(), tmp_path, shard_size=2)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_not_written_over(tmp_path):
    write_shards(samples(1), tmp_path)
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(samples(2), tmp_path)
    assert len(read_all(tmp_path)) == 1
    write_shards(samples(2), tmp_path, prefix="other")
    assert len(expand_shards(str(tmp_path))) == 2


# ---- write_images ----


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(("cats", "Dogs", "ants")):
        (folder / name / "deep").mkdir(parents=True)
        for i in range(4):
            kind, suffix = [("jpeg", "jpg"), ("png", "PNG"), ("webp", "webp"), ("jpeg", "JPEG")][i]
            (folder / name / "deep" / f"{i}.{suffix}").write_bytes(image(kind, 10 * number + i))
    (folder / "notes.txt").write_text("x")
    (folder / "cats" / "list.csv").write_text("x")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "t.jpg").write_bytes(image("jpeg"))
    return folder


def test_every_image_of_a_folder_is_stored_as_it_is(photos, tmp_path):
    steps = []
    report = write_images(
        photos, tmp_path / "out", WriteConfig(shard_size=5), lambda *step: steps.append(step)
    )
    classes = ["Dogs", "ants", "cats"]
    assert report.classes == json.loads((tmp_path / "out" / "classes.json").read_text()) == classes
    assert report.images == {tmp_path / "out": 12}
    assert report.broken == []
    assert report.left_out == [str(photos / "notes.txt"), str(photos / "cats" / "list.csv")]
    assert steps == [(i, 12) for i in range(1, 13)]
    found = read_all(tmp_path / "out")
    files = {
        path.relative_to(photos).with_suffix("").as_posix(): path for path in photos.glob("[!.]*/deep/*")
    }
    assert found == {
        key: (path.read_bytes(), classes.index(key.split("/")[0])) for key, path in files.items()
    }
    assert list(found) != sorted(found)
    assert len(expand_shards(str(tmp_path / "out"))) == 3


def test_a_share_of_every_class_is_held_out(photos, tmp_path):
    report = write_images(photos, tmp_path / "out", WriteConfig(val_fraction=0.25))
    train, val = read_all(tmp_path / "out" / "train"), read_all(tmp_path / "out" / "val")
    assert report.images == {tmp_path / "out" / "train": 9, tmp_path / "out" / "val": 3}
    assert not train.keys() & val.keys()
    assert sorted(label or 0 for _, label in val.values()) == [0, 1, 2]
    assert (tmp_path / "out" / "val" / "classes.json").exists()


def test_the_seed_decides_order_and_split(photos, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_images(photos, tmp_path / name, WriteConfig(val_fraction=0.5, seed=seed))
    one, two, three = (list(read_all(tmp_path / name / "train")) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_broken_images_are_left_out_and_named(photos, tmp_path):
    whole = image("png", 5)
    broken = {
        "empty.jpg": b"",
        "text.png": b"<html>",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": image("jpeg")[:-40],
        "chunk.png": whole[:40] + b"\xff" * 8 + whole[48:],
        "gif.png": b"GIF89a\x01\x00\x01\x00\x00\x00\x00",
    }
    for name, data in broken.items():
        (photos / "ants" / name).write_bytes(data)
    (photos / "ants" / "gone.jpg").symlink_to(photos / "nothing.jpg")
    report = write_images(photos, tmp_path / "out")
    assert len(read_all(tmp_path / "out")) == 12
    assert sorted(Path(line.split(": ")[0]).name for line in report.broken) == sorted(broken)
    assert any(line.endswith("gone.jpg (a link)") for line in report.left_out)


def test_an_image_of_a_wrong_suffix_gets_the_right_one(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.jpg").write_bytes(image("webp"))
    write_images(tmp_path / "in", tmp_path / "out")
    assert Shard.open(tmp_path / "out" / "shard-000000.tar").fields(0) == ("cls", "webp")


def test_phone_pictures_of_several_frames_are_jpegs(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    frame = Image.new("RGB", (20, 10))
    frame.save(tmp_path / "in" / "a" / "x.jpg", "mpo", save_all=True, append_images=[frame])
    assert write_images(tmp_path / "in", tmp_path / "out").broken == []
    assert Shard.open(tmp_path / "out" / "shard-000000.tar").fields(0) == ("cls", "jpg")
    assert check_shards(str(tmp_path / "out")).problems == {}


@pytest.mark.parametrize("fraction", [-0.1, 1, 2])
def test_a_share_outside_its_range_is_an_error(fraction, photos, tmp_path):
    with pytest.raises(ValueError, match=f"val_fraction={fraction} must be in"):
        write_images(photos, tmp_path / "out", WriteConfig(val_fraction=fraction))


def test_folders_that_hold_no_set_are_errors(photos, tmp_path):
    with pytest.raises(ValueError, match="missing is neither a folder"):
        write_images(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ValueError, match="has no class folders"):
        write_images(photos / "cats" / "deep", tmp_path / "out")
    (tmp_path / "bare" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no images"):
        write_images(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(ValueError, match=r"val would be empty: val_fraction=0\.01"):
        write_images(photos, tmp_path / "out", WriteConfig(val_fraction=0.01))
    write_images(photos, tmp_path / "out")
    with pytest.raises(ValueError, match="already holds shards"):
        write_images(photos, tmp_path / "out")


def test_a_csv_of_paths_and_labels_becomes_shards(photos, tmp_path):
    rows = [
        "path,label,more",
        "cats/deep/0.jpg,cat,1",
        "ants/deep/1.PNG,ant,2",
        ",cat,3",
        "ants/deep/2.webp,,4",
    ]
    rows += [f"{photos / 'Dogs/deep/0.jpg'},dog,5", "cats/none.jpg,cat,6"]
    (photos / "list.csv").write_text("\n".join(rows))
    report = write_images(photos / "list.csv", tmp_path / "out")
    assert report.classes == ["ant", "cat", "dog"]
    assert sorted(label or 0 for _, label in read_all(tmp_path / "out").values()) == [0, 1, 2]
    assert [line.split(": ")[0][-6:] for line in report.left_out] == ["line 4", "line 5"]
    assert "cats/none.jpg" in report.broken[0]
    (photos / "bad.csv").write_text("file,label\na.jpg,1\n")
    with pytest.raises(ValueError, match=r"bad\.csv has no column 'path', only file, label"):
        write_images(photos / "bad.csv", tmp_path / "bad")
    (photos / "bad.csv").write_bytes(b"path,label\n\xff.jpg,1\n")
    with pytest.raises(ValueError, match=r"bad\.csv is not a CSV file in UTF-8"):
        write_images(photos / "bad.csv", tmp_path / "bad")
    (photos / "bad.csv").write_text("path,label\na.jpg,-1\n")
    with pytest.raises(ValueError, match=r"bad\.csv: label -1 is negative"):
        write_images(photos / "bad.csv", tmp_path / "bad")
    (photos / "bad.csv").write_text("path,label\na.jpg,1000000000\n")
    with pytest.raises(ValueError, match=r"bad\.csv: label 1000000000 would be one of as many classes"):
        write_images(photos / "bad.csv", tmp_path / "bad")
    (photos / "bad.parquet").write_text("path")
    with pytest.raises(ValueError, match=r"bad\.parquet is not a Parquet file"):
        write_images(photos / "bad.parquet", tmp_path / "bad")


def test_what_is_no_file_is_not_read(photos, tmp_path, monkeypatch):
    """A device has no end, and a pipe no writer."""
    os.mkfifo(photos / "pipe.jpg")
    (photos / "sparse.jpg").touch()
    os.truncate(photos / "sparse.jpg", 2**30 + 1)
    rows = ["path,label", "cats/deep/0.jpg,0", "/dev/zero,0", "pipe.jpg,0", "sparse.jpg,0"]
    (photos / "list.csv").write_text("\n".join(rows))
    report = write_images(photos / "list.csv", tmp_path / "out")
    assert report.images == {tmp_path / "out": 1}
    assert sorted(report.broken) == [
        "dev/zero: it is not a regular file",
        "pipe.jpg: it is not a regular file",
        "sparse.jpg: its 1073741825 bytes are more than 1073741824",
    ]


def test_labels_that_are_no_whole_numbers_are_names():
    """Two labels never become one class."""
    assert number_classes([2, 0, 2], Path("a.csv")) == (["0", "1", "2"], {2: 2, 0: 0})
    assert number_classes(["1", 2.0], Path("a.csv")) == (["0", "1", "2"], {"1": 1, 2.0: 2})
    assert number_classes([1.5, 1.0], Path("a.csv")) == (["1.0", "1.5"], {1.0: 0, 1.5: 1})
    assert number_classes(["cat", "ant"], Path("a.csv")) == (["ant", "cat"], {"ant": 0, "cat": 1})


@pytest.mark.parametrize("named", [True, False])
def test_parquet_of_hugging_face_becomes_shards(named, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    (tmp_path / "in").mkdir()
    images = [image("jpeg", i) for i in range(20)]
    for part in range(2):
        table = arrow.table(
            {
                "image": [{"bytes": data, "path": None} for data in images[part::2]],
                "label": [i % 3 if i != 5 else None for i in range(part, 20, 2)],
            }
        )
        features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}} if named else {}
        described = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(described)
        write_table(table, tmp_path / f"in/{part}.parquet", row_group_size=4)
    report = write_images(tmp_path / "in", tmp_path / "out", WriteConfig(val_fraction=0.3))
    assert report.classes == (["x", "y", "z"] if named else ["0", "1", "2"])
    assert len(report.left_out) == 1
    train, val = read_all(tmp_path / "out/train"), read_all(tmp_path / "out/val")
    assert not train.keys() & val.keys()
    stored = sorted([*train.values(), *val.values()], key=lambda item: images.index(item[0]))
    assert stored == [(data, i % 3) for i, data in enumerate(images) if i != 5]
    with pytest.raises(ValueError, match="no column 'picture'"):
        write_images(tmp_path / "in", tmp_path / "other", WriteConfig(image_column="picture"))


@pytest.mark.parametrize("moment", ["while a shard is written", "while shards get their names"])
def test_writing_goes_on_after_a_kill(moment, photos, tmp_path, monkeypatch):
    write_images(photos, tmp_path / "whole", WriteConfig(shard_size=5))
    decoded = []

    def counted(data: bytes) -> str:
        decoded.append(data)
        if moment == "while a shard is written" and len(decoded) == 8:
            raise Killed
        return real(data)

    def killed_rename(self: Path, target: Path) -> Path:
        if self.name == ".shard-000001.tar.whole":
            raise Killed
        return rename(self, target)

    real, rename = images_module.extension_of, Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(images_module, "extension_of", counted)
        if moment == "while shards get their names":
            patch.setattr(Path, "rename", killed_rename)
        with pytest.raises(Killed):
            write_images(photos, tmp_path / "out", WriteConfig(shard_size=5))
        assert not (tmp_path / "out/classes.json").exists()
        patch.setattr(Path, "rename", rename)
        before = len(decoded)
        report = write_images(photos, tmp_path / "out", WriteConfig(shard_size=5))
        assert len(decoded) - before == (7 if moment == "while a shard is written" else 0)
    assert report.images == {tmp_path / "out": 12}
    whole = sorted((tmp_path / "whole").iterdir())
    assert [path.name for path in whole] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(whole) == 3 + 3  # shards, manifest, classes and the lock
    assert all(path.read_bytes() == (tmp_path / "out" / path.name).read_bytes() for path in whole)


class Killed(BaseException):
    """Ends a command where it is, as a kill does."""


def kill_after(images: int, photos: Path, out: Path, monkeypatch) -> None:
    """Pack `photos`, five to a shard, and end after so many of them."""
    decoded, real = [], images_module.extension_of

    def counted(data: bytes) -> str:
        if len(decoded) == images:
            raise Killed
        decoded.append(data)
        return real(data)

    with monkeypatch.context() as patch:
        patch.setattr(images_module, "extension_of", counted)
        with pytest.raises(Killed):
            write_images(photos, out, WriteConfig(shard_size=5))


def move(photos: Path) -> None:
    (photos / "ants/deep/0.jpg").rename(photos / "cats/deep/zz.jpg")


def change(photos: Path) -> None:
    (photos / "ants/deep/0.jpg").write_bytes(image("jpeg", 99))


def replace_one_by_another(photos: Path) -> None:
    (photos / "ants/deep/0.jpg").unlink()
    (photos / "ants/deep/1.jpg").write_bytes(image("jpeg", 99))


@pytest.mark.parametrize("happens", [move, change, replace_one_by_another])
def test_nothing_is_lost_or_twice_if_images_change_between_a_kill_and_going_on(
    happens, photos, tmp_path, monkeypatch
):
    kill_after(8, photos, tmp_path / "out", monkeypatch)
    happens(photos)
    report = write_images(photos, tmp_path / "out", WriteConfig(shard_size=5))
    assert report.images == {tmp_path / "out": 12}
    stored = sorted(data for data, _ in read_all(tmp_path / "out").values())
    assert stored == sorted(path.read_bytes() for path in photos.glob("[!.]*/deep/*"))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_shard_that_a_killed_command_left_is_checked(damage, photos, tmp_path, monkeypatch):
    """As one is that had not reached the disk when the machine lost its power."""
    kill_after(8, photos, tmp_path / "out", monkeypatch)
    left = tmp_path / "out/.shard-000000.tar.whole"
    data = left.read_bytes()
    left.write_bytes(data[:-1024] if damage == "cut" else data[:600] + bytes([data[600] ^ 1]) + data[601:])
    write_images(photos, tmp_path / "out", WriteConfig(shard_size=5))
    write_images(photos, tmp_path / "whole", WriteConfig(shard_size=5))
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_what_a_killed_command_left_of_other_images_goes(photos, tmp_path, monkeypatch):
    kill_after(8, photos, tmp_path / "out", monkeypatch)
    for number in range(3):
        (photos / f"cats/deep/{number}.jpg").unlink(missing_ok=True)
    write_images(photos, tmp_path / "out", WriteConfig(shard_size=100))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "classes.json", "manifest.json", "shard-000000.tar"}


def test_two_commands_never_write_to_one_folder(photos, tmp_path):
    def second(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another command is writing to"):
            write_images(photos, tmp_path / "out")

    assert write_images(photos, tmp_path / "out", progress=second).images == {tmp_path / "out": 12}


# ---- manifest.json ----


def test_the_manifest_says_what_every_shard_holds(photos, tmp_path):
    (photos / "ants" / "broken.jpg").write_bytes(b"")
    write_images(photos, tmp_path / "a", WriteConfig(shard_size=5, val_fraction=0.3))
    write_shards(samples(7), tmp_path / "b", shard_size=3)
    write_shards(samples(2), tmp_path / "b", prefix="other")
    for folder in (tmp_path / "a/train", tmp_path / "a/val", tmp_path / "b"):
        shards = [Path(path) for path in expand_shards(str(folder))]
        assert json.loads((folder / "manifest.json").read_text()) == {
            "shards": {
                path.name: {"samples": len(Shard.open(path)), "bytes": path.stat().st_size} for path in shards
            }
        }


def test_a_manifest_forgets_shards_that_are_gone_and_names_its_damage(tmp_path):
    for number, path in enumerate(write_shards(samples(2), tmp_path, shard_size=1)):
        if number == 0:
            path.unlink()
    list_shards(tmp_path, {"new.tar": (3, 4)})
    assert read_manifest(tmp_path).keys() == {"shard-000001.tar", "new.tar"}
    assert read_manifest(tmp_path / "none") == {}
    for text in ("{", "[]", '{"shards": {"a.tar": 1}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)


def test_keys_are_readable_unique_and_short():
    maker = KeyMaker()
    names = ["cats/tom.cat.jpg", "cats/tom_cat.png", "cats/tom_cat-2.png", "кот/a b.jpg", "x" * 99 + "/a.jpg"]
    keys = [maker.make(Path(name)) for name in names]
    assert keys[:4] == ["cats/tom_cat", "cats/tom_cat-2", "cats/tom_cat-2-2", "кот/a_b"]
    assert keys[4].startswith("long/")
    assert all(len(key.encode()) <= 80 and "." not in key for key in keys)


# ---- check_shards ----


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_good_set_has_no_problems(tmp_path):
    write_shards(samples(5), tmp_path / "set", shard_size=2)
    steps = []
    report = check_shards(str(tmp_path / "set"), lambda *step: steps.append(step))
    assert (report.shards, report.samples, report.problems) == (3, 5, {})
    assert str(report) == "3 shards, 5 samples\nno problems"
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_every_kind_of_problem_is_counted_and_named(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    good, label = image(), b"1"
    big = io.BytesIO()
    Image.new("RGB", (100, 100)).save(big, "png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 9999)
    a = tar_of(
        folder / "a.tar",
        [
            ("good.png", good),
            ("good.cls", label),
            ("cut.png", good[:-60]),
            ("cut.cls", label),
            ("bomb.png", big.getvalue()),
            ("bomb.cls", label),
            ("bare.cls", label),
            ("unlabelled.png", good),
            ("negative.png", good),
            ("negative.cls", b"-1"),
            ("word.png", good),
            ("word.cls", b"cat"),
            ("good.png", good),
            ("good.cls", label),
        ],
    )
    b = tar_of(folder / "b.tar", [("good.png", good), ("good.cls", label), ("good.PNG", good)])
    (folder / "c.tar").write_bytes(b"no tar")
    tar_of(folder / "d.tar", [])
    whole = tar_of(tmp_path / "whole.tar", [("x.png", good), ("x.cls", label), ("y.png", good)]).read_bytes()
    (folder / "e.tar").write_bytes(whole[: -(len(whole) // 2)].rstrip(b"\0"))

    report = check_shards([str(folder)])
    assert (report.shards, report.samples) == (5, 10)
    assert {kind: len(sentences) for kind, sentences in report.problems.items()} == {
        "broken images": 3,
        "no label": 1,
        "bad labels": 2,
        "keys used twice": 2,
        "damaged shards": 2,
        "broken shards": 1,
        "empty shards": 1,
    }
    text = str(report)
    assert text.startswith("5 shards, 10 samples\n")
    assert "broken images: 3\n" in text
    assert f"{a}: sample 'cut': it cannot be decoded" in text
    assert f"{a}: sample 'bomb': 100x100 pixels are more than 9999" in text
    assert f"{a}: sample 'bare': it has no image" in text
    assert f"{a}: sample 'unlabelled'" in text
    assert f"{a}: sample 'negative': its label is -1" in text
    assert f"{a}: sample 'word': its label b'cat' is not a number" in text
    assert f"{a}: sample 'good' is already in {a}" in text
    assert f"{b}: sample 'good' is already in {a}" in text
    assert f"{folder / 'c.tar'}: it is not a readable tar file" in text
    assert f"{folder / 'd.tar'} holds no sample" in text
    assert f"{folder / 'e.tar'}: it breaks off in or after" in text


def test_ten_problems_of_a_kind_are_shown_and_where_labels_may_be_instead(tmp_path):
    document = b'{"width": 8, "meta": {"id": 4}, "label": 3, "good": true, "caption": "12"}'
    fields = [("png", image()), ("json", document), ("txt", b"a cat"), ("id", b"77")]
    members = [(f"s{number:02d}.{name}", data) for number in range(37) for name, data in fields]
    path = str(tar_of(tmp_path / "a.tar", members))
    lines = str(check_shards(path)).splitlines()
    assert lines[:2] == ["1 shards, 37 samples", "no label: 37"]
    assert lines[11] == f"  {path}: sample 's09'"
    assert lines[12:] == [
        "  and 27 more like it",
        "fields seen in samples without a good label: png, json, txt, id: try --label-field json:label "
        "(in training --data.label-field json:label)",
    ]
    report = check_shards(path, labels=ClassTarget("json:label"))
    assert str(report) == "1 shards, 37 samples\nno problems"
    assert set(check_shards(path).numbers) == {"json:width", "json:meta.id", "json:label", "id"}


def test_checking_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such shard"):
        check_shards(str(tmp_path / "none.tar"))
