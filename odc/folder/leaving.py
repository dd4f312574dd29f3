"""What a clustering leaves in its folder, and what is said of it at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from odc.data.datasets import ImageDataset
from odc.errors import InputError
from odc.evaluation.gallery import listed
from odc.files import write_text
from odc.folder.clock import Clock
from odc.folder.running import Found
from odc.pages import PAGE, write_page
from odc.portable import pack
from odc.portable.files import FOLDER
from odc.recipes import Left, Recipe
from odc.results.clustering import Clustering, folder_name

COPIES = ("link", "copy")
CLUSTERS, CONFIG = "clusters", "config.py"
_FEW = 5  # pictures: a cluster of fewer is named at the end


def copy_clusters(clustering: Clustering, out: Path, how: str) -> Path:
    """Make a folder of each cluster, ``clusters/007`` or ``clusters/007-NAME``, with links or copies of its pictures.

    A picture keeps its name; where two of a cluster have one name, the folders that they are in go in front. What is
    begun lies in ``clusters.part``, so what is there is whole, and stays as it is.
    """
    place, part = out / CLUSTERS, out / f"{CLUSTERS}.part"
    if place.exists():
        return place
    if part.exists():
        shutil.rmtree(part)
    for c in sorted(set(clustering.cluster.tolist())):
        folder = part / folder_name(c, clustering.num_clusters, clustering.names.get(c, ""))
        folder.mkdir(parents=True)
        rows = np.flatnonzero(clustering.cluster == c).tolist()
        paths = [clustering.paths[row] for row in rows]
        for path, name in zip(paths, distinct(paths), strict=True):
            source = os.path.abspath(os.path.join(clustering.root, path))
            if how == "link":
                os.symlink(source, folder / name)
            else:
                shutil.copyfile(source, folder / name)
    part.rename(place)
    return place


def distinct(paths: Iterable[str]) -> list[str]:
    """Return a file name for each path, no two the same, also where case does not count.

    ``a/x.jpg`` is ``x.jpg`` where that is the only one, else ``a_x.jpg``, and with a number where that is taken, too.
    """
    paths = list(paths)
    counts: dict[str, int] = {}
    for path in paths:
        base = path.rpartition("/")[2].lower()
        counts[base] = counts.get(base, 0) + 1
    taken: set[str] = set()
    names = []
    for path in paths:
        base = path.rpartition("/")[2]
        name = base if counts[base.lower()] == 1 else path.replace("/", "_")
        stem, dot, end = name.rpartition(".")
        stem, end = (stem, dot + end) if dot and len(end) < 10 else (name, "")
        while len(os.fsencode(stem + end)) > 230:
            stem = stem[1:]
        name, number = stem + end, 2
        while name.lower() in taken:
            name, number = f"{stem}-{number}{end}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def leave(
    place: Path,
    dataset: ImageDataset,
    left: Mapping[str, Left],
    recipe: Recipe,
    says: Found,
    num_clusters: int,
    about: Mapping[str, Any],
    clock: Clock,
) -> Clustering:
    """Write table, model, page and config of a recipe that has run; return the clustering."""

    def watch(first: float) -> Any:
        return lambda done, total: clock.at(first + done / total / 2)

    cluster = says.cluster.numpy().astype(np.int64)
    cluster[list(says.lost)] = -1
    found: Any = (cluster, says.margin.numpy()) if says.lost or says.scores is None else says.scores
    clustering = Clustering.describe(
        about["folder"],
        dataset.paths,
        says.features,
        found,
        num_clusters,
        dataset,
        about={name: value for name, value in about.items() if name != "folder"},
        spaces=says.spaces,
        watch=watch(0.0),
    )
    write_config(left, recipe, place)
    try:
        pack(clustering, left, recipe, dataset).save(place / FOLDER)
    except InputError as error:  # of an untrained network, say: the table is worth having all the same
        clustering = replace(clustering, about={**clustering.about, "no_model": str(error)})
    write_page(clustering, dataset, place / PAGE, watch=watch(0.5))
    clustering.save(place)  # last: it says that all is there
    return clustering


def write_config(left: Mapping[str, Left], recipe: Recipe, place: Path) -> None:
    """Write the config of the last training, for somebody who wants to change more than the command lets."""
    stage = next((stage for stage in reversed(recipe.stages) if stage.config is not None), None)
    if stage is None:
        return
    name = Path(stage.config.filename or "").name
    ran = left[stage.name].folder / name
    text = ran.read_text(encoding="utf-8") if ran.is_file() else stage.config.dump()
    write_text(place / CONFIG, f"# Stage '{stage.name}' of odc cluster; odc train takes it: --work-dir DIR\n{text}")


def remarks(clustering: Clustering, left: Mapping[str, Left], place: Path, copied: Path | None) -> list[str]:
    """Return what is to be said at the end: where things are, how clusters are filled, what comes next."""
    sizes, K = clustering.sizes, clustering.num_clusters
    filled = sizes[sizes > 0]
    lines = [f"{len(filled)} clusters of {filled.min():,} to {filled.max():,} pictures: {_listed_sizes(clustering)}"]
    if (empty := np.flatnonzero(sizes == 0)).size:
        lines.append(
            f"clusters without a picture: {listed(empty.tolist())}, {len(empty)} of {K}; a smaller -k may fit better"
        )
    few = np.flatnonzero((sizes > 0) & (sizes < _FEW))
    if few.size and len(clustering) >= 2 * _FEW * K:
        lines.append(f"clusters with fewer than {_FEW} pictures: {listed(few.tolist())}")
    if out := int((clustering.cluster < 0).sum()):
        lines.append(f"{out:,} pictures are in no cluster (cluster -1)")
    for stage in left.values():
        none = [c for c, n in enumerate(stage.result.get("per_cluster", ())) if not n]
        if none:
            lines.append(
                f"no picture of clusters {listed(none)} was reliable: what was trained after that left them empty"
            )
    outliers, repeated = int(clustering.outlier.sum()), int((clustering.duplicate_of >= 0).sum())
    lines.append(f"{outliers:,} outliers and {repeated:,} near-duplicates are marked")
    folders = f", folders are in {copied}" if copied else ""
    lines.append(f"look at {place / PAGE}; the table is {place / 'clusters.csv'}{folders}")
    if "no_model" in clustering.about:
        lines.append(f"there is no model for new pictures: {clustering.about['no_model']}")
    predict = "" if "no_model" in clustering.about else f"odc predict {place} NEW_FOLDER; "
    lines.append(f"next: {predict}odc report {place}; odc align {place} labels.csv")
    return lines


def _listed_sizes(clustering: Clustering) -> str:
    order = [c for c in np.argsort(-clustering.sizes, kind="stable") if clustering.sizes[c]]
    told = [f"{clustering.name_of(int(c))} ({clustering.sizes[c]:,})" for c in order[:10]]
    return ", ".join(told) + (", ..." if len(order) > 10 else "")
