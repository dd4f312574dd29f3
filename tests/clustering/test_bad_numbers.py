"""Every function with numbers that no clustering is made for: a right result, or one line; never a crash, never NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from odc.clustering import (
    fit_whitening,
    kmeans,
    knn_search,
    l2_normalize,
    l2_normalize_,
    local_consistency,
    log_odds,
    reliable_samples,
    two_level_kmeans,
)
from odc.clustering.preprocess import check_differ
from odc.errors import InputError
from odc.structures import LocalComm, make_generator

R = torch.randn(30, 4, generator=make_generator(0))
THIRD = (torch.arange(30) == 3)[:, None]
POINTS: dict[str, Tensor] = {
    "one": torch.ones(1, 4),
    "two": R[:2],
    "equal": torch.full((30, 4), 3.3),
    "zeros": torch.zeros(30, 4),
    "equal up to rounding": 3.3 * (1 + R.sign() * 6e-8),
    "one is zero": torch.cat([R, torch.zeros(1, 4)]),
    "a column is zero": R * torch.tensor([1.0, 0, 1, 1]),
    "copies of three": R[:3].repeat(10, 1),
    "tiny": R * 1e-30,
    "denormal": R * 1e-44,
    "long": R * 1e16,
    "wide": torch.randn(4, 50, generator=make_generator(1)),
    "half": R.half(),
    "not contiguous": torch.randn(4, 30, generator=make_generator(2)).T,
}
REFUSED: dict[str, tuple[Tensor, str]] = {
    "no rows": (torch.zeros(0, 4), "0"),
    "no columns": (torch.zeros(5, 0), r"0|D at least 1"),
    "one dimension": (torch.zeros(5), r"\(N, D\)"),
    "NaN": (R.masked_fill(THIRD, torch.nan), "30 rows.*not finite"),
    "infinite": (R.masked_fill(THIRD, torch.inf), "30 rows.*not finite"),
    "too long": (R * 1e25, "longer than 1e\\+18: lower the learning rate"),
}
KMEANS: dict[str, Callable[[Tensor, int], Any]] = {
    "k-means": lambda x, K: kmeans(x, K, generator=make_generator(0)),
    "k-means++": lambda x, K: kmeans(x, K, plus_plus=True, n_redo=2, generator=make_generator(0)),
    "two levels": lambda x, K: two_level_kmeans(x, K, min(2, K), generator=make_generator(0), comm=LocalComm()),
}


@pytest.mark.parametrize("name", KMEANS)
@pytest.mark.parametrize("kind", POINTS)
def test_no_cluster_is_empty_whatever_the_points(name: str, kind: str) -> None:
    x = POINTS[kind]
    for K in sorted({1, min(2, len(x)), max(1, len(x) - 1), len(x)}):
        found = KMEANS[name](x, K)
        centroids = found.sub_centroids if name == "two levels" else found.centroids
        assert centroids.isfinite().all()
        labels = found.super_labels * K + found.sub_labels if name == "two levels" else found.labels
        sizes = labels.unique(return_counts=True)[1]
        assert len(sizes) == K - (found.capped if name == "two levels" else 0)
    for K in (0, len(x) + 1):
        with pytest.raises(InputError, match=rf"^{K} clusters from {len(x)} samples"):
            KMEANS[name](x, K)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(
    "function",
    [
        *(lambda x, f=f: f(x, 2) for f in KMEANS.values()),
        lambda x: knn_search(x, k=1),
        lambda x: knn_search(R, x, k=1),
        lambda x: knn_search(x, k=1, metric="l2"),
        lambda x: local_consistency(x, torch.zeros(len(x), dtype=torch.int64), 1),
    ],
)
def test_what_cannot_be_clustered_is_one_line(kind: str, function: Callable[[Tensor], Any]) -> None:
    x, message = REFUSED[kind]
    with pytest.raises(InputError, match=message) as error:
        function(x)
    assert "\n" not in str(error.value)


def test_words_are_no_numbers() -> None:
    with pytest.raises(InputError, match="must be numbers"):
        kmeans(np.array([["a", "b"]]), 1, generator=make_generator(0))


@pytest.mark.parametrize("kind", POINTS)
def test_neighbours_are_others(kind: str) -> None:
    x, N = POINTS[kind], len(POINTS[kind])
    if N == 1:
        with pytest.raises(InputError, match="1 neighbours asked for, but none can be found for 1 sample"):
            knn_search(x, k=1)
        return
    for k in {1, N - 1}:
        index, similarity = knn_search(x, k=k)
        assert similarity.isfinite().all()
        assert (index != torch.arange(N)[:, None]).all()
        assert ((index >= 0) & (index < N)).all()
        beta = local_consistency(x, torch.arange(N) % 2, k)
        assert ((beta >= 0) & (beta <= 1)).all()


@pytest.mark.parametrize("kind", POINTS)
def test_unit_rows_have_length_one_or_zero(kind: str) -> None:
    x = POINTS[kind].float()
    unit, zero = l2_normalize(x)
    norms = unit.norm(dim=1)
    assert int((norms == 0).sum()) == zero
    assert torch.allclose(norms[norms > 0], torch.ones(len(x) - zero))
    same = x.clone()
    assert l2_normalize_(same) == zero
    assert torch.equal(same, unit)


def test_long_rows_have_length_one() -> None:
    x = torch.tensor([[3e25, 4e25], [1e38, 0], [3.0, 4.0]])
    assert torch.allclose(l2_normalize(x)[0], torch.tensor([[0.6, 0.8], [1, 0], [0.6, 0.8]]))


@pytest.mark.parametrize("kind", POINTS)
def test_whitening_gives_unit_variance_or_says_why_not(kind: str) -> None:
    x = POINTS[kind].float()
    if kind == "one":
        with pytest.raises(InputError, match="at least 2 samples, got 1"):
            fit_whitening(x, 2, LocalComm())
    elif kind in ("equal", "zeros", "equal up to rounding", "denormal"):
        with pytest.raises(InputError, match=f"the {len(x)} rows to whiten are all equal: there is nothing to cluster"):
            fit_whitening(x, 2, LocalComm())
    else:
        z = fit_whitening(x, 300, LocalComm()).apply(x)
        assert z.shape[1] == min(len(x) - 1, x.shape[1])
        assert z.isfinite().all()
        assert float(z.var(0, correction=0).max()) == pytest.approx(1, abs=1e-2)


def test_whitening_refuses_no_columns() -> None:
    with pytest.raises(InputError, match=r"D at least 1; got shape \(5, 0\)"):
        fit_whitening(torch.zeros(5, 0), 1, LocalComm())


def test_equal_features_are_told() -> None:
    for kind in ("equal", "zeros", "equal up to rounding"):
        with pytest.raises(InputError, match="the features of all 30 images are equal: there is nothing to cluster"):
            check_differ(POINTS[kind])
    for kind in ("one", "two", "copies of three", "tiny", "one is zero"):
        check_differ(POINTS[kind])


@pytest.mark.parametrize(
    ("beta", "labels", "message"),
    [
        ([], [], "N at least 1"),
        ([1.0], [0, 0], r"got \(1,\), \(2,\)"),
        ([1.0, 1.0], [0, 2], "labels run from 0 to 2, but the clusters are 0 to 1"),
        ([1.0, 1.0], [-1, 0], "labels run from -1 to 0, but the clusters are 0 to 1"),
        ([1.0, torch.nan], [0, 1], "1 of 2 β are not finite"),
    ],
)
def test_reliable_samples_of_what_fits(beta: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reliable_samples(torch.tensor(beta), torch.tensor(labels, dtype=torch.int64), 2)


def test_log_odds_of_no_cluster() -> None:
    with pytest.raises(InputError, match=r"K at least 1; got shape \(3, 0\)"):
        log_odds(torch.zeros(3, 0))
