from __future__ import annotations

import contextlib
import csv
import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image, ImageOps

from odc.data.datasets import ArrayDataset, Digits, LongTail, TorchvisionDataset
from odc.data.image_files import ImageCSV, ImageFolder, ImageList
from odc.data.table import read_table
from odc.errors import InputError
from odc.files import write_table
from odc.registry import DATASETS


def save(path: Path, size: tuple[int, int] = (6, 4), value: int = 0, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (np.arange(size[0] * size[1] * 3).reshape(size[1], size[0], 3) * 3 + value).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def corrupt(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("this is no image")
    return path


def truncate(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    return path


def damage(path: Path) -> Path:
    """Write a PNG that is whole, but for a byte inside its pixels."""
    save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(data)
    return path


@pytest.fixture
def log() -> Any:
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = MMLogger.get_current_instance()
    handler = Collect(logging.INFO)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_long_tail_keeps_fewer_of_every_next_class() -> None:
    cfg = {"type": "LongTail", "ratio": 0.5, "dataset": {"type": "Digits"}}
    whole, part = Digits(), DATASETS.build(cfg)
    assert isinstance(part, LongTail)
    assert part.targets is not None
    assert whole.targets is not None
    sizes = np.bincount(whole.targets)
    assert np.bincount(part.targets).tolist() == [max(1, round(n * 0.5**c)) for c, n in enumerate(sizes.tolist())]
    assert part.paths == sorted(part.paths)
    for i in (0, len(part) - 1):
        same = whole.paths.index(part.paths[i])
        assert torch.equal(part.image(i), whole.image(same))
        assert part.targets[i] == whole.targets[same]
    assert torch.equal(part.images()[3], part.image(3))
    assert part.fingerprint == DATASETS.build(cfg).fingerprint != DATASETS.build({**cfg, "seed": 1}).fingerprint
    assert DATASETS.build({**cfg, "ratio": 1.0}).paths == whole.paths
    assert "LongTail's ratio must be in (0, 1], not 0" in one_line(lambda: LongTail({"type": "Digits"}, 0))


def test_a_long_tail_needs_all_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    cfg = {"type": "ImageFolder", "root": str(tmp_path)}
    assert "LongTail needs the class of every image, but not all 1 " in one_line(lambda: LongTail(cfg, 0.5))


def test_digits() -> None:
    data = DATASETS.build({"type": "Digits"})
    assert isinstance(data, Digits)
    assert len(data) == 1797
    image = data.image(0)
    assert image.dtype == torch.uint8
    assert image.shape == (1, 8, 8)
    assert image[0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0, 0, 5, 13, 9, 1, 0, 0 sixteenths of 255
    assert data.targets is not None
    assert data.targets[:10].tolist() == list(range(10))
    assert data.classes == tuple("0123456789")
    assert data.paths == sorted(set(data.paths))
    image.zero_()
    assert data.image(0).sum() > 0
    assert re.fullmatch(
        r"1,797 images of scikit-learn's digits \(labels: 10 classes, for evaluation only\), fingerprint [0-9a-f]{16}",
        data.describe(),
    )


def test_array_fingerprint_is_of_the_pixels_not_the_labels() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    plain = ArrayDataset(images, ["a", "b"])
    labelled = ArrayDataset(images, ["a", "b"], np.array([0, -1]), ["x"])
    assert plain.fingerprint == labelled.fingerprint
    assert plain.fingerprint != ArrayDataset(images + 1, ["a", "b"]).fingerprint
    assert plain.fingerprint != ArrayDataset(images.view(2, 1, 4, 3), ["a", "b"]).fingerprint
    assert "no labels" in plain.describe()
    assert "labels: 1 classes for 1 of the images" in labelled.describe()


def test_array_refuses_what_does_not_fit() -> None:
    images = torch.zeros(2, 1, 3, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"3 paths need images uint8"):
        ArrayDataset(images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="ascending"):
        ArrayDataset(images, ["b", "a"])
    with pytest.raises(ValueError, match="both or neither"):
        ArrayDataset(images, ["a", "b"], np.array([0, 1]))


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("cat/b.png", "cat/deep/a.JPG", "dog/c.png", "an öwl/d.png"):
        save(tmp_path / name)
    save(tmp_path / "dog/._c.png")
    save(tmp_path / ".hidden/e.png")
    (tmp_path / "readme.txt").write_text("x")
    data = ImageFolder(str(tmp_path))
    assert data.paths == ["an öwl/d.png", "cat/b.png", "cat/deep/a.JPG", "dog/c.png"]
    assert data.classes == ("an öwl", "cat", "dog")
    assert data.targets is not None
    assert data.targets.dtype == np.int64
    assert data.targets.tolist() == [0, 1, 1, 2]
    assert data.image(0).shape == (3, 4, 6)
    assert data.describe().startswith(f"4 images in 3 folders under {tmp_path} (labels: 3 classes")
    some = ImageFolder(str(tmp_path), classes=["dog", "cat"])
    assert some.targets is not None
    assert some.targets.tolist() == [1, 1, 0]
    assert "did you mean 'cat'?" in one_line(lambda: ImageFolder(str(tmp_path), classes=["cats"]))


def test_fingerprint_of_files_is_of_paths_and_contents(tmp_path: Path) -> None:
    for name in ("a/cat/b.bmp", "a/dog/c.bmp"):
        save(tmp_path / name)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # other dates
    root = str(tmp_path / "b")
    first = ImageFolder(str(tmp_path / "a")).fingerprint
    assert ImageFolder(root).fingerprint == ImageFolder(root, classes=["dog", "cat"]).fingerprint == first
    size = (tmp_path / "b/dog/c.bmp").stat().st_size
    save(tmp_path / "b/dog/c.bmp", value=1)
    assert (tmp_path / "b/dog/c.bmp").stat().st_size == size
    other = ImageFolder(root).fingerprint
    assert other != first
    (tmp_path / "b/dog/c.bmp").rename(tmp_path / "b/dog/d.bmp")
    assert ImageFolder(root).fingerprint not in (first, other)


@pytest.mark.parametrize("place", [0, 2000, 1000, -1], ids=["first", "inside", "middle", "last"])
def test_a_changed_byte_changes_the_fingerprint_where_it_is_looked_at(tmp_path: Path, place: int) -> None:
    pixels = np.zeros((90, 90, 3), np.uint8)  # 24,354 bytes as a BMP
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    before = ImageFolder(str(tmp_path)).fingerprint
    row = {0: 89, 2000: 70, 1000: 44, -1: 0}[place]  # a BMP begins with the last row
    pixels[row] = 1
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    assert (ImageFolder(str(tmp_path)).fingerprint == before) == (place == 2000)


def test_flat_mixed_and_single_folders_have_no_labels(tmp_path: Path, log: list[str]) -> None:
    save(tmp_path / "flat/a.png")
    assert ImageFolder(str(tmp_path / "flat")).targets is None
    assert ImageFolder(str(tmp_path)).targets is None  # one folder is no classification
    assert not log
    save(tmp_path / "b.png")
    save(tmp_path / "other/a.png")
    mixed = ImageFolder(str(tmp_path))
    assert mixed.targets is None
    assert mixed.classes is None
    assert len(log) == 1
    assert "1 images lie in" in log[0]
    assert "there are no labels" in log[0]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    assert "does not exist" in one_line(lambda: ImageFolder(str(tmp_path / "nowhere")))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.npy").write_text("x")
    message = one_line(lambda: ImageFolder(str(tmp_path), extensions=(".jpg", ".png")))
    assert "no file ends in .jpg, .png (skipped 2 of 2 files" in message
    assert "1 ends in .npy (b.npy); 1 ends in .txt (a.txt)" in message
    assert "no file is one by its name or content" in one_line(lambda: ImageFolder(str(tmp_path)))


def test_unreadable_files_are_skipped_or_refused(tmp_path: Path, log: list[str]) -> None:
    save(tmp_path / "good.jpg")
    for name in "abcd":
        corrupt(tmp_path / f"{name}.jpg")
    assert ImageFolder(str(tmp_path)).paths == ["good.jpg"]
    assert len(log) == 1
    assert "skipped 4 of 5 files" in log[0]
    assert log[0].endswith(": 4 not an image (a.jpg, b.jpg, ...)")
    assert "4 of 5 files" in one_line(lambda: ImageFolder(str(tmp_path), strict=True))
    (tmp_path / "good.jpg").unlink()
    assert "no image is left" in one_line(lambda: ImageFolder(str(tmp_path)))


def test_an_unreadable_stray_does_not_cost_the_labels(tmp_path: Path) -> None:
    save(tmp_path / "a/x.png")
    save(tmp_path / "b/x.png")
    corrupt(tmp_path / "stray.png")
    assert ImageFolder(str(tmp_path)).classes == ("a", "b")


def test_truncated_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    damage(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path))
    assert len(data) == 2
    message = one_line(lambda: data.image(1))
    assert "b.png" in message
    assert "verify=True" in message
    assert ImageFolder(str(tmp_path), verify=True).paths == ["a.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif"])
def test_truncated_files_are_found_at_the_start(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"good.{suffix}")
    truncate(tmp_path / f"bad.{suffix}")
    data = ImageFolder(str(tmp_path))
    assert data.paths == [f"good.{suffix}"]
    assert list(data.skipped) == [f"bad.{suffix}"]
    assert "1 of 2 files" in one_line(lambda: ImageFolder(str(tmp_path), strict=True))


def test_bytes_behind_a_jpeg_do_not_make_it_unreadable(tmp_path: Path) -> None:
    path = save(tmp_path / "motion.jpg")
    path.write_bytes(path.read_bytes() + b"a film" * 5000)
    assert ImageFolder(str(tmp_path)).paths == ["motion.jpg"]


def test_links(tmp_path: Path) -> None:
    save(tmp_path / "real/a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "real")
    (root / "up").symlink_to(root)
    (root / "b.png").symlink_to(tmp_path / "real/a.png")
    (root / "broken.png").symlink_to(tmp_path / "gone.png")
    data = ImageFolder(str(root))
    assert data.paths == ["b.png", "link/a.png"]
    assert torch.equal(data.image(0), data.image(1))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save(tmp_path / "x.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = ImageFolder(str(tmp_path))
    assert data.paths == [name]
    assert len(data.fingerprint) == 16
    data.image(0)
    corrupt(tmp_path / name)
    one_line(lambda: data.image(0)).encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert np.array_equal(ImageFolder(str(tmp_path)).image(0).numpy(), expected)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png")])
def test_modes_become_rgb_or_grey(tmp_path: Path, mode: str, suffix: str) -> None:
    save(tmp_path / f"a.{suffix}", mode=mode)
    assert ImageFolder(str(tmp_path)).image(0).shape == (3, 4, 6)
    grey = ImageFolder(str(tmp_path), grey=True).image(0)
    assert grey.shape == (1, 4, 6)
    assert grey.dtype == torch.uint8


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    Image.new("RGBA", (1, 1), (10, 20, 30, 255)).save(tmp_path / "b.png")
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "c.png", transparency=bytes([0]))
    data = ImageFolder(str(tmp_path))
    assert [data.image(i).flatten().tolist() for i in range(3)] == [[255] * 3, [10, 20, 30], [255] * 3]


def wide(path: Path, values: np.ndarray[Any, Any]) -> Path:
    """Write 16-bit grey or colour, which Pillow cannot write."""
    assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_all_images_of_more_than_8_bits_share_one_scale(tmp_path: Path, suffix: str, log: list[str]) -> None:
    for name, top in (("a", 255), ("b", 2000), ("c", 4000)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / f"{name}.{suffix}")
    save(tmp_path / "d.png", value=100)
    data = ImageFolder(str(tmp_path), grey=True)
    assert data.value_range == (0.0, 4095.0)
    assert [int(data.image(i).max()) for i in range(3)] == [16, 125, 249]  # round(255 * top / 4095)
    with Image.open(tmp_path / "d.png") as image:
        assert np.array_equal(data.image(3)[0].numpy(), np.asarray(image.convert("L")))
    assert "3 images of more than 8 bits: 0 to 4,095 becomes 0 to 255 in all of them" in log[0]
    assert f"the largest value is 4,000, in c.{suffix}" in log[0]
    given = ImageFolder(str(tmp_path), grey=True, value_range=[0, 2000])
    assert [int(given.image(i).max()) for i in range(3)] == [33, 255, 255]
    assert ImageFolder(str(tmp_path), max_samples=3, seed=1).value_range in ((0.0, 4095.0), (0.0, 2047.0))


@pytest.mark.parametrize(("suffix", "channels"), [("png", 3), ("png", 4), ("tif", 3), ("ppm", 3)])
def test_colour_of_16_bits_is_not_cut_to_8(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.zeros((4, 5, channels), np.uint16)
    values[..., :3] = [4095, 2048, 0]  # blue, green, red: OpenCV's order
    values[..., 3:] = 65535
    wide(tmp_path / f"a.{suffix}", values)
    data = ImageFolder(str(tmp_path))
    assert data.image(0)[:, 0, 0].tolist() == [0, 128, 255]
    assert ImageFolder(str(tmp_path), value_range=(0, 65535)).image(0)[:, 0, 0].tolist() == [0, 8, 16]


def test_range_of_negative_and_float_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1000, 0, 3000]], np.int32)).save(tmp_path / "a.tif")
    data = ImageFolder(str(tmp_path), grey=True)
    assert data.value_range == (-1024.0, 4095.0)
    assert data.image(0).flatten().tolist() == [1, 51, 200]
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "b.tif")
    Image.fromarray(np.array([[0.0, np.nan, 1.0]], np.float32)).save(tmp_path / "c.tif")
    assert "float pixels have no agreed range" in one_line(lambda: ImageFolder(str(tmp_path), strict=True))
    floats = ImageFolder(str(tmp_path), grey=True, value_range=[0, 1])
    assert floats.paths == ["a.tif", "b.tif"]
    assert floats.skipped == {"c.tif": "some pixels are not finite numbers"}
    assert floats.image(1).flatten().tolist() == [0, 128, 255]
    for wrong in ([1, 0], [0], "ab", [0, float("inf")], [0, float("nan")]):
        assert "value_range must be two numbers" in one_line(
            lambda wrong=wrong: ImageFolder(str(tmp_path), value_range=wrong)  # type: ignore[misc]
        )


