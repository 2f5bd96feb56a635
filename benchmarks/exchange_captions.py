"""Copy shards with captions exchanged among their images, which leaves nothing to learn.

    python benchmarks/exchange_captions.py runs/scenes-data/train runs/exchanged-data/train

Towers that train on the copy have to end at chance; if they do better, something other than the pairs tells
them which caption belongs to which image.
"""

import argparse
from pathlib import Path
from random import Random

from packvit.data import Shard, expand_shards
from packvit.data.make.write import Sample, write_shards


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="folder of shards with .jpg and .txt")
    parser.add_argument("out", type=Path, help="folder that gets the copy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shards = [Shard.open(path) for path in expand_shards(str(arguments.shards))]
    members = [(shard, member) for shard in shards for member in range(len(shard))]
    captions = [shard.read(member, "txt").decode() for shard, member in members]
    Random(arguments.seed).shuffle(captions)
    samples = (
        Sample(shard.key(member), shard.image(member), "jpg", None, caption)
        for (shard, member), caption in zip(members, captions, strict=True)
    )
    write_shards(samples, arguments.out, shard_size=500)


if __name__ == "__main__":
    main()
