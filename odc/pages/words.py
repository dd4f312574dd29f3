"""Guesses what clusters show, from a list of words that a network with a text tower has put into the images' space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from odc.clustering.knn import unit_rows
from odc.errors import InputError
from odc.reading import read_arrays, reading
from odc.results.columns import Floats

GUESSES = 3  # words a cluster
_MOST = 2**30  # bytes


@dataclass(frozen=True, eq=False)
class Words:
    """W words, and a vector (W, D) float32 of each."""

    words: tuple[str, ...]
    vectors: Floats

    @classmethod
    def load(cls, path: str | Path) -> Words:
        """Read an ``.npz`` file with ``words`` (W,) text and ``vectors`` (W, D) floating, nothing else.

        Raises:
            InputError: it is no such file.
            DamagedError: it is damaged, has no word, or a vector that is not finite.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(
                f"names are guessed from an .npz file with words (W,) and vectors (W, D) of the network that made the "
                f"features, and {path} is none: only a network with a text tower, CLIP's say, can make one"
            )
        if not path.is_file():
            raise InputError(f"there is no file {path}: give the words and their vectors")
        with reading(path, "is no table of words", "write words and vectors by numpy.savez"):
            found = read_arrays(path, {"words": ("U", 1), "vectors": ("f", 2)}, most=_MOST)
            words, vectors = found["words"].tolist(), found["vectors"].astype(np.float32)
            if not words or len(words) != len(vectors):
                raise ValueError(f"{len(words):,} words and {len(vectors):,} vectors")
            if not np.isfinite(vectors).all():
                raise ValueError("a vector is not finite")
        return cls(tuple(words), vectors)

    def guesses(self, centers: Floats, clusters: np.ndarray) -> dict[int, list[str]]:
        """Return for each of these clusters its likeliest words, the likeliest first.

        Words and prototypes (K, D) are compared by cosine after each had its own mean taken off: in CLIP's space all
        images lie on one side and all words on another, and a word near that middle would be near to every cluster.

        Raises InputError where the widths differ.
        """
        if centers.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"the words have vectors of width {self.vectors.shape[1]:,}, and the features {centers.shape[1]:,}: "
                "they must be from one network, behind its projection"
            )
        words = unit_rows(self.vectors)
        words = unit_rows(words - words.mean(0)) if len(words) > 1 else words
        own = centers[clusters]
        own = unit_rows(own - own.mean(0)) if len(own) > 1 else own
        order = np.argsort(-(own @ words.T), axis=1, kind="stable")[:, :GUESSES]
        return {int(c): [self.words[w] for w in best] for c, best in zip(clusters, order.tolist(), strict=True)}
