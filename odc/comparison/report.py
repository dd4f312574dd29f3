"""The report of a comparison: one HTML file with its pictures inside, which loads nothing and runs no script.

The same records and folders give the same bytes: nothing in it is the time of writing, and everything drawn by lot
comes from generators of fixed seed. The map of each method's features (t-SNE) is kept beside them, as
``embedding-2d.npz``, because it takes longer than everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from scipy import stats
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from odc.comparison import charts
from odc.comparison.pictures import Sprite, Thumbnails, data_uri
from odc.comparison.results import QUALITY, Ints, Outcome, Record, read_curves
from odc.comparison.table import EVENNESS, Spread, amount, listed, one_seed, spread
from odc.data.datasets import ImageDataset
from odc.errors import DamagedError, InputError, printable
from odc.evaluation import clustering_accuracy
from odc.files import write_text, written_whole
from odc.reading import read_arrays, reading
from odc.structures import UNLABELLED, make_generator

RANKED = ("acc", "nmi", "ari")  # kNN is of the features, not of the clusters
CURVES = {
    "loss": "loss",
    "nmi_prev": "NMI with last labels",
    "churn": "labels that change",
    "entropy": "entropy of the sizes",
    "clusters": "clusters",
    "knn": "kNN accuracy",
    "acc": "ACC",
}
MOST_CLUSTERS = 30  # shown with images, with bars of their own and with numbers on the map
MOST_NUMBERS = 20  # classes and clusters up to which a confusion matrix has numbers
MOST_CELLS = 200  # classes and clusters up to which there is a confusion matrix
MOST_POINTS = 2000  # on a map
IMAGES = 6  # of each kind in a strip
WIDE, NARROW = 960, 343  # CSS pixels of a chart on a desktop and on a phone


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean of ``n`` paired differences, with a 95 % confidence interval (Student's t), ``None`` with one pair."""

    mean: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Row:
    """A method in the table.

    Attributes:
        method: its name.
        values: by column, ``None`` where no seed has a number.
        rank: mean rank over metrics and seeds, 1 is best; ``None`` without ground truth.
        difference: to the best method, on the seeds that both have; ``None`` for the best itself.
        best: whether it is the best.
        good: seeds that ended.
        seeds: all seeds.
        errors: ``(seeds, error, log)`` of the others: seeds with the same error together, with the first one's log.
    """

    method: str
    values: dict[str, Spread | None]
    rank: float | None
    difference: Difference | None
    best: bool
    good: int
    seeds: int
    errors: list[tuple[list[Any], str, str]]


def paired_difference(mine: Mapping[Any, float], other: Mapping[Any, float]) -> Difference | None:
    """Return ``mine`` - ``other`` over the seeds that both have, or ``None`` if they share none."""
    pairs = [mine[seed] - other[seed] for seed in mine if seed in other]
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0], None, 1) if pairs else None
    mean = statistics.fmean(pairs)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(pairs) / math.sqrt(n)
    return Difference(mean, (mean - half, mean + half), n)


