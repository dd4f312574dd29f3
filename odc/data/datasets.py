"""Images with stable ids: where they are, how they decode, and labels that only evaluation may read.

A data set gives raw images, ``uint8 (C, H, W)``. Resizing, scaling and augmentation belong to the views
(:mod:`odc.data.transforms`), so that one data set serves every method.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import pickle
import posixpath
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from odc.data.table import label_of, read_table
from odc.errors import InputError, nearest
from odc.registry import DATASETS, build
from odc.structures import UNLABELLED, make_generator

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

Targets = npt.NDArray[np.int64]
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


class ImageDataset(ABC):
    """Images by sample id: the position in ``paths``, 0..N-1.

    Attributes:
        paths: N unique names in ascending order; the same on every machine that holds the same images.
        targets: (N,) int64 true classes, -1 where unknown, or ``None``: for evaluation only, no view returns them.
        classes: names of the classes, or ``None`` without ``targets``.
    """

    paths: list[str]
    targets: Targets | None = None
    classes: tuple[str, ...] | None = None

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
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) that all images have, or ``None`` where they differ or it is not known."""
        return None

    def images(self) -> Tensor:
        """Return all images, decoded anew, uint8 (N, C, H, W); not to be changed.

        Raises:
            InputError: an image cannot be decoded, or two differ in shape.
        """
        numbers = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        out = torch.empty(0, dtype=torch.uint8)
        for ids, images in zip(
            numbers, _in_threads(lambda part: [self.image(i) for i in part], numbers, 256, "decoded"), strict=True
        ):
            for i, image in zip(ids, images, strict=True):
                if i == 0:
                    out = torch.empty(len(self), *image.shape, dtype=torch.uint8)
                if image.shape != out.shape[1:]:
                    raise InputError(
                        f"{_show(self.paths[i])} has the shape {tuple(image.shape)} but {_show(self.paths[0])} has "
                        f"{tuple(out.shape[1:])}: set data.batched=False"
                    )
                out[i] = image
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

    Every file's header is read once at the start. EXIF orientation is applied; palette, CMYK and 16-bit images become
    8-bit, transparent ones are laid on white. Images may differ in size.

    Args:
        root: folder that ``candidates`` are relative to.
        candidates: unique relative paths.
        strict: an unreadable file is an error; else it is skipped with a warning.
        verify: decode every file at the start, which finds truncated ones too.
        max_samples: keep a random subset of this many readable files.
        seed: seed of that subset.
        grey: decode to one channel instead of three.

    Raises:
        InputError: no readable image, or with ``strict`` one that is not.
    """

    def __init__(
        self,
        root: str,
        candidates: Sequence[str],
        *,
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
    ) -> None:
        if max_samples is not None and max_samples < 1:
            raise InputError(f"max_samples must be at least 1, got {max_samples}")
        self._root, self._grey = root, grey

        sizes: dict[str, tuple[int, int]] = {}  # height and width

        def check(path: str) -> None:
            with Image.open(os.path.join(root, path)) as image:
                _check_mode(image)
                width, height = image.size
                # large images need no exact shape, and some decoders must read them whole to find the orientation
                turned = width != height and max(width, height) <= 256 and _orientation(image) > 4
                sizes[path] = (width, height) if turned else (height, width)
            if verify:
                _decode(os.path.join(root, path), grey)

        names = sorted(candidates)
        wanted = len(names)
        if max_samples is not None and max_samples < wanted:
            wanted = max_samples
            order = torch.randperm(len(names), generator=make_generator(seed, "max_samples"))
            names = [names[i] for i in order.tolist()]
        kept: list[str] = []
        bad: dict[str, str] = {}
        position = 0
        while len(kept) < wanted and position < len(names):  # a second round only to make up for skipped files
            part = names[position : position + wanted - len(kept)]
            position += len(part)
            failures = _survey(part, check)
            bad.update(failures)
            kept.extend(path for path in part if path not in failures)
        if bad:
            first = ", ".join(f"{_show(path)} ({why})" for path, why in sorted(bad.items())[:3])
            line = f"{len(bad):,} of {position:,} files under {root} are not readable images: {first}"
            line += ", ..." if len(bad) > 3 else ""
            if strict:
                raise InputError(f"{line}; remove them, or set strict=False to skip them")
            if not kept:
                raise InputError(f"{line}; no image is left")
            print_log(f"skipped {line}", logger="current", level=logging.WARNING)
        self.unreadable = frozenset(bad)
        self.paths = sorted(kept)
        different = {sizes[path] for path in kept}
        self._size = different.pop() if len(different) == 1 else None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the paths."""
        return hashlib.sha256(b"\0".join(os.fsencode(path) for path in self.paths)).hexdigest()[:16]

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
            return _decode(path, self._grey)
        except Exception as error:  # decoders raise whatever the damaged bytes lead them to
            raise InputError(
                f"cannot decode {_show(path)} ({_reason(error)}); remove the file, or set verify=True to decode "
                "every file once at the start and skip such files"
            ) from error


