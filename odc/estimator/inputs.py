"""What somebody may give as samples: vectors, or images in any of the forms in which people have them.

Images become a data set of this package: arrays and tensors one file of pixels, other objects a folder of files that
lose nothing, and names of files are taken as they are. So memory stays bounded whatever comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from odc.data.datasets import build_dataset
from odc.data.decoding import endings
from odc.errors import InputError
from odc.files import write_table

Levels = tuple[float, float]
_CHANNELS = (1, 3, 4)
_SHARES = (0.0, 1.0)  # floating-point numbers that become 0 and 255, whatever else a model was trained on
_AT_ONCE = 1024  # images
_KINDS = (
    "(N, H, W), (N, H, W, C) or (N, C, H, W) arrays or tensors with 1, 3 or 4 channels, a folder, a list of paths, of "
    "PIL images or of arrays, or a data set that gives images"
)


@dataclass(frozen=True)
class Pictures:
    """A data set of images that were given."""

    config: Mapping[str, Any]
    order: npt.NDArray[np.int64]  # (N,) sample id of each image that was given, in the order in which it was
    paths: tuple[str, ...] | None = None  # of a folder, in the order of the ids
    unreadable: Mapping[str, str] = field(
        default_factory=dict
    )  # {path: reason} of images in a folder that are left out
    levels: Levels | None = None  # values that became 0 and 255 in an array, where it was neither of bytes nor shares


def are_images(X: Any) -> bool:
    """Return whether samples are images; everything else is taken for vectors, and checked as such."""
    if isinstance(X, str | os.PathLike) or _column(X) is not None:
        return True
    if (shape := getattr(X, "shape", None)) is not None:
        # Of one axis only names can be images: an array or a column of a table.
        return len(shape) > 2 or (len(shape) == 1 and len(X) > 0 and isinstance(_first(X), str | os.PathLike))
    if not hasattr(X, "__getitem__") or not isinstance(X, Sized) or not len(X) or isinstance(X, Mapping):
        return False
    first = _first(X)
    if isinstance(first, tuple | Mapping) and not isinstance(X, list | tuple):
        return True
    return isinstance(first, str | os.PathLike | Image.Image) or len(getattr(first, "shape", ())) > 1


def _first(X: Any) -> Any:
    return X.iloc[0] if hasattr(X, "iloc") else X[0]


def _column(X: Any) -> str | None:
    """Return which column of a ``datasets.Dataset`` has images: ``image``, or the one that its features say is one."""
    names = getattr(X, "column_names", None)
    if not isinstance(names, list) or not hasattr(X, "features"):
        return None
    found = [name for name in names if type(X.features[name]).__name__ == "Image"]
    return "image" if "image" in names else found[0] if found else None


def read_images(X: Any, folder: Path, levels: Levels | None = None) -> Pictures:
    """Return the data set of images, whatever form they have; files that it needs are written to ``folder``.

    Args:
        levels: of the images that a model was trained on, so that what has other than 8 bits is scaled as these were.

    Raises:
        InputError: they are none, or some of them cannot be read.
    """
    if isinstance(X, str | os.PathLike):
        config = {"type": "ImageFolder", "root": os.fspath(X), **_of_files(levels)}
        dataset = build_dataset(config)
        named_so = {path: why for path, why in dataset.skipped.items() if path.lower().endswith(endings())}
        return Pictures(config, np.arange(len(dataset)), tuple(dataset.paths), named_so)
    if len(getattr(X, "shape", ())) > 1:
        return _array(X, folder, levels)
    if isinstance(_first(X), str | os.PathLike):
        return _files([os.path.abspath(os.fspath(path)) for path in X], folder, levels)
    return _items(X, folder)


# ------------------------------------------------------------------------------------------------------------ arrays


def _array(X: Any, folder: Path, levels: Levels | None) -> Pictures:
    """Write an array or a tensor as one file of 8-bit colour images."""
    tensor = hasattr(X, "detach")
    x = X.detach().cpu().numpy() if tensor else np.asarray(X)
    axis = _channels(x.shape, first=tensor)
    if x.dtype.kind not in "buif":
        raise InputError(f"images cannot be of {x.dtype}: give uint8, or floating-point numbers from 0 to 1")
    scale = _levels(x, levels)
    size = [side for i, side in enumerate(x.shape[1:], 1) if i != axis]
    file = folder / "images.npy"
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(x), 3, *size))
    for start in range(0, len(x), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        part = x[rows] if axis else x[rows, None]
        out[rows] = _colour(_to_bytes(np.moveaxis(part, axis or 1, 1), scale))
    out.flush()
    kept = None if scale == _SHARES else scale
    return Pictures({"type": "ImageArray", "file": str(file)}, np.arange(len(x)), levels=kept)


def _channels(shape: tuple[int, ...], first: bool) -> int | None:
    """Return the axis of the channels, ``None`` where there is none; of two that could be, tensors have it first."""
    if not all(shape):
        raise InputError(f"X of the shape {shape} has no image")
    if len(shape) == 3:
        return None
    found = [axis for axis in ((1, 3) if first else (3, 1)) if len(shape) == 4 and shape[axis] in _CHANNELS]
    if not found:
        raise InputError(f"X of the shape {shape} are no images: give {_KINDS}")
    return found[0]


def _levels(x: npt.NDArray[Any], levels: Levels | None) -> Levels | None:
    """Return which values become 0 and 255; ``None`` for bytes, and for shares from 0 to 1."""
    if x.dtype in (np.uint8, np.bool_):
        return None
    parts = [x[start : start + _AT_ONCE] for start in range(0, len(x), _AT_ONCE)]
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    if not np.isfinite([low, high]).all() or any(
        not np.isfinite(part).all() for part in parts if part.dtype.kind == "f"
    ):
        raise InputError("Input X contains NaN or infinity: give finite values of pixels")
    if levels is not None:
        return levels
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        return _SHARES
    return low, max(high, low + 1)


def _to_bytes(x: npt.NDArray[Any], levels: Levels | None) -> npt.NDArray[np.uint8]:
    if levels is None:
        levels = _SHARES if x.dtype == np.bool_ else (0.0, 255.0)
    low, high = levels
    scaled = (x.astype(np.float32) - low) * (255 / (high - low))
    pixels: npt.NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return pixels


def _colour(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return images (B, C, H, W) as (B, 3, H, W): grey three times, what shines through on white."""
    if x.shape[1] != 4:
        return np.broadcast_to(x, (len(x), 3, *x.shape[2:]))
    opacity = x[:, 3:].astype(np.uint32)
    mixed: npt.NDArray[np.uint8] = ((x[:, :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return mixed


# ------------------------------------------------------------------------------------------------------------- files


def _of_files(levels: Levels | None) -> dict[str, Any]:
    return {} if levels is None else {"value_range": list(levels)}


def _files(paths: Sequence[str], folder: Path, levels: Levels | None) -> Pictures:
    """List files; one that is named twice is one sample."""
    table = folder / "images.csv"
    write_table(table, ["path"], [[path.lstrip("/")] for path in dict.fromkeys(paths)])
    config = {"type": "ImageCSV", "file": str(table), "root": "/", "strict": True, **_of_files(levels)}
    place = {path: i for i, path in enumerate(build_dataset(config).paths)}
    return Pictures(config, np.array([place[path.lstrip("/")] for path in paths], dtype=np.int64))


def _items(X: Any, folder: Path) -> Pictures:
    """Write the images of a list or a data set as files, which lose nothing and may differ in size."""
    root = folder / "images"
    root.mkdir()
    count = 0
    for count, item in enumerate(_each(X), start=1):
        _picture(item, count - 1).save(root / f"{count - 1:09d}.png", compress_level=1)
    return Pictures({"type": "ImageFolder", "root": str(root), "strict": True}, np.arange(count))


def _each(X: Any) -> Iterator[Any]:
    """Yield the images of a list or a data set, whose labels are not looked at."""
    column = _column(X)
    items: Iterable[Any] = (X[i] for i in range(len(X)))
    for item in items:
        if isinstance(item, Mapping):
            item = item[column or "image"]
        yield item[0] if isinstance(item, tuple) else item


def _picture(item: Any, number: int) -> Image.Image:
    """Return one image as PNG can hold it."""
    if isinstance(item, Image.Image):
        return item if item.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else item.convert("RGB")
    tensor = hasattr(item, "detach")
    x = item.detach().cpu().numpy() if tensor else np.asarray(item)
    if x.ndim not in (2, 3) or x.dtype.kind not in "buif":
        raise InputError(f"item {number} of X, {type(item).__name__} {x.shape}, is no image: give {_KINDS}")
    axis = _channels((1, *x.shape), first=tensor)
    levels = None if x.dtype in (np.uint8, np.bool_) else _SHARES if x.dtype.kind == "f" else (0.0, 255.0)
    if levels is not None and not (x.min() >= 0 and x.max() <= levels[1]):
        raise InputError(
            f"item {number} of X has values from {x.min():g} to {x.max():g}: give uint8 images, or floating-point "
            "numbers from 0 to 1"
        )
    part = x[None] if axis else x[None, None]
    pixels = _colour(_to_bytes(np.moveaxis(part, axis or 1, 1), levels))[0]
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
