"""Deep clustering with scikit-learn's interface."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from odc.errors import InputError
from odc.estimator.inputs import are_images, read_images
from odc.estimator.isolation import isolated
from odc.estimator.training import train
from odc.sources import SCRATCH


class DeepClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Deep clustering of images, or of vectors that are features of something.

    Samples ``X`` are one of

    - vectors (N, D): whatever scikit-learn takes as such;
    - images (N, H, W), (N, H, W, C) or (N, C, H, W), arrays or tensors, with 1, 3 or 4 channels. Bytes are taken as
      they are, floating-point numbers from 0 to 1 as shares; of any other numbers the lowest of ``fit`` becomes black
      and the highest white;
    - the path of a folder, whose images are taken in the order of ``paths_``;
    - a list (or array, or column) of paths; a list of PIL images or of arrays;
    - a ``torch.utils.data.Dataset`` of images, or of tuples that begin with one, or a ``datasets.Dataset`` with a
      column of images. Labels are not looked at.

    A training draws from its own generators, says nothing unless ``verbose``, leaves no files, and puts back what it
    sets in the process. The same samples, arguments and number of threads give the same clusters.

    Args:
        n_clusters: K.
        method: name of a method as ``odc compare --methods`` takes it, or the path of a config. ``None``: "scan" on
            vectors and features, or "kmeans" where these are too few to train on (less than 100, or than 4 a cluster);
            "odc" from scratch. On vectors and features "spice" is its first part, "spice-self": the second trains a
            network on images.
        features: what images become before they are clustered: a network that others have trained, as ``odc compare
            --features`` takes it ("dinov2-small", say); or "scratch", a network is trained on these images alone.
        max_epochs: of the training; ``None``: those of the method's config. Where a method consists of several
            trainings they share them.
        options: settings of the config to change, ``{"dotted.key": value}``, as ``--cfg-options``.
        random_state: an int for results that repeat; a ``RandomState``, or ``None`` for NumPy's global one, to draw
            from.
        verbose: show the log.

    Attributes:
        labels_: (N,) int64 cluster of each sample, -1 for noise of methods that know some.
        cluster_centers_: (K, D) float32, the mean direction of the features in each cluster, of length 1: where X was
            vectors among these, else among what the network makes of images. Zeros for a cluster without samples.
        n_features_in_: D, where X was vectors.
        feature_names_in_: names of the D columns, where X was a table of vectors with names.
        paths_: N paths relative to the folder, in the order of ``labels_``, where X was a folder.

    Raises ValueError where arguments or samples are wrong.

    >>> from sklearn.datasets import load_digits
    >>> digits = load_digits()
    >>> clusterer = DeepClusterer(n_clusters=10, max_epochs=5)
    >>> labels = clusterer.fit_predict(digits.data)
    >>> labels.shape, clusterer.cluster_centers_.shape
    ((1797,), (10, 64))
    >>> bool((clusterer.predict(digits.data[:5]) == labels[:5]).all())
    True
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        method: str | None = None,
        features: str | None = SCRATCH,
        max_epochs: int | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.features = features
        self.max_epochs = max_epochs
        self.options = options
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> DeepClusterer:
        """Cluster samples; ``y`` is ignored."""
        self._check_arguments()
        images = are_images(X)
        vectors = None if images else self._vectors(X, reset=True)
        if images:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        elif self.features not in (None, SCRATCH):
            raise ValueError(f"features='{self.features}' is for images, but X has vectors: leave it out")
        with isolated(self.verbose) as level, tempfile.TemporaryDirectory(prefix="odc-") as folder:
            pictures = read_images(X, Path(folder)) if images else None
            found, model = train(
                self.method,
                self.n_clusters,
                Path(folder),
                vectors=vectors,
                pictures=None if pictures is None else pictures.config,
                features=self.features or SCRATCH,
                seed=self._seed(),
                max_epochs=self.max_epochs,
                options=self.options,
                log_level=level,
            )
        labels = found.numpy()
        if pictures is not None:
            labels = labels[pictures.order]
        self.__dict__.pop("paths_", None)
        if pictures is not None and pictures.paths is not None:
            self.paths_ = pictures.paths
            if pictures.unreadable:
                path, reason = next(iter(pictures.unreadable.items()))
                left_out = f"{len(pictures.unreadable)} of {len(self.paths_) + len(pictures.unreadable)} images"
                warnings.warn(f"{left_out} cannot be read and are left out, {path} first ({reason})", stacklevel=2)
        self.labels_: npt.NDArray[np.int64] = labels
        self.cluster_centers_: npt.NDArray[np.float32] = model.centers.numpy()
        self._model, self._levels = model, None if pictures is None else pictures.levels
        self._n_features_out = len(self.cluster_centers_)
        filled = len(np.unique(labels[labels >= 0]))
        if filled < self.n_clusters:
            warnings.warn(
                f"{self.n_clusters - filled} of {self.n_clusters} clusters have no sample: take fewer clusters, more "
                "epochs or another method",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return the cluster of each sample (N,) int64."""
        return self._see(X)[0]

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the distances of samples to the centres (N, K) float32: 1 - cosine, from 0 to 2.

        The nearest centre is that of the sample's cluster for most samples, but not for all: a method draws borders of
        its own.
        """
        return self._see(X)[1]

    def score(self, X: Any, y: Any = None) -> float:
        """Return how far apart the clusters of samples are, from -1 to 1: their mean simplified silhouette.

        For a sample at the distance a from the centre of its cluster and b from the nearest other one that is (b - a) /
        max(a, b). It compares clusterings of the same features, also with other numbers of clusters. 0 for one cluster;
        noise does not count, and ``y`` is ignored.
        """
        labels, distances = self._see(X)
        labels, distances = labels[labels >= 0], distances[labels >= 0]
        present = np.abs(self.cluster_centers_).any(1)
        if present.sum() < 2 or not len(labels):
            return 0.0
        rows = np.arange(len(labels))
        own = distances[rows, labels].astype(np.float64)
        others = np.where(present, distances, np.inf)
        others[rows, labels] = np.inf
        nearest = others.min(1)
        largest = np.maximum(np.maximum(own, nearest), np.finfo(np.float32).tiny)
        return float(((nearest - own) / largest).mean())

    def _see(self, X: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return clusters (N,) of samples, and their distances to the centres (N, K)."""
        check_is_fitted(self)
        if not hasattr(self, "n_features_in_") and are_images(X):
            with isolated(self.verbose), tempfile.TemporaryDirectory(prefix="odc-") as folder:
                pictures = read_images(X, Path(folder), self._levels)
                found, distances = self._model.see_pictures(pictures.config, Path(folder))
            return found.numpy()[pictures.order], distances.numpy()[pictures.order]
        if not hasattr(self, "n_features_in_"):
            raise ValueError("DeepClusterer was fitted on images, but X has none: give images")
        found, distances = self._model.see_vectors(self._vectors(X, reset=False))
        return found.numpy(), distances.numpy()

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks of an estimator: images are taken, and distances are float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _vectors(self, X: Any, reset: bool) -> npt.NDArray[np.float32]:
        vectors: npt.NDArray[np.float32] = validate_data(self, X, reset=reset, dtype=np.float32, order="C")
        return vectors

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _check_arguments(self) -> None:
        for name in ("n_clusters", "max_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) and (name == "n_clusters" or value is not None):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        check_random_state(self.random_state)
