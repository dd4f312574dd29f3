"""Labels that a person gives, and how many of others are right by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from odc.data.table import classes_of, read_labels
from odc.errors import InputError
from odc.evaluation.markdown import markdown_table

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Given:
    """L images whose class is known."""

    index: Ints  # (L,) their rows, each once
    label: Ints  # (L,) 0 to C - 1
    classes: tuple[str, ...]  # C names
    unknown: int = 0  # rows of the table without a label

    @classmethod
    def read(cls, table: str | Path, paths: Sequence[str]) -> Given:
        """Read a table (CSV: ``path``, ``label``) of some of the images ``paths``.

        Raises:
            InputError: it cannot be read, no row has a label, or an image is not among the paths.
        """
        index, names, unknown = read_labels(table, paths)
        classes = classes_of(names)
        return cls(index, np.array([classes.index(name) for name in names], np.int64), classes, unknown)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def names(self) -> list[str]:
        """The L classes by their names."""
        return [self.classes[c] for c in self.label]

    def part(self, rows: npt.NDArray[np.bool_]) -> Given:
        """Return some of the labels, (L,) bool, with all the classes."""
        return Given(self.index[rows], self.label[rows], self.classes)

    def third(self) -> npt.NDArray[np.bool_]:
        """Return a third of the labels of every class, (L,) bool, at least one; none where a class has less than 3.

        Of each class it is every third one, in the order of the images, so nothing is drawn.
        """
        held = np.zeros(len(self), np.bool_)
        if np.bincount(self.label, minlength=len(self.classes)).min() >= 3:
            for c in range(len(self.classes)):
                mine = np.flatnonzero(self.label == c)
                held[mine[np.argsort(self.index[mine], kind="stable")][2::3]] = True
        return held


def check_apart(used: Given, other: Given, paths: Sequence[str], source: str | Path) -> None:
    """Raise :class:`InputError` where an image to measure on has taken part."""
    again = np.intersect1d(used.index, other.index)
    if len(again):
        raise InputError(
            f"'{source}': {len(again)} of {len(other)} images have taken part, the first is '{paths[int(again[0])]}': "
            "measure on others"
        )


@dataclass(frozen=True)
class Score:
    """How many of some labelled images have the right name."""

    images: int
    right: int
    silent: int  # without any name

    @classmethod
    def of(cls, wanted: Sequence[str], found: Sequence[str | None]) -> Score:
        """Compare the names of as many images."""
        right = sum(a == b for a, b in zip(wanted, found, strict=True))
        return cls(len(wanted), right, sum(name is None for name in found))

    @property
    def share(self) -> float:
        """The share of the images that are right; 0 of none."""
        return self.right / self.images if self.images else 0.0

    def __str__(self) -> str:
        silent = f"; {self.silent:,} have no name" if self.silent else ""
        return f"{self.right:,} of {self.images:,} are right ({self.share:.1%}){silent}"


def score_table(wanted: Sequence[str], found: Mapping[str, Sequence[str | None]]) -> str:
    """Return a Markdown table of the shares that are right: a row a class, one for all; columns as in ``found``.

    A share has behind it how many images of the class have no name.
    """
    rows = [["class", "images", *found]]
    for name in [*classes_of(wanted), None]:
        of = [i for i, label in enumerate(wanted) if name in (None, label)]
        scores = [Score.of([wanted[i] for i in of], [names[i] for i in of]) for names in found.values()]
        cells = [f"{s.share:.1%}" + (f" ({s.silent} unnamed)" if s.silent else "") for s in scores]
        rows.append(["all" if name is None else name, f"{len(of):,}", *cells])
    return markdown_table(rows)
