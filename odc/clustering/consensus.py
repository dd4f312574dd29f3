"""One clustering of several: what runs, heads or methods agree about.

Strehl, Ghosh. *Cluster Ensembles: A Knowledge Reuse Framework for Combining Multiple Partitions.* JMLR 3, 2002: every
cluster of every clustering is a hyperedge over the samples, and the consensus cuts this hypergraph into K parts. It is
cut here by its spectrum, as the bipartite graph of samples and clusters (Fern, Brodley, ICML 2004): with A (N, C) the
0-1 matrix of samples and all C clusters, and d the degrees of its rows and columns,

    left singular vectors U (N, K) of d_row^-½ A d_column^-½,  rows of U to unit length,  k-means.

U comes from the eigenvectors of the (C, C) matrix of the clusters' overlaps, so nothing is ever N×N. Numbers of
clusters need not be equal, so over-clusterings and methods with another K take part. Names of clusters mean nothing.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from odc.clustering.kmeans import kmeans
from odc.clustering.preprocess import l2_normalize
from odc.errors import InputError
from odc.structures import UNLABELLED

_REDO, _ITER = 10, 50  # starts of k-means, and iterations of each


def consensus(labels: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return the consensus (N,) int64 of R clusterings of N samples; -1 where no clustering knows the sample.

    Args:
        labels: (R, N) int64; -1 is unknown. Clusterings may differ in their numbers of clusters.
        num_clusters: K of the result, at most the clusters of all clusterings together; none is empty.
        generator: of k-means; the same one gives the same clusters.

    Raises:
        InputError: no clustering, labels below -1, or a K that is out of range.
    """
    if labels.ndim != 2 or 0 in labels.shape or labels.dtype != torch.int64 or bool((labels < UNLABELLED).any()):
        raise InputError(
            f"a consensus needs int64 labels (R, N), -1 or more, R and N at least 1; got {tuple(labels.shape)}, "
            f"{labels.dtype}"
        )
    result = torch.full((labels.shape[1],), UNLABELLED)
    somewhere = (labels >= 0).any(0).cpu()
    members = [known for row in labels.cpu()[:, somewhere] if len((known := _members(row))[0])]
    sizes = torch.cat([torch.zeros(0), *(torch.bincount(cluster) for _, cluster in members)]).double()  # (C,)
    N, C = int(somewhere.sum()), len(sizes)
    if not 1 <= num_clusters <= min(N, C):
        raise InputError(
            f"{num_clusters} clusters asked for of {N} samples in {C} clusters of all clusterings: lower the number of "
            f"clusters to between 1 and {min(N, C)}"
        )
    degree = torch.bincount(torch.cat([sample for sample, _ in members]), minlength=N).double()  # (N,), d_row
    first = [0, *itertools.accumulate(int(cluster.max()) + 1 for _, cluster in members)]  # column of each clustering

    overlap = torch.zeros(C, C, dtype=torch.float64)  # Aᵀ A, each sample by 1 / its degree
    for a, (sample, cluster) in enumerate(members):
        mine = torch.full((N,), UNLABELLED)
        mine[sample] = cluster
        for b, (other, theirs) in enumerate(members[: a + 1]):
            both = other[mine[other] >= 0]
            height, width = first[a + 1] - first[a], first[b + 1] - first[b]
            place = mine[both] * width + theirs[mine[other] >= 0]
            block = torch.bincount(place, weights=1 / degree[both], minlength=height * width).view(height, width)
            overlap[first[a] : first[a + 1], first[b] : first[b + 1]] = block
            overlap[first[b] : first[b + 1], first[a] : first[a + 1]] = block.T
    scale = sizes.rsqrt()[:, None]
    _, vectors = torch.linalg.eigh(scale * overlap * scale.T)  # ascending
    columns = scale * vectors[:, -num_clusters:]
    # Rows of U, but for factors that a row's unit length or all columns alike take out.
    U = torch.zeros(N, num_clusters, dtype=torch.float64)
    for start, (sample, cluster) in zip(first, members, strict=False):
        U.index_add_(0, sample, columns[start + cluster])
    unit, _ = l2_normalize(U)
    parted = kmeans(unit, num_clusters, generator=generator, n_iter=_ITER, n_redo=_REDO, plus_plus=True)
    result[somewhere] = parted.labels
    return result.to(labels.device)


def agreement(labels: Tensor, found: Tensor) -> Tensor:
    """Return the share (N,) float64 of the clusterings that agree with a sample's cluster, of those that know it.

    A clustering agrees where most samples of its own cluster are in the one that the sample is in.

    Args:
        labels: (R, N) int64, -1 is unknown.
        found: (N,) int64, the consensus of these clusterings; its samples of -1 have 0.
    """
    votes = torch.zeros(len(found), dtype=torch.float64)
    final = found.cpu()
    for row in labels.cpu():
        sample, cluster = _members(torch.where(final >= 0, row, UNLABELLED))
        if len(sample):
            width = int(final.max()) + 1
            counts = torch.bincount(cluster * width + final[sample], minlength=(int(cluster.max()) + 1) * width)
            votes[sample] += (counts.view(-1, width).argmax(1)[cluster] == final[sample]).double()
    return (votes / (labels >= 0).sum(0).clamp(min=1).cpu()).to(labels.device)


def _members(row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples (n,) that a clustering (N,) knows, and their clusters, numbered without gaps."""
    sample = (row >= 0).nonzero()[:, 0]
    return sample, row[sample].unique(return_inverse=True)[1]
