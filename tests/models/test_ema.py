from __future__ import annotations

from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS
from torch import nn

from odc.errors import InputError
from odc.models import ClusterModel
from odc.models.ema import MovingAverage


def test_by_hand() -> None:
    layer = nn.Linear(1, 1)
    average = MovingAverage({"layer": layer}, 0.9)
    seen = []
    for value in (3.0, 1.0, 2.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update({"layer": layer})
        seen.append(float(average.get_buffer("layer/weight")))
    assert seen == pytest.approx([3.0, 0.9 * 3 + 0.1 * 1, 0.9 * 2.8 + 0.1 * 2])
    with average.applied({"layer": layer}):
        assert layer.weight.item() == pytest.approx(2.72)
    assert layer.weight.item() == 2.0
    with pytest.raises(KeyError), average.applied({"layer": layer}):
        raise KeyError
    assert layer.weight.item() == 2.0, "restored after an error too"
    assert float(average.get_buffer("layer/weight")) == pytest.approx(2.72)


def test_before_the_first_update_nothing_is_averaged() -> None:
    layer = nn.Linear(2, 2)
    average = MovingAverage({"layer": layer}, 0.9)
    with torch.no_grad():
        layer.weight.fill_(7.0)  # as loading a checkpoint does
    with average.applied({"layer": layer}):
        assert torch.equal(layer.weight, torch.full((2, 2), 7.0))


def model(head: str = "odc", **options: Any) -> ClusterModel:
    backbone = dict(type="ConvNet", widths=[4, 8])
    neck = dict(type="ODCNeck", hidden_channels=16, out_channels=8)
    return ClusterModel(backbone, HEAD_CONFIGS[head], neck, **options)


def test_parameters_and_statistics_are_averaged_but_no_memory_and_no_labels() -> None:
    m = model(ema=0.5)
    assert m.average is not None
    names = {name for name, _ in m.average.named_buffers()}
    wanted = {name for name, p in m.named_parameters() if p.requires_grad}
    wanted |= {n for n, _ in m.named_buffers() if n.endswith(("running_mean", "running_var")) and "average" not in n}
    assert names - {"steps"} == {name.replace(".", "/") for name in wanted}
    assert any("running_var" in name for name in names)
    assert not any("memory" in name or "labels" in name for name in names)
    assert not any(name.startswith("average") for name, _ in m.named_parameters()), "the optimiser must not see them"


def test_frozen_parts_are_not_averaged() -> None:
    m = model(ema=0.5, frozen=["backbone", "neck"])
    assert m.average is not None
    trained = {name for name, _ in m.average.named_buffers() if "running" not in name and name != "steps"}
    assert trained == {"head/classifier/weight", "head/classifier/bias"}


def test_frozen_parts() -> None:
    m = model(frozen=["backbone", "neck"]).train()
    assert m.training
    assert m.head.training
    assert not any(x.training for part in (m.backbone, m.neck) for x in part.modules())
    assert not any(p.requires_grad for part in (m.backbone, m.neck) for p in part.parameters())
    assert all(p.requires_grad for p in m.head.parameters())
    drifting = model(frozen=["backbone"], norm_eval=False).train()
    assert drifting.backbone.training
    assert not any(p.requires_grad for p in drifting.backbone.parameters())
    assert all(p.requires_grad for p in drifting.neck.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(frozen=["bakcbone"]), ["'bakcbone'", "did you mean 'backbone'"]),
        (dict(frozen=["head"]), ["cannot name 'head'"]),
        (dict(ema=1.0), ["[0, 1)", "1.0"]),
        (dict(ema=-0.1), ["[0, 1)", "-0.1"]),
    ],
)
def test_wrong_options_are_told_in_one_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        model(**options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
