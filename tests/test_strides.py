"""Patches that overlap: cut every stride, embedded as a strided convolution, placed by their centres."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from packvit.cli.eval import main as evaluate
from packvit.cli.train import main as train
from packvit.common.json_lines import read_json_lines
from packvit.data import cut_image, pack_images
from packvit.evaluate import Predictor, Setting
from packvit.evaluate.plan.folder import read_evaluation
from packvit.models import Layout, PackedViT, ViTConfig
from packvit.models.resample import pi_resize
from packvit.packing import PackedBatch, View, full_view
from packvit.train.config import Config

BASE = ViTConfig(width=32, depth=2, heads=4, num_classes=5, patch_buffer=16, pos_grid=(5, 7))
CONFIGS = [
    BASE,
    replace(BASE, pos_embed="grid_2d", rope_coords="fractional", cls=True, pool="cls_mean"),
    replace(BASE, pos_embed="rope_2d", pos_coords="fractional_aspect", registers=2),
]
KINDS = [(16, 8), (16, 12), (12, 5), (8, 8)]  # patch size, stride


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """An image that each kind covers exactly."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (p + 2 * s, p + 4 * s, 3), dtype=np.uint8) for p, s in KINDS]


def random_model(config: ViTConfig) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pack(images: list[np.ndarray], kinds=KINDS) -> PackedBatch:
    return pack_images(images, [p for p, _ in kinds], stride=[s for _, s in kinds])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_pack_is_each_alone(pixels, config):
    model = random_model(config)
    out = model(pack(pixels))
    alone = [model(pack([image], [kind])) for image, kind in zip(pixels, KINDS, strict=True)]
    torch.testing.assert_close(out, torch.cat(alone), atol=1e-9, rtol=0)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert [tuple(each.shape) for each in model.tokens(pack(pixels))] == [(3, 5, 32)] * 4


def test_tokens_are_those_of_a_strided_convolution_of_the_resized_kernel(pixels):
    embed, batch = random_model(BASE).patch_embed, pack(pixels)
    layout = Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len)
    tokens = embed(batch.patches, batch.slots, layout.is_own)
    for number, (image, (p, stride)) in enumerate(zip(pixels, KINDS, strict=True)):
        kernel = pi_resize(embed.weight, (p, p), BASE.patch_operator).permute(3, 2, 0, 1)
        x = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 127.5 - 1
        wanted = F.conv2d(x, kernel, embed.bias, stride=stride)[0].flatten(1).T
        torch.testing.assert_close(tokens[batch.image_index == number], wanted, atol=1e-5, rtol=1e-5)


def test_every_token_stands_at_its_centre_and_counts_as_its_patch(pixels):
    batch = pack(pixels)
    for number, (image, (p, stride)) in enumerate(zip(pixels, KINDS, strict=True)):
        mine = batch.image_index == number
        centre = (batch.coords[mine] + batch.extents[mine] / 2) / batch.grids[number]
        rows, cols = (stride * torch.arange(n) + p / 2 for n in (3, 5))
        wanted = torch.cartesian_prod(rows / image.shape[0], cols / image.shape[1])
        torch.testing.assert_close(centre, wanted)
        assert batch.token_grids.get(number, tuple(batch.grids[number].tolist())) == (3, 5)
    facts = batch.facts()
    assert facts.patch_size.tolist() == [p for p, _ in KINDS]
    assert facts.resolution == pytest.approx([(i.shape[0] * i.shape[1]) ** 0.5 for i in pixels])
    assert facts.drop_rate.tolist() == [0] * 4
    view = replace(full_view((48, 48), 16, stride=8), num_tokens=10)
    dropped = cut_image(np.zeros((48, 48, 3), np.uint8), view, (48, 48), seed=3)
    assert PackedBatch.build([[dropped]], 10).facts().drop_rate.tolist() == [1 - 10 / 25]
    with pytest.raises(ValueError, match="image 0 keeps 10 of 5x5 tokens"):
        random_model(BASE).tokens(PackedBatch.build([[dropped]], 10))


def test_settings_with_strides_have_names_and_sizes_of_their_own():
    assert Setting(16, 224, stride=8).name == "r224-p16-s8"
    assert Setting(16, 224, stride=16) == Setting(16, 224)
    for setting in (Setting(16, 224, stride=8), Setting(16, tokens=27 * 27, stride=8)):
        assert setting.side == 224
        assert setting.view((224, 224)) == View((27, 27), (16, 16), 729, (0, 0, 224, 224), stride=8)
    with pytest.raises(ValueError, match="stride=17"):
        Setting(16, 224, stride=17)


def test_what_cannot_overlap_is_refused(pixels):
    with pytest.raises(ValueError, match=r"images\[0\]: stride=17"):
        pack([pixels[0]], [(16, 17)])
    with pytest.raises(ValueError, match=r"views\.strides=\(4,\).*model\.pos_coords"):
        Config(
            views=replace(Config().views, strides=(4,)), model=replace(Config().model, pos_coords="absolute")
        )
    for field in ("pos_coords", "rope_coords"):
        model = random_model(replace(BASE, **{field: "absolute"}))
        assert model(pack(pixels[3:], KINDS[3:])).shape == (1, 5)
        with pytest.raises(ValueError, match=rf"a batch of such patches: .* needs model\.{field}"):
            model(pack(pixels))


def test_a_run_with_strides_is_evaluated_with_them(run_flags, digits_set, tmp_path):
    run, out = tmp_path / "run", tmp_path / "eval"
    changes = {"views.patch-sizes": 12, "views.resolution.low": 32, "eval.resolutions": 48}
    changes |= {"eval.patch-sizes": 12, "train.steps": 2, "data.workers": 0}
    flags = run_flags(run, **changes, data__val_shards=digits_set / "val")
    train([*flags, "--views.strides", "6", "12", "--eval.no-cost"])
    assert set(read_json_lines(run / "metrics.jsonl")[-1]["loss_by_patch_size"]) == {"12"}
    rows = json.loads((run / "eval/results.json").read_text())["rows"]
    assert {row["setting"]: (row.get("stride"), row["tokens_per_image"] > 20) for row in rows} == {
        "r48-p12-s6": (6, True),
        "r48-p12": (None, False),
    }
    # The planner leaves such settings out, and says so.
    evaluated = read_evaluation(run / "eval")
    assert [row.setting.name for row in evaluated.rows] == ["r48-p12"]
    assert evaluated.left_out == ("r48-p12-s6 is left out: plans have no strides",)
    assert Predictor(run).choice.stages[0].setting.name in ("r48-p12", "r48-p12-s6")
    again = [str(run), "--out", str(out), "--workers", "0"]
    evaluate([*again, "--strides", "4", "--tokens", "60", "--no-cost"])
    assert [row["setting"] for row in json.loads((out / "results.json").read_text())["rows"]] == [
        "t60-p12-s4"
    ]
    with pytest.raises(ValueError, match="patch size 12 is smaller than every stride, 13"):
        evaluate([*again, "--strides", "13"])
    with pytest.raises(ValueError, match="strides do not go with both"):
        evaluate([*again, "--strides", "4", "--tokens", "60", "--resolutions", "48"])
