"""Two-level k-means: cases by hand, exact sums, repairs, and what holds for any points."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.clustering import TwoLevelResult, fit_whitening, kmeans, l2_normalize, l2_normalize_, share_clusters
from odc.clustering.two_level import _deal, _split_largest, _Sums, _units, two_level_kmeans
from odc.errors import InputError
from odc.structures import LocalComm, make_generator

COMM = LocalComm()


def run(x: Tensor, k: int, m: int, seed: int = 0, n_iter: int = 10) -> TwoLevelResult:
    return two_level_kmeans(x, k, m, generator=make_generator(seed), comm=COMM, n_iter=n_iter)


def test_eight_points_in_two_pairs_of_pairs() -> None:
    x = torch.tensor([[0.0], [1], [10], [11], [1000], [1001], [1010], [1011]])
    for seed in range(5):
        found = run(x, 4, 2, seed)
        assert sorted(found.super_centroids.flatten().tolist()) == [5.5, 1005.5]
        assert sorted(found.sub_centroids.flatten().tolist()) == [0.5, 10.5, 1000.5, 1010.5]
        pairs = found.sub_centroids[found.super_labels, found.sub_labels, 0]
        assert pairs.tolist() == [0.5, 0.5, 10.5, 10.5, 1000.5, 1000.5, 1010.5, 1010.5]
        assert found.num_sub.tolist() == [2, 2]
        assert found.super_sizes.tolist() == [4, 4]
        assert found.sub_sizes.tolist() == [[2, 2], [2, 2]]
        assert (found.super_imbalance, found.sub_imbalance, found.capped) == (1.0, 1.0, 0)
    assert found.super_labels.dtype == found.sub_labels.dtype == torch.int64
    assert found.sub_centroids.dtype == torch.float32


def test_labels_are_nearest_centroids_and_centroids_are_means() -> None:
    x = torch.randn(700, 6, generator=make_generator(0))
    found = run(x, 23, 4, n_iter=200)
    assert torch.equal(found.super_labels, torch.cdist(x, found.super_centroids).argmin(1))
    assert found.num_sub.tolist() == [6, 6, 6, 5]
    for s in range(4):
        inside = found.super_labels == s
        members, labels, k = x[inside], found.sub_labels[inside], int(found.num_sub[s])
        torch.testing.assert_close(found.super_centroids[s], members.mean(0), atol=1e-6, rtol=0)
        assert torch.equal(labels, torch.cdist(members, found.sub_centroids[s, :k]).argmin(1))
        for z in range(k):
            torch.testing.assert_close(found.sub_centroids[s, z], members[labels == z].mean(0), atol=1e-6, rtol=0)
        assert torch.bincount(labels, minlength=6).tolist() == found.sub_sizes[s].tolist()
    assert not found.sub_centroids[3, 5].any()


def test_as_good_as_one_level_of_faiss_where_there_is_one_super_cluster() -> None:
    x = torch.randn(2000, 8, generator=make_generator(0))
    found = run(x, 30, 1)
    ours = (x - found.sub_centroids[0, found.sub_labels]).square().sum()
    theirs = kmeans(x, 30, n_iter=10, generator=make_generator(0))
    assert float(ours) < 1.03 * float((x - theirs.centroids[theirs.labels]).square().sum())


def test_the_seed_is_all_that_is_random() -> None:
    x = torch.randn(500, 5, generator=make_generator(0))
    copy, state = x.clone(), torch.get_rng_state()
    first, second, other = run(x, 20, 3, 1), run(x, 20, 3, 1), run(x, 20, 3, 2)
    assert torch.equal(first.sub_centroids, second.sub_centroids)
    assert torch.equal(first.sub_labels, second.sub_labels)
    assert not torch.equal(first.sub_centroids, other.sub_centroids)
    assert torch.equal(x, copy)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_sums_are_exact_in_any_order(values: list[float], random: object) -> None:
    x = torch.tensor(values)[:, None]
    units = _units(x, len(x), COMM)
    rounded = [round(v * units) for v in values]
    assert max(abs(v - r / units) for v, r in zip(values, rounded, strict=True)) <= max(map(abs, values)) * 2**-24
    for order in (range(len(x)), reversed(range(len(x)))):
        sums = _Sums(2, x, units)
        for i in order:
            row = x[i : i + 1]
            sums.move(row, torch.tensor([-1]), torch.tensor([1]))  # into one cluster, and on into another
            sums.move(row, torch.tensor([1]), torch.tensor([0]))
        assert sums.total.flatten().tolist() == [math.fsum(rounded), 0.0]


def test_the_largest_cluster_is_split_and_then_the_next_one() -> None:
    centroids = torch.tensor([[1.0, 1], [0, 0], [5, 5], [0, 0], [9, 9]])
    assert _split_largest(centroids, torch.tensor([10, 0, 9, 0, 2]), 1) == 2
    e = 1 / 1024
    wanted = [[1 - e, 1 + e], [1 + e, 1 - e], [5 - 5 * e, 5 + 5 * e], [5 + 5 * e, 5 - 5 * e], [9, 9]]
    torch.testing.assert_close(centroids, torch.tensor(wanted))
    before = centroids.clone()
    assert _split_largest(centroids, torch.tensor([5, 2, 5, 3, 5]), 3) == 0, "halves of 5 would be small, too"
    assert torch.equal(centroids, before)


def test_empty_clusters_are_dealt_members_of_the_largest() -> None:
    labels = torch.tensor([0, 2, 0, 0, 2, 0, 0, 0])
    dealt = _deal(labels, torch.tensor([6, 0, 2, 0]), COMM)
    assert dealt.tolist() == [0, 2, 0, 1, 2, 1, 3, 3]


@pytest.mark.parametrize(
    ("distinct", "k", "m"), [(1, 5, 2), (3, 10, 3), (3, 40, 4), (40, 40, 4), (40, 37, 7), (2, 2, 2)]
)
def test_no_cluster_is_empty_where_points_repeat(distinct: int, k: int, m: int) -> None:
    x = torch.randn(distinct, 3, generator=make_generator(1))[torch.arange(40) % distinct]
    found = run(x, k, m)
    sizes = found.sub_sizes
    exists = torch.arange(sizes.shape[1]) < found.num_sub[:, None]
    assert bool((sizes[exists] > 0).all())
    assert not sizes[~exists].any()
    assert torch.equal(sizes.sum(1), found.super_sizes)
    assert int(found.num_sub.sum()) == k - found.capped
    assert bool(found.sub_centroids.isfinite().all())


def test_a_super_cluster_has_at_most_as_many_sub_clusters_as_points() -> None:
    x = torch.cat([torch.linspace(0, 1, 20), torch.tensor([1e6])])[:, None]
    found = run(x, 21, 3)
    assert found.capped == 21 - int(found.num_sub.sum())
    assert found.capped > 0
    assert bool((found.num_sub <= found.super_sizes).all())
    assert bool((found.sub_labels < found.num_sub[found.super_labels]).all())


@given(st.integers(1, 60), st.integers(1, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_what_holds_for_any_points(n: int, dim: int, data: st.DataObject) -> None:
    x = torch.randint(-2, 3, (n, dim), generator=make_generator(n, str(dim))).float()  # many repeat
    k = data.draw(st.integers(1, n))
    m = data.draw(st.integers(1, k))
    found = run(x, k, m, n_iter=3)
    pairs = torch.stack([found.super_labels, found.sub_labels], 1)
    assert len(pairs.unique(dim=0)) == int(found.num_sub.sum()) == k - found.capped
    assert int(found.super_sizes.min()) >= 1
    assert int(found.sub_sizes.sum()) == n
    assert bool((found.sub_labels < found.num_sub[found.super_labels]).all())


def test_sharing() -> None:
    assert share_clusters(10, 4) == [3, 3, 2, 2]
    assert share_clusters(8, 4) == [2, 2, 2, 2]


def test_whitening_in_place_is_whitening() -> None:
    x = 3 + torch.randn(40_000, 7, generator=make_generator(0)) * torch.tensor([5.0, 4, 3, 2, 1, 0.5, 0.1])
    for d in (7, 5, 1):
        whitening = fit_whitening(x, d, COMM)
        wanted, _ = l2_normalize(whitening.apply(x))
        mine = x.clone()
        got = whitening.apply(mine, in_place=True)
        assert l2_normalize_(got) == 0
        assert got.data_ptr() == mine.data_ptr()
        assert got.is_contiguous()
        assert torch.equal(got, wanted)
    zeros = F.pad(torch.ones(2, 3), (0, 0, 1, 1))
    assert l2_normalize_(zeros) == 2
    assert not zeros[[0, 3]].any()


def test_errors_name_the_numbers() -> None:
    x = torch.randn(10, 3)
    with pytest.raises(InputError, match="11 clusters from 10 samples: lower"):
        run(x, 11, 2)
    with pytest.raises(InputError, match="6 super-clusters of 5 clusters: take between 1 and 5"):
        run(x, 5, 6)
    with pytest.raises(InputError, match="0 super-clusters"):
        run(x, 5, 0)
    with pytest.raises(InputError, match="at least 1 iteration, not 0"):
        run(x, 5, 2, n_iter=0)
    with pytest.raises(InputError, match=r"\(10,\)"):
        run(x[:, 0], 5, 2)
    x[2, 1], x[7, 0] = torch.nan, torch.inf
    with pytest.raises(InputError, match="2 of 10 rows to cluster are not finite"):
        run(x, 5, 2)
