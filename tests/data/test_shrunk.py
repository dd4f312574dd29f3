"""Pictures as small squares: their pixels, what is kept of them, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from odc.data import Shrunk, build_dataset
from odc.errors import InputError


def folder(root: Path) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    for i, shape in enumerate(((40, 64), (64, 33), (10, 12))):
        pixels = (np.random.default_rng(i).random((*shape, 3)) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    return {"type": "ImageFolder", "root": str(root)}


def test_squares_are_the_middle_of_the_pictures(tmp_path: Path) -> None:
    pictures = folder(tmp_path)
    whole, squares = build_dataset(pictures), Shrunk(pictures, 16)
    assert squares.images().shape == (3, *squares.image_shape) == (3, 3, 16, 16)
    for i in range(3):
        expected = F.center_crop(F.resize(whole.image(i), [16], antialias=True), [16, 16])
        assert torch.equal(squares.image(i), expected)
    assert squares.paths == whole.paths
    assert squares.fingerprint == whole.fingerprint
    assert squares.identity != Shrunk(pictures, 17).identity
    assert squares.pictures is not None
    assert squares.pictures.image(0).shape == (3, 40, 64)
    assert [step["type"] for step in squares.transforms] == ["Resize", "CenterCrop"]


def test_what_is_kept_is_read_instead_of_decoded(tmp_path: Path) -> None:
    pictures, cache = folder(tmp_path / "pictures"), tmp_path / "kept.npz"
    told: list[tuple[int, int]] = []
    first = Shrunk(pictures, 16, str(cache))
    first.watch = lambda done, total: told.append((done, total))
    kept = first.images()
    again = Shrunk(pictures, 16, str(cache))
    again._decode = None  # type: ignore[method-assign,assignment]
    assert torch.equal(again.images(), kept)
    assert Shrunk(pictures, 20, str(cache)).images().shape[-1] == 20, "another size is made anew"
    cache.write_bytes(cache.read_bytes()[:-40])
    assert torch.equal(Shrunk(pictures, 16, str(cache)).images(), kept), "and so is what is damaged"


def test_a_picture_that_cannot_be_decoded_is_known_to_be_lost_by_all_who_read_what_is_kept(tmp_path: Path) -> None:
    pictures, cache = folder(tmp_path / "pictures"), tmp_path / "kept.npz"
    squares = Shrunk(pictures, 16, str(cache))
    (tmp_path / "pictures" / "1.png").write_bytes(b"gone")
    assert torch.equal(squares.images()[1], squares.images()[2]), "the next one stands in"
    assert list(squares.lost) == [1]
    again = Shrunk(folder(tmp_path / "pictures"), 16, str(tmp_path / "other.npz"))
    assert not again.lost


@pytest.mark.parametrize("size", [7, 257])
def test_sizes_out_of_range_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match="from 8 to 256"):
        Shrunk(folder(tmp_path), size)
