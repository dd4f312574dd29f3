"""odc cluster: from a folder to everything that it leaves, again by the same call, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_folder import SHORT, draw

from odc.cli import main
from odc.config import parse_config
from odc.data import Embeddings, build_dataset
from odc.errors import InputError
from odc.folder import cluster
from odc.folder import clustering as whole
from odc.portable import PortableModel
from odc.results.clustering import Clustering

ROOT = Path(__file__).parents[2]
Clustered = tuple[Clustering, Path, str]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures, 20 of each of three colours."""
    return draw(tmp_path_factory.mktemp("cluster") / "pictures", 60)


@pytest.fixture(scope="session")
def clustered(pictures: Path) -> tuple[Clustering, Path, str]:
    """What a call left: the clustering, its folder, and what it said."""
    out, said = pictures.parent / "out", io.StringIO()
    found = cluster(pictures, 3, out, method="scan", copies="link", options=SHORT, stream=said)
    return found, out, said.getvalue()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file but the lock and the notes of a call."""
    apart = {"log.txt", "time.json", "summary.md", ".lock"}
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in apart]
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def test_everything_is_left(clustered: Clustered, pictures: Path) -> None:
    found, out, _ = clustered
    assert {p.name for p in out.iterdir()} >= {
        *(
            "clusters.csv",
            "clusters.parquet",
            "features.npy",
            "clustering.json",
            "report.html",
            "config.py",
            "model",
            "run",
        ),
        "clusters",
    }
    again = Clustering.load(out)
    assert again.paths == found.paths == tuple(f"{i:03d}.png" for i in range(60))
    assert (again.cluster == found.cluster).all()
    assert again.root == str(pictures)
    assert again.num_clusters == 3
    assert again.about["method"] == "scan-moco"
    seen = PortableModel.load(out).predict([build_dataset({"type": "ImageFolder", "root": str(pictures)}).image(0)])
    assert seen.cluster[0] == found.cluster[0]
    links = sorted((out / "clusters").rglob("*.png"))
    assert sorted(p.name for p in links) == list(found.paths)
    assert all(p.resolve().parent == pictures and p.is_symlink() for p in links)
    config = parse_config(out / "config.py")
    assert config.model.head.num_clusters == 3
    assert config.data.dataset.type == "Shrunk"


def test_it_says_what_it_does_in_three_lines_and_then_how_far_it_is(clustered: Clustered) -> None:
    lines = clustered[2].splitlines()
    assert "60 pictures, colour, 40 to 48 pixels" in lines[0]
    assert lines[1].startswith("recipe: MoCo trains a ResNet-18 of width 16 on the pictures at 32 pixels a side, 2 ep")
    assert "everything goes to" in lines[2]
    steps = [line.partition("  ")[0] for line in lines if line.startswith("[")]
    assert list(dict.fromkeys(steps)) == [
        "[1/4] reading",
        "[2/4] pre-training (MoCo)",
        "[3/4] clusters (scan)",
        "[4/4] table, model and page",
    ]
    assert "odc predict" in lines[-1]


def test_the_same_call_is_done_at_once_and_touches_nothing(clustered: Clustered, pictures: Path) -> None:
    found, out, _ = clustered
    before, said = snapshot(out), io.StringIO()
    again = cluster(pictures, 3, out, method="scan", copies="link", options=SHORT, stream=said)
    assert snapshot(out).items() ^ before.items() == set()
    assert (again.cluster == found.cluster).all()
    assert "goes on in" in said.getvalue()


def test_what_is_missing_is_made_again(clustered: Clustered, pictures: Path, tmp_path: Path) -> None:
    found, out, _ = clustered
    gone = ("model/model.json", "report.html", "clusters.csv")
    for file in gone:
        (out / file).unlink()
    assert (cluster(pictures, 3, out, method="scan", options=SHORT).cluster == found.cluster).all()
    assert all((out / file).is_file() for file in gone)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_clusters": 4}, "begun with -k 3, now it is 4"),
        ({"seed": 1}, "--seed 0, now it is 1"),
        ({"method": "turtle"}, "--method scan, now it is turtle"),
        ({"budget": "5m"}, "--budget None, now it is 5m"),
        ({"options": {}}, "--cfg-options"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    clustered: Clustered, pictures: Path, changed: dict[str, object], told: str
) -> None:
    _, out, _ = clustered
    before = snapshot(out)
    call: dict[str, object] = {"num_clusters": 3, "method": "scan", "options": SHORT, **changed}
    with pytest.raises(InputError, match=told):
        cluster(pictures, out=out, **call)  # type: ignore[arg-type]
    assert snapshot(out) == before


def test_other_pictures_are_refused(clustered: Clustered, pictures: Path, tmp_path: Path) -> None:
    _, out, _ = clustered
    extra = pictures / "999.png"
    shutil.copy(pictures / "000.png", extra)
    try:
        with pytest.raises(InputError, match=r"are not those that .* was begun with \(now 61"):
            cluster(pictures, 3, out, method="scan", options=SHORT)
    finally:
        extra.unlink()


def test_few_and_odd_pictures_of_every_kind(tmp_path: Path) -> None:
    """Five pictures, two clusters: grey, RGBA, 16-bit, huge, tiny; and a file that is none."""
    folder, generator = tmp_path / "odd", np.random.default_rng(0)
    folder.mkdir()
    Image.fromarray((generator.random((30, 20)) * 255).astype(np.uint8)).save(folder / "grey.png")
    Image.fromarray((generator.random((9, 7, 4)) * 255).astype(np.uint8)).save(folder / "rgba.png")
    Image.fromarray((generator.random((16, 16)) * 65535).astype(np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (3000, 2000), "red").save(folder / "huge.jpg")
    shutil.copy(folder / "huge.jpg", folder / "same.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / "torn.png").write_bytes((folder / "grey.png").read_bytes()[:100])
    said = io.StringIO()
    found = cluster(folder, 2, tmp_path / "out", copies="copy", stream=said)
    assert sorted(found.paths) == ["deep.png", "grey.png", "huge.jpg", "rgba.png", "same.jpg"]
    rows = dict(zip(found.paths, found.cluster.tolist(), strict=True))
    assert rows["huge.jpg"] == rows["same.jpg"]
    assert found.duplicate_of[found.paths.index("same.jpg")] == found.paths.index("huge.jpg")
    assert "5 pictures, colour" in said.getvalue()
    assert "2 other files left out; 1 exact duplicate" in said.getvalue()
    assert "torn.png" in (tmp_path / "out" / "skipped.csv").read_text()
    assert sum(1 for p in (tmp_path / "out" / "clusters").rglob("*.*") if not p.is_symlink()) == 5


def test_as_many_clusters_as_pictures(tmp_path: Path) -> None:
    found = cluster(draw(tmp_path / "three", 3), 3, tmp_path / "out")
    assert sorted(found.cluster.tolist()) == [0, 1, 2]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["cluster", *args]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


def test_wrong_input_is_one_line_and_leaves_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    folder = str(pictures)
    assert "there is no folder nowhere" in refused(capsys, "nowhere", "-k", "3")
    assert "no image under empty" in refused(capsys, "empty", "-k", "3")
    assert "is a file: odc cluster takes the folder" in refused(capsys, f"{folder}/000.png", "-k", "3")
    assert "61 clusters from 60 pictures" in refused(capsys, folder, "-k", "61")
    assert "one cluster holds everything" in refused(capsys, folder, "-k", "1")
    assert "-k ten: give a number" in refused(capsys, folder, "-k", "ten")
    assert "lies in the folder of pictures" in refused(capsys, folder, "-k", "3", "--out", f"{folder}/out")
    assert "as in 90s, 10m" in refused(capsys, folder, "-k", "3", "--budget", "soon")
    assert "unknown method 'skan-moco'" in refused(capsys, folder, "-k", "3", "--method", "skan")
    assert "--size 64 is for the network" in refused(capsys, folder, "-k", "3", "--size", "64")
    assert "no pre-trained backbone 'dinov9'" in refused(capsys, folder, "-k", "3", "--features", "dinov9")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "work_dirs"]
    assert not any((tmp_path / "work_dirs").iterdir())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("mine")
    assert "holds other files (thesis.tex)" in refused(capsys, folder, "-k", "3", "--out", "used")
    assert sorted(p.name for p in (tmp_path / "used").iterdir()) == ["thesis.tex"]


def test_train_on_a_folder_names_the_command_for_it(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(pictures)]) == 2
    assert f"is a folder, not a config: odc cluster {pictures} -k K" in capsys.readouterr().err


def test_json_is_alone_on_the_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw(tmp_path / "six", 6)
    assert main(["cluster", str(folder), "-k", "3", "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["images"] == 6
    assert sum(told["sizes"]) == 6
    assert told["method"] == "kmeans-pixels"
    assert "6 pictures" in captured.err


@pytest.mark.slow
def test_a_budget_shortens_the_training(pictures: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    options = {"moco.train_cfg.max_epochs": 4000, **{k: v for k, v in SHORT.items() if not k.startswith("moco")}}
    began = time.monotonic()
    cluster(pictures, 3, tmp_path / "out", method="scan", budget="14s", options=options, stream=said)
    taken = time.monotonic() - began
    assert taken < 60, "4,000 epochs would take some twenty minutes"
    epochs = sorted((tmp_path / "out" / "run" / "moco").glob("epoch_*.pth"))
    assert epochs
    assert "at most 14 s" in said.getvalue()


def test_features_that_no_budget_is_enough_for_are_refused_at_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "check_fixed", lambda clock, total: _checked(clock, total))
    with pytest.raises(InputError, match=r"reading of 60 pictures, and what follows, takes .*--budget 1 s"):
        cluster(pictures, 3, tmp_path / "out", budget="1s")


def _checked(clock: object, total: int) -> None:
    """Look as if six seconds had passed."""
    from odc.folder.running import check_fixed

    clock.began -= 6  # type: ignore[attr-defined]
    check_fixed(clock, total)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on_after_it_was_stopped(pictures: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while MoCo trains: the clusters are those of a run that was not, bit for bit."""
    options = ["--method", "scan", "--cfg-options", "moco.train_cfg.max_epochs=8", "scan-moco.train_cfg.max_epochs=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "odc.cli", "cluster", str(pictures), "-k", "3", "--out", str(out), *options]

    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    process = subprocess.Popen(command(stopped), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((stopped / "run" / "moco").glob("epoch_[2-5].pth")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) in (-9, 130, 143)
    assert not (stopped / "clusters.csv").exists()
    for out in (stopped, straight):
        subprocess.run(command(out), env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (stopped / "clusters.csv").read_bytes() == (straight / "clusters.csv").read_bytes()
    assert (stopped / "features.npy").read_bytes() == (straight / "features.npy").read_bytes()


def test_the_number_of_clusters_may_be_left_to_features_that_are_there(pictures: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = tuple(p.name for p in sorted(pictures.iterdir()))
    x = torch.eye(3).repeat(20, 4) + 0.05 * torch.randn(60, 12, generator=generator)
    dataset = build_dataset({"type": "ImageFolder", "root": str(pictures)})
    file, said = tmp_path / "features.npz", io.StringIO()
    Embeddings(torch.arange(60), names, x, dataset.fingerprint, {}).save(file)
    found = cluster(pictures, "auto", tmp_path / "out", features=str(file), stream=said)
    assert found.num_clusters == 3
    assert (np.bincount(found.cluster) == 20).all()
    assert torch.equal(torch.from_numpy(np.array(found.features)), x)
    assert "-k auto: 3 (3 to 3)" in said.getvalue()
    assert cluster(pictures, "auto", tmp_path / "out", features=str(file)).num_clusters == 3
