"""Labels of a person on a folder of a clustering: names everywhere, and a training that keeps the labels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from odc.cli import main
from odc.labelling import name_clusters, refine
from odc.labelling.given import Given, Score, score_table
from odc.labelling.refine import Measured, Refined, spread
from odc.portable import PortableModel
from odc.portable.packing import pack_nearest
from odc.results import Clustering
from odc.structures import make_generator

SIDES = 3  # blobs
EACH = 20


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return features (60, 4) in three directions, and which of them each is of."""
    rng = make_generator(0, "blobs")
    of = torch.arange(SIDES * EACH) % SIDES
    x = 3 * torch.eye(SIDES, 4)[of] + 0.4 * torch.randn(len(of), 4, generator=rng)
    return x.numpy(), of.numpy()


def saved(folder: Path, cluster: np.ndarray | None = None, K: int = SIDES) -> Path:
    """Write a clustering of the blobs: by default a third of the images of blob 0 are in the cluster of blob 1."""
    x, of = blobs()
    if cluster is None:
        cluster = np.where((of == 0) & (np.arange(len(of)) < 20), 1, of)
    margin = np.linspace(0, 1, len(of), dtype=np.float32)
    found = Clustering.describe("photos", [f"{i:02d}.png" for i in range(len(of))], x, (cluster, margin), K)
    found.save(folder)
    pack_nearest(found, [], None).save(folder / "model")
    return folder


