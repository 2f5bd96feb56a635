"""Many tiny shards: real tars with two small JPEGs each, under keys of their own."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLES = 2  # in each shard
SIDES = (24, 32, 40, 48)  # pixels
PICTURES = 64  # different ones


def make_pictures() -> list[bytes]:
    """JPEGs of noise of different sizes."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        height, width = rng.choice(SIDES, 2)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "jpeg", quality=50)
        pictures.append(file.getvalue())
    return pictures


def make_shard(number: int, pictures: list[bytes]) -> bytes:
    """A tar with `SAMPLES` images and their labels, 0 to 9."""
    whole = io.BytesIO()
    with tarfile.TarFile(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place in range(number * SAMPLES, (number + 1) * SAMPLES):
            for field, data in (("jpg", pictures[place % PICTURES]), ("cls", b"%d" % (place % 10))):
                member = tarfile.TarInfo(f"{place:09d}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def make_shards(folder: Path, number: int) -> None:
    """Fill a folder with so many shards, shard-000000.tar and so on."""
    folder.mkdir(parents=True)
    pictures = make_pictures()
    for place in range(number):
        (folder / f"shard-{place:06d}.tar").write_bytes(make_shard(place, pictures))
