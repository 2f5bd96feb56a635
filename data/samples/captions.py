"""Captions: texts about an image, of which an epoch shows one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from packvit.data.samples.targets import Target, json_value
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.packing import Collated, derive_seed


@dataclass(frozen=True)
class CaptionTarget(Target):
    """The captions of an image, at least one; each epoch draws one of them.

    Args:
        field: `txt`, or another field of text whose lines are captions; or `json:PLACE`, a dotted name inside
            a JSON document that holds a text or a list of texts.
        encode: turns the drawn caption into, for example, tokens; a ValueError from it makes a bad sample.
        pack: makes the target from the encoded captions of a batch.
    """

    field: str = "txt"
    encode: Callable[[str], Any] = str
    pack: Callable[[Sequence[Any]], Collated] = list

    def __post_init__(self) -> None:
        # Fields are kept in small letters, and a name that begins with an underscore is webdataset's own.
        if not re.fullmatch(r"json:.+|[^/A-Z_:][^/A-Z:]*\.json:.+|[^/A-Z_:][^/A-Z:]*", self.field):
            raise ValueError(
                f"a field of captions, {self.field!r}, must be in lower case, such as txt or json:captions"
            )

    def read(self, shard: Shard, member: int) -> list[str]:
        """All captions, stripped; empty ones are left out.

        Raises:
            BadSample: the sample has none, or the field holds something else.
        """
        name, _, place = self.field.partition(":")
        if place:
            found = json_value(shard, member, name, place)
            texts = [found] if isinstance(found, str) else found or []
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                reason = f"its {self.field} is neither a text nor a list of texts"
                raise BadSample(shard.path, shard.key(member), reason)
        else:
            try:
                texts = shard.read(member, name).decode().splitlines()
            except UnicodeDecodeError as error:
                raise BadSample(shard.path, shard.key(member), f"its .{name} is not UTF-8 text") from error
        captions = [caption for text in texts if (caption := text.strip())]
        if not captions:
            raise BadSample(shard.path, shard.key(member), f"it has no caption in {self.field}")
        return captions

    def draw(self, value: Sequence[str], seed: int) -> Any:
        """One caption, encoded."""
        return self.encode(Random(derive_seed(seed, "caption")).choice(value))

    def collate(self, values: Sequence[Any]) -> Collated | None:
        """The result of `pack`."""
        return self.pack(values)


def read_captions(shards: ShardSet, kind: CaptionTarget, most: int) -> list[str]:
    """All captions of the first samples that can be used, up to `most`."""
    captions: list[str] = []
    for number in range(len(shards)):
        try:
            shard = shards.open(number)
            for member in range(len(shard)):
                if len(captions) >= most:
                    return captions[:most]
                try:
                    captions += kind.read(shard, member)
                except BadSample:
                    continue
        except BadShard:
            continue
    return captions[:most]
