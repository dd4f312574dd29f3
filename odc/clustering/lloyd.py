"""Lloyd's iterations by torch, for a GPU that FAISS does not reach: faiss-cpu would take as long as many of its steps.

As FAISS does it (Johnson et al., arXiv:1702.08734): of several starts that with the lowest objective in the end is
kept, and a cluster that becomes empty gets a copy of the largest one's centroid, from which the two move apart. Sums
are products with the labels one-hot, which add in one order on a GPU too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SCORES = 2**26  # points x clusters at a time
_APART = 1 / 1024  # FAISS's, relative


def lloyd(
    x: Tensor,
    num_clusters: int,
    *,
    generator: torch.Generator,
    n_iter: int,
    n_redo: int = 1,
    plus_plus: bool = False,
    spherical: bool = False,
) -> tuple[Tensor, tuple[float, ...]]:
    """Return centroids (K, D) of points (N, D) float32, on their device, and the objective before each update of them.

    The options are those of :func:`odc.clustering.kmeans`; they are not checked.
    """
    found = []
    for _ in range(n_redo):
        choose = _spread if plus_plus else _some
        centroids, objective = x.index_select(0, choose(x, num_clusters, generator)), []
        for _ in range(n_iter):
            labels, distances = nearest(x, centroids)
            objective.append(distances.sum(dtype=torch.float64))
            centroids = _means(x, labels, centroids)
            if spherical:
                centroids = F.normalize(centroids, dim=1, eps=1e-12)
        found.append((centroids, tuple(torch.stack(objective).tolist())))
    return min(found, key=lambda run: run[1][-1])


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid (N,) int64 of each point (N, D), and its squared distance (N,)."""
    squares = centroids.square().sum(1)
    parts = [
        torch.addmm(squares, rows, centroids.T, alpha=-2).min(1) for rows in x.split(max(1, _SCORES // len(centroids)))
    ]
    least = torch.cat([part.values for part in parts]) + x.square().sum(1)
    return torch.cat([part.indices for part in parts]), least.clamp_(min=0)


def _means(x: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Return the means (K, D) of the clusters; an empty one is split from the largest, with which it shares."""
    K = len(before)
    sums, sizes, step = torch.zeros_like(before), x.new_zeros(K), max(1, _SCORES // K)
    for rows, own in zip(x.split(step), labels.split(step), strict=True):
        hot = torch.zeros(K, len(rows), device=x.device).scatter_(0, own[None], 1.0)
        sums.addmm_(hot, rows)
        sizes += hot.sum(1)
    means = sums / sizes.clamp(min=1)[:, None]
    sign = torch.arange(x.shape[1], device=x.device) % 2 * 2.0 - 1
    for cluster in (sizes == 0).nonzero().flatten().tolist():
        donor = int(sizes.argmax())
        means[cluster] = means[donor] * (1 + _APART * sign)
        means[donor] *= 1 - _APART * sign
        sizes[[cluster, donor]] = sizes[donor] / 2
    return means


def _some(x: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return K different places (K,) at random."""
    return torch.randperm(len(x), generator=generator, device=generator.device)[:num_clusters].to(x.device)


def _spread(x: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return K places (K,) by k-means++: each with a chance in proportion to its squared distance from those before."""
    draws = torch.rand(num_clusters, generator=generator, dtype=torch.float64, device=generator.device).to(x.device)
    chosen = [(draws[0] * len(x)).long()]
    least = x.new_full((len(x),), torch.inf)
    for draw in draws[1:]:
        least = torch.minimum(least, (x - x.index_select(0, chosen[-1].view(1))).square().sum(1))
        until = least.cumsum(0, dtype=torch.float64)
        chosen.append(torch.searchsorted(until, draw * until[-1], right=True).clamp(max=len(x) - 1))
    return torch.stack(chosen)
