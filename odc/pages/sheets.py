"""Thumbnails in sheets: a page has some pictures of many images each, which a browser decodes as they are seen.

An image becomes a square: what is beyond it on the longer side is cut off on both ends. Photographs are JPEG; where all
images are tiny, they stay as they are, and the browser enlarges them in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from odc.comparison.pictures import cropped, data_uri, jpeg_uri
from odc.data.datasets import ImageDataset
from odc.errors import InputError

LARGE, SMALL = 128, 80  # pixels a side: of an image in a strip, and of another; whole blocks of JPEG
FEW = 1500  # images that are large at most; up to so many images all are
TINY = 64  # pixels of the longer side up to which images are shown pixel by pixel
_TILES = 48  # images of a sheet
_ACROSS = 8
_QUALITY = {LARGE: 62, SMALL: 58}
_MISSING = 128  # grey level of an image that cannot be read any more


@dataclass(frozen=True)
class Sheet:
    """Consecutive images side by side."""

    uri: str
    columns: int
    rows: int  # of tiles


@dataclass(frozen=True)
class Sheets:
    """All thumbnails of a page: image i is tile i % tiles of sheet i // tiles."""

    sheets: list[Sheet]
    tiles: int = _TILES
    pixelated: bool = False


def draw_sheets(
    dataset: ImageDataset, ids: Sequence[int], large: int, watch: Callable[[int, int], None] | None = None
) -> Sheets:
    """Draw the images ``ids`` of a data set, -1 for one that is not in it; the first ``large`` of many large.

    An image that cannot be decoded, because it has gone since it was clustered, is a grey square. ``watch`` is told
    how many of how many are drawn.
    """
    shape = dataset.image_shape
    pixels = shape is not None and max(shape[1:]) <= TINY
    large = len(ids) if len(ids) <= FEW else min(large, FEW)
    # A sheet has one size of tiles, the small ones begin with a sheet of their own.
    large = math.ceil(large / _TILES) * _TILES

    def side(i: int) -> int:
        return max(shape[1:]) if pixels and shape is not None else LARGE if i < large else SMALL

    def sheet(start: int) -> Sheet:
        numbers = range(start, min(start + _TILES, len(ids)))
        return _sheet([_tile(dataset, ids[i], side(i), pixels) for i in numbers], side(start), pixels)

    sheets: list[Sheet] = []
    with ThreadPoolExecutor(max_workers=8) as pool:  # threads hide the latency of the disk
        for done in pool.map(sheet, range(0, len(ids), _TILES)):
            sheets.append(done)
            if watch is not None:
                watch(min(len(sheets) * _TILES, len(ids)), len(ids))
    return Sheets(sheets, pixelated=pixels)


def _tile(dataset: ImageDataset, i: int, side: int, pixels: bool) -> Image.Image:
    try:
        if i < 0:
            raise InputError("it is not in the data set")
        image = to_pil_image(dataset.preview(i, side))
    except InputError:
        return Image.new("L", (side, side), _MISSING)
    image = image if image.mode == "L" else image.convert("RGB")
    assert isinstance(image, Image.Image)
    width, height = image.size
    if pixels:  # the whole image, on grey where it is no square
        sheet = Image.new(image.mode, (side, side), (_MISSING,) * len(image.getbands()))
        sheet.paste(image, ((side - width) // 2, (side - height) // 2))
        return sheet
    return cropped(image, side)


def _sheet(tiles: Sequence[Image.Image], side: int, pixels: bool) -> Sheet:
    columns = min(_ACROSS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    mode = "L" if all(tile.mode == "L" for tile in tiles) else "RGB"
    sheet = Image.new(mode, (columns * side, rows * side), (_MISSING,) * len(mode))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * side, i // columns * side))
    return Sheet(data_uri(sheet) if pixels else jpeg_uri(sheet, _QUALITY[side]), columns, rows)
