"""From a file of unknown making to pixels, or to one line that says why not.

Only regular files are opened, and only as formats that Pillow decodes itself: of those that it reads, PostScript starts
Ghostscript, IPTC opens whatever is inside, and WMF, MPEG, HDF5, GRIB and BUFR are no raster images or need more than
Pillow. What a file is called does not choose its format.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import struct
import warnings
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from odc.files import open_regular

FORMATS = (  # the likeliest first; HEIF and JXL once a plug-in has registered them
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM", "JPEG2000", "HEIF", "JXL", "MPO", "ICO"),
    *("ICNS", "PSD", "QOI", "DDS", "DIB", "CUR", "BLP", "DCX", "FITS", "FLI", "FTEX", "GBR", "MSP", "PCX"),
    *("PIXAR", "SGI", "SUN", "XBM", "XPM", "IM", "PCD", "TGA"),
)
MAX_PIXELS = 120_000_000  # more than the largest sensors in common use; some 10 bytes each while an image is decoded
PLUG_IN = "which Pillow reads only with a plug-in: convert it to JPEG or PNG"
_HEIC_ENDINGS = (".heic", ".heif", ".hif", ".heics", ".heifs")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|BM....\0\0\0\0|RIFF....WEBP|....ftypavi[fs]"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|8BPS\0\x01|qoif|P[1-6]\s",
    re.DOTALL,
)

WHOLE, SLICE = 16384, 1024  # bytes: files up to WHOLE are hashed whole, of larger ones three slices

Levels = tuple[float, float]
Pixels = npt.NDArray[Any]

# Odd metadata of a picture that decodes are nobody's concern here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Header(NamedTuple):
    """What is kept of a file that can be decoded."""

    height: int  # both exact where neither side has more than 256 pixels
    width: int
    deep: bool  # more than 8 bits a channel, so that a range of values must become 0..255
    digest: bytes  # 16, of the SHA-256 of the file's size and bytes, see WHOLE and SLICE


def endings() -> tuple[str, ...]:
    """Return the endings of the formats that are read, lower case, each with its dot."""
    Image.init()
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in FORMATS))


def left_out(name: str) -> str | None:
    """Return why a file is left out by the ending of its name, or ``None`` where that does not say what the file is.

    A number (``photo.1``), a long or decorated one (``photo.jpg_large``, ``a.jpg?w=300``) says nothing.
    """
    ending = os.path.splitext(name)[1].lower()
    if not re.fullmatch(r"\.[a-z0-9]{1,5}", ending) or ending[1:].isdigit():
        return None
    return f"ends in {ending}, {PLUG_IN}" if ending in _HEIC_ENDINGS else f"ends in {ending}"


def sniff(path: str) -> None:
    """Raise ValueError where a file does not begin as the common formats do, OSError where it cannot be read."""
    with open_regular(path) as file:
        if not _MAGIC.match(file.read(16)):
            raise ValueError("has no ending and is not an image")


def open_image(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Return the image, of which only the header has been read.

    Pillow's own ``open`` would warn of large images on the standard error stream; here one number decides. Raises
    ValueError for what is in none of :data:`FORMATS` or larger than ``max_pixels``, and whatever decoders raise.
    """
    Image.init()
    if Image.MAX_IMAGE_PIXELS is not None:  # some formats ask for it before the size is known here
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    start = file.read(16)
    if not start:
        raise ValueError("an empty file")
    signed = _MAGIC.match(start)
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        # what has the signature of a common format is not tried as one that has none
        if factory is None or (signed if accept is None else accept(start) in (False, None)):
            continue
        try:
            file.seek(0)
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{width}x{height} are {width * height:,} pixels, more than data.dataset.max_pixels={max_pixels:,}"
            )
        return image
    if start.startswith(_POSTSCRIPT):
        raise ValueError("PostScript, which is not opened because that starts a program")
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        raise ValueError(f"HEIC, {PLUG_IN}")
    raise ValueError("not an image")


