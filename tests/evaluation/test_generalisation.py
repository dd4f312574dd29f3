"""The generalisation score: cases by hand, an oracle by scikit-learn, spaces, and no ground truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneOut, cross_val_score

from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation, GeneralisationScore
from odc.evaluation.probes import generalisation_score
from odc.structures import make_generator


def scores_of(clusters: torch.Tensor, K: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(clusters, K).float()


def test_clusters_that_features_tell_apart_score_one_and_others_chance() -> None:
    rng = make_generator(0)
    clusters = torch.arange(60) % 3
    x = 5 * torch.eye(3)[clusters] + 0.1 * torch.randn(60, 3, generator=rng)
    assert generalisation_score(x, clusters, generator=rng) == 1.0
    noise = torch.randn(300, 3, generator=rng)
    assert generalisation_score(noise, torch.arange(300) % 3, generator=rng) < 0.5


def test_leave_one_out_is_that_of_scikit_learn() -> None:
    """With as many folds as samples nothing depends on how they are shared."""
    rng = make_generator(1)
    x, clusters = torch.randn(24, 3, generator=rng), torch.arange(24) % 3
    x[:, 0] += clusters
    expected = cross_val_score(LogisticRegression(max_iter=1000), x.numpy(), clusters.numpy(), cv=LeaveOneOut())
    assert generalisation_score(x, clusters, generator=rng, folds=24) == pytest.approx(expected.mean())


def test_folds_share_every_cluster_and_a_single_image_is_wrong() -> None:
    """Two far groups of ten and a point of its own, which no fold can have learnt when it is asked for."""
    x = torch.cat([torch.full((10, 1), -9.0), torch.full((10, 1), 9.0), torch.tensor([[90.0]])])
    clusters = torch.tensor([0] * 10 + [1] * 10 + [2])
    assert generalisation_score(x, clusters, generator=make_generator(0)) == pytest.approx(20 / 21)


def test_spaces_are_averaged() -> None:
    """One space knows the clusters, the other one is constant and says the same of all."""
    clusters = torch.arange(40) % 2
    x = torch.stack([9.0 * clusters, torch.zeros(40)], 1)
    rng = make_generator(0)
    both = generalisation_score(x, clusters, generator=rng, spaces=(1, 1))
    assert generalisation_score(x, clusters, generator=rng) == 1.0
    assert both == pytest.approx(0.75, abs=0.01)


def test_the_metric_reads_no_ground_truth_and_leaves_lost_images_out(caplog: pytest.LogCaptureFixture) -> None:
    clusters = torch.arange(40) % 2
    x = torch.stack([9.0 * clusters, torch.zeros(40)], 1)
    x[0] = -x[2]
    lost = torch.arange(40) == 0
    metric = GeneralisationScore(folds=5)
    for targets in (None, np.zeros(40, dtype=np.int64)):
        assert metric(Evaluation(x, scores_of(clusters, 2), targets, lost)) == {"generalisation": 1.0}
    assert metric(Evaluation(x, scores_of(0 * clusters, 2), None)) == {}
    assert metric(Evaluation(x, torch.zeros(40, 0), None)) == {}
    with pytest.raises(InputError, match="2 <= folds"):
        GeneralisationScore(folds=1)


def test_at_most_so_many_images_are_used() -> None:
    clusters = torch.arange(40) % 2
    x = torch.stack([9.0 * clusters, torch.zeros(40)], 1)
    x[1::4] *= -1  # evenly spaced samples, every third, see these too
    whole = GeneralisationScore(folds=5)(Evaluation(x, scores_of(clusters), None))
    few = GeneralisationScore(folds=5, max_samples=14)(Evaluation(x, scores_of(clusters), None))
    assert whole != few
