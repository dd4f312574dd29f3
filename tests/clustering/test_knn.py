"""Neighbours against brute force, copies of rows, errors."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from odc.clustering import knn, knn_search
from odc.errors import InputError
from odc.structures import make_generator


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_brute_force_agrees(metric: Literal["cosine", "l2"], exclude_self: bool) -> None:
    x = torch.randn(60, 5, generator=make_generator(0))
    unit = F.normalize(x)
    scores = unit @ unit.T if metric == "cosine" else -(torch.cdist(x, x) ** 2)
    if exclude_self:
        scores.fill_diagonal_(-torch.inf)
    expected = scores.topk(7, dim=1)
    indices, similarities = knn_search(x, k=7, metric=metric, exclude_self=exclude_self)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(similarities, expected.values, atol=1e-4, rtol=0)
    assert (indices.dtype, similarities.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_products_find_what_faiss_finds(metric: Literal["cosine", "l2"], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_SCORES", 7 * 40)  # some rows of queries at a time
    points, queries = (torch.randn(n, 9, generator=make_generator(n)) for n in (40, 17))
    if metric == "cosine":
        points, queries = F.normalize(points), F.normalize(queries)
    indices, similarities = knn_search(points, queries, k=6, metric=metric)
    ours, where = knn.search_by_products(points, queries, 6, metric)
    assert torch.equal(where, indices)
    torch.testing.assert_close(ours, similarities, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_gpu_finds_what_the_processor_finds(metric: Literal["cosine", "l2"]) -> None:
    x = torch.randn(3000, 16, generator=make_generator(0))
    indices, similarities = knn_search(x.cuda(), k=5, metric=metric)
    expected = knn_search(x, k=5, metric=metric)
    assert indices.device.type == "cuda"
    torch.testing.assert_close(similarities.cpu(), expected[1], atol=1e-4, rtol=1e-4)
    assert float((indices.cpu() == expected[0]).float().mean()) > 0.999


def test_queries() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    indices, similarities = knn_search(x, torch.tensor([[0.0, 3], [-2, 0]]), k=1)
    assert indices.tolist() == [[1], [2]]
    assert similarities.tolist() == [[1], [1]]
    assert knn_search(x, x, k=3)[0][:, 0].tolist() == [0, 1, 2]  # queries are nobody's own rows


@pytest.mark.parametrize("copies", [2, 3, 9])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_row_is_told_from_its_copies(copies: int, metric: Literal["cosine", "l2"]) -> None:
    x = torch.randn(6, 4, generator=make_generator(0)).repeat(copies, 1)
    indices, _ = knn_search(x, k=3, metric=metric)
    N = len(x)
    assert not (indices == torch.arange(N)[:, None]).any()
    assert all(len(set(row)) == 3 for row in indices.tolist())
    same = indices % 6 == torch.arange(N)[:, None] % 6
    assert (same.sum(dim=1) == min(3, copies - 1)).all()


def test_zero_rows_are_similar_to_nothing() -> None:
    _, similarities = knn_search(torch.tensor([[0.0, 0], [1, 0], [2, 0]]), k=2)
    assert similarities.tolist() == [[0, 0], [1, 0], [1, 0]]


def test_errors_name_the_numbers() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(InputError, match="5 neighbours asked for, but k must be between 1 and 4 for 5 samples"):
        knn_search(x, k=5)
    assert knn_search(x, k=5, exclude_self=False)[0].shape == (5, 5)
    with pytest.raises(InputError, match="width 2, but x has 3"):
        knn_search(x, torch.randn(2, 2), k=1)
    with pytest.raises(InputError, match="manhattan"):
        knn_search(x, k=1, metric="manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 of 5 rows of queries"):
        knn_search(x, x.index_fill(0, torch.tensor([1]), torch.nan), k=1)
