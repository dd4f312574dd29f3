"""Every head with data that no clustering is made for, through the real loop: a right result, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_heads import Blobs, config
from torch import Tensor

from odc.apis import build_runner, finish
from odc.data.label_file import LabelFile
from odc.errors import InputError
from odc.registry import DATASETS, TRANSFORMS

HEADS = ("dc", "odc", "deeper", "moco", "spice-self", "spice-semi", "classifier")
CLUSTERING = ("dc", "odc", "deeper", "spice-self")


@DATASETS.register_module(force=True)
class Few(Blobs):
    """``n`` Blobs, of which the first ``different`` differ and then begin again; only ``known`` have a class."""

    def __init__(self, n: int, different: int = 1000, known: int = 1000) -> None:
        super().__init__(n)
        self._images = self._images[torch.arange(n) % different]
        assert self.targets is not None
        self.targets = np.where(np.arange(n) < known, self.targets, -1)


@TRANSFORMS.register_module(force=True)
class Spoilt:
    """Multiply the pixels by ``by``; NaN spoils bright images only."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, image: Tensor) -> Tensor:
        return image * self.by if self.by == self.by or float(image.sum()) > -25 else image


def trained(name: str, folder: Path, n: int = 12, K: int = 2, **options: Any) -> dict[str, float]:
    """Train for an epoch, write the clusters, and return the metrics; everything learnt must be finite."""
    data = {key: options.pop(key) for key in ("different", "known") if key in options}
    cfg = config(name, str(folder), **{"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1, **options})
    cfg.data.dataset = dict(type="Few", n=n, **data)
    if "num_clusters" in cfg.model.head and name != "spice-semi":
        cfg.model.head.num_clusters = K
    if name == "odc":
        cfg.model.head.min_cluster = 0.16
    if name == "spice-semi":
        file = folder / "few.npz"
        LabelFile(np.where(np.arange(n) % 2 == 0, np.arange(n) % 3, -1), 3, Few(n, **data).fingerprint).save(file)
        cfg.train_cfg.label_file = str(file)
    if name == "moco":
        cfg.model.head.batch_size, cfg.model.head.queue_size = 4, 4
    runner = build_runner(cfg)
    runner.train()
    values = finish(runner, folder)
    for key, tensor in runner.model.state_dict().items():
        assert not tensor.is_floating_point() or tensor.isfinite().all() or "bias" in key, key
    assert all(np.isfinite(value) for value in values.values())
    return values


def refused(name: str, folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as error:
        trained(name, folder, **options)
    assert "\n" not in str(error.value)
    assert not list(folder.glob("*.pth")), "nothing was trained"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n", [2, 5])
def test_a_handful_of_images(name: str, n: int, tmp_path: Path) -> None:
    if name == "moco" and n < 5:
        refused(name, tmp_path, f"needs at least 4 images, not {n}", n=n)
    else:
        trained(name, tmp_path, n=n)


@pytest.mark.parametrize("name", CLUSTERING)
def test_one_image_has_no_clusters(name: str, tmp_path: Path) -> None:
    refused(name, tmp_path, "1 sample|needs at least 2 samples, got 1|there are 1|share 1", n=1)


@pytest.mark.parametrize("name", CLUSTERING)
@pytest.mark.parametrize("K", [12, 13])
def test_as_many_clusters_as_images(name: str, K: int, tmp_path: Path) -> None:
    if K > 12:
        refused(name, tmp_path, f"{K} clusters .*12", K=K)
    else:
        trained(name, tmp_path, K=K)


@pytest.mark.parametrize("name", CLUSTERING)
def test_copies_of_two_images(name: str, tmp_path: Path) -> None:
    trained(name, tmp_path, different=2, K=4)


@pytest.mark.parametrize(
    ("name", "known"), [*((name, 1) for name in HEADS), ("odc", 0), ("moco", 0), ("classifier", 0)]
)
def test_hardly_any_ground_truth(name: str, known: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if name != "classifier" else {"train_cfg.label_fraction": 1.0}
    if name == "classifier" and not known:
        refused(name, tmp_path, "labelled", known=known, **options)
        return
    values = trained(name, tmp_path, known=known, **options)
    assert set(values) <= {"entropy", "empty"}


@pytest.mark.parametrize(("name", "by"), [*((name, np.nan) for name in CLUSTERING), ("odc", np.inf)])
def test_pixels_that_are_no_numbers(name: str, by: float, tmp_path: Path) -> None:
    spoilt = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.3], std=[0.3]), dict(type="Spoilt", by=by)]
    views = {f"data.views.{view}": spoilt for view in ("extract", "train", "weak", "strong", "rotated")}
    message = (
        r"the features of \d+ of 12 images are not finite, the first is .*; its pixels .* either, as the view 'extract'"
    )
    refused(name, tmp_path, message, **views)


@pytest.mark.parametrize("name", CLUSTERING)
def test_a_network_that_is_no_number(name: str, tmp_path: Path) -> None:
    cfg = config(name, str(tmp_path))
    runner = build_runner(cfg)
    with torch.no_grad():
        next(runner.model.backbone.parameters()).fill_(torch.nan)
    runner.model.init_weights = lambda: None
    with pytest.raises(
        InputError, match=r"'backbone\.\S+' of the model is not finite before the first step, from its initialisation"
    ):
        runner.train()


@pytest.mark.parametrize("name", CLUSTERING)
def test_a_network_whose_units_are_dead(name: str, tmp_path: Path) -> None:
    runner = build_runner(config(name, str(tmp_path), **{"model.head.num_clusters": 4}))
    with torch.no_grad():
        for parameter in runner.model.neck.parameters():
            parameter.zero_()
    with pytest.raises(InputError, match="equal: there is nothing to cluster"):
        runner.train()


@pytest.mark.parametrize("name", ["dc", "odc", "deeper", "classifier", "spice-semi"])
def test_a_batch_of_one_has_no_batch_norm(name: str, tmp_path: Path) -> None:
    if name == "spice-semi":
        trained(name, tmp_path, **{"model.head.batch_size": 1, "model.head.labelled_size": 1})
    else:
        refused(
            name, tmp_path, "a step of 1 image a process: set model.head.batch_size", **{"model.head.batch_size": 1}
        )
