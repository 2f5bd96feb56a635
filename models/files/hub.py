"""Models from the Hugging Face hub by name, and the class that makes PackedViT a model of the hub."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packvit.common.optional import need

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin as HubModel
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin as HubModel
    except ImportError:

        class HubModel:
            """Stands in for huggingface_hub's class where that is not installed."""

            def __init_subclass__(cls, **about: Any) -> None:
                super().__init_subclass__()

            def save_pretrained(self, *_: Any, **__: Any) -> None:
                """Says what is missing."""
                need("huggingface_hub", "hub", "the Hugging Face hub needs huggingface_hub")

            push_to_hub = save_pretrained


__all__ = ["HubModel", "download", "is_hub_name"]

PREFIX = "hf-hub:"
FILES = ["*.safetensors", "*.json", "*.npz"]


def is_hub_name(name: str) -> bool:
    """Whether `name` looks like org/name or hf-hub:org/name, and not like a file of weights."""
    return bool(re.fullmatch(rf"(?:{PREFIX})?\w[\w.-]*/[\w.-]+(?<!\.npz)(?<!\.safetensors)", name))


def download(name: str, **options: Any) -> Path:
    """The folder of a model on the hub: weights and JSON files, from the cache if they are there.

    Args:
        options: options of huggingface_hub's snapshot_download, such as revision.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: the hub has no such model for this user, or cannot be reached.
        OSError: the hub refuses; the message is the first line of the hub's answer.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise ImportError(
            f"no model at {name}: not a path here, and the Hugging Face hub needs huggingface_hub: "
            "pip install 'packvit[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name.removeprefix(PREFIX), allow_patterns=FILES, **options))
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no model at {name}: neither a path here nor a model on the Hugging Face hub that you may read "
            "(`hf auth login` for a private one)"
        ) from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"no model at {name}: not a path here, and the Hugging Face hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        raise OSError(
            f"no model at {name}: the Hugging Face hub answers {str(error).splitlines()[0]}"
        ) from None
