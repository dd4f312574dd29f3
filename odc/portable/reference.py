"""Some images of the clustering, by which new ones are judged: what is near them, and what they repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from odc.clustering import l2_normalize
from odc.clustering.knn import search_by_products
from odc.results.columns import (
    NEIGHBOURS,
    Bools,
    Floats,
    Ints,
    consistency,
    is_outlier,
    loneliness,
    lonely_from,
    unit_vectors,
)
from odc.results.duplicates import COSINE, SAME, Prints, nearest_prints, same_picture

MOST = 10_000  # images that are kept


@dataclass(frozen=True, eq=False)
class Reference:
    """R images of the clustering."""

    rows: Tensor  # (R, D) float16, their features, of unit length
    cluster: Ints  # (R,) int64, -1: in none
    limits: Floats  # (K + 1,) float32, of odc.results.columns.lonely_from, among these images
    paths: tuple[str, ...]  # R
    prints: Prints | None  # of the pictures; None: of vectors whose pictures were not seen

    @classmethod
    def of(
        cls,
        features: Floats,
        cluster: Ints,
        num_clusters: int,
        paths: Sequence[str],
        spaces: Sequence[int],
        prints: Prints | None,
    ) -> Reference:
        """Return all images of a clustering, or of many evenly spaced ones."""
        N = len(paths)
        kept = np.unique(np.linspace(0, N - 1, min(N, MOST)).round().astype(np.int64))
        rows = torch.from_numpy(unit_vectors(features[kept], spaces)).half()
        points = l2_normalize(rows.float())[0]
        _, similarities, valid = _nearest(points, points, np.arange(len(kept)))
        limits = lonely_from(loneliness(similarities, valid), cluster[kept], num_clusters)
        some = None if prints is None else prints[kept]
        return cls(rows, cluster[kept], limits, tuple(paths[i] for i in kept.tolist()), some)

    @cached_property
    def _points(self) -> Tensor:
        return l2_normalize(self.rows.float())[0]  # half precision has changed the lengths

    @cached_property
    def _place(self) -> dict[bytes, int]:
        """The first row with the pixels of a hash."""
        exact = [] if self.prints is None else list(self.prints.exact)
        return {exact[i].tobytes(): i for i in reversed(range(len(exact)))}

    def judge(self, unit: Floats, cluster: Ints, prints: Prints | None) -> tuple[Floats, Bools, Ints]:
        """Return consistency (B,), outlier (B,), and the first of these images that each new one repeats, or -1 (B,).

        A new image that is one of these is not its own neighbour. ``unit`` (B, D) are features of unit length, of
        pictures with ``prints``, or of vectors, which are recognised where they are equal.
        """
        points, queries, other = self._points, torch.from_numpy(unit), self.prints
        if prints is None or other is None:
            found, best = search_by_products(points, queries, min(NEIGHBOURS, len(points)), "cosine")
            first = best.where(found >= SAME, len(points)).min(1).values.numpy()
            itself = np.where(first < len(points), first, -1)
        else:
            itself = np.array([self._place.get(key.tobytes(), -1) for key in prints.exact], np.int64)
            itself[prints.side == 0] = -1
        neighbours, similarities, valid = _nearest(points, queries, itself)
        repeated = itself
        if prints is not None and other is not None:
            row, column = np.nonzero(valid & (similarities >= COSINE))
            a, b = neighbours[row, column], similarities[row, column]
            same = same_picture(prints, other, row, a, b)
            near, far = nearest_prints(prints, other)
            alike = same_picture(prints, other, near, far)
            first = np.where(itself >= 0, itself, len(self.paths))
            np.minimum.at(first, row[same], a[same])
            np.minimum.at(first, near[alike], far[alike])
            repeated = np.where(first < len(self.paths), first, -1)
        outlier = is_outlier(loneliness(similarities, valid), cluster, self.limits)
        return consistency(cluster, neighbours, self.cluster, valid), outlier, repeated.astype(np.int64)


def _nearest(points: Tensor, queries: Tensor, itself: Ints) -> tuple[Ints, Floats, Bools]:
    """Return the 21 nearest points (B, k), their cosines, and which of them are the 20 nearest but for ``itself``."""
    found, ids = search_by_products(points, queries, min(NEIGHBOURS + 1, len(points)), "cosine")
    neighbours = ids.numpy()
    others = neighbours != itself[:, None]
    return neighbours, found.numpy(), others & (others.cumsum(1) <= NEIGHBOURS)
