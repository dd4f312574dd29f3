"""Names for the clusters of a folder that ``odc cluster`` left, from a few labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odc.evaluation.align import MIN_MARGIN, Alignment, align, told
from odc.files import alone, writable_file, write_text
from odc.labelling.given import Given, Score, check_apart, score_table
from odc.portable.files import FOLDER, MODEL
from odc.reading import mapping, plain, read_json
from odc.results import Clustering
from odc.structures import UNLABELLED

MAP = "map.json"  # in the folder of the clustering


@dataclass(frozen=True)
class Named:
    """What became of the clusters, and of labels that took no part where there are some."""

    alignment: Alignment
    sizes: tuple[int, ...]  # (K,) images in each cluster
    given: Given
    file: Path  # of the map
    score: Score | None
    table: str  # of the score by class

    @property
    def names(self) -> dict[int, str]:
        """The names of the clusters that have one."""
        return {m.cluster: m.label for m in self.alignment.matches if m.label is not None}

    def __str__(self) -> str:
        matches = self.alignment.matches
        lines = [f"cluster {m.cluster}, {self.sizes[m.cluster]:,} images: {told(m)}" for m in matches]
        if self.alignment.unmatched:
            lines.append(f"no cluster is of class {', '.join(self.alignment.unmatched)}")
        if self.given.unknown:
            lines.append(f"{self.given.unknown} rows have no label yet (empty or {UNLABELLED}) and take no part")
        if self.score is not None:
            lines += ["", self.table, "", f"of other labelled images, {self.score}"]
        named = f"{len(self.names)} of {len(matches)} clusters have a name"
        return "\n".join(
            [*lines, f"{named}, from {len(self.given)} labels of {len(self.given.classes)} classes: {self.file}"]
        )

    def data(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "map": str(self.file),
            "labels": len(self.given),
            "classes": list(self.given.classes),
            "unmatched": list(self.alignment.unmatched),
            "clusters": [asdict(m) | {"images": self.sizes[m.cluster]} for m in self.alignment.matches],
            "test": None if self.score is None else asdict(self.score),
        }


def name_clusters(
    folder: str | Path,
    labels: str | Path,
    *,
    out: str | Path | None = None,
    test: str | Path | None = None,
    min_margin: float = MIN_MARGIN,
) -> Named:
    """Name the clusters of a folder by a few labelled images, by votes or by their neighbours in its features.

    The names go into all files of the clustering, and of its model, and replace those that it had.

    Args:
        folder: that ``odc cluster`` left.
        labels: table (CSV) with the columns ``path`` and ``label``; from the report's page, or by hand.
        out: file for the map from clusters to classes; by default ``map.json`` in the folder.
        test: table of other labelled images to measure the names on; none may be among ``labels``.
        min_margin: see :func:`odc.evaluation.align.align`.

    Raises:
        InputError: there is no clustering, or labels are of other images or none.
    """
    folder = Path(folder)
    clustering = Clustering.load(folder)
    given = Given.read(labels, clustering.paths)
    other = None if test is None else Given.read(test, clustering.paths)
    if test is not None and other is not None:
        check_apart(given, other, clustering.paths, test)
    file = writable_file(folder / MAP if out is None else out)
    found = align(
        clustering.cluster,
        clustering.num_clusters,
        given.index,
        given.label,
        given.classes,
        clustering.unit,
        min_margin,
    )
    score, table = None, ""
    if other is not None:
        names = found.names_of(clustering.cluster[other.index])
        score, table = Score.of(other.names, names), score_table(other.names, {"right": names})
    result = Named(found, tuple(clustering.sizes.tolist()), given, file, score, table)
    with alone(folder):
        _name_model(folder / FOLDER / MODEL, result.names)
        clustering.named(result.names).save(folder)
        found.save(file)
    return result


def _name_model(file: Path, names: Mapping[int, str]) -> None:
    """Let a model call the clusters so, if there is one; its weights are not looked at."""
    if file.is_file():
        told = read_json(file, mapping(plain), "does not describe a model", "make it again (odc cluster)")
        write_text(
            file, json.dumps({**told, "names": {str(c): name for c, name in sorted(names.items())}}, indent=1) + "\n"
        )
