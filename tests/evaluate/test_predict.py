"""A prediction depends on its image and the setting, and on nothing that happens around it."""

import io
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from packvit.data import pack_images
from packvit.evaluate import Prediction, Predictor
from packvit.evaluate.plan.plan import Measured, Plan, PlannedModel, Preprocessing, Stage, write_plan
from packvit.evaluate.predict.read import read_pixels
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig, hash_model, save_model

CONFIG = ViTConfig(width=32, depth=2, heads=2, num_classes=7, patch_buffer=8, registers=1)
# Batched matrix products sum in another order; measured on these models: at most 4e-7.
CLOSE = 2e-6
SETTING = Setting(8, 40)


def make_model(config: ViTConfig = CONFIG, seed: int = 0) -> PackedViT:
    """Random weights; a head of zeros would say the same of everything."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PackedViT(config)
        if model.head is not None:
            torch.nn.init.normal_(model.head.weight)
    return model.eval()


def make_images(number: int, seed: int = 0) -> list[np.ndarray]:
    """Coloured images with large structures, of many shapes."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = tuple(rng.integers(9, 90, 2).tolist())
        images.append(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)))
    return images


def encode(image: np.ndarray, file_format: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, exif=exif)
    return buffer.getvalue()


def make_plan(model: PackedViT, *stages: Stage, **changes) -> Plan:
    config = model.config
    plan = Plan(
        PlannedModel("runs/digits", hash_model(model)),
        stages,
        Preprocessing(config.image_mean, config.image_std),
        Measured(0.9, 0.8, 0.95, 0.02, 20.0, 0.1, None),
    )
    return replace(plan, **changes)


def assert_same(found: list[Prediction], expected: list[Prediction]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.labels, a.names, a.tokens, a.setting, a.error) == (
            b.labels,
            b.names,
            b.tokens,
            b.setting,
            b.error,
        )
        np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def model() -> PackedViT:
    return make_model()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return make_images(120)


# ---- the same answers ----


@pytest.mark.parametrize("workers", [0, 3])
def test_an_answer_is_what_the_model_says_of_the_image_alone(model, images, workers):
    predictor = Predictor(model, None, 40, 8, top=7, features=True, workers=workers)
    for image, found in zip(images, predictor(images), strict=True):
        batch = pack_images([image], 8, 40)
        with torch.inference_mode():
            logits, features, _ = model.outputs(batch)
        scores = logits[0].softmax(0)
        assert found.labels == tuple(logits[0].argsort(descending=True).tolist())
        np.testing.assert_allclose(found.scores, scores[list(found.labels)], rtol=0, atol=CLOSE)
        assert found.features is not None
        np.testing.assert_allclose(found.features, features[0], rtol=0, atol=1e-4)
        assert (found.tokens, found.setting) == (batch.num_slots, "r40-p8")


def test_one_at_a_time_equals_all_at_once_equals_eight_threads(model, images):
    predictor = Predictor(model, None, tokens=20, patch_size=6, batch_tokens=300)
    at_once = predictor(images)
    assert len({answer.labels[0] for answer in at_once}) > 3
    assert_same([predictor([image])[0] for image in images], at_once)
    answers: dict[int, list[Prediction]] = {}
    files = [encode(image) for image in images]
    shared = [Image.open(io.BytesIO(data)) for data in files]  # Pillow reads their pixels when they are used

    def ask(number: int) -> None:
        own = (images, files, shared)[number % 3][number * 10 :]
        answers[number] = predictor(own)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert_same(answers[number], at_once[number * 10 :])


@pytest.mark.parametrize("batch_tokens", [1, 64, 1000])
def test_no_batch_has_more_tokens_than_allowed_nor_any_padding(batch_tokens, images, monkeypatch):
    model = make_model()
    seen = []
    outputs = model.outputs

    def watched(batch):
        seen.append((batch.num_slots, batch.num_images, batch.stats().tokens))
        return outputs(batch)

    monkeypatch.setattr(model, "outputs", watched)
    predictor = Predictor(model, None, 40, 8, batch_tokens=batch_tokens)
    answers = predictor(images)
    assert sum(number for _, number, _ in seen) == len(images)
    for slots, number, tokens in seen:
        assert slots == tokens
        assert slots <= batch_tokens or number == 1
    assert_same(answers, Predictor(make_model(), None, 40, 8)(images))


