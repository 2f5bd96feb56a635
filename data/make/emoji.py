"""Emoji with captions: real image-text pairs, about 1,850 concepts, each drawn by four designers.

They come from the npm packages emoji-datasource-google, -twitter, -facebook and -apple, which are
MIT-licensed; the designers keep the rights to their pictures. They are read where npm has put them, and no
part of them is kept in this project. Three designers' pictures are for training, the fourth's for retrieval:
a model that knows a concept finds it in a style that it has never seen.
"""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from packvit.common.files import cache_path, check_writable
from packvit.data.make.write import Sample, check_no_shards, write_shards
from packvit.packing import derive_seed

DESIGNERS = ("google", "twitter", "facebook", "apple")
HELD_OUT = "apple"
VERSION = "16.0.0"
SIDE = 64  # pixels


def write_emoji(out: Path, packages: Path | None = None, seed: int = 0, shard_size: int = 500) -> int:
    """Write `out/train` with three designers' pictures and `out/val` with the fourth's, on white.

    A caption is a line: the concept's name, then its short names; `key` is DESIGNER-CODEPOINTS.

    Args:
        out: folder, created if missing.
        packages: a folder that holds the four packages, such as node_modules; None has npm fetch them into
            the cache folder, some 300 MB, unless they are there already.
        seed: of the order.

    Returns:
        How many concepts all four have drawn.

    Raises:
        ValueError: there are shards in `out`, npm is missing or fails, or a package is not as it should be.
    """
    check_writable(out, "the folder")
    for split in ("train", "val"):
        check_no_shards(out / split)
    packages = fetch_packages(cache_path("emoji")) if packages is None else packages
    concepts = read_concepts(packages)
    training = [designer for designer in DESIGNERS if designer != HELD_OUT]
    for split, designers in (("train", training), ("val", [HELD_OUT])):
        pairs = [(designer, concept) for designer in designers for concept in concepts]
        Random(derive_seed(seed, "emoji", split)).shuffle(pairs)
        write_shards(draw_samples(packages, pairs), out / split, shard_size)
    return len(concepts)


def fetch_packages(folder: Path) -> Path:
    """The folder in which npm has put the packages below `folder`, fetched if they are not there.

    Raises:
        ValueError: npm is missing or fails.
    """
    target = folder / "node_modules"
    if all((target / package_name(designer) / "emoji.json").exists() for designer in DESIGNERS):
        return target
    names = [f"{package_name(designer)}@{VERSION}" for designer in DESIGNERS]
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"emoji come from the npm packages {', '.join(names)}: install npm, or name a folder that holds "
            "them with --packages"
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--prefix", folder]
    result = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ValueError(f"npm cannot fetch {', '.join(names)}: {last}")
    return target


def package_name(designer: str) -> str:
    """The npm package with a designer's pictures."""
    return f"emoji-datasource-{designer}"


def read_concepts(packages: Path) -> list[dict[str, Any]]:
    """The concepts that all designers have drawn, as the packages' emoji.json describes them.

    Raises:
        ValueError: a package is missing or not as it should be.
    """
    path = packages / package_name(DESIGNERS[0]) / "emoji.json"
    try:
        concepts = json.loads(path.read_text(encoding="utf-8"))
        found = [c for c in concepts if all(c[f"has_img_{designer}"] for designer in DESIGNERS)]
        found = [c for c in found if c["image"] and c["unified"] and captions_of(c)]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a list of emoji") from None
    if not found:
        raise ValueError(f"{path} names no emoji that all of {', '.join(DESIGNERS)} have drawn")
    return found


def captions_of(concept: dict[str, Any]) -> list[str]:
    """The concept's name and short names in small letters and with spaces, each once."""
    names = [concept["name"] or concept["short_name"], *concept["short_names"]]
    texts = [" ".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in names]
    return list(dict.fromkeys(text for text in texts if text))


def draw_samples(packages: Path, pairs: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Sample]:
    """A sample of each (designer, concept).

    Raises:
        ValueError: a picture is missing or broken; names it.
    """
    for designer, concept in pairs:
        path = packages / package_name(designer) / "img" / designer / str(SIDE) / concept["image"]
        try:
            with Image.open(path) as image:
                picture = image.convert("RGBA")
        except OSError as error:
            raise ValueError(f"{path} is not a readable picture ({error})") from None
        # Loaders drop transparency, below which a file may hold any colour.
        white = Image.new("RGBA", picture.size, "white")
        buffer = io.BytesIO()
        Image.alpha_composite(white, picture).convert("RGB").save(buffer, "png")
        key = f"{designer}-{concept['unified'].lower()}"
        yield Sample(key, buffer.getvalue(), "png", caption="\n".join(captions_of(concept)))
