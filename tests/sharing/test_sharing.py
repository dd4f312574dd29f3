"""Files for other tools, entry by entry."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from odc.cli import main
from odc.results import Clustering
from odc.sharing import TOOLS, share

NAMES = ["a b.png", "deep/ü & <x>.png", "deep/z.png", "q.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write four pictures and a clustering of them: the last one is in no cluster, the third repeats the first."""
    for i, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 10), (40 * i, 0, 0)).save(file)
    x = np.array([[1, 0], [0, 1], [1, 0], [-1, -1]], dtype=np.float32)
    found = np.array([0, 1, 0, -1]), np.array([0.5, 0.25, 1, 0], dtype=np.float32)
    described = Clustering.describe(tmp_path / "photos", NAMES, x, found, 2, names={1: 'cat "tabby"'})
    described.save(tmp_path / "found")
    return tmp_path / "found"


def test_fiftyone(folder: Path, tmp_path: Path) -> None:
    lines = share(folder, "fiftyone", tmp_path / "out")
    assert "FiftyOneImageClassificationDataset" in "".join(lines)
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert data == {f"000000{i}": str(tmp_path / "photos" / name) for i, name in enumerate(NAMES)}
    told = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert told["classes"] is None
    assert [told["labels"][name]["label"] for name in data] == ["cluster 0", 'cat "tabby"', "cluster 0", "none"]
    third = told["labels"]["0000002"]
    assert third["confidence"] == 1
    assert third["attributes"] == {
        "number": 0,
        "consistency": 0.33333,
        "distance": 0,
        "outlier": False,
        "duplicate_of": "a b.png",
    }
    assert told["labels"]["0000003"]["confidence"] == 0


def test_datasets(folder: Path, tmp_path: Path) -> None:
    share(folder, "datasets", tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "clusters.parquet")
    rows = table.to_pydict()
    assert [image["path"] for image in rows["image"]] == [str(tmp_path / "photos" / name) for name in NAMES]
    assert rows["cluster"] == [0, 1, 0, -1]
    assert rows["duplicate_of"] == [None, None, "a b.png", None]
    assert rows["features"][1] == [0, 1]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["image"] == {"_type": "Image"}
    assert features["cluster"]["names"] == ["cluster 0", 'cat "tabby"']


def test_embedding_atlas(folder: Path, tmp_path: Path) -> None:
    lines = share(folder, "embedding-atlas", tmp_path / "out" / "it's")
    assert lines[0] == "no map: 4 images are too few for a map"
    assert lines[1].endswith("clusters.parquet' --image image --neighbors neighbors")
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "it's" / "clusters.parquet").to_pydict()
    assert rows["id"] == [0, 1, 2, 3]
    assert rows["label"] == ["cluster 0", 'cat "tabby"', "cluster 0", "none"]
    assert rows["neighbors"][0]["ids"][0] == 2
    assert rows["neighbors"][0]["distances"] == pytest.approx([0, 1, 1 + 0.5**0.5], abs=1e-6)
    with Image.open(io.BytesIO(rows["image"][3]["bytes"])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (23, 10))


def test_label_studio(folder: Path, tmp_path: Path) -> None:
    lines = share(folder, "labelstudio", tmp_path / "out")
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={tmp_path / 'photos'}" in lines[0]
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == ["q.png", NAMES[1], "a b.png", "deep/z.png"], "least sure first"
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=deep/%C3%BC%20%26%20%3Cx%3E.png"
    assert tasks[0]["predictions"] == [], "it is in no cluster"
    (prediction,) = tasks[1]["predictions"]
    assert prediction["score"] == pytest.approx(1 / 3, abs=1e-5)
    assert prediction["result"] == [
        {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ['cat "tabby"']}}
    ]
    view = ElementTree.parse(tmp_path / "out" / "config.xml").getroot()
    choices = view.find("Choices")
    assert choices is not None
    assert (choices.get("name"), choices.get("toName")) == ("label", "image")
    assert [choice.get("value") for choice in choices] == ["cluster 0", 'cat "tabby"']


def test_a_name_that_is_no_unicode_is_left_out(folder: Path, tmp_path: Path) -> None:
    x = np.eye(3, dtype=np.float32)
    paths = [os.fsdecode(b"\xff.png"), "a b.png", "q.png"]
    found = np.array([0, 1, 0]), np.zeros(3, dtype=np.float32)
    Clustering.describe(tmp_path / "photos", paths, x, found, 2).save(tmp_path / "odd")
    lines = share(tmp_path / "odd", "fiftyone", tmp_path / "out")
    assert lines[0] == "1 images are left out: their names are no Unicode"
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())["labels"]
    assert [label["label"] for label in labels.values()] == ["cluster 1", "cluster 0"]


def test_what_cannot_be_shared(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.eye(2, dtype=np.float32)
    vectors = Clustering.describe("", ["a", "b"], x, (np.array([0, 1]), np.zeros(2, dtype=np.float32)), 2)
    vectors.save(tmp_path / "vectors")
    arguments = ["--to", "fiftyone", "--out", str(tmp_path / "out")]
    for argv, words in (
        (["share", str(tmp_path / "vectors"), *arguments], "is of vectors, whose images are unknown: FiftyOne shows"),
        (["share", str(folder), "--to", "datasets", "--out", str(folder)], "holds a clustering: give another folder"),
        (["share", str(tmp_path), *arguments], "has no clustering.json"),
    ):
        assert main(argv) == 2
        assert words in capsys.readouterr().err
    assert main(["share", str(folder), *arguments]) == 0
    assert capsys.readouterr().out.startswith("import fiftyone as fo\n")
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert main(["share", str(folder), *arguments]) == 2
    assert "which is not there: put them back" in capsys.readouterr().err


def test_every_tool_says_where_its_format_stands() -> None:
    assert all(tool.title and tool.documentation for tool in TOOLS.values())
