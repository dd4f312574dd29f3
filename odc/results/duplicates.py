"""Images that are there more than once: as the same pixels, or made smaller, compressed again or cropped a little."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from odc.clustering.kmeans import load_faiss
from odc.data.datasets import ImageDataset, in_threads
from odc.errors import InputError

Ints = npt.NDArray[np.int64]

BITS, ALIKE = 8, 0.99  # the same picture: at most so many bits differ, and the thumbnails correlate by at least this
CLOSE_BITS, CLOSE_ALIKE, COSINE = 12, 0.9, 0.9  # a part of it: the features then have a say, too
SAME = 1 - 1e-6  # cosine from which vectors without pictures count as equal
_THUMB = 16  # pixels a side
_DETAIL = 64  # pixels a side from which the second rule holds
_FOUND = 20  # pictures with the nearest hashes that are looked at
_PAIRS = 20_000  # whose thumbnails are compared at a time
_FLAT = 4.0  # standard deviation of grey values below which a thumbnail shows nothing


@dataclass(frozen=True, eq=False)
class Prints:
    """What recognises N pictures, 305 bytes each."""

    exact: npt.NDArray[np.uint64]  # (N, 2) a hash of the shape and the pixels
    rough: npt.NDArray[np.uint64]  # (N, 2) perceptual hash of 128 bits, see print_of
    thumbs: npt.NDArray[np.uint8]  # (N, 256) grey, 16×16
    side: npt.NDArray[np.int64]  # (N,) pixels of the shorter side; 0: could not be decoded, so a duplicate of nothing

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Prints:
        """Return some of them."""
        return Prints(self.exact[rows], self.rough[rows], self.thumbs[rows], self.side[rows])

    @classmethod
    def none(cls, N: int = 0) -> Prints:
        """Return those of N pictures that could not be decoded."""
        zeros = np.zeros((N, 2), np.uint64)
        return cls(zeros, zeros.copy(), np.zeros((N, _THUMB**2), np.uint8), np.zeros(N, np.int64))

    @classmethod
    def of(cls, dataset: ImageDataset, watch: Callable[[int, int], None] | None = None) -> Prints:
        """Decode every image of a data set once; ``watch`` is told how many of how many are done."""

        def look(i: int) -> Prints:
            try:
                return print_of(dataset.image(i))
            except InputError:
                return cls.none(1)

        found = []
        for i, one in enumerate(in_threads(look, range(len(dataset)), "looked for duplicates in")):
            found.append(one)
            if watch is not None:
                watch(i + 1, len(dataset))
        return cls.join(found)

    @classmethod
    def join(cls, parts: list[Prints]) -> Prints:
        """Return all of them."""
        joined = (np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS)
        return cls(*joined) if parts else cls.none()


_FIELDS = ("exact", "rough", "thumbs", "side")


def print_of(image: Tensor) -> Prints:
    """Return the print of one image uint8 (C, H, W).

    The perceptual hash (dHash) has a bit for each two pixels side by side in the grey image of 9×8 pixels, and for each
    two above each other in that of 8×9, whether the second is brighter. Compression, size and brightness change a few.
    """
    pixels = image.numpy()
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    colour = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[:3].transpose(1, 2, 0))
    grey = Image.fromarray(colour).convert("L")
    across, down, thumb = (
        np.asarray(grey.resize(size, Image.Resampling.BOX), np.int16) for size in ((9, 8), (8, 9), (_THUMB, _THUMB))
    )
    bits = np.concatenate([np.packbits(across[:, 1:] > across[:, :-1]), np.packbits(down[1:] > down[:-1])])
    side = min(pixels.shape[1:])
    return Prints(
        np.frombuffer(digest.digest(), np.uint64)[None],
        bits.view(np.uint64)[None],
        thumb.astype(np.uint8).reshape(1, -1),
        np.array([side], np.int64),
    )


def differing_bits(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return in how many bits the rows of two arrays (P, 2) differ: (P,) int64."""
    apart = np.ascontiguousarray(a ^ b).view(np.uint8)
    bits: npt.NDArray[np.int64] = np.unpackbits(apart, axis=1).sum(1, dtype=np.int64)
    return bits