def test_a_stream_takes_no_more_images_than_it_needs(model, images):
    taken = 0

    def endless():
        nonlocal taken
        for image in itertools.cycle(images):
            taken += 1
            yield image

    predictor = Predictor(model, None, 40, 8, batch_tokens=100, workers=2)
    some = list(itertools.islice(predictor.stream(endless()), 50))
    assert taken < 70
    assert_same(some, predictor(images[:50]))


# ---- what an image may be ----


def test_sources_that_are_asked_for_their_bytes_are_images_as_all_others(tmp_path, images):
    path = tmp_path / "a.png"
    path.write_bytes(encode(images[0]))
    for source in (path.read_bytes, path, torch.tensor(images[0]).permute(2, 0, 1)):
        assert np.array_equal(np.asarray(read_pixels(source)), images[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_seen_as_people_see_them(orientation, images):
    data = encode(images[1], orientation=orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (upright.shape == images[1].shape) == (orientation < 5)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.array_equal(np.asarray(read_pixels(source)), upright)


def test_an_image_that_cannot_be_used_has_an_error_and_the_others_their_answers(model, images, tmp_path):
    predictor = Predictor(model, None, 40, 8)
    whole = encode(images[0], "JPEG")
    sources = [images[0], b"no image", images[1], tmp_path / "none.jpg", tmp_path, whole[:200], images[2]]
    answers = predictor(sources)
    assert_same([answers[i] for i in (0, 2, 6)], predictor(images[:3]))
    errors = [answers[i].error for i in (1, 3, 4, 5)]
    for error, what in zip(errors, ("decoded", "No such file", "regular", "decoded"), strict=True):
        assert what in str(error)
    assert predictor([b""])[0].labels == ()
    assert predictor([]) == []
    assert_same(predictor(image for image in images[:3]), predictor(images[:3]))


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ([b"", 3], r"images\[1\] must be an array .* not int"),
        ("photo.jpg", "must be a list"),
        (np.zeros((4, 4, 3), np.uint8), "must be a list"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(model, images, what):
    with pytest.raises(ValueError, match=what):
        Predictor(model, None, 40, 8)(images)


# ---- plans ----


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_cascade_equals_its_stages_run_by_hand(model, images, share, monkeypatch):
    """Also across windows. Thresholds lie between confidences, so that rounding decides nothing."""
    monkeypatch.setattr("packvit.evaluate.predict.predictor.WINDOW", 50)
    settings = [Setting(12, 24), Setting(8, 40), Setting(6, tokens=60, protocol="square")]
    temperatures = [2.0, 1.0, 0.7]
    single = [Stage(setting, t) for setting, t in zip(settings, temperatures, strict=True)]
    alone = [Predictor(model, make_plan(model, stage))(images) for stage in single]
    thresholds = []
    for answers in alone[:2]:
        scores = np.sort([answer.scores[0] for answer in answers])
        place = round(share * len(scores))
        low, high = [0.0, *scores.tolist(), 1.0][place : place + 2]
        thresholds.append((low + high) / 2)
    stages = [Stage(s.setting, s.temperature, t) for s, t in zip(single, [*thresholds, None], strict=True)]
    expected = []
    for first, second, third in zip(*alone, strict=True):
        if first.scores[0] >= thresholds[0]:
            expected.append(first)
        elif second.scores[0] >= thresholds[1]:
            expected.append(replace(second, tokens=first.tokens + second.tokens))
        else:
            expected.append(replace(third, tokens=first.tokens + second.tokens + third.tokens))
    assert_same(Predictor(model, make_plan(model, *stages))(images), expected)
    went = sum(answer.setting != settings[0].name for answer in expected)
    assert went == round(share * len(images))


def test_the_temperature_changes_scores_and_no_prediction(model, images):
    cold, hot = (Predictor(model, make_plan(model, Stage(SETTING, t)), top=7) for t in (1.0, 3.0))
    for a, b in zip(cold(images[:20]), hot(images[:20]), strict=True):
        assert a.labels == b.labels
        softer = np.array(a.scores) ** (1 / 3)
        np.testing.assert_allclose(b.scores, softer / softer.sum(), rtol=0, atol=1e-5)


def test_scores_of_sigmoid_models_are_sigmoids(model, images, tmp_path):
    run = save_model(model, tmp_path / "run/checkpoints/step-00000100")
    (tmp_path / "run/config.yaml").write_text("train:\n  loss: sigmoid\n")
    plan = make_plan(model, Stage(SETTING, 2.0))
    answer = Predictor(run, plan, top=7)([images[0]])[0]
    with torch.inference_mode():
        logits = model(pack_images([images[0]], 8, 40))[0]
    expected = (logits / 2).sigmoid().sort(descending=True).values
    np.testing.assert_allclose(answer.scores, expected, rtol=0, atol=CLOSE)
    assert_same([answer], Predictor(model, plan, top=7, loss="sigmoid")([images[0]]))


def test_a_plan_from_its_file_brings_names(model, images, tmp_path):
    names = tuple("abcdefg")
    plan = make_plan(model, Stage(SETTING, 1.5), classes=names)
    write_plan(plan, tmp_path / "plan.json")
    predictor = Predictor(model, tmp_path / "plan.json", top=2)
    assert "as planned" in predictor.choice.why
    for answer in predictor(images[:5]):
        assert answer.names == tuple(names[label] for label in answer.labels)
        assert len(answer.labels) == len(answer.scores) == 2


def test_a_plan_of_another_model_or_beside_a_setting_is_refused(model):
    plan = make_plan(model, Stage(SETTING, 1.0))
    with pytest.raises(ValueError, match="another model"):
        Predictor(make_model(seed=1), plan)
    with pytest.raises(ValueError, match="a plan sets"):
        Predictor(model, plan, resolution=40)
    with pytest.raises(ValueError, match="names 2 classes, the model has 7"):
        Predictor(model, replace(plan, classes=("a", "b")))
    with pytest.raises(ValueError, match="has mean"):
        Predictor(model, replace(plan, preprocessing=Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))))


# ---- without a plan ----


@pytest.fixture
def evaluated(model, tmp_path) -> Callable[..., Path]:
    """evaluated(rows, **fields): a run's folder with these results."""

    def write(rows: list[dict], **fields) -> Path:
        run = save_model(model, tmp_path / "run")
        (run / "eval").mkdir(exist_ok=True)
        (run / "eval/results.json").write_text(json.dumps({"rows": rows, **fields}))
        return run

    return write


ROWS = [
    {"resolution": 24, "patch_size": 8, "tokens_per_image": 9.1, "accuracy": 0.5},
    {"resolution": 48, "patch_size": 6, "tokens_per_image": 64.2, "accuracy": 0.9, "temperature": 1.7},
    {"resolution": 48, "patch_size": 12, "tokens_per_image": 16.0, "accuracy": 0.7},
    {"resolution": 64, "patch_size": 8, "tokens_per_image": 64.0, "accuracy": None},
    {"set": "other", "resolution": 64, "patch_size": 16, "tokens_per_image": 16.0, "accuracy": 0.99},
]


def test_without_a_setting_the_best_that_was_measured_is_taken(evaluated, model):
    run = evaluated(ROWS, model={"hash": hash_model(model)}, classes=list("abcdefg"))
    predictor = Predictor(run)
    assert predictor.choice.stages == (Stage(Setting(6, 48), 1.7),)
    assert "eval/results.json" in predictor.choice.why
    assert predictor.classes == tuple("abcdefg")
    assert Predictor(run / "model.safetensors").choice == predictor.choice
    assert Predictor(run, tokens=20).choice.stages == (Stage(Setting(12, tokens=20), 1.0),)
    assert Predictor(run, resolution=32).choice.stages == (Stage(Setting(8, 32), 1.0),)


def test_no_tokens_are_refused_where_an_evaluation_says_what_they_favour(evaluated):
    with pytest.raises(ValueError, match="tokens=0 must be at least 1"):
        Predictor(evaluated(ROWS), tokens=0)


def test_results_of_other_weights_count_for_nothing(evaluated):
    run = evaluated(ROWS, model={"hash": "of others"})
    choice = Predictor(run).choice
    assert choice.stages == (Stage(Setting(8, tokens=256), 1.0),)
    assert "no evaluation" in choice.why


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"patch_size": 8}, r"rows\[0\]: field 'resolution' is missing"),
        ({**ROWS[0], "patch_size": 0}, r"rows\[0\]: patch_size=0"),
        (3, r"rows\[0\] must be an object"),
    ],
)
def test_damaged_results_are_named(evaluated, row, what):
    with pytest.raises(ValueError, match=f"results.json: {what}"):
        Predictor(evaluated([row]))


