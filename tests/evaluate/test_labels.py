"""Sets whose labels are not one class of the model's own."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from packvit.evaluate.measures.average_precision import average_precision, mean_average_precision
from packvit.evaluate.measures.labels import judge, read_label_map, read_label_sets


@pytest.fixture
def write(tmp_path):
    """write(content): a JSON file of it."""

    def to_file(content, name: str = "labels.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


# ---- label maps ----


def test_the_prediction_is_the_largest_mapped_class(write):
    """As the definition says it: argmax over the mapped classes, right if it is one of the label's."""
    classes = {0: [4, 1], 2: [0], 3: [6, 2, 5]}
    label_map = read_label_map(write({"0": [4, 1], "1": [], "2": 0, "3": [6, 2, 5]}))
    assert label_map.columns == (0, 2, 3)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, generator=generator)
    labels = torch.randint(-1, 4, (200,), generator=generator)
    found = label_map.apply(logits, labels)
    assert found.kept.tolist() == [label in classes for label in labels.tolist()]
    mapped = sorted(index for indices in classes.values() for index in indices)
    slow = [
        max(mapped, key=lambda index: row[index]) in classes[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        if label in classes
    ]
    assert (found.logits.argmax(1) == found.labels).tolist() == slow
    assert 0 < sum(slow) < len(slow)


def test_one_class_for_each_label_chooses_columns(write):
    """ImageNet-A and -R."""
    label_map = read_label_map(write([6, 3, 11]))
    logits = torch.randn(5, 12)
    found = label_map.apply(logits, torch.tensor([2, 0, 1, 1, 2]))
    assert (found.logits == logits[:, [6, 3, 11]]).all()
    assert found.labels.tolist() == [2, 0, 1, 1, 2]
    assert found.kept.all()


def test_a_map_for_another_model_or_set_is_refused(write):
    label_map = read_label_map(write({"0": 3, "1": [7]}))
    label_map.check(8)
    with pytest.raises(
        ValueError, match=r"labels\.json: label 1 has class 7, but the model's classes are 0\.\.6"
    ):
        label_map.check(7)
    with pytest.raises(ValueError, match=r"labels\.json has no label 2, .* are 0\.\.1"):
        label_map.apply(torch.zeros(2, 8), torch.tensor([0, 2]))
    unknown = read_label_map(write({"1": [7]}))
    with pytest.raises(ValueError, match="names no class of the model for any image"):
        unknown.apply(torch.zeros(2, 8), torch.tensor([0, 0]))
    nothing = unknown.apply(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    assert nothing.logits.shape == (0, 1)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "cannot be read as JSON"),
        ('{"1": 2, "1": 3}', "entry '1' appears twice"),
        ("7", "neither an object nor a list"),
        ({"dog": 1}, "entry 'dog' is not a label"),
        ({"01": 1}, "entry '01' is not a label"),
        ({"-1": 1}, "entry '-1' is not a label"),
        ({"1": "dog"}, "entry '1' is 'dog', not a list"),
        ({"1": [2, -3]}, "entry '1' is .*-3"),
        ({"1": [2.5]}, "entry '1' is"),
        ({"1": True}, "entry '1' is"),
        ({"1": None}, "entry '1' is None"),
        ({"1": [4, 4]}, "entry '1' is"),
        ([3, [5, 3]], "labels 0 and 1 both have class 3"),
        ([[], []], "names no class"),
        ([], "names no class"),
    ],
)
def test_files_that_are_no_label_map_are_refused(write, content, what):
    path = write(content)
    with pytest.raises(ValueError, match=what) as error:
        read_label_map(path)
    assert str(path) in str(error.value)


# ---- label sets ----


def test_an_answer_among_the_right_ones_is_right_and_images_without_any_do_not_count(write):
    sets = read_label_sets(write({"a": [3, 1], "b": [], "c": [2]}))
    right, kept = judge(torch.tensor([1, 0, 1, 2, 5]), sets.find(["a", "b", "c", "c", "unknown"]))
    assert right.tolist() == [True, False, True]
    assert kept.tolist() == [True, False, True, True, False]


def test_a_list_is_in_the_order_of_keys_and_of_imagenets_numbers(write):
    sets = read_label_sets(write([[0], [1], [], [3]]))
    assert sets.find(["d", "a", "c", "b"]) == [{3}, {0}, set(), {1}]
    names = [f"val/ILSVRC2012_val_{number:08d}" for number in (4, 2)]
    assert sets.find(names) == [{3}, {1}]
    with pytest.raises(ValueError, match=r"labels\.json has 4 entries for 3 images"):
        sets.find(["a", "b", "c"])
    with pytest.raises(ValueError, match="none for image 'ILSVRC2012_val_00000005'"):
        sets.find(["ILSVRC2012_val_00000005"])
    with pytest.raises(ValueError, match=r"labels\.json has a label for none of the 1 images"):
        sets.find(["ILSVRC2012_val_00000003"])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[[1], [2]", "cannot be read as JSON"),
        ({"a": 3}, "entry 'a' is 3, not a list"),
        ([[1], [2, "dog"]], "entry 1 is"),
        ([[1], None], "entry 1 is None"),
        ({"a": [-1]}, "entry 'a' is"),
    ],
)
def test_files_that_are_no_label_sets_are_refused(write, content, what):
    path = write(content)
    with pytest.raises(ValueError, match=what) as error:
        read_label_sets(path)
    assert str(path) in str(error.value)


# ---- several classes of an image ----


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6))
def test_average_precision_is_sklearns_whatever_scores_are_equal(images, classes, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (images, classes), generator=generator) / levels
    targets = torch.randint(0, 2, (images, classes), generator=generator, dtype=torch.uint8)
    found = average_precision(scores, targets)
    expected = []
    for index in range(classes):
        if targets[:, index].any():
            expected.append(average_precision_score(targets[:, index], scores[:, index]))
            assert float(found[index]) == pytest.approx(expected[-1])
        else:
            assert found[index].isnan()
    mean = mean_average_precision(scores, targets)
    assert mean == (pytest.approx(sum(expected) / len(expected)) if expected else None)
