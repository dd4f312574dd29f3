"""Data sets of image files: a folder, or the images that a file lists."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data import decoding
from odc.data.datasets import ImageDataset, in_threads
from odc.data.decoding import MAX_PIXELS, Header
from odc.data.table import label_of, read_names, read_table
from odc.errors import InputError, nearest, one_line, printable
from odc.registry import DATASETS
from odc.structures import UNLABELLED, make_generator

_Found = TypeVar("_Found")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
_MEASURED = 1000  # images that the range of values is measured on


class FileDataset(ImageDataset):
    """Image files under a folder, decoded when asked for: the common part of the file-based data sets.

    Every file's header is read once at the start, and a file that does not end as its format says is decoded then: that
    finds truncated ones. EXIF orientation is applied; palette and CMYK images become RGB, transparent ones are laid on
    white. Images may differ in size.

    **More than 8 bits.** Images of 16-bit values, grey or colour, and of 32-bit integers share one scale: a range of
    values becomes 0..255, in all of them, and what is beyond it 0 or 255. Unless it is given it is measured, on all
    such images or 1,000 evenly spaced ones: 0 to 2^b - 1 for the fewest bits b that hold the largest value (4,095 for
    a 12-bit camera), from -2^c where there are negative values. Float images have no such range: they need a given one.

    **The fingerprint** is of the paths, sizes and contents of the files: of all bytes of a file of up to 16 KiB, of a
    larger one of the 1 KiB at its beginning, middle and end. It does not depend on dates, on the root or on labels.

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

    Raises InputError where an option is out of range, or no image is readable (with ``strict``: not all are).
    """

    def __init__(
        self,
        root: str,
        candidates: Sequence[str],
        left_out: Mapping[str, str],
        unreadable: Mapping[str, str],
        /,
        *,
        strict: bool = False,
        verify: bool = False,
        max_samples: int | None = None,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = MAX_PIXELS,
        value_range: Sequence[float] | None = None,
    ) -> None:
        for option, number in (("max_samples", max_samples), ("max_pixels", max_pixels)):
            if number is not None and number < 1:
                raise InputError(f"{option} must be at least 1, got {number}")
        self._root, self._grey, self._max_pixels, self.strict = root, grey, max_pixels, strict
        self.value_range = None if value_range is None else _levels(value_range)
        examine = functools.partial(decoding.examine, max_pixels=max_pixels, verify=verify, levels=self.value_range)
        names = sorted(candidates)
        wanted = len(names)
        if max_samples is not None and max_samples < wanted:
            wanted = max_samples
            order = torch.randperm(len(names), generator=make_generator(seed, "max_samples"))
            names = [names[i] for i in order.tolist()]
        headers: dict[str, Header] = {}
        bad = dict(unreadable)
        position = 0
        while len(headers) < wanted and position < len(names):  # a second round only to make up for skipped files
            part = names[position : position + wanted - len(headers)]
            position += len(part)
            found, failures = _survey(root, part, examine)
            headers |= found
            bad |= failures
        self.skipped = {**left_out, **bad}
        self.paths = sorted(headers)
        if self.skipped:
            line = _summary(self.skipped, position + len(self.skipped) - len(bad), root)
            if strict and bad:
                raise InputError(f"{_summary(bad, position, root)}; remove them, or set strict=False to skip them")
            if not headers:
                raise InputError(f"{line}; no image is left")
            harmless = not bad and not any(decoding.PLUG_IN in why for why in self.skipped.values())
            print_log(line, logger="current", level=logging.INFO if harmless else logging.WARNING)
        sizes = {header[:2] for header in headers.values()}
        self._size = sizes.pop() if len(sizes) == 1 else None
        deep = [path for path in self.paths if headers[path].deep]
        if deep and self.value_range is not None:
            low, high = self.value_range
            print_log(f"{len(deep):,} images of more than 8 bits: {low:,g} to {high:,g} becomes 0 to 255", "current")
        elif deep:
            self._measure(deep)
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0" + headers[path].digest)
        self.fingerprint = digest.hexdigest()[:16]
        self.origin = f"under {root}"

    def _measure(self, deep: Sequence[str]) -> None:
        """Set the range of values for images of more than 8 bits, and say it."""
        numbers = sorted(set(np.linspace(0, len(deep) - 1, min(_MEASURED, len(deep))).round().astype(int).tolist()))
        measured = {deep[i]: os.path.join(self._root, deep[i]) for i in numbers}
        ranges = in_threads(lambda p: decoding.value_range(p, self._max_pixels), list(measured.values()), "measured")
        found = {path: ends for path, ends in zip(measured, ranges, strict=True) if ends is not None}
        if not found:  # none of them can be decoded, which whoever asks for one is told
            self.value_range = 0.0, 2.0**16 - 1
            return
        low, where = min(ends[0] for ends in found.values()), max(found, key=lambda path: found[path][1])
        high = max(0.0, found[where][1])
        top = 2.0 ** max(1, int(high).bit_length()) - 1
        bottom = -(2.0 ** int(-low - 1).bit_length()) if low < 0 else 0.0
        self.value_range = bottom, top
        of = "" if len(numbers) == len(deep) else f" of {len(numbers):,} of them"
        print_log(
            f"{len(deep):,} images of more than 8 bits: {bottom:,.0f} to {top:,.0f} becomes 0 to 255 in all of them "
            f"(the largest value{of} is {high:,.0f}, in {where}); "
            "data.dataset.value_range=[low,high] sets another range",
            "current",
        )

    def _set_classes(self, names: Sequence[str], labels: Mapping[str, str]) -> None:
        """Set classes and targets by the label of each path; a label that is none of the names is unknown."""
        index = {name: i for i, name in enumerate(names)}
        self.classes = tuple(map(printable, names))
        self.targets = np.array([index.get(labels[path], UNLABELLED) for path in self.paths], dtype=np.int64)

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
                f"cannot decode {path} ({one_line(error)}); remove the file, or set verify=True to decode every "
                "file once at the start and skip such files"
            ) from error
        if self._size is not None and max(self._size) <= 256 and image.shape[1:] != self._size:
            (height, width), (_, now_height, now_width) = self._size, image.shape
            raise InputError(
                f"{path} has {now_height}x{now_width} pixels now, and had {height}x{width} at the start: leave "
                "the files as they are while they are in use"
            )
        return image

    def preview(self, i: int, side: int) -> Tensor:
        """Return file ``i`` as :meth:`image` does, but a JPEG at the smallest fraction that has ``side`` pixels a side.

        Raises InputError naming the file where it cannot be decoded.
        """
        path = os.path.join(self._root, self.paths[i])
        try:
            return decoding.decode(path, self._grey, self._max_pixels, self.value_range, side)
        except Exception as error:  # as above
            raise InputError(f"cannot decode {path} ({one_line(error)})") from error


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
        classes: use the folders of these classes only, in this order; ``None``: everything.
        extensions: only file names that end so are images (case is ignored), whatever else is there.
        options: of all data sets of files, see :class:`FileDataset`.

    Raises InputError where the folder or one of ``classes`` is missing, or there is no image.
    """

    def __init__(
        self, root: str, classes: Sequence[str] | None = None, extensions: Sequence[str] | None = None, **options: Any
    ) -> None:
        if not os.path.isdir(root):
            raise InputError(f"image folder {root} does not exist (looked at {os.path.abspath(root)})")
        files, unreadable = _walk(root)
        images, left_out = _choose(root, files, extensions)
        if not images:
            told = f" ({_summary(left_out | unreadable, len(files), root)})" if left_out or unreadable else ""
            ends, check = "is one by its name or content", "the folder"
            if extensions is not None:
                ends, check = f"ends in {', '.join(extensions)}", "the folder or extensions"
            raise InputError(f"no image under {root}: no file {ends}{told}; check {check}")
        tops = {path.split("/", 1)[0] for path in images if "/" in path}
        splits = bool(tops) and all(name.lower() in _SPLITS for name in tops)
        # the folder that is the class of an image, "" where it lies in no such folder
        folder = {path: (*path.split("/")[:-1], "", "")[splits] for path in images}
        if classes is not None:
            folders = set(folder.values()) - {""}
            for name in classes:
                if name not in folders:
                    raise InputError(f"no folder '{name}' with images in {root}{nearest(name, folders)}")
            wanted = set(classes)
            images = [path for path in images if folder[path] in wanted]
        super().__init__(root, images, left_out, unreadable, **options)
        # all readable images decide, not the subset: its draw must not change whether there are labels
        readable = [path for path in images if path not in self.skipped]
        found = {folder[path] for path in readable} - {""}
        loose = sum("/" not in path for path in readable)
        if found:
            self.origin = f"in {len(found):,} folders under {root}"
        if splits:
            told = "classes are the folders in them" if len(found) > 1 else "they hold no folders of classes"
            one = max(tops, key=lambda name: name.lower().startswith("train"))
            print_log(
                f"{', '.join(sorted(tops))} under {root} are taken for splits: all their images are "
                f"used, {told}; data.dataset.root={os.path.join(root, one)} takes one",
                "current",
            )
        if classes is not None or (len(found) > 1 and not loose):
            self._set_classes(sorted(found) if classes is None else classes, folder)
        elif found and loose:
            print_log(
                f"{loose:,} images lie in {root} itself and {len(readable) - loose:,} in its folders: "
                "the folders are not taken for classes, there are no labels",
                "current",
            )


