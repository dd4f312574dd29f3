"""Folders of clusters: names that do not collide, links and copies; and what is said at the end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odc.folder.leaving import copy_clusters, distinct, remarks
from odc.results.clustering import Clustering


@given(st.lists(st.text(st.sampled_from("aA./_b"), min_size=1, max_size=6), unique=True))
def test_names_are_distinct_whatever_the_paths(paths: list[str]) -> None:
    names = distinct(paths)
    assert len({name.lower() for name in names}) == len(paths)
    assert not any("/" in name for name in names)


def test_a_name_stays_unless_another_has_it() -> None:
    assert distinct(["a/x.jpg", "a/y.jpg", "b/X.JPG", "a_x.jpg"]) == ["a_x.jpg", "y.jpg", "b_X.JPG", "a_x-2.jpg"]
    long = "ä" * 150 + ".jpeg"
    assert len(distinct([long])[0].encode()) <= 230
    assert distinct([long])[0].endswith(".jpeg")


def clustering(root: Path) -> Clustering:
    paths = ("a/x.jpg", "b/x.jpg", "b/y.jpg", "odd \udcff.jpg")
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode("utf-8", "surrogateescape"))
    cluster, margin = np.array([0, 0, 2, -1]), np.arange(4, dtype=np.float32)
    found = Clustering.describe(root, paths, np.eye(4, dtype=np.float32), (cluster, margin), 3)
    return found.named({0: "../cats & dogs"})


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_folder_a_cluster(tmp_path: Path, how: str) -> None:
    found = clustering(tmp_path / "pictures")
    out = tmp_path / "out"
    (out / "clusters.part" / "rest").mkdir(parents=True)
    place = copy_clusters(found, out, how)
    files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if not p.is_dir())
    assert files == ["000-_cats _ dogs/a_x.jpg", "000-_cats _ dogs/b_x.jpg", "002/y.jpg", "none/odd \udcff.jpg"]
    for p in place.rglob("*.jpg"):
        assert p.is_symlink() == (how == "link")
    assert (place / "000-_cats _ dogs" / "b_x.jpg").read_bytes() == b"b/x.jpg"
    assert not (out / "clusters.part").exists()
    (place / "mine.txt").write_text("kept")
    assert copy_clusters(found, out, how) == place
    assert (place / "mine.txt").read_text() == "kept"


def test_what_is_said_at_the_end(tmp_path: Path) -> None:
    found = clustering(tmp_path)
    stage: Any = SimpleNamespace(result={"per_cluster": [3, 0, 1]})
    lines = remarks(found, cast(Any, {"reliable": stage}), Path("out"), Path("out/clusters"))
    assert lines[0] == "2 clusters of 1 to 2 pictures: ../cats & dogs (2), 2 (1)"
    assert "clusters without a picture: 1, 1 of 3" in lines[1]
    assert any("1 pictures are in no cluster" in line for line in lines)
    assert any("clusters 1 was reliable" in line for line in lines)
    zeros, paths = np.zeros(40, np.float32), list(map(str, range(40)))
    cluster = np.array([0] * 36 + [1] * 3 + [2])
    many = Clustering.describe(tmp_path, paths, np.ones((40, 2), np.float32), (cluster, zeros), 3)
    assert "clusters with fewer than 5 pictures: 1, 2" in remarks(many, {}, Path("out"), None)
