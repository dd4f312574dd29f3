"""Which images a page shows, and in which order: all, or of many a sample from every cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from odc.results.clustering import Clustering
from odc.results.columns import Ints
from odc.structures import make_generator

KINDS = ("central", "borderline", "random")
MOST_IMAGES = 6000  # shown on a page: its file has some 2 kB for each
MOST_CLUSTERS = 1000  # shown, the largest
IN_STRIP = 6  # images of each kind


@dataclass(frozen=True)
class Choice:
    """What is shown of a clustering."""

    clusters: list[int]  # largest first
    rows: Ints  # (n,) rows of the clustering, each once; those in strips come first
    strips: dict[int, tuple[list[int], ...]]  # by cluster, of each of KINDS the places in ``rows``
    in_strips: int  # how many of the rows are in strips


def choose(found: Clustering, most: int = MOST_IMAGES) -> Choice:
    """Return what to show of a clustering, at most so many images but for the strips, with three images a cluster.

    A strip has a cluster's most central images, those nearest to its prototype; its borderline ones, with the least
    confidence; and some of the others drawn at random. Repetitions come last among the central ones, since they show
    nothing new. Behind the strips stand the other images by cluster, the surest first: where they are too many,
    outliers and near-duplicates are preferred, up to half of the places, and the others are drawn at random.
    """
    sizes = found.sizes
    clusters = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]][:MOST_CLUSTERS]
    each = min(IN_STRIP, max(1, most // (len(KINDS) * max(1, len(clusters)))))
    rows: list[int] = []
    strips: dict[int, tuple[list[int], ...]] = {}
    for c in clusters:
        places: list[list[int]] = []
        for kind in _strip(found, np.flatnonzero(found.cluster == c), each, c):
            places.append(list(range(len(rows), len(rows) + len(kind))))
            rows += kind
        strips[c] = tuple(places)
    in_strips = len(rows)
    left = np.setdiff1d(np.arange(len(found)), rows)
    if len(left) > (room := max(0, most - in_strips)):
        order = torch.randperm(len(left), generator=make_generator(0, "page", "rest")).numpy()
        left = left[order]
        special = found.outlier[left] | (found.duplicate_of[left] >= 0)
        first = left[special][: room // 2]
        left = np.concatenate([first, left[~np.isin(left, first)]])[:room]
    place = {c: i for i, c in enumerate(clusters)}
    key = np.array([place.get(int(c), len(clusters)) for c in found.cluster[left]], np.int64)
    left = left[np.lexsort((left, -found.confidence[left], key))]
    return Choice(clusters, np.concatenate([np.array(rows, np.int64), left]), strips, in_strips)


def _strip(found: Clustering, members: Ints, each: int, c: int) -> list[list[int]]:
    """Return the rows of a cluster's strip, of each kind at most so many."""
    again = found.duplicate_of >= 0
    generator = make_generator(0, "page", "strip", c)
    chosen = []
    for kind in KINDS:
        if kind == "central":
            order = np.lexsort((members, found.distance[members], again[members]))
        elif kind == "borderline":
            order = np.lexsort((members, found.confidence[members]))
        else:
            order = torch.randperm(len(members), generator=generator).numpy()
        chosen.append(members[order[:each]].tolist())
        members = np.setdiff1d(members, chosen[-1])
    return chosen
