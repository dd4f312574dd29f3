from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from small_heads import config
from torch import Tensor, nn

from odc.apis import build_runner
from odc.config.checking import check_parts
from odc.engine.optim import ByName, forget
from odc.errors import InputError
from odc.heads import ClusterHead
from odc.registry import HEADS, OPTIM_WRAPPERS
from odc.structures import Batch, Comm, Labels, Losses, Plan, Stream


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.head = nn.ModuleDict({"classifier": nn.Linear(3, 4), "other": nn.Linear(3, 5)})


def groups(model: nn.Module, options: dict[str, dict[str, Any]] | None, **wrapper: Any) -> dict[str, dict[str, Any]]:
    """Return the group of every parameter that is optimised, by name."""
    cfg = {"optimizer": dict(type="SGD", lr=0.1, momentum=0.9), **wrapper}
    optimizer = ByName(cfg, options)(model).optimizer
    assert optimizer is not None
    names = {id(p): name for name, p in getattr(model, "module", model).named_parameters()}
    found = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_the_longest_prefix_wins() -> None:
    found = groups(
        Net(), {"head": dict(lr=0.2), "head.classifier": dict(momentum=0.0), "head.classifier.bias": dict(lr=0.3)}
    )
    assert {name: (g["lr"], g["momentum"]) for name, g in found.items()} == {
        "body.weight": (0.1, 0.9),
        "body.bias": (0.1, 0.9),
        "head.other.weight": (0.2, 0.9),
        "head.other.bias": (0.2, 0.9),
        "head.classifier.weight": (0.1, 0.0),  # its own options only, not those of the shorter prefix
        "head.classifier.bias": (0.3, 0.9),
    }


def test_without_options_all_parameters_are_one_group() -> None:
    model = Net()
    found = groups(model, None)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert len({id(g) for g in found.values()}) == 1


def test_every_parameter_may_be_named() -> None:
    assert len(groups(Net(), {"body": dict(lr=1.0), "head": dict(lr=2.0)})) == 6


def test_frozen_parameters_are_left_out() -> None:
    model = Net()
    model.body.requires_grad_(False)
    assert not [name for name in groups(model, None) if name.startswith("body")]
    with pytest.raises(InputError, match="no trainable parameter's name starts with 'body'"):
        groups(model, {"body": dict(lr=1.0)})


def test_the_names_are_those_inside_a_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

    assert groups(Wrapper(), {"head.classifier": dict(momentum=0.0)})["head.classifier.bias"]["momentum"] == 0.0


def test_an_unknown_prefix_names_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        groups(Net(), {"head.clasifier": dict(momentum=0.0)})
    assert "'head.clasifier'" in str(error.value)
    assert "did you mean 'head.classifier'?" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_wrapper_of_the_config_is_used() -> None:
    @OPTIM_WRAPPERS.register_module()
    class Mine(OptimWrapper):
        pass

    cfg: dict[str, Any] = {"type": "Mine", "optimizer": dict(type="SGD", lr=0.1), "accumulative_counts": 2}
    try:
        wrapper = ByName(cfg)(Net())
    finally:
        OPTIM_WRAPPERS.module_dict.pop("Mine")
    assert isinstance(wrapper, Mine)
    assert wrapper._accumulative_counts == 2
    assert cfg == {"type": "Mine", "optimizer": dict(type="SGD", lr=0.1), "accumulative_counts": 2}


@HEADS.register_module(force=True)
class TwoLosses(ClusterHead):
    """A classifier that trains the backbone, and a probe on its features that does not."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, 3)
        self.probe = nn.Linear(in_channels, 3)

    def plan(self, epoch: int) -> Plan:
        return Plan((Stream("train", 16),))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        z = batches["train"].z["train"][:, 0]
        wanted = torch.randint(3, (len(z),), generator=generator).to(z.device)
        return Losses(
            {
                "classifier_loss": F.cross_entropy(self.classifier(z), wanted),
                "probe": F.cross_entropy(self.probe(z.detach()), wanted),
            },
            log={"loss_of_a_guess": torch.tensor(math.log(3))},
        )

    def predict(self, z: Tensor) -> Tensor:
        scores: Tensor = self.probe(z)
        return scores


def test_two_losses_with_an_optimiser_each(tmp_path: Path) -> None:
    def train(classifier: float, probe: float) -> Any:
        rates = {"head.probe": dict(lr=probe, momentum=0.0), "head.classifier": dict(lr=classifier)}
        cfg = config("dc", str(tmp_path), val_evaluator=None, **{"train_cfg.max_epochs": 1})
        cfg.model.head = dict(type="TwoLosses")
        cfg.optim_wrapper.update(constructor="ByName", paramwise_cfg=rates)
        runner = build_runner(cfg)
        runner.train()
        means = runner.train_loop.epoch_means()
        assert list(means) == ["classifier_loss", "probe", "loss_of_a_guess"]
        assert means["loss_of_a_guess"] == pytest.approx(math.log(3))
        return runner.model.state_dict()

    def moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
        return {name.split(".")[0 if "head" not in name else 1] for name in a if not torch.equal(a[name], b[name])}

    start = train(0.1, 0.1)
    assert moved(start, train(0.1, 0.1)) == set()
    assert moved(start, train(0.1, 0.2)) == {"probe"}, "the probe's loss or rate reaches other parameters"
    assert moved(start, train(0.2, 0.1)) == {"classifier", "backbone", "neck", "probe"}


def test_options_of_other_constructors_are_no_prefixes(tmp_path: Path) -> None:
    cfg = config("dc", str(tmp_path))
    cfg.optim_wrapper.update(constructor="ByName", paramwise_cfg=dict(norm_decay_mult=0))
    with pytest.raises(InputError, match="start of parameters' names, 'norm_decay_mult' is configured by a dict, not"):
        check_parts(cfg)


@pytest.mark.parametrize("kind", ["Adagrad", "Adam", "SGD"])
def test_a_forgotten_parameter_begins_anew(kind: str) -> None:
    options: dict[str, Any] = {"SGD": dict(momentum=0.9), "Adagrad": dict(initial_accumulator_value=0.5)}.get(kind, {})
    one, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = getattr(torch.optim, kind)([{"params": [other]}, {"params": [one], "lr": 0.1}], lr=0.3, **options)

    def step() -> None:
        for parameter in (one, other):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5])
        optimizer.step()

    step()
    first = one.detach().clone()
    forget(optimizer, one)
    one.data.fill_(1)
    step()
    assert torch.equal(one, first)


def test_a_group_can_keep_its_rate(tmp_path: Path) -> None:
    cfg = config("dc", str(tmp_path), val_evaluator=None, **{"train_cfg.schedule": dict(type="Cosine", warmup=0.5)})
    cfg.optim_wrapper.update(
        constructor="ByName", paramwise_cfg={"head.classifier": dict(lr=0.3, constant_lr=True), "neck": dict(lr=0.2)}
    )
    check_parts(cfg)
    runner = build_runner(cfg)
    rates: list[list[float]] = []

    class Rates(Hook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            rates.append([group["lr"] for group in runner.optim_wrapper.optimizer.param_groups])

    runner.register_hook(Rates())
    runner.train()
    assert [rate[1] for rate in rates] == [0.3] * 6
    assert [rate[2] / rate[0] for rate in rates[1:]] == pytest.approx([0.2 / 0.05] * 5)
    assert rates[0][0] == 0.0 < rates[1][0]
    cfg.optim_wrapper.paramwise_cfg["head.classifier"]["constant_lr"] = "yes"
    with pytest.raises(InputError, match=r"head\.classifier.*constant_lr"):
        check_parts(cfg)
