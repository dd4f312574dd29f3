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
import posixpath
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from odc.data import decoding
from odc.data.decoding import MAX_PIXELS, Header
from odc.data.table import label_of, read_names, read_table
from odc.errors import InputError, nearest, printable
from odc.registry import DATASETS, build
from odc.structures import UNLABELLED, make_generator

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
_MEASURED = 1000  # images that the range of values is measured on

Targets = npt.NDArray[np.int64]
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


class ImageDataset(ABC):
    """Images by sample id: the position in ``paths``, 0..N-1.

    Attributes:
        paths: N unique names in ascending order; the same on every machine that holds the same images.
        targets: (N,) int64 true classes, -1 where unknown, or ``None``: for evaluation only, no view returns them.
        classes: names of the classes, or ``None`` without ``targets``.
        skipped: ``{path: reason}`` of what was found beside the images and is none of them.
        strict: an image that cannot be decoded is an error also in training.
    """

    paths: list[str]
    targets: Targets | None = None
    classes: tuple[str, ...] | None = None
    skipped: Mapping[str, str] = {}
    strict: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 that changes when the set of images changes, and not when labels do."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the images are from, to follow "N images" in :meth:`describe`."""

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Return sample ``i`` decoded, uint8 (C, H, W): a tensor of its own that the caller may change.

        Raises:
            InputError: the file cannot be decoded; the message names it.
        """

    @property
    def lost(self) -> dict[int, str]:
        """``{id: reason}`` of the images that another had to stand in for, see :meth:`present`."""
        lost: dict[int, str] = self.__dict__.setdefault("_lost", {})
        return lost

    def present(self, i: int) -> Tensor:
        """Return image ``i`` or, where it cannot be decoded, the next one that can, and note that in :attr:`lost`.

        A file that vanishes, or damage that only decoding shows, must not end hours of training. What stands in is a
        function of ``i`` and of the files alone, so it is the same in every epoch, in every worker and after a resume;
        it is an image of the same data set, because a blank one would pull statistics and clusters towards it.

        Raises:
            InputError: the data set is ``strict``; or more than a tenth of the images are lost (of a few, more than
                ten): the files have gone.
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
                        f"files still there? One is: {error}"
                    ) from error
        raise InputError(f"none of the {len(self):,} images {self.origin} can be decoded any more: put the files back")

    def note_lost(self, lost: Mapping[int, str]) -> None:
        """Add what :meth:`present` noted in another process to :attr:`lost`; say what was not said yet."""
        self.lost.update(lost)
        for i, reason in itertools.islice(self.lost.items(), self._told_lost, None):
            self._told_lost += 1
            if self._told_lost <= 5:
                print_log(
                    f"{reason}: another image stands in for {self.paths[i]}",
                    "current",
                    level=logging.WARNING,
                )

    _told_lost = 0

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) that all images have, or ``None`` where they differ or it is not known."""
        return None

    def images(self) -> Tensor:
        """Return all images, decoded anew, as :meth:`present` does, uint8 (N, C, H, W); not to be changed.

        Raises:
            InputError: as :meth:`present`, or two images differ in shape.
        """
        numbers = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        out = torch.empty(0, dtype=torch.uint8)
        for ids, images in zip(
            numbers, _in_threads(lambda part: [self.present(i) for i in part], numbers, 256, "decoded"), strict=True
        ):
            for i, image in zip(ids, images, strict=True):
                if i == 0:
                    out = torch.empty(len(self), *image.shape, dtype=torch.uint8)
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


class ArrayDataset(ImageDataset):
    """Images that are in memory already.

    Args:
        images: (N, C, H, W) uint8.
        paths: N unique names in ascending order.
        targets: (N,) int64 true classes, -1 where unknown, or ``None``.
        classes: names of the classes, or ``None``.
        origin: where the images are from.

    Raises:
        ValueError: shapes or dtypes do not fit, or ``paths`` are not unique and ascending.
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
        self.paths = list(paths)
        self.targets = targets
        self.classes = None if classes is None else tuple(classes)
        self._images = images.contiguous()
        self._origin = origin

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the shape and the pixels."""
        digest = hashlib.sha256(repr(tuple(self._images.shape)).encode())
        digest.update(self._images.numpy().data)
        return digest.hexdigest()[:16]

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return self._origin

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

    Args:
        size: 8 gives the images as they are; another size enlarges them once, here, instead of in every view.

    Raises:
        InputError: ``size`` is not from 8 to 512, where they take 450 MiB.
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

    Raises:
        InputError: ``ratio`` is out of range, or a target is unknown.
    """

    def __init__(self, dataset: dict[str, Any], ratio: float, seed: int = 0) -> None:
        whole: ImageDataset = build(DATASETS, dataset)
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"LongTail's ratio is in (0, 1], not {ratio}")
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
        self._ratio = ratio
        self.paths = [whole.paths[i] for i in self._ids]
        self.targets = whole.targets[self._ids]
        self.classes = whole.classes
        self.skipped, self.strict = whole.skipped, whole.strict

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the whole data set's and the ids."""
        return hashlib.sha256(self._whole.fingerprint.encode() + self._ids.tobytes()).hexdigest()[:16]

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"{self._whole.origin}, long-tailed by {self._ratio:g}"

    def image(self, i: int) -> Tensor:
        """Return image ``i`` of the part, uint8 (C, H, W)."""
        return self._whole.image(int(self._ids[i]))

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape of the whole data set's images."""
        return self._whole.image_shape


