"""Exact nearest neighbours by FAISS, or on a GPU that FAISS does not reach by torch; never N×N in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odc.clustering.kmeans import FloatArray, finite_array, flat_index, load_faiss
from odc.errors import InputError

_SCORES = 2**28  # at a time, where all pairs are looked at: 1 GiB
_QUERIES = 4096  # at a time: what is found of more of them is copied into the result, not held twice


def knn_search(
    x: Tensor | npt.NDArray[Any],
    queries: Tensor | npt.NDArray[Any] | None = None,
    *,
    k: int,
    metric: Literal["cosine", "l2"] = "cosine",
    exclude_self: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` nearest rows of ``x`` for every query, nearest first.

    Args:
        x: (N, D) points; need not be normalised.
        queries: (Q, D) points, or ``None``: the rows of ``x`` themselves.
        k: neighbours, at most N (N - 1 where a row itself is excluded).
        metric: ``"cosine"`` (a zero row has similarity 0 to everything) or ``"l2"``.
        exclude_self: without ``queries``, never return a row as its own neighbour. It is recognised by its number, so
            that the copies of a row are neighbours of it.

    Returns:
        indices (Q, k) int64 and similarities (Q, k) float32, larger is nearer: the cosine, or minus the squared
        distance; on the device of ``x``.

    Raises:
        InputError: ``k`` is out of range, the widths differ, or rows are not finite.
        MissingFaissError: FAISS is not installed.
    """
    if metric not in ("cosine", "l2"):
        raise InputError(f"unknown metric {metric!r}: 'cosine' or 'l2'")
    points = finite_array(x, "x")
    asked = points if queries is None else finite_array(queries, "queries")
    N, D = points.shape
    if asked.shape[1] != D:
        raise InputError(f"queries have width {asked.shape[1]}, but x has {D}")
    exclude = exclude_self and queries is None
    available = N - 1 if exclude else N
    if not 1 <= k <= available:
        allowed = f"k must be between 1 and {available}" if available else "none can be found"
        raise InputError(f"{k} neighbours asked for, but {allowed} for {N} sample{'s' if N > 1 else ''}")
    if metric == "cosine":
        points = unit_rows(points)
        asked = points if queries is None else unit_rows(asked)

    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    search = _searcher(points, device, metric)
    ids, similarities = np.empty((len(asked), k), np.int64), np.empty((len(asked), k), np.float32)
    for rows in np.array_split(np.arange(len(asked)), -(-len(asked) // _QUERIES)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        near, found = search(asked[part], k + exclude)
        if exclude:
            keep = found != rows[:, None]
            keep[keep.all(axis=1), -1] = False  # more than k copies, and the row itself is not among those found
            near, found = near[keep].reshape(-1, k), found[keep].reshape(-1, k)
        ids[part], similarities[part] = found, near
    return torch.from_numpy(ids).to(device), torch.from_numpy(similarities).to(device)


def _searcher(
    points: FloatArray, device: torch.device, metric: Literal["cosine", "l2"]
) -> Callable[[FloatArray, int], tuple[FloatArray, npt.NDArray[np.int64]]]:
    """Return what finds similarities and numbers of the k nearest of ``points`` (N, D) for queries (Q, D)."""
    faiss = load_faiss()
    cosine = metric == "cosine"
    sign = 1.0 if cosine else -1.0
    on_gpu = faiss.get_num_gpus() > 0
    if device.type == "cuda" and not on_gpu:
        # faiss-cpu would search among 50,000 rows for a minute on a thread, while the GPU waits.
        sent = torch.from_numpy(points).to(device)

        def by_products(queries: FloatArray, k: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
            near, ids = search_by_products(sent, torch.from_numpy(queries).to(device), k, metric)
            return near.cpu().numpy(), ids.cpu().numpy()

        return by_products
    if on_gpu:
        index = flat_index(points.shape[1], inner_product=cosine, device=device)
        index.add(points)

    def by_faiss(queries: FloatArray, k: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        if on_gpu:
            near, ids = index.search(queries, k)
        else:  # without an index, which would hold the points once more
            near, ids = faiss.knn(queries, points, k, faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2)
        return sign * near, ids

    return by_faiss


def search_by_products(
    points: Tensor, queries: Tensor, k: int, metric: Literal["cosine", "l2"]
) -> tuple[Tensor, Tensor]:
    """Return similarities (Q, k) and indices (Q, k) of the nearest rows of ``points`` (N, D) for ``queries`` (Q, D).

    Both are float32 on one device, for the cosine of unit length; k is at most N.
    """
    parts = []
    for rows in queries.split(max(1, _SCORES // len(points))):
        scores = rows @ points.T
        if metric == "l2":
            scores.mul_(2).sub_(points.square().sum(1)).sub_(rows.square().sum(1, keepdim=True))
        parts.append(scores.topk(k, dim=1))
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def unit_rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rows of ``x`` (N, D) floating divided by their lengths, in the same dtype; zero rows stay zero."""
    unit: npt.NDArray[Any] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), x.dtype.type(1e-12))
    return unit
