"""Clustering metrics: tiny cases by hand and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from odc.errors import InputError
from odc.evaluation.metrics import (
    ari,
    clustering_accuracy,
    evaluate_clustering,
    knn_accuracy,
    majorities,
    many_to_one_accuracy,
    nmi,
)
from odc.structures import make_generator

PRED = torch.tensor([0, 0, 1, 1, 2, 2])
TARGET = torch.tensor([1, 1, 0, 0, 0, 2])


def test_accuracy_by_hand() -> None:
    assert clustering_accuracy(PRED, TARGET) == (5 / 6, {0: 1, 1: 0, 2: 2})
    assert clustering_accuracy(PRED.numpy(), TARGET.numpy())[0] == 5 / 6


def test_accuracy_with_other_numbers_of_clusters_than_classes() -> None:
    acc, mapping = clustering_accuracy(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1]))
    assert acc == 0.5
    assert sorted(mapping.values()) == [0, 1]
    acc, mapping = clustering_accuracy(torch.tensor([5, 5, 5, 5]), torch.tensor([0, 9, 9, 3]))
    assert (acc, mapping) == (0.5, {5: 9})


def test_a_pair_without_common_samples_is_not_mapped() -> None:
    # Clusters 0 and 1 hold class 7 only; class 8 is in cluster 0 too.
    acc, mapping = clustering_accuracy(torch.tensor([0, 0, 1]), torch.tensor([7, 7, 7]))
    assert (acc, mapping) == (2 / 3, {0: 7})


def test_the_first_of_equal_classes_is_the_majority() -> None:
    cluster, targets = np.array([0, 0, 2, 2, 2, 5]), np.array([3, 1, 1, 0, 1, -1])
    assert majorities(cluster, targets) == {2: (1, pytest.approx(2 / 3)), 0: (1, 0.5)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_accuracy_is_the_best_of_all_maps(pairs: list[tuple[int, int]]) -> None:
    pred, target = (np.array(column) for column in zip(*pairs, strict=True))
    best = max(np.mean(np.array(perm)[pred] == target) for perm in itertools.permutations(range(4)))
    acc, mapping = clustering_accuracy(pred, target)
    assert acc == pytest.approx(best)
    assert acc == pytest.approx(np.mean([mapping.get(p) == t for p, t in pairs]))


def test_many_to_one_by_hand() -> None:
    split = torch.tensor([0, 1, 2, 3])  # class 0 in two clusters, class 1 in two
    target = torch.tensor([0, 0, 1, 1])
    assert clustering_accuracy(split, target)[0] == 0.5
    assert many_to_one_accuracy(split, target) == 1.0
    mixed = torch.tensor([7, 7, 7, 4, 4, 9])
    assert many_to_one_accuracy(mixed, torch.tensor([2, 2, 5, 2, 5, -1])) == 3 / 5
    assert "acc_many_to_one" not in evaluate_clustering(torch.tensor([0, 0, 1, 1]), target, 2)
    assert evaluate_clustering(split, target, 4)["acc_many_to_one"] == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 3))
def test_many_to_one_is_the_best_of_all_maps_and_rises_where_a_cluster_is_split(
    pairs: list[tuple[int, int]], cluster: int
) -> None:
    pred, target = (np.array(column) for column in zip(*pairs, strict=True))
    best = max(np.mean(np.array(m)[pred] == target) for m in itertools.product(range(4), repeat=4))
    found = many_to_one_accuracy(pred, target)
    assert found == pytest.approx(best)
    assert found >= clustering_accuracy(pred, target)[0]
    halves = np.where((pred == cluster) & (np.arange(len(pred)) % 2 == 0), 9, pred)
    assert many_to_one_accuracy(halves, target) >= found - 1e-12


def test_nmi_and_ari_by_hand() -> None:
    pred, target = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])
    assert nmi(pred, target) == 0
    pred, target = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])  # information ln 2, entropies ln 4 and ln 2
    assert nmi(pred, target) == pytest.approx(2 / 3)
    assert nmi(pred, target, "geometric") == pytest.approx(1 / math.sqrt(2))
    assert ari(pred, target) == 0
    assert ari(torch.tensor([1, 1, 0, 0]), target) == 1


def test_unknown_targets_are_left_out() -> None:
    pred = torch.cat([PRED, torch.tensor([0, 0, 3])])
    target = torch.cat([TARGET, torch.tensor([-1, -1, -1])])
    assert clustering_accuracy(pred, target) == clustering_accuracy(PRED, TARGET)
    assert nmi(pred, target) == nmi(PRED, TARGET)
    assert ari(pred, target) == ari(PRED, TARGET)
    assert evaluate_clustering(pred, target, 5) == {
        "acc": 5 / 6,
        "nmi": nmi(PRED, TARGET),
        "nmi_geometric": nmi(PRED, TARGET, "geometric"),
        "ari": ari(PRED, TARGET),
        "acc_many_to_one": 5 / 6,
        "entropy": pytest.approx((math.log(9 / 4) * 4 + math.log(9 / 2) * 4 + math.log(9)) / 9 / math.log(5)),
        "empty": 1.0,
    }


def test_without_targets_only_the_sizes_are_judged() -> None:
    for nothing in (None, torch.full_like(PRED, -1)):
        assert evaluate_clustering(PRED, nothing, 3) == {"entropy": pytest.approx(1), "empty": 0}


def test_sizes_by_hand() -> None:
    def sizes(pred: list[int], K: int, name: str) -> float:
        return evaluate_clustering(torch.tensor(pred), None, K)[name]

    assert sizes([0, 0, 1, 1], 2, "entropy") == pytest.approx(1)
    assert sizes([0, 0, 1, 1], 4, "entropy") == pytest.approx(0.5)
    assert sizes([2, 2], 4, "entropy") == 0
    assert sizes([0, 0], 1, "entropy") == 1
    assert sizes([0, 3, 3], 5, "empty") == 3


def test_knn_by_hand() -> None:
    angles = torch.tensor([0.0, 1, 3, 90, 92, 93]) * math.pi / 180
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, 7)[:, None]
    assert knn_accuracy(features, torch.tensor([0, 0, 0, 1, 1, 1]), k=2) == 1
    assert knn_accuracy(features, torch.tensor([0, 0, 5, 5, 1, 1]), k=1) == pytest.approx(4 / 6)
    # The sample of unknown class votes for nobody: the nearest known neighbours of 3 are 4 and 5.
    assert knn_accuracy(features, torch.tensor([0, 0, -1, 1, 1, 1]), k=1) == 1


def test_of_equally_many_votes_the_nearest_neighbour_decides() -> None:
    angles = torch.tensor([0.0, 10, 25, 200]) * math.pi / 180
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    # k = 2. Sample 0 sees 1 (class 8), then 2 (class 3): 8, though 3 is the smaller number. Sample 1 sees 0, then 2: 8.
    assert knn_accuracy(features, torch.tensor([8, 8, 3, 4]), k=2) == 0.5


def test_knn_against_loops() -> None:
    generator = make_generator(0)
    features = torch.randn(50, 4, generator=generator)
    targets = torch.randint(-1, 4, (50,), generator=generator)
    known = [i for i in range(50) if targets[i] >= 0]
    unit = F.normalize(features)
    correct = 0
    for i in known:
        near = sorted((j for j in known if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:5]
        votes = [int(targets[j]) for j in near]
        winner = max(votes, key=lambda c: (votes.count(c), -votes.index(c)))
        correct += winner == int(targets[i])
    assert knn_accuracy(features, targets, k=5) == pytest.approx(correct / len(known))


def test_errors_name_the_numbers() -> None:
    with pytest.raises(InputError, match="none of the 2 targets"):
        clustering_accuracy(torch.tensor([0, 1]), torch.tensor([-1, -1]))
    with pytest.raises(InputError, match="2 and 1 samples"):
        nmi(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(InputError, match="float"):
        ari(torch.tensor([0.5, 1]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="from 0 to 4, but there must be some within 0 to 3"):
        evaluate_clustering(torch.tensor([0, 4]), None, 4)
    with pytest.raises(InputError, match="k=3, but with 3 samples of known class it must be between 1 and 2"):
        knn_accuracy(torch.randn(3, 2), torch.tensor([0, 1, 0]), k=3)
    with pytest.raises(InputError, match="1 of 3 rows"):
        knn_accuracy(torch.tensor([[1.0], [torch.nan], [2]]), torch.tensor([0, 1, 0]), k=1)
    with pytest.raises(InputError, match=r"\(3, 2\), \(2,\)"):
        knn_accuracy(torch.randn(3, 2), torch.tensor([0, 1]), k=1)
