"""Whether a checkpoint is complete and harmless: a hash of every file, and no pickle that runs code.

Each rank writes the hashes of its own files beside them, `hashes-00000.json` and so on, when the files have
reached the disk. A checkpoint whose files do not match is damaged; otherwise a flipped bit in its tensors
would get into the weights unnoticed.
"""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from packvit.common.files import hash_file, sync

# All that the metadata of torch.distributed.checkpoint is made of: module and names.
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "WindowsPath"},
}


def seal(folder: Path, files: Iterable[Path], rank: int) -> None:
    """Flush `files` below `folder`, all written by this rank, to the disk, and write their hashes."""
    hashes = {}
    for path in sorted(files):
        sync(path)
        hashes[path.relative_to(folder).as_posix()] = hash_file(path)
    target = folder / f"hashes-{rank:05d}.json"
    target.write_text(json.dumps(hashes, indent=1) + "\n")
    for path in (target, folder / "state", folder):
        sync(path)


def has_hashes(folder: Path) -> bool:
    """Whether `seal` was called for a checkpoint."""
    return any(folder.glob("hashes-*.json"))


def check_files(folder: Path, ranks: int) -> None:
    """Compare all files of a checkpoint with their hashes.

    Args:
        ranks: number of ranks that wrote it.

    Raises:
        ValueError: a file is missing or differs; names it.
    """
    lists = len(list(folder.glob("hashes-*.json")))
    if lists != ranks:
        raise ValueError(f"{ranks} ranks wrote it, but {lists} files have hashes")
    for rank in range(ranks):
        list_name = f"hashes-{rank:05d}.json"
        try:
            hashes = json.loads((folder / list_name).read_text())
            differ = [name for name, expected in hashes.items() if hash_file(folder / name) != expected]
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{list_name}: {error}") from error
        if differ:
            raise ValueError(f"{', '.join(differ)} changed after it was written")


class _MetadataReader(pickle.Unpickler):
    """Reads nothing but metadata: a pickle could call any function."""

    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler."""
        if name not in ALLOWED.get(module, ()):
            raise ValueError(f"it holds {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def tensor_names(path: Path) -> set[str]:
    """The tensors in a checkpoint of torch.distributed.checkpoint; anything else in it would be unpickled.

    Args:
        path: the file `.metadata`.

    Raises:
        ValueError: the file is damaged, or would run code when it is read.
    """
    try:
        with path.open("rb") as file:
            metadata = _MetadataReader(file).load()
        assert isinstance(metadata, Metadata)
        found = metadata.state_dict_metadata.items()
        return {name for name, kind in found if type(kind) is TensorStorageMetadata}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path.name}: {error}") from error