class _Listed(FileDataset):
    """The images that ``file`` names, with path and label of each in ``pairs``; otherwise as the classes below."""

    def __init__(self, file: str, root: str, pairs: Sequence[tuple[str, str]], /, **options: Any) -> None:
        labels: dict[str, str] = {}
        for path, label in pairs:
            key = posixpath.normpath(path)
            if key in labels:
                raise InputError(f"{file} names {key} twice; every image must have one line")
            labels[key] = label_of(label)
        if not labels:
            raise InputError(f"{file} names no image")
        super().__init__(root or os.path.dirname(os.path.abspath(file)), list(labels), {}, {}, **options)
        self.origin = f"listed in {file}"
        if names := set(labels.values()) - {""}:
            numeric = all(name.isdecimal() for name in names)  # then in the order of numbers, else of the text
            self._set_classes(sorted(names, key=lambda name: (int(name) if numeric else 0, name)), labels)


@DATASETS.register_module()
class ImageList(_Listed):
    """The images that a text file names: ``path`` or ``path<TAB>label`` a line, UTF-8; empty lines are ignored.

    Bytes that are not UTF-8 are taken as they are, for files whose names have them. Labels are any text; an empty label
    or -1 means unknown. Samples are in the order of their paths, not of the lines.

    Args:
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        options: of all data sets of files, see :class:`FileDataset`.

    Raises InputError where the file is missing or names no image, or a path occurs twice.
    """

    def __init__(self, file: str, root: str = "", **options: Any) -> None:
        try:
            lines = read_names(file).split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {file} ({one_line(error)})") from error
        cells = [line.partition("\t") for line in lines if line.strip()]
        super().__init__(file, root, [(path.strip(), label) for path, _, label in cells], **options)


