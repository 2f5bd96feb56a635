"""Models in object stores: what is needed of them, in the cache."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from packvit.common.stores.copies import copy_folder, url_of

WEIGHTS = (".safetensors", ".npz")
ABOUT = (".json", ".yaml", ".model")  # what describes a model: configurations, names of classes, tokenisers
MEASURED = "eval/results.json"


def local_model(path: str | Path) -> Path:
    """The path itself; of a model in an object store that of a copy, with all that lies beside it in the
    store and describes it.

    Raises:
        FileNotFoundError: there is no model.
        OSError: the store does not answer; names the URL.
        ImportError: obstore is not installed.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    above, _, name = url.rpartition("/")
    if not name.endswith(WEIGHTS):
        above, name = url, ""
    folder = copy_folder(above, "models", partial(choose, name=name))
    if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise FileNotFoundError(f"no model at {url}: there is no {name or 'model.safetensors'} in the store")
    parts = above.split("/")
    run = parts[:-2] if parts[-2] == "checkpoints" else parts[:-1] if parts[-1] == "best" else []
    if len(run) > 3:  # not the bucket itself
        copy_folder("/".join(run), "models", lambda names: [n for n in ("config.yaml",) if n in names])
    return folder / name


def choose(names: Collection[str], name: str) -> list[str]:
    """What is needed of a folder's objects.

    Args:
        name: of the file of weights; empty takes model.safetensors, or those of any name where there is none.
    """
    name = name or ("model.safetensors" if "model.safetensors" in names else "")
    beside = [one for one in names if "/" not in one]
    weights = [one for one in beside if one.endswith(WEIGHTS) and name in ("", one)]
    return weights + [one for one in (*beside, MEASURED) if one in names and one.endswith(ABOUT)]
