"""Naming clusters by a few labels: by votes, by similarity, with more and with fewer clusters than classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odc.data.table import match_paths, read_labels
from odc.errors import InputError
from odc.evaluation.align import Alignment, align


def ids(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def names(found: Alignment) -> list[str | None]:
    return [match.label for match in found.matches]


def test_a_cluster_takes_the_class_of_most_of_its_labels() -> None:
    # Cats are ahead in both clusters: both are cats, and no cluster is of dogs.
    clusters = ids(0, 0, 0, 0, 0, 1, 1, 1, 0)
    label = ids(0, 0, 0, 1, 1, 0, 0, 1)
    found = align(clusters, 2, np.arange(8), label, ("cat", "dog"))
    assert names(found) == ["cat", "cat"]
    assert [(m.support, m.labelled, m.margin) for m in found.matches] == [(3, 5, 0.2), (2, 3, 0.3333)]
    assert found.unmatched == ("dog",)
    assert names(align(clusters, 2, np.arange(8), label, ("cat", "dog"), min_margin=0.25)) == [None, "cat"]
    assert found.labels(ids(1, -1, 0)).tolist() == [0, -1, 0], "an image in no cluster has no class"


def test_more_clusters_than_classes_share_them() -> None:
    clusters = ids(0, 0, 1, 1, 2, 2, 3)
    found = align(clusters, 4, np.arange(6), ids(0, 0, 1, 1, 0, 1), ("a", "b"))
    assert names(found) == ["a", "b", None, None], "cluster 2 is a tie, and no label is in cluster 3"
    found = align(ids(0, 0, 0, 1, 1, 2, 2, 2), 3, np.arange(8), ids(0, 0, 0, 0, 0, 1, 1, 1), ("a", "b"))
    assert names(found) == ["a", "a", "b"]
    assert found.labels(ids(2, 1, 0)).tolist() == [1, 0, 0]


def test_fewer_clusters_than_classes_leave_some() -> None:
    found = align(
        ids(0, 0, 0, 1, 1, 1, 1, 1, 1), 2, np.arange(9), ids(0, 0, 0, 1, 1, 1, 2, 2, 2), ("a", "b", "c"), None
    )
    assert found.matches[1].margin == 0, "b and c are in it alike"
    assert names(found) == ["a", None]
    assert found.unmatched == ("b", "c")
    # Two of five labels, as many as another class has: a tie, whatever else is in the cluster.
    tie = align(ids(*[0] * 5, *[1] * 4), 2, np.arange(9), ids(0, 0, 1, 1, 2, 2, 2, 0, 1), ("a", "b", "c"))
    assert names(tie) == [None, "c"]
    assert (tie.matches[0].support, tie.matches[0].labelled, tie.matches[0].margin) == (2, 5, 0)
    flat = align(ids(0, 1), 2, ids(0, 1), ids(0, 1), ("a", "b"), np.ones((2, 3), dtype=np.float32), min_margin=-1)
    assert [m.rule for m in flat.matches] == ["neighbours"] * 2


SIDES = np.array([[1, 0.1], [1, 0], [0.9, 0], [0, 1], [0.1, 1], [0, 0.9]], dtype=np.float32)


def test_one_label_a_class_goes_by_the_neighbours() -> None:
    found = align(ids(1, 1, 1, 0, 0, 0), 2, ids(0, 3), ids(0, 1), ("a", "b"), SIDES)
    assert names(found) == ["b", "a"]
    assert [(m.rule, m.support, m.labelled, m.margin) for m in found.matches] == [("neighbours", 1, 1, 1.0)] * 2


def test_a_cluster_without_a_label_goes_by_the_neighbours_and_abstains_where_they_differ() -> None:
    found = align(ids(0, 1, 1, 0, 1, 1), 2, ids(0, 3), ids(0, 1), ("a", "b"), SIDES)
    assert names(found) == [None, None], "half of the images of each are a, half are b"
    assert [m.margin for m in found.matches] == [0, 0]
    found = align(ids(0, 1, 1, 2, 3, 3), 4, ids(0, 3), ids(0, 1), ("a", "b"), SIDES)
    # Image 3 points to where image 5 of cluster 3 does; image 0 is farther from the middle of cluster 1 than its own.
    assert names(found) == ["a", None, "b", "b"]
    assert [m.labelled for m in found.matches] == [1, 0, 1, 0]


def test_a_cluster_that_no_label_lies_near_stays_without_a_name() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(4, dtype=np.float32), 20, axis=0) + 0.1 * rng.standard_normal((80, 4), dtype=np.float32)
    cluster = np.repeat(np.arange(4), 20)
    cluster[:10] = 3  # half of what was cluster 0: a label of cluster 3 lies in it as well as in cluster 0
    cluster[60:] = 1
    found = align(cluster, 4, ids(0, 5, 20, 21), ids(0, 0, 1, 1), ("a", "b"), x)
    assert names(found) == ["a", "b", None, "a"]


def test_three_labels_that_agree_outvote_the_neighbours() -> None:
    # A person has named cluster 1, which looks like class a, b: three of its images say so.
    x = np.concatenate([SIDES[:3], SIDES[:3] + 0.01, SIDES[3:]])
    found = align(ids(0, 0, 0, 1, 1, 1, 2, 2, 2), 3, ids(0, 3, 4, 5, 6), ids(0, 1, 1, 1, 1), ("a", "b"), x)
    assert [(m.label, m.rule) for m in found.matches] == [("a", "neighbours"), ("b", "votes"), ("b", "neighbours")]


def test_too_few_votes_without_features_are_refused() -> None:
    with pytest.raises(InputError, match=r"class 'b' has 1 labelled images, but votes need 3 .*odc extract"):
        align(ids(0, 0, 0, 1), 2, np.arange(4), ids(0, 0, 0, 1), ("a", "b"))
    with pytest.raises(InputError, match="no labelled image"):
        align(ids(0, 1), 2, ids(), ids(), ())


def test_labelled_images_find_the_cluster_of_their_class() -> None:
    clusters = ids(0, 0, 0, 1, 1, 1, 1, 2, 2, 2)
    found = align(clusters, 3, np.arange(10), ids(0, 0, 0, 0, 0, 0, 0, 1, 1, 1), ("a", "b"))
    assert names(found) == ["a", "a", "b"]
    # An image of class a stays in its own cluster of that class; one that lies in b's goes to the best supported.
    assert found.clusters_of(ids(0, 0, 0, 1), ids(0, 1, 2, 0)).tolist() == [0, 1, 1, 2]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_no_map_agrees_with_more_labels(K: int, C: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(C), 4)
    clusters = rng.integers(K, size=len(label))
    found = align(clusters, K, np.arange(len(label)), label, tuple("abcd"[:C]), min_margin=-1)
    agree = sum(m.support for m in found.matches if m.label is not None)
    assert agree == sum(max(int(((clusters == k) & (label == c)).sum()) for c in range(C)) for k in range(K))


def test_the_map_is_read_back(tmp_path: Path) -> None:
    found = align(ids(0, 0, 0, 1), 2, ids(0, 1, 2), ids(0, 0, 0), ("a",))
    found.save(tmp_path / "deep" / "map.json")
    assert Alignment.load(tmp_path / "deep" / "map.json") == found
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(InputError, match="is not a map of clusters"):
        Alignment.load(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"is not a map.*no such file"):
        Alignment.load(tmp_path / "missing.json")


def test_features_must_be_numbers() -> None:
    features = np.array([[1, 0], [np.nan, 1]], dtype=np.float32)
    with pytest.raises(InputError, match="1 of 2 rows of features are not finite"):
        align(ids(0, 1), 2, ids(0, 1), ids(0, 1), ("a", "b"), features)


def test_paths_are_matched() -> None:
    rows = [{"path": "b"}, {"path": "a"}]
    assert match_paths(rows, ["a", "b"], "x.csv").tolist() == [1, 0]
    with pytest.raises(InputError, match="1 of 2 paths are not among the 1 images, the first is 'b'"):
        match_paths(rows, ["a"], "x.csv")
    with pytest.raises(InputError, match="'b' is in it 2 times"):
        match_paths([{"path": "b"}] * 2, ["a", "b"], "x.csv")


def test_labels_that_are_not_known_yet_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('path,label\nb,\nc, x \na,-1\nd," "\n')
    index, labels, without = read_labels(file, ["a", "b", "c", "d"])
    assert (index.tolist(), labels, without) == ([2], ["x"], 3)
    file.write_text("path,label\nb,\na,-1\n")
    with pytest.raises(InputError, match=r"none of the 2 rows of '.*labels.csv' has a label"):
        read_labels(file, ["a", "b"])
