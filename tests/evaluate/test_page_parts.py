"""What the report computes by itself: choices among settings, calibration, axes, pictures."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packvit.evaluate.page.charts import Axis
from packvit.evaluate.page.folder import CLOSE, Predictions, best_of, front_of, frugal_of
from packvit.evaluate.page.pictures import LONGEST_SIDE, MOST_BYTES, draw_patches, encode
from packvit.evaluate.page.quality import raw_confidence, reliability

# Few values, so that some are equal; null is one of them.
values = st.one_of(st.none(), st.integers(0, 100).map(lambda n: n / 100))
rows = st.lists(
    st.fixed_dictionaries({"accuracy": values, "gflops_per_image": st.integers(1, 6).map(float)}), max_size=12
)


def known(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["accuracy"] is not None]


@given(rows)
def test_the_front_is_what_nothing_beats(rows):
    front = front_of(rows, "accuracy", lambda row: row["gflops_per_image"])
    points = {(row["gflops_per_image"], row["accuracy"]) for row in known(rows)}
    expected = {
        (cost, value)
        for cost, value in points
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }
    assert [(row["gflops_per_image"], row["accuracy"]) for row in front] == sorted(expected)


@given(rows)
def test_the_cheapest_close_to_the_best(rows):
    best, frugal = best_of(rows, "accuracy"), frugal_of(rows, "accuracy")
    if best is None or frugal is None:
        assert not known(rows)
        return
    assert best["accuracy"] == max(row["accuracy"] for row in known(rows))
    close = [row for row in known(rows) if round(100 * (best["accuracy"] - row["accuracy"])) <= 100 * CLOSE]
    assert frugal in close
    assert frugal["gflops_per_image"] == min(row["gflops_per_image"] for row in close)
    assert frugal["gflops_per_image"] <= best["gflops_per_image"]


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e5), st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_has_ticks_between_its_ends(low, ratio, log, percent):
    high = low * ratio
    if percent:
        low, high = low / 1e12, high / 1e12
    axis = Axis.around("x", [high, low], log=log and not percent, percent=percent)
    assert 0 <= axis.place(low) <= axis.place(high) <= 1
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    places = [axis.place(value) for value, _ in ticks]
    assert places == sorted(places)
    assert places[0] >= -1e-6
    assert places[-1] <= 1 + 1e-6


# ---- calibration ----


def predicted(logits: np.ndarray, confidence: np.ndarray, keep: bool) -> Predictions:
    n = len(logits)
    names, half = np.array([""] * n), np.zeros(n, bool)
    taken = logits.argmax(1)
    return Predictions(names, names, taken, half, taken, confidence, logits if keep else None)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (50, 7)).astype(np.float32)


def test_raw_confidence_is_that_of_the_logits(logits):
    softmax = torch.tensor(logits).softmax(1).amax(1)
    kept = predicted(logits, np.zeros(50, np.float32), True)
    torch.testing.assert_close(torch.tensor(raw_confidence(kept, "softmax", 2.0)), softmax.double())
    sigmoid = torch.tensor(logits).sigmoid().amax(1)
    torch.testing.assert_close(torch.tensor(raw_confidence(kept, "sigmoid", 2.0)), sigmoid.double())


def test_a_sigmoid_is_taken_back_without_logits_and_a_softmax_is_not(logits):
    confidence = torch.tensor(logits / 1.7).sigmoid().amax(1).numpy()
    lost = predicted(logits, confidence, False)
    expected = torch.tensor(logits).sigmoid().amax(1).double()
    torch.testing.assert_close(
        torch.tensor(raw_confidence(lost, "sigmoid", 1.7)), expected, atol=1e-4, rtol=0
    )
    assert raw_confidence(lost, "softmax", 1.7) is None
    assert raw_confidence(lost, "sigmoid", None) is None


def test_logits_that_are_not_finite_give_no_confidence(logits):
    logits[3] = np.inf
    found = raw_confidence(predicted(logits, np.zeros(50, np.float32), True), "softmax", None)
    assert found is not None
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [3]
    assert math.isclose(sum(share for *_, share in reliability(found, np.ones(50, bool))), 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_bins_add_up_to_all_images(images):
    sure, right = np.array([image[0] for image in images]), np.array([image[1] for image in images])
    points = reliability(sure, right)
    assert math.isclose(sum(share for *_, share in points), 1)
    assert math.isclose(sum(share * mean for mean, _, share in points), sure.mean(), abs_tol=1e-9)
    assert math.isclose(sum(share * accuracy for _, accuracy, share in points), right.mean(), abs_tol=1e-9)


# ---- pictures ----


def decode(uri: str) -> tuple[Image.Image, int]:
    data = base64.b64decode(uri.partition(",")[2])
    return Image.open(io.BytesIO(data)), len(data)


def test_pictures_are_small_and_small_ones_exact():
    noise = np.random.default_rng(0).integers(0, 256, (LONGEST_SIDE, LONGEST_SIDE, 3), np.uint8)
    assert decode(encode(Image.fromarray(noise)))[1] <= MOST_BYTES
    small = noise[:40, :60]
    np.testing.assert_array_equal(np.asarray(decode(encode(Image.fromarray(small)))[0]), small)


@pytest.mark.parametrize(
    ("patch_size", "lines"),
    [(8, (5, 2)), (48, None), (1, None)],  # 3 rows of 6; one patch; too fine to be seen
)
def test_lines_stand_where_patches_meet(patch_size, lines):
    row = {"patch_size": patch_size, "resolution": 34, "tokens": None, "protocol": "native"}
    image = np.zeros((24, 48, 3), np.uint8)
    svg = draw_patches(image, row, "words")
    picture = svg.find("image")
    assert picture is not None
    paths = [path.get("d", "") for path in svg.iter("path")]
    assert paths == [] if lines is None else [(p.count("V"), p.count("H")) for p in paths] == [lines]
