"""Maps of what a method clustered: each image a mark in the plane, coloured by cluster and by class.

The places (t-SNE) are kept beside the features, as ``embedding-2d.npz``, because they take longer than all else in a
report. Why the marks are laid by hand is said in :mod:`odc.comparison.charts`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from odc.comparison.charts import CHAR, Box, place
from odc.comparison.results import Floats, Ints
from odc.data.datasets import ImageDataset
from odc.errors import DamagedError
from odc.files import written_whole
from odc.reading import read_arrays, reading
from odc.structures import make_generator

MOST_POINTS = 2000
MOST_NAMES = 30  # classes up to which their names stand on a map
COLOURS = 20  # told apart by colour alone; then they begin again
SIDE = 800  # units of a map's side, two to a CSS pixel
_SHOWN = 340.0  # CSS pixels of a map's side on a phone
# A shape for each of the first colours, as path commands after "M x y"; with more groups, the numbers tell.
_SHAPES = (
    "h0",
    "m0-7l7 12h-14z",
    "m-5-5h10v10h-10z",
    "m0-8l8 8-8 8-8-8z",
    "m-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
    "m0 7l7-12h-14z",
    "m-7-4l3-3 4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4z",
    "m0-8l8 6-3 9h-10l-3-9z",
)
FEW = len(_SHAPES)


def embed(features: Floats, folder: Path) -> tuple[tuple[Ints, Floats] | None, str]:
    """Return at most :data:`MOST_POINTS` sample ids and their places in the plane by t-SNE, or why there are none.

    The result is kept as ``embedding-2d.npz`` in the folder, under the checksum of the features.
    """
    if len(features) < 10:
        return None, f"{len(features)} images are too few for a map"
    if not np.isfinite(features).all():
        return None, f"{int((~np.isfinite(features).all(1)).sum()):,} rows of features are not finite"
    if (features == features[0]).all():
        return None, f"all {len(features):,} images have equal features: there is nothing to map"
    cache = folder / "embedding-2d.npz"
    digest = hashlib.sha256(repr((features.shape, MOST_POINTS)).encode())
    digest.update(np.ascontiguousarray(features).data)
    checksum = digest.hexdigest()
    if cache.is_file():
        with contextlib.suppress(DamagedError), reading(cache, "is not a map", "it is drawn anew"):
            kept = read_arrays(cache, {"index": ("iu", 1), "xy": ("f", 2), "checksum": ("U", 0)}, most=2**20)
            index, xy = kept["index"].astype(np.int64), kept["xy"]
            there = xy.shape == (len(index), 2) and np.isfinite(xy).all() and (np.diff(index, prepend=-1) > 0).all()
            if str(kept["checksum"]) == checksum and there and index[-1] < len(features):
                return (index, xy), ""
    index = np.arange(len(features))
    if len(features) > MOST_POINTS:
        chosen = torch.randperm(len(features), generator=make_generator(0, "report", "map"))[:MOST_POINTS]
        index = np.sort(chosen.numpy())
    # One thread: with several, sums are added in another order every time, and t-SNE magnifies that.
    with threadpool_limits(1):
        xy = TSNE(
            perplexity=min(30.0, (len(index) - 1) / 3),
            init="pca" if features.shape[1] > 1 else "random",
            random_state=0,
        ).fit_transform(features[index])
    with written_whole(cache) as out:
        np.savez(out, index=index.astype(np.int32), xy=xy, checksum=np.array(checksum))
    return (index, xy), ""


@dataclass(frozen=True)
class Group:
    """Points of one cluster or class."""

    colour: str  # the page's name of the colour: "few" or "many" and a number, or "none": in no group
    dots: bool  # the marks are dots, drawn as the round ends of lines without length; else filled shapes
    path: str  # SVG path of all marks, in a square of side SIDE
    label: str  # its name, with the middle at x and y in per cent, or empty where it is not told
    x: float
    y: float


def scale(xy: Floats) -> Ints:
    """Return points (n, 2) in a square of side :data:`SIDE`, both axes by the same factor."""
    low, high = xy.min(0), xy.max(0)
    factor = (SIDE - 40) / max(1e-9, float((high - low).max()))
    spots: Ints = np.rint((xy - (low + high) / 2) * factor + SIDE / 2).astype(np.int64)
    return spots


def groups(
    spots: Ints, ids: Ints, names: Mapping[int, str], colours: Mapping[int, int], told: Iterable[int], few: bool
) -> list[Group]:
    """Return the marks of every group, and where their names go: at the median or near it, none over another.

    Spots (n, 2) are from :func:`scale`; ``ids`` (n,) is the group of each, -1 none; ``names`` and ``colours`` are by
    group; ``told`` are the groups whose names are shown. Where ``few``, which no colour above seven may be, every group
    also gets a shape of its own.
    """
    told = [g for g in told if (ids == g).any()]
    boxes: dict[int, Box] = {}
    for g in told:
        mine = spots[ids == g]
        # The point nearest to the median: the median itself may lie between two parts of a group.
        x, y = mine[np.square(mine - np.median(mine, axis=0)).sum(1).argmin()] * (_SHOWN / SIDE)
        taken = list(boxes.values())
        boxes[g], _ = place(x, y, CHAR * len(names[g]) + 6, 18, Box(0, 0, _SHOWN, _SHOWN), taken, over=True)
    out = []
    for g in sorted({-1, *colours}):
        if not (ids == g).any():
            continue
        shape, colour = "h0", "none"
        if g >= 0:
            shape = _SHAPES[colours[g]] if few else "h0"
            colour = f"few{colours[g]}" if few else f"many{colours[g] % COLOURS}"
        path = "".join(f"M{a} {b}{shape}" for a, b in spots[ids == g].tolist())
        box = boxes.get(g, Box(0, 0, 0, 0))
        x, y = (round(50 * ends / _SHOWN, 2) for ends in (box.left + box.right, box.top + box.bottom))
        out.append(Group(colour, shape == "h0", path, names[g] if g in boxes else "", x, y))
    return out


def maps_of(
    spots: Ints, index: Ints, cluster: Ints, dataset: ImageDataset, shown: Collection[int], match: Mapping[int, int]
) -> list[tuple[str, list[Group]]]:
    """Return the map coloured by cluster and, with ground truth, by class; matched ones have the same colour.

    Spots (n, 2) are from :func:`scale`, of the images ``index`` (n,) of the N in the data set; ``cluster`` (N,) is of
    all of them, ``shown`` are the clusters whose numbers are told, and ``match`` has the class of those that have one.
    """
    here, classes = cluster[index], dataset.classes
    # The matched clusters take their classes' colours, the others those that follow.
    free = len(classes) if classes is not None else 0
    rest = [c for c in sorted(set(cluster[cluster >= 0].tolist())) if c not in match]
    colours = {**match, **{c: free + i for i, c in enumerate(rest)}}
    few = free + len(rest) <= FEW
    maps = [("cluster", groups(spots, here, {c: str(c) for c in colours}, colours, shown, few))]
    if dataset.targets is not None and classes is not None and (dataset.targets[index] >= 0).any():
        targets = dataset.targets[index]
        told = range(len(classes)) if len(classes) <= MOST_NAMES else ()
        by_class = {k: k for k in range(len(classes))}
        maps.append(("class", groups(spots, targets, dict(enumerate(classes)), by_class, told, few)))
    return maps
