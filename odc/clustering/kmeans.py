"""K-means on all points, without empty clusters, and how evenly clusters are filled.

Lloyd's iterations by FAISS (Johnson et al., arXiv:1702.08734), or on a GPU that FAISS does not reach by torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odc.clustering.lloyd import lloyd, nearest
from odc.clustering.preprocess import check_differ
from odc.errors import InputError
from odc.structures import Comm, gather_first

FloatArray = npt.NDArray[np.float32]
LONGEST = 1e18  # of a row: its square, and four times that, are below float32's largest number


class MissingFaissError(InputError, ImportError):
    """FAISS is not installed."""


@dataclass(frozen=True)
class KMeansResult:
    """A clustering, on the device of the input, and how it came out."""

    centroids: Tensor  # (K, D) float32
    labels: Tensor  # (N,) int64
    sizes: Tensor  # (K,) int64 points in each cluster; all at least 1; on the CPU
    # FAISS's objective before each update of the centroids: the sum over points of the squared distance to the nearest
    # centroid. Empty when K = N.
    objective: tuple[float, ...]
    refilled: int  # clusters that the last assignment left empty and that were refilled


def load_faiss() -> Any:
    """Return the module ``faiss``; :class:`MissingFaissError` names the two packages that bring it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingFaissError(
            "FAISS is not installed: pip install 'online-deep-clustering[cpu]' (faiss-cpu) or [gpu] (faiss-gpu), "
            "never both"
        ) from error
    return faiss


def flat_index(dim: int, *, inner_product: bool, device: torch.device) -> Any:
    """Return an empty exact FAISS index over (·, ``dim``) vectors: on the GPU when FAISS and the machine have one."""
    faiss = load_faiss()
    index = faiss.IndexFlatIP(dim) if inner_product else faiss.IndexFlatL2(dim)
    if faiss.get_num_gpus() > 0:
        # The GPU of the data: with several processes on a machine, device 0 would be everybody's.
        gpu = device.index or 0 if device.type == "cuda" else torch.cuda.current_device()
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index)
    return index


def finite_array(x: Tensor | npt.NDArray[Any], name: str) -> FloatArray:
    """Return ``x`` (N, D) as a C-contiguous float32 array.

    Refuses what is not numbers (N, D) with N and D at least 1, rows that are not finite, and rows so long that float32
    cannot hold the squares of their distances.
    """
    array = x.detach().to("cpu", torch.float32).numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"{name} must be numbers (N, D), N and D at least 1; got shape {tuple(array.shape)}, {array.dtype}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
        # A row's square is finite only if the row is: no (N, D) mask. Those in doubt are looked at again.
        suspects = np.flatnonzero(~(np.einsum("ij,ij->i", array, array) <= LONGEST**2))
    bad = int((~np.isfinite(array[suspects]).all(axis=1)).sum())
    if bad:
        raise InputError(
            f"{bad} of {len(array)} rows of {name} are not finite: remove them, or lower the learning rate"
        )
    if len(suspects):
        raise InputError(
            f"{len(suspects)} of {len(array)} rows of {name} are longer than {LONGEST:g}: lower the learning rate, or "
            "normalise them"
        )
    return array


def size_entropy(sizes: Tensor | npt.NDArray[Any]) -> float:
    """Return the entropy in nats of a sample's cluster, from the samples in each, any shape; at most ln K."""
    counts = sizes.cpu().numpy() if isinstance(sizes, Tensor) else sizes
    share = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(share * np.log(share)).sum()))


def imbalance(sizes: Tensor | npt.NDArray[Any], num_clusters: int) -> float:
    """Return K · Σ sizes² / N², from the samples in each cluster, any shape: 1 is perfectly even, K all in one."""
    counts = sizes.cpu().numpy() if isinstance(sizes, Tensor) else sizes
    return num_clusters * float((counts.astype(np.float64) ** 2).sum()) / int(counts.sum()) ** 2


def kmeans(
    x: Tensor | npt.NDArray[Any],
    num_clusters: int,
    *,
    generator: torch.Generator,
    n_iter: int = 20,
    n_redo: int = 1,
    plus_plus: bool = False,
    spherical: bool = False,
) -> KMeansResult:
    """Cluster the rows of ``x`` into ``num_clusters`` clusters, none of them empty.

    FAISS trains the centroids, or torch on a GPU that FAISS does not see; then every point is assigned once more. Which
    consistency holds: a label is the nearest centroid as trained. Clusters that this assignment leaves empty are
    refilled by splitting the largest cluster in two by 2-means; those two then have the mean of their own members as
    centroid, and no other point is looked at again.

    Args:
        x: (N, D) points, converted to float32; normalise them first if the method says so.
        num_clusters: K, 1 to N.
        generator: the seed is drawn from it; the same seed gives the same bits on the same machine.
        n_iter: Lloyd's iterations.
        n_redo: runs from different starts; the one with the best objective is kept.
        plus_plus: start from points far from each other (k-means++, Arthur & Vassilvitskii, SODA 2007) instead of from
            random ones.
        spherical: centroids get unit length after every iteration, so on points of unit length nearest means the
            largest cosine.

    Raises:
        InputError: K is not within 1..N, ``n_iter`` or ``n_redo`` < 1, ``x`` is not (N, D), or rows are not finite or
            longer than 1e18.
        MissingFaissError: FAISS is not installed.
    """
    points = finite_array(x, "x")
    N = len(points)
    if not 1 <= num_clusters <= N:
        raise InputError(f"{num_clusters} clusters from {N} samples: lower the number of clusters to between 1 and {N}")
    if n_iter < 1 or n_redo < 1:
        raise InputError(f"k-means needs at least 1 iteration, not {n_iter}, and at least 1 run, not {n_redo}")
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    options: dict[str, Any] = dict(n_iter=n_iter, n_redo=n_redo, plus_plus=plus_plus, spherical=spherical)
    by = _by_torch if device.type == "cuda" and load_faiss().get_num_gpus() == 0 else _by_faiss
    centroids, labels, objective = by(points, num_clusters, device, generator, **options)
    refilled = _refill(points, labels, centroids)
    if spherical and refilled:
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True).clip(min=1e-12)

    sizes = np.bincount(labels, minlength=num_clusters)
    return KMeansResult(
        torch.from_numpy(centroids).to(device),
        torch.from_numpy(labels).to(device),
        torch.from_numpy(sizes),
        objective,
        refilled,
    )


