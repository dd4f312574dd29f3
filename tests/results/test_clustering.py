"""The table of a clustering: every column by hand, the way to the disk and back, and files that are not it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from odc.errors import DamagedError, InputError
from odc.results import Clustering
from odc.results.columns import consistency, loneliness, lonely_from, unit_vectors

# Six directions in the plane, by their angles in degrees; two clusters, and one image in none.
ANGLES = [0, 0, 10, 90, 100, 180]
PATHS = ["a.png", "b.png", "c.png", "=d.png", "e, f.png", "g\udcff.png"]
CLUSTER = np.array([0, 0, 0, 1, 1, -1])
MARGIN = np.array([3.0, 3.0, 1.0, 2.0, 5.0, 9.0], np.float32)


def points() -> torch.Tensor:
    angle = torch.tensor(ANGLES) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1).double().float() * torch.tensor([[1.0], [2], [3], [4], [5], [6]])


def clustering(**more: object) -> Clustering:
    about = {"method": "by hand", "seed": 0}
    return Clustering.describe("root", PATHS, points(), (CLUSTER, MARGIN), 3, about=about, **more)  # type: ignore[arg-type]


def test_every_column_of_six_points_by_hand() -> None:
    found = clustering()
    # margins of the five images in a cluster: 3 3 1 2 5; not larger than 3 are four of five
    np.testing.assert_allclose(found.confidence, [0.8, 0.8, 0.2, 0.4, 1.0, 0.0])
    # fewer than 20 others: all five are neighbours; two of them share cluster 0, one shares cluster 1
    np.testing.assert_allclose(found.consistency, [0.4, 0.4, 0.4, 0.2, 0.2, 0.0])
    # the mean direction of 0°, 0°, 10° is the angle of (2 + cos 10°, sin 10°); that of 90°, 100° is 95°
    mean = math.atan2(math.sin(math.pi / 18), 2 + math.cos(math.pi / 18))
    away = [1 - math.cos(mean)] * 2 + [1 - math.cos(math.pi / 18 - mean)] + [1 - math.cos(math.pi / 36)] * 2 + [1]
    np.testing.assert_allclose(found.distance, away, atol=1e-5)
    # equal directions are equal vectors: lengths do not count
    np.testing.assert_array_equal(found.duplicate_of, [-1, 0, -1, -1, -1, -1])
    assert not found.outlier.any(), "3 % of six images are none"
    np.testing.assert_array_equal(found.sizes, [3, 2, 0])


def test_scores_give_cluster_and_margin() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, 2.5], [9.0, 0.0]])
    found = Clustering.describe("", ["a", "b", "c"], torch.eye(3), scores, 2)
    np.testing.assert_array_equal(found.cluster, [1, 1, 0])
    np.testing.assert_allclose(found.confidence, [2 / 3, 1 / 3, 1], atol=1e-5)


def test_one_cluster_and_one_image() -> None:
    found = Clustering.describe("", ["a"], torch.ones(1, 2), torch.zeros(1, 1), 1)
    assert found.confidence.tolist() == found.consistency.tolist() == [1]
    assert found.distance.tolist() == [0]


def test_spaces_weigh_alike() -> None:
    x = np.array([[3, 4, 0, 100], [0, 0, 1, 0]], np.float32)
    half = 0.5**0.5
    np.testing.assert_allclose(unit_vectors(x, (2, 2)), [[0.6 * half, 0.8 * half, 0, half], [0, 0, half, 0]], rtol=1e-6)


def test_consistency_among_others() -> None:
    found = consistency(np.array([1, -1]), np.array([[0, 1, 2], [0, 1, 2]]), np.array([1, 0, 1]))
    np.testing.assert_allclose(found, [2 / 3, 0])


def test_an_outlier_is_lonelier_than_its_cluster() -> None:
    """Two clusters of different density: what is far in the dense one is near for the wide one."""
    lonely = np.concatenate([np.linspace(0.009, 0.011, 100), np.linspace(0.2, 0.4, 100)]).astype(np.float32)
    cluster = np.repeat([0, 1], 100)
    lonely[[0, 100]] = [0.35, 0.95]
    limits = lonely_from(lonely, cluster, 3)
    by_hand = []
    for c in (0, 1):
        x = lonely[cluster == c]
        by_hand.append(np.median(x) + 4 * 1.4826 * np.median(np.abs(x - np.median(x))))
    whole = np.median(lonely)
    np.testing.assert_allclose(limits[:2], np.maximum(by_hand, whole), rtol=1e-5)
    assert np.flatnonzero(lonely > limits[cluster]).tolist() == [0, 100]


def test_at_most_three_percent_are_outliers() -> None:
    lonely = np.concatenate([np.full(900, 0.1), np.linspace(0.5, 0.9, 100)]).astype(np.float32)
    limits = lonely_from(lonely, np.zeros(1000, np.int64), 1)
    assert np.flatnonzero(lonely > limits[0]).tolist() == list(range(970, 1000))


def test_loneliness_is_the_distance_to_the_tenth() -> None:
    similarities = np.tile(1 - np.arange(1, 13) / 100, (2, 1)).astype(np.float32)
    np.testing.assert_allclose(loneliness(similarities), [0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(loneliness(similarities[:, :3]), [0.03, 0.03], rtol=1e-5)


@pytest.mark.parametrize("names", [{}, {0: "=apples, red", 1: "pears"}])
def test_what_is_saved_is_read_back(tmp_path: Path, names: dict[int, str]) -> None:
    before = clustering(names=names, spaces=(2,))
    before.save(tmp_path)
    after = Clustering.load(tmp_path)
    for name in ("cluster", "confidence", "consistency", "distance", "outlier", "duplicate_of", "features"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
    for name in ("root", "paths", "num_clusters", "names", "about", "spaces"):
        assert getattr(before, name) == getattr(after, name), name
    table = pq.read_table(tmp_path / "clusters.parquet")
    assert tuple(table.column_names) == before.columns
    np.testing.assert_array_equal(table["confidence"].to_numpy(), before.confidence)
    assert table["duplicate_of"].to_pylist() == [None, "a.png", None, None, None, None]
    assert table["path"].to_pylist()[-1] == "g\\xff.png"


def test_the_table_is_for_people_and_spreadsheets(tmp_path: Path) -> None:
    clustering(names={0: "apples"}).save(tmp_path)
    lines = (tmp_path / "clusters.csv").read_bytes().splitlines()
    assert lines[0] == b"path,cluster,name,confidence,consistency,distance,outlier,duplicate_of"
    assert lines[2] == b"b.png,0,apples,0.80000,0.40000,0.00169,0,a.png"
    assert lines[4].startswith(b"./=d.png,1,,0.40000,0.20000,0.00381,0,")
    assert lines[6].startswith(b"g\xff.png,-1,,0.00000,")


def cut(folder: Path) -> None:
    table = folder / "clusters.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:-1]))


def swapped(folder: Path) -> None:
    table = folder / "clusters.csv"
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([lines[0], *reversed(lines[1:])]))


def changed(old: str, new: str, file: str = "clusters.csv") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_bytes()
        assert old.encode() in text
        (folder / file).write_bytes(text.replace(old.encode(), new.encode(), 1))

    return change


def other_features(folder: Path) -> None:
    np.save(folder / "features.npy", np.zeros((6, 3), np.float32))


def pickled(folder: Path) -> None:
    np.save(folder / "features.npy", np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "has 5 rows, features.npy 6"),
        (swapped, "in another order"),
        (changed(",0.80000,", ",nan,"), "confidence is out of range"),
        (changed(",0.80000,", ",8,"), "confidence is out of range"),
        (changed(",0,a.png", ",2,a.png"), "'2'"),
        (changed(",0,a.png", ",0,nobody.png"), "nobody.png"),
        (changed("a.png,0,", "a.png,99,"), "there are 3"),
        (changed("a.png,0,", "a.png,99999999999999999999,"), "there is no cluster"),
        (changed('"format": 1', '"format": 2', "clustering.json"), "of format 2, and this version reads format 1"),
        (changed('"num_clusters": 3', '"num_clusters": -3', "clustering.json"), "a whole number of at least 1"),
        (changed('"names": {}', '"names": {"7": "x"}', "clustering.json"), "have names, but there are 3"),
        (changed('"seed"', '"x": 1, "seed"', "clustering.json"), ""),
        (changed('"root"', '"__class__": 1, "root"', "clustering.json"), "an entry '__class__', which is unknown"),
        (other_features, "cannot be (6, 3)"),
        (pickled, "Python objects"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    clustering(spaces=(1, 1)).save(tmp_path)
    damage(tmp_path)
    if not told:
        assert Clustering.load(tmp_path).about["x"] == 1
        return
    with pytest.raises(InputError) as error:
        Clustering.load(tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_no_clustering_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no clustering.json, which odc cluster leaves"):
        Clustering.load(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        Clustering.load(tmp_path / "x")
    (tmp_path / "clustering.json").write_text("[" * 100_000)
    with pytest.raises(DamagedError, match="nested too deep"):
        Clustering.load(tmp_path)


def test_lengths_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="6 paths do not go with 5 features, 6 clusters"):
        Clustering.describe("", PATHS, points()[:5], (CLUSTER, MARGIN), 3)
    with pytest.raises(InputError, match="1 of 6 scores are not numbers"):
        Clustering.describe("", PATHS, points(), (CLUSTER, np.where(CLUSTER < 0, np.nan, MARGIN)), 3)


def test_about_is_json(tmp_path: Path) -> None:
    clustering().save(tmp_path)
    told = json.loads((tmp_path / "clustering.json").read_text())
    assert told["about"] == {"method": "by hand", "seed": 0}
    assert (told["format"], told["images"], told["root"]) == (1, 6, "root")
