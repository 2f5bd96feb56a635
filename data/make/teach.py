"""Write shards again with a teacher's logits in them: `key.jpg`, `key.cls` and, say, `key.teacher.npy`."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from webdataset.writer import TarWriter

from packvit.data.shards.shard import Shard


def write_with_logits(shard: Shard, target: Path, logits: Mapping[str, np.ndarray], field: str) -> None:
    """Write the samples of `shard` that have `logits`, by key, to `target` with the logits in `field`.

    All other fields are copied as they are; `target` appears whole or not at all.
    """
    partial = target.with_name(f".{target.name}.partial")
    with TarWriter(str(partial), mtime=0, user="packvit", group="packvit", encoder=False) as writer:
        for member in range(len(shard)):
            key = shard.key(member)
            if key in logits:
                buffer = io.BytesIO()
                np.save(buffer, logits[key])
                fields = {name: shard.read(member, name) for name in shard.fields(member)}
                writer.write({"__key__": key, **fields, field: buffer.getvalue()})
    partial.rename(target)