def test_endings_that_pillow_reads_and_files_without_one(tmp_path: Path, log: list[str]) -> None:
    names = ["a.jfif", "b.avif", "c.tga", "d.JPE", "e.webp", "f.jp2", "g.qoi", "h.ico", "i.dds", "j.pnm"]
    for name in names:
        save(tmp_path / "x.png", size=(32, 32)).rename(tmp_path / name)  # what it is called is not what it is
        with Image.open(tmp_path / name) as image:
            image.load()
        image.save(tmp_path / name)
    for name in ("bare", "photo.1", "photo.jpg_large"):
        save(tmp_path / "x.png").rename(tmp_path / name)
    for name in ("n.heic", "n.txt", "n.pdf", "NOTES"):
        (tmp_path / name).write_text("no image")
    data = ImageFolder(str(tmp_path))
    assert data.paths == sorted([*names, "bare", "photo.1", "photo.jpg_large"])
    for i in range(len(data)):
        assert data.image(i).shape[0] == 3
    assert len(log) == 1
    assert "skipped 4 of 17 files" in log[0]
    assert "1 ends in .heic, which Pillow reads only with a plug-in: convert it to JPEG or PNG (n.heic)" in log[0]
    assert data.skipped["NOTES"] == "has no ending and is not an image"
    assert ImageFolder(str(tmp_path), extensions=[".jfif"]).paths == ["a.jfif"]


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.eps")
    for name in ("b.jpg", "b"):
        shutil.copy(tmp_path / "b.eps", tmp_path / name)
    data = ImageFolder(str(tmp_path), verify=True)
    assert data.paths == ["a.png"]
    assert data.skipped["b.jpg"] == "PostScript, which is not opened because that starts a program"
    assert set(data.skipped) == {"b", "b.eps", "b.jpg"}


