"""The consensus of clusterings: cases by hand, an oracle by the dense matrix, and clusterings that do not know all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.clustering import agreement, consensus, imbalance, kmeans
from odc.errors import InputError
from odc.evaluation.metrics import ari
from odc.structures import make_generator


def find(labels: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    return consensus(labels, num_clusters, make_generator(seed, "consensus"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 4))
def test_equal_clusterings_with_other_names_are_their_own_consensus(seed: int, K: int, R: int) -> None:
    rng = make_generator(seed, "names")
    labels = torch.cat([torch.arange(K), torch.randint(K, (20,), generator=rng)])
    renamed = torch.stack([torch.randperm(9, generator=rng)[labels] for _ in range(R)])
    found = find(renamed, K)
    assert ari(found, labels) == 1
    assert agreement(renamed, found).tolist() == [1.0] * len(labels)


def test_the_majority_wins() -> None:
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    found = find(labels, 2)
    assert ari(found, labels[0]) == 1
    # The third clustering has samples 0, 1 in one cluster and 2 to 5 in the other, most of which are 3, 4, 5.
    assert agreement(labels, found).tolist() == pytest.approx([1, 1, 2 / 3, 1, 1, 1])


def test_what_a_clustering_does_not_know_is_left_to_the_others() -> None:
    labels = torch.tensor([[0, 0, -1, 1, 1, -1, -1], [-1, 5, 5, 3, -1, 3, -1], [-1, -1, -1, -1, -1, -1, -1]])
    found = find(labels, 2)
    assert ari(found[:6], torch.tensor([0, 0, 0, 1, 1, 1])) == 1
    assert found[6] == -1
    assert agreement(labels, found).tolist() == [1, 1, 1, 1, 1, 1, 0]


def test_clusterings_may_be_finer_than_the_consensus() -> None:
    truth = torch.arange(60) // 20
    finer = torch.stack([torch.arange(60) // 10, torch.arange(60) // 5, truth])
    assert ari(find(finer, 3), truth) == 1


def test_it_is_the_spectrum_of_the_dense_matrix() -> None:
    """The slow way: every cluster a column, normalised by the roots of the degrees, and its singular vectors."""
    rng = make_generator(0, "noisy")
    truth = torch.randint(4, (200,), generator=rng)
    noisy = [torch.where(torch.rand(200, generator=rng) < 0.7, truth, torch.randint(4, (200,), generator=rng))]
    for _ in range(5):
        kept = torch.rand(200, generator=rng)
        other = torch.where(kept < 0.7, truth, torch.randint(4, (200,), generator=rng))
        noisy.append(torch.where(kept > 0.9, -1, other))
    labels = torch.stack(noisy)
    A = torch.cat([(row[:, None] == torch.arange(4)).double() for row in labels], dim=1)
    U, _, _ = torch.linalg.svd(A.sum(1, keepdim=True).rsqrt() * A * A.sum(0).rsqrt())
    unit = torch.nn.functional.normalize(U[:, :4]).float()
    slow = kmeans(unit, 4, generator=make_generator(0, "slow"), n_redo=10, plus_plus=True).labels
    found = find(labels, 4)
    assert ari(found, slow) == 1
    assert ari(found, truth) > max(ari(row[row >= 0], truth[row >= 0]) for row in labels) + 0.1
    assert imbalance(torch.bincount(found), 4) < 1.1


def test_the_generator_decides_alone() -> None:
    labels = torch.randint(8, (5, 100), generator=make_generator(1, "random"))
    assert torch.equal(find(labels, 8, 1), find(labels, 8, 1))
    assert not torch.equal(find(labels, 8, 1), find(labels, 8, 2))


@pytest.mark.parametrize(
    ("labels", "K", "told"),
    [
        (torch.zeros(5, dtype=torch.int64), 1, r"int64 labels \(R, N\)"),
        (torch.zeros(2, 5), 1, "torch.float32"),
        (torch.full((2, 5), -2), 1, "-1 or more"),
        (torch.zeros(2, 5, dtype=torch.int64), 3, "3 clusters asked for of 5 samples in 2 clusters"),
        (torch.full((2, 5), -1), 1, "1 clusters asked for of 0 samples in 0 clusters"),
    ],
)
def test_wrong_labels_are_refused(labels: Tensor, K: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        find(labels, K)