# name: (class of torchvision.datasets, splits)
_TORCHVISION = {
    "CIFAR10": ("CIFAR10", ("train", "test")),
    "CIFAR100": ("CIFAR100", ("train", "test")),
    "CIFAR100-20": ("CIFAR100", ("train", "test")),
    "STL10": ("STL10", ("train", "test", "unlabeled")),
    "MNIST": ("MNIST", ("train", "test")),
    "FashionMNIST": ("FashionMNIST", ("train", "test")),
}


@DATASETS.register_module()
class TorchvisionDataset(ArrayDataset):
    """CIFAR-10, CIFAR-100 (100 classes or its 20 super-classes), STL-10, MNIST or Fashion-MNIST.

    Args:
        name: ``CIFAR10``, ``CIFAR100``, ``CIFAR100-20``, ``STL10``, ``MNIST`` or ``FashionMNIST``.
        root: folder that holds, or shall hold, the files.
        split: ``train``, ``test``, for STL-10 also ``unlabeled``; several joined by ``+``, as ``train+test``.
        download: fetch the files when they are missing.

    Raises:
        InputError: unknown name or split, or the files are missing or damaged.
    """

    def __init__(self, name: str, root: str, split: str = "train", download: bool = False) -> None:
        if name not in _TORCHVISION:
            raise InputError(f"no data set '{name}'{nearest(name, _TORCHVISION)}")
        known = _TORCHVISION[name][1]
        splits = sorted(set(split.split("+")))  # ascending paths
        for part in splits:
            if part not in known:
                raise InputError(f"{name} has no split '{part}'{nearest(part, known)}")
        parts = [_torchvision_split(name, root, part, download) for part in splits]
        targets = np.concatenate([part[1] for part in parts])
        labelled = bool((targets != UNLABELLED).any())
        super().__init__(
            torch.cat([part[0] for part in parts]),
            [f"{key}/{i:06d}" for key, part in zip(splits, parts, strict=True) for i in range(len(part[0]))],
            targets if labelled else None,
            parts[0][2] if labelled else None,
            f"of {name} ({'+'.join(splits)}) under {root}",
        )


