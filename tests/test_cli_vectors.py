"""Vectors in the place of images on the command line: what works on them, and what is refused in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import Write, refused, write

from odc.cli import main
from odc.data import Embeddings, LabelFile
from odc.structures import make_generator

__all__ = ["write"]  # a fixture

SHOWN = dict(type="Blobs")


def on(*files: str, **more: Any) -> dict[str, Any]:
    return {
        "model.backbone": dict(type="Vectors", _delete_=True),
        "model.neck": dict(type="AvgPool", _delete_=True),
        "data.dataset": dict(type="Features", files=list(files), _delete_=True, **more),
        "data.views": {name: [] for name in ("extract", "train", "other", "weak", "strong")},
        "train_cfg.max_epochs": 1,
    }


@pytest.fixture
def extracted(write: Write, capsys: pytest.CaptureFixture[str]) -> str:
    path = write("odc", "images.py", **{"train_cfg.max_epochs": 1})
    assert main(["train", path, "--work-dir", "images"]) == 0
    assert main(["extract", path, "images/epoch_1.pth", "--out", "f.npz"]) == 0
    capsys.readouterr()
    return "f.npz"


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_what_works_on_images_works_on_vectors(
    extracted: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("dc", "vectors.py", **on(extracted, pictures=SHOWN))
    assert main(["train", path, "--work-dir", "run"]) == 0
    assert "vectors of 8×1×1 stay in memory (0.0 MiB)" in capsys.readouterr().out
    assert len(rows("run/clusters.csv")) == 48
    assert Path("run/clusters.png").is_file()
    assert {"acc", "nmi", "knn"} <= json.loads(Path("run/metrics.json").read_text()).keys()
    assert main(["test", path, "run/epoch_1.pth", "--out", "tested"]) == 0
    assert Path("tested/clusters.csv").read_text() == Path("run/clusters.csv").read_text()
    assert main(["extract", path, "run/epoch_1.pth", "--out", "again.npz"]) == 0
    before, again = Embeddings.load(extracted), Embeddings.load("again.npz")
    assert torch.equal(before.features, again.features)
    assert before.fingerprint == again.fingerprint
    capsys.readouterr()
    assert main(["probe", path, "run/epoch_1.pth", "--out", "probe.json"]) == 0
    of_the_file = capsys.readouterr().out.splitlines()
    assert main(["probe", "images.py", "--features", extracted]) == 0
    assert of_the_file[-3:] == capsys.readouterr().out.splitlines()[-3:]
    reliable = ["reliable", path, "run/epoch_1.pth", "--out", "labels", "--threshold", "0", "--allow-empty"]
    assert main([*reliable, "--features", extracted]) == 0
    # labels of vectors are labels of their images
    assert LabelFile.load("labels/labels.npz").fingerprint == before.fingerprint
    Path("some.csv").write_text("path,label\n000,a\n003,a\n006,a\n001,b\n004,b\n007,b\n")
    assert main(["align", "run/clusters.csv", "some.csv", "--out", "map.json"]) == 0


def test_without_pictures(extracted: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("dc", "vectors.py", **on(extracted))
    assert main(["train", path, "--work-dir", "run"]) == 0
    told = capsys.readouterr().out
    assert "no clusters.png: data.dataset has vectors without pictures" in told
    assert sorted(row["path"] for row in rows("run/clusters.csv")) == [f"{i:03d}" for i in range(48)]
    assert not Path("run/clusters.png").exists()
    assert main(["train", path, "--work-dir", "run", "--resume"]) == 0
    assert "are complete: nothing to evaluate" in capsys.readouterr().out


def test_on_other_features(extracted: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("dc", "vectors.py", **on(extracted, pictures=SHOWN))
    assert main(["train", path, "--work-dir", "run"]) == 0
    z, names = torch.rand(20, 8, generator=make_generator(0, "other")), tuple(f"{i:03d}" for i in range(20))
    Embeddings(torch.arange(20), names, z, "f").save("other.npz")
    Embeddings(torch.arange(20), names, z[:, 1:], "f").save("narrow.npz")
    other = ["--cfg-options", "data.dataset.files=[other.npz]", "data.dataset.pictures=None"]
    assert main(["test", path, "run/epoch_1.pth", "--out", "tested", *other]) == 0
    assert len(rows("tested/clusters.csv")) == 20
    test = ["test", path, "run/epoch_1.pth", "--out", "no", "--cfg-options", "data.dataset.pictures=None"]
    refused(capsys, [*test, "data.dataset.files=[narrow.npz]", "model.backbone.spaces=[8]"], "vectors of 7 numbers")
    refused(capsys, [*test, "data.dataset.files=[narrow.npz]"], "does not fit")
    resume = ["train", path, "--work-dir", "run", "--resume"]
    refused(capsys, [*resume, *other], "20 images with fingerprint f, vectors", "48 images with fingerprint")
    # the same images under other vectors are another training, the same vectors elsewhere are this one
    Embeddings(torch.arange(48), Embeddings.load(extracted).paths, torch.rand(48, 8), "f").save("new.npz")
    refused(capsys, [*resume, "--cfg-options", "data.dataset.files=[new.npz]"], "fingerprint")
    Path("elsewhere").mkdir()
    Path(extracted).rename("elsewhere/g.npz")
    assert main([*resume, "--cfg-options", "data.dataset.files=[elsewhere/g.npz]"]) == 0


def test_what_is_refused(extracted: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("dc", "vectors.py", **on(extracted, pictures=SHOWN))
    train = ["train", path, "--work-dir", "run", "--cfg-options"]
    refused(capsys, [*train, "model.backbone.spaces=[4,4]"], "vectors of 8 numbers", "takes those of 4 + 4")
    refused(capsys, [*train, "data.dataset.pictures.n=40"], "48 images", "40", "give features of the same images")
    refused(capsys, [*train, "data.dataset.files=[]"], "at least one file")
    pixels = write("dc", "pixels.py", **{**on(extracted), "data.views": dict(train=[dict(type="ToFloat")], extract=[])})
    refused(capsys, ["train", pixels, "--work-dir", "run"], "data.views.train has ToFloat, which is for images")
    mixed = write("dc", "mixed.py", **{"data.dataset": dict(type="Features", files=[extracted], _delete_=True)})
    refused(capsys, ["train", mixed, "--work-dir", "run"], "data.views.")
    views: dict[str, Any] = {"data.views": {"extract": [], "train": [], "other": []}}
    vectors = {"data.dataset": dict(type="Features", files=[extracted], _delete_=True)}
    mixed = write("dc", "mixed.py", **vectors, **views)
    refused(capsys, ["train", mixed, "--work-dir", "run"], "but the backbone takes images", "type='Vectors'")
    images = write("dc", "mixed.py", **{"model.backbone": dict(type="Vectors", spaces=[64], _delete_=True)})
    refused(capsys, ["train", images, "--work-dir", "run"], "the data set has images", "takes those of 64")
    images = write("dc", "mixed.py", **{"model.backbone": dict(type="Vectors", _delete_=True)})
    refused(capsys, ["train", images, "--work-dir", "run"], "needs data.dataset=dict(type='Features'")
    semi = write("spice-semi", "semi.py", **on(extracted))
    refused(capsys, ["train", semi, "--work-dir", "run"], "SpiceSemiHead needs images", "a weak and a strong")
    np.save("x.npy", np.zeros((3, 2)))
    refused(capsys, [*train, "data.dataset.files=[x.npy]"], "vectors without names")
