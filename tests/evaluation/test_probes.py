"""Probes: exact cases, slow loops from the definitions, and what they refuse."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.data import Digits
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation, LinearProbe
from odc.evaluation.probes import (
    STRENGTHS,
    Samples,
    _fit,
    knn_probe,
    linear_probe,
    low_shot_probe,
    run_probes,
    stratified_split,
)
from odc.registry import METRICS, build
from odc.structures import make_generator

Sets = tuple[Samples, Samples]


def circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def blobs(n: int, seed: int, gap: float = 20.0, classes: int = 3, D: int = 4) -> tuple[Tensor, Tensor]:
    """Return ``n`` samples of each class around its own unit vector, ``gap`` standard deviations from 0."""
    rng = make_generator(seed, "blobs")
    y = torch.arange(classes).repeat(n)
    return gap * torch.eye(D)[y] + torch.randn(n * classes, D, generator=rng), y


def digits() -> Sets:
    data = Digits()
    assert data.targets is not None
    x, y = data.images().flatten(1).float(), torch.from_numpy(data.targets)
    train, test = stratified_split(y, 0.2, make_generator(0, "digits"))
    return (x[train], y[train]), (x[test], y[test])


def rng(seed: int = 0) -> torch.Generator:
    return make_generator(seed, "probe")


# -- nearest neighbours ----------------------------------------------------------------------------------------------


def test_knn_by_hand() -> None:
    train, y = circle(0, 10, 90, 100) * torch.tensor([[1.0], [50], [3], [9]]), torch.tensor([4, 4, 7, 7])
    test, wanted = circle(5, 95, 40, 60), torch.tensor([4, 7, 4, 7])
    assert knn_probe((train, y), (test, wanted), [1, 2]) == {1: 1.0, 2: 1.0}
    # k = 4: two votes each, and the class of the nearest neighbour wins.
    assert knn_probe((train, y), (test, wanted), [4]) == {4: 1.0}
    assert knn_probe((train, y), (test, torch.tensor([4, 7, 7, 9])), [1]) == {1: 0.5}, (
        "class 9 is in no training sample"
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 5))
def test_knn_against_loops(seed: int, k: int, n_classes: int) -> None:
    r = rng(seed)
    x, q = torch.randn(30, 3, generator=r), torch.randn(12, 3, generator=r)
    y = torch.randint(-1, n_classes, (30,), generator=r)
    wanted = torch.randint(-1, n_classes, (12,), generator=r)
    y[:6], wanted[0] = 0, 0  # k of known class at the least
    correct = total = 0
    for query, target in zip(F.normalize(q.double()), wanted.tolist(), strict=True):
        if target < 0:
            continue
        known = [i for i in range(30) if y[i] >= 0]
        near = sorted(known, key=lambda i: -float(F.normalize(x[i].double(), dim=0) @ query))[:k]
        votes = [int(y[i]) for i in near]
        correct += max(votes, key=lambda c: (votes.count(c), -votes.index(c))) == target
        total += 1
    assert knn_probe((x, y), (q, wanted), [k, 1])[k] == pytest.approx(correct / total)


# -- linear ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_separable_classes_are_separated(classes: int) -> None:
    x, y = blobs(20, 0, classes=classes)
    q, wanted = blobs(10, 1, classes=classes)
    result = linear_probe((x, y * 5 + 1), (q, wanted * 5 + 1), generator=rng())
    assert result.accuracy == 1.0
    assert result.strength in STRENGTHS
    assert linear_probe((x, y), (q, (wanted + 1) % classes), generator=rng()).accuracy == 0.0
    # A test class without training samples is always wrong.
    assert linear_probe((x, y), (q, torch.where(wanted == 0, 99, wanted)), generator=rng()).accuracy == pytest.approx(
        1 - 1 / classes
    )


def test_features_that_say_nothing_give_the_most_frequent_class() -> None:
    x, y = torch.full((60, 3), 0.1), torch.tensor([0, 1, 1] * 20)
    q, wanted = torch.full((10, 3), 0.1), torch.tensor([1] * 7 + [0] * 3)
    assert linear_probe((x, y), (q, wanted), generator=rng()).accuracy == 0.7


def test_a_line_cannot_separate_the_corners_of_a_square_crosswise() -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]) - 0.5
    y = torch.tensor([0, 0, 1, 1])
    noise = 0.05 * torch.randn(80, 2, generator=rng())
    sets = ((corners.repeat(20, 1) + noise, y.repeat(20)), (corners, y))
    assert linear_probe(*sets, generator=rng()).accuracy <= 0.75
    assert knn_probe(*sets, [1]) == {1: 1.0}


def test_scale_and_offset_of_a_dimension_change_nothing() -> None:
    x, y = blobs(30, 0, gap=1.5)
    q, wanted = blobs(100, 1, gap=1.5)
    plain = linear_probe((x, y), (q, wanted), generator=rng())
    assert 0.5 < plain.accuracy < 1
    scale, offset = torch.tensor([4.0, 0.25, 64, 1]), torch.tensor([0.0, 8, -2, 0])
    assert linear_probe((x * scale + offset, y), (q * scale + offset, wanted), generator=rng()) == plain


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_objective_is_the_mean_loss_and_the_penalty(strength: float) -> None:
    x, y = blobs(20, 3, gap=1.5)
    classifier = _fit(x.numpy(), y.numpy(), strength)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    W = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([W, b], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(z @ W.T + b, y) + strength / 2 * W.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(objective)
    np.testing.assert_allclose(classifier[-1].coef_, W.detach().numpy(), atol=2e-3)


def test_the_penalty_fits_the_data() -> None:
    r = rng()
    x, noise = torch.randn(400, 50, generator=r), torch.randint(0, 2, (400,), generator=r)
    assert linear_probe((x, noise), (x, noise), generator=rng()).strength == max(STRENGTHS), "nothing to learn"
    x, y = blobs(100, 0)
    assert linear_probe((x, y), (x, y), generator=rng()).strength == min(STRENGTHS), "nothing to fear"
    few = torch.cat([(y == c).nonzero().squeeze(1)[:4] for c in range(3)])
    assert linear_probe((x[few], y[few]), (x, y), generator=rng()).strength == 0.01, "too few to hold any out"


def test_unknown_targets_are_left_out() -> None:
    x, y = blobs(30, 0, gap=2)
    q, wanted = blobs(50, 1, gap=2)
    junk, unknown = torch.full((7, 4), torch.nan), torch.full((7,), -1)
    with_junk = (torch.cat([junk, x]), torch.cat([unknown, y])), (torch.cat([q, junk]), torch.cat([wanted, unknown]))
    a, b = run_probes((x, y), (q, wanted), generator=rng()), run_probes(*with_junk, generator=rng())
    assert a == b
    assert (a.train, a.test) == (90, 150)


# -- few labels ------------------------------------------------------------------------------------------------------


def test_low_shot_by_hand() -> None:
    x, y = blobs(50, 0, D=3)
    q, wanted = blobs(10, 1, D=3)
    for fraction, labels in ((0.1, 15), (0.001, 3), (1.0, 150)):
        result = low_shot_probe((x, y), (q, wanted), fraction=fraction, generator=rng(), draws=2)
        assert (result.mean, result.std, result.labels, result.draws) == (1.0, 0.0, labels, 2)


def test_low_shot_is_the_mean_of_probes_on_balanced_parts() -> None:
    """Classes of 90, 30 and 30: a tenth is 15 labels."""
    x, y = blobs(90, 0, gap=1.0)
    keep = (y == 0) | (torch.arange(len(y)) < 90)
    q, wanted = blobs(100, 1, gap=1.0)
    result = low_shot_probe((x[keep], y[keep]), (q, wanted), fraction=0.1, generator=rng(), draws=4)
    assert result.labels == 15
    assert 0 < result.std < 0.3
    assert 1 / 3 < result.mean < linear_probe((x, y), (q, wanted), generator=rng()).accuracy
    again = low_shot_probe((x[keep], y[keep]), (q, wanted), fraction=0.1, generator=rng(), draws=4)
    other = low_shot_probe((x[keep], y[keep]), (q, wanted), fraction=0.1, generator=rng(1), draws=4)
    assert result == again != other


# -- splits ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_every_class_is_split_alike(targets: list[int], share: float, seed: int) -> None:
    y = torch.tensor(targets)
    train, test = stratified_split(y, share, rng(seed))
    assert sorted([*train.tolist(), *test.tolist()]) == [i for i, t in enumerate(targets) if t >= 0]
    assert train.tolist() == sorted(train.tolist())
    assert test.tolist() == sorted(test.tolist())
    for c in range(5):
        n, held = targets.count(c), int((y[test] == c).sum())
        if n > 1:
            assert 1 <= held <= n - 1
            assert abs(held - share * n) <= 1
        else:
            assert held == 0
    again = stratified_split(y, share, rng(seed))
    assert torch.equal(train, again[0])


def test_a_split_is_drawn() -> None:
    y = torch.zeros(100, dtype=torch.int64)
    drawn = {tuple(stratified_split(y, 0.2, rng(seed))[1].tolist()) for seed in range(5)}
    assert len(drawn) == 5


# -- all of them -----------------------------------------------------------------------------------------------------


def test_pixels_of_digits() -> None:
    results = run_probes(*digits(), generator=rng(), provenance={"features": "pixels"})
    assert list(results.knn) == [1, 10, 20]
    assert results.knn[1] > 0.97
    assert results.linear.accuracy > 0.94
    few, more = results.low_shot[0.01], results.low_shot[0.1]
    assert (few.labels, more.labels) == (14, 144)
    assert 0.3 < few.mean < more.mean < results.linear.accuracy
    text = str(results)
    assert text.startswith("features  pixels\n")
    assert f"  linear{results.linear.accuracy:26.1%}".replace("%", "") in text
    assert f"{100 * more.mean:.1f} ± {100 * more.std:.1f}   144 labels, 5 draws" in text
    assert max(map(len, text.splitlines())) < 100
    written = json.loads(results.to_json())
    assert written["provenance"] == {"features": "pixels"}
    assert written["knn"]["10"] == results.knn[10]
    assert written["low_shot"]["0.1"]["mean"] == more.mean
    assert (written["train"], written["test"]) == (1438, 359)


def test_neighbours_that_there_are_not() -> None:
    x, y = blobs(3, 0)
    assert list(run_probes((x, y), (x, y), generator=rng()).knn) == [1]


# -- as a metric -----------------------------------------------------------------------------------------------------


def evaluation(x: Tensor, y: Tensor | None) -> Evaluation:
    return Evaluation(x, torch.zeros(len(x), 0), None if y is None else y.numpy())


def test_the_metric_holds_a_fifth_out() -> None:
    x, y = blobs(40, 0)
    metric = build(METRICS, dict(type="LinearProbe"))
    assert metric(evaluation(x, y)) == {"linear": 1.0}
    r = make_generator(7, "LinearProbe")
    hard, z = blobs(40, 0, gap=1.0)
    train, test = stratified_split(z, 0.2, r)
    wanted = linear_probe((hard[train], z[train]), (hard[test], z[test]), generator=r).accuracy
    assert LinearProbe(seed=7)(evaluation(hard, z)) == {"linear": wanted}
    assert 0 < wanted < 1
    noise = torch.randint(0, 3, (120,), generator=rng())
    assert LinearProbe()(evaluation(hard, noise))["linear"] < 0.7, "tested on what it has seen"


def test_the_metric_without_labels_to_learn_from() -> None:
    x, y = blobs(5, 0)
    for targets in (None, torch.full_like(y, -1), torch.zeros_like(y), torch.arange(15)):
        assert LinearProbe()(evaluation(x, targets)) == {}


def test_the_metric_takes_evenly_spaced_samples() -> None:
    x, y = blobs(40, 0)
    junk = y.clone()
    junk[torch.arange(120) % 2 == 1] = torch.randint(0, 3, (60,), generator=rng())
    even = torch.linspace(0, 119, 60).round().long()
    part = LinearProbe()(evaluation(x[even], junk[even]))
    assert LinearProbe(max_samples=60)(evaluation(x, junk)) == part
    with pytest.raises(InputError, match="max_samples >= 2, not 1"):
        LinearProbe(max_samples=1)


# -- what is wrong ---------------------------------------------------------------------------------------------------

X, Y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
BAD = torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, torch.inf], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (((X, Y[:3]), (X, Y)), r"training features must be \(N, D\) and their targets \(N,\), not \(4, 2\) and \(3,\)"),
        (((X, Y), (X[0], Y)), r"test features must be .* not \(2,\) and \(4,\)"),
        (((X, Y), (X[:, :1], Y)), "training features have width 2, but test features 1"),
        (((BAD, Y), (X, Y)), "2 of 4 rows of training features are not finite"),
        (((X, Y), (BAD, Y)), "2 of 4 rows of test features are not finite"),
        (((X, Y - 5), (X, Y)), "none of the 4 training samples has a known class"),
        (((X, Y), (X, Y - 5)), "none of the 4 test samples has a known class"),
    ],
)
def test_wrong_input(sets: Sets, words: str) -> None:
    for probe in (
        lambda: knn_probe(*sets, [1]),
        lambda: linear_probe(*sets, generator=rng()),
        lambda: low_shot_probe(*sets, fraction=1.0, generator=rng()),
    ):
        with pytest.raises(InputError, match=words) as error:
            probe()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.1}, {"fraction": 0.5, "draws": 1}])
def test_low_shot_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a fraction in \(0, 1\] and 2 draws or more, not"):
        low_shot_probe((X, Y), (X, Y), generator=rng(), **options)


def test_one_class_and_neighbours_out_of_range() -> None:
    with pytest.raises(InputError, match="at least 2 classes, but the 4 training samples have 1"):
        linear_probe((X, Y * 0), (X, Y), generator=rng())
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k={k}, but with 4 training samples of known class it must be 1 to 4"):
            knn_probe((X, Y), (X, Y), [1, k])
