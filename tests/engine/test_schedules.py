from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from odc.engine.optim import Constant, Cosine, CosineArc, Step
from odc.errors import InputError
from odc.registry import SCHEDULES, build


def test_constant() -> None:
    assert [Constant().factor(p) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_a_delay_comes_before_the_warmup() -> None:
    schedule = Cosine(warmup=0.2, delay=0.3)
    assert [schedule.factor(progress) for progress in (0.0, 0.1, 0.29)] == [0.0, 0.0, 0.0]
    assert schedule.factor(0.4) == pytest.approx(0.5)
    assert schedule.factor(0.75) == pytest.approx(0.5)
    assert schedule.factor(1.0) == pytest.approx(0.0)
    assert Cosine(delay=0.5).factor(0.5) == 1.0


def test_warmup_is_linear_and_joins_what_follows() -> None:
    schedule = Constant(warmup=0.2)
    assert schedule.factor(0.0) == 0.0
    assert schedule.factor(0.05) == pytest.approx(0.25)
    assert schedule.factor(0.2) == 1.0
    cosine = Cosine(warmup=0.2)
    assert cosine.factor(0.1) == pytest.approx(0.5)
    assert cosine.factor(0.2) == pytest.approx(1.0)
    assert cosine.factor(0.6) == pytest.approx(0.5)  # half of what is left after the warm-up
    assert cosine.factor(1.0) == pytest.approx(0.0)


def test_cosine_by_hand() -> None:
    assert [Cosine().factor(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert Cosine().factor(1 / 3) == pytest.approx(0.75)
    assert Cosine(final=0.2).factor(0.5) == pytest.approx(0.6)
    assert Cosine(final=0.2).factor(1.0) == pytest.approx(0.2)
    values = [Cosine().factor(i / 100) for i in range(101)]
    assert all(a > b for a, b in itertools.pairwise(values)), "a cosine never rises again"
    assert Cosine().factor(0.1) == pytest.approx((1 + math.cos(0.1 * math.pi)) / 2)


def test_cosine_arc_by_hand() -> None:
    schedule = CosineArc()
    assert [schedule.factor(p) for p in (0.0, 4 / 7, 1.0)] == pytest.approx([1.0, math.sqrt(0.5), 0.19509], abs=1e-5)
    assert CosineArc(arc=0.5).factor(1.0) == pytest.approx(0.0, abs=1e-12)
    assert CosineArc(warmup=0.5, arc=1 / 3).factor(1.0) == pytest.approx(0.5)


def test_step_by_hand() -> None:
    schedule = Step([0.5, 0.75], gamma=0.1)
    assert [schedule.factor(p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    # The published run of ODC: x 0.4 at epoch 400 of 440.
    odc = Step([400 / 440], gamma=0.4)
    assert odc.factor(399.999 / 440) == 1.0
    assert odc.factor(400 / 440) == pytest.approx(0.4)
    # Milestones are shares of the whole training, the warm-up included.
    assert Step([0.5], warmup=0.4).factor(0.49) == 1.0
    assert Step([0.3], warmup=0.4).factor(0.35) == pytest.approx(0.35 / 0.4 * 0.1)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(type="Constant", warmup=1.0), ["[0, 1)", "1.0"]),
        (dict(type="Cosine", warmup=-0.1), ["[0, 1)", "-0.1"]),
        (dict(type="Step", milestones=[400, 420]), ["(0, 1)", "400"]),
        (dict(type="Step", milestones=[0.0]), ["(0, 1)", "0.0"]),
        (dict(type="Step"), ["needs the option 'milestones'"]),
        (dict(type="CosineArc", arc=0.6), ["(0, 0.5]", "0.6"]),
        (dict(type="Cosin"), ["'Cosin'", "did you mean 'Cosine'"]),
        (dict(type="Cosine", finl=0.1), ["'finl'", "did you mean 'final'"]),
    ],
)
def test_wrong_schedules_are_told_in_one_line(cfg: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(SCHEDULES, cfg)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
