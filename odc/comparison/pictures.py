"""Small pictures inside a page: thumbnails of a data set side by side in one file, as a data: URI."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from odc.data.datasets import ImageDataset
from odc.errors import InputError

_SMALLEST, _LARGEST, _ROW = 48, 96, 300  # CSS pixels: of a tile, and of the tiles in a row
_QUALITY = 72  # of photographs
_BESIDE = 128  # grey level beside an image of another shape: visible on a light page and on a dark one


@dataclass(frozen=True)
class Sprite:
    """Thumbnails in one picture."""

    uri: str  # data: URI of the picture
    columns: int  # tiles in a row
    rows: int  # rows of tiles
    width: int  # CSS pixels to show it in: a whole multiple of the picture's own; so is the height
    height: int
    pixelated: bool  # enlarged, to be shown pixel by pixel


class Thumbnails:
    """Thumbnails of one data set, all equally large: the longer side has 48 to 96 CSS pixels.

    Tiny images are enlarged in whole pixels, by the browser, so that one sees what is there and the file stays small.
    Images that are larger, or differ in shape, are photographs: squares of 96 pixels, cut from their middle. Images
    have one or three channels.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset = dataset.pictures or dataset  # of vectors without pictures no tile is asked for
        height, width = dataset.image_shape[1:] if dataset.image_shape else (_LARGEST, _LARGEST)
        self._photographs = dataset.image_shape is None or max(height, width) > _LARGEST
        self._size = (_LARGEST, _LARGEST) if self._photographs else (width, height)
        self._factor = math.ceil(_SMALLEST / max(self._size))
        self._tiles: dict[int, Image.Image] = {}
        self.columns = 6 if 6 * self.width <= _ROW else 3

    @property
    def width(self) -> int:
        """CSS pixels of a tile's width."""
        return self._size[0] * self._factor

    def sprite(self, ids: Sequence[int]) -> Sprite:
        """Return the thumbnails of the images ``ids`` (at least one), six or three in a row."""
        tiles = [self._tile(i) for i in ids]
        columns = min(self.columns, len(tiles))
        rows = math.ceil(len(tiles) / columns)
        width, height = self._size
        sheet = _blank(tiles, (columns * width, rows * height))
        for position, tile in enumerate(tiles):
            row, column = divmod(position, columns)
            sheet.paste(tile, (column * width, row * height))
        uri = jpeg_uri(sheet, _QUALITY) if self._photographs else data_uri(sheet)
        shown = sheet.width * self._factor, sheet.height * self._factor
        return Sprite(uri, columns, rows, *shown, pixelated=self._factor > 1)

    def _tile(self, i: int) -> Image.Image:
        if i not in self._tiles:
            try:
                image = to_pil_image(self._dataset.preview(i, min(self._size)))
            except InputError:  # it has gone since it was clustered
                image = Image.new("L", self._size, _BESIDE)
            image = image if image.mode == "L" else image.convert("RGB")
            self._tiles[i] = cropped(image, _LARGEST) if self._photographs else image
        return self._tiles[i]


def _blank(tiles: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Return an empty picture: grey if all tiles are, else coloured."""
    if all(tile.mode == "L" for tile in tiles):
        return Image.new("L", size, _BESIDE)
    return Image.new("RGB", size, (_BESIDE,) * 3)


def cropped(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the middle of an image, with ``side`` pixels a side."""
    width, height = image.size
    left, top = (width - min(width, height)) / 2, (height - min(width, height)) / 2
    box = (left, top, width - left, height - top)
    return image.resize((side, side), Image.Resampling.BICUBIC, box, reducing_gap=2.0)


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """Return photographs as a ``data:`` URI of JPEG; small tiles of whole blocks of 16 pixels do not run together."""
    file = io.BytesIO()
    image.save(file, "jpeg", optimize=True, quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def data_uri(image: Image.Image) -> str:
    """Return a picture as a ``data:`` URI: PNG or, of a photograph where that is smaller, JPEG."""
    files: dict[str, bytes] = {}
    for kind in ("png", "jpeg") if image.mode in ("L", "RGB") else ("png",):
        file = io.BytesIO()
        image.save(file, kind, optimize=True, **({"quality": 88, "subsampling": 0} if kind == "jpeg" else {}))
        files[kind] = file.getvalue()
    kind = min(files, key=lambda k: len(files[k]))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"