@DATASETS.register_module()
class ImageFolder(FileDataset):
    """Every image below a folder, at any depth; hidden files and folders are ignored, links are followed.

    When every image lies in one of two or more first-level folders, those are the classes (for evaluation only). A
    flat folder, or images both at the top and in folders, has no labels.

    Args:
        root: the folder.
        classes: use these first-level folders only, in this order; ``None``: everything.
        extensions: file names that end so are images (case is ignored).
        strict: see :class:`FileDataset`, as for the arguments that follow.
        verify: decode every file at the start.
        max_samples: keep a random subset of this many images, drawn without regard to classes.
        seed: seed of that subset.
        grey: decode to one channel.

    Raises:
        InputError: the folder or one of ``classes`` is missing, there is no image, or (``strict``) an unreadable one.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str] | None = None,
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
    ) -> None:
        if not os.path.isdir(root):
            raise InputError(f"image folder {root} does not exist (looked at {os.path.abspath(root)})")
        suffixes = tuple(extension.lower() for extension in extensions)
        images: list[str] = []
        others = 0
        for path in _walk(root):
            if path.lower().endswith(suffixes):
                images.append(path)
            else:
                others += 1
        if not images:
            raise InputError(
                f"no image under {root}: no file ends in {', '.join(suffixes)} ({others:,} other files there); "
                "check the folder or set extensions"
            )
        if classes is not None:
            folders = {path.split("/", 1)[0] for path in images if "/" in path}
            for name in classes:
                if name not in folders:
                    raise InputError(f"no folder '{name}' with images in {root}{nearest(name, folders)}")
            wanted = set(classes)
            images = [path for path in images if "/" in path and path.split("/", 1)[0] in wanted]
        super().__init__(root, images, strict=strict, verify=verify, max_samples=max_samples, seed=seed, grey=grey)
        # all readable images decide, not the subset: its draw must not change whether there are labels
        readable = [path for path in images if path not in self.unreadable]
        tops = {path.split("/", 1)[0] for path in readable if "/" in path}
        loose = sum("/" not in path for path in readable)
        self._folders = len(tops)
        if classes is None and (loose or len(tops) < 2):
            if tops and loose:
                print_log(
                    f"{loose:,} images lie in {root} itself and {len(readable) - loose:,} in its folders: "
                    "the folders are not taken for classes, there are no labels",
                    logger="current",
                )
            return
        self.classes = tuple(classes) if classes is not None else tuple(sorted(tops))
        index = {name: i for i, name in enumerate(self.classes)}
        self.targets = np.array([index[path.split("/", 1)[0]] for path in self.paths], dtype=np.int64)

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"in {self._folders:,} folders under {self._root}" if self._folders else f"under {self._root}"


@DATASETS.register_module()
class ImageList(FileDataset):
    """The images that a text file names: ``path`` or ``path<TAB>label`` a line, UTF-8; empty lines are ignored.

    Labels are any text; an empty label or -1 means unknown. Samples are in the order of their paths, not of the lines.

    Args:
        file: the text file.
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        strict: see :class:`FileDataset`, as for the arguments that follow.
        verify: decode every file at the start.
        max_samples: keep a random subset of this many images.
        seed: seed of that subset.
        grey: decode to one channel.

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
    ) -> None:
        pairs = []
        for line in _read_text(file).split("\n"):
            if line.strip():
                path, _, label = line.partition("\t")
                pairs.append((path.strip(), label))
        labels = _by_path(file, pairs)
        super().__init__(
            root or os.path.dirname(os.path.abspath(file)),
            list(labels),
            strict=strict,
            verify=verify,
            max_samples=max_samples,
            seed=seed,
            grey=grey,
        )
        self._file = file
        self.targets, self.classes = _encode(labels, self.paths)

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"listed in {self._file}"


@DATASETS.register_module()
class ImageCSV(FileDataset):
    """The images that a CSV file names, one a row under a header line, UTF-8.

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
    ) -> None:
        rows = read_table(file, path, *((label,) if label != "label" else ()), optional=("label",))
        labels = _by_path(file, [(row[path].strip(), row.get(label, "")) for row in rows])
        super().__init__(
            root or os.path.dirname(os.path.abspath(file)),
            list(labels),
            strict=strict,
            verify=verify,
            max_samples=max_samples,
            seed=seed,
            grey=grey,
        )
        self._file = file
        self.targets, self.classes = _encode(labels, self.paths)

    @property
    def origin(self) -> str:
        """Where the images are from."""
        return f"listed in {self._file}"


def _walk(root: str, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield the files below ``root`` relative to it, with ``/``; ``above`` stops at links that lead back up."""
    folder = os.path.join(root, prefix)
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"cannot read folder {_show(folder)} ({_reason(error)})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(root, f"{prefix}{entry.name}/", above | {here})
        else:
            yield prefix + entry.name


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


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range: convert them to 8 bit")


_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; above 4 height and width change places."""
    with contextlib.suppress(Exception):  # a damaged EXIF block does not damage the picture
        return int(image.getexif().get(0x0112, 1))
    return 1


def _decode(path: str, grey: bool) -> Tensor:
    """Return the file's pixels, uint8 (3, H, W) or with ``grey`` (1, H, W); raises what the decoder raises."""
    with Image.open(path) as opened:
        _check_mode(opened)
        opened.load()  # before the orientation is read: the TIFF decoder applies and removes it itself
        orientation = _orientation(opened)
        image: Image.Image = opened
        if orientation in _ORIENTATION:
            image = image.transpose(_ORIENTATION[orientation])
        if image.mode.startswith("I"):
            # PIL would clip at 255 what is a 16-bit range
            image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
        if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _read_text(file: str) -> str:
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} ({_reason(error)})") from error


def _by_path(file: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return ``{normalised path: label}``, label ``""`` where unknown."""
    labels: dict[str, str] = {}
    for path, label in pairs:
        key = posixpath.normpath(path)
        if key in labels:
            raise InputError(f"{file} names {_show(key)} twice; every image must have one line")
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
    return np.array([index[labels[path]] for path in paths], dtype=np.int64), classes


def _reason(error: Exception) -> str:
    """Return what went wrong, in one line that does not repeat the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]


def _show(path: str) -> str:
    """Return a path that every log can print, also when its bytes are not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()