def test_a_limit_on_pixels(tmp_path: Path) -> None:
    Image.new("1", (12000, 12000)).save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path))
    assert data.skipped == {
        "a.png": "12000x12000 are 144,000,000 pixels, more than data.dataset.max_pixels=120,000,000"
    }
    assert len(ImageFolder(str(tmp_path), max_pixels=150_000_000)) == 2
    assert "max_pixels must be at least 1" in one_line(lambda: ImageFolder(str(tmp_path), max_pixels=0))


def test_pipes_sockets_and_loops_are_skipped(tmp_path: Path) -> None:
    root = tmp_path / "images"
    save(root / "a.png")
    os.mkfifo(root / "b.png")
    os.mkfifo(root / "c")
    (root / "d.png").symlink_to("b.png")
    (root / "e.png").symlink_to("e.png")
    (root / "f.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkey = os.open(root, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{monkey}/g.png")  # the path itself may be too long
        os.close(monkey)
        (root / "h").symlink_to(root, target_is_directory=True)
        data = ImageFolder(str(root))
    assert data.paths == ["a.png"]
    assert data.skipped["b.png"] == data.skipped["c"] == data.skipped["d.png"] == "a named pipe, not a file"
    assert data.skipped["f.png"] == "a device, not a file"
    assert data.skipped["g.png"] == "a socket, not a file"
    assert "symbolic link" in data.skipped["e.png"]
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert ImageList(str(tmp_path / "list.txt"), root=str(root)).paths == ["a.png"]
    for kind in (ImageList, ImageCSV):
        assert "(a named pipe, not a file)" in one_line(lambda kind=kind: kind(str(root / "b.png")))  # type: ignore[misc]