def table(path: Path, rows: list[tuple[int, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((f"{i:02d}.png", name) for i, name in rows)])
    return str(path)


NAMES = ("ant", "bee, wild", "céa")


def some(per_class: int, start: int = 0) -> list[tuple[int, str]]:
    return [(i, NAMES[i % SIDES]) for i in range(start * SIDES, (start + per_class) * SIDES)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_go_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "found")
    labels, others = table(tmp_path / "few.csv", some(2, 10)), table(tmp_path / "other.csv", some(5))
    assert main(["align", str(folder), labels, "--test", others]) == 0
    told = capsys.readouterr().out
    # Of the first 15 images, the five of blob 0 are in cluster 1.
    assert "of other labelled images, 10 of 15 are right (66.7%)" in told
    assert "3 of 3 clusters have a name, from 6 labels of 3 classes" in told
    assert "| ant       | 5      | 0.0%   |" in told
    rows = read(folder / "clusters.csv")
    assert [row["name"] for row in rows] == [NAMES[int(row["cluster"])] for row in rows]
    parquet = pyarrow.parquet.read_table(folder / "clusters.parquet").to_pydict()
    assert parquet["name"] == [row["name"] for row in rows]
    again = Clustering.load(folder)
    assert dict(again.names) == dict(PortableModel.load(folder).names) == dict(enumerate(NAMES))
    assert [match["label"] for match in json.loads((folder / "map.json").read_text())["clusters"]] == list(NAMES)


def test_later_names_replace_earlier_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "found")
    name_clusters(folder, table(tmp_path / "few.csv", some(3, 10)))
    renamed = table(tmp_path / "page.csv", [(i, "both") for i, _ in some(4, 10) if i % SIDES])
    assert main(["align", str(folder), renamed, "--json", "--out", str(tmp_path / "m.json")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cluster["label"] for cluster in told["clusters"]][1:] == ["both", "both"], "two clusters are merged"
    assert [cluster["images"] for cluster in told["clusters"]] == Clustering.load(folder).sizes.tolist()
    assert told["test"] is None
    assert Clustering.load(folder).names[2] == "both"


def test_a_cluster_that_is_half_this_half_that_abstains(tmp_path: Path) -> None:
    _, of = blobs()
    folder = saved(tmp_path / "found", np.where(of == 2, 1, 0), 2)
    named = name_clusters(folder, table(tmp_path / "few.csv", some(2)))
    assert named.names == {1: NAMES[2]}
    assert "cluster 0, 40 images: no class stands out" in str(named)
    assert {row["name"] for row in read(folder / "clusters.csv")} == {"", NAMES[2]}


def test_labels_of_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "found")
    before = (folder / "clusters.csv").read_bytes()
    few = table(tmp_path / "few.csv", some(1))
    for arguments, words in (
        (["align", str(folder), table(tmp_path / "a.csv", [(99, "x")])], "the first is '99.png'"),
        (["align", str(folder), few, "--test", few], "3 of 3 images have taken part, the first is '00.png'"),
        (["align", str(folder), few, "--features", "x.npz"], "has features of its own, leave it out"),
        (["align", str(tmp_path), few], "has no clustering.json, which odc cluster leaves"),
        (["align", str(folder / "clusters.csv"), few], "say with --out which file"),
        (["refine", str(folder), few, "--out", str(folder)], "holds the clustering to refine"),
        (["refine", str(folder), few, "--out", str(tmp_path / "o"), "--test", few], "3 of 3 images have taken part"),
        (
            [
                "refine",
                str(folder),
                table(tmp_path / "b.csv", [(0, "x")]),
                "--out",
                str(tmp_path / "o"),
                "--named-only",
            ],
            "has labels of one class, x",
        ),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert (folder / "clusters.csv").read_bytes() == before
    assert not (tmp_path / "o" / "clusters.csv").exists()


# -- refining ---------------------------------------------------------------------------------------------------------


def test_labels_flow_but_clusters_without_any_stay(tmp_path: Path) -> None:
    clustering = Clustering.load(saved(tmp_path / "found")).named({2: "old"})
    given = Given(np.array([30, 33]), np.array([0, 0]), ("a",))
    kept = spread(clustering, given)
    assert (kept.others, kept.num_clusters, kept.names) == ((1, 2), 3, {0: "a", 2: "old"})
    _, of = blobs()
    assert (kept.target[of == 2] == 2).all()
    assert (kept.target[[30, 33]] == 0).all()
    given = Given(np.array([30, 31, 32]), np.array([0, 1, 2]), NAMES)
    alone = spread(clustering, given)
    assert alone.others == ()
    assert np.array_equal(alone.target, of), "three labels are enough for blobs"
    given = Given(np.array([30, 31]), np.array([0, 1]), NAMES[:2])
    assert spread(clustering, given, named_only=True).others == ()
    assert set(spread(clustering, given, named_only=True).target.tolist()) <= {-1, 0, 1}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a clustering, its refinement from 3 labels a class, one of them wrong, and the output."""
    folder = tmp_path_factory.mktemp("refined")
    saved(folder / "found")
    rows = [*some(3, 5), (27, NAMES[1])]  # image 27 is of blob 0
    refine(folder / "found", table(folder / "few.csv", rows), folder / "out", test=table(folder / "t.csv", some(5)))
    return folder


def test_refining_is_better_and_keeps_what_was_given(refined: Path) -> None:
    _, of = blobs()
    before, after = (Clustering.load(refined / name) for name in ("found", "out"))
    assert (before.cluster == of).mean() < 0.9
    wanted = of.copy()
    wanted[27] = 1  # a label is a label
    assert after.cluster.tolist() == wanted.tolist()
    assert dict(after.names) == dict(enumerate(NAMES))
    assert after.confidence[27] == 1
    assert after.about["refined"] == {"labels": 10, "classes": 3, "others": [], "seed": 0}
    assert np.array_equal(after.features, before.features)
    assert sorted(p.name for p in (refined / "out").iterdir()) == [
        *("clustering.json", "clusters.csv", "clusters.parquet", "features.npy", "labels.csv", "model", "run")
    ]
    reliable = Given.read(refined / "out" / "labels.csv", after.paths)
    assert {*range(15, 24), 27} < set(reliable.index.tolist())
    assert (after.consistency[np.setdiff1d(reliable.index, [*range(15, 24), 27])] >= 0.9).all()
    assert reliable.names == [NAMES[c] for c in after.cluster[reliable.index]]


def test_the_model_is_the_classifier(refined: Path) -> None:
    model, after = PortableModel.load(refined / "out"), Clustering.load(refined / "out")
    assert dict(model.names) == dict(enumerate(NAMES))
    cluster = model.judge(torch.from_numpy(np.array(after.features))).cluster
    assert np.flatnonzero(cluster != after.cluster).tolist() == [27], "the label that was wrong"
    assert model.about["agreement"] == pytest.approx(59 / 60, abs=1e-6)


def test_it_repeats_itself_and_what_it_made_may_be_made_again(refined: Path, tmp_path: Path) -> None:
    first = (refined / "out" / "clusters.csv").read_bytes()
    shutil.copytree(refined / "out", tmp_path / "out")
    refine(refined / "found", refined / "few.csv", tmp_path / "out")
    assert (tmp_path / "out" / "clusters.csv").read_bytes() == first


def test_a_table_before_and_after(refined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = table(tmp_path / "few.csv", some(6))
    assert main(["refine", str(refined / "found"), labels, "--out", str(tmp_path / "out"), "--json"]) == 0
    seen = capsys.readouterr()
    told = json.loads(seen.out)
    assert told["measured"]["on"] == "a third of the labels, held out"
    # Held out are images 6 to 8 and 15 to 17; two of blob 0 are in the cluster of blob 1.
    assert told["measured"]["before"] == {"images": 6, "right": 4, "silent": 0}
    assert told["measured"]["after"] == {"images": 6, "right": 6, "silent": 0}
    assert told["measured"]["worse"] is False
    assert "training on two thirds of the labels" in seen.err


def test_worse_is_said_first(refined: Path) -> None:
    clustering = Clustering.load(refined / "out")
    for right, first in ((5, "WORSE than before on some: 55.6% are right, and were 66.7%"), (6, "table"), (7, "table")):
        measured = Measured("some", Score(9, 6, 0), Score(9, right, 2), "table")
        told = Refined(clustering, refined, 9, 2, (4, 7), 3, measured)
        assert str(told).splitlines()[0] == first
        assert told.data()["measured"]["worse"] is (right == 5)
        assert "and 2 that no label is of, before: 4, 7 (--named-only" in str(told)


def test_few_labels_are_not_measured(refined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = table(tmp_path / "few.csv", some(2))
    assert main(["refine", str(refined / "found"), labels, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("nothing was measured: give other labels with --test")


def test_a_third_is_every_third_of_a_class() -> None:
    given = Given(np.array([5, 1, 9, 2, 7, 3, 8]), np.array([0, 0, 0, 1, 1, 1, 1]), ("a", "b"))
    assert np.flatnonzero(given.third()).tolist() == [2, 4], "images 9, and 7 of 2, 3, 7, 8"
    assert not Given(np.array([5, 1, 9, 2]), np.array([0, 0, 0, 1]), ("a", "b")).third().any()


def test_the_table_by_hand() -> None:
    assert Score.of(["a", "a", "b"], ["a", None, "a"]) == Score(3, 1, 1)
    assert str(Score(3, 1, 1)) == "1 of 3 are right (33.3%); 1 have no name"
    lines = score_table(["b", "a", "a"], {"before": [None, "a", "b"], "after": ["b", "a", "a"]}).splitlines()
    assert lines[2:] == [
        "| a     | 2      | 50.0%             | 100.0% |",
        "| b     | 1      | 0.0% (1 unnamed)  | 100.0% |",
        "| all   | 3      | 33.3% (1 unnamed) | 100.0% |",
    ]
