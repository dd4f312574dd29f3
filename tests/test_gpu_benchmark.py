"""The stages of `benchmarks/gpu/cifar10.sh`, rehearsed without a GPU on JPEG files that are made of digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # at the end: nothing there hides a module
from gpu import cifar10

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu/cifar10.sh"
HEADS = ["semi", "odc", "dc", "deepercluster", "secu", "dcboost"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return an archive as CIFAR-10's: 40 images of each class to train on, 15 to test."""
    digits, root = load_digits(), tmp_path / "made" / "jpegs"
    for c in range(10):
        for i, number in enumerate(np.flatnonzero(digits.target == c)[:55]):
            image = Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).resize((32, 32)).convert("RGB")
            path = root / ("train" if i < 40 else "test") / f"class{c}" / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=75)
    target = tmp_path / "jpegs.tar.zst"
    with pyarrow.CompressedOutputStream(str(target), "zstd") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        tar.add(root, "jpegs")
    return target


def run(out: Path, archive: Path, *stages: str, **variables: str) -> str:
    environment = {**os.environ, "OUT": str(out), "CIFAR": str(archive), "PYTHON": sys.executable, **variables}
    work = ("--work", str(archive.parent / "work"))
    call = ["bash", str(SCRIPT), *stages, "--smoke", *work]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def told(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.mark.slow
def test_every_stage_hands_on_to_the_next(archive: Path, tmp_path: Path) -> None:
    folders = first, second, third, fourth = [tmp_path / name for name in ("first", "second", "third", "fourth")]
    run(first, archive, "features", MINUTES="0.42")  # too short for a second epoch
    half = told(first, "features")
    assert (half["epochs"], half["finished"], half["planned_epochs"]) == (1, False, 2)
    assert "not finished" in run(first, archive, "table")
    run(second, archive, "features", "self", "reliable", IN=str(first))
    whole = told(second, "features")
    assert (whole["epochs"], whole["finished"], len(whole["calls"])) == (2, True, 2)
    assert whole["images_seen"] == 2 * half["images_seen"]
    assert whole["seconds"] > half["seconds"]
    run(third, archive, *HEADS[:3], IN=str(second))
    run(fourth, archive, *HEADS[3:], "table", IN=f"{second} {third}")
    table = (fourth / "table.md").read_text()
    for name in ["features", "self", "reliable", *HEADS]:
        one = told(third if name in HEADS[:3] else fourth if name in HEADS else second, name)
        assert one["versions"]["torch"] == torch.__version__
        assert "cifar10.py" in one["command"]
        assert f" {name} " in one["command"]
        assert one["seconds"] > 0
        assert f"| {'moco' if name == 'features' else name}" in table
        if name == "reliable":
            assert 0 < one["count"] <= one["total"] == 300
            continue
        assert one["images_per_second"] > 0
        assert {"acc", "nmi", "ari", "knn"} <= one["metrics"].keys() or name == "features"
        assert f"{one['metrics']['knn']:.3f}" in table
    assert all(path.stat().st_size <= cifar10.PART for folder in folders for path in folder.iterdir())
    assert all(len(list(folder.iterdir())) <= 8 for folder in folders), "more do not come back"


@pytest.mark.slow
def test_the_features_may_be_of_propos(archive: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", archive, "features", "--features", "propos")
    assert told(tmp_path / "out", "features")["kind"] == "propos"
    state = torch.load(cifar10.take(tmp_path / "out" / "features.pth", tmp_path / "joined.pth"))["state_dict"]
    assert all(name.startswith("backbone.") for name in state)


def test_a_state_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "PART", 5000)
    (tmp_path / "a.pth.09").write_bytes(b"of an earlier call")
    state = {"w": torch.linspace(-3, 3, 9000), "n": torch.tensor(7)}
    cifar10.put(cifar10.half(state), tmp_path / "a.pth")
    parts = sorted(tmp_path.glob("a.pth.*"))
    assert [part.name for part in parts] == [f"a.pth.0{i}" for i in range(4)]
    assert all(part.stat().st_size <= 5000 for part in parts)
    found = torch.load(cifar10.take(tmp_path / "a.pth", tmp_path / "b.pth"))["state_dict"]
    assert int(found["n"]) == 7
    assert found["w"].dtype == torch.float32
    assert torch.equal(found["w"], state["w"].half().float())


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    common = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit, match="2"):
        cifar10.main(["reliable", "--data", str(tmp_path), *common])
    assert "has features.json: run features first" in capsys.readouterr().err
    (tmp_path / "out" / "features.json").write_text('{"finished": false}')
    with pytest.raises(SystemExit, match="2"):
        cifar10.main(["odc", "--data", str(tmp_path), *common])
    assert "features is not finished: another call goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cifar10.main(["self", "--data", str(tmp_path / "train"), *common])
    assert "has no folders train and test" in capsys.readouterr().err
