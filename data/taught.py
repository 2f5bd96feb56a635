"""Logits of a teacher that lie in the shards: `key.jpg`, `key.cls` and, say, `key.teacher.npy`."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from webdataset.writer import TarWriter

from packvit.data.shards import BadSample, Shard


@dataclass(frozen=True)
class StoredLogits:
    """Where a sample's logits are.

    Args:
        field: of every sample; a .npy file of floats [classes].
        classes: how many the student has.
    """

    field: str
    classes: int

    def read(self, shard: Shard, member: int) -> np.ndarray:
        """float [classes], as it is stored.

        Raises:
            BadSample: the sample lacks them, or they are of another shape or no numbers.
        """
        logits = shard.array(member, self.field)
        if logits.shape != (self.classes,) or logits.dtype.kind != "f":
            raise BadSample(
                shard.path,
                shard.key(member),
                f"its .{self.field} holds {logits.dtype} {list(logits.shape)}, not floats [{self.classes}]",
            )
        return logits


def write_taught(shard: Shard, target: Path, logits: Mapping[str, np.ndarray], field: str) -> None:
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
