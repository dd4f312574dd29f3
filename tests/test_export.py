"""A model as one graph: it gives what the model gives, in batches of any size, or nothing is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

import odc.export
from odc.cli import main
from odc.errors import InputError
from odc.export import compare, export
from odc.portable import PortableModel
from odc.portable.networks import Network
from odc.portable.packing import pack_nearest
from odc.results import Clustering

SPEC: dict[str, Any] = {
    "title": "a network that nobody trained",
    "channels": 3,
    "backbone": {"type": "ConvNet", "widths": [8], "in_channels": 3},
    "neck": {"type": "AvgPool"},
    "view": [
        {"type": "Resize", "size": [12, 12]},
        {"type": "ToFloat"},
        {"type": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    ],
    "width": 8,
    "side": 12,
}


def pictures(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 1, 1, generator=generator) * 200
    noise = torch.rand(count, 3, 20, 16, generator=generator) * 55
    return list((colours + noise).to(torch.uint8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three clusters, with the names of two."""
    network, generator = Network(SPEC), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    seen = network.see(pictures(30))
    x = network.forward(seen)
    clusters = (x[:, 0] > x[:, 0].median()).long() + (x[:, 1] > x[:, 1].median()).long()
    cluster, margin = clusters.numpy(), np.ones(30, np.float32)
    about = Clustering.describe("", [f"{i:02}" for i in range(30)], x, (cluster, margin), 3).named({0: "dark", 2: "é"})
    model = pack_nearest(about, [network], None, unit=True)
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.save(folder)
    return folder


def test_onnx_gives_what_the_model_gives(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    assert main(["export", str(saved), "--format", "onnx", "--out", str(file)]) == 0
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.err == ""  # the exporters' own notes
    assert "uint8 (B, 3, 12, 12) to cluster and scores" in printed.out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model, shown = PortableModel.load(saved), pictures(7, seed=1)
    expected = model.predict(shown)
    for part in (slice(0, 7), slice(3, 4)):
        cluster, scores = session.run(["cluster", "scores"], {"images": model.prepared(shown[part]).numpy()})
        assert cluster.dtype == np.int64
        np.testing.assert_array_equal(cluster, expected.cluster[part])
        np.testing.assert_allclose(scores, expected.scores[part], atol=2e-3)  # the model resizes before it rounds
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["odc.names"]) == {"0": "dark", "2": "é"}
    assert json.loads(notes["odc.prepare"]) == SPEC["view"][:1]


def test_torch_export_gives_what_the_model_gives(saved: Path, tmp_path: Path) -> None:
    found = export(saved, "torch-export", tmp_path / "model.pt2")
    assert found.file == tmp_path / "model.pt2"
    assert found.difference < 1e-4
    extra = {"odc.json": ""}
    program = torch.export.load(found.file, extra_files=extra).module()
    model = PortableModel.load(saved)
    images = model.prepared(pictures(40, seed=2))  # torch.cdist has another algorithm from 26 on
    cluster, scores = program(images)
    expected_cluster, expected_scores = model.module()(images)
    torch.testing.assert_close(scores, expected_scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(cluster, expected_cluster)
    assert json.loads(json.loads(extra["odc.json"])["names"]) == {"0": "dark", "2": "é"}


def test_a_graph_that_does_something_else_is_not_kept(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(odc.export, "TOLERANCE", -1.0)
    file = tmp_path / "model.pt2"
    assert main(["export", str(saved), "--format", "torch-export", "--out", str(file)]) == 1
    assert "nothing was written: scores differ by at most" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_scores_are_compared_by_hand() -> None:
    expected = np.array([[0.0, 10.0, 4.0], [5.0, 4.9, -np.inf]])
    assert compare(expected, np.array([1, 0]), expected) == (0.0, 0)
    other = expected + np.array([[0.0, -1.0, 0.0], [0.0, 0.05, 0.0]])
    difference, wrong = compare(expected, np.array([1, 0]), other)
    assert difference == pytest.approx(0.5)  # .05 of .1; 1 of 10 is less
    assert wrong == 0
    assert compare(expected, np.array([2, 0]), other)[1] == 1
    assert compare(expected, np.array([1, 1]), other)[1] == 0  # 5 and 4.9 are closer than twice .05
    assert compare(expected, np.array([1, 0]), np.nan_to_num(expected))[0] == float("inf")


def test_what_cannot_be_exported(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds no model"):
        export(tmp_path, "onnx")
    with pytest.raises(InputError, match="onnx or torch-export, not tflite"):
        export(saved, "tflite")
    with pytest.raises(InputError, match="--size 13: the networks of this model see pictures at 12 pixels"):
        export(saved, "onnx", size=13)
    spec_of = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else spec_of(name))
    with pytest.raises(InputError, match=r"onnxscript is not installed.*\[export\]"):
        export(saved, "onnx")