def test_unreadable_folders_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a/x.png")
    save(tmp_path / "b/x.png")
    scan = os.scandir

    def refuse(folder: str) -> Any:  # root may read everything
        if folder.endswith("b/"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    data = ImageFolder(str(tmp_path))
    assert data.paths == ["a/x.png"]
    assert data.skipped == {"b/": "an unreadable folder (permission denied)"}
    assert "an unreadable folder" in one_line(lambda: ImageFolder(str(tmp_path), strict=True))


def test_folders_of_splits_are_no_classes(tmp_path: Path, log: list[str]) -> None:
    for name in ("train/cat/a.png", "train/dog/a.png", "Test/cat/a.png", "Test/b.png", "val/owl/deep/a.png"):
        save(tmp_path / name)
    data = ImageFolder(str(tmp_path))
    assert data.classes == ("cat", "dog", "owl")
    assert data.targets is not None
    assert dict(zip(data.paths, data.targets.tolist(), strict=True)) == {
        "Test/b.png": -1,
        "Test/cat/a.png": 0,
        "train/cat/a.png": 0,
        "train/dog/a.png": 1,
        "val/owl/deep/a.png": 2,
    }
    assert len(log) == 1
    assert "Test, train, val under" in log[0]
    assert "are taken for splits: all their images are used, classes are the folders in them" in log[0]
    assert ImageFolder(str(tmp_path / "train")).classes == ("cat", "dog")
    assert ImageFolder(str(tmp_path), classes=["dog"]).paths == ["train/dog/a.png"]
    save(tmp_path / "plane/a.png")  # beside planes, trains may be trains
    assert ImageFolder(str(tmp_path)).classes == ("Test", "plane", "train", "val")
    save(tmp_path / "flat/train/a.png")
    save(tmp_path / "flat/test/a.png")
    assert ImageFolder(str(tmp_path / "flat")).classes is None


def test_another_image_stands_in_for_one_that_is_lost(tmp_path: Path, log: list[str]) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", value=i)
    data = ImageFolder(str(tmp_path))
    damage(tmp_path / "1.png")
    (tmp_path / "2.png").unlink()
    pixels = data.images()
    assert torch.equal(pixels, torch.stack([data.image(i) for i in (0, 3, 3, 3)]))
    assert torch.equal(data.present(1), data.image(3))
    assert sorted(data.lost) == [1, 2]
    assert len(log) == 2
    assert "2.png (no such file or directory); remove the file, or set verify=True" in log[1]
    assert log[1].endswith(": another image stands in for 2.png")
    save(tmp_path / "3.png", size=(7, 4))  # changes its size
    assert torch.equal(data.present(3), data.image(0))
    assert "has 4x7 pixels now, and had 4x6 at the start" in data.lost[3]
    strict = ImageFolder(str(tmp_path), strict=True)
    (tmp_path / "0.png").unlink()
    one_line(lambda: strict.present(0))
    for path in tmp_path.iterdir():
        path.unlink()
    assert "can be decoded any more" in one_line(lambda: data.present(0))


def test_hours_do_not_go_on_where_the_files_have_gone(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"{i:02}.png")
    data = ImageFolder(str(tmp_path))
    for i in range(20):
        (tmp_path / f"{i:02}.png").unlink()
    assert "11 of 30 images" in one_line(lambda: data.images())


def test_names_round_trip_through_tables(tmp_path: Path) -> None:
    names = [b"=cmd.png", b"@a.png", b"-1.png", b"+a.png", b" lead.png", b"trail .png", b"a,b.png", b'say "hi".png']
    names += [b"\ttab.png", b"\rcr.png", b"two\nlines.png", b"u\xcc\x88.png", "ünï 日本.png".encode(), b"=d/=e.png"]
    if sys.platform == "linux":
        names.append(b"caf\xe9.png")
    for name in names:
        save(tmp_path / "images" / os.fsdecode(name))
    data = ImageFolder(str(tmp_path / "images"))
    assert len(data) == len(names)
    table = tmp_path / "clusters.csv"
    write_table(table, ("path", "cluster"), ((path, i % 3) for i, path in enumerate(data.paths)))
    assert all(name in table.read_bytes().replace(b'""', b'"') for name in names)
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(names) + 1
    for path, _ in rows:
        assert not path.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert path == "path" or (tmp_path / "images" / path).is_file()
    again = ImageCSV(str(table), root=str(tmp_path / "images"), label="cluster")
    assert again.paths == data.paths
    assert again.fingerprint == data.fingerprint
    assert [row["path"] for row in read_table(table, "path")] == data.paths


def test_names_cannot_write_a_second_line(tmp_path: Path) -> None:
    corrupt(tmp_path / "x\x1b[2J\x07\n2026 forged.png")
    assert r"x\x1b[2J\x07\n2026 forged.png" in one_line(lambda: ImageFolder(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "avif", "bmp"])
def test_mutated_files_give_an_image_or_an_input_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    source = save(tmp_path / f"source.{suffix}", size=(24, 16)).read_bytes()
    for i in range(60):
        data = np.frombuffer(source, np.uint8).copy()
        places = rng.integers(0, len(data), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places))
        start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        whole = data.tobytes()
        kinds = [whole, whole[:stop], whole[:start] + whole[stop:], whole + whole[start:stop]]
        (tmp_path / f"{i:02}.{suffix}").write_bytes(kinds[i % 4])
    images = ImageFolder(str(tmp_path), max_pixels=10_000)
    assert f"source.{suffix}" in images.paths
    for i in range(len(images)):
        with contextlib.suppress(InputError):
            assert images.image(i).dtype == torch.uint8


