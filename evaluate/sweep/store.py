"""The results of a pass over a set so far, on the disk: one file for each chunk of images.

A file is written whole or not at all, so an evaluation that was killed continues with the chunks that are
missing, whatever the number of ranks and workers. Its tensors are read back one setting at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from packvit.common.files import write_whole
from packvit.common.tensors import save_tensors

Columns = Mapping[str, Tensor]  # [n, ...] by name: values of n images, in the order of the set


class ChunkStore:
    """Columns of values by chunk and setting.

    Args:
        folder: a folder for this pass alone, on storage that all ranks share; created with the first chunk.
        number: number of chunks.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number

    def done(self) -> list[int]:
        """Numbers of the chunks whose files exist and can be read, ascending; all, once finished."""
        if self._result.exists():
            return list(range(self.number))
        return [chunk for chunk in range(self.number) if self._is_whole(chunk)]

    def written(self) -> list[int]:
        """Like `done`, but without opening the files."""
        if self._result.exists():
            return list(range(self.number))
        return [chunk for chunk in range(self.number) if self._path(chunk).exists()]

    def write(self, chunk: int, columns: Mapping[str, Columns], skipped: Sequence[dict]) -> None:
        """Store the values of a chunk's images: columns by the setting's name, on any device."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{setting}:{name}": tensor.cpu().contiguous()
            for setting, found in columns.items()
            for name, tensor in found.items()
        }
        images = max((len(tensor) for tensor in tensors.values()), default=0)
        about = {"images": str(images), "skipped": json.dumps(list(skipped))}
        save_tensors(tensors, self._path(chunk), about)

    def gather(self, setting: str) -> dict[str, Tensor]:
        """The columns of all chunks' images at a setting, in the order of the set; none without images."""
        parts: dict[str, list[Tensor]] = {}
        start = f"{setting}:"
        for chunk in range(self.number):
            with safe_open(self._path(chunk), "pt") as file:
                for name in [name for name in list(file.keys()) if name.startswith(start)]:
                    parts.setdefault(name.removeprefix(start), []).append(file.get_tensor(name))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def images(self) -> int:
        """Images of all chunks that could be used."""
        return sum(int(facts["images"]) for facts in self._facts())

    def skipped(self) -> list[dict]:
        """The lines of all chunks' images that could not be used."""
        return [line for facts in self._facts() for line in json.loads(facts["skipped"])]

    def finish(self, result: Any) -> None:
        """Store a result as JSON in place of the columns that it was made from, when no rank reads them any
        more."""
        write_whole(self._result, json.dumps({"facts": list(self._facts()), "result": result}))
        for chunk in range(self.number):
            self._path(chunk).unlink(missing_ok=True)

    def result(self) -> Any:
        """The result that `finish` stored; None before."""
        return json.loads(self._result.read_text())["result"] if self._result.exists() else None

    @property
    def _result(self) -> Path:
        return self.folder / "result.json"

    def _facts(self) -> Iterator[dict[str, str]]:
        if self._result.exists():
            yield from json.loads(self._result.read_text())["facts"]
            return
        for chunk in range(self.number):
            with safe_open(self._path(chunk), "pt") as file:
                yield file.metadata()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.safetensors"

    def _is_whole(self, chunk: int) -> bool:
        try:
            with safe_open(self._path(chunk), "pt") as file:
                return "skipped" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False
