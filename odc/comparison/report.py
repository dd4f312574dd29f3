"""The report of a comparison: one HTML file with its pictures inside, which loads nothing and runs no script.

The same records and folders give the same bytes: nothing in it is the time of writing, and everything drawn by lot
comes from generators of fixed seed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from sklearn.metrics import adjusted_rand_score

from odc.comparison import charts, maps, ranking
from odc.comparison.clusters import IMAGES, MOST_CLUSTERS, Clusters, clusters_of
from odc.comparison.pictures import Thumbnails
from odc.comparison.ranking import Comparison, Row
from odc.comparison.results import Ints, Outcome, Record, read_curves
from odc.data.datasets import ImageDataset
from odc.errors import InputError, printable
from odc.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
TOKENS = "tokens.css"  # the colours of all pages, light and dark
WIDE, NARROW = 960, 343  # CSS pixels of a chart on a desktop and on a phone


@dataclass(frozen=True)
class Shown:
    """What is shown of one method: the first of its cells that has left an outcome."""

    method: str
    seed: int  # of the cell
    clusters: Clusters | None = None  # None where no cell has left an outcome
    maps: Sequence[tuple[str, list[maps.Group]]] = ()  # (what the colours are, groups)
    points: int = 0  # images on a map
    no_map: str = "the cell has left no outcome.npz"  # why there is none; else empty
    agreement: float | None = None  # mean adjusted Rand index of two seeds; None: there are not two


def write_report(records: Sequence[Record], dataset: ImageDataset, out: Path, *, command: str) -> Path:
    """Write the report of a comparison to ``out``, whole or not at all, and return its path.

    Args:
        records: of each cell, in order of running. Its folder, within that of the report, may hold outcome and curves.
        dataset: the N images that were clustered.
        out: the file to write.
        command: what repeats the whole comparison.

    Raises:
        InputError: there is no record, a cell's file is damaged, or it is of another number of images.
    """
    if not records:
        raise InputError("there are 0 cells to report: run at least 1 method")
    found = Comparison.of(records)
    rows = found.ranked()
    thumbnails = Thumbnails(dataset)
    curves = {}
    for row in (*rows, *found.stages):
        epochs = {r.seed: read_curves(out.parent / r.folder) for r in row.records}
        curves[row.name] = {seed: logged for seed, logged in epochs.items() if logged}
    points = [
        charts.Point(row.name, cost, row.spread("seconds", "pretrain_seconds"), quality)
        for row in rows
        if (cost := row.spread("seconds")) is not None and (quality := row.spread("acc")) is not None
    ]
    page = environment(TEMPLATES).get_template("report.html")
    text = page.render(
        comparison=found,
        records=records,
        rows=rows,
        dataset=dataset,
        dates=sorted({r.date[:10] for r in records}),
        splits={r.method: r.evaluated_on for row in rows for r in row.records},
        headline=ranking.headline(rows, found.labelled),
        one_seed=ranking.one_seed(rows),
        points=points,
        charts=[charts.cost_chart(points, *size) for size in ((WIDE, 400), (NARROW, 320)) if points],
        curves=charts.curves_of(curves),
        seeds_of={method: list(seeds) for method, seeds in curves.items()},
        shown=[show(row, dataset, thumbnails, out.parent) for row in rows if row.ended],
        images=IMAGES,
        most_clusters=MOST_CLUSTERS,
        most_points=maps.MOST_POINTS,
        side=maps.SIDE,
        runs=_runs(records),
        folder=out.parent,
        command=command,
    )
    write_text(out, text)
    return out


def show(row: Row, dataset: ImageDataset, thumbnails: Thumbnails, home: Path) -> Shown:
    """Return what is shown of a method, of which a cell has ended; the cells' folders are in ``home``."""
    first: tuple[Record, Outcome] | None = None
    found = []
    for r in row.ended:
        outcome = Outcome.load(home / r.folder, len(dataset))
        if outcome is not None:
            first = first or (r, outcome)
            found.append(outcome.cluster)
    if first is None:
        return Shown(row.name, row.ended[0].seed)
    r, outcome = first
    clusters, agreement = clusters_of(r.method, outcome, dataset, thumbnails), seeds_agree(found)
    if not clusters.sizes:
        return Shown(r.method, r.seed, clusters, no_map="no image is in a cluster", agreement=agreement)
    spots, why = maps.embed(outcome.features, home / r.folder)
    if spots is None:
        return Shown(r.method, r.seed, clusters, no_map=why, agreement=agreement)
    index, xy = spots
    drawn = maps.maps_of(maps.scale(xy), index, outcome.cluster, dataset, clusters.strips, clusters.match)
    return Shown(r.method, r.seed, clusters, drawn, len(index), "", agreement)


def seeds_agree(found: Sequence[Ints]) -> float | None:
    """Return the mean adjusted Rand index of two clusterings (N,) by other seeds; ``None`` where there are not two.

    Images in no cluster count as a cluster.
    """
    pairs = list(itertools.combinations(found, 2))
    return sum(float(adjusted_rand_score(a, b)) for a, b in pairs) / len(pairs) if pairs else None


def environment(templates: Path) -> jinja2.Environment:
    """Return what draws the templates of a folder: all words are escaped, and none can move a cursor."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(amount=ranking.amount, points=ranking.points, joined=ranking.joined)
    return environment


def _runs(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the cells that share machine, versions, revision and command together."""
    runs: dict[str, list[Record]] = {}
    for r in records:
        facts = (r.command, r.machine, r.precision, r.threads, r.git_revision, sorted(r.versions.items()))
        runs.setdefault(json.dumps(facts), []).append(r)
    return runs
