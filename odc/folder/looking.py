"""What can be known of a folder of pictures, and of this machine, before anything is computed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odc.data.datasets import ImageDataset
from odc.errors import InputError
from odc.files import open_regular
from odc.processes import cores

_LOOKED_AT = 24  # pictures that are decoded, evenly spaced
SMALL = 64  # pixels a side up to which pictures are icons and thumbnails, not photographs


@dataclass(frozen=True)
class Look:
    """What a folder holds, and what this machine is."""

    images: int  # N, that can be read
    sides: tuple[int, int, int]  # shortest, median and longest of the shorter sides of some pictures, in pixels
    grey: bool  # all pictures that were looked at
    skipped: int  # files that are no pictures, or cannot be read
    duplicates: int  # pictures whose file is, byte by byte, that of an earlier one
    load_seconds: float  # to decode a picture, on one core
    cores: int  # that this process may use
    gpu: str = ""  # its name, where there is one

    @property
    def photographs(self) -> bool:
        """Whether half of the pictures are larger than icons and thumbnails."""
        return self.sides[1] > SMALL

    def __str__(self) -> str:
        low, typical, high = self.sides
        size = (
            f"{typical} pixels on the shorter side" if low == high else f"{low} to {high} pixels, most about {typical}"
        )
        told = f"{self.images:,} picture{'s' * (self.images > 1)}, {'grey' if self.grey else 'colour'}, {size}"
        if self.skipped:
            told += f"; {self.skipped:,} other files left out"
        if self.duplicates:
            told += f"; {self.duplicates:,} exact {'duplicate' if self.duplicates == 1 else 'duplicates'}"
        machine = f"GPU {self.gpu}" if self.gpu else f"no GPU, {self.cores} core{'s' * (self.cores > 1)}"
        return f"{told}; {machine}"


def look(dataset: ImageDataset, root: str | Path) -> Look:
    """Look at a data set of files below ``root``: at all sizes of files, and into some pictures.

    Raises:
        InputError: no picture of those looked at can be decoded.
    """
    shown, seconds = _some(dataset)
    sides = sorted(min(image.shape[1:]) for image in shown)
    return Look(
        images=len(dataset),
        sides=(sides[0], int(statistics.median(sides)), sides[-1]),
        grey=all(bool((image == image[:1]).all()) for image in shown),
        skipped=len(dataset.skipped),
        duplicates=repeated(root, dataset.paths),
        load_seconds=seconds / len(shown),
        cores=cores(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )


def _some(dataset: ImageDataset) -> tuple[list[Tensor], float]:
    """Return some pictures, and the seconds that it took to decode them; damaged ones are left out."""
    N, shown, failed, seconds = len(dataset), list[Tensor](), None, 0.0
    count = min(N, _LOOKED_AT)
    for i in (round(n * (N - 1) / max(1, count - 1)) for n in range(count)):
        began = time.perf_counter()
        try:
            shown.append(dataset.image(i))
        except InputError as error:
            failed = error
            continue
        seconds += time.perf_counter() - began
    if not shown:
        raise failed or InputError("there is no picture to look at")
    return shown, seconds


def repeated(root: str | Path, paths: Sequence[str]) -> int:
    """Return how many files have the same bytes as one before them; only files of one size are read."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        with contextlib.suppress(OSError):
            sizes[os.path.getsize(os.path.join(root, path))].append(path)
    found = 0
    for same in sizes.values():
        digests = set[bytes]()
        for path in same if len(same) > 1 else ():
            digest = hashlib.sha256()
            with contextlib.suppress(OSError), open_regular(os.path.join(root, path)) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
                found += digest.digest() in digests
                digests.add(digest.digest())
    return found