def examine(path: str, max_pixels: int, verify: bool, levels: Levels | None) -> Header:
    """Read a file's header, and hash it, in one go; decode it where it looks incomplete, or in any case (``verify``).

    Images of more than ``max_pixels`` are refused; of ``levels`` tells :func:`decode`. Raises whatever a decoder makes
    of damaged bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        stream: IO[bytes] = file
        if size <= WHOLE:
            parts = [file.read()]
            stream = io.BytesIO(parts[0])
        else:
            parts = [os.pread(file.fileno(), SLICE, start) for start in (0, (size - SLICE) // 2, size - SLICE)]
        with open_image(stream, max_pixels) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow have turned its size already
                width, height = (int(image.tag_v2[tag]) for tag in (256, 257))
            deep = _is_deep(image)
            if image.mode == "F" and levels is None:
                raise ValueError("float pixels have no agreed range: set data.dataset.value_range=[low,high]")
            # large images need no exact shape, and some decoders must read them whole to find the orientation
            turned = width != height and max(width, height) <= 256 and _orientation(image) > 4
            if verify or image.mode == "F" or not _ends_well(image, size, parts[0], parts[-1]):
                if image.format in ("JPEG", "MPO"):
                    image.draft(image.mode, (1, 1))  # an eighth of the size: all bytes are read, and faster
                    image.load()
                else:
                    stream.seek(0)
                    _pixels(stream, False, max_pixels, levels or (0, 1))
    digest = hashlib.sha256(struct.pack("<q", size) + b"".join(parts)).digest()[:16]
    return Header(*((width, height) if turned else (height, width)), deep, digest)


def _ends_well(image: Image.Image, size: int, head: bytes, tail: bytes) -> bool:
    """Return whether a file ends as its format says; where that cannot be told, it is taken to."""
    match image.format:
        case "JPEG" | "MPO":
            return tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
        case "PNG":
            return tail.endswith(b"IEND\xaeB`\x82")
        case "GIF":
            return tail.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case "TIFF":
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            starts, lengths = tags.get(273) or tags.get(324), tags.get(279) or tags.get(325)
            return bool(starts and lengths) and max(map(sum, zip(starts, lengths, strict=False))) <= size
    return True


def decode(path: str, grey: bool, max_pixels: int, levels: Levels | None, side: int | None = None) -> Tensor:
    """Return the file's pixels, uint8 (3, H, W) or with ``grey`` (1, H, W); raises what the decoder raises.

    ``levels`` are the values that become 0 and 255 in images of more than 8 bits a channel. With ``side`` a JPEG is
    decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size that leaves so many pixels a side: many times faster.
    """
    with open_regular(path) as file:
        return _pixels(file, grey, max_pixels, levels, side)


def value_range(path: str, max_pixels: int) -> tuple[float, float] | None:
    """Return least and largest value of an image of more than 8 bits, ``None`` where it cannot be decoded."""
    with contextlib.suppress(Exception), open_regular(path) as file, open_image(file, max_pixels) as image:
        values = _deep_values(image, file)
        if values.ndim == 3:
            values = values[..., :3]  # without the opacity, which is 65535 nearly everywhere
        return float(values.min()), float(values.max())
    return None


def _pixels(file: IO[bytes], grey: bool, max_pixels: int, levels: Levels | None, side: int | None = None) -> Tensor:
    with open_image(file, max_pixels) as opened:
        image: Image.Image = opened
        if side is not None and opened.format in ("JPEG", "MPO"):
            opened.draft(opened.mode, (side, side))
        if _is_deep(opened):
            image = Image.fromarray(_to_8_bit(_deep_values(opened, file), levels))
            orientation = 1 if opened.format == "TIFF" else _orientation(opened)  # both decoders of TIFF apply it
        else:
            opened.load()  # before the orientation is read: the TIFF decoder applies and removes it itself
            orientation = _orientation(opened)
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        mode = "L" if grey else "RGB"
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


_TURNS = {
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


def _is_deep(image: Image.Image) -> bool:
    """Return whether a channel has more than 8 bits, of which Pillow would keep 8 where it is colour."""
    if image.mode[0] in "FI":
        return True
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(258, (1,))) > 8)  # type: ignore[attr-defined]
    if not (tile := getattr(image, "tile", None)):
        return False
    codec, _, _, arguments = tile[0]
    if codec.startswith("ppm"):
        return isinstance(arguments, tuple) and isinstance(arguments[-1], int) and arguments[-1] > 255
    return codec == "SGI16" or (";16" in str(arguments) and "BGR" not in str(arguments))  # BGR;16: 5 or 6 bits each


def _deep_values(image: Image.Image, file: IO[bytes]) -> Pixels:
    """Return the values as they are in the file: (H, W) or, of colour, (H, W, 3 or 4)."""
    if image.mode[0] in "FI":
        image.load()
        return np.asarray(image)
    import cv2

    file.seek(0)
    plain = image.mode in ("L", "LA", "RGB", "RGBA", "RGBX", "RGBa")
    data = np.frombuffer(file.read(), np.uint8)
    values: Pixels | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if plain else None
    if values is None or values.dtype != np.uint16:
        raise ValueError(f"16-bit colour in a {image.format} file cannot be decoded: convert it to PNG")
    return values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]


def _to_8_bit(values: Pixels, levels: Levels | None) -> npt.NDArray[np.uint8]:
    """Scale values so that ``levels`` become 0 and 255; what is beyond becomes these. Opacity is 0..65535 always."""
    low, high = levels or (0.0, 65535.0)
    scaled = values.astype(np.float32)
    if not np.isfinite(scaled).all():
        raise ValueError("some pixels are not finite numbers")
    colour = scaled[..., :3] if scaled.ndim == 3 else scaled
    colour -= low
    colour *= 255 / (high - low)
    if scaled.ndim == 3:
        scaled[..., 3:] /= 257
    result: npt.NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return result
