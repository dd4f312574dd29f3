"""Metrics of an evaluation where little is known, and where clusters are empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_heads import Blobs

from odc.evaluation import evaluator
from odc.evaluation.evaluator import (
    ClusterMetrics,
    Evaluation,
    GeneralisationScore,
    KMeansMetric,
    KNNMetric,
    LinearProbe,
    tells_apart,
)
from odc.evaluation.gallery import sizes_told, write_clusters
from odc.registry import METRICS
from odc.structures import make_generator

ALL = (ClusterMetrics, KMeansMetric, KNNMetric, LinearProbe)  # that compare with ground truth
X = torch.randn(12, 4, generator=make_generator(0))


def evaluation(*known: int, K: int = 3) -> Evaluation:
    """Return 12 images, the first of which are of these classes and the others of unknown ones."""
    targets = np.full(12, -1)
    targets[: len(known)] = known
    return Evaluation(X, torch.eye(K)[torch.arange(12) % K], targets)


def test_every_metric_is_here() -> None:
    assert {m.__name__ for m in (*ALL, GeneralisationScore)} == set(METRICS.module_dict)


@pytest.mark.parametrize("known", [(), (0,), (1, 1), (2,) * 12])
@pytest.mark.parametrize("metric", ALL)
def test_one_class_or_none_is_no_ground_truth(
    metric: Any, known: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(evaluator, "print_log", lambda line, logger: lines.append(line))
    values = metric()(evaluation(*known))
    assert values == ({"entropy": pytest.approx(1), "empty": 0} if metric is ClusterMetrics else {})
    (line,) = lines
    told = f"{metric.__name__} measures nothing against ground truth: of 12 images {len(known)} have a known class"
    assert told in line
    assert not tells_apart(np.array([*known, -1]))
    without = Evaluation(X, torch.eye(3)[torch.arange(12) % 3], None)
    assert metric()(without) == values
    assert len(lines) == 1, "nothing is said where there is no ground truth at all"


def test_two_labelled_images_of_two_classes_are_enough() -> None:
    known = evaluation(0, 1)
    values = ClusterMetrics()(known) | KMeansMetric()(known) | KNNMetric(k=10)(known)
    assert values["acc"] == values["nmi"] == values["ari"] == 1
    assert values["knn"] == 0, "the only neighbour is of the other class"
    assert all(np.isfinite(value) for value in values.values())
    assert LinearProbe()(known) == {}, "nothing is left to test on"
    assert KMeansMetric(num_clusters=99)(known)["kmeans_acc"] == 1, "no more clusters than images"


def test_clusters_without_images_are_named(tmp_path: Path) -> None:
    scores = torch.eye(5)[torch.tensor([0, 0, 3, 3, 3, 0, 0, 1, 3, 3])]
    found = Evaluation(X[:10], scores, None)
    assert found.without_images == [2, 4]
    assert sizes_told(found.clusters, 5) == (
        "3 clusters of 1 to 5 images, the smallest 1 (1), 0 (4), 3 (5); 2 without an image: 2, 4"
    )
    assert sizes_told(torch.zeros(3, dtype=torch.int64), 1) == "1 clusters of 3 to 3 images"
    assert ClusterMetrics()(found) == {"entropy": pytest.approx(0.586, abs=1e-3), "empty": 2}
    assert Evaluation(X, X[:, :0], None).without_images == []


@pytest.mark.parametrize("scores", [torch.zeros(6, 1), torch.zeros(6, 3), torch.full((6, 2), 1e30)])
def test_confidences_are_numbers(scores: torch.Tensor, tmp_path: Path) -> None:
    table, picture = write_clusters(Blobs(6), Evaluation(X[:6], scores, None), tmp_path)
    assert picture.is_file()
    assert [float(line.split(",")[2]) for line in table.read_text().splitlines()[1:]] == [1.0] * 6, (
        "none is less sure than another"
    )
