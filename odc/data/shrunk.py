"""Pictures of any size as small squares: decoded once, kept in memory, and on the disk for the next training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from odc.data.datasets import ImageDataset, build_dataset, in_threads
from odc.errors import DamagedError, InputError
from odc.files import written_whole
from odc.reading import memory, read_arrays, reading
from odc.registry import DATASETS

_CACHED = {"pixels": ("u", 4), "lost": ("iu", 1), "of": ("u", 1)}
_LARGEST = 256


@DATASETS.register_module()
class Shrunk(ImageDataset):
    """The images of another data set as squares: the shorter side becomes ``size`` pixels, the rest of the longer goes.

    A training from scratch looks at every picture many times, and decoding a photograph takes ten times as long as a
    small network's step on it; as squares in memory they are augmented in batches, too (see ``data.batched``). Ids,
    names, classes and fingerprint are those of the other data set, whose pictures people look at.

    Args:
        dataset: config of the data set of pictures.
        size: pixels a side, 8 to 256.
        cache: file to keep the squares in, made where it is not there or is of other pictures; ``None``: none.

    Raises InputError for a size out of range, or where the other data set cannot be read.
    """

    def __init__(self, dataset: dict[str, Any], size: int, cache: str | None = None) -> None:
        if not 8 <= size <= _LARGEST:
            raise InputError(f"Shrunk's size must be from 8 to {_LARGEST} pixels, not {size}")
        self._whole = build_dataset(dataset)
        if self._whole.spaces:
            raise InputError("Shrunk takes images, not vectors")
        self.size, self._cache, self._squares = size, None if cache is None else Path(cache), None
        whole = self._whole
        self.paths, self.fingerprint, self.skipped = whole.paths, whole.fingerprint, whole.skipped
        self.targets, self.classes, self.strict = whole.targets, whole.classes, whole.strict
        self.origin = f"{whole.origin}, at {size}×{size} pixels"
        self._shape = (int(whole.image(0).shape[0]), size, size)
        self.watch: Callable[[int, int], None] | None = None  # is told how many of how many pictures are decoded

    _squares: Tensor | None

    @property
    def transforms(self) -> list[dict[str, Any]]:
        """What makes a square of a picture, as a view has it."""
        return [{"type": "Resize", "size": self.size}, {"type": "CenterCrop", "size": self.size}]

    @property
    def identity(self) -> str:
        """The fingerprint of the pictures, and the size."""
        return f"{self.fingerprint}-{self.size}"

    @property
    def pictures(self) -> ImageDataset | None:
        """The data set of whole pictures."""
        return self._whole.pictures

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, size, size)."""
        return self._shape

    def image(self, i: int) -> Tensor:
        """Return a copy of square ``i``, uint8 (C, size, size)."""
        return self.images()[i].clone()

    def images(self) -> Tensor:
        """Return all squares, uint8 (N, C, size, size), not to be changed; they are decoded at the first call."""
        if self._squares is None:
            self._squares = self._read() if self._cache is not None and self._cache.is_file() else None
        if self._squares is None:
            self._squares = self._decode()
            if self._cache is not None:
                with written_whole(self._cache) as file:
                    of = np.frombuffer(self.identity.encode(), np.uint8)
                    np.savez(file, pixels=self._squares.numpy(), lost=np.array(sorted(self.lost), np.int64), of=of)
        return self._squares

    def _decode(self) -> Tensor:
        N, whole = len(self), self._whole
        squares = torch.empty(N, *self._shape, dtype=torch.uint8)

        def square(i: int) -> Tensor:
            small: Tensor = resize(whole.present(i), [self.size], antialias=True)
            middle: Tensor = center_crop(small, [self.size, self.size])
            return middle

        for i, image in enumerate(in_threads(square, range(N), "decoded")):
            squares[i] = image
            if self.watch is not None and (i + 1) % 16 == 0:
                self.watch(i + 1, N)
        whole.note_lost({})
        self.note_lost(whole.lost)
        return squares

    def _read(self) -> Tensor | None:
        """Return the squares that were kept, ``None`` where these are others, or damaged."""
        assert self._cache is not None
        try:
            with reading(self._cache, "does not hold the squares of pictures", "they are made again"):
                arrays = read_arrays(self._cache, _CACHED, most=memory() // 2)
        except DamagedError as error:
            print_log(str(error), "current", logging.WARNING)
            return None
        same = arrays["pixels"].shape == (len(self), *self._shape) and arrays["pixels"].dtype == np.uint8
        if not same or arrays["of"].tobytes() != self.identity.encode():
            return None
        lost: Mapping[int, str] = {
            int(i): f"{self.paths[i]} could not be decoded" for i in arrays["lost"] if 0 <= i < len(self)
        }
        self.note_lost(lost)
        return torch.from_numpy(arrays["pixels"])
