"""Files of tensors."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from packvit.common.files import whole


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file that appears whole, with the permissions of any new file.

    Args:
        tensors: contiguous, on the CPU.
        metadata: texts in the file's header; by default they say that it is PyTorch's.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    with whole(path) as partial:
        try:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(dict(tensors), partial, {"format": "pt"} if metadata is None else dict(metadata))
            partial.chmod(mode)  # safetensors lets nobody but the owner read it
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
