"""New images through ``odc predict``: tables, interruptions, arrivals, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from odc.cli.main import main
from odc.data import build_dataset
from odc.portable import PortableModel
from odc.portable.following import Arrivals, follow
from odc.portable.networks import Network
from odc.portable.packing import pack_nearest
from odc.portable.predicting import predict
from odc.portable.stream import WINDOW, Recent
from odc.results import Clustering
from odc.results.duplicates import Prints, print_of

COLUMNS = ["path", "cluster", "confidence", "consistency", "distance", "outlier", "duplicate_of"]


def picture(seed: int) -> np.ndarray[Any, Any]:
    """Return a picture, 12×12, of the colour of one of three clusters."""
    pixels = np.random.default_rng(seed).integers(0, 90, (12, 12, 3), np.uint8)
    pixels[:, :, seed % 3] += 150
    return pixels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clustering of 30 pictures by their colours, its model, and a folder of 150 new ones."""
    place = tmp_path_factory.mktemp("predict")
    for name, seeds in (("old", range(30)), ("new", range(30, 180))):
        (place / name).mkdir()
        for seed in seeds:
            Image.fromarray(picture(seed)).save(place / name / f"{seed:03d}.png")
    shown = build_dataset({"type": "ImageFolder", "root": str(place / "old")})
    spec = {"title": "pixels", "channels": 3, "backbone": None, "neck": {"type": "AvgPool"}, "side": 12, "width": 432}
    network = Network({**spec, "view": [{"type": "Resize", "size": [12, 12]}, {"type": "ToFloat"}]})
    x = network(network.see([shown.image(i) for i in range(30)]))
    clustering = Clustering.describe("old", shown.paths, x, (np.arange(30) % 3, np.ones(30)), 3, shown)
    clustering.save(place / "DIR")
    pack_nearest(clustering, [network], shown).save(place / "DIR" / "model")
    return place