def mean_ranks(good: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Return each method's rank by :data:`RANKED`, 1 the best, averaged over metrics and seeds; equals share a rank."""
    ranks: dict[str, list[float]] = {method: [] for method in good}
    for metric in RANKED:
        by_seed: dict[Any, dict[str, float]] = {}
        for method, records in good.items():
            for r in records:
                if (value := r.number(metric)) is not None:
                    by_seed.setdefault(r.seed, {})[method] = value
        for values in by_seed.values():
            for method, rank in zip(values, stats.rankdata([-v for v in values.values()]), strict=True):
                ranks[method].append(float(rank))
    return {method: statistics.fmean(found) for method, found in ranks.items() if found}


def rows_of(results: Sequence[Record], columns: Sequence[str], key: str) -> list[Row]:
    """Return the table, best first by ``key``; methods of which no seed has ended come last."""
    by_method: dict[str, list[Record]] = {}
    for r in results:
        by_method.setdefault(r.method, []).append(r)
    good = {method: [r for r in records if r.error is None] for method, records in by_method.items()}
    values = {method: {c: spread([r.number(c) for r in good[method]]) for c in columns} for method in by_method}
    means = {method: v[key].mean if v[key] is not None else -math.inf for method, v in values.items()}  # type: ignore[union-attr]
    order = sorted(by_method, key=lambda method: (not good[method], -means[method]))
    best = order[0] if key == "acc" and order and means[order[0]] > -math.inf else None
    seeds = {m: {r.seed: v for r in good[m] if (v := r.number(key)) is not None} for m in by_method}
    ranks = mean_ranks(good)
    return [
        Row(
            method,
            values[method],
            ranks.get(method),
            paired_difference(seeds[method], seeds[best]) if best is not None and method != best else None,
            method == best,
            len(good[method]),
            len(by_method[method]),
            failures(by_method[method]),
        )
        for method in order
    ]


def failures(records: Sequence[Record]) -> list[tuple[list[Any], str, str]]:
    """Return ``(seeds, error, log)`` of the cells that failed: those with the same error together."""
    found: dict[str, tuple[list[Any], str, str]] = {}
    for r in records:
        if r.error is not None:
            found.setdefault(r.error, ([], r.error, r.log or ""))[0].append(r.seed)
    return list(found.values())


def headline(rows: Sequence[Row], labelled: bool) -> str:
    """Return in a sentence or two which method is best, and how sure that is."""
    if not any(row.good for row in rows):
        return "No method ended, so there is nothing to compare."
    if not labelled:
        return (
            "There is no ground truth, so nothing here says which method is best: they are in the order of the entropy "
            "of their cluster sizes (1: all equally large), which is no quality."
        )
    first = rows[0]
    acc = first.values["acc"]
    assert acc is not None
    over = f"mean ± sample standard deviation over {acc.n} seeds" if acc.std is not None else "one seed"
    text = f"{first.method} has the highest accuracy, {percent(acc)} % ({over})"
    rivals = [row for row in rows[1:] if row.difference is not None]
    if not rivals:
        return text + "."
    second = rivals[0].difference
    assert second is not None
    text += f"; {rivals[0].method} follows, {points(second.mean)} points on the seeds that both have"
    if second.interval is None:
        return text + ". One seed says little about such a difference."
    low, high = second.interval
    text += f" (95 % confidence interval {points(low)} to {points(high)})"
    return text + (". The interval contains 0: these seeds do not tell the two apart." if low <= 0 <= high else ".")


def percent(value: Spread | None) -> str:
    """Return a share in per cent, mean ± standard deviation."""
    return amount(value, 1, 100)


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


# -- clusters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """A cluster in pictures: ``(kind, sprite, description)`` of its images, and how pure it is where that is known."""

    cluster: int
    size: int
    purity: float | None
    majority: str
    kinds: list[tuple[str, Sprite, str]]


@dataclass(frozen=True)
class Confusion:
    """Images by class and cluster: a row a class, a column a cluster, the matched ones on the diagonal.

    Attributes:
        classes: names of the rows.
        clusters: names of the columns.
        counts: images.
        uri: the same as a picture, where there are too many for numbers; else empty.
    """

    classes: list[str]
    clusters: list[str]
    counts: list[list[int]]
    uri: str


@dataclass(frozen=True)
class Clusters:
    """The clusters of one method, of one seed.

    Attributes:
        method: its name.
        seed: of the cell that is shown.
        number: of the method, for anchors.
        found: whether the cell has left ``outcome.npz``; nothing below is there without.
        clusters: how many have an image.
        none: images in no cluster.
        even: height of the line where all clusters were equally large, in per cent.
        bars: a bar for each cluster, largest first, if they are few.
        profile: SVG path of all sizes, if they are many; else empty.
        largest: images of the largest cluster.
        confusion: ``None`` without ground truth, or with too many classes or clusters.
        strips: the largest clusters in pictures.
        maps: ``(what the colours are, groups)``.
        points: images on a map.
        no_map: why there is no map; else empty.
    """

    method: str
    seed: Any
    number: int
    found: bool
    clusters: int = 0
    none: int = 0
    even: float = 0.0
    bars: Sequence[charts.Bar] = ()
    profile: str = ""
    largest: int = 0
    confusion: Confusion | None = None
    strips: Sequence[Strip] = ()
    maps: Sequence[tuple[str, list[charts.Group]]] = ()
    points: int = 0
    no_map: str = ""


def clusters_of(
    method: str,
    seed: int,
    position: int,
    outcome: Outcome,
    folder: Path,
    dataset: ImageDataset,
    thumbnails: Thumbnails,
) -> Clusters:
    """Return everything that the report shows of one clustering, from a cell's folder."""
    cluster = outcome.cluster
    ids, counts = np.unique(cluster[cluster >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    sizes = {int(ids[i]): int(counts[i]) for i in order}
    none = int((cluster < 0).sum())
    if not sizes:
        return Clusters(method, seed, position, found=True, none=none, no_map="no image is in a cluster")
    targets, classes = dataset.targets, dataset.classes
    match: dict[int, int] = {}
    majority: dict[int, tuple[int, float]] = {}
    if targets is not None and ((targets >= 0) & (cluster >= 0)).any():
        known = (targets >= 0) & (cluster >= 0)
        match = clustering_accuracy(cluster[known], targets[known])[1]
        majority = majorities(cluster[known], targets[known])
    shown = list(sizes)[:MOST_CLUSTERS]
    few = len(sizes) <= MOST_CLUSTERS
    confusion = None
    if classes is not None and targets is not None and match:
        confusion = confusion_of(cluster, targets, classes, sizes, match)
    spots, why = embed(outcome.features, folder)
    maps = []
    if spots is not None:
        index, xy = spots
        maps = maps_of(charts.scale(xy), index, cluster, dataset, shown, match)
    return Clusters(
        method,
        seed,
        position,
        found=True,
        clusters=len(sizes),
        none=none,
        even=round(100 * sum(sizes.values()) / len(sizes) / max(sizes.values()), 2),
        bars=charts.bars(sizes, {c: p for c, (_, p) in majority.items()}) if few else (),
        profile="" if few else charts.profile(list(sizes.values())),
        largest=max(sizes.values()),
        confusion=confusion,
        strips=[strip_of(method, c, outcome, dataset, majority.get(c), thumbnails) for c in shown],
        maps=maps,
        points=0 if spots is None else len(spots[0]),
        no_map=why,
    )


def majorities(cluster: Ints, targets: Ints) -> dict[int, tuple[int, float]]:
    """Return each cluster's largest class, the first of equals, and its share; all (N,), none negative."""
    totals = np.bincount(cluster)
    width = int(targets.max()) + 1
    pairs, votes = np.unique(cluster * width + targets, return_counts=True)
    found: dict[int, tuple[int, float]] = {}
    for i in np.argsort(-votes, kind="stable"):
        c, target = divmod(int(pairs[i]), width)
        found.setdefault(c, (target, float(votes[i] / totals[c])))
    return found


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
    return Confusion(list(classes), names, counts.tolist(), uri)


def strip_of(
    method: str,
    c: int,
    outcome: Outcome,
    dataset: ImageDataset,
    majority: tuple[int, float] | None,
    thumbnails: Thumbnails,
) -> Strip:
    """Return a cluster in pictures; no image is in it twice."""
    left = np.flatnonzero(outcome.cluster == c)
    size = len(left)
    name = str(majority[0]) if majority and dataset.classes is None else ""
    if majority and dataset.classes is not None:
        name = dataset.classes[majority[0]]
    rng = make_generator(0, "report", method, c)
    choose: dict[str, Callable[[Ints], Ints]] = {
        "most central": lambda left: np.argsort(-outcome.confidence[left], kind="stable"),
        "borderline": lambda left: np.argsort(outcome.margin[left], kind="stable"),
        "random": lambda left: torch.randperm(len(left), generator=rng).numpy(),
    }
    kinds = []
    for kind, rank in choose.items():
        if len(left) == 0:
            break
        chosen = left[rank(left)[:IMAGES]]
        left = np.setdiff1d(left, chosen)
        alt = f"Cluster {c}, {kind}: {', '.join(_name(dataset, int(i)) for i in chosen)}"
        kinds.append((kind, thumbnails.sprite(chosen.tolist()), alt))
    return Strip(c, size, majority[1] if majority else None, name, kinds)


def _name(dataset: ImageDataset, i: int) -> str:
    """Return an image's path and, where it is known, its class."""
    if dataset.targets is None or dataset.classes is None or dataset.targets[i] < 0:
        return printable(dataset.paths[i])
    return f"{printable(dataset.paths[i])} ({dataset.classes[dataset.targets[i]]})"


# -- maps ------------------------------------------------------------------------------------------------------------


def embed(features: charts.Floats, folder: Path) -> tuple[tuple[Ints, charts.Floats] | None, str]:
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


def maps_of(
    spots: Ints, index: Ints, cluster: Ints, dataset: ImageDataset, shown: Sequence[int], match: Mapping[int, int]
) -> list[tuple[str, list[charts.Group]]]:
    """Return the map coloured by cluster and, with ground truth, by class; matched ones have the same colour."""
    here, classes = cluster[index], dataset.classes
    # The matched clusters take their classes' colours, the others those that follow.
    free = len(classes) if classes is not None else 0
    rest = [c for c in sorted(set(cluster[cluster >= 0].tolist())) if c not in match]
    colours = {**match, **{c: free + i for i, c in enumerate(rest)}}
    few = free + len(rest) <= charts.FEW
    maps = [("cluster", charts.groups(spots, here, {c: str(c) for c in colours}, colours, shown, few))]
    if dataset.targets is not None and classes is not None and (dataset.targets[index] >= 0).any():
        targets = dataset.targets[index]
        told = range(len(classes)) if len(classes) <= MOST_CLUSTERS else ()
        by_class = {k: k for k in range(len(classes))}
        maps.append(("class", charts.groups(spots, targets, dict(enumerate(classes)), by_class, told, few)))
    return maps


# -- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The learning curves of one method."""

    method: str
    seeds: list[Any]
    panels: list[charts.Panel]


def curves_of(curves: Mapping[str, Mapping[Any, Sequence[Mapping[str, float]]]]) -> list[Curves]:
    """Return small multiples; all methods share a quantity's axis, but for the loss, which is another for each.

    Args:
        curves: epochs, by method and seed.
    """

    def series(one: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
        found = [(e["epoch"], e[name]) for e in one if "epoch" in e and name in e]
        return [(epoch, value) for epoch, value in found if math.isfinite(epoch) and math.isfinite(value)]

    every: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for method, seeds in curves.items():
        drawn = {name: [s for one in seeds.values() if (s := series(one, name))] for name in CURVES}
        # A quantity that was looked at once is no curve.
        every[method] = {name: lines for name, lines in drawn.items() if any(len(line) > 1 for line in lines)}

    def span(lines: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
        values = [value for one in lines for _, value in one]
        low, high = min(values), max(values)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    shared = {
        name: span([one for drawn in every.values() for one in drawn.get(name, [])])
        for name in CURVES
        if any(name in drawn for drawn in every.values())
    }
    return [
        Curves(
            method,
            list(curves[method]),
            [
                charts.panel(CURVES[name], lines, span(lines) if name == "loss" else shared[name])
                for name, lines in drawn.items()
            ],
        )
        for method, drawn in every.items()
        if drawn
    ]


# -- the page --------------------------------------------------------------------------------------------------------


def write_report(results: Sequence[Record], dataset: ImageDataset, out: Path, *, command: str) -> Path:
    """Write the report of a comparison, whole or not at all, and return its path.

    Args:
        results: of each cell (method x seed), in order of running. Its folder, within that of the report, may hold an
            outcome and curves.
        dataset: the N images that were clustered.
        out: the file to write.
        command: what repeats the whole comparison.

    Raises:
        InputError: there is no record, a cell's file is damaged, or it is of another number of images.
    """
    if not results:
        raise InputError("there are 0 cells to report: run at least 1 method")
    cells = [r for r in results if not r.before]
    shared = [r for r in results if r.before]
    ended = [r for r in cells if r.error is None]
    labelled = not ended or any(r.number("acc") is not None for r in ended)
    quality = QUALITY if labelled else EVENNESS
    costs = ("seconds", "pretrain_seconds", "images_seen", "peak_rss_mb")
    rows = rows_of(cells, [*quality, *costs], "acc" if labelled else "entropy")

    thumbnails = Thumbnails(dataset)
    shown = []
    for position, row in enumerate(rows):
        mine = [r for r in ended if r.method == row.method]
        for r in mine:
            folder = out.parent / r.folder
            if (outcome := Outcome.load(folder, len(dataset))) is not None:
                shown.append(clusters_of(row.method, r.seed, position, outcome, folder, dataset, thumbnails))
                break
        else:
            if mine:
                shown.append(Clusters(row.method, mine[0].seed, position, found=False))

    epochs: dict[str, dict[Any, list[dict[str, float]]]] = {}
    for method in [*(row.method for row in rows), *dict.fromkeys(r.method for r in shared)]:
        for r in results:
            if r.method == method and (found := read_curves(out.parent / r.folder)):
                epochs.setdefault(method, {})[r.seed] = found
    curves = curves_of(epochs)
    with_points = _points(rows, cells) if labelled else []
    splits = {r.method: r.evaluated_on for r in cells}
    dates = sorted({r.date[:10] for r in results})
    text = (
        _environment()
        .get_template("report.html")
        .render(
            names=list(dict.fromkeys(r.dataset for r in results)),
            total=len(dataset),
            classes=dataset.classes if dataset.targets is not None else None,
            asked=sorted({r.num_clusters for r in cells}),
            seeds=list(dict.fromkeys(r.seed for r in cells)),
            dates=dates,
            headline=headline(rows, labelled),
            labelled=labelled,
            quality=quality,
            rows=rows,
            one_seed=one_seed(ended),
            splits=splits,
            shared=[_shared([r for r in shared if r.method == stage]) for stage in {r.method: 0 for r in shared}],
            charts=[charts.cost_chart(with_points, width, height) for width, height in ((WIDE, 400), (NARROW, 320))]
            if with_points
            else [],
            points=with_points,
            curves=curves,
            stages={r.method for r in shared},
            without_curves=[row.method for row in rows if row.good and row.method not in {c.method for c in curves}],
            shown=shown,
            images=IMAGES,
            most_clusters=MOST_CLUSTERS,
            most_points=MOST_POINTS,
            map=charts.MAP,
            cells=[(r, out.parent / r.folder) for r in results],
            runs=_runs(results),
            command=command,
        )
    )
    write_text(out, text)
    return out


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(amount=amount, percent=percent, points=points)
    return environment


def _points(rows: Sequence[Row], cells: Sequence[Record]) -> list[charts.Point]:
    """Return the methods that have both a quality and a cost."""
    found = []
    for row in rows:
        acc, seconds = row.values["acc"], row.values["seconds"]
        if acc is None or seconds is None:
            continue
        mine = [r for r in cells if r.method == row.method and r.number("pretrain_seconds") is not None]
        total = spread([(r.number("seconds") or 0.0) + (r.number("pretrain_seconds") or 0.0) for r in mine])
        found.append(
            charts.Point(
                row.method,
                max(0.01, seconds.mean),
                None if total is None else max(0.01, total.mean),
                100 * acc.mean,
                seconds.std,
                None if acc.std is None else 100 * acc.std,
            )
        )
    return found


def _shared(records: Sequence[Record]) -> dict[str, Any]:
    """Return what a shared stage took and gave, from its records."""
    good = [r for r in records if r.error is None]
    return {
        "stage": records[0].method,
        "config": records[0].config,
        "before": listed(records[0].before),
        "seconds": spread([r.number("seconds") for r in good]),
        "knn": spread([r.number("knn") for r in good]),
        "epochs": next((r.values["epochs"] for r in good if r.number("epochs")), None),
        "errors": failures(records),
    }


def _runs(results: Sequence[Record]) -> list[dict[str, Any]]:
    """Return where the cells ran: those that share machine, versions, revision and command together."""
    runs: dict[str, dict[str, Any]] = {}
    for r in results:
        facts = {
            key: getattr(r, key) for key in ("command", "machine", "precision", "threads", "git_revision", "versions")
        }
        run = runs.setdefault(json.dumps(facts, sort_keys=True, default=str), {**facts, "cells": []})
        run["cells"].append(f"{r.method} {r.seed}")
    return list(runs.values())
