"""Images with stable ids: where they are, how they decode, and labels that only evaluation may read.

A data set gives raw images, ``uint8 (C, H, W)``. Resizing, scaling and augmentation belong to the views
(:mod:`odc.data.transforms`), so that one data set serves every method.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from odc.errors import InputError, nearest, one_line
from odc.registry import DATASETS, resolve
from odc.structures import UNLABELLED, make_generator

Targets = npt.NDArray[np.int64]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ImageDataset(ABC):
    """Images by sample id: the position in ``paths``, 0..N-1.

    Attributes:
        paths: N unique names in ascending order; the same on every machine that holds the same images.
        fingerprint: 16 hex digits of a SHA-256 that changes when the set of images changes, and not when labels do.
        origin: where the images are from, to follow "N images" in :meth:`describe`.
        targets: (N,) int64 true classes, -1 where unknown, or ``None``: for evaluation only, no view returns them.
        classes: names of the classes, or ``None`` without ``targets``.
        skipped: ``{path: reason}`` of what was found beside the images and is none of them.
        strict: an image that cannot be decoded is an error also in training.
        spaces: widths of the vectors that the samples consist of, where they are vectors and no images.
    """

    paths: list[str]
    fingerprint: str
    origin: str
    targets: Targets | None = None
    classes: tuple[str, ...] | None = None
    skipped: Mapping[str, str] = {}
    strict: bool = False
    spaces: tuple[int, ...] = ()
    _told_lost = 0

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Return sample ``i`` decoded, uint8 (C, H, W), for the caller to change; raises InputError naming its file."""

    def preview(self, i: int, side: int) -> Tensor:
        """Return sample ``i``, uint8 (C, H, W), where a quicker way to it leaves at least ``side`` pixels a side.

        For looking at, not for training: by default :meth:`image`.
        """
        return self.image(i)

    @cached_property
    def lost(self) -> dict[int, str]:
        """``{id: reason}`` of the images that another had to stand in for, see :meth:`present`."""
        return {}

    def present(self, i: int) -> Tensor:
        """Return image ``i`` or, where it cannot be decoded, the next one that can, and note that in :attr:`lost`.

        A file that vanishes, or damage that only decoding shows, must not end hours of training. What stands in is a
        function of ``i`` and of the files alone, so it is the same in every epoch, in every worker and after a resume;
        it is an image of the same data set, because a blank one would pull statistics and clusters towards it.

        Raises InputError where the data set is ``strict``, or more than a tenth and more than ten images are lost.
        """
        for k in range(len(self)):
            j = (i + k) % len(self)
            try:
                return self.image(j)
            except InputError as error:
                self.lost.setdefault(j, str(error))
                if self.strict:
                    raise
                if len(self.lost) > max(10, len(self) // 10):
                    raise InputError(
                        f"{len(self.lost):,} of {len(self):,} images {self.origin} cannot be decoded any more: are the "
                        f"files still there? The first error: {error}"
                    ) from error
        raise InputError(f"none of the {len(self):,} images {self.origin} can be decoded any more: put the files back")

    def note_lost(self, lost: Mapping[int, str]) -> None:
        """Add what :meth:`present` noted in another process to :attr:`lost`; say what was not said yet."""
        self.lost.update(lost)
        for i, reason in itertools.islice(self.lost.items(), self._told_lost, None):
            self._told_lost += 1
            if self._told_lost <= 5:
                print_log(f"{reason}: another image stands in for {self.paths[i]}", "current", level=logging.WARNING)

    @property
    def identity(self) -> str:
        """What binds a training to its data, and its caches: by default the fingerprint."""
        return self.fingerprint

    @property
    def pictures(self) -> ImageDataset | None:
        """The data set, of the same ids, whose images people look at: by default this one; ``None``: there is none."""
        return self

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) that all images have, or ``None`` where they differ or it is not known."""
        return None

    @property
    def transforms(self) -> list[dict[str, Any]]:
        """What was done to the :attr:`pictures` before they are given here, as a view has it: by default nothing."""
        return []

    def images(self) -> Tensor:
        """Return all images as :meth:`present` does, uint8 (N, C, H, W), not to be changed; refuses several shapes."""
        out = torch.empty(0, dtype=torch.uint8)
        for i, image in enumerate(in_threads(self.present, range(len(self)), "decoded")):
            if i == 0:
                out = torch.empty(len(self), *image.shape, dtype=image.dtype)
            if image.shape != out.shape[1:]:
                raise InputError(
                    f"{self.paths[i]} has the shape {tuple(image.shape)} but {self.paths[0]} has "
                    f"{tuple(out.shape[1:])}: set data.batched=False"
                )
            out[i] = image
        self.note_lost({})
        return out

    def describe(self) -> str:
        """Return one line for the log: how many images, from where, which labels, and the fingerprint."""
        labels = "no labels"
        if self.targets is not None and self.classes is not None:
            known = int((self.targets != UNLABELLED).sum())
            part = "" if known == len(self) else f" for {known:,} of the images"
            labels = f"labels: {len(self.classes):,} classes{part}, for evaluation only"
        return f"{len(self):,} images {self.origin} ({labels}), fingerprint {self.fingerprint}"


def build_dataset(config: Mapping[str, Any]) -> ImageDataset:
    """Build a data set from its config; raises InputError as :func:`odc.registry.build`, or for an unfinished class."""
    kind, arguments = resolve(DATASETS, config)
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if not missing:
        dataset: ImageDataset = kind(**arguments)
        public = (name for name in dir(ImageDataset) if not name.startswith("_"))
        needed = dict.fromkeys(("paths", "fingerprint", "origin", "image", *public))
        missing = [name for name in needed if name not in dir(dataset)]
    if missing:
        others = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"data set '{kind.__name__}' does not have {', '.join(missing[:3])}{others}: inherit from "
            "odc.data.ArrayDataset (images in memory) or odc.data.ImageDataset, and define what is missing"
        )
    return dataset


class ArrayDataset(ImageDataset):
    """Images that are in memory already.

    Args:
        images: (N, C, H, W) uint8.
        paths, targets, classes, origin: the attributes of :class:`ImageDataset`.

    Raises ValueError where shapes or dtypes do not fit, or ``paths`` are not unique and ascending.
    """

    def __init__(
        self,
        images: Tensor,
        paths: Sequence[str],
        targets: Targets | None = None,
        classes: Sequence[str] | None = None,
        origin: str = "in memory",
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(paths):
            raise ValueError(
                f"{len(paths)} paths need images uint8 (N, C, H, W); got {images.dtype} {tuple(images.shape)}"
            )
        if any(a >= b for a, b in itertools.pairwise(paths)):
            raise ValueError("paths must be unique and in ascending order")
        if (targets is None) != (classes is None) or (targets is not None and targets.shape != (len(paths),)):
            raise ValueError(f"give both or neither of targets ({len(paths)},) and classes")
        self.paths, self.targets, self.origin = list(paths), targets, origin
        self.classes = None if classes is None else tuple(classes)
        self._images = images.contiguous()

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # an attribute, though worked out when it is asked for
        """16 hex digits of the SHA-256 of the shape and the pixels."""
        digest = hashlib.sha256(repr(tuple(self._images.shape)).encode())
        digest.update(self._images.numpy().data)
        return digest.hexdigest()[:16]

    def image(self, i: int) -> Tensor:
        """Return a copy of image ``i``, uint8 (C, H, W)."""
        return self._images[i].clone()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of every image."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def images(self) -> Tensor:
        """Return the images themselves, uint8 (N, C, H, W); not to be changed."""
        return self._images


@DATASETS.register_module()
class Digits(ArrayDataset):
    """Scikit-learn's 1,797 handwritten digits, uint8 (1, size, size): small enough to try any method in seconds.

    ``size`` is from 8, as they are, to 512, where they take 450 MiB; enlarged once, here, instead of in every view.
    """

    def __init__(self, size: int = 8) -> None:
        from sklearn.datasets import load_digits

        if not 8 <= size <= 512:
            raise InputError(f"the digits have 8x8 pixels: size must be from 8 to 512, not {size}")
        data = load_digits()
        images = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
        super().__init__(
            resize(images, [size, size], antialias=True) if size > 8 else images,
            [f"digits/{i:04d}" for i in range(len(data.images))],
            data.target.astype(np.int64),
            [str(name) for name in data.target_names],
            "of scikit-learn's digits",
        )


@DATASETS.register_module()
class LongTail(ImageDataset):
    """A long-tailed part of a labelled data set: class c = 0, 1, ... keeps round(n_c · ratio^c) images, at least one.

    Which images these are takes the true labels: this is for benchmarks, where non-curated data are to be imitated.

    Args:
        dataset: config of the whole data set; its targets must all be known.
        ratio: of a class to the one before, in (0, 1].
        seed: draws the images.
    """

    def __init__(self, dataset: dict[str, Any], ratio: float, seed: int = 0) -> None:
        whole = build_dataset(dataset)
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"LongTail's ratio must be in (0, 1], not {ratio}")
        if whole.spaces:
            raise InputError("LongTail takes images, not vectors: extract the features of LongTail's images")
        if whole.targets is None or bool((whole.targets < 0).any()):
            raise InputError(
                f"LongTail needs the class of every image, but not all {len(whole):,} {whole.origin} have one"
            )
        kept = []
        for c in np.unique(whole.targets):
            ids = np.flatnonzero(whole.targets == c)
            order = torch.randperm(len(ids), generator=make_generator(seed, "LongTail", int(c))).numpy()
            kept.append(ids[order[: max(1, round(len(ids) * ratio ** int(c)))]])
        self._whole = whole
        self._ids: Targets = np.sort(np.concatenate(kept))
        self.origin = f"{whole.origin}, long-tailed by {ratio:g}"
        self.paths = [whole.paths[i] for i in self._ids]
        self.targets = whole.targets[self._ids]
        self.classes, self.skipped, self.strict = whole.classes, whole.skipped, whole.strict

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """16 hex digits of the SHA-256 of the whole data set's and the ids."""
        return hashlib.sha256(self._whole.fingerprint.encode() + self._ids.tobytes()).hexdigest()[:16]

    def image(self, i: int) -> Tensor:
        """Return image ``i`` of the part, uint8 (C, H, W)."""
        return self._whole.image(int(self._ids[i]))

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape of the whole data set's images."""
        return self._whole.image_shape


