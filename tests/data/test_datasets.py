from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image, ImageOps

from odc.data.datasets import ArrayDataset, Digits, ImageCSV, ImageFolder, ImageList, LongTail, TorchvisionDataset
from odc.errors import InputError
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
    assert "LongTail's ratio is in (0, 1], not 0" in one_line(lambda: LongTail({"type": "Digits"}, 0))


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


def test_fingerprint_of_files_is_of_the_paths(tmp_path: Path) -> None:
    for name in ("cat/b.png", "dog/c.png"):
        save(tmp_path / name)
    first = ImageFolder(str(tmp_path)).fingerprint
    assert ImageFolder(str(tmp_path), classes=["dog", "cat"]).fingerprint == first
    save(tmp_path / "dog/d.png")
    assert ImageFolder(str(tmp_path)).fingerprint != first


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
    assert "no file ends in .jpg, .png (2 other files there)" in message


def test_unreadable_files_are_skipped_or_refused(tmp_path: Path, log: list[str]) -> None:
    save(tmp_path / "good.jpg")
    for name in "abcd":
        corrupt(tmp_path / f"{name}.jpg")
    assert ImageFolder(str(tmp_path)).paths == ["good.jpg"]
    assert len(log) == 1
    assert "skipped 4 of 5 files" in log[0]
    assert "a.jpg (not an image), b.jpg (not an image), c.jpg (not an image), ..." in log[0]
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
    truncate(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path))
    assert len(data) == 2
    message = one_line(lambda: data.image(1))
    assert "b.png" in message
    assert "verify=True" in message
    assert ImageFolder(str(tmp_path), verify=True).paths == ["a.png"]


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


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "b.tif")
    data = ImageFolder(str(tmp_path), grey=True)
    assert data.image(0).flatten().tolist() == [0, 0, 1, 255]
    assert data.image(1).flatten().tolist() == [0, 0, 1, 255]
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "c.tif")
    assert "32-bit float" in one_line(lambda: ImageFolder(str(tmp_path), strict=True))


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
    assert "missing.png (no such file or directory)" in one_line(lambda: ImageList(str(file), strict=True))
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
