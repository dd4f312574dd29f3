"""Two-level k-means, against bare FAISS calls that do the same work.

Ours is ``odc.clustering.two_level_kmeans``: m super-clusters, then k/m sub-clusters in each, repairs and labels
included. The floor is what one would write with FAISS alone: ``Clustering.train`` on all points with m centroids and a
search; then for each super-cluster the copy of its points, ``Clustering.train`` with k/m centroids and a search; no
repair. Both train on all points, for as many iterations (FAISS stops, as ours does, where nothing changes).

The points are unit vectors around k random ones that overlap, so that no run converges early.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc.clustering import l2_normalize_, two_level_kmeans
from odc.clustering.kmeans import load_faiss
from odc.structures import LocalComm, make_generator

from .timing import Found, in_turn

ITERATIONS = 10


def make_points(N: int, k: int, D: int) -> Tensor:
    """Return (N, D) float32 unit vectors around k random ones."""
    rng = make_generator(0, "two_level")
    centres = torch.randn(k, D, generator=rng).mul_(0.4)  # they overlap: k-means does not converge
    x = torch.empty(N, D)
    for rows in x.split(65536):
        rows.normal_(generator=rng).add_(centres[torch.randint(k, (len(rows),), generator=rng)])
    l2_normalize_(x)
    return x


def bare_faiss(points: Any, m: int, k: int, seed: int) -> float:
    """Return the mean squared distance to the centroids of two levels of FAISS's k-means."""
    faiss = load_faiss()

    def level(x: Any, k: int) -> tuple[Any, Any]:
        clustering = faiss.Clustering(x.shape[1], k)
        clustering.niter = ITERATIONS
        clustering.seed = seed
        clustering.min_points_per_centroid = 1
        clustering.max_points_per_centroid = 10_000_000
        index = faiss.IndexFlatL2(x.shape[1])
        clustering.train(x, index)
        distances, labels = index.search(x, 1)
        return distances[:, 0], labels[:, 0]

    _, labels = level(points, m)
    total = 0.0
    for s in range(m):
        distances, _ = level(np.ascontiguousarray(points[labels == s]), k // m)
        total += float(distances.sum(dtype=np.float64))
    return total / len(points)


def two_level(tiny: bool, bar: float) -> Found:
    """Return how often FAISS's time two levels of k-means take: 100,000 points, m = 4, k = 1,000."""
    N, D, m, k = (2_000, 8, 2, 20) if tiny else (100_000, 256, 4, 1_000)
    x = make_points(N, k, D)
    points, seed = x.numpy(), 0
    objectives: dict[str, list[float]] = {"ours": [], "faiss": []}

    def ours() -> None:
        nonlocal seed
        seed += 1
        found = two_level_kmeans(x, k, m, n_iter=ITERATIONS, generator=make_generator(0, seed), comm=LocalComm())
        mine = found.sub_centroids[found.super_labels, found.sub_labels]
        objectives["ours"].append(float((x - mine).square().sum(1).mean()))

    def floor() -> None:
        objectives["faiss"].append(bare_faiss(points, m, k, seed))

    found = in_turn(ours, floor, 3, bar).found()
    means = {name: float(np.mean(values)) for name, values in objectives.items()}
    told = f"{found.told}; mean squared distance {means['ours']:.4f} to {means['faiss']:.4f}"
    return Found(found.value, told, {**found.detail, "mean_squared_distance": means})
