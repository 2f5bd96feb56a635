"""Write shards again with a teacher's logits in them: `key.jpg`, `key.cls` and, say, `key.teacher.npy`."""

import io
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

import numpy as np

from packvit.data.make.write import open_tar
from packvit.data.shards.shard import Shard


def write_with_logits(shard: Shard, target: Path, logits: Mapping[str, np.ndarray], field: str) -> int:
    """Write the samples of `shard` that have `logits`, by key, to `target` with the logits in `field`.

    All other fields are copied unchanged; `target` appears whole or not at all, even if several processes
    write it.

    Returns:
        The number of samples in `target`.
    """
    partial = target.with_name(f".{target.name.lstrip('.')}.{token_hex(4)}.partial")
    samples = 0
    with open_tar(partial) as writer:
        for member in range(len(shard)):
            key = shard.key(member)
            if key in logits:
                buffer = io.BytesIO()
                np.save(buffer, logits[key])
                fields = {name: shard.read(member, name) for name in shard.fields(member)}
                writer.write({"__key__": key, **fields, field: buffer.getvalue()})
                samples += 1
    partial.rename(target)
    return samples
