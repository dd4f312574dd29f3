"""The number of clusters: criteria by hand, the rule by which they decide, and data whose answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import davies_bouldin_score, silhouette_score

from odc.choosing import Choice, choose_k, default_ks
from odc.choosing.choose import decide, reduced, structureless
from odc.choosing.criteria import coding_length, curves, hdbscan_counts, stability
from odc.errors import InputError
from odc.structures import make_generator


def blobs(K: int, N: int = 240, D: int = 8, spread: float = 0.15) -> np.ndarray:
    """Return N points around K of the D axes, as many around each."""
    rng = np.random.default_rng(0)
    return (np.eye(D)[np.arange(N) % K] + spread * rng.normal(size=(N, D)) / math.sqrt(D)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- criteria


def test_coding_length_by_hand() -> None:
    z = np.array([[4.0], [4.0], [6.0], [6.0]], dtype=np.float32)  # variance 1, of which half is allowed
    together = 2.5 * math.log2(1 + 1 / (0.5 * 4) * 4)  # (M + d) / 2 · log2 det(I + d / (ε² M) · scatter)
    apart = 2 * 0.5 * math.log2(1 + 1 / 0.5) + 4 * 1  # two means, and a bit a label
    assert coding_length(z, np.zeros(4, dtype=np.int32), 0.5) == pytest.approx(together / 4)
    assert coding_length(z, np.array([0, 0, 1, 1], dtype=np.int32), 0.5) == pytest.approx(apart / 4)


def test_coding_length_does_not_depend_on_scale_place_and_numbering() -> None:
    z, labels = blobs(3), (np.arange(240) % 3).astype(np.int32)
    expected = coding_length(z, labels)
    assert coding_length(7 * z + 3, labels) == pytest.approx(expected, rel=1e-4)
    assert coding_length(z, 2 * (2 - labels)) == pytest.approx(expected)


def test_curves_are_those_of_scikit_learn_and_by_hand() -> None:
    z = np.array([[0.0], [1.0], [10.0], [11.0]], dtype=np.float32)
    own = np.array([0, 0, 1, 1], dtype=np.int32)
    steps: list[int] = []
    found = curves(z, {2: own}, make_generator(0), 2, lambda: steps.append(1))
    assert found.silhouette[0] == pytest.approx((2 * (1 - 1 / 10.5) + 2 * (1 - 1 / 9.5)) / 4)
    assert found.silhouette[0] == pytest.approx(silhouette_score(z, own))
    assert found.davies_bouldin[0] == pytest.approx((0.5 + 0.5) / 10) == pytest.approx(davies_bouldin_score(z, own))
    assert len(steps) == 1


def test_stability_is_one_of_clusters_and_nothing_of_noise() -> None:
    assert stability(blobs(3), 3, make_generator(0), 3) == pytest.approx([1, 1, 1])
    noise = torch.randn(400, 8, generator=make_generator(1)).numpy()
    assert stability(noise, 5, make_generator(0), 4).mean() < 0.3


def test_hdbscan_counts_clusters() -> None:
    assert {count for count, _ in hdbscan_counts(blobs(4))} == {4}
    assert all(share > 0.9 for _, share in hdbscan_counts(blobs(4)))


def test_structureless_data_have_mean_and_covariance_but_no_clusters() -> None:
    points = blobs(3, 600, 12, 0.1) + np.float32(5)  # far from the origin, so that unit length changes the shape little
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    empty = structureless(points, make_generator(0))
    assert np.linalg.norm(empty, axis=1) == pytest.approx(np.ones(600), abs=1e-5)
    assert empty.mean(0) == pytest.approx(points.mean(0), abs=1e-2)
    scale = np.cov(points.T).max()
    assert np.cov(empty.T) / scale == pytest.approx(np.cov(points.T) / scale, abs=0.15)
    assert hdbscan_counts(reduced(points))[0][0] == 3
    assert hdbscan_counts(reduced(empty))[0][0] != 3


# ----------------------------------------------------------------------------------------------------------- the rule

KS = range(2, 21)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([7, 7, 7, 7, 7], (7, 7, 7)),
        ([7, 8, 7, 9, 7], (7, 7, 8)),  # 9 is further from 7 than 7
        ([4, 5, 20, 6, None], (6, 4, 6)),  # the median of 4, 5, 6, 20 is 5.5
        ([2, 12, 10, 11, 13], (11, 10, 13)),
        ([2, 5, 16, 6, 4], (5, 2, 6)),
        ([4, 4, 12, 12, 12], (12, 4, 12)),  # a factor of three is still one answer
    ],
)
def test_the_median_is_recommended_within_what_most_say(
    votes: list[int | None], expected: tuple[int, int, int]
) -> None:
    named = dict(zip("abcde", votes, strict=True))
    assert decide(named, 0.5, True, KS)[:3] == expected


@pytest.mark.parametrize(
    ("votes", "excess", "splits", "reason", "interval"),
    [
        ([7, 7, 7, 7, 7], 0.1, True, "halves of the data agree by 0.10 more", (2, 20)),
        ([7, 7, 7, 7, 7], 0.5, False, "one cluster have a shorter code", (2, 20)),
        ([7, None, None, 9, None], 0.5, True, "only 2 of 5 criteria", (7, 9)),
        ([3, 3, 10, 10, 20], 0.5, True, "far apart (a 3, b 3, c 10", (3, 20)),
    ],
)
def test_the_data_may_not_say(
    votes: list[int | None], excess: float, splits: bool, reason: str, interval: tuple[int, int]
) -> None:
    k, lowest, highest, why = decide(dict(zip("abcde", votes, strict=True)), excess, splits, KS)
    assert k is None
    assert (lowest, highest) == interval
    assert why.startswith("the data do not say: ")
    assert reason in why


def test_the_end_of_what_was_tried_is_said() -> None:
    assert "may be more clusters than the 20 that were tried" in decide(dict.fromkeys("abcde", 20), 0.5, True, KS)[3]


def test_what_is_as_stable_widens_an_interval_but_not_one_answer() -> None:
    some, same = (dict(zip("abcde", votes, strict=True)) for votes in ([7, 8, 7, 9, 7], [7, 7, 7, 9, 7]))
    assert decide(some, 0.5, True, KS, [5, 8, 12, 14])[1:3] == (7, 14)
    assert decide(some, 0.5, True, KS, [14, 21, 22, 40])[1:3] == (7, 21)  # three times 7
    assert decide(some, 0.5, True, KS, [5])[1:3] == (7, 8)
    assert decide(same, 0.5, True, KS, [14])[1:3] == (7, 7)


def test_default_numbers() -> None:
    assert default_ks(2, 24) == (*range(2, 21), 22, 24)
    assert default_ks()[-3:] == (52, 56, 60)
    assert default_ks(2, 2) == (2,)


# --------------------------------------------------------------------------------------------------------- the answer


def test_clusters_are_counted_and_again_the_same() -> None:
    seen: list[tuple[int, int]] = []
    choice = choose_k(blobs(3), (2, 3, 4, 6), watch=lambda done, total: seen.append((done, total)))
    assert (choice.k, choice.lowest, choice.highest, choice.middle) == (3, 3, 3, 3)
    assert set(choice.votes.values()) == {3}
    assert choice == choose_k(blobs(3), (2, 3, 4, 6))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert all(len(curve) == len(choice.ks) == 4 for curve in [*choice.curves.values(), *choice.null.values()])


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_says_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    choice = choose_k(getattr(rng, kind)(size=(240, 24)).astype(np.float32), (2, 4, 8, 18))
    assert choice.k is None
    assert (choice.lowest, choice.highest, choice.middle) == (2, 18, 6)


def test_few_samples_say_nothing() -> None:
    choice = choose_k(blobs(3, 5))
    assert (choice.k, choice.lowest, choice.highest) == (None, 2, 2)
    assert "5 different samples are too few" in choice.why
    assert choose_k(np.ones((100, 4), dtype=np.float32)).k is None
    assert choose_k(blobs(1, 1)).middle == 1


def test_of_many_samples_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.choosing.choose.SAMPLES", 150)
    choice = choose_k(blobs(3), (2, 3, 4))
    assert (choice.samples, choice.looked_at, choice.k) == (240, 150, 3)


@pytest.mark.parametrize("ks", [[], [1, 2], [2, 240]])
def test_numbers_that_cannot_be_tried(ks: list[int]) -> None:
    with pytest.raises(InputError, match="from 2 to 239"):
        choose_k(blobs(3), ks)


def test_numbers_must_be_finite() -> None:
    x = blobs(3)
    x[4, 1] = np.nan
    with pytest.raises(InputError, match="1 of 240 rows"):
        choose_k(x)


def test_everything_is_plain() -> None:
    told = json.loads(json.dumps(choose_k(blobs(3), (2, 3, 4)).describe()))
    assert told["k"] == 3
    assert told["hdbscan"][0].keys() == {"clusters", "share"}
    assert isinstance(choose_k(blobs(3, 5)), Choice)
