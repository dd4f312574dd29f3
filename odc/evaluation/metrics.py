"""Metrics of clusterings: ``pred`` are clusters (N,), ``target`` classes (N,), integers in a tensor or an array.

Targets of -1 are unknown: those samples are left out wherever targets matter. What compares the two refuses, by
:class:`InputError`, different lengths, and targets of which none is known.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from odc.clustering import l2_normalize, size_entropy
from odc.errors import InputError

Ids = Tensor | npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]


def clustering_accuracy(pred: Ids, target: Ids) -> tuple[float, dict[int, int]]:
    """Return the accuracy under the best one-to-one map from clusters to classes, and that map (Hungarian method).

    Clusters and classes may differ in number: the K - C clusters (or C - K classes) left over are always wrong.

    Returns:
        Correct share of the known samples, in [0, 1], and ``{cluster: class}`` of the pairs that share a sample.
    """
    p, t = _known(pred, target)
    clusters, rows = np.unique(p, return_inverse=True)
    classes, columns = np.unique(t, return_inverse=True)
    votes = np.zeros((len(clusters), len(classes)), dtype=np.int64)
    np.add.at(votes, (rows, columns), 1)
    pairs = [(r, c) for r, c in zip(*linear_sum_assignment(votes, maximize=True), strict=True) if votes[r, c]]
    correct = sum(int(votes[r, c]) for r, c in pairs)
    return correct / len(t), {int(clusters[r]): int(classes[c]) for r, c in pairs}


def many_to_one_accuracy(pred: Ids, target: Ids) -> float:
    """Return the accuracy, in [0, 1], where each cluster stands for the class that most of its known samples have.

    Several clusters may stand for one class, as over-clustering wants it. It is never below the accuracy of the best
    one-to-one map, it cannot fall when a cluster is split, and with a cluster for every sample it is 1: numbers of
    different K, or beside a one-to-one accuracy, do not compare.
    """
    p, t = _known(pred, target)
    _, votes = np.unique(p, return_counts=True)
    largest = [share for _, (_, share) in sorted(majorities(p, t).items())]
    return float(np.dot(votes, largest) / len(t))


def nmi(pred: Ids, target: Ids, average: Literal["arithmetic", "geometric"] = "arithmetic") -> float:
    """Return the normalised mutual information, in [0, 1]; papers differ in the mean of the two entropies."""
    p, t = _known(pred, target)
    return float(normalized_mutual_info_score(t, p, average_method=average))


def ari(pred: Ids, target: Ids) -> float:
    """Return the adjusted Rand index, at most 1; 0 is chance."""
    p, t = _known(pred, target)
    return float(adjusted_rand_score(t, p))


@torch.no_grad()
def knn_accuracy(features: Tensor, targets: Tensor, k: int = 10) -> float:
    """Return the leave-one-out accuracy of a vote among the ``k`` nearest other samples by cosine.

    Majority vote, all neighbours alike; of classes with equally many votes, the one that has the nearest neighbour
    wins. Samples with target -1 neither vote nor count. Features (N, D) floating need not be normalised; targets are
    (N,) int64; ``k`` is at most the number of known samples - 1.

    Raises:
        InputError: lengths differ, ``k`` is out of range, or features are not finite.
    """
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise InputError(
            f"expected features (N, D) and targets (N,); got {tuple(features.shape)}, {tuple(targets.shape)}"
        )
    known = (targets >= 0).to(features.device)
    unit, _ = l2_normalize(features[known].float())
    if not bool(unit.isfinite().all()):
        raise InputError(
            f"{int((~unit.isfinite().all(dim=1)).sum())} of {len(unit)} rows of features are not finite: lower the "
            "learning rate"
        )
    classes, column = torch.unique(targets.to(features.device)[known], return_inverse=True)
    N = len(unit)
    if not 1 <= k < N:
        raise InputError(f"k={k}, but with {N} samples of known class it must be between 1 and {N - 1}")
    correct = 0
    for start in range(0, N, 1024):
        similarity = unit[start : start + 1024] @ unit.T
        rows = torch.arange(len(similarity), device=unit.device)
        similarity[rows, rows + start] = -torch.inf
        winner = majority(column[similarity.topk(k, dim=1).indices], len(classes))
        correct += int((winner == column[start : start + 1024]).sum())
    return correct / N


def majority(voted: Tensor, n_classes: int) -> Tensor:
    """Return the class (Q,) that most of the votes (Q, k) int64 are for, nearest first; of equals that of the first."""
    k = voted.shape[1]
    votes = torch.zeros(len(voted), n_classes, dtype=torch.int64, device=voted.device)
    first = votes.clone()
    votes.scatter_add_(1, voted, torch.ones_like(voted))
    first.scatter_reduce_(1, voted, torch.arange(k, 0, -1, device=voted.device).expand_as(voted), "amax")
    return (votes * (k + 1) + first).argmax(1)  # first <= k: it decides between equal votes only


def majorities(pred: Ids, target: Ids) -> dict[int, tuple[int, float]]:
    """Return each cluster's largest class, the first of equals, and its share of the cluster's known samples."""
    p, t = _known(pred, target)
    sizes = dict(zip(*(column.tolist() for column in np.unique(p, return_counts=True)), strict=True))
    pairs, votes = np.unique(np.stack([p, t]), axis=1, return_counts=True)
    found: dict[int, tuple[int, float]] = {}
    for i in np.argsort(-votes, kind="stable"):
        cluster, target_class = pairs[:, i].tolist()
        found.setdefault(cluster, (target_class, int(votes[i]) / sizes[cluster]))
    return found


def evaluate_clustering(pred: Ids, target: Ids | None, num_clusters: int) -> dict[str, float]:
    """Return all metrics of a clustering.

    Keys: ``acc``, ``nmi`` (arithmetic), ``nmi_geometric``, ``ari`` over the samples of known class, missing if there
    are none; ``acc_many_to_one`` where K is not the number of their classes; ``entropy`` of the cluster sizes over ln K
    (1 is perfectly even, 0 everything in one cluster; K = 1: 1)
    and ``empty`` clusters over all samples.

    Raises:
        InputError: also for clusters that are not within 0 to K - 1.
    """
    p = _ids(pred)
    if len(p) == 0 or p.min() < 0 or p.max() >= num_clusters:
        span = f"run from {p.min()} to {p.max()}" if len(p) else "are none"
        raise InputError(f"clusters {span}, but there must be some within 0 to {num_clusters - 1}")
    sizes = np.bincount(p, minlength=num_clusters)
    metrics: dict[str, float] = {}
    if target is not None and (_ids(target) >= 0).any():
        metrics["acc"] = clustering_accuracy(pred, target)[0]
        metrics["nmi"] = nmi(pred, target)
        metrics["nmi_geometric"] = nmi(pred, target, "geometric")
        metrics["ari"] = ari(pred, target)
        _, t = _known(pred, target)
        if num_clusters != len(np.unique(t)):
            metrics["acc_many_to_one"] = many_to_one_accuracy(pred, target)
    metrics["entropy"] = size_entropy(sizes) / math.log(num_clusters) if num_clusters > 1 else 1.0
    metrics["empty"] = float((sizes == 0).sum())
    return metrics


def _ids(x: Ids) -> IntArray:
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"labels must be (N,) integers; got shape {array.shape}, {array.dtype}")
    return array.astype(np.int64, copy=False)


def _known(pred: Ids, target: Ids) -> tuple[IntArray, IntArray]:
    p, t = _ids(pred), _ids(target)
    if len(p) != len(t) or len(p) == 0:
        raise InputError(f"labels of {len(p)} and {len(t)} samples: they must be equally many, and at least one")
    known = t >= 0
    if not known.any():
        raise InputError(f"none of the {len(t)} targets is known (all are -1): there is nothing to compare with")
    return p[known], t[known]
