"""A data set whose samples are vectors: features that a network, of this package or another, has computed before.

A vector of D numbers is given as an image float32 (D, 1, 1), which no transform changes (its views are empty lists) and
the backbone ``Vectors`` gives back. So every head trains on features from anywhere as on those of a frozen backbone.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odc.data.datasets import ImageDataset, build_dataset
from odc.data.feature_files import Space, digest_of, read_space
from odc.errors import DamagedError, InputError
from odc.registry import DATASETS

_ROWS = 16_384  # looked at or converted at once


@DATASETS.register_module()
class Features(ImageDataset):
    """Vectors of images, from one or several files.

    Args:
        files: of each space one: its path, or ``dict(file=..., ...)`` with options, see
            :mod:`odc.data.feature_files`. Several are put side by side, in this order, by the names of their images.
        pictures: config of the data set of these images: ids, targets and classes are its, and results show its
            pictures. ``None``: names alone, no targets and no pictures.

    The fingerprint is that of the images, so that labels and features go from one to the other; a training is bound to
    the vectors, too (:attr:`identity`).

    Raises InputError where a file is missing, damaged, or of other images than the first one or the pictures, or a
    vector is not finite.
    """

    def __init__(self, files: list[str | dict[str, Any]], pictures: dict[str, Any] | None = None) -> None:
        if not files:
            raise InputError("Features needs at least one file: data.dataset.files=[FILE]")
        spaces = [read_space(entry) for entry in files]
        self._pictures = None if pictures is None else build_dataset(pictures)
        if self._pictures is not None and self._pictures.spaces:
            raise InputError("Features.pictures must be a data set of images, not of vectors")
        first = spaces[0]
        if self._pictures is None:
            self.paths = sorted(first.paths)
        else:
            shown = self._pictures
            self.paths, self.targets, self.classes = shown.paths, shown.targets, shown.classes
            self.skipped = shown.skipped
        for space in spaces:
            self._check_images(space, first)
        self._parts = [_ordered(space, self.paths) for space in spaces]
        self.spaces = tuple(part.shape[1] for part in self._parts)
        digest = hashlib.sha256()
        for space, part in zip(spaces, self._parts, strict=True):
            _check_finite(space, part, self.paths)
            digest.update((found := digest_of(part)).encode())
            if part is space.rows and space.sha256 not in (None, found):
                raise DamagedError(f"'{space.file}' is damaged: its vectors are not those written: extract them anew")
        self._vectors = digest.hexdigest()[:16]
        told = " + ".join(f"{space.file} ({width:,})" for space, width in zip(spaces, self.spaces, strict=True))
        self.origin = f"as vectors from {told}"
        if self._pictures is not None:
            self.fingerprint = self._pictures.fingerprint
            self.origin = f"{self._pictures.origin}, {self.origin}"
        elif first.fingerprint is not None:
            self.fingerprint = first.fingerprint
        else:
            digest.update("\0".join(self.paths).encode("utf-8", "surrogateescape"))
            self.fingerprint = digest.hexdigest()[:16]
        for space in spaces:
            self.note_lost(space.lost_of(self.paths))
        self.meta = {space.file: dict(space.meta) for space in spaces}

    def _check_images(self, space: Space, first: Space) -> None:
        """Check that a file is of the images of the pictures, or else of the first file."""
        other, fingerprint = f"'{first.file}'", first.fingerprint
        if self._pictures is not None:
            other, fingerprint = f"the pictures {self._pictures.origin}", self._pictures.fingerprint
        if None not in (space.fingerprint, fingerprint) and space.fingerprint != fingerprint:
            raise InputError(
                f"'{space.file}' is of {len(space.paths):,} images with fingerprint {space.fingerprint}, but {other}: "
                f"{len(self.paths):,} images with fingerprint {fingerprint}: give features of the same images"
            )
        have, want = set(space.paths), set(self.paths)
        if have == want:
            return
        missing, extra = sorted(want - have), sorted(have - want)
        if missing:
            what = f"lacks {len(missing):,} of them, '{missing[0]}' first"
        else:
            what = f"has {len(extra):,} others, '{extra[0]}' first"
        raise InputError(
            f"'{space.file}' has vectors of {len(have):,} images, {other} {len(want):,}: it {what}; give features of "
            "the same images under the same names"
        )

    @property
    def identity(self) -> str:
        """The fingerprint of the images, and of the vectors."""
        return f"{self.fingerprint}, vectors {self._vectors}"

    @property
    def pictures(self) -> ImageDataset | None:
        """The data set of the images, where it is known."""
        return self._pictures

    def image(self, i: int) -> Tensor:
        """Return vector ``i``, float32 (D, 1, 1)."""
        row = np.concatenate([part[i].astype(np.float32) for part in self._parts])
        return torch.from_numpy(row)[:, None, None]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(D, 1, 1), D the sum of the widths."""
        return sum(self.spaces), 1, 1

    def images(self) -> Tensor:
        """Return all vectors, float32 (N, D, 1, 1), not to be changed; in memory, or mapped where the file allows."""
        part = self._parts[0]
        if len(self._parts) > 1 or part.dtype != np.float32:
            part = np.empty((len(self), sum(self.spaces)), np.float32)
            for start in range(0, len(self), _ROWS):
                rows = slice(start, start + _ROWS)
                np.concatenate([p[rows].astype(np.float32) for p in self._parts], axis=1, out=part[rows])
        return torch.from_numpy(part)[:, :, None, None]


def _ordered(space: Space, paths: list[str]) -> npt.NDArray[Any]:
    """Return the vectors of a space in the order of ``paths``; those that are in it already are left where they are."""
    rows: npt.NDArray[Any] = space.rows
    if rows.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
            rows = rows.astype(np.float32)
    if list(space.paths) == paths:
        return rows
    place = {path: i for i, path in enumerate(space.paths)}
    ordered: npt.NDArray[Any] = rows[np.array([place[path] for path in paths])]
    return ordered


def _check_finite(space: Space, part: npt.NDArray[Any], paths: list[str]) -> None:
    bad, first = 0, ""
    for start in range(0, len(part), _ROWS):
        wrong = np.flatnonzero(~np.isfinite(part[start : start + _ROWS]).all(1))
        first = first or (paths[start + int(wrong[0])] if len(wrong) else "")
        bad += len(wrong)
    if bad:
        raise InputError(
            f"'{space.file}': {bad:,} of {len(part):,} vectors are not finite, the first is that of '{first}': extract "
            "them anew"
        )
