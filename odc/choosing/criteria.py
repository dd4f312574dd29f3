"""What speaks for a number of clusters: curves over K, and counts. Arrays in, numbers out.

``z`` is (M, d) float32, the reduced features of :mod:`odc.choosing.choose`. k-means is scikit-learn's, on one start: it
draws each first centroid as the best of several, and so finds 20 separate clusters in 37 of 40 starts, FAISS's in few.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, davies_bouldin_score, pairwise_distances, silhouette_score

FloatArray = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
DISTORTION = 0.2  # of the coding length: squared error as a share of the variance
_ITERATIONS = 50
_KEPT = 0.5  # of the samples in each of the two halves, which share a quarter of all


@dataclass(frozen=True)
class Curves:
    """Criteria over K, each (len(ks),), of k-means on the same samples."""

    silhouette: npt.NDArray[np.float64]  # of the labels, mean over the samples; in [-1, 1], larger is better
    davies_bouldin: npt.NDArray[np.float64]  # smaller is better
    stability: npt.NDArray[np.float64]  # see :func:`stability`
    spread: npt.NDArray[np.float64]  # standard error of the stability


def fitted(z: FloatArray, num_clusters: int, generator: torch.Generator, starts: int = 1) -> KMeans:
    """Return k-means on the rows of ``z``, the best of some starts."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        return KMeans(num_clusters, n_init=starts, max_iter=_ITERATIONS, random_state=seed).fit(z)


def stability(z: FloatArray, num_clusters: int, generator: torch.Generator, pairs: int) -> npt.NDArray[np.float64]:
    """Return how well clusterings of overlapping halves of the samples agree, for each of some pairs of halves.

    k-means on a half gives every sample, of this half or not, its nearest centroid; of the two labellings that a pair
    gives it is the adjusted Rand index: 1 where they are the same clustering, 0 where they agree as chance would have
    it (Ben-Hur et al., PSB 2002; Lange et al., Neural Computation 2004).
    """
    half = max(num_clusters, round(_KEPT * len(z)))
    agreement = []
    for _ in range(pairs):
        both = []
        for _ in range(2):
            rows = torch.randperm(len(z), generator=generator)[:half].numpy()
            both.append(fitted(z[rows], num_clusters, generator).predict(z))
        agreement.append(adjusted_rand_score(*both))
    return np.array(agreement)


def curves(
    z: FloatArray, labels: Mapping[int, Labels], generator: torch.Generator, pairs: int, step: Callable[[], None]
) -> Curves:
    """Return the criteria of labels (M,) by their number of clusters; calls ``step`` after each K."""
    distances = pairwise_distances(z)
    np.fill_diagonal(distances, 0)
    found = []
    for K, own in labels.items():
        agreement = stability(z, K, generator, pairs)
        found.append(
            (
                silhouette_score(distances, own, metric="precomputed"),
                davies_bouldin_score(z, own),
                agreement.mean(),
                agreement.std(ddof=1) / len(agreement) ** 0.5,
            )
        )
        step()
    return Curves(*np.array(found, dtype=np.float64).T)


def coding_length(z: FloatArray, labels: Labels, share: float = DISTORTION) -> float:
    """Return the bits a sample in which clusters describe the samples, with squared errors of ``share`` · variance.

    Every cluster is a Gaussian of its own: what its volume, its mean and the labels take (Ma et al., TPAMI 2007,
    arXiv:cs/0703064, L^s). One cluster is a clustering, too, so that this criterion can say that there are none.
    """
    M, d = z.shape
    x = z.astype(np.float64) - z.mean(0, dtype=np.float64)
    allowed = share * float((x**2).sum()) / M
    bits = 0.0
    for cluster, size in enumerate(np.bincount(labels).tolist()):
        if not size:
            continue
        members = x[labels == cluster]
        mean = members.mean(0)
        scatter = (members - mean).T @ (members - mean)
        bits += (size + d) / 2 * np.linalg.slogdet(np.eye(d) + d / (allowed * size) * scatter)[1] / np.log(2)
        bits += d / 2 * np.log2(1 + float(mean @ mean) / allowed) - size * np.log2(size / M)
    return float(bits / M)


def hdbscan_counts(z: FloatArray) -> list[tuple[int, float]]:
    """Return how many clusters HDBSCAN finds, and the share of the samples in them, for three smallest sizes.

    These are .5, 1 and 2 % of the samples, and 5 at least (Campello et al., PAKDD 2013).
    """
    found = []
    for size in sorted({max(5, round(share * len(z))) for share in (0.005, 0.01, 0.02)}):
        labels = HDBSCAN(min_cluster_size=size, min_samples=5, copy=True).fit_predict(z)
        found.append((int(labels.max()) + 1, float((labels >= 0).mean())))
    return found
