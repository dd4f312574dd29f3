"""The clustering of a folder as a table: what ``odc cluster`` leaves, and what every later command reads.

In its folder are

==================  ================================================================================================
``clusters.csv``    a row an image, in the order of the paths: the columns of :data:`COLUMNS`
``clusters.parquet``  the same, for programs; bytes of a path that are no UTF-8 are escaped there
``features.npy``    (N, D) float32, a row for each of these
``clustering.json``  format, root, number of clusters, their names, widths of the spaces, and what made it
==================  ================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from torch import Tensor, from_numpy

from odc.clustering import confidence, knn_search, margins
from odc.data.datasets import ImageDataset
from odc.data.feature_files import map_features
from odc.data.table import read_table
from odc.errors import DamagedError, InputError
from odc.files import write_table, write_text, written_whole
from odc.reading import fields, listing, mapping, plain, read_json, reading, text, whole
from odc.results.columns import (
    NEIGHBOURS,
    Bools,
    Floats,
    Ints,
    consistency,
    distances,
    is_outlier,
    loneliness,
    lonely_from,
    prototypes,
    unit_vectors,
)
from odc.results.duplicates import Prints, duplicates
from odc.structures import UNLABELLED

TABLE, PARQUET, FEATURES, ABOUT = "clusters.csv", "clusters.parquet", "features.npy", "clustering.json"
COLUMNS = ("path", "cluster", "name", "confidence", "consistency", "distance", "outlier", "duplicate_of")
FORMAT = 1
DIGITS = 5  # behind the point: what is in memory is what is in the tables
_MOST_CLUSTERS = 1_000_000
_AGAIN = "run odc cluster again"


@dataclass(frozen=True, eq=False)
class Clustering:
    """N images in K clusters, and what is told of each image; arrays are numpy's and not to be changed.

    Raises ValueError where lengths, dtypes or numbers do not fit.
    """

    root: str  # folder that the paths are relative to; "": of vectors, whose images are unknown
    paths: tuple[str, ...]  # N, unique
    cluster: Ints  # (N,) int64 in -1..K-1; -1: in none
    # (N,) float32 in [0, 1]: the share of the images whose margin, of the best cluster before the second, is not
    # larger: .9 is surer than 90 % of the images. 0 for those in no cluster.
    confidence: Floats
    consistency: Floats  # (N,) float32 in [0, 1]: the share of the 20 nearest other images that are in the same cluster
    distance: Floats  # (N,) float32 in [0, 2]: 1 - cosine to the mean direction of the cluster
    outlier: Bools  # (N,) bool: far from all other images, see odc.results.columns.lonely_from
    duplicate_of: Ints  # (N,) int64: row of the first image that it repeats, or -1
    features: Floats  # (N, D) float32, not normalised, perhaps mapped from their file
    num_clusters: int  # K
    names: Mapping[int, str] = field(default_factory=dict)  # of clusters, where they have some
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON values: method, features, seed, versions, fingerprint
    spaces: tuple[int, ...] = ()  # widths of the spaces that features consist of, their sum is D; (): one
    prints: Prints | None = None  # of the pictures, where they were looked at just now; not saved

    def __post_init__(self) -> None:
        N = len(self.paths)
        kinds = {"cluster": "int64", "outlier": "bool", "duplicate_of": "int64"}
        for name in ("cluster", "confidence", "consistency", "distance", "outlier", "duplicate_of"):
            column = getattr(self, name)
            if column.shape != (N,) or column.dtype != kinds.get(name, "float32"):
                raise ValueError(
                    f"{name} must be ({N},) {kinds.get(name, 'float32')}, not {column.shape} {column.dtype}"
                )
        if not N or len(set(self.paths)) < N:
            raise ValueError(f"a clustering is of at least one image, each once; it has {N}")
        if (
            self.features.ndim != 2
            or len(self.features) != N
            or sum(self.spaces or self.features.shape[1:]) != (self.features.shape[1])
        ):
            raise ValueError(f"features of {N} images in spaces {self.spaces} cannot be {self.features.shape}")
        if not UNLABELLED <= self.cluster.min() <= self.cluster.max() < self.num_clusters:
            raise ValueError(
                f"clusters {self.cluster.min()} to {self.cluster.max()}, but there are {self.num_clusters}"
            )
        if (self.duplicate_of >= np.arange(N)).any() or self.duplicate_of.min() < -1:
            raise ValueError("an image can repeat an earlier one only")
        for name in ("confidence", "consistency", "distance"):
            column = getattr(self, name)
            if not (column.min() >= 0 and column.max() <= (2 if name == "distance" else 1)):
                raise ValueError(f"{name} is out of range")
        if any(not 0 <= c < self.num_clusters for c in self.names):
            raise ValueError(f"clusters {sorted(self.names)} have names, but there are {self.num_clusters}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def sizes(self) -> Ints:
        """(K,) int64 images in each cluster."""
        return np.bincount(self.cluster[self.cluster >= 0], minlength=self.num_clusters).astype(np.int64)

    @property
    def unit(self) -> Floats:
        """(N, D) float32, the features by whose cosines neighbours and distances are found; computed at every call."""
        return unit_vectors(self.features, self.spaces)

    def name_of(self, cluster: int) -> str:
        """Return what a person calls a cluster: its name, or its number; nothing for -1."""
        return self.names.get(cluster, str(cluster) if cluster >= 0 else "")

    def named(self, names: Mapping[int, str]) -> Clustering:
        """Return the clustering with these names of clusters, and no others."""
        return replace(self, names=dict(names))

    @classmethod
    def describe(
        cls,
        root: str | Path,
        paths: Sequence[str],
        features: Tensor | npt.NDArray[Any],
        found: Tensor | tuple[npt.NDArray[Any], npt.NDArray[Any]],
        num_clusters: int,
        images: ImageDataset | None = None,
        *,
        names: Mapping[int, str] | None = None,
        about: Mapping[str, Any] | None = None,
        spaces: Sequence[int] = (),
        watch: Callable[[int, int], None] | None = None,
    ) -> Clustering:
        """Return what is to be told of a clustering.

        Args:
            root: folder that the paths are relative to.
            paths: N names of the images.
            features: (N, D) floating, finite; need not be normalised.
            found: scores (N, K) of a head, or cluster (N,), -1: in none, and margin (N,), in any unit that rises with
                how sure the cluster is.
            num_clusters: K.
            images: the images of the paths, in their order, decoded once to find near-duplicates; ``None``: only equal
                vectors are duplicates.
            names: of clusters.
            about: JSON values that are kept as they are.
            spaces: widths of the spaces that the features consist of; neighbours and distances weigh them alike.
            watch: told how many of how many images were decoded.

        Raises:
            InputError: lengths do not fit, or features or scores are not finite.
        """
        x = np.asarray(features.detach().cpu().numpy() if isinstance(features, Tensor) else features, np.float32)
        if isinstance(found, Tensor):
            scores = found.detach().cpu().float()
            cluster, margin = scores.argmax(1), margins(scores)
        else:
            cluster, margin = (np.asarray(part) for part in found)  # type: ignore[assignment]
        c, m = np.asarray(cluster, np.int64), np.asarray(margin, np.float32)
        N = len(paths)
        if len(x) != N or c.shape != (N,) or m.shape != (N,) or (images is not None and len(images) != N):
            told = f"{len(x):,} features, {len(c):,} clusters" + (f" and {len(images):,} images" if images else "")
            raise InputError(f"{N:,} paths do not go with {told}")
        if np.isnan(m).any():
            raise InputError(f"{int(np.isnan(m).sum()):,} of {N:,} scores are not numbers: cluster anew")
        unit = unit_vectors(x, spaces)
        neighbours, similarities = np.zeros((N, 0), np.int64), np.zeros((N, 0), np.float32)
        if N > 1:
            neighbours, similarities = (part.numpy() for part in knn_search(unit, k=min(NEIGHBOURS, N - 1)))
        lonely = loneliness(similarities)
        prints = None if images is None else Prints.of(images, watch)
        return cls(
            root=str(root),
            paths=tuple(paths),
            cluster=c,
            confidence=_rounded(confidence(from_numpy(m), from_numpy(c >= 0)).numpy()),
            consistency=_rounded(consistency(c, neighbours)),
            distance=_rounded(distances(unit, c, prototypes(unit, c, num_clusters))),
            outlier=is_outlier(lonely, c, lonely_from(lonely, c, num_clusters)),
            duplicate_of=duplicates(neighbours, similarities, prints),
            features=x,
            num_clusters=num_clusters,
            names=dict(names or {}),
            about=dict(about or {}),
            spaces=tuple(spaces),
            prints=prints,
        )

    def rows(self) -> list[tuple[object, ...]]:
        """Return the rows of the table, a value for each of :attr:`columns`."""
        told = [
            self.paths,
            self.cluster.tolist(),
            [self.names.get(c, "") for c in self.cluster.tolist()],
            *([f"{x:.{DIGITS}f}" for x in column] for column in (self.confidence, self.consistency, self.distance)),
            self.outlier.astype(int).tolist(),
            ["" if i < 0 else self.paths[i] for i in self.duplicate_of.tolist()],
        ]
        kept = [column for name, column in zip(COLUMNS, told, strict=True) if name in self.columns]
        return list(zip(*kept, strict=True))

    @property
    def columns(self) -> tuple[str, ...]:
        """The heading of the table: ``name`` is there only where clusters have names."""
        return COLUMNS if self.names else tuple(name for name in COLUMNS if name != "name")

    def save(self, folder: str | Path) -> None:
        """Write the files of the clustering into a folder, each whole or not at all, ``clustering.json`` last.

        Raises OSError where one cannot be written.
        """
        folder = Path(folder)
        with written_whole(folder / FEATURES) as out:
            np.save(out, np.ascontiguousarray(self.features))
        write_table(folder / TABLE, self.columns, self.rows())
        with written_whole(folder / PARQUET) as out:
            pyarrow.parquet.write_table(self.arrow(), out)
        told = {
            "format": FORMAT,
            "root": self.root,
            "images": len(self),
            "paths": digest_of(self.paths),
            "num_clusters": self.num_clusters,
            "names": {str(c): name for c, name in sorted(self.names.items())},
            "spaces": list(self.spaces),
            "about": dict(self.about),
        }
        write_text(folder / ABOUT, json.dumps(told, indent=1) + "\n")

    def arrow(self) -> pyarrow.Table:
        """Return the table for Parquet: path, cluster int64, name, floats float32, outlier bool, duplicate_of."""
        table = {
            "path": [escaped(path) for path in self.paths],
            "cluster": self.cluster,
            "name": [self.names.get(c) for c in self.cluster.tolist()],
            "confidence": self.confidence,
            "consistency": self.consistency,
            "distance": self.distance,
            "outlier": self.outlier,
            "duplicate_of": [None if i < 0 else escaped(self.paths[i]) for i in self.duplicate_of.tolist()],
        }
        kinds = {"name": pyarrow.string(), "duplicate_of": pyarrow.string()}
        return pyarrow.table({name: pyarrow.array(table[name], kinds.get(name)) for name in self.columns})

    @classmethod
    def load(cls, folder: str | Path) -> Clustering:
        """Read what :meth:`save` wrote; the rows of the table, the CSV file, must be in the order of the features.

        Raises:
            InputError: there is no clustering in the folder, or one of another format.
            DamagedError: a file is damaged, or they do not belong together.
        """
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            told = "is no folder" if not folder.is_dir() else f"has no {ABOUT}, which odc cluster leaves"
            raise InputError(f"'{folder}' {told}: give the folder that odc cluster wrote (--out)")
        about = read_json(folder / ABOUT, _about, "does not say what a clustering is", _AGAIN)
        rows = read_table(folder / TABLE, "path", *(n for n in COLUMNS[1:] if n != "name"))
        x = map_features(folder / FEATURES)
        if not len(rows) == len(x) == about["images"]:
            raise DamagedError(
                f"'{folder}' is damaged: {TABLE} has {len(rows):,} rows, {FEATURES} {len(x):,} and {ABOUT} tells of "
                f"{about['images']:,} images: {_AGAIN}"
            )
        with reading(folder / TABLE, "is not the table of a clustering", _AGAIN):
            paths = tuple(row["path"] for row in rows)
            if digest_of(paths) != about["paths"]:
                raise ValueError(f"its rows are not those of {FEATURES}, or in another order")
            place = {path: i for i, path in enumerate(paths)}
            columns = {name: np.array([float(row[name]) for row in rows], np.float32) for name in COLUMNS[3:6]}
            first = [posixpath.normpath(row["duplicate_of"]) if row["duplicate_of"] else None for row in rows]
            return cls(
                root=about["root"],
                paths=paths,
                cluster=np.array([_number(row["cluster"]) for row in rows], np.int64),
                outlier=np.array([{"0": False, "1": True}[row["outlier"]] for row in rows], np.bool_),
                duplicate_of=np.array([-1 if path is None else place[path] for path in first], np.int64),
                features=x,
                num_clusters=about["num_clusters"],
                names={int(c): name for c, name in about["names"].items()},
                about=about["about"],
                spaces=tuple(about["spaces"]),
                confidence=columns["confidence"],
                consistency=columns["consistency"],
                distance=columns["distance"],
            )


def _rounded(x: Floats) -> Floats:
    return np.round(x.astype(np.float64), DIGITS).astype(np.float32)


def _number(cell: str) -> int:
    number = int(cell)
    if not UNLABELLED <= number < _MOST_CLUSTERS:
        raise ValueError(f"there is no cluster {number}")
    return number


def digest_of(paths: Sequence[str]) -> str:
    """Return a hash of the paths in their order."""
    return hashlib.sha256("\0".join(paths).encode("utf-8", "surrogateescape")).hexdigest()


def escaped(path: str) -> str:
    """Return a name for Parquet, which knows only Unicode: other bytes as an escape."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder_name(cluster: int, num_clusters: int, name: str) -> str:
    """Return the name of a cluster's folder: ``007`` or ``007-NAME``, ``none`` for -1."""
    kept = "".join(x if x.isalnum() or x in " ._-" else "_" for x in name).strip(" .")[:60]
    number = "none" if cluster < 0 else f"{cluster:0{max(3, len(str(num_clusters - 1)))}d}"
    return f"{number}-{kept}" if kept else number


def _cluster_number(value: str) -> str:
    if not 0 <= int(text(value)) < _MOST_CLUSTERS:
        raise ValueError(f"there is no cluster {value}")
    return value


_ABOUT = fields(
    {
        "format": whole(),
        "root": text,
        "images": whole(1),
        "paths": text,
        "num_clusters": whole(1, _MOST_CLUSTERS),
        "names": mapping(text, _cluster_number),
        "spaces": listing(whole(1)),
        "about": mapping(plain),
    }
)


def _about(value: Any) -> dict[str, Any]:
    """Kind: what :meth:`Clustering.save` tells, of this format."""
    if isinstance(value, dict) and value.get("format") not in (None, FORMAT):
        told = f"format {str(value['format'])[:20]}, and this version reads format {FORMAT}"
        raise InputError(f"the clustering is of {told}: use the version of the package that wrote it, or {_AGAIN}")
    found: dict[str, Any] = _ABOUT(value)
    return found