_TORCHVISION = ("CIFAR10", "CIFAR100", "CIFAR100-20", "STL10", "MNIST", "FashionMNIST")


@DATASETS.register_module()
class TorchvisionDataset(ArrayDataset):
    """CIFAR-10, CIFAR-100 (100 classes or its 20 super-classes), STL-10, MNIST or Fashion-MNIST.

    Args:
        name: ``CIFAR10``, ``CIFAR100``, ``CIFAR100-20``, ``STL10``, ``MNIST`` or ``FashionMNIST``.
        root: folder that holds, or shall hold, the files.
        split: ``train``, ``test``, for STL-10 also ``unlabeled``; several joined by ``+``, as ``train+test``.
        download: fetch the files when they are missing; else that, or damage, is an :class:`InputError`.
    """

    def __init__(self, name: str, root: str, split: str = "train", download: bool = False) -> None:
        if name not in _TORCHVISION:
            raise InputError(f"no data set '{name}'{nearest(name, _TORCHVISION)}")
        known = ("train", "test", "unlabeled") if name == "STL10" else ("train", "test")
        splits = sorted(set(split.split("+")))  # ascending paths
        for part in splits:
            if part not in known:
                raise InputError(f"{name} has no split '{part}'{nearest(part, known)}")
        images, labels, (classes, *_) = zip(
            *(_torchvision_split(name, root, part, download) for part in splits), strict=True
        )
        targets = np.concatenate(labels)
        labelled = bool((targets != UNLABELLED).any())
        super().__init__(
            torch.cat(images),
            [f"{key}/{i:06d}" for key, part in zip(splits, images, strict=True) for i in range(len(part))],
            targets if labelled else None,
            classes if labelled else None,
            f"of {name} ({'+'.join(splits)}) under {root}",
        )


