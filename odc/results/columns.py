"""What is told of each image of a clustering besides its cluster: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from odc.clustering.preprocess import unit_in_spaces

NEIGHBOURS = 20  # of consistency; duplicates are looked for among them
LONELY = 10  # the neighbour whose distance makes an outlier
SPREADS = 4.0  # robust standard deviations above the median
MOST_OUTLIERS = 0.03  # share of the images
_ENOUGH = 20  # images of a cluster with a median of its own
_ROWS = 16_384

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def unit_vectors(features: npt.NDArray[Any], spaces: Sequence[int]) -> Floats:
    """Return features (N, D) of length 1 in each space, over √(number of spaces): the whole has length 1, too.

    So the cosine of two rows is the mean of those in the spaces; a space that is zero in a row counts as 0.
    """
    spaces = list(spaces) or [features.shape[1]]
    unit = np.empty(features.shape, np.float32)
    for start in range(0, len(features), _ROWS):
        rows = torch.from_numpy(np.asarray(features[start : start + _ROWS], np.float32))
        unit[start : start + _ROWS] = unit_in_spaces(rows, spaces).numpy() / np.float32(len(spaces) ** 0.5)
    return unit


def prototypes(unit: Floats, cluster: Ints, num_clusters: int) -> Floats:
    """Return the mean direction (K, D) of each cluster, of length 1; zeros for a cluster without images."""
    sums = np.zeros((num_clusters, unit.shape[1]), np.float64)
    for start in range(0, len(unit), _ROWS):
        part = cluster[start : start + _ROWS]
        np.add.at(sums, part[part >= 0], unit[start : start + _ROWS][part >= 0])
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(length > 1e-12, length, 1.0)).astype(np.float32)


def distances(unit: Floats, cluster: Ints, centers: Floats) -> Floats:
    """Return 1 - cosine of each image to the prototype of its cluster, in [0, 2]; 1 for those in no cluster."""
    found = np.ones(len(unit), np.float32)
    for start in range(0, len(unit), _ROWS):
        part = cluster[start : start + _ROWS]
        cosine = np.einsum("nd,nd->n", unit[start : start + _ROWS], centers[part.clip(0)])
        found[start : start + _ROWS] = np.where(part >= 0, 1 - cosine, 1)
    return found.clip(0, 2)


def consistency(cluster: Ints, neighbours: Ints, of: Ints | None = None, valid: Bools | None = None) -> Floats:
    """Return the share of an image's neighbours (N, k), rows of ``of``, that are in its cluster (N,), in [0, 1].

    0 for images in no cluster, 1 where there are no neighbours. Without ``of`` neighbours are rows of ``cluster``;
    with ``valid`` (N, k) only some of them count.
    """
    valid = np.ones(neighbours.shape, np.bool_) if valid is None else valid
    same = ((cluster if of is None else of)[neighbours] == cluster[:, None]) & valid
    count = valid.sum(1)
    share = np.where(count > 0, same.sum(1) / np.maximum(count, 1), 1)
    return np.where(cluster >= 0, share, 0).astype(np.float32)


def loneliness(similarities: Floats, valid: Bools | None = None) -> Floats:
    """Return the distance, 1 - cosine, to the tenth of the neighbours (N, k), or the last where there are fewer.

    0 where there are none; with ``valid`` (N, k) only some of them count.
    """
    N, k = similarities.shape
    if not k:
        return np.zeros(N, np.float32)
    rank = np.cumsum(np.ones((N, k), np.bool_) if valid is None else valid, axis=1)
    tenth = (rank >= np.minimum(LONELY, rank[:, -1:])).argmax(1)
    return np.where(rank[:, -1] > 0, 1 - similarities[np.arange(N), tenth], 0).astype(np.float32)


def lonely_from(lonely: Floats, cluster: Ints, num_clusters: int) -> Floats:
    """Return the loneliness above which an image of each cluster is an outlier, and last one of none: (K + 1,) float32.

    An outlier is an image far from all others, whichever cluster it was put into: its tenth neighbour is farther than
    the median of its cluster by more than four robust standard deviations (1.4826 times the median absolute deviation,
    that of normal numbers). Ten, so that a few copies of an odd image do not hide each other; by cluster, since some
    are dense and some are wide; medians, since outliers must not move what they are judged by. Clusters of fewer than
    20 images, and images in none, are judged by all images. Two limits keep the list worth reading: nothing is an
    outlier that is not lonelier than half of all images (a cluster of copies has no deviation at all), and where more
    than 3 % would be, the number of deviations is raised until it is 3 %.
    """
    if not len(lonely):
        return np.full(num_clusters + 1, np.inf, np.float32)
    whole = _center_and_spread(lonely)
    found = [whole] * (num_clusters + 1)
    for c in range(num_clusters):
        members = lonely[cluster == c]
        if len(members) >= _ENOUGH:
            found[c] = _center_and_spread(members)
    center, spread = np.array(found).T
    mine = np.where(cluster >= 0, cluster, num_clusters)
    away = (lonely - center[mine]) / spread[mine]
    away[lonely <= whole[0]] = 0
    most, order = int(len(lonely) * MOST_OUTLIERS), np.sort(away)[::-1]
    limit = SPREADS
    if order[most] > SPREADS:  # halfway between the last one that is an outlier and the first that is none
        limit = float(order[most - 1] + order[most]) / 2 if most else np.inf
    limits: Floats = np.maximum(center + limit * spread, whole[0]).astype(np.float32)
    return limits


def _center_and_spread(x: Floats) -> tuple[float, float]:
    center = float(np.median(x))
    return center, max(1.4826 * float(np.median(np.abs(x - center))), 1e-6)


def is_outlier(lonely: Floats, cluster: Ints, limits: Floats) -> Bools:
    """Return which images are lonelier than the limit of their cluster, of :func:`lonely_from`."""
    return lonely > limits[np.where(cluster >= 0, cluster, len(limits) - 1)]
