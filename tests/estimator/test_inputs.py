"""All forms of images become the same pixels, in the order in which they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from odc.data import ImageArray, build_dataset
from odc.errors import InputError
from odc.estimator.inputs import are_images, read_images

GREY = np.array([[[0, 255], [51, 102]], [[10, 20], [30, 40]], [[5, 5], [5, 5]]], dtype=np.uint8)  # (N, H, W)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)  # (N, H, W, C)


class Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.images[i], 7


class Columns:
    """What ``datasets.Dataset`` offers: columns by name, rows by number."""

    class Image:
        pass

    def __init__(self, images: Any) -> None:
        self.images, self.features = images, {"label": None, "img": self.Image()}
        self.column_names = ["label", "img"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"label": 7, "img": self.images[i]}


def pixels(X: Any, folder: Path, levels: tuple[float, float] | None = None) -> np.ndarray[Any, Any]:
    """Return the images (N, 3, H, W) in the order of X."""
    found = read_images(X, folder, levels)
    dataset = build_dataset(found.config)
    return np.stack([dataset.image(int(i)).numpy() for i in found.order])


def pictures(x: Any) -> list[Image.Image]:
    return [Image.fromarray(image) for image in x]


@pytest.mark.parametrize(
    "X",
    [
        COLOUR,
        torch.from_numpy(COLOUR).permute(0, 3, 1, 2),
        COLOUR.transpose(0, 3, 1, 2),
        COLOUR / 255,
        (COLOUR / 255).astype(np.float32).transpose(0, 3, 1, 2),
        COLOUR.astype(np.int64),
        list(COLOUR),
        list(torch.from_numpy(COLOUR).permute(0, 3, 1, 2) / 255),
        pictures(COLOUR),
        Pairs(pictures(COLOUR)),
        Pairs(torch.from_numpy(COLOUR).permute(0, 3, 1, 2)),
        Columns(pictures(COLOUR)),
    ],
    ids=lambda X: type(X).__name__,
)
def test_every_form_gives_the_same_pixels(X: Any, tmp_path: Path) -> None:
    assert are_images(X)
    assert (pixels(X, tmp_path) == COLOUR.transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("X", [GREY, GREY[..., None], torch.from_numpy(GREY)[:, None], list(GREY), pictures(GREY)])
def test_grey_becomes_three_equal_channels(X: Any, tmp_path: Path) -> None:
    assert (pixels(X, tmp_path) == GREY[:, None].repeat(3, 1)).all()


def test_what_shines_through_does_so_on_white(tmp_path: Path) -> None:
    x = np.concatenate([COLOUR, np.full((*GREY.shape, 1), 255, np.uint8)], axis=-1)
    x[0, 0, 0] = 100, 0, 0, 0
    x[0, 0, 1] = 100, 0, 200, 51  # a fifth of it: 20 + 4/5 · 255
    (tmp_path / "a").mkdir()
    found = pixels(x, tmp_path / "a")
    assert found[0, :, 0].T.tolist() == [[255, 255, 255], [224, 204, 244]]
    assert (found[1:] == COLOUR[1:].transpose(0, 3, 1, 2)).all()
    assert (pixels(pictures(x), tmp_path) == found).all(), "as in files"


def test_other_numbers_are_scaled_by_those_of_the_fit(tmp_path: Path) -> None:
    x = np.array([[[-1.0, 3.0]], [[1.0, 0.0]]])
    found = read_images(x, tmp_path)
    assert found.levels == (-1.0, 3.0)
    assert pixels(x, tmp_path)[:, 0, 0].tolist() == [[0, 255], [128, 64]]
    assert pixels(x + 2, tmp_path, found.levels)[:, 0, 0].tolist() == [[128, 255], [255, 191]], "clipped, not rescaled"
    assert read_images(abs(x) / 3, tmp_path).levels is None, "shares are the same everywhere"
    Image.fromarray(np.array([[0, 3000]], np.uint16)).save(tmp_path / "deep.png")
    assert pixels([tmp_path / "deep.png"], tmp_path, (0.0, 6000.0))[0, 0].tolist() == [[0, 128]]


def test_images_may_differ_in_size(tmp_path: Path) -> None:
    items = [COLOUR[0], np.zeros((5, 3), np.uint8)]
    dataset = build_dataset(read_images(items, tmp_path).config)
    assert [tuple(dataset.image(i).shape) for i in range(2)] == [(3, 2, 2), (3, 5, 3)]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files whose names are not in the order of the images."""
    (tmp_path / "in").mkdir()
    paths = [str(tmp_path / "in" / name) for name in ("c, d.png", "a.png", "b.png")]
    for path, image in zip(paths, pictures(COLOUR), strict=True):
        image.save(path)
    return paths


@pytest.mark.parametrize("form", [list, np.array, lambda p: np.array(p, dtype=object), lambda p: [Path(x) for x in p]])
def test_paths_keep_their_order(form: Any, files: list[str], tmp_path: Path) -> None:
    X = form([*files, files[1]])
    assert are_images(X)
    assert (pixels(X, tmp_path) == COLOUR[[0, 1, 2, 1]].transpose(0, 3, 1, 2)).all()


def test_a_folder_says_its_order(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "in" / "broken.png").write_bytes(b"none")
    (tmp_path / "in" / "notes.txt").write_text("none")
    found = read_images(tmp_path / "in", tmp_path)
    assert found.paths == ("a.png", "b.png", "c, d.png")
    assert list(found.unreadable) == ["broken.png"]


@pytest.mark.parametrize("X", [np.zeros((3, 4)), [[1.0, 2.0]], torch.zeros(2, 3), [], np.zeros(3), {"a": 1}])
def test_everything_else_is_vectors(X: Any) -> None:
    assert not are_images(X)


@pytest.mark.parametrize(
    ("X", "told"),
    [
        (np.zeros((2, 5, 6, 7)), "(2, 5, 6, 7) are no images"),
        (np.zeros((2, 3, 4), complex), "complex"),
        (np.full((2, 3, 4), np.nan), "NaN"),
        (np.zeros((0, 3, 4)), "(0, 3, 4) has no image"),
        ([GREY[0], np.full((2, 2), 300)], "item 1 of X has values from 300 to 300"),
        (["/nowhere/x.png"], "/nowhere/x.png"),
        ("/nowhere", "/nowhere does not exist"),
    ],
)
def test_what_is_no_image_is_said(X: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        pixels(X, tmp_path)
    assert told.removeprefix("/") in str(error.value)


def test_an_image_array_is_read_as_it_is_written(tmp_path: Path) -> None:
    x = COLOUR.transpose(0, 3, 1, 2)
    np.save(tmp_path / "x.npy", x)
    dataset = ImageArray(str(tmp_path / "x.npy"))
    assert dataset.paths == ["000000", "000001", "000002"]
    assert (dataset.images().numpy() == x).all()
    dataset.image(0).zero_()
    assert (dataset.image(0).numpy() == x[0]).all()


@pytest.mark.parametrize("x", [np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 3, 4, 4), np.uint8)])
def test_an_image_array_is_of_bytes(x: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"not images uint8 \(N, C, H, W\)"):
        ImageArray(str(tmp_path / "x.npy"))


def test_an_image_array_runs_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is no array of images"):
        ImageArray(str(tmp_path / "x.npy"))
    with pytest.raises(InputError, match="do not exist"):
        ImageArray(str(tmp_path / "y.npy"))
