from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from odc.clustering import local_consistency, reliable_samples
from odc.errors import InputError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_consistency(features: Tensor, labels: Tensor, k: int, include_self: bool) -> list[float]:
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        near = sorted(others, key=lambda j: -float(x[i] @ x[j]))
        near = [i, *near][:k] if include_self else near[:k]
        out.append(sum(int(labels[j]) == int(labels[i]) for j in near) / k)
    return out


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("k", [1, 5, 29])
def test_consistency_by_an_oracle(k: int, include_self: bool) -> None:
    features, labels = torch.randn(30, 6, generator=rng()), torch.randint(3, (30,), generator=rng(1))
    beta = local_consistency(features, labels, k=k, include_self=include_self)
    assert beta.dtype == torch.float64
    assert beta.tolist() == slow_consistency(features, labels, k, include_self)


def test_consistency_by_hand() -> None:
    """Two pairs and a sample with the label of the wrong one; the length of a feature does not count."""
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 2.0], [0.1, 3.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    assert local_consistency(features, labels, k=2).tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert local_consistency(features, labels, k=1).tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert local_consistency(features, labels, k=1, include_self=True).tolist() == [1.0] * 5


def test_ninety_nine_of_a_hundred_are_not_above_the_threshold() -> None:
    assert reliable_samples(torch.tensor([0.99, 1.0], dtype=torch.float64), torch.tensor([0, 1]), 2).tolist() == [
        False,
        True,
    ]
    assert 99 / 100 == 0.99


def test_wrong_numbers_are_told() -> None:
    with pytest.raises(InputError, match=r"of 10 samples can use 1 to 9 neighbours, not 100: lower k"):
        local_consistency(torch.randn(10, 2, generator=rng()), torch.zeros(10).long())
    with pytest.raises(InputError, match=r"one label for each row, not \(9,\) for 10"):
        local_consistency(torch.randn(10, 2, generator=rng()), torch.zeros(9).long(), k=2)


BETA = torch.tensor([1.0, 0.97, 0.96, 0.95, 0.99, 0.2, 0.96], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1])
SCORES = torch.tensor([0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.95])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0, 1, 2, 3, 4, 6]),
        (dict(scores=SCORES), [0, 1, 2, 3, 4, 6]),
        (dict(scores=SCORES, score_threshold=0.6), [0, 1, 3, 4, 6]),
        (dict(balance="min"), [0, 1, 4, 6]),
        (dict(balance="quota", quota=1), [0, 4]),
        (dict(balance="quota", quota=3), [0, 1, 2, 4, 6]),
        (dict(balance="quota", quota=9), [0, 1, 2, 3, 4, 6]),
    ],
)
def test_who_is_reliable(options: dict[str, Any], wanted: list[int]) -> None:
    mask = reliable_samples(BETA, LABELS, 2, threshold=0.9, **options)
    assert mask.nonzero().squeeze(1).tolist() == wanted


def test_of_equal_consistency_the_score_then_the_order_decides() -> None:
    beta, labels = torch.ones(5, dtype=torch.float64), torch.zeros(5).long()
    scores = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.1])
    kept = reliable_samples(beta, labels, 1, scores=scores, balance="quota", quota=3)
    assert kept.tolist() == [False, True, True, True, False]
    assert reliable_samples(beta, labels, 1, balance="quota", quota=2).tolist() == [True, True, False, False, False]


def test_a_cluster_without_a_reliable_sample_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("odc.clustering.consistency.print_log", lambda line, *_: lines.append(line))
    mask = reliable_samples(BETA, LABELS, 4, threshold=0.9, balance="min")
    assert lines == ["2 of 4 clusters have no reliable sample: 2, 3"]
    assert int(mask.sum()) == 4, "clusters without any do not set the number for the others"
    reliable_samples(BETA, LABELS, 2, threshold=0.9)
    assert len(lines) == 1


def test_nobody_is_reliable() -> None:
    beta = torch.tensor([0.0, 0.05, 0.35, 0.31, 0.62, 0.62, 0.64, 0.8, 0.81, 0.83], dtype=torch.float64)
    labels = torch.zeros(10).long()
    with pytest.raises(InputError) as error:
        reliable_samples(beta, labels, 1)
    message = str(error.value)
    assert "none of 10 has a local consistency above 0.99" in message
    assert "β from 0 to 1 in ten bins: 2 0 0 2 0 0 3 0 3 0" in message
    assert "threshold=0.8 would keep 20%" in message
    assert "\n" not in message
    assert int(reliable_samples(beta, labels, 1, threshold=0.8).sum()) == 2, "what is proposed works"
    with pytest.raises(InputError, match=r"only 0% have a neighbour of their own cluster"):
        reliable_samples(torch.zeros(5, dtype=torch.float64), labels[:5], 1)
    with pytest.raises(
        InputError, match=r"6 of 7 have .* above 0.9, but their highest score is 0.9500, not above 0.99"
    ):
        reliable_samples(BETA, LABELS, 2, threshold=0.9, scores=SCORES, score_threshold=0.99)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(balance="max"), ["'min' or 'quota'", "'max'"]),
        (dict(balance="quota"), ["'quota', None"]),
        (dict(quota=3), ["None, 3"]),
        (dict(balance="quota", quota=0), ["at least 1", "0"]),
        (dict(score_threshold=0.9), ["0.9 needs scores"]),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        reliable_samples(BETA, LABELS, 2, threshold=0.9, **options)
    for word in words:
        assert word in str(error.value)
