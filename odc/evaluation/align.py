"""Which cluster is which class, from a few labelled images.

Clusters come out in arbitrary order and there may be more or fewer of them than classes. A cluster takes the class that
most of its labelled images have; where these are fewer than three, or disagree, and there are features, the labels flow
from neighbour to neighbour to all images, and the cluster takes the class that came to most of its own. But labels flow
everywhere, also to what nobody has named: a cluster without a labelled image takes a class only if an image of that
class lies as near to its middle as three in four of its own. A cluster whose class does not stand out has none;
several may have the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from odc.clustering.knn import unit_rows
from odc.clustering.propagation import propagate
from odc.data.embeddings import Embeddings
from odc.data.table import classes_of, read_labels, read_table
from odc.errors import InputError
from odc.files import writable_file, write_text
from odc.reading import fields, listing, optional, read_json, real, text, whole
from odc.structures import UNLABELLED

ENOUGH_VOTES = 3
MIN_MARGIN = 0.1
_FAR = 0.25  # share of a cluster's images that are no measure of how far it reaches
_FEW = 10_000  # clusters that a table may have, however few of their images it has
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """What was found of one cluster."""

    cluster: int
    label: str | None  # the class's name; None: the cluster abstains
    rule: str  # "votes" of its labelled images, or "neighbours": of all its images, each as the labels flow to it
    support: int  # labelled images of that class in it (of the best class, where it abstains)
    labelled: int  # labelled images in it
    # The share of its labelled images (by votes), or of all its images, by which the class is ahead of the next one.
    margin: float


@dataclass(frozen=True)
class Alignment:
    """A map from clusters to classes."""

    classes: tuple[str, ...]  # names of all classes
    matches: tuple[Match, ...]  # one for each cluster

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Classes that no cluster has."""
        found = {match.label for match in self.matches}
        return tuple(name for name in self.classes if name not in found)

    def labels(self, clusters: IntArray) -> IntArray:
        """Map clusters (N,) to classes (N,), -1 where the cluster abstains."""
        number = {name: i for i, name in enumerate(self.classes)}
        table = np.array([-1 if m.label is None else number[m.label] for m in self.matches], dtype=np.int64)
        return np.where(clusters < 0, -1, table[clusters])

    def names_of(self, clusters: IntArray) -> list[str | None]:
        """Map clusters (N,) to the names of their classes, ``None`` where the cluster abstains."""
        return [None if c < 0 else self.classes[c] for c in self.labels(clusters).tolist()]

    def clusters_of(self, label: IntArray, cluster: IntArray) -> IntArray:
        """Map true classes (L,) to clusters (L,): an image's own ``cluster`` if that has its class, else the best one.

        -1 where no cluster has the class. This is how labelled images join pseudo-labels that number clusters.
        """
        best = np.full(len(self.classes), -1, dtype=np.int64)
        for match in sorted(self.matches, key=lambda m: (m.support, m.margin)):
            if match.label is not None:
                best[self.classes.index(match.label)] = match.cluster
        return np.where(self.labels(cluster) == label, cluster, best[label])

    def save(self, path: Path) -> None:
        """Write the map as JSON."""
        value = {"classes": self.classes, "unmatched": self.unmatched}
        text = json.dumps({**value, "clusters": [asdict(m) for m in self.matches]}, indent=2, ensure_ascii=False)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what :meth:`save` wrote, or raise :class:`DamagedError`: no such file, or not such a map."""
        value = read_json(path, _map, "is not a map of clusters to classes", "make one with odc align")
        return cls(tuple(value["classes"]), tuple(Match(**m) for m in value["clusters"]))


_MATCH = fields(
    {"cluster": whole(), "label": optional(text), "rule": text}
    | {"support": whole(), "labelled": whole(), "margin": real()}
)
_FIELDS = fields({"classes": listing(text), "clusters": listing(_MATCH)}, unmatched=listing(text))


def _map(value: Any) -> dict[str, Any]:
    """Kind: what :meth:`Alignment.save` writes."""
    found: dict[str, Any] = _FIELDS(value)
    classes = found["classes"]
    for i, match in enumerate(found["clusters"]):
        if match["cluster"] != i or match["label"] not in (None, *classes):
            raise ValueError(f"entry {i} is cluster {match['cluster']}, '{match['label']}' of {len(classes)} classes")
    return found


def align(
    clusters: IntArray,
    num_clusters: int,
    index: IntArray,
    label: IntArray,
    classes: tuple[str, ...],
    features: npt.NDArray[np.float32] | None = None,
    min_margin: float = MIN_MARGIN,
) -> Alignment:
    """Match clusters with classes.

    Args:
        clusters: (N,) cluster of every image, -1: in none.
        num_clusters: K.
        index: (L,) ids of the labelled images, each at most once.
        label: (L,) their classes.
        classes: C names.
        features: (N, D); without them every class needs three labels, and votes alone decide.
        min_margin: a cluster whose class is less than this ahead of the next one abstains, and so does one that no
            label supports, and, unless this is negative, one in which two classes are equally good.

    Raises:
        InputError: a class has fewer than three labels and there are no features, there is no label at all, or features
            are not finite.
    """
    C = len(classes)
    if len(index) == 0 or C == 0:
        raise InputError("no labelled image is among the clustered ones: there is nothing to name the clusters by")
    votes = _counts(clusters[index], label, num_clusters, C)
    shares = votes / np.maximum(votes.sum(1, keepdims=True), 1)
    by_votes = np.ones(num_clusters, dtype=bool)
    if features is None:
        per_class = votes.sum(axis=0)
        if (per_class < ENOUGH_VOTES).any():
            few = int(per_class.argmin())
            raise InputError(
                f"class '{classes[few]}' has {int(per_class[few])} labelled images, but votes need {ENOUGH_VOTES} of "
                "each class: label more, or give the features (odc extract) to compare by"
            )
    else:
        flow = propagate(features, index, label, C)
        reached = flow.any(1)
        flows = _counts(clusters[reached], flow[reached].argmax(1), num_clusters, C)
        by_votes = (votes.sum(1) >= ENOUGH_VOTES) & (shares.max(1) > 0.5)
        sizes = np.bincount(clusters[clusters >= 0], minlength=num_clusters)[:, None]
        shares = np.where(by_votes[:, None], shares, flows / np.maximum(sizes, 1))
        unseen = np.flatnonzero(votes.sum(1) == 0)
        shares[unseen] *= _within_reach(features, clusters, unseen, index, label, C)
    matches = []
    for k in range(num_clusters):
        c = int(shares[k].argmax())
        margin = round(float(shares[k, c] - (np.delete(shares[k], c).max() if C > 1 else 0.0)), 4)
        named = shares[k, c] > 0 and margin >= min_margin and (margin > 0 or min_margin < 0)
        rule, labelled = "votes" if by_votes[k] else "neighbours", int(votes[k].sum())
        matches.append(Match(k, classes[c] if named else None, rule, int(votes[k, c]), labelled, margin))
    return Alignment(classes, tuple(matches))


def _within_reach(
    features: npt.NDArray[np.float32], cluster: IntArray, asked: IntArray, index: IntArray, label: IntArray, C: int
) -> npt.NDArray[np.bool_]:
    """Return (len(asked), C): whether a labelled image of a class is as near to a cluster's middle as its own images.

    By the cosine to the cluster's mean direction, features less their mean; all but a quarter of its own count.
    """
    x = np.asarray(features, np.float32)
    x = unit_rows(x - x.mean(0))
    found = np.zeros((len(asked), C), dtype=bool)
    for row, k in enumerate(asked.tolist()):
        own = x[cluster == k]
        if len(own):
            middle = own.mean(0)
            near = x[index] @ middle >= np.quantile(own @ middle, _FAR)
            found[row, label[near]] = True
    return found


def _counts(cluster: IntArray, label: IntArray, num_clusters: int, num_classes: int) -> IntArray:
    """Return how many of each class (K, C) are in each cluster."""
    counts = np.zeros((num_clusters, num_classes), dtype=np.int64)
    np.add.at(counts, (cluster[cluster >= 0], label[cluster >= 0]), 1)
    return counts


def align_clusters(
    clusters: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    test: str | Path | None = None,
    min_margin: float = MIN_MARGIN,
) -> str:
    """Name the clusters of a ``clusters.csv`` by a few labelled images; write the map as JSON; tell what was found.

    Args:
        clusters: table with the columns ``path`` and ``cluster``.
        labels: table with the columns ``path`` and ``label``.
        out: JSON file to write.
        features: file that odc extract wrote, needed where a class has fewer than three labels.
        test: table of other labelled images to measure the map's accuracy on; none may be among ``labels``.
        min_margin: see :func:`align`.
    """
    file = writable_file(out)
    rows = read_table(clusters, "path", "cluster")
    paths = [row["path"] for row in rows]
    of = _clusters(rows, clusters)
    index, names, unlabelled = read_labels(labels, paths)
    classes = classes_of(names)
    label = np.array([classes.index(name) for name in names], dtype=np.int64)
    x = None
    if features is not None:
        table = Embeddings.load(features)
        place = {path: i for i, path in enumerate(table.paths)}
        missing = [path for path in paths if path not in place]
        if missing:
            raise InputError(
                f"'{features}' has no features of {len(missing)} of the {len(paths)} images in '{clusters}', the first "
                f"is '{missing[0]}': extract them from the same data set"
            )
        x = table.features[[place[path] for path in paths]].numpy()
    found = align(of, int(of.max()) + 1, index, label, classes, x, min_margin)
    found.save(file)
    lines = [f"cluster {m.cluster}: {told(m)}" for m in found.matches]
    if found.unmatched:
        lines.append(f"no cluster is of class {', '.join(found.unmatched)}")
    if unlabelled:
        lines.append(f"{unlabelled} rows of {labels} have no label yet (empty or {UNLABELLED}) and take no part")
    if test is not None:
        lines.append(_accuracy(found, of, paths, set(index.tolist()), test))
    lines.append(f"{len(found.matches)} clusters, {len(classes)} classes: {out}")
    return "\n".join(lines)


def _clusters(rows: Sequence[Mapping[str, str]], source: str | Path) -> Any:
    """Return the column ``cluster`` (N,) int64 of a table."""
    try:
        numbers = [int(row["cluster"]) for row in rows]
    except ValueError as error:
        raise InputError(f"'{source}': the column cluster must hold numbers: {error}") from error
    if min(numbers) < 0:
        raise InputError(
            f"'{source}': {sum(n < 0 for n in numbers)} of {len(numbers)} images are in cluster {min(numbers)}, but "
            "clusters are numbered from 0: leave out the rows of images in none (noise, in other programs)"
        )
    if max(numbers) >= max(len(numbers), _FEW):
        raise InputError(
            f"'{source}' has cluster {max(numbers)}, but only {len(numbers):,} images: clusters are numbered from 0, "
            "give a table that odc wrote"
        )
    return np.array(numbers, dtype=np.int64)


def told(match: Match) -> str:
    """Return in words what a cluster is named by."""
    of = "them" if match.rule == "votes" else "all its images, by their neighbours"
    votes = f"{match.support} of its {match.labelled} labelled images; ahead by {match.margin:.0%} of {of}"
    return f"{match.label} ({votes})" if match.label is not None else f"no class stands out ({votes})"


def _accuracy(found: Alignment, clusters: Any, paths: list[str], used: set[int], test: str | Path) -> str:
    index, names, _ = read_labels(test, paths)
    again = sorted(used & set(index.tolist()))
    if again:
        raise InputError(
            f"'{test}': {len(again)} of {len(names)} images took part in the alignment, the first is "
            f"'{paths[again[0]]}': measure on others"
        )
    named = found.labels(clusters[index])
    right = sum(c >= 0 and found.classes[c] == name for c, name in zip(named.tolist(), names, strict=True))
    silent = int((named < 0).sum())
    return f"{right} of {len(names)} other labelled images are right ({right / len(names):.1%}); {silent} have no class"
