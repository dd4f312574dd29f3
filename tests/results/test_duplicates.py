"""Duplicates: pictures written again, tiny and plain ones, and what cannot be decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import to_pil_image

from odc.data import ArrayDataset, build_dataset
from odc.results.duplicates import Prints, differing_bits, duplicates, print_of


def scene(seed: int, size: int = 160) -> Image.Image:
    """Return a picture with some structure: a gradient, and shapes."""
    draws = np.random.default_rng(seed)
    image = Image.fromarray(np.tile(np.linspace(0, 255, size).astype(np.uint8), (size, 1)).copy()).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = draws.integers(0, size, 4)
        draw.ellipse((x, y, x + w // 2 + 8, y + h // 2 + 8), fill=tuple(draws.integers(0, 255, 3).tolist()))
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes in six versions each."""
    place = tmp_path_factory.mktemp("copies")
    for i in range(5):
        image = scene(i)
        image.save(place / f"{i}-0.png")
        (place / f"{i}-1.png").write_bytes((place / f"{i}-0.png").read_bytes())
        image.save(place / f"{i}-2.jpg", quality=50)
        image.resize((80, 80), Image.Resampling.LANCZOS).save(place / f"{i}-3.jpg", quality=85)
        image.resize((240, 240), Image.Resampling.BICUBIC).save(place / f"{i}-4.webp", quality=85)
        image.crop((3, 3, 157, 157)).save(place / f"{i}-5.jpg", quality=90)
    return place


def test_versions_of_a_picture_are_found_and_no_others(folder: Path) -> None:
    prints = Prints.of(build_dataset({"type": "ImageFolder", "root": str(folder)}))
    group = np.arange(30) // 6 * 6
    # features by which the versions of a scene are near, as those of a network are, and the cropped one is, too
    neighbours = np.array([[j for j in range(g, g + 6) if j != i] for i, g in enumerate(group.tolist())])
    found = duplicates(neighbours, np.full(neighbours.shape, 0.95, np.float32), prints)
    first = np.where(np.arange(30) == group, -1, group)
    np.testing.assert_array_equal(found, first)
    alone = duplicates(np.zeros((30, 0), np.int64), np.zeros((30, 0), np.float32), prints)
    whole = np.arange(30) % 6 != 5
    np.testing.assert_array_equal(alone[whole], first[whole])


def test_near_features_alone_do_not_make_duplicates() -> None:
    prints = Prints.join([print_of(torch.from_numpy(np.array(scene(i))).permute(2, 0, 1)) for i in range(2)])
    found = duplicates(np.array([[1], [0]]), np.ones((2, 1), np.float32), prints)
    np.testing.assert_array_equal(found, [-1, -1])


def test_digits_are_not_taken_for_each_other() -> None:
    """Tiny pictures of ten things: hashes alone would call more than half of them copies."""
    N = 600
    images = build_dataset({"type": "Digits", "size": 32}).images()[:N]
    prints = Prints.of(ArrayDataset(images, [f"{i:03d}" for i in range(N)]))
    found = duplicates(np.roll(np.arange(N), 1)[:, None], np.ones((N, 1), np.float32), prints)
    assert int((found >= 0).sum()) <= 5


def test_plain_pictures_are_equal_by_their_brightness() -> None:
    images = torch.stack([torch.full((3, 70, 70), v, dtype=torch.uint8) for v in (10, 10, 12, 200)])
    prints = Prints.of(ArrayDataset(images, ["a", "b", "c", "d"]))
    found = duplicates(np.zeros((4, 0), np.int64), np.zeros((4, 0), np.float32), prints)
    np.testing.assert_array_equal(found, [-1, 0, 0, -1])


def test_what_cannot_be_decoded_repeats_nothing(tmp_path: Path) -> None:
    for i in range(3):
        scene(0).save(tmp_path / f"{i}.png")
    dataset = build_dataset({"type": "ImageFolder", "root": str(tmp_path)})
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"gone")
    told: list[tuple[int, int]] = []
    prints = Prints.of(dataset, lambda done, of: told.append((done, of)))
    assert prints.side.tolist() == [0, 0, 160]
    assert told == [(1, 3), (2, 3), (3, 3)]
    found = duplicates(np.array([[1], [0], [0]]), np.ones((3, 1), np.float32), prints)
    np.testing.assert_array_equal(found, [-1, -1, -1])


def test_the_hash_by_hand() -> None:
    """A gradient to the right: every pixel is brighter than the one to its left, and none than the one above."""
    image = torch.arange(0, 90, 10, dtype=torch.uint8).expand(1, 8, 9)
    rough = print_of(image).rough
    assert rough.tolist() == [[2**64 - 1, 0]]
    assert differing_bits(rough, np.array([[2**64 - 2, 3]], np.uint64)).tolist() == [3]
    dark = print_of((image // 2).contiguous()).rough
    np.testing.assert_array_equal(dark, rough)


def test_vectors_without_pictures_must_be_equal() -> None:
    near = np.array([[0.999], [1.0], [1.0]], np.float32)
    np.testing.assert_array_equal(duplicates(np.array([[1], [2], [1]]), near, None), [-1, -1, 1])


def test_grey_and_colour_of_one_picture_are_one() -> None:
    image = scene(3)
    parts = [print_of(torch.from_numpy(np.array(image)).permute(2, 0, 1)), print_of(torch.zeros(1, 8, 8).byte())]
    grey = torch.from_numpy(np.array(image.convert("L")))[None]
    assert to_pil_image(grey).size == (160, 160)
    prints = Prints.join([*parts, print_of(grey)])
    found = duplicates(np.zeros((3, 0), np.int64), np.zeros((3, 0), np.float32), prints)
    np.testing.assert_array_equal(found, [-1, -1, 0])
