"""Metrics of an evaluation, by name from a config; ground truth enters here and nowhere else.

A metric is a class that is called with an :class:`Evaluation` and returns numbers by name. What it measures it says in
``names``, and in ``unlabelled`` what of that without ground truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.clustering import kmeans, l2_normalize, size_entropy
from odc.data.datasets import Targets
from odc.errors import InputError
from odc.evaluation.metrics import Ids, evaluate_clustering, knn_accuracy, nmi
from odc.evaluation.probes import HELD_OUT, generalisation_score, linear_probe, stratified_split
from odc.registry import METRICS
from odc.structures import Labels, make_generator


@dataclass(frozen=True)
class Evaluation:
    """What a metric may look at."""

    features: Tensor  # (N, D) float32, not normalised
    scores: Tensor  # (N, K) float32, the head's scores of the clusters
    targets: npt.NDArray[np.int64] | None  # (N,) ground truth (-1: unknown), or None where the data set has none
    # (N,) bool: another image stood in for this one, so features and scores are not its own; its target is unknown.
    # None: for none of them.
    lost: Tensor | None = None
    spaces: tuple[int, ...] = ()  # widths of the spaces that the features consist of; empty: one

    @property
    def clusters(self) -> Tensor:
        """(N,) int64 predicted clusters."""
        return self.scores.argmax(1)

    @property
    def without_images(self) -> list[int]:
        """The clusters that no image is in; none where the head has no clusters."""
        K = self.scores.shape[1]
        return (torch.bincount(self.clusters, minlength=K) == 0).nonzero().squeeze(1).tolist() if K else []


def tells_apart(targets: Ids) -> bool:
    """Return whether two classes are known, so that there is anything to get right or wrong; -1 is unknown."""
    known = torch.as_tensor(targets)
    return len(known[known >= 0].unique()) > 1


def _truth(evaluation: Evaluation, metric: object) -> Targets | None:
    """Return the targets (N,), or ``None`` where they cannot tell anything; a line then says so, if there are any."""
    targets = evaluation.targets
    if targets is None or tells_apart(targets):
        return targets
    known = targets[targets >= 0]
    print_log(
        f"{type(metric).__name__} measures nothing against ground truth: of {len(targets):,} images {len(known):,} "
        f"have a known class, {len(np.unique(known))} different ones; it takes two",
        "current",
    )
    return None


def _known(evaluation: Evaluation, metric: object, most: int) -> tuple[Tensor, Tensor] | None:
    """Return features and targets of at most so many evenly spaced samples of known class; ``None`` as above."""
    truth = _truth(evaluation, metric)
    if truth is None:
        return None
    known = torch.from_numpy(np.flatnonzero(truth >= 0))
    if len(known) > most:
        known = known[torch.linspace(0, len(known) - 1, most).round().long()]
    return evaluation.features[known], torch.from_numpy(truth)[known]


@METRICS.register_module()
class ClusterMetrics:
    """``acc`` (Hungarian, rectangular), ``nmi``, ``nmi_geometric``, ``ari``; ``entropy`` and ``empty`` of the clusters.

    Where K is not the number of classes besides ``acc_many_to_one``, which as it may be missing cannot be monitored.
    Without ground truth of two classes only the last two, for a head without clusters none.
    """

    names: ClassVar = ("acc", "nmi", "nmi_geometric", "ari", "entropy", "empty")
    unlabelled: ClassVar = ("entropy", "empty")

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the metrics by name."""
        if not evaluation.scores.shape[1]:
            return {}
        return evaluate_clustering(evaluation.clusters, _truth(evaluation, self), evaluation.scores.shape[1])


@METRICS.register_module()
class KMeansMetric:
    """``kmeans_acc``, ``kmeans_nmi``, ``kmeans_ari`` of k-means++ on the L2-normalised features.

    Needs ground truth of two classes.

    Args:
        num_clusters: K; by default the number of true classes; at most the number of images.
        n_redo: runs from different starts, of which the best is kept. On MoCo's features of digits one run in three
            found the best optimum, so one of 10 random starts still failed in 3 % of 60 trials.
        seed: of the starts.
    """

    names: ClassVar = ("kmeans_acc", "kmeans_nmi", "kmeans_ari")
    unlabelled: ClassVar = ()

    def __init__(self, num_clusters: int | None = None, n_redo: int = 20, seed: int = 0) -> None:
        self.num_clusters = num_clusters
        self.n_redo = n_redo
        self.seed = seed

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the metrics by name, or nothing without ground truth."""
        targets = _truth(evaluation, self)
        if targets is None:
            return {}
        K = min(self.num_clusters or len(np.unique(targets[targets >= 0])), len(targets))
        generator = make_generator(self.seed, "KMeansMetric")
        unit, _ = l2_normalize(evaluation.features)
        result = kmeans(unit, K, n_iter=100, n_redo=self.n_redo, plus_plus=True, generator=generator)
        values = evaluate_clustering(result.labels, targets, K)
        return {f"kmeans_{name}": values[name] for name in ("acc", "nmi", "ari")}


@METRICS.register_module()
class KNNMetric:
    """``knn``: leave-one-out accuracy of a vote among the nearest neighbours by cosine.

    Needs ground truth of two classes.

    Args:
        k: neighbours; less where there are fewer samples.
        max_samples: evaluate on evenly spaced samples where there are more, since the cost grows with their square.
    """

    names: ClassVar = ("knn",)
    unlabelled: ClassVar = ()

    def __init__(self, k: int = 10, max_samples: int = 50_000) -> None:
        if k < 1 or max_samples < 2:
            raise InputError(f"KNNMetric needs k >= 1 and max_samples >= 2, not {k} and {max_samples}")
        self.k = k
        self.max_samples = max_samples

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Return ``{"knn": accuracy}``, or nothing without ground truth."""
        known = _known(evaluation, self, self.max_samples)
        return {} if known is None else {"knn": knn_accuracy(*known, min(self.k, len(known[1]) - 1))}


