"""Rows without training: whatever has scikit-learn's ``fit_predict``, on the features of all images.

The name of such a row is ``<estimator>-<features>``: the estimator is one of :data:`ESTIMATORS` or the dotted path of a
class, ``sklearn.cluster.Birch`` say; the features are one of :data:`FEATURES`, or of a backbone by the name of its
pre-training. On features from elsewhere it is ``<estimator>``, on vectors of unit length (in each space, where there
are several), or ``<estimator>-raw``, on the vectors as they are.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.runner import set_random_seed

from odc.apis import prepare_config
from odc.clustering import kmeans
from odc.clustering.preprocess import unit_in_spaces
from odc.comparison.results import OUTCOME, Outcome
from odc.config import at
from odc.config.checking import check_parts
from odc.engine.data import ClusterData
from odc.engine.extract import extract
from odc.errors import InputError, nearest
from odc.evaluation.evaluator import ClusterMetrics, Evaluation, KNNMetric
from odc.evaluation.gallery import CLUSTERS, write_assigned
from odc.models import AvgPool, ClusterModel
from odc.recipes.stage import Left, Stage, place_spaces
from odc.registry import MODELS, build
from odc.structures import LocalComm, make_generator

COMMON = ("data.dataset", "data.eval_dataset", "data.views.extract", "model.backbone")
FEATURES = ("pixels", "backbone")  # the extraction view; the untrained network
UNIT, RAW = "unit", "raw"  # of vectors that come from elsewhere


class KMeans:
    """This project's k-means, the best of 20 runs from k-means++ starts."""

    def __init__(self, n_clusters: int, random_state: int) -> None:
        self.n_clusters = n_clusters
        self.random_state = random_state

    def fit_predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the clusters (N,) of features (N, D)."""
        generator = make_generator(self.random_state, "kmeans")
        found = kmeans(torch.from_numpy(x), self.n_clusters, n_iter=100, n_redo=20, plus_plus=True, generator=generator)
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
class Estimate(Stage):
    """The clusters of a class with ``fit_predict``: of the pixels, or of the features of the backbone.

    The backbone is untrained or pre-trained; data and network are those of ``config``.
    """

    takes: ClassVar[Mapping[str, bool]] = {"backbone": False, "spaces": False}
    writes: ClassVar[tuple[str, ...]] = (OUTCOME, CLUSTERS)
    # Keep a distance (float64) for every pair of images, so that many images would take all memory of the machine.
    of_pairs: ClassVar[tuple[str, ...]] = ("sklearn.cluster.AgglomerativeClustering",)
    of_images: ClassVar[tuple[str, ...]] = ("n_neighbors", "min_cluster_size")  # count images: there may be fewer
    names_of_k: ClassVar[tuple[str, ...]] = ("n_clusters", "n_components")  # what scikit-learn calls K

    path: str  # dotted path of the class
    options: Mapping[str, Any]  # its arguments, but for the number of clusters and the seed
    features: str  # one of FEATURES, the name of a pre-training, UNIT or RAW

    @classmethod
    def parse(cls, name: str, known: Sequence[str] | None = FEATURES) -> Estimate | None:
        """Return the row of this name on one of the ``known`` features, or ``None`` if it has not the form of one.

        Without ``known`` the features are vectors that come from elsewhere.

        Raises:
            InputError: the dotted path leads to no class with ``fit_predict``.
        """
        if known is None:
            head = name.removesuffix("-raw")
            features = UNIT if head == name else RAW
        else:
            head, _, features = name.rpartition("-")
        if features not in (known or (UNIT, RAW)) or not (
            head in ESTIMATORS or ("." in head and not head.endswith(".py"))
        ):
            return None
        stage = cls(name, *ESTIMATORS.get(head, (head, {})), features)
        stage.load()
        return stage

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
        given = {name: num_clusters for name in self.names_of_k if name in known}
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

    def configured(self, options: Mapping[str, Any], seed: int | None, amp: bool, strict: bool) -> Estimate:
        """Return the stage with options applied to its config."""
        config = prepare_config(self.config, cfg_options=dict(options), seed=seed, strict=strict)
        check_parts(config)
        return replace(self, config=config)

    def decides(self) -> Any:
        """Return what it uses of the config: whose it is does not matter."""
        shared = {**common(self.config), "clusters": num_clusters(self.config)}
        features = self.features if self.features in (UNIT, RAW) else self.features in FEATURES
        return [self.path, features, shared, self.config.randomness]

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Cluster, and leave the outcome."""
        config = self.config.copy()
        backbone = str(given["backbone"].file("backbone")) if "backbone" in given else self.pretrained
        if backbone is not None:
            config.model.pretrained = backbone
        if "spaces" in given:
            place_spaces(config, given["spaces"].file("spaces"))
        set_random_seed(config.randomness.seed)
        data = ClusterData(**config.data)
        try:
            model: ClusterModel = build(MODELS, config.model)
            if self.features == "pixels":
                model.backbone = model.neck = torch.nn.Flatten()
            else:
                model.neck = AvgPool(model.backbone.out_channels)
                model.init_weights()
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            table = extract(model, data.eval, LocalComm(), batch_size=data.extract_batch_size)
        finally:
            data.close()
        dataset = data.eval.dataset
        features = table.features.cpu()
        spaces = dataset.spaces or features.shape[1:]
        x = features if self.features in ("pixels", RAW) else unit_in_spaces(features, spaces)
        K = num_clusters(config)
        clusters = torch.from_numpy(self.fit_predict(x.numpy(), K, config.randomness.seed))
        # Those in no cluster, HDBSCAN's noise, are a cluster of their own for the metrics.
        found = clusters.unique(return_inverse=True)[1]
        scores = torch.nn.functional.one_hot(found, max(int(found.max()) + 1, K)).float()
        evaluation = Evaluation(features, scores, dataset.targets)
        outcome = Outcome.from_clusters(x, clusters)
        outcome.save(folder)
        write_assigned(
            dataset, clusters, torch.from_numpy(outcome.margin), torch.from_numpy(outcome.confidence), folder
        )
        noise = int((clusters < 0).sum())
        return {
            **ClusterMetrics()(evaluation),
            **KNNMetric()(evaluation),
            **({"noise": float(noise)} if noise else {}),
            "clusters": float(len(clusters[clusters >= 0].unique())),
            "epochs": 0.0,
            "images_seen": 0.0,
            "images": len(x),
        }


def common(config: Config) -> dict[str, Any]:
    """Return what all methods of a comparison must have in common."""
    return {key: at(config, key) for key in COMMON}


def num_clusters(config: Config) -> int:
    """Return K of the config's head.

    Raises:
        InputError: it has none.
    """
    K = config.model.head.get("num_clusters")
    if K is None:
        raise InputError(f"an estimator needs to know K: the head of {config.filename} has no num_clusters")
    return int(K)