def _torchvision_split(name: str, root: str, split: str, download: bool) -> tuple[Tensor, Targets, list[str]]:
    """Return one split: images uint8 (N, C, H, W), targets int64 (N,) with -1 unknown, names of the classes."""
    from torchvision import datasets

    kind = getattr(datasets, name.removesuffix("-20"))
    which: dict[str, Any] = {"split": split} if name == "STL10" else {"train": split == "train"}
    try:
        source = kind(root, download=download, **which)
    except Exception as error:  # its readers check little of what they read
        raise InputError(
            f"{name} is missing or incomplete under {os.path.abspath(root)} ({one_line(error)}); "
            "put its files there, or set download=True"
        ) from error
    images = torch.as_tensor(source.data)
    if name.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2)
    elif images.ndim == 3:
        images = images.unsqueeze(1)
    targets = np.asarray(source.labels if name == "STL10" else source.targets, dtype=np.int64)
    classes = list(source.classes)
    if name == "CIFAR100-20":
        # torchvision reads the 100 fine labels only; the files, whose checksums it has verified, hold both
        files = (Path(root, source.base_folder, name) for name in (split, source.meta["filename"]))
        labels, meta = (pickle.loads(file.read_bytes(), encoding="latin1") for file in files)
        targets, classes = np.asarray(labels["coarse_labels"], dtype=np.int64), list(meta["coarse_label_names"])
    return images, targets, classes


def in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item], done_word: str) -> Iterator[_Result]:
    """Yield ``work`` of each of so many files, in order, with a line in the log now and then."""
    size = min(256, 32 + len(items) // 8)
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    start = last = time.monotonic()
    with ThreadPoolExecutor(max_workers=8) as pool:  # threads hide the latency of the disk
        for done, results in enumerate(pool.map(lambda part: [work(item) for item in part], parts), start=1):
            yield from results
            now = time.monotonic()
            if now - last > 5 and done < len(parts):
                last = now
                left = (now - start) / done * (len(parts) - done)
                print_log(f"{done_word} {done * size:,} of {len(items):,} files, {left:.0f} s left", "current")