@pytest.fixture
def model(place: Path) -> PortableModel:
    return PortableModel.load(place / "DIR")


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_to_a_table(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new.csv"
    assert main(["predict", str(place / "DIR"), str(place / "new"), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "150 images in 3 clusters" in captured.err
    found = rows(out)
    assert list(found[0]) == COLUMNS
    assert [row["path"] for row in found] == [f"{i:03d}.png" for i in range(30, 180)]
    assert [int(row["cluster"]) for row in found] == [i % 3 for i in range(30, 180)]
    assert not list(tmp_path.glob("*.part")), "the work is whole"
    assert os.listdir(tmp_path) == ["new.csv"]


def test_parquet_has_the_same_rows(model: PortableModel, place: Path, tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        predict(model, str(place / "new"), str(tmp_path / f"new.{ending}"))
    table = pq.read_table(tmp_path / "new.parquet")
    assert table.column_names == COLUMNS
    for row, other in zip(rows(tmp_path / "new.csv"), table.to_pylist(), strict=True):
        assert row["path"] == other["path"]
        assert int(row["cluster"]) == other["cluster"]
        assert float(row["distance"]) == pytest.approx(other["distance"])
        assert other["duplicate_of"] is None
        assert other["outlier"] is (row["outlier"] == "1")


@pytest.mark.parametrize("as_json", [False, True])
def test_rows_are_printed(place: Path, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(place / "new" / "031.png")
    assert main(["predict", str(place / "DIR" / "model"), image, *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    if as_json:
        found = json.loads(out)
        assert (found["path"], found["cluster"], found["outlier"], found["duplicate_of"]) == ("031.png", 1, 0, "")
        assert isinstance(found["confidence"], float)
    else:
        assert out.splitlines()[0] == ",".join(COLUMNS)
        assert out.splitlines()[1].startswith("031.png,1,")


def test_a_list_of_files(model: PortableModel, place: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{place}/new/032.png\n{place}/old/002.png\n")
    (tmp_path / "list.csv").write_text(f"path,label\n{place}/new/033.png,x\n")
    predict(model, str(tmp_path / "list.txt"), str(tmp_path / "a.csv"))
    predict(model, str(tmp_path / "list.csv"), str(tmp_path / "b.csv"))
    first, second = rows(tmp_path / "a.csv")
    assert (first["cluster"], first["duplicate_of"]) == ("2", "")
    assert (second["cluster"], second["duplicate_of"]) == ("2", "002.png"), "an image of the clustering"
    assert rows(tmp_path / "b.csv")[0]["cluster"] == "0"


def test_vectors_from_a_file(model: PortableModel, place: Path, tmp_path: Path) -> None:
    images = [torch.from_numpy(picture(i)).permute(2, 0, 1) for i in range(30, 40)]
    np.save(tmp_path / "z.npy", model.features(images).numpy())
    (tmp_path / "z.txt").write_text("\n".join(f"{i:03d}" for i in range(30, 40)))
    predict(model, str(tmp_path / "z.npy"), str(tmp_path / "z.csv"))
    assert [int(row["cluster"]) for row in rows(tmp_path / "z.csv")] == [i % 3 for i in range(30, 40)]


def test_what_cannot_be_read_is_listed(model: PortableModel, place: Path, tmp_path: Path) -> None:
    new = tmp_path / "some"
    new.mkdir()
    Image.fromarray(picture(40)).save(new / "a.png")
    (new / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    (new / "c.txt").write_text("no image")
    said = predict(model, str(new), str(tmp_path / "out.csv"))
    assert [row["path"] for row in rows(tmp_path / "out.csv")] == ["a.png"]
    assert [row["path"] for row in rows(tmp_path / "out-skipped.csv")] == ["b.png"]
    assert "1 files could not be read (b.png: cannot decode" in said.told()
    (new / "a.png").unlink()
    assert main(["predict", str(place / "DIR"), str(new), "--out", str(tmp_path / "none.csv")]) == 2
    assert not (tmp_path / "none.csv").exists()
    assert not list(tmp_path.glob("none*"))


def test_repeats_among_new_images(model: PortableModel, tmp_path: Path) -> None:
    new = tmp_path / "some"
    new.mkdir()
    for name, seed in (("a", 50), ("b", 51), ("c", 50), ("d", 3)):
        Image.fromarray(picture(seed)).save(new / f"{name}.png")
    said = predict(model, str(new), str(tmp_path / "out.csv"))
    assert [row["duplicate_of"] for row in rows(tmp_path / "out.csv")] == ["", "", "a.png", "003.png"]
    assert said.duplicates == 2


def test_only_the_last_images_are_remembered() -> None:
    recent = Recent()
    prints = Prints.join([print_of(torch.from_numpy(picture(i)).permute(2, 0, 1)) for i in range(3)])
    assert recent.repeated(prints, ["a", "b", "c"]) == ["", "", ""]
    assert recent.repeated(prints[slice(1, 2)], ["d"]) == ["b"]
    many = Prints.join([prints[slice(2, 3)]] * 10)
    for _ in range(WINDOW // 10 // 100 + 1):
        recent.add(Prints.join([many] * 100), ["x"] * 1000)
    assert len(recent.paths) == len(recent.prints) == WINDOW
    assert recent.repeated(prints[slice(0, 1)], ["e"]) == [""]


def test_an_interrupted_call_goes_on(
    model: PortableModel, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, whole, cut = str(place / "new"), tmp_path / "whole.csv", tmp_path / "cut.csv"
    copy = place / "new" / "179.png"
    before = copy.read_bytes()
    copy.write_bytes((place / "new" / "031.png").read_bytes())  # the last repeats one of the first batch
    try:
        predict(model, new, str(whole))

        def interrupt(done: int, total: int) -> None:
            if done == 128:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict(model, new, str(cut), watch=interrupt)
        assert not cut.exists()
        (part,) = tmp_path.glob("cut.csv.*.part")
        with (part / "rows.csv").open("ab") as file:
            file.write(b"160.png,1,0.5")  # of a batch that a kill has cut
        asked: list[str] = []
        decode = PortableModel.decode

        def watched(self: PortableModel, path: str) -> torch.Tensor:
            asked.append(path)
            return decode(self, path)

        monkeypatch.setattr(PortableModel, "decode", watched)
        said = predict(PortableModel.load(place / "DIR"), new, str(cut))
        assert len(asked) == 150 - 128
        assert (said.images, said.duplicates, sum(said.sizes.values())) == (150, 1, 150)
        assert cut.read_bytes() == whole.read_bytes()
        assert rows(cut)[-1]["duplicate_of"] == "031.png"
    finally:
        copy.write_bytes(before)


def test_another_folder_is_not_gone_on_with(model: PortableModel, place: Path, tmp_path: Path) -> None:
    new = tmp_path / "some"
    new.mkdir()
    for seed in range(3):
        Image.fromarray(picture(seed + 60)).save(new / f"{seed}.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, str(new), str(tmp_path / "out.csv"), watch=interrupt)
    Image.fromarray(picture(70)).save(new / "0a.png")
    predict(model, str(new), str(tmp_path / "out.csv"))
    assert [row["path"] for row in rows(tmp_path / "out.csv")] == ["0.png", "0a.png", "1.png", "2.png"]


def test_links(model: PortableModel, place: Path, tmp_path: Path) -> None:
    model.names = {0: "red / ..", 1: "green"}
    new = tmp_path / "some"
    for folder in ("x", "y"):
        (new / folder).mkdir(parents=True)
        Image.fromarray(picture(30)).save(new / folder / "a.png")
    Image.fromarray(picture(31)).save(new / "b.png")
    for _ in range(2):
        predict(model, str(new), str(tmp_path / "out.csv"), link=str(tmp_path / "links"))
    links = sorted(str(p.relative_to(tmp_path / "links")) for p in (tmp_path / "links").glob("*/*"))
    assert links == ["000-red _/a.png", "000-red _/y_a.png", "001-green/b.png"]
    assert (tmp_path / "links" / "000-red _" / "y_a.png").resolve() == (new / "y" / "a.png").resolve()
    assert rows(tmp_path / "out.csv")[0]["name"] == "green"


@pytest.mark.parametrize(
    ("new", "out", "told"),
    [
        ("missing", "o.csv", "does not exist"),
        ("new", "o.xlsx", "ends in neither .csv nor .parquet"),
        ("DIR", "o.csv", "no image under"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path, tmp_path: Path, new: str, out: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(place / "DIR"), str(place / new), "--out", str(tmp_path / out)]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_model_of_vectors_refuses_pictures(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clustering = Clustering.describe(
        "", list("ab"), np.eye(2), (np.array([0, 1]), np.ones(2)), 2, about={"features": "z.npz"}
    )
    pack_nearest(clustering, [], None).save(tmp_path / "model")
    assert main(["predict", str(tmp_path), str(place / "new")]) == 2
    assert "takes vectors, not pictures: it was made of z.npz" in capsys.readouterr().err


# -- arrivals


def test_a_file_counts_when_it_no_longer_grows(tmp_path: Path) -> None:
    arrivals = Arrivals(str(tmp_path), ["done.png"])
    (tmp_path / "done.png").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"1")
    assert arrivals.look() == []
    (tmp_path / "a.png").write_bytes(b"12")
    assert arrivals.look() == []
    assert arrivals.look() == ["a.png"]
    arrivals.refuse(["a.png"])
    assert arrivals.look() == [], "as it was when it could not be read"
    (tmp_path / "a.png").write_bytes(b"123")
    assert arrivals.look() == []
    assert arrivals.look() == ["a.png"]


def test_images_are_assigned_as_they_arrive(model: PortableModel, tmp_path: Path) -> None:
    new, out = tmp_path / "some", tmp_path / "out.csv"
    new.mkdir()
    looks = iter(range(100))

    def arrive(name: str, seed: int) -> None:
        Image.fromarray(picture(seed)).save(new / f"{name}.png")

    def wait(seconds: float) -> bool:
        look = next(looks)
        if look == 0:
            arrive("a", 30)
            (new / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        if look == 3:
            assert [row["path"] for row in rows(out)] == ["a.png"], "it is there already"
            arrive("b", 31)
            arrive("half", 32)
        return look == 7

    said = follow(model, str(new), str(out), wait=wait)
    assert [(row["path"], row["cluster"]) for row in rows(out)] == [("a.png", "0"), ("b.png", "1"), ("half.png", "2")]
    assert (said.images, said.unread, said.skipped) == (3, {}, None)
    with out.open("ab") as file:
        file.write(b"c.png,1,0.2")  # a kill has cut the row
    arrive("c", 33)
    looks = iter(range(4, 8))
    follow(model, str(new), str(out), wait=lambda s: next(looks) == 7)
    assert [row["path"] for row in rows(out)] == ["a.png", "b.png", "half.png", "c.png"]


def test_a_table_of_something_else_is_not_added_to(model: PortableModel, tmp_path: Path, place: Path) -> None:
    (tmp_path / "out.csv").write_text("a,b\r\n1,2\r\n")
    for out, told in (("out.csv", "is another table"), ("out.parquet", "adds rows to a .csv file")):
        with pytest.raises(ValueError, match=told):
            follow(model, str(place / "new"), str(tmp_path / out))
    with pytest.raises(ValueError, match="looks at a folder"):
        follow(model, str(place / "new" / "030.png"), None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_ends_cleanly(place: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out.csv"
    words = ["predict", str(place / "DIR"), str(place / "new"), "--watch", "--out", str(out)]
    running = subprocess.Popen([sys.executable, "-m", "odc.cli", *words], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 100
    while time.monotonic() < end and not (out.is_file() and len(rows(out)) == 150):
        time.sleep(0.2)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "150 images in 3 clusters" in err
    assert "Traceback" not in err
    assert len(rows(out)) == 150
