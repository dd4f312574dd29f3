"""Pictures as broken as they come: bits flipped, cut, chunks swapped, headers spliced; and PostScript that poses."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .trial import Bench, Family, Outcome, Trial
from .worker import Worker, harm

LIMIT = 10.0  # seconds for an image
MEMORY = 1500  # MiB of address space for an image, on top of what the process has
PORTION = 220


def originals(rng: random.Random) -> list[tuple[str, bytes]]:
    """Return (ending, content) of sound pictures in every format and mode that Pillow writes and people have."""
    noise = np.random.default_rng(rng.randrange(2**32))
    smooth = np.add.outer(np.arange(40) * 3, np.arange(48) * 2)[..., None] + np.array([0, 40, 90])
    rgb = Image.fromarray((smooth + noise.integers(0, 30, smooth.shape)).astype(np.uint8))
    grey, palette, wide = rgb.convert("L"), rgb.convert("P"), Image.fromarray((smooth[..., 0] * 200).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("jpg", rgb, {}),
        ("jpg", rgb, {"progressive": True, "exif": exif}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("png", rgb, {}),
        ("png", palette, {"transparency": 3}),
        ("png", wide, {}),
        ("png", rgb.convert("RGBA"), {"exif": exif}),
        ("png", rgb, {"save_all": True, "append_images": [rgb.rotate(90)], "format": "PNG"}),
        ("gif", palette, {"save_all": True, "append_images": [palette.rotate(90)]}),
        ("bmp", rgb, {}),
        ("bmp", palette, {}),
        ("tif", rgb, {"compression": "tiff_lzw"}),
        ("tif", rgb, {"compression": "jpeg"}),
        ("tif", wide, {}),
        ("tif", rgb, {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": [rgb]}),
        ("tif", grey.convert("1"), {"compression": "group4"}),
        ("webp", rgb, {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True, "exif": exif}),
        ("avif", rgb, {}),
        ("ppm", rgb, {}),
        ("pgm", grey, {}),
        ("jp2", rgb, {}),
        ("tga", rgb, {"compression": "tga_rle"}),
        ("ico", rgb, {}),
        ("pcx", rgb, {}),
        ("sgi", rgb, {}),
        ("dds", rgb, {}),
    ]
    made = []
    for ending, image, options in ways:
        buffer = io.BytesIO()
        kind = str(options.pop("format", "")) or Image.registered_extensions()[f".{ending}"]
        try:
            image.save(buffer, kind, **options)
        except (OSError, KeyError, ValueError):  # this Pillow was built without it
            continue
        made.append((ending, buffer.getvalue()))
    return made


def bits(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flip some bits, most of them near the start, where the header is."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 40))):
        place = rng.randrange(min(len(changed), 200) if rng.random() < 0.6 else len(changed))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Cut it anywhere."""
    return content[: rng.randrange(len(content))]


def swap(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Exchange two pieces."""
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Begin as one picture, go on as another."""
    return content[: rng.randrange(1, min(len(content), 300))] + other[rng.randrange(min(len(other), 300)) :]


def numbers(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Write extreme numbers over a field of the header: sizes, offsets, counts."""
    extreme = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x00\x00\xff\xff")
    place = rng.randrange(min(len(content), 120))
    field = rng.choice(extreme)[: rng.choice((1, 2, 4))]
    return content[:place] + field + content[place + len(field) :]


def repeat(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Repeat a piece many times."""
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:b] + content[a:b] * rng.choice((1, 20)) + content[b:]


MUTATIONS: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (bits, bits, cut, swap, splice, numbers, repeat)

EPS = (
    "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
    "(%pipe%touch MARK) (w) file closefile\n0 0 32 32 rectfill\nshowpage\n%%EOF\n"
)
PDF = "%PDF-1.4\n1 0 obj\n<</Type /Catalog /OpenAction <</S /Launch /F (touch MARK)>>>>\nendobj\n%%EOF\n"
WMF = b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\x00\x09\x00" + bytes(40)
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/MARK"/></svg>'


def decode(paths: list[Path], folder: Path, mark: str) -> Outcome:
    """Decode each file in a worker, whose first Ghostscript is one that leaves a mark."""
    outcome = Outcome()
    ghost = folder / "bin" / "gs"
    ghost.parent.mkdir()
    ghost.write_text(f"#!/bin/sh\ntouch '{folder / 'posing' / 'mark'}'\necho 10.0\n")
    ghost.chmod(0o755)
    with Worker(folder / "worker", MEMORY, path=ghost.parent) as worker:
        for path in paths:
            reply = worker.ask({"image": str(path)}, LIMIT)
            outcome.tried += 1
            raised = reply["raised"]
            if reply.died or raised:
                what = reply.died or raised.strip().splitlines()[-1][:200]
                outcome.crashed.append(f"{path}: {what}")
            if reply["code"] == 0 and mark == path.parent.name:
                outcome.crashed.append(f"{path}: taken for a picture")
            if events := harm(reply["events"], mark):
                outcome.executed.append(f"{path}: {events[0]}")
            if not (reply.died or raised or events):
                path.unlink()
    return outcome


def mutated(count: int, folder: Path, rng: random.Random) -> Outcome:
    """Decode so many mutated pictures."""
    sound = originals(rng)
    paths = []
    for number in range(count):
        ending, content = sound[number % len(sound)]
        mutate = rng.choice(MUTATIONS)
        path = folder / f"{number:04d}-{mutate.__name__}.{ending}"
        path.write_bytes(mutate(content, rng.choice(sound)[1], rng))
        paths.append(path)
    return decode(paths, folder, "no such mark")


def posing(folder: Path, rng: random.Random) -> Outcome:
    """Decode PostScript, PDF, WMF and SVG under the names of pictures: nothing may be started for them."""
    poses = folder / "posing"
    poses.mkdir()
    paths = []
    for name, content in (("eps", EPS), ("ps", EPS.replace(" EPSF-3.0", "")), ("pdf", PDF), ("svg", SVG), ("wmf", WMF)):
        for ending in ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm", "jpeg"):
            path = poses / f"{name}.{ending}"
            path.write_bytes(
                content if isinstance(content, bytes) else content.replace("MARK", str(poses / "mark")).encode()
            )
            paths.append(path)
    outcome = decode(paths, folder, "posing")
    if (poses / "mark").exists():
        outcome.executed.append("a file was written")
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """Ten portions of mutated pictures, and those that are none."""
    portions = 1 if bench.quick else 10

    def make(number: int) -> Trial:
        return Trial(f"mutated-{number}", lambda f, r: mutated(60 if bench.quick else PORTION, f, r), 20.0)

    return [*map(make, range(portions)), Trial("posing", posing, 8.0)]


FAMILY = Family("images", "mutated pictures, and others' formats under their names", False, trials, least=2000)
