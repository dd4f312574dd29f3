"""What a page tells of a clustering besides its table: silhouettes, clusters that are alike, places on a map."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import silhouette_samples

from odc.clustering import knn_search
from odc.comparison import maps
from odc.results.columns import Floats, Ints
from odc.structures import make_generator

MOST_COMPARED = 4000  # images that silhouettes are computed of: all pairs are looked at
_BESIDE = 3  # images with a place that one without is put between
_SIDE = 1000  # units of a map's side


@dataclass(frozen=True)
class Silhouette:
    """Mean silhouettes in [-1, 1], by cosine (Rousseeuw, 1987)."""

    whole: float | None = None  # None: fewer than two clusters
    clusters: dict[int, float] = field(default_factory=dict)  # of those with an image in the sample


def silhouette(unit: Floats, cluster: Ints) -> Silhouette:
    """Return the silhouette of a clustering (N,) of vectors (N, D) of length 1, of at most 4,000 images by lot.

    Of an image that is (b - a) / max(a, b): a is its mean distance, 1 - cosine, to the others of its cluster, b that to
    the images of the nearest other cluster. An image alone in its cluster has 0.
    """
    rows = np.flatnonzero(cluster >= 0)
    if len(rows) > MOST_COMPARED:
        rows = rows[torch.randperm(len(rows), generator=make_generator(0, "page", "silhouette")).numpy()]
        rows = np.sort(rows[:MOST_COMPARED])
    mine = cluster[rows]
    ids = np.unique(mine)
    if not 2 <= len(ids) < len(rows):
        return Silhouette()
    values = silhouette_samples(unit[rows], mine, metric="cosine")
    by_cluster = {int(c): round(float(values[mine == c].mean()), 3) for c in ids}
    return Silhouette(round(float(values.mean()), 3), by_cluster)


def similar(centers: Floats, most: int) -> list[list[int]]:
    """Return for each of K prototypes (K, D) of length 1 the most similar others, by number, nearest first."""
    k = min(most, len(centers) - 1)
    if k < 1:
        return [[] for _ in centers]
    found: list[list[int]] = knn_search(centers, k=k)[0].tolist()
    return found


def places(unit: Floats, folder: Path) -> tuple[list[list[int]], str]:
    """Return places [x, y] of images (n, D) on a map, whole numbers in 0..1000, or none and why.

    Places are by t-SNE, of at most 2,000 images because it takes longest; each of the others is put between the three
    that are nearest to it, as 1, 1/2 and 1/3 weigh. The former are kept in ``folder``.
    """
    found, why = maps.embed(unit, folder)
    if found is None:
        return [], why
    index, spots = found
    xy = np.zeros((len(unit), 2), np.float64)
    xy[index] = spots
    others = np.setdiff1d(np.arange(len(unit)), index)
    if len(others):
        nearest = knn_search(unit[index], unit[others], k=min(_BESIDE, len(index)))[0].numpy()
        weights = 1 / np.arange(1, nearest.shape[1] + 1)
        xy[others] = np.einsum("nkd,k->nd", spots[nearest].astype(np.float64), weights / weights.sum())
    low, high = xy.min(0), xy.max(0)
    middle, span = (low + high) / 2, max(float((high - low).max()), 1e-9)
    placed: list[list[int]] = np.rint((xy - middle) / span * _SIDE + _SIDE / 2).astype(np.int64).tolist()
    return placed, ""
