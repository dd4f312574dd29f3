"""Rows without training: whatever has scikit-learn's ``fit_predict``, on the features of all images.

The name of such a row is ``<estimator>-<features>``: the estimator is one of :data:`ESTIMATORS` or the dotted path of a
class, ``sklearn.cluster.Birch`` say; the features are one of :data:`FEATURES`.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from odc.clustering import kmeans
from odc.errors import InputError, nearest
from odc.structures import make_generator

FEATURES = ("pixels", "backbone", "moco")  # the extraction view; the untrained network; the pre-trained one


class KMeans:
    """This project's k-means, the best of 20 runs from k-means++ starts."""

    def __init__(self, n_clusters: int, random_state: int) -> None:
        self.n_clusters = n_clusters
        self.random_state = random_state

    def fit_predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the clusters (N,) of features (N, D)."""
        rng = make_generator(self.random_state, "kmeans")
        found = kmeans(torch.from_numpy(x), self.n_clusters, n_iter=100, n_redo=20, plus_plus=True, generator=rng)
        clusters: npt.NDArray[np.int64] = found.labels.cpu().numpy()
        return clusters


# name: (class, options). HDBSCAN decides itself how many clusters there are.
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "kmeans": ("odc.comparison.estimators.KMeans", {}),
    "gmm": ("sklearn.mixture.GaussianMixture", {"covariance_type": "diag", "n_init": 3}),
    "spectral": (
        "sklearn.cluster.SpectralClustering",
        {"affinity": "nearest_neighbors", "n_neighbors": 10, "assign_labels": "cluster_qr"},
    ),
    "agglomerative": ("sklearn.cluster.AgglomerativeClustering", {}),
    "hdbscan": ("sklearn.cluster.HDBSCAN", {"min_cluster_size": 20, "copy": True}),
}


@dataclass(frozen=True)
class Estimator:
    """A class with ``fit_predict`` and what to make it with.

    Attributes:
        path: dotted path of the class.
        options: its arguments, but for the number of clusters and the seed, which it gets where it has them.
        features: one of :data:`FEATURES`.
    """

    path: str
    options: Mapping[str, Any]
    features: str

    # Keep a distance (float64) for every pair of images, so that many images would take all memory of the machine.
    of_pairs: ClassVar[tuple[str, ...]] = ("sklearn.cluster.AgglomerativeClustering",)
    # Options that count images, of which there may be fewer.
    of_images: ClassVar[tuple[str, ...]] = ("n_neighbors", "min_cluster_size")
    # What the classes of scikit-learn call K.
    names: ClassVar[tuple[str, ...]] = ("n_clusters", "n_components")

    @classmethod
    def parse(cls, name: str) -> Estimator | None:
        """Return the row of this name, or ``None`` if it has not the form of one.

        Raises:
            InputError: the dotted path leads to no class with ``fit_predict``.
        """
        head, _, features = name.rpartition("-")
        if features not in FEATURES or not (head in ESTIMATORS or ("." in head and not head.endswith(".py"))):
            return None
        path, options = ESTIMATORS.get(head, (head, {}))
        estimator = cls(path, options, features)
        estimator.load()
        return estimator

    def load(self) -> Any:
        """Return the class.

        Raises:
            InputError: there is none, or it has no ``fit_predict``.
        """
        module, _, name = self.path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise InputError(f"cannot import '{module}' for the row of '{self.path}': {error}") from error
        if found is None:
            raise InputError(f"{module} has no '{name}'{nearest(name, dir(importlib.import_module(module)))}")
        if not callable(getattr(found, "fit_predict", None)):
            raise InputError(f"{self.path} has no fit_predict: a row needs a clustering with scikit-learn's interface")
        return found

    def fit_predict(self, x: npt.NDArray[np.float32], num_clusters: int, seed: int) -> npt.NDArray[np.int64]:
        """Return the cluster of every row of ``x`` (N, D): (N,) int64, negative for those in none.

        Raises:
            InputError: there are more clusters than rows, it would take more than half of the machine's memory, it
                fails on these features, or another number of clusters than rows comes back.
        """
        N = len(x)
        if num_clusters > N:
            raise InputError(f"{num_clusters} clusters from {N} images: take between 1 and {N}")
        needed, there = 4 * N * (N - 1), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.path in self.of_pairs and needed > there / 2:
            raise InputError(
                f"{self.path} keeps the distances of all pairs of {N:,} images, {needed / 2**30:.1f} GiB, more than "
                f"half of the {there / 2**30:.1f} GiB of memory: take kmeans, gmm or hdbscan, or fewer images"
            )
        kind = self.load()
        known = inspect.signature(kind).parameters
        given = {name: num_clusters for name in self.names if name in known}
        if "random_state" in known:
            given["random_state"] = seed
        few = {name: min(value, max(2, N)) for name, value in self.options.items() if name in self.of_images}
        try:
            clusters = np.array(kind(**{**given, **self.options, **few}).fit_predict(x))
        except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path} finds no {num_clusters} clusters in {N:,} images: {reason}") from error
        if clusters.shape != x.shape[:1]:
            raise InputError(f"{self.path}.fit_predict gave {clusters.shape} clusters for {x.shape} features")
        in_one = clusters >= 0  # numbered 0 to K - 1 whatever the class calls them; negative: in none
        clusters[in_one] = np.unique(clusters[in_one], return_inverse=True)[1]
        return clusters.astype(np.int64)
