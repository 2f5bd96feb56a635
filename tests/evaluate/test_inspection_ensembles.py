"""Ensembles and neighbours across settings, against counting by hand."""

import math

import pytest
import torch
from torch import Tensor

from packvit.evaluate.inspection.agreement import find_agreement
from packvit.evaluate.inspection.ensembles import compare_ensembles, gain
from packvit.evaluate.inspection.figures import choose_by_cost
from packvit.evaluate.measures.knn import classify_by_neighbours

NAMES = ["a", "b", "c", "d"]
GFLOPS = [1.0, 2.0, 3.0, 9.0]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_gain_is_the_difference_and_turns_round():
    torch.manual_seed(0)
    new, old = torch.rand(60) < 0.8, torch.rand(60) < 0.6
    found, back = gain(new, old), gain(old, new)
    assert found.value == pytest.approx(float(new.double().mean() - old.double().mean()))
    assert found.low < found.value < found.high
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    same = gain(new, new)
    assert same.value == 0
    assert same.low == -same.high < 0


def test_every_ensemble_meets_the_best_that_it_could_pay_for():
    logits, labels = draw(0, 4, 40, 5), torch.arange(40) % 5
    logits[1, torch.arange(40), labels] += 2
    logits[3, torch.arange(40), labels] += 1
    found = compare_ensembles(logits, labels, GFLOPS, NAMES, "softmax")
    assert len(found["rows"]) == math.comb(4, 2) + math.comb(4, 3)
    assert (found["chosen_on"], found["measured_on"]) == (20, 20)
    for row in found["rows"]:
        members = [NAMES.index(name) for name in row["settings"]]
        assert row["gflops_per_image"] == sum(GFLOPS[m] for m in members)
        right = logits[members].softmax(-1).mean(0).argmax(-1) == labels
        assert row["accuracy"] == pytest.approx(float(right[1::2].double().mean()))
        assert row["chosen_accuracy"] == pytest.approx(float(right[::2].double().mean()))
        singles = {
            name: float((logits[s, ::2].argmax(-1) == labels[::2]).double().mean())
            for s, name in enumerate(NAMES)
            if GFLOPS[s] <= row["gflops_per_image"]
        }
        assert row["single_gflops_per_image"] <= row["gflops_per_image"]
        assert singles[row["single"]] == max(singles.values())
        rival = NAMES.index(row["single"])
        alone = float((logits[rival, 1::2].argmax(-1) == labels[1::2]).double().mean())
        assert row["single_accuracy"] == pytest.approx(alone)
        assert row["gain"] == pytest.approx(row["accuracy"] - alone)


def test_the_half_that_is_measured_chooses_nothing():
    """Other labels there change what is reported and no rival."""
    logits, labels = draw(1, 4, 60, 3), torch.arange(60) % 3
    other = labels.clone()
    other[1::2] = (other[1::2] + 1) % 3
    before, after = (compare_ensembles(logits, x, GFLOPS, NAMES, "softmax")["rows"] for x in (labels, other))
    assert [row["single"] for row in before] == [row["single"] for row in after]
    assert [row["chosen_accuracy"] for row in before] == [row["chosen_accuracy"] for row in after]
    assert [row["accuracy"] for row in before] != [row["accuracy"] for row in after]


def test_settings_that_agree_gain_nothing():
    logits = draw(2, 1, 20, 3).expand(3, 20, 3)
    rows = compare_ensembles(logits, torch.arange(20) % 3, [1, 1, 1], NAMES[:3], "softmax")["rows"]
    assert [row["gain"] for row in rows] == [0.0] * 4


def test_probabilities_are_averaged_as_the_model_was_trained():
    """One sure and one unsure answer: sigmoid and softmax weigh them differently."""
    logits = torch.tensor([[[9.0, 7.0, -9.0]], [[-2.0, -1.0, -9.0]]]).expand(2, 4, 3)
    labels = torch.tensor([0, 0, 0, 0])
    softmax, sigmoid = (
        compare_ensembles(logits, labels, [1, 1], NAMES[:2], loss)["rows"][0]
        for loss in ("softmax", "sigmoid")
    )
    # softmax: 0.88 + 0.27 for class 0, 0.12 + 0.73 for class 1; sigmoid: 1.00 + 0.12 and 1.00 + 0.27.
    assert softmax["accuracy"] == 1
    assert sigmoid["accuracy"] == 0


def test_what_is_chosen_gets_better_with_its_cost():
    rows = [
        {"gflops_per_image": cost, "chosen_accuracy": chosen}
        for cost, chosen in ((3, 0.8), (1, 0.5), (2, 0.4), (4, 0.8), (5, 0.9))
    ]
    assert [row["gflops_per_image"] for row in choose_by_cost(rows)] == [1, 3, 5]


# ---- neighbours ----


def test_neighbours_answer_as_if_each_image_were_left_out():
    features, labels = draw(3, 2, 30, 4), torch.arange(30) % 3
    features += 2 * torch.nn.functional.one_hot(labels, 4)
    found = find_agreement(features, labels, 1)
    for asking in range(2):
        for answering in range(2):
            right = 0
            for i in range(30):
                others = [j for j in range(30) if j != i]
                nearness = [
                    torch.cosine_similarity(features[asking, i], features[answering, j], 0) for j in others
                ]
                nearest = others[int(torch.stack(nearness).argmax())]
                right += int(labels[nearest] == labels[i])
            assert float(found.accuracy[asking, answering]) == pytest.approx(right / 30)


@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_leaving_one_out_is_the_same_in_chunks_of_any_size(chunk):
    known, asked, labels = draw(6, 30, 4), draw(7, 30, 4), torch.arange(30) % 4
    found = classify_by_neighbours((known, labels), asked, 3, chunk=chunk, leave_one_out=True)
    for i in range(30):
        rest = torch.arange(30) != i
        assert found[i] == classify_by_neighbours((known[rest], labels[rest]), asked[i : i + 1], 3)


def test_an_image_is_no_neighbour_of_its_own():
    with pytest.raises(ValueError, match="4 neighbours cannot be found among 3 images"):
        classify_by_neighbours((draw(0, 4, 2), torch.arange(4)), draw(1, 4, 2), 4, leave_one_out=True)


def test_one_space_has_no_modes_and_turned_ones_have():
    labels = torch.arange(60) % 3
    features = 0.3 * draw(4, 60, 6) + torch.nn.functional.one_hot(labels, 6)
    together = find_agreement(torch.stack([features, 2 * features]), labels, 5)
    assert together.mode_switch == pytest.approx(0)
    assert together.accuracy.min() > 0.9
    apart = find_agreement(torch.stack([features, features.roll(1, 1)]), labels, 5)
    assert apart.mode_switch > 0.8


def test_a_small_set_has_fewer_neighbours():
    found = find_agreement(draw(5, 2, 5, 3), torch.arange(5), 20)
    assert found.neighbours == 4
    assert found.accuracy.tolist() == [[0, 0], [0, 0]]