_Trained = tuple[FloatArray, npt.NDArray[np.int64], tuple[float, ...]]  # centroids, labels by them, objective


def _by_torch(
    points: FloatArray, num_clusters: int, device: torch.device, generator: torch.Generator, **options: Any
) -> _Trained:
    x = torch.from_numpy(points).to(device)
    centroids, objective = lloyd(x, num_clusters, generator=generator, **options)
    return centroids.cpu().numpy(), nearest(x, centroids)[0].cpu().numpy(), objective


def _by_faiss(
    points: FloatArray,
    num_clusters: int,
    device: torch.device,
    generator: torch.Generator,
    *,
    n_iter: int,
    n_redo: int,
    plus_plus: bool,
    spherical: bool,
) -> _Trained:
    faiss, D = load_faiss(), points.shape[1]
    clustering = faiss.Clustering(D, num_clusters)
    clustering.niter = n_iter
    clustering.nredo = n_redo
    clustering.spherical = spherical
    if plus_plus:
        clustering.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    clustering.min_points_per_centroid = 1  # fewer than 39 is a warning on stderr otherwise
    clustering.max_points_per_centroid = 10_000_000  # all points; 256 otherwise
    clustering.seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    index = flat_index(D, inner_product=False, device=device)
    clustering.train(points, index)
    centroids: FloatArray = faiss.vector_float_to_array(clustering.centroids).reshape(num_clusters, D)
    stats = clustering.iteration_stats
    objective = tuple(float(stats.at(i).obj) for i in range(stats.size()))

    index.reset()
    index.add(centroids)
    labels: npt.NDArray[np.int64] = index.search(points, 1)[1][:, 0]  # FAISS blocks this: never N×K in memory
    return centroids, labels, objective


def kmeans_over_ranks(
    features: Tensor,
    num_clusters: int,
    *,
    n_iter: int,
    generator: torch.Generator,
    comm: Comm,
    n_redo: int = 1,
    spherical: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cluster the features of all ranks, (Nr, D) float32 of each, by :func:`kmeans`.

    It starts by k-means++ where it is spherical or ``n_redo`` > 1.

    The first rank does it, with its generator, and sends the result to the others: two that each ran k-means could
    differ in a bit and then disagree for ever.

    Returns:
        Labels (N,) int64 in the order of the ranks' rows, and centroids (K, D) float32; on ``features``' device.

    Raises:
        InputError: when K > N, or all features are equal (with more than one cluster).
    """
    everything = gather_first(features, comm)

    def cluster() -> tuple[Tensor, Tensor]:
        assert everything is not None, "the first rank calls this"
        if num_clusters > 1:
            check_differ(everything)
        found = kmeans(
            everything,
            num_clusters,
            n_iter=n_iter,
            n_redo=n_redo,
            plus_plus=spherical or n_redo > 1,
            spherical=spherical,
            generator=generator,
        )
        return found.labels.to(features.device), found.centroids.to(features.device)

    labels, centroids = comm.first(cluster)
    return labels, centroids


def _refill(points: FloatArray, labels: npt.NDArray[np.int64], centroids: FloatArray) -> int:
    """Give every empty cluster a part of the cluster that is largest then; in place; return how many there were."""
    sizes = np.bincount(labels, minlength=len(centroids))
    empty = np.flatnonzero(sizes == 0)
    for cluster in empty.tolist():
        donor = int(sizes.argmax())  # N >= K and an empty cluster: the largest one has at least two members
        members = np.flatnonzero(labels == donor)
        half = _two_means(points[members])
        labels[members[half]] = cluster
        for c, rows in ((cluster, members[half]), (donor, members[~half])):
            centroids[c], sizes[c] = points[rows].mean(axis=0), len(rows)
    return len(empty)


def _two_means(x: FloatArray, n_iter: int = 10) -> npt.NDArray[np.bool_]:
    """Return which of the (n, D) points, n >= 2, are in the second of two clusters; neither is empty."""
    first = x[((x - x.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    second = x[((x - first) ** 2).sum(axis=1).argmax()]
    half = np.arange(len(x)) >= len(x) // 2  # what stays when all points are the same
    for _ in range(n_iter):
        nearer = ((x - second) ** 2).sum(axis=1) < ((x - first) ** 2).sum(axis=1)
        if not nearer.any() or nearer.all() or (nearer == half).all():
            break
        half = nearer
        first, second = x[~half].mean(axis=0), x[half].mean(axis=0)
    return half
