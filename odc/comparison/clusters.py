"""The clusters of one method, as the report shows them: sizes, classes, and pictures of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from odc.comparison import charts
from odc.comparison.pictures import Sprite, Thumbnails, data_uri
from odc.comparison.results import Ints, Outcome
from odc.data.datasets import ImageDataset
from odc.errors import printable
from odc.evaluation.metrics import clustering_accuracy, majorities
from odc.structures import UNLABELLED, make_generator

MOST_CLUSTERS = 30  # shown in pictures, with bars of their own and with numbers on the map
MOST_NUMBERS = 20  # classes and clusters up to which a confusion matrix has numbers
MOST_CELLS = 200  # classes and clusters up to which there is a confusion matrix
IMAGES = 6  # of each kind in a strip


@dataclass(frozen=True)
class Confusion:
    """Images by class and cluster: a row a class, a column a cluster, the matched ones on the diagonal."""

    clusters: list[str]  # names of the columns
    counts: list[list[int]]  # images
    uri: str  # the same as a picture, where there are too many for numbers; else empty


@dataclass(frozen=True)
class Clusters:
    """The clusters of one clustering; all but ``none`` is empty where no image is in one."""

    none: int  # images in no cluster
    sizes: dict[int, int] = field(default_factory=dict)  # images by cluster, largest first
    # Without ground truth the next two are empty.
    match: dict[int, int] = field(default_factory=dict)  # class by cluster, under the best one-to-one match
    majority: dict[int, tuple[str, float]] = field(default_factory=dict)  # by cluster the largest class and its share
    profile: str = ""  # SVG path of all sizes, if they are too many for bars
    confusion: Confusion | None = None  # None without ground truth, or with too many classes or clusters
    # By cluster, of the largest, (kind, sprite, names) of its images.
    strips: dict[int, list[tuple[str, Sprite, list[str]]]] = field(default_factory=dict)


def clusters_of(method: str, outcome: Outcome, dataset: ImageDataset, thumbnails: Thumbnails) -> Clusters:
    """Return what the report shows of a clustering."""
    cluster, targets, classes = outcome.cluster, dataset.targets, dataset.classes
    ids, counts = np.unique(cluster[cluster >= 0], return_counts=True)
    sizes = {int(ids[i]): int(counts[i]) for i in np.argsort(-counts, kind="stable")}
    none = int((cluster < 0).sum())
    if not sizes:
        return Clusters(none)
    match: dict[int, int] = {}
    majority: dict[int, tuple[str, float]] = {}
    confusion = None
    if targets is not None and (known := (targets >= 0) & (cluster >= 0)).any():
        match = clustering_accuracy(cluster[known], targets[known])[1]
        found = majorities(cluster[known], targets[known])
        majority = {c: (str(k) if classes is None else classes[k], share) for c, (k, share) in found.items()}
        confusion = None if classes is None else confusion_of(cluster, targets, classes, sizes, match)
    return Clusters(
        none,
        sizes,
        match,
        majority,
        charts.profile(list(sizes.values())) if len(sizes) > MOST_CLUSTERS else "",
        confusion,
        {c: strip_of(method, c, outcome, dataset, thumbnails) for c in list(sizes)[:MOST_CLUSTERS] if dataset.pictures},
    )


def confusion_of(
    cluster: Ints, targets: Ints, classes: Sequence[str], sizes: Mapping[int, int], match: Mapping[int, int]
) -> Confusion | None:
    """Return the confusion matrix with the matched clusters in the order of their classes, then the others by size."""
    columns = [*sorted(match, key=match.__getitem__), *(c for c in sizes if c not in match)]
    if len(columns) > MOST_CELLS or len(classes) > MOST_CELLS:
        return None
    names = [str(c) for c in columns]
    if ((cluster < 0) & (targets >= 0)).any():
        columns.append(UNLABELLED)
        names.append("none")
    place = {c: i for i, c in enumerate(columns)}
    counts = np.zeros((len(classes), len(columns)), dtype=np.int64)
    known = targets >= 0
    np.add.at(counts, (targets[known], np.array([place[c] for c in cluster[known].tolist()])), 1)
    uri = ""
    if max(counts.shape) > MOST_NUMBERS:
        share = counts / np.maximum(1, counts.sum(1, keepdims=True))
        pixels = np.zeros((*counts.shape, 4), dtype=np.uint8)
        pixels[..., :3] = (47, 125, 196)  # between the light page's and the dark page's blue
        pixels[..., 3] = np.rint(255 * np.sqrt(share))  # the root lifts small shares into sight
        uri = data_uri(Image.fromarray(pixels))
    return Confusion(names, counts.tolist(), uri)


def strip_of(
    method: str, c: int, outcome: Outcome, dataset: ImageDataset, thumbnails: Thumbnails
) -> list[tuple[str, Sprite, list[str]]]:
    """Return a cluster in pictures, ``(kind, sprite, names)``; no image is in it twice."""
    left = np.flatnonzero(outcome.cluster == c)
    generator = make_generator(0, "report", method, c)
    kinds = []
    for kind, score in (("most central", -outcome.confidence), ("borderline", outcome.margin), ("random", None)):
        if len(left) == 0:
            break
        if score is None:
            order = torch.randperm(len(left), generator=generator).numpy()
        else:
            order = np.argsort(score[left], kind="stable")
        chosen = left[order[:IMAGES]]
        left = np.setdiff1d(left, chosen)
        kinds.append((kind, thumbnails.sprite(chosen.tolist()), [_name(dataset, int(i)) for i in chosen]))
    return kinds


def _name(dataset: ImageDataset, i: int) -> str:
    """Return an image's path and, where it is known, its class."""
    if dataset.targets is None or dataset.classes is None or dataset.targets[i] < 0:
        return printable(dataset.paths[i])
    return f"{printable(dataset.paths[i])} ({dataset.classes[dataset.targets[i]]})"