def test_max_samples(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"{i % 2}/{i:02d}.png")
    path = str(tmp_path)
    some = ImageFolder(path, max_samples=5)
    assert len(some) == 5
    assert some.paths == sorted(some.paths)
    assert some.paths == ImageFolder(path, max_samples=5).paths
    assert some.paths != ImageFolder(path, max_samples=5, seed=1).paths
    assert some.fingerprint != ImageFolder(path).fingerprint
    assert some.classes == ("0", "1")
    assert len(ImageFolder(path, max_samples=50)) == 20
    for name in some.paths[:2]:
        corrupt(tmp_path / name)
    assert len(ImageFolder(path, max_samples=5)) == 5  # others take the place of skipped ones
    assert "max_samples" in one_line(lambda: ImageFolder(path, max_samples=0))


def test_list(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a b.png", "c.png"):
        save(tmp_path / name)
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffsub/a b.png\t10\r\n\nb.png\t9\n./c.png\t\n".encode())
    data = ImageList(str(file))
    assert data.paths == ["b.png", "c.png", "sub/a b.png"]
    assert data.classes == ("9", "10")
    assert data.targets is not None
    assert data.targets.tolist() == [0, -1, 1]
    assert data.image(2).shape == (3, 4, 6)
    assert f"listed in {file} (labels: 2 classes for 2 of the images" in data.describe()
    file.write_text(f"{tmp_path}/b.png\nsub/a b.png\n")
    assert ImageList(str(file), root=str(tmp_path)).targets is None
    file.write_text("b.png\n./b.png\n")
    assert "names b.png twice" in one_line(lambda: ImageList(str(file)))
    file.write_text("\n")
    assert "names no image" in one_line(lambda: ImageList(str(file)))
    file.write_text("b.png\nmissing.png\n")
    assert "1 no such file or directory (missing.png)" in one_line(lambda: ImageList(str(file), strict=True))
    file.write_bytes(b"\xff\xfe")
    assert "cannot read" in one_line(lambda: ImageList(str(file)))
    assert "cannot read" in one_line(lambda: ImageList(str(tmp_path / "none.txt")))


def test_csv(tmp_path: Path) -> None:
    save(tmp_path / "x/a, b.png")
    save(tmp_path / "x/c.png")
    file = tmp_path / "table.csv"
    file.write_text('name,label,split\n"a, b.png",dog,t\nc.png,-1,t\n')
    data = ImageCSV(str(file), root=str(tmp_path / "x"), path="name")
    assert data.paths == ["a, b.png", "c.png"]
    assert data.classes == ("dog",)
    assert data.targets is not None
    assert data.targets.tolist() == [0, -1]
    root = str(tmp_path / "x")
    assert "no column 'path'" in one_line(lambda: ImageCSV(str(file), root=root))
    assert "did you mean 'split'?" in one_line(lambda: ImageCSV(str(file), root=root, path="name", label="splitt"))
    file.write_text("path\nc.png\n")
    assert ImageCSV(str(file), root=root).targets is None
    file.write_text("path,label\nc.png\n")
    assert "line 2" in one_line(lambda: ImageCSV(str(file), root=root))


def fake_cifar(root: Path, folder: str, files: dict[str, int], **labels: list[int]) -> None:
    (root / folder).mkdir()
    for name, n in files.items():
        entry: dict[str, Any] = {"data": np.full((n, 3072), len(name), np.uint8)}
        entry.update({key: value[:n] for key, value in labels.items()})
        (root / folder / name).write_bytes(pickle.dumps(entry))


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets
    from torchvision.datasets import cifar

    root = str(tmp_path)
    message = one_line(lambda: TorchvisionDataset("CIFAR10", root))
    assert root in message
    assert "download=True" in message
    for name in ("CIFAR100-20", "STL10", "MNIST", "FashionMNIST"):
        assert "is missing or incomplete" in one_line(lambda name=name: TorchvisionDataset(name, root))  # type: ignore[misc]
    assert "did you mean 'CIFAR10'?" in one_line(lambda: TorchvisionDataset("CIFAR11", root))
    assert "no split 'unlabeled'" in one_line(lambda: TorchvisionDataset("CIFAR10", root, "unlabeled"))

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    files = {"train": 3, "test": 2}
    fake_cifar(tmp_path, "cifar-100-python", files, fine_labels=[7, 5, 99], coarse_labels=[1, 0, 19])
    meta = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (tmp_path / "cifar-100-python/meta").write_bytes(pickle.dumps(meta))
    fine = TorchvisionDataset("CIFAR100", root)
    coarse = DATASETS.build({"type": "TorchvisionDataset", "name": "CIFAR100-20", "root": root, "split": "train+test"})
    assert fine.targets is not None
    assert fine.targets.tolist() == [7, 5, 99]
    assert fine.image(0).shape == (3, 32, 32)
    assert coarse.targets.tolist() == [1, 0, 1, 0, 19]
    assert coarse.paths[1:3] == ["test/000001", "train/000000"]
    assert [int(coarse.image(i)[0, 0, 0]) for i in (1, 2)] == [4, 5]
    assert len(coarse.classes) == 20
    assert "of CIFAR100-20 (test+train)" in coarse.describe()


def test_stl10_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, n in (("train", 2), ("unlabeled", 3)):
        (folder / f"{name}_X.bin").write_bytes(bytes(n * 3 * 96 * 96))
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    both = TorchvisionDataset("STL10", str(tmp_path), "train+unlabeled")
    assert both.targets is not None
    assert both.targets.tolist() == [0, 9, -1, -1, -1]
    assert both.image(4).shape == (3, 96, 96)
    alone = TorchvisionDataset("STL10", str(tmp_path), "unlabeled")
    assert alone.targets is None
    assert alone.classes is None


def test_images_of_16_bits_of_which_none_can_be_decoded(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 64).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    place = data.index(b"IDAT") + 6
    (tmp_path / "a.png").write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    assert "cannot decode" in one_line(lambda: ImageFolder(str(tmp_path)).image(0))
