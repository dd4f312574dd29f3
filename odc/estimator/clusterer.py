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

from odc.data.datasets import build_dataset
from odc.errors import InputError
from odc.estimator.inputs import are_images, read_images
from odc.estimator.isolation import isolated
from odc.estimator.training import Samples, see_pictures, see_vectors, train
from odc.portable import PortableModel
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
        method: name of a method, as ``odc cluster --method`` takes it, or the path of a config. ``None``: "scan", on
            vectors, on features, or from scratch after a pre-training by MoCo; k-means where the samples are too few to
            train on (less than 100, or than 4 a cluster). On vectors and features "spice" is its first part,
            "spice-self": the second trains a network on images.
        features: what images become before they are clustered: a network that others have trained, as ``odc compare
            --features`` takes it ("dinov2-small", say); or "scratch", a network is trained on these images alone.
        max_epochs: of a pre-training, and of the training after it; where that consists of several they share them.
            ``None``: what suits the samples.
        options: settings of the config to change, ``{"dotted.key": value}``, as ``--cfg-options``.
        random_state: an int for results that repeat; a ``RandomState``, or ``None`` for NumPy's global one, to draw
            from.
        verbose: show the log.

    Attributes:
        labels_: (N,) int64 cluster of each sample, -1 for noise of methods that know some.
        confidence_: (N,) float32 in [0, 1]: the share of the samples whose margin between the best and the second
            cluster is not larger.
        cluster_centers_: (K, D) float32, the mean direction of the features in each cluster, of length 1: where X was
            vectors among these, else among what the network makes of images. Zeros for a cluster without samples.
        model_: the :class:`odc.portable.PortableModel` behind ``predict``, which tells more of images.
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
            config = None if pictures is None else pictures.config
            found, model = train(
                Samples(vectors, config, self.features or SCRATCH),
                self.n_clusters,
                Path(folder),
                method=self.method,
                seed=self._seed(),
                max_epochs=self.max_epochs,
                options=self.options,
                log_level=level,
            )
            if pictures is not None and pictures.levels is not None:
                model.levels = pictures.levels
        order = np.arange(len(found)) if pictures is None else pictures.order
        self.__dict__.pop("paths_", None)
        if pictures is not None and pictures.paths is not None:
            self.paths_ = pictures.paths
            if pictures.unreadable:
                path, reason = next(iter(pictures.unreadable.items()))
                left_out = f"{len(pictures.unreadable)} of {len(self.paths_) + len(pictures.unreadable)} images"
                warnings.warn(f"{left_out} cannot be read and are left out, {path} first ({reason})", stacklevel=2)
        self.labels_: npt.NDArray[np.int64] = found.cluster[order]
        self.confidence_: npt.NDArray[np.float32] = found.confidence[order]
        self._use(model)
        filled = len(np.unique(self.labels_[self.labels_ >= 0]))
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
                pictures = read_images(X, Path(folder), self.model_.levels)
                found, distances = see_pictures(self.model_, build_dataset(pictures.config))
            return found[pictures.order], distances[pictures.order]
        if not hasattr(self, "n_features_in_"):
            raise ValueError("DeepClusterer was fitted on images, but X has none: give images")
        return see_vectors(self.model_, self._vectors(X, reset=False))

    def save(self, folder: str | Path) -> None:
        """Write what ``predict`` needs into a folder, as JSON and safetensors: see :mod:`odc.portable`."""
        check_is_fitted(self)
        self.model_.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> DeepClusterer:
        """Return what :meth:`save`, or ``odc cluster``, has written: it predicts, but has no ``labels_`` of its own.

        Raises:
            InputError: there is no model, or a damaged one.
        """
        model = PortableModel.load(folder)
        found = cls(model.num_clusters, method=model.about.get("method"))
        if not model.networks:
            found.n_features_in_ = sum(model.spaces)
        found._use(model)
        return found

    def _use(self, model: PortableModel) -> None:
        self.model_ = model
        self.cluster_centers_: npt.NDArray[np.float32] = model.prototypes
        self._n_features_out = model.num_clusters

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle: of the model its files."""
        state: dict[str, Any] = dict(super().__getstate__())
        if isinstance(state.get("model_"), PortableModel):
            with tempfile.TemporaryDirectory(prefix="odc-") as folder:
                self.model_.save(folder)
                state["model_"] = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the state of a pickle."""
        files = state.get("model_")
        if isinstance(files, dict):
            with tempfile.TemporaryDirectory(prefix="odc-") as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                state = {**state, "model_": PortableModel.load(folder)}
        super().__setstate__(state)

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
