"""Vectors as samples: what files of features are read, and what is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from odc.data import Embeddings, Features, build_dataset
from odc.data.pipeline import Pipeline
from odc.data.views import BatchedLoader, ViewDataset, ViewRequest, make_loader
from odc.errors import InputError
from odc.structures import make_generator

N = 60
DIGITS = dict(type="LongTail", dataset=dict(type="Digits"), ratio=0.05)


def values(width: int, seed: int = 0, n: int = N) -> torch.Tensor:
    return torch.randn(n, width, generator=make_generator(seed, "vectors"))


def table(path: Path, width: int = 3, seed: int = 0, names: list[str] | None = None, fingerprint: str = "f") -> str:
    names = [f"{i:03d}.png" for i in range(N)] if names is None else names
    Embeddings(torch.arange(len(names)), tuple(names), values(width, seed, len(names)), fingerprint).save(path)
    return str(path)


def refused(message: str, files: list[Any], **options: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        Features(files, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_samples_are_the_vectors(ending: str, tmp_path: Path) -> None:
    dataset = Features([table(tmp_path / f"a.{ending}")])
    assert (len(dataset), dataset.image_shape, dataset.spaces) == (N, (3, 1, 1), (3,))
    assert (dataset.fingerprint, dataset.targets, dataset.pictures) == ("f", None, None)
    assert torch.equal(dataset.images(), values(3)[:, :, None, None])
    assert torch.equal(dataset.image(7), values(3)[7, :, None, None])


def test_several_files_are_joined_by_name(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(N)]
    np.save(tmp_path / "b.npy", values(2, 1).flip(0).double().numpy())  # in another order, in float64
    (tmp_path / "b.txt").write_bytes("".join(f"./{name}\r\n" for name in reversed(names)).encode())
    np.save(tmp_path / "c.npy", values(4, 2).half().numpy())
    (tmp_path / "named.csv").write_text("path,x\n" + "".join(f"./{name},1\n" for name in names))
    third = dict(file=str(tmp_path / "c.npy"), paths=str(tmp_path / "named.csv"))
    dataset = Features([table(tmp_path / "a.npz"), str(tmp_path / "b.npy"), third])
    assert dataset.spaces == (3, 2, 4)
    together = torch.cat([values(3), values(2, 1), values(4, 2).half().float()], 1)
    assert torch.equal(dataset.images().flatten(1), together)
    assert torch.equal(dataset.image(5).flatten(), together[5])


def test_identity_changes_with_the_vectors_and_not_the_fingerprint(tmp_path: Path) -> None:
    one, same, other = (Features([table(tmp_path / f"{s}{i}.npz", seed=s)]) for i, s in enumerate((0, 0, 1)))
    assert one.fingerprint == same.fingerprint == other.fingerprint
    assert one.identity == same.identity != other.identity
    assert one.identity.startswith("f")


def test_pictures_give_names_targets_and_images(tmp_path: Path) -> None:
    shown = build_dataset(DIGITS)
    file = table(tmp_path / "a.npz", names=shown.paths, fingerprint=shown.fingerprint)
    dataset = Features([file], pictures=DIGITS)
    assert dataset.fingerprint == shown.fingerprint
    assert dataset.classes == shown.classes
    assert np.array_equal(np.asarray(dataset.targets), np.asarray(shown.targets))
    assert dataset.pictures is not None
    assert torch.equal(dataset.pictures.image(3), shown.image(3))


def test_what_is_refused(tmp_path: Path) -> None:
    a = table(tmp_path / "a.npz")
    shown = build_dataset(DIGITS)
    refused("needs at least one file", [])
    refused("'no.npz' do not exist", ["no.npz"])
    refused("has no option 'fil'; did you mean 'file'?", [dict(fil=a)])
    refused("takes no option 'paths', which is for .npy", [dict(file=a, paths="x.txt")])
    (tmp_path / "a.txt").write_text("x")
    refused("it ends in none of .npz, .parquet, .npy", [str(tmp_path / "a.txt")])
    refused("holds no features: it has no index.json", [str(tmp_path)])
    b = table(tmp_path / "b.npz", fingerprint="g")
    refused(f"'{b}' is of 60 images with fingerprint g, but '{a}': 60 images with fingerprint f", [a, b])
    few = table(tmp_path / "few.npz", names=[f"{i:03d}.png" for i in range(2, N)])
    refused(f"'{few}' has vectors of 58 images, '{a}' 60: it lacks 2 of them, '000.png' first", [a, few])
    refused("has vectors of 60 images, '" + few + "' 58: it has 2 others, '000.png' first", [few, a])
    refused(f"fingerprint f, but the pictures {shown.origin}: {len(shown):,} images", [a], pictures=DIGITS)
    refused("a data set of images, not of vectors", [a], pictures=dict(type="Features", files=[a]))
    np.save(tmp_path / "n.npy", np.zeros((3, 2), np.float32))
    n = str(tmp_path / "n.npy")
    refused("there is neither", [n])
    refused("there is no 'x.txt'", [dict(file=n, paths="x.txt")])
    (tmp_path / "n.txt").write_text("a\nb\n")
    refused("has 3 vectors, but", [n])
    (tmp_path / "n.txt").write_text("a\nb\nb\n")
    refused("names b twice", [n])
    (tmp_path / "n.txt").write_text("a\nb\nc\n")
    refused("has vectors of 3 images", [few, n])
    np.save(tmp_path / "n.npy", np.array([[0, 1], [0, np.nan], [np.inf, 0]]))
    refused("2 of 3 vectors are not finite, the first is that of 'b'", [n])
    np.save(tmp_path / "n.npy", np.full((3, 2), 1e300))
    refused("3 of 3 vectors are not finite", [n])
    np.save(tmp_path / "n.npy", np.zeros((3, 2), np.int64))
    refused("holds int64 (3, 2), not vectors of floating-point numbers", [n])
    np.save(tmp_path / "n.npy", np.zeros(3))
    refused("holds float64 (3,)", [n])
    (tmp_path / "n.npy").write_bytes(b"\x93NUMPY")
    refused("is no array of features", [n])


def test_views_of_vectors_are_empty(tmp_path: Path) -> None:
    dataset = Features([table(tmp_path / "a.npz")])
    views = {"train": Pipeline([]), "extract": Pipeline([])}
    for batched, device in ((None, "cpu"), (False, "cpu"), (None, None)):
        loader = make_loader(ViewDataset(dataset, views), 0, device, batched)
        assert isinstance(loader, BatchedLoader) == (batched is None and device == "cpu")
        requests = [ViewRequest("s", view, (i, 5), 0, i) for view in views for i in (3, 4)]
        (batch,) = loader.run([requests])
        for view in views:
            assert torch.equal(batch["s", view][..., 0, 0], values(3)[torch.tensor([[3, 5], [4, 5]])])