def alike(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the correlation of thumbnails (P, 256): (P,); of plain ones 1 where they are equally bright."""
    x, y = (part - part.mean(1, keepdims=True) for part in (a.astype(np.float64), b.astype(np.float64)))
    flat = (x.std(1) < _FLAT) | (y.std(1) < _FLAT)
    length = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: npt.NDArray[np.float64] = (x * y).sum(1) / np.where(flat, 1, length)
    equal = np.abs(a.astype(np.float64) - b).max(1) <= _FLAT
    return np.where(flat, np.where(equal, 1.0, -1.0), found)


def same_picture(
    a: Prints, b: Prints, row: Ints, column: Ints, cosine: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.bool_]:
    """Return which of P pairs, rows of ``a`` and of ``b``, are one picture: (P,) bool.

    Either the pixels are the same; or of the 128 bits of the perceptual hash at most 8 differ and the thumbnails
    correlate by .99, which finds other sizes, formats and brightness; or, of pictures of 64 pixels a side and more, at
    most 12 bits differ, the thumbnails correlate by .9 and the features have a ``cosine`` (P,) of .9, which finds small
    crops and a second shot of the same scene. Smaller pictures have coarse patterns in common without being the same.
    """
    side = np.minimum(a.side[row], b.side[column])
    bits = differing_bits(a.rough[row], b.rough[column])
    found: npt.NDArray[np.bool_] = (side > 0) & (a.exact[row] == b.exact[column]).all(1)
    asked = np.flatnonzero((side > 0) & (bits <= CLOSE_BITS) & ~found)  # thumbnails are larger than hashes
    for some in np.array_split(asked, len(asked) // _PAIRS + 1):
        share = alike(a.thumbs[row[some]], b.thumbs[column[some]])
        found[some] = (bits[some] <= BITS) & (share >= ALIKE)
        if cosine is not None:
            found[some] |= (side[some] >= _DETAIL) & (share >= CLOSE_ALIKE) & (cosine[some] >= COSINE)
    return found


def duplicates(neighbours: Ints, similarities: npt.NDArray[np.float32], prints: Prints | None) -> Ints:
    """Return for each of N images the first one that it repeats, -1: none, or it is the first itself: (N,) int64.

    Looked at are the pairs with the same pixels, and of every image the 20 with the nearest hashes and its
    ``neighbours`` (N, k) by features, whose cosines are ``similarities``; see :func:`same_picture`. Without ``prints``,
    of vectors that have no pictures, two are the same where the vectors are.
    """
    N, k = neighbours.shape
    row, other, cosine = np.repeat(np.arange(N), k), neighbours.reshape(-1), similarities.reshape(-1)
    near = cosine >= (SAME if prints is None else COSINE)
    row, other, cosine = row[near], other[near], cosine[near]
    if prints is not None:
        same = same_picture(prints, prints, row, other, cosine)
        row, other = row[same], other[same]
        for a, b in (_equal(prints), nearest_prints(prints, prints)):
            same = same_picture(prints, prints, a, b)
            row, other = np.concatenate([row, a[same]]), np.concatenate([other, b[same]])
    groups = connected_components(coo_matrix((np.ones(len(row), np.int8), (row, other)), shape=(N, N)))[1]
    first = np.full(N, N)
    np.minimum.at(first, groups, np.arange(N))
    found = first[groups]
    return np.where(found < np.arange(N), found, -1).astype(np.int64)


def _equal(prints: Prints) -> tuple[Ints, Ints]:
    """Return pairs of pictures with the same pixels that link all of them."""
    order = np.lexsort(prints.exact.T).astype(np.int64)
    equal = np.flatnonzero((prints.exact[order[1:]] == prints.exact[order[:-1]]).all(1))
    return order[equal], order[equal + 1]


def nearest_prints(prints: Prints, among: Prints) -> tuple[Ints, Ints]:
    """Return the pairs, a row of ``prints`` and one ``among`` those, whose hashes are near: at most 20 of each row."""
    if not len(prints) or not len(among):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    index = load_faiss().IndexBinaryFlat(128)
    index.add(np.ascontiguousarray(among.rough).view(np.uint8))
    apart, found = index.search(np.ascontiguousarray(prints.rough).view(np.uint8), min(_FOUND, len(among)))
    row, column = np.nonzero((found >= 0) & (apart <= BITS))
    return row.astype(np.int64), found[row, column].astype(np.int64)