@METRICS.register_module()
class GeneralisationScore:
    """``generalisation``: how well a linear classifier predicts the clusters of images that it has not seen.

    It needs no ground truth, so it may choose among settings, as TURTLE does: see
    :func:`odc.evaluation.probes.generalisation_score`. Compare it only among runs that found equally many clusters
    (``empty`` of :class:`ClusterMetrics`).

    Args:
        folds: of the cross-validation.
        max_samples: use evenly spaced samples where there are more.
        seed: shares the samples over the folds.
    """

    names: ClassVar = ("generalisation",)
    unlabelled: ClassVar = ("generalisation",)

    def __init__(self, folds: int = 10, max_samples: int = 5_000, seed: int = 0) -> None:
        if folds < 2 or max_samples < folds:
            raise InputError(f"GeneralisationScore needs 2 <= folds <= max_samples, not {folds} and {max_samples}")
        self.folds = folds
        self.max_samples = max_samples
        self.seed = seed

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Return ``{"generalisation": score}``, or nothing for less than two clusters."""
        rows = torch.arange(len(evaluation.scores))
        if evaluation.lost is not None:
            rows = rows[~evaluation.lost]
        if len(rows) > self.max_samples:
            rows = rows[torch.linspace(0, len(rows) - 1, self.max_samples).round().long()]
        if not evaluation.scores.shape[1] or len(rows) < self.folds or len(evaluation.clusters[rows].unique()) < 2:
            return {}
        if empty := len(evaluation.without_images):
            found = evaluation.scores.shape[1] - empty
            print_log(
                f"{found} of {found + empty} clusters have images: their generalisation score must not be compared "
                "with that of a run that found more or fewer",
                "current",
            )
        score = generalisation_score(
            evaluation.features[rows],
            evaluation.clusters[rows],
            generator=make_generator(self.seed, "GeneralisationScore"),
            spaces=evaluation.spaces,
            folds=self.folds,
        )
        return {"generalisation": score}


@METRICS.register_module()
class LinearProbe:
    """``linear``: accuracy of a linear probe, fitted to four fifths of the samples and tested on the others.

    Needs ground truth, two known classes and two samples of one. See :mod:`odc.evaluation.probes`; the split is
    stratified.

    Args:
        max_samples: use evenly spaced samples where there are more.
        seed: of the split, and of the held-out part that chooses the strength of the penalty.
    """

    names: ClassVar = ("linear",)
    unlabelled: ClassVar = ()

    def __init__(self, max_samples: int = 10_000, seed: int = 0) -> None:
        if max_samples < 2:
            raise InputError(f"LinearProbe needs max_samples >= 2, not {max_samples}")
        self.max_samples = max_samples
        self.seed = seed

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """Return ``{"linear": accuracy}``, or nothing without ground truth."""
        known = _known(evaluation, self, self.max_samples)
        if known is None:
            return {}
        x, y = known
        generator = make_generator(self.seed, "LinearProbe")
        train, test = stratified_split(y, HELD_OUT, generator)
        if len(y.unique()) < 2 or not len(test):
            return {}
        return {"linear": linear_probe((x[train], y[train]), (x[test], y[test]), generator=generator).accuracy}


def label_statistics(
    index_before: Tensor, target_before: Tensor, labels: Labels, num_clusters: int
) -> dict[str, float]:
    """Return how the pseudo-labels of the first column moved, and how their K clusters are filled.

    Keys: ``churn``, share of rows whose label changed, which says something only where cluster ids persist (online
    clustering), and ``nmi_prev``, NMI with the labels before (both only where the rows are the same samples and were
    labelled before); ``entropy`` of the cluster sizes, 1 is even; ``empty`` clusters. Nothing where there are fewer
    than two clusters. ``index_before`` (M', P) int64 are the sample ids of the rows before, ``target_before`` (M', T)
    int64 their labels.
    """
    values: dict[str, float] = {}
    if num_clusters < 2:  # one class, or no labels at all: nothing could move
        return values
    now = labels.target[:, 0]
    if torch.equal(index_before, labels.index):
        before = target_before[:, 0]
        both = (before >= 0) & (now >= 0)
        if bool(both.any()):
            values["churn"] = int((before[both] != now[both]).sum()) / int(both.sum())
            values["nmi_prev"] = nmi(before[both], now[both])
    values["entropy"] = size_entropy(labels.counts) / math.log(num_clusters)
    values["empty"] = float((labels.counts == 0).sum())
    return values
