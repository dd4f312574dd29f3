"""New images through a portable model, a batch at a time: the rows of a table, in constant memory.

Besides the names of the images and the prints of the last :data:`WINDOW` of them nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from odc.data.datasets import ImageDataset
from odc.data.feature_files import INDEX
from odc.data.features import Features
from odc.data.image_files import list_images
from odc.data.table import read_names, read_table
from odc.errors import InputError, one_line
from odc.portable.model import BATCH, PortableModel, Predictions
from odc.results.clustering import DIGITS
from odc.results.duplicates import Prints, nearest_prints, print_of, same_picture

WINDOW = 20_000  # earlier new images that a later one may repeat
_VECTORS = 4096  # rows at a time
_FEATURES = (".npz", ".npy", ".parquet")
_LISTS = (".txt", ".csv")

Row = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class New:
    """What is to be assigned: images that are files, or vectors."""

    root: str  # folder that the paths are relative to
    paths: Sequence[str]
    vectors: ImageDataset | None = None  # of the same paths; None: the files are images
    left_out: dict[str, str] = field(default_factory=dict)  # {path: why it is no image}


def find_new(new: str, model: PortableModel) -> New:
    """Return what a text names: a folder, a list of files (.txt, .csv), an image, or a file of features.

    Raises:
        InputError: there is no such thing, it holds nothing, or it is not what the model takes.
    """
    path = Path(new)
    if path.suffix in _FEATURES or (path / INDEX).is_file():
        dataset = Features([new])
        model.scores(torch.zeros(1, sum(dataset.spaces)))  # for its refusal of another width
        return New("", dataset.paths, dataset)
    if not path.exists():
        raise InputError(f"'{new}' does not exist (looked at {path.absolute()}): give a folder, a list or an image")
    model.check_pictures()
    if path.is_dir():
        paths, left_out = list_images(new)
        if not paths:
            raise InputError(f"no image under {new}: {len(left_out):,} files there are none")
        return New(new, paths, left_out=left_out)
    if path.suffix in _LISTS:
        return New(str(path.parent), _listed(path))
    return New(str(path.parent), [path.name])


def _listed(path: Path) -> list[str]:
    if path.suffix == ".csv":
        paths = [row["path"] for row in read_table(path, "path")]
    else:
        try:
            paths = [line.partition("\t")[0].strip() for line in read_names(path).splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the list '{path}' ({one_line(error)})") from error
    if not paths:
        raise InputError(f"'{path}' names no image")
    return list(dict.fromkeys(paths))


class Recent:
    """The prints of the last new images, and their names."""

    def __init__(self) -> None:
        self.prints, self.paths = Prints.none(), list[str]()

    def add(self, prints: Prints, paths: Sequence[str]) -> None:
        """Add some; the oldest go."""
        self.prints = Prints.join([self.prints, prints])[slice(-WINDOW, None)]
        self.paths = [*self.paths, *paths][-WINDOW:]

    def repeated(self, prints: Prints, paths: Sequence[str]) -> list[str]:
        """Return for each of some new images the earlier one that it repeats, or ``""``; then add them."""
        before = len(self.paths)
        both, names = Prints.join([self.prints, prints]), [*self.paths, *paths]
        near, far = nearest_prints(prints, both)
        keep = far < near + before
        near, far = near[keep], far[keep]
        same = same_picture(prints, both, near, far)
        first = np.full(len(prints), len(names))
        np.minimum.at(first, near[same], far[same])
        exact: dict[bytes, int] = {}
        for i, key in enumerate(both.exact):
            found = exact.setdefault(key.tobytes(), i) if both.side[i] else i
            if i >= before and found < i:
                first[i - before] = min(int(first[i - before]), found)
        self.add(prints, paths)
        return [names[i] if i < len(names) else "" for i in first.tolist()]


class Assigner:
    """Assigns images to the clusters of a model; :attr:`unread` are those that could not be decoded, and why."""

    def __init__(self, model: PortableModel, recent: Recent | None = None) -> None:
        self.model, self.recent = model, recent or Recent()
        self.unread: dict[str, str] = {}
        self.columns = model.columns
        self.last = Prints.none()  # of the last batch
        self._pool = ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def images(self, root: str, paths: Sequence[str]) -> list[Row]:
        """Return the rows of some image files, less those that cannot be decoded."""

        def read(path: str) -> Any:
            try:
                image = self.model.decode(os.path.join(root, path))
                return image, print_of(image)
            except InputError as error:
                return str(error)

        found = list(zip(paths, self._pool.map(read, paths), strict=True))
        for path in paths:
            self.unread.pop(path, None)
        self.unread |= {path: got for path, got in found if isinstance(got, str)}
        read_ = [(path, *got) for path, got in found if not isinstance(got, str)]
        self.last = Prints.join([one for _, _, one in read_])
        if not read_:
            return []
        names = [path for path, _, _ in read_]
        said = self.model.judge(self.model.features([image for _, image, _ in read_]), self.last)
        return self._rows(names, said, self.recent.repeated(self.last, names))

    def vectors(self, dataset: ImageDataset, rows: slice) -> list[Row]:
        """Return the rows of some vectors of a data set."""
        x = dataset.images()[rows].flatten(1).float()
        return self._rows(dataset.paths[rows], self.model.judge(x), [""] * len(x))

    def batches(self, new: New, done: int = 0) -> Iterator[tuple[int, list[Row]]]:
        """Yield how many of the images are done, and the rows of the last ones, for all behind the first ``done``."""
        size, N = BATCH if new.vectors is None else _VECTORS, len(new.paths)
        for start in range(done, N, size):
            end = min(N, start + size)
            if new.vectors is None:
                yield end, self.images(new.root, new.paths[start:end])
            else:
                yield end, self.vectors(new.vectors, slice(start, end))

    def _rows(self, paths: Sequence[str], said: Predictions, earlier: Sequence[str]) -> list[Row]:
        reference = self.model.reference.paths
        rows = []
        for i, path in enumerate(paths):
            old = reference[said.repeats[i]] if said.repeats[i] >= 0 else ""
            told: dict[str, object] = {
                "path": path,
                "cluster": int(said.cluster[i]),
                "name": self.model.names.get(int(said.cluster[i]), ""),
                **{name: f"{getattr(said, name)[i]:.{DIGITS}f}" for name in ("confidence", "consistency", "distance")},
                "outlier": int(said.outlier[i]),
                "duplicate_of": (old if old != path else "") or earlier[i],
            }
            rows.append(tuple(told[name] for name in self.columns))
        return rows


def identity(model: PortableModel, new: str) -> str:
    """Return a short name of a model and what it is applied to, by which an interrupted call finds its work again."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(new)))
    for array in (model.quantiles, model.prototypes, model.reference.limits):
        digest.update(np.ascontiguousarray(array).data)
    digest.update(repr(sorted(model.names.items())).encode())
    return digest.hexdigest()[:8]
