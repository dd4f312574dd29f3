"""Which cluster labels to trust: those that a sample's neighbours share, and those that a head is sure of.

Niu, Shan, Wang. *SPICE: Semantic Pseudo-Labeling for Image Clustering.* IEEE Transactions on Image Processing 2022
(arXiv:2103.09382), "reliable pseudo-labeling".
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.clustering.knn import knn_search
from odc.errors import InputError
from odc.structures import sort_into_groups

_ROWS = 4096  # whose neighbours' labels are looked up at a time
_SENSIBLE = 0.2  # share of the samples that a proposed threshold keeps


def local_consistency(
    features: Tensor | npt.NDArray[Any], labels: Tensor, k: int = 100, include_self: bool = False
) -> Tensor:
    """Return β, the share of each sample's ``k`` nearest neighbours (by cosine) that have its label.

    β is (N,) float64 in [0, 1], on the labels' device.

    Args:
        features: (N, D); need not be normalised.
        labels: (N,) int64.
        k: neighbours, at most N - 1 (N with ``include_self``).
        include_self: count the sample as the first of its k neighbours, as SPICE's public code does.

    Raises:
        InputError: ``k`` is out of range, or the numbers of samples differ.
    """
    N = len(labels)
    if labels.shape != (N,) or len(features) != N:
        raise InputError(
            f"local consistency needs one label for each row, not {tuple(labels.shape)} for {len(features)}"
        )
    if not 1 <= k <= N - 1 + include_self:
        raise InputError(
            f"local consistency of {N} samples can use 1 to {N - 1 + include_self} neighbours, not {k}: lower k"
        )
    same = torch.full((N,), int(include_self), dtype=torch.float64, device=labels.device)
    if k > include_self:
        neighbours, _ = knn_search(features, k=k - include_self)
        for near, own, found in zip(*(x.split(_ROWS) for x in (neighbours, labels, same)), strict=True):
            found += (labels[near.to(labels.device)] == own[:, None]).sum(1)
    return same / k


def log_odds(logits: Tensor) -> Tensor:
    """Return log p_c / (1 - p_c) for p = softmax of ``logits`` (N, K) floating: (N, K), infinite for K = 1.

    It is z_c - log Σ_{j≠c} exp z_j, and rises with p_c. But probabilities of trained heads round to 1, even in double
    precision, and among equals the order of the data set would decide who is the surest.
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise InputError(f"logits must be (N, K), K at least 1; got shape {tuple(logits.shape)}")
    best = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    # No probability but the largest can be above 1/2, so this is exact for all others.
    odds = log_p - torch.log1p(-log_p.clamp(max=-0.5).exp())
    return odds.scatter(1, best, logits.gather(1, best) - others)


def reliable_samples(
    beta: Tensor,
    labels: Tensor,
    num_clusters: int,
    threshold: float = 0.99,
    scores: Tensor | None = None,
    score_threshold: float | None = None,
    balance: Literal["min", "quota"] | None = None,
    quota: int | None = None,
) -> Tensor:
    """Choose the samples whose label to trust: β > ``threshold``, and where asked for, a score above its threshold.

    A cluster without any is told by a warning.

    Args:
        beta: (N,) of :func:`local_consistency`.
        labels: (N,) int64 in 0..K - 1.
        num_clusters: K.
        threshold: s_c; in the paper .99 (CIFAR) and .90 (STL).
        scores: (N,) confidence of the label.
        score_threshold: keep only scores above this; needs ``scores``.
        balance: ``None`` keeps all; ``"min"`` as many of each cluster as the one with the fewest has (those with none
            apart); ``"quota"`` at most ``quota`` of each. The highest β, then scores, then the first samples are kept.
        quota: for ``balance="quota"``.

    Returns:
        (N,) bool.

    Raises:
        InputError: shapes or labels do not fit, or numbers are not finite; no sample is reliable: the message has a
            histogram of β and proposes a threshold; or options that do not go together.
    """
    if balance not in (None, "min", "quota"):
        raise InputError(f"balance must be None, 'min' or 'quota', not {balance!r}")
    if (balance == "quota") != (quota is not None) or (quota is not None and quota < 1):
        raise InputError(f"a quota of at least 1 goes with balance='quota', and only with it: got {balance!r}, {quota}")
    if score_threshold is not None and scores is None:
        raise InputError(f"score_threshold={score_threshold} needs scores")
    N = len(beta)
    if N < 1 or beta.shape != (N,) or labels.shape != (N,) or (scores is not None and scores.shape != (N,)):
        shapes = [tuple(x.shape) for x in (beta, labels, scores) if x is not None]
        raise InputError(f"β, labels and scores must be (N,), N at least 1; got {', '.join(map(str, shapes))}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_clusters:
        raise InputError(f"labels run from {low} to {high}, but the clusters are 0 to {num_clusters - 1}")
    for name, x in (("β", beta), ("scores", scores)):
        if x is not None and not bool(x.isfinite().all()):
            raise InputError(f"{int((~x.isfinite()).sum())} of {N} {name} are not finite: evaluate the features anew")
    mask = beta > threshold
    if not bool(mask.any()):
        raise InputError(
            f"no sample is reliable: none of {N:,} has a local consistency above {threshold}; {beta_histogram(beta)}; "
            f"{_proposal(beta)}"
        )
    if score_threshold is not None and scores is not None:
        sure = mask & (scores > score_threshold)
        if not bool(sure.any()):
            raise InputError(
                f"no sample is reliable: {int(mask.sum()):,} of {N:,} have a local consistency above {threshold}, but "
                f"their highest score is {float(scores[mask].max()):.4f}, not above {score_threshold}: lower "
                "score_threshold"
            )
        mask = sure
    counts = torch.bincount(labels[mask], minlength=num_clusters)
    if bool((counts == 0).any()):
        none = (counts == 0).nonzero().squeeze(1).tolist()
        some = ", ".join(map(str, none[:10])) + (", ..." if len(none) > 10 else "")
        print_log(f"{len(none)} of {num_clusters} clusters have no reliable sample: {some}", "current", logging.WARNING)
    if balance is not None:
        most = int(counts[counts > 0].min()) if quota is None else quota
        mask &= _rank_in_cluster(mask, labels, beta, scores) < most
    return mask


def _rank_in_cluster(mask: Tensor, labels: Tensor, beta: Tensor, scores: Tensor | None) -> Tensor:
    """Return the place (N,) of each sample of the mask among those of its cluster: 0 is the best."""
    order = mask.nonzero().squeeze(1)
    for key in (scores, beta):  # the last one sorted by counts most
        if key is not None:
            order = order[key[order].argsort(descending=True, stable=True)]
    by_cluster, _, place, _ = sort_into_groups(labels[order], int(labels.max()) + 1)
    rank = torch.full_like(labels, -1)
    rank[order[by_cluster]] = place
    return rank


def beta_histogram(beta: Tensor) -> str:
    """Return a line with the histogram of β (N,)."""
    counts, _ = np.histogram(beta.cpu().numpy(), bins=10, range=(0.0, 1.0))
    return "β from 0 to 1 in ten bins: " + " ".join(map(str, counts.tolist()))


def _proposal(beta: Tensor) -> str:
    """Propose the highest threshold, in hundredths, above which there is a sensible share of the samples."""
    for hundredths in range(99, -1, -1):
        kept = float((beta > hundredths / 100).double().mean())
        if kept >= _SENSIBLE:
            return f"threshold={hundredths / 100} would keep {kept:.0%}"
    return f"only {float((beta > 0).double().mean()):.0%} have a neighbour of their own cluster: cluster anew"
