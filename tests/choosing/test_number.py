"""The command: from features, from pictures and from what was clustered to a picture and a number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odc.choosing.choose import read_ks
from odc.cli import main
from odc.errors import InputError
from odc.results import Clustering


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """60 vectors around three axes, and their names."""
    x = np.eye(4)[np.arange(60) % 3] + 0.03 * np.random.default_rng(0).normal(size=(60, 4))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    (tmp_path / "x.txt").write_text("\n".join(f"{i:02}.png" for i in range(60)))
    return tmp_path / "x.npy"


def test_features_give_a_picture_and_a_number(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["choose-k", str(features), "--ks", "2-4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 clusters: 5 of 5 criteria name 3" in printed
    assert str(out / "choose-k.png") in printed
    with Image.open(out / "choose-k.png") as picture:
        assert picture.size > (1000, 600)
    told = json.loads((out / "choose-k.json").read_text())
    assert (told["k"], told["ks"], told["samples"]) == (3, [2, 3, 4], 60)


def test_a_clustering_has_its_features(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load(features)
    scores = torch.eye(3)[torch.arange(60) % 3]
    Clustering.describe("", [f"{i:02}.png" for i in range(60)], x, scores, 3).save(tmp_path / "clusters")
    given = tmp_path / "clusters" / "features.npy"  # stands for its folder
    assert main(["choose-k", str(given), "--ks", "2,3", "--out", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["k"] == 3
    assert "numbers of clusters" in printed.err


def test_pictures_are_seen_by_their_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(36):
        colour = np.eye(3)[i % 3] * 200 + rng.integers(0, 50, (1 + i % 3, 4, 3))
        Image.fromarray(colour.astype(np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
    assert main(["choose-k", str(tmp_path / "photos"), "--ks", "2,3,4", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "by their pixels, which say little of photographs: --features" in printed
    assert "3 clusters: 5 of 5 criteria name 3" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing"], "there is no folder or file missing"),
        (["dinov2-small+clip-b16"], "give the pictures, and it as --features dinov2-small+clip-b16"),
        (
            ["x.npy", "--features", "dinov2-small"],
            "x.npy has features already: --features dinov2-small is for a folder",
        ),
        (["x.npy", "--ks", "1-5"], "'1-5' are no numbers of clusters to try"),
        (["x.npy", "--ks", "2,60"], "from 2 to 59, for 60 samples"),
        (["empty"], "no image"),
    ],
)
def test_what_cannot_be_counted(
    features: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(features.parent)
    Path("empty").mkdir()
    assert main(["choose-k", *argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path("work_dirs").glob("*"))


def test_numbers_of_clusters_are_read() -> None:
    assert read_ks("2-5") == (2, 3, 4, 5)
    assert read_ks("20, 2-3,3") == (2, 3, 20)
    assert read_ks("18-24") == (18, 19, 20, 22, 24)
    for wrong in ("", "two", "1", "5-2", "2-", "2,,3", "-3"):
        with pytest.raises(InputError, match="no numbers of clusters"):
            read_ks(wrong)
