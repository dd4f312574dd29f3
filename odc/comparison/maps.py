"""Maps of what a method clustered: each image a mark in the plane, coloured by cluster and by class.

The places (t-SNE) are kept beside the features, as ``embedding-2d.npz``, because they take longer than all else in a
report. Why the marks are laid by hand is said in :mod:`odc.comparison.charts`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from odc.comparison.charts import CHAR
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
        with contextlib.suppress(DamagedError), reading(cache, "is no map", "it is drawn anew"):
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
    """Points of one cluster or class.

    Attributes:
        colour: the page's name of the colour: ``few`` or ``many`` and a number, or ``none``: in no group.
        dots: the marks are dots, drawn as the round ends of lines without length; else filled shapes.
        path: SVG path of all marks, in a square of side :data:`SIDE`.
        label: its name, with the middle at x and y in per cent, or empty where it is not told.
    """

    colour: str
    dots: bool
    path: str
    label: str
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
    """Return the marks of every group, and where their names go: nearest to the median, moved apart.

    Args:
        spots: (n, 2) from :func:`scale`.
        ids: (n,) group of each point, -1 none.
        names: by group.
        colours: by group.
        told: the groups whose names are shown.
        few: no colour is above seven: every group also gets a shape of its own.
    """
    told = [g for g in told if (ids == g).any()]
    middles = [_middle(spots[ids == g]) * (_SHOWN / SIDE) for g in told]
    middle = dict(zip(told, _apart(middles, [names[g] for g in told]), strict=True))
    out = []
    for g in sorted({-1, *colours}):
        mine = spots[ids == g].tolist()
        if not mine:
            continue
        shape, colour = "h0", "none"
        if g >= 0:
            shape = _SHAPES[colours[g]] if few else "h0"
            colour = f"few{colours[g]}" if few else f"many{colours[g] % COLOURS}"
        x, y = middle.get(g, (0.0, 0.0))
        path = "".join(f"M{a} {b}{shape}" for a, b in mine)
        label = names[g] if g in middle else ""
        out.append(Group(colour, shape == "h0", path, label, round(x, 2), round(y, 2)))
    return out


def _middle(spots: Ints) -> npt.NDArray[np.float64]:
    """Return the point nearest to the median: the median itself may lie between two parts of a group."""
    spot: Ints = spots[np.square(spots - np.median(spots, axis=0)).sum(1).argmin()]
    return spot.astype(np.float64)


def _apart(middles: Sequence[npt.NDArray[np.float64]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Return the middles of names in per cent of the map, pushed apart until they do not overlap on a phone."""
    at = np.array(middles, dtype=np.float64).reshape(-1, 2)
    half = np.array([(0.5 * CHAR * len(name) + 3, 9.0) for name in names]).reshape(-1, 2)
    for _ in range(60):
        moved = False
        for i in range(len(at)):
            for j in range(i):
                gap = np.abs(at[i] - at[j]) - (half[i] + half[j])
                if (gap < 0).all():
                    axis = int(gap.argmax())  # the shorter way out
                    push = -gap[axis] / 2 + 0.1
                    sign = 1.0 if at[i, axis] >= at[j, axis] else -1.0
                    at[i, axis] += sign * push
                    at[j, axis] -= sign * push
                    moved = True
        at = np.clip(at, half, _SHOWN - half)
        if not moved:
            break
    return [(100 * float(x) / _SHOWN, 100 * float(y) / _SHOWN) for x, y in at]


def maps_of(
    spots: Ints, index: Ints, cluster: Ints, dataset: ImageDataset, shown: Collection[int], match: Mapping[int, int]
) -> list[tuple[str, list[Group]]]:
    """Return the map coloured by cluster and, with ground truth, by class; matched ones have the same colour.

    Args:
        spots: (n, 2) from :func:`scale`.
        index: (n,) the images.
        cluster: (N,) of all images.
        dataset: the N images.
        shown: clusters whose numbers are told.
        match: class of each cluster that has one.
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