@DATASETS.register_module()
class ImageCSV(_Listed):
    """The images that a CSV file names, one a row under a header line, UTF-8: a ``clusters.csv``, say.

    Paths are taken as they stand, with spaces, and with bytes that are not UTF-8 where names have them.

    Args:
        root: folder that the paths are relative to; ``""``: the folder of ``file``.
        path: name of the column of paths.
        label: name of the column of labels (any text; empty or -1: unknown). The default may be missing: no labels.
        options: of all data sets of files, see :class:`FileDataset`.

    Raises InputError where the file or a column is missing, it names no image, a row is shorter or longer than the
    header, or a path occurs twice.
    """

    def __init__(self, file: str, root: str = "", path: str = "path", label: str = "label", **options: Any) -> None:
        rows = read_table(file, path, *((label,) if label != "label" else ()), optional=("label",))
        pairs = [(row[path], row.get(label, "")) for row in rows]
        super().__init__(file, root, pairs, **options)


def list_images(root: str) -> tuple[list[str], dict[str, str]]:
    """Return which files below a folder are images, by their names, and ``{path: reason}`` of what is none.

    Unlike :class:`ImageFolder` it opens no file whose name tells what it is. Raises InputError where the folder cannot
    be read.
    """
    files, unreadable = _walk(root)
    images, left_out = _choose(root, files, None)
    return images, left_out | unreadable


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
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            if not prefix:
                raise InputError(f"cannot read folder {folder} ({one_line(error)})") from error
            unreadable[prefix] = f"an unreadable folder ({one_line(error)})"
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            is_folder = False
            with contextlib.suppress(OSError):  # a link to itself, say: opening it as a file will tell what is wrong
                is_folder = entry.is_dir()
            if is_folder:
                waiting.append((f"{prefix}{entry.name}/", above | {here}))
            else:
                files.append(prefix + entry.name)
    return sorted(files), unreadable


def _choose(root: str, files: Sequence[str], extensions: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return which files are images by their names, or without a telling name by their content; and why others not."""
    known = decoding.endings() if extensions is None else tuple(ending.lower() for ending in extensions)
    images: list[str] = []
    others: dict[str, str] = {}
    unclear: list[str] = []
    for path in files:
        if path.lower().endswith(known):
            images.append(path)
        elif why := decoding.left_out(path):
            others[path] = why
        elif extensions is not None:
            others[path] = "ends otherwise"
        else:
            unclear.append(path)
    begun, failures = _survey(root, unclear, decoding.sniff)
    return sorted([*images, *begun]), others | failures


def _survey(
    root: str, paths: Sequence[str], check: Callable[[str], _Found]
) -> tuple[dict[str, _Found], dict[str, str]]:
    """Return what ``check`` returns of the paths, and ``{path: reason}`` of those on which it raises."""
    found: dict[str, _Found] = {}
    failures: dict[str, str] = {}

    def run(path: str) -> None:
        try:
            found[path] = check(os.path.join(root, path))
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            failures[path] = one_line(error)

    for _ in in_threads(run, paths, "checked"):
        pass
    return found, failures