def test_names_of_classes_are_found_beside_the_training_shards(model, images, tmp_path):
    run = save_model(model, tmp_path / "run")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/classes.json").write_text(json.dumps(list("abcdefg")))
    (run / "config.yaml").write_text(f"data:\n  shards:\n  - {tmp_path}/train/shard-{{000..003}}.tar\n")
    answer = Predictor(run, resolution=40)([images[0]])[0]
    assert answer.names == tuple("abcdefg"[label] for label in answer.labels)
    (tmp_path / "train/classes.json").write_text(json.dumps(["a", "b"]))  # another model's
    assert Predictor(run, resolution=40).classes is None


def test_the_example_in_the_documentation_runs(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(model, tmp_path / "runs/digits")
    (tmp_path / "photo.jpg").write_bytes(encode(images[0], "JPEG"))
    page = (Path(__file__).parents[2] / "docs/predict.md").read_text()
    names: dict[str, Any] = {"scan_array": images[1]}
    exec(page.split("```python\n")[1].split("```")[0].replace("1000", "3"), names)
    assert len(names["photo"].labels) == len(names["scan"].scores) == 3
    assert names["scan"].tokens <= 36
    assert names["scan"].setting == "t36-p8"
    assert "decoded" in names["broken"].error
    assert_same([names["prediction"]], [names["photo"]])


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"patch_size": 8}, "patch_size=8 alone"),
        ({"resolution": 40, "tokens": 9}, "either a resolution or a number of tokens"),
        ({"resolution": 40, "protocol": "stretch"}, "stretch"),
        ({"resolution": 10**7}, "too many"),
        ({"resolution": 40, "top": 0}, "top=0"),
        ({"resolution": 40, "batch_tokens": 0}, "batch_tokens=0"),
        ({"resolution": 40, "workers": -1}, "workers=-1"),
        ({"resolution": 40, "loss": "hinge"}, "hinge"),
    ],
)
def test_impossible_wishes_are_refused_by_name(model, options, what):
    with pytest.raises(ValueError, match=what):
        Predictor(model, **options)


def test_a_model_without_a_head_gives_its_features_alone(images):
    model = make_model(replace(CONFIG, num_classes=0))
    with pytest.raises(ValueError, match="no classification head"):
        Predictor(model, resolution=40)
    with pytest.raises(ValueError, match="no confidence"):
        Predictor(model, make_plan(model, Stage(SETTING, 1.0, 0.5), Stage(SETTING, 1.0)), features=True)
    answer = Predictor(model, resolution=40, features=True)([images[0]])[0]
    assert answer.labels == answer.scores == ()
    assert answer.features is not None
    assert answer.features.shape == (32,)


def test_an_answer_that_is_not_finite_is_an_error(images):
    model = make_model()
    assert model.head is not None
    torch.nn.init.constant_(model.head.bias, torch.nan)
    answer = Predictor(model, resolution=40)([images[0]])[0]
    assert answer.labels == ()
    assert "not finite" in str(answer.error)
