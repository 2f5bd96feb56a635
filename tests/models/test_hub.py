"""Models by their name on the Hugging Face hub; no test goes there."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from packvit.models import PackedViT, ViTConfig, load_model, save_model

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = ViTConfig(width=16, depth=1, heads=2, num_classes=3, patch_buffer=8, pos_grid=(4, 4))


class HubError(OSError):
    pass


class NotFound(HubError):
    pass


class NotCached(FileNotFoundError):
    pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub: gives `answer`, a folder or an error, and keeps what was `asked`."""
    state = SimpleNamespace(answer=tmp_path / "snapshot", asked=[])
    state.answer.mkdir()

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        state.asked.append((repo_id, allow_patterns))
        if isinstance(state.answer, Exception):
            raise state.answer
        return str(state.answer)

    utils = SimpleNamespace(
        HfHubHTTPError=HubError, RepositoryNotFoundError=NotFound, LocalEntryNotFoundError=NotCached
    )
    module = SimpleNamespace(snapshot_download=snapshot_download, utils=utils)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    monkeypatch.chdir(tmp_path)
    return state


@pytest.mark.parametrize("name", ["org/name-1.5", "hf-hub:org/name-1.5", Path("org/name-1.5")])
def test_a_name_that_is_no_path_is_looked_up_on_the_hub(hub, name):
    save_model(PackedViT(TINY), hub.answer)
    assert load_model(name, drop_path=0.1).config.drop_path == 0.1
    assert hub.asked == [("org/name-1.5", ["*.safetensors", "*.json", "*.npz"])]


def test_what_is_here_is_never_asked_for(hub, tmp_path):
    save_model(PackedViT(TINY), tmp_path / "org" / "name")
    assert load_model("org/name").config == TINY
    for name in ("org/name.npz", "org/name.safetensors", "a/b/c", "name", "/org/name", "../name"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_model(name)
    assert not hub.asked


def test_a_single_file_of_any_name_will_do(hub):
    source = GOLDEN / "big_vision_flexivit_gap.weights.npz"
    (hub.answer / "flexivit.npz").write_bytes(source.read_bytes())
    assert load_model("google/flexivit").config == load_model(source).config
    (hub.answer / "other.npz").write_bytes(source.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        load_model("google/flexivit")


@pytest.mark.parametrize(
    ("weights", "files"),
    [
        ("timm_flexivit", {"config.json": {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}}),
        (
            "hf_siglip2_naflex",
            {"preprocessor_config.json": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}},
        ),
    ],
)
def test_pixels_are_normalised_as_the_files_beside_the_weights_say(hub, weights: str, files: dict):
    source = GOLDEN / f"{weights}.weights.safetensors"
    (hub.answer / "model.safetensors").write_bytes(source.read_bytes())
    for name, content in files.items():
        (hub.answer / name).write_text(json.dumps(content))
    config = load_model("org/name", heads=4).config
    assert (config.image_mean, config.image_std) == ((0.1, 0.2, 0.3), (1, 2, 3))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (NotFound("404"), "no model at org/name: neither a path here nor a model on the Hugging Face hub"),
        (NotCached("offline"), "no model at org/name: .* the Hugging Face hub cannot be reached"),
        (HubError("503 busy\nmore"), "no model at org/name: the Hugging Face hub answers 503 busy$"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, answer: Exception, message: str):
    hub.answer = answer
    with pytest.raises(OSError, match=message) as error:
        load_model("org/name")
    assert "\n" not in str(error.value)


def test_without_huggingface_hub_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"org/name.*pip install 'packvit\[hub\]'"):
        load_model("org/name")
