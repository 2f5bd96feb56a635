"""Probes of frozen features: the quick ways give what their definitions give."""

import numpy as np
import pytest
import torch

from packvit.evaluate.measures.fewshot import check_classes, draw_shots, fit_probe, fit_shots, probe_accuracy
from packvit.evaluate.measures.knn import classify_by_neighbours


def planted(images: int, width: int, classes: int, noise: float, seed: int = 0):
    """Features around one point a class, far from the origin, and labels that go round."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, width))
    labels = np.arange(images) % classes
    features = 5 + 3 * (centres[labels] + noise * rng.normal(size=(images, width)))
    return torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize(("images", "width"), [(20, 60), (60, 20), (21, 20), (20, 20), (1, 3)])
def test_both_ways_to_solve_give_the_weights_of_the_normal_equations(images, width):
    features, labels = planted(images, width, 4, 0.5)
    features[:, 0] = 7.0  # a feature without any spread
    probe = fit_probe(features, labels, 4, ridge=1024.0)
    x = features.numpy()
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
    y = 2.0 * np.eye(4)[labels.numpy()] - 1
    weights = np.linalg.solve(x.T @ x + 1024.0 * np.eye(width + 1), x.T @ y)
    assert probe.weights.numpy() == pytest.approx(weights, abs=1e-10)
    assert probe.scores(features).numpy() == pytest.approx(x @ weights, abs=1e-8)
    single = fit_probe(features.float(), labels, 4, ridge=1024.0)
    assert single.weights.dtype == torch.float32
    assert single.scores(features).numpy() == pytest.approx(x @ weights, abs=2e-3)


def test_what_is_separable_is_learnt_from_few_images():
    train, test = planted(200, 32, 8, 0.05), planted(400, 32, 8, 0.05, seed=1)
    probes = fit_shots(*train, shots=(1, 5), draws=3)
    assert {count: len(found) for count, found in probes.items()} == {1: 3, 5: 3}
    assert [probe_accuracy(probe, *test) for found in probes.values() for probe in found] == [1.0] * 6
    shuffled = test[1][torch.from_numpy(np.random.default_rng(0).permutation(400))]
    assert probe_accuracy(probes[5][0], test[0], shuffled) == pytest.approx(1 / 8, abs=0.06)


def test_draws_hold_so_many_images_of_each_class_and_more_shots_contain_fewer():
    labels = torch.tensor([2, 0, 2, 0, 0, 2, 2, 0, 0, 2])  # class 1 has none, nor is it needed
    for seed in range(3):
        drawn = draw_shots(labels, 4, seed)
        assert labels[drawn].tolist() == [0] * 4 + [2] * 4
        assert len(set(drawn.tolist())) == 8
        assert set(draw_shots(labels, 2, seed).tolist()) < set(drawn.tolist())
        assert (draw_shots(labels, 4, seed) == drawn).all()
    assert (draw_shots(labels, 4, 0) != draw_shots(labels, 4, 1)).any()
    with pytest.raises(ValueError, match="class 0 has 5 images to learn from, too few for 6 shots"):
        draw_shots(labels, 6, 0)


def test_classes_without_images_to_learn_from_are_named():
    known = torch.tensor([0, 1, 3])
    check_classes(known, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match=r"class 2 .* has none among the images to learn from$"):
        check_classes(known, torch.tensor([2, 0]))
    with pytest.raises(ValueError, match=r"class 2 .*, nor have 1 more"):
        check_classes(known, torch.tensor([2, 5]))
    with pytest.raises(ValueError, match="no images to classify"):
        check_classes(known, known[:0])


# ---- nearest neighbours ----


@pytest.mark.parametrize("vote", ["weighted", "majority"])
def test_neighbours_vote_as_by_brute_force_in_chunks_of_any_size(vote):
    train, test = planted(90, 6, 5, 1.5), planted(40, 6, 5, 1.5, seed=1)
    slow = []
    for feature in test[0].numpy():
        known = train[0].numpy()
        cosines = known @ feature / np.linalg.norm(known, axis=1) / np.linalg.norm(feature)
        votes = np.zeros(5)
        for place in np.argsort(-cosines)[:7]:
            votes[train[1][place]] += np.exp(cosines[place] / 0.07) if vote == "weighted" else 1
        slow.append(int(votes.argmax()))
    for chunk in (1, 91, 400, 10**6):
        assert classify_by_neighbours(train, test[0], 7, vote, chunk).tolist() == slow
    assert 0.3 < np.mean(np.array(slow) == test[1].numpy()) < 1


def test_a_near_neighbour_outweighs_two_far_ones_but_not_in_a_majority():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([1, 0, 0])
    image = torch.tensor([[5.0, 0.5]])  # of any length
    assert classify_by_neighbours(train, image, 3, "weighted").tolist() == [1]
    assert classify_by_neighbours(train, image, 3, "majority").tolist() == [0]
    assert classify_by_neighbours(train, image[:0], 3).tolist() == []
    with pytest.raises(ValueError, match="4 neighbours cannot be found among 3 images"):
        classify_by_neighbours(train, image, 4)
