"""Recall of retrieval: ranks equal those of sorting the whole matrix of similarities."""

import numpy as np
import pytest
import torch

from packvit.evaluate import Retrieval
from packvit.evaluate.measures import retrieval
from packvit.evaluate.measures.retrieval import rank_pairs, recall


def dense_ranks(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, ...]:
    """By sorting each row and column of the whole matrix; stable, so that the lower index comes first."""
    scores = (images.astype(np.float64) @ texts.astype(np.float64).T).astype(np.float32)
    by_image = np.argsort(-scores, axis=1, kind="stable")
    by_text = np.argsort(-scores, axis=0, kind="stable")
    ranks = [np.flatnonzero(owner[row] == i)[0] for i, row in enumerate(by_image)]
    return (
        np.array(ranks),
        np.array([np.flatnonzero(by_text[:, j] == o)[0] for j, o in enumerate(owner)]),
        by_image[:, 0],
    )


@pytest.mark.parametrize("block", [1, 60, 2**22])
@pytest.mark.parametrize("values", [3, 0])
def test_ranks_are_those_of_the_sorted_matrix(monkeypatch, block, values):
    """Also with many ties, of vectors that hold few whole numbers."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "PAIRS", 7)
    rng = np.random.default_rng(values)
    owner = np.concatenate([np.arange(17), rng.integers(0, 17, 20)])
    rng.shuffle(owner)
    shapes = (17, 4), (37, 4)
    drawn = [rng.integers(0, values, s) if values else rng.standard_normal(s) for s in shapes]
    images, texts = (part.astype(np.float32) for part in drawn)
    found = rank_pairs(*map(torch.from_numpy, (images, texts, owner)))
    for mine, expected in zip(found, dense_ranks(images, texts, owner), strict=True):
        assert mine.tolist() == expected.tolist()
    assert len(set(found.images.tolist())) > 3


def test_recall_counts_what_stands_among_the_first():
    ranks = torch.tensor([0, 0, 3, 5, 12])
    assert [recall(ranks, depth, 20) for depth in (1, 5, 10)] == [0.4, 0.6, 0.8]
    assert recall(ranks, 10, 10) is None


def summary(images: torch.Tensor, place: list[int], texts: torch.Tensor, owner: list[int]) -> dict:
    columns = {"embedding": images, "place": torch.tensor(place)}
    captions = [f"text {i}" for i in range(len(owner))]
    return dict(Retrieval(captions, texts, torch.tensor(owner)).summarise(columns))


def test_images_that_could_not_be_used_leave_their_captions_out():
    """The second of four images is missing; the last has no caption."""
    axes = torch.eye(3)
    found = summary(axes, [0, 2, 3], axes[[0, 2, 1, 1]], [0, 1, 2, 2])
    assert found["texts"] == 3
    assert found["image_to_text_rank"].tolist() == [0, 0, -1]
    assert found["retrieved"].tolist()[:2] == [0, 1]
    assert found["captions"].tolist() == ["text 0", "text 2", "text 3"]
    assert found["caption_image"].tolist() == [0, 1, 1]
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1.0
    assert found["image_to_text_r5"] is None
    assert found["image_to_text_r1_low"] < 1 == found["image_to_text_r1_high"]


def test_embeddings_that_are_no_numbers_have_no_recall():
    found = summary(torch.full((2, 3), torch.nan), [0, 1], torch.eye(3), [0, 1, 1])
    assert all(np.isnan(value) for value in found.values())