def _torchvision_split(name: str, root: str, split: str, download: bool) -> tuple[Tensor, Targets, list[str]]:
    """Return one split: images uint8 (N, C, H, W), targets int64 (N,) with -1 unknown, names of the classes."""
    from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION[name][0])
    which: dict[str, Any] = {"split": split} if name == "STL10" else {"train": split == "train"}
    try:
        source = kind(root, download=download, **which)
    except Exception as error:  # its readers check little of what they read
        raise InputError(
            f"{name} is missing or incomplete under {os.path.abspath(root)} ({_reason(error)}); "
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
        folder = os.path.join(root, source.base_folder)
        targets = np.asarray(_unpickle(os.path.join(folder, split))["coarse_labels"], dtype=np.int64)
        classes = list(_unpickle(os.path.join(folder, source.meta["filename"]))["coarse_label_names"])
    return images, targets, classes


def _unpickle(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        content: dict[str, Any] = pickle.load(file, encoding="latin1")
    return content


class FileDataset(ImageDataset):
    """Image files under a folder, decoded when asked for: the common part of the file-based data sets.

    Every file's header is read once at the start, and a file that does not end as its format says is decoded then: that
    finds truncated ones. EXIF orientation is applied; palette and CMYK images become RGB, transparent ones are laid on
    white. Images may differ in size.

    **More than 8 bits.** Images of 16-bit values, grey or colour, and of 32-bit integers share one scale: a range of
    values becomes 0..255, in all of them, and what is beyond it 0 or 255. Unless it is given it is measured, on all
    such images or 1,000 evenly spaced ones: 0 to 2^b - 1 for the fewest bits b that hold the largest value (4,095 for
    a 12-bit camera), from -2^c where there are negative values. So it hardly depends on which part of the images one
    takes. Float images have no such range, so they need a given one.

    **The fingerprint** is of the paths, sizes and contents of the files: of all bytes of a file of up to 16 KiB, of a
    larger one of the 1 KiB at its beginning, middle and end. It is read with the headers, from the same open file, and
    does not depend on dates, on the root or on labels. What escapes it is a change of a larger file that keeps its size
    and all three slices: a retouched spot in an uncompressed image, say. A picture that is saved again differs.

    Args:
        root: folder that ``candidates`` are relative to.
        candidates: unique relative paths.
        left_out: ``{path: reason}`` of what is no candidate; for :attr:`skipped` and one line of the log.
        unreadable: ``{path: reason}`` of folders that could not be listed, which count as unreadable files do.
        strict: an unreadable file is an error; else it is skipped with a warning.
        verify: decode every file at the start, which finds damage inside files too.
        max_samples: keep a random subset of this many readable files.
        seed: seed of that subset.
        grey: decode to one channel instead of three.
        max_pixels: an image of more pixels, height times width, counts as unreadable.
        value_range: the values that become 0 and 255 in images of more than 8 bits a channel; ``None``: measured.

    Raises:
        InputError: an option is out of range, no readable image, or with ``strict`` one that is not.
    """

    def __init__(
        self,
        root: str,
        candidates: Sequence[str],
        *,
        left_out: Mapping[str, str] | None = None,
        unreadable: Mapping[str, str] | None = None,
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = MAX_PIXELS,
        value_range: Sequence[float] | None = None,
    ) -> None:
        if max_samples is not None and max_samples < 1:
            raise InputError(f"max_samples must be at least 1, got {max_samples}")
        if max_pixels < 1:
            raise InputError(f"max_pixels must be at least 1, got {max_pixels}")
        self._root, self._grey, self._max_pixels, self.strict = root, grey, max_pixels, strict
        self.value_range = None if value_range is None else _levels(value_range)
        headers: dict[str, Header] = {}

        def check(path: str) -> None:
            headers[path] = decoding.examine(os.path.join(root, path), max_pixels, verify, self.value_range)

        names = sorted(candidates)
        wanted = len(names)
        if max_samples is not None and max_samples < wanted:
            wanted = max_samples
            order = torch.randperm(len(names), generator=make_generator(seed, "max_samples"))
            names = [names[i] for i in order.tolist()]
        kept: list[str] = []
        bad = dict(unreadable or {})
        position = 0
        while len(kept) < wanted and position < len(names):  # a second round only to make up for skipped files
            part = names[position : position + wanted - len(kept)]
            position += len(part)
            failures = _survey(part, check)
            bad.update(failures)
            kept.extend(path for path in part if path not in failures)
        self.unreadable = frozenset(bad)
        self.skipped = {**(left_out or {}), **bad}
        self.paths = sorted(kept)
        if self.skipped:
            line = _summary(self.skipped, position + len(self.skipped) - len(bad), root)
            if strict and bad:
                only = _summary(bad, position, root)
                raise InputError(f"{only}; remove them, or set strict=False to skip them")
            if not kept:
                raise InputError(f"{line}; no image is left")
            harmless = not bad and not any(decoding.PLUG_IN in why for why in self.skipped.values())
            print_log(line, logger="current", level=logging.INFO if harmless else logging.WARNING)
        different = {headers[path][:2] for path in kept}
        self._size = different.pop() if len(different) == 1 else None
        deep = [path for path in self.paths if headers[path].deep]
        if deep and self.value_range is None:
            self._measure(deep)
        elif deep and self.value_range is not None:
            low, high = self.value_range
            print_log(f"{len(deep):,} images of more than 8 bits: {low:,g} to {high:,g} becomes 0 to 255", "current")
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0" + headers[path].digest)
        self._fingerprint = digest.hexdigest()[:16]

    def _measure(self, deep: Sequence[str]) -> None:
        """Set the range of values for images of more than 8 bits, and say it."""
        numbers = sorted(set(np.linspace(0, len(deep) - 1, min(_MEASURED, len(deep))).round().astype(int).tolist()))
        parts = [[os.path.join(self._root, deep[i]) for i in numbers[k::8]] for k in range(min(8, len(numbers)))]
        found = list(_in_threads(lambda p: decoding.value_range(p, self._max_pixels), parts, len(parts[0]), "measured"))
        low, (high, _, where) = min(f[0] for f in found), max((f[1], f[0], f[2]) for f in found)
        if not where:  # none of them can be decoded, which whoever asks for one is told
            self.value_range = 0.0, 2.0**16 - 1
            return
        top, bottom = 2.0 ** max(1, int(high).bit_length()) - 1, 0.0
        if low < 0:
            bottom = -(2.0 ** int(-low - 1).bit_length())
        self.value_range = bottom, top
        of = "" if len(numbers) == len(deep) else f" of {len(numbers):,} of them"
        print_log(
            f"{len(deep):,} images of more than 8 bits: {bottom:,.0f} to {top:,.0f} becomes 0 to 255 in all of them "
            f"(the largest value{of} is {high:,.0f}, in {os.path.relpath(where, self._root)}); "
            "data.dataset.value_range=[low,high] sets another range",
            "current",
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the paths, the sizes and contents of the files; see the class for which."""
        return self._fingerprint

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"under {self._root}"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) that all files have by their headers, or ``None`` where they differ."""
        return None if self._size is None else (1 if self._grey else 3, *self._size)

    def image(self, i: int) -> Tensor:
        """Return file ``i`` decoded, uint8 (3, H, W), or (1, H, W) with ``grey``."""
        path = os.path.join(self._root, self.paths[i])
        try:
            image = decoding.decode(path, self._grey, self._max_pixels, self.value_range)
        except Exception as error:  # decoders raise whatever the damaged bytes lead them to
            raise InputError(
                f"cannot decode {path} ({_reason(error)}); remove the file, or set verify=True to decode every "
                "file once at the start and skip such files"
            ) from error
        if self._size is not None and max(self._size) <= 256 and image.shape[1:] != self._size:
            (height, width), (_, now_height, now_width) = self._size, image.shape
            raise InputError(
                f"{path} has {now_height}x{now_width} pixels now, and had {height}x{width} at the start: leave "
                "the files as they are while they are in use"
            )
        return image


def _is_training(split: str) -> bool:
    return split.lower().startswith("train")


def _levels(value_range: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high or np.isinf([low, high]).any():
        raise InputError(f"value_range must be two numbers, the lower one first, not {value_range!r}")
    return low, high


def _summary(skipped: Mapping[str, str], total: int, root: str) -> str:
    """Return one line on what was skipped: how many files for each reason, most first, with the names of some."""
    groups: dict[str, list[str]] = {}
    for path, why in sorted(skipped.items()):
        groups.setdefault(re.sub(r"\d+", "#", why), []).append(path)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    told = []
    for why, paths in largest[:8]:
        why = skipped[paths[0]] if len(paths) == 1 else why
        told.append(f"{len(paths):,} {why} ({', '.join(paths[:2])}{', ...' if len(paths) > 2 else ''})")
    if len(largest) > 8:
        told.append(f"{sum(len(paths) for _, paths in largest[8:]):,} for other reasons")
    return f"skipped {len(skipped):,} of {total:,} files under {root}: {'; '.join(told)}"


@DATASETS.register_module()
class ImageFolder(FileDataset):
    """Every image below a folder, at any depth; hidden files and folders are ignored, links are followed.

    Images are the files whose names end as the formats do that Pillow decodes (.jpg, .jfif, .avif, .tif, ...). A file
    without an ending, or with one that tells nothing (photo.1, photo.jpg_large), is an image where its first bytes are
    those of a common format. Files with other endings are left out, and counted in the log.

    When every image lies in one of two or more first-level folders, those are the classes (for evaluation only). Where
    all first-level folders are called as splits are (train, val, test, ...), the images of all are taken, and the
    classes are the folders in them. A flat folder, or images both at the top and in folders, has no labels.

    Args:
        root: the folder.
        classes: use the folders of these classes only, in this order; ``None``: everything.
        extensions: only file names that end so are images (case is ignored), whatever else is there.
        strict: see :class:`FileDataset`, as for the arguments that follow.
        verify: decode every file at the start.
        max_samples: keep a random subset of this many images, drawn without regard to classes.
        seed: seed of that subset.
        grey: decode to one channel.
        max_pixels: largest image.
        value_range: of images of more than 8 bits.

    Raises:
        InputError: the folder or one of ``classes`` is missing, there is no image, or (``strict``) an unreadable one.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str] | None = None,
        extensions: Sequence[str] | None = None,
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = MAX_PIXELS,
        value_range: Sequence[float] | None = None,
    ) -> None:
        if not os.path.isdir(root):
            raise InputError(f"image folder {root} does not exist (looked at {os.path.abspath(root)})")
        files, unreadable = _walk(root)
        images, left_out = _choose(root, files, extensions)
        if not images:
            told = f" ({_summary(left_out | unreadable, len(files), root)})" if left_out or unreadable else ""
            ends = "is one by its name or content" if extensions is None else f"ends in {', '.join(extensions)}"
            raise InputError(
                f"no image under {root}: no file {ends}{told}; check the folder"
                + ("" if extensions is None else " or extensions")
            )
        tops = {path.split("/", 1)[0] for path in images if "/" in path}
        splits = bool(tops) and all(name.lower() in _SPLITS for name in tops)
        self._level = 1 if splits else 0
        if classes is not None:
            folders = {name for path in images if (name := self._class(path)) is not None}
            for name in classes:
                if name not in folders:
                    raise InputError(f"no folder '{name}' with images in {root}{nearest(name, folders)}")
            wanted = set(classes)
            images = [path for path in images if self._class(path) in wanted]
        super().__init__(
            root,
            images,
            left_out=left_out,
            unreadable=unreadable,
            strict=strict,
            verify=verify,
            max_samples=max_samples,
            seed=seed,
            grey=grey,
            max_pixels=max_pixels,
            value_range=value_range,
        )
        # all readable images decide, not the subset: its draw must not change whether there are labels
        readable = [path for path in images if path not in self.unreadable]
        found = {name for path in readable if (name := self._class(path)) is not None}
        loose = sum("/" not in path for path in readable)
        self._folders = len(found)
        if splits:
            told = "classes are the folders in them" if len(found) > 1 else "they hold no folders of classes"
            print_log(
                f"{', '.join(sorted(tops))} under {root} are taken for splits: all their images are "
                f"used, {told}; data.dataset.root={os.path.join(root, max(tops, key=_is_training))} takes one",
                "current",
            )
        if classes is None and (loose or len(found) < 2):
            if found and loose:
                print_log(
                    f"{loose:,} images lie in {root} itself and {len(readable) - loose:,} in its folders: "
                    "the folders are not taken for classes, there are no labels",
                    logger="current",
                )
            return
        names = tuple(classes) if classes is not None else tuple(sorted(found))
        index: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        self.classes = tuple(map(printable, names))
        self.targets = np.array([index.get(self._class(path), UNLABELLED) for path in self.paths], dtype=np.int64)

    def _class(self, path: str) -> str | None:
        """Return the folder that is the class of an image, or ``None`` for one that lies in no such folder."""
        folders = path.split("/")[:-1]
        return folders[self._level] if len(folders) > self._level else None

    @property
    def origin(self) -> str:
        """Where the images are from."""
        where = f"under {self._root}"
        return f"in {self._folders:,} folders {where}" if self._folders else where


class _Listed(FileDataset):
    """The images that a file names, with the labels that it gives them.

    Args:
        file: the file.
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        pairs: path and label of every image.
        options: see :class:`FileDataset`.
    """

    def __init__(self, file: str, root: str, pairs: Sequence[tuple[str, str]], **options: Any) -> None:
        labels = _by_path(file, pairs)
        super().__init__(root or os.path.dirname(os.path.abspath(file)), list(labels), **options)
        self._file = file
        self.targets, self.classes = _encode(labels, self.paths)

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"listed in {self._file}"


@DATASETS.register_module()
class ImageList(_Listed):
    """The images that a text file names: ``path`` or ``path<TAB>label`` a line, UTF-8; empty lines are ignored.

    Bytes that are not UTF-8 are taken as they are, for files whose names have them.

    Labels are any text; an empty label or -1 means unknown. Samples are in the order of their paths, not of the lines.

    Args:
        file: the text file.
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        strict: see :class:`FileDataset`, as for the arguments that follow.
        verify: decode every file at the start.
        max_samples: keep a random subset of this many images.
        seed: seed of that subset.
        grey: decode to one channel.
        max_pixels: largest image.
        value_range: of images of more than 8 bits.

    Raises:
        InputError: the file is missing, not UTF-8 or names no image, a path occurs twice, or (``strict``) an image is
            unreadable.
    """

    def __init__(
        self,
        file: str,
        root: str = "",
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = MAX_PIXELS,
        value_range: Sequence[float] | None = None,
    ) -> None:
        pairs = []
        for line in _read_text(file).split("\n"):
            if line.strip():
                path, _, label = line.partition("\t")
                pairs.append((path.strip(), label))
        super().__init__(
            file,
            root,
            pairs,
            strict=strict,
            verify=verify,
            max_samples=max_samples,
            seed=seed,
            grey=grey,
            max_pixels=max_pixels,
            value_range=value_range,
        )


@DATASETS.register_module()
class ImageCSV(_Listed):
    """The images that a CSV file names, one a row under a header line, UTF-8: a ``clusters.csv``, say.

    Paths are taken as they stand, with spaces, and with bytes that are not UTF-8 where names have them.

    Args:
        file: the CSV file.
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        path: name of the column of paths.
        label: name of the column of labels (any text; empty or -1: unknown). The default may be missing: no labels.
        strict: see :class:`FileDataset`, as for the arguments that follow.
        verify: decode every file at the start.
        max_samples: keep a random subset of this many images.
        seed: seed of that subset.
        grey: decode to one channel.
        max_pixels: largest image.
        value_range: of images of more than 8 bits.

    Raises:
        InputError: the file or a column is missing, the file is not UTF-8 or names no image, a row is shorter or longer
            than the header, a path occurs twice, or (``strict``) an image is unreadable.
    """

    def __init__(
        self,
        file: str,
        root: str = "",
        path: str = "path",
        label: str = "label",
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = MAX_PIXELS,
        value_range: Sequence[float] | None = None,
    ) -> None:
        rows = read_table(file, path, *((label,) if label != "label" else ()), optional=("label",))
        pairs = [(row[path], row.get(label, "")) for row in rows]
        super().__init__(
            file,
            root,
            pairs,
            strict=strict,
            verify=verify,
            max_samples=max_samples,
            seed=seed,
            grey=grey,
            max_pixels=max_pixels,
            value_range=value_range,
        )


def _walk(root: str) -> tuple[list[str], dict[str, str]]:
    """Return what is below ``root`` and no folder, relative to it, with ``/``; and ``{folder: why it is unreadable}``.

    Links are followed, but not those that lead back up.
    """
    files: list[str] = []
    unreadable: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        folder = os.path.join(root, prefix)
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            if not prefix:
                raise InputError(f"cannot read folder {folder} ({_reason(error)})") from error
            unreadable[prefix] = f"an unreadable folder ({_reason(error)})"
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            if not entry.name.startswith("."):
                if _is_folder(entry):
                    waiting.append((f"{prefix}{entry.name}/", above | {here}))
                else:
                    files.append(prefix + entry.name)
    return sorted(files), unreadable


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: opening it as a file will tell what is wrong
        return False


def _choose(root: str, files: Sequence[str], extensions: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return which files are images by their names, or without a telling name by their content; and why others not."""
    known = decoding.endings() if extensions is None else tuple(ending.lower() for ending in extensions)
    images: list[str] = []
    others: dict[str, str] = {}
    unclear: list[str] = []
    for path in files:
        if path.lower().endswith(known):
            images.append(path)
        elif ending := decoding.plain_ending(path):
            others[path] = decoding.left_out(ending)
        elif extensions is not None:
            others[path] = "ends otherwise"
        else:
            unclear.append(path)
    if unclear:
        failures = _survey(unclear, lambda path: decoding.sniff(os.path.join(root, path)))
        others |= failures
        images = sorted([*images, *(path for path in unclear if path not in failures)])
    return images, others


def _survey(paths: Sequence[str], check: Callable[[str], None]) -> dict[str, str]:
    """Return ``{path: reason}`` for the paths on which ``check`` raises; threads hide the latency of the disk."""

    def run(part: Sequence[str]) -> list[tuple[str, str]]:
        failures = []
        for path in part:
            try:
                check(path)
            except Exception as error:  # noqa: PERF203  # decoders raise whatever damaged bytes lead them to
                failures.append((path, _reason(error)))
        return failures

    failures: dict[str, str] = {}
    parts = [paths[i : i + 256] for i in range(0, len(paths), 256)]
    for result in _in_threads(run, parts, 256, "checked"):
        failures.update(result)
    return failures


def _in_threads(
    work: Callable[[_Part], _Result], parts: Sequence[_Part], size: int, done_word: str
) -> Iterator[_Result]:
    """Yield ``work`` of each of ``parts``, in order, with a line in the log now and then; ``size`` files a part."""
    start = last = time.monotonic()
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, result in enumerate(pool.map(work, parts), start=1):
            yield result
            now = time.monotonic()
            if now - last > 5 and done < len(parts):
                last = now
                left = (now - start) / done * (len(parts) - done)
                line = f"{done_word} {done * size:,} of at most {len(parts) * size:,} files, {left:.0f} s left"
                print_log(line, logger="current")


def _read_text(file: str) -> str:
    try:
        return read_names(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file} ({_reason(error)})") from error


def _by_path(file: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return ``{normalised path: label}``, label ``""`` where unknown."""
    labels: dict[str, str] = {}
    for path, label in pairs:
        key = posixpath.normpath(path)
        if key in labels:
            raise InputError(f"{file} names {key} twice; every image must have one line")
        labels[key] = label_of(label)
    if not labels:
        raise InputError(f"{file} names no image")
    return labels


def _encode(labels: dict[str, str], paths: Sequence[str]) -> tuple[Targets | None, tuple[str, ...] | None]:
    """Return targets (N,) int64 and class names: in the order of numbers when all are, else of the text."""
    names = {label for label in labels.values() if label}
    if not names:
        return None, None
    numeric = all(name.isdecimal() for name in names)
    classes = tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))
    index = {name: i for i, name in enumerate(classes)} | {"": UNLABELLED}
    return np.array([index[labels[path]] for path in paths], dtype=np.int64), tuple(map(printable, classes))


def _reason(error: Exception) -> str:
    """Return what went wrong, in one line that does not repeat the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]
