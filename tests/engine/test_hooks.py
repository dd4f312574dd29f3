from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.engine.hooks import ProgressHook, unequal
from odc.errors import InputError
from odc.evaluation.evaluator import label_statistics
from odc.memory.labels import LabelStore
from odc.structures import PseudoLabels


def store(target: list[int], K: int, index: Tensor | None = None) -> LabelStore:
    labels = LabelStore(0)
    index = torch.arange(len(target))[:, None] if index is None else index
    labels.replace(PseudoLabels(index, torch.tensor(target)[:, None], (K,)))
    return labels


class Clock(Hook):
    """A minute to begin with, as for images that are slow to read, then a second a step."""

    priority = "VERY_HIGH"
    now = 0.0

    def before_train(self, runner: Any) -> None:
        self.now += 60

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.now += 1


@pytest.mark.parametrize("begin", ["epoch_1.pth", "iter_5.pth"])
def test_the_time_left_is_that_of_the_steps_since_the_resume(
    begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_step = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1)}
    for folder, every in (("epoch", {}), ("iter", by_step)):
        build_runner(config("odc", str(tmp_path / folder), **every)).train()
    clock = Clock()
    monkeypatch.setattr("odc.engine.hooks.time.monotonic", lambda: clock.now)
    resumed = {"resume": True, "load_from": str(tmp_path / begin.partition("_")[0] / begin), "train_cfg.max_epochs": 4}
    runner = build_runner(config("odc", str(tmp_path / "again"), log_level="INFO", **resumed))
    runner.register_hook(clock)
    runner.train()
    log = next((tmp_path / "again").glob("*/*.log")).read_text()
    left = re.findall(r"epoch (\d)/4  .*  left (\S+)", log)
    assert left == [("2", "0:00:06"), ("3", "0:00:03"), ("4", "0:00:00")]  # three steps an epoch


def test_a_slow_first_step_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a resume workers and kernels start: the first step takes ten times as long as another."""
    build_runner(config("odc", str(tmp_path / "whole"))).train()
    clock = Clock()
    monkeypatch.setattr("odc.engine.hooks.time.monotonic", lambda: clock.now)

    class Slow(Hook):
        priority = "HIGHEST"

        def before_train(self, runner: Any) -> None:
            runner.train_loop.reads_late = False  # as on a processor

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            clock.now += 9 if runner.iter == 3 else 0

    resumed = {"resume": True, "load_from": str(tmp_path / "whole" / "epoch_1.pth"), "train_cfg.max_epochs": 4}
    hooks = {"custom_hooks": [dict(type="ProgressHook", seconds=1e-9)]}
    runner = build_runner(config("odc", str(tmp_path / "again"), log_level="INFO", **resumed, **hooks))
    for hook in (Slow(), clock):
        runner.register_hook(hook)
    runner.train()
    log = next((tmp_path / "again").glob("*/*.log")).read_text()
    left = re.findall(r"epoch (\d)/4  step (\d)/3  loss [\d.]+(?:  left (\S+))?", log)
    assert left[:4] == [("2", "1", ""), ("2", "2", "0:00:07"), ("2", "3", "0:00:06"), ("3", "1", "0:00:05")]


def test_an_evaluation_without_metrics_is_no_warning(tmp_path: Path) -> None:
    """Without ground truth KNNMetric measures nothing."""
    best = dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="auto")
    options = {"default_hooks.checkpoint": best, "val_evaluator": [dict(type="KNNMetric", k=3)]}
    runner = build_runner(config("odc", str(tmp_path), **options))
    runner.train_loop.dataloader.dataset.targets = None
    runner.train()
    assert runner.val_loop.values == {}
    assert "empty dict" not in next(tmp_path.glob("*/*.log")).read_text()


def test_label_statistics_by_hand() -> None:
    now = store([0, 0, 0, 0, 1, 1, 2, 2], 4)
    before = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])[:, None]
    values = label_statistics(now.index, before, now.view(), 4)
    assert values["churn"] == pytest.approx(1 / 8)
    shares = (0.5, 0.25, 0.25)
    assert values["entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(4))
    assert values["empty"] == 1
    assert 0 < values["nmi_prev"] < 1
    assert label_statistics(now.index, now.target, now.view(), 4)["nmi_prev"] == pytest.approx(1.0)


def test_unlabelled_rows_take_no_part_in_what_moved() -> None:
    now = store([0, 1, -1, 1], 2)
    before = torch.tensor([0, -1, 1, 0])[:, None]
    assert label_statistics(now.index, before, now.view(), 2)["churn"] == pytest.approx(1 / 2)
    nothing = torch.full((4, 1), -1)
    assert {"churn", "nmi_prev"}.isdisjoint(label_statistics(now.index, nothing, now.view(), 2))


def test_other_rows_than_before_cannot_be_compared() -> None:
    now = store([0, 1], 2)
    assert set(label_statistics(torch.tensor([[1], [0]]), now.target, now.view(), 2)) == {"entropy", "empty"}
    assert set(label_statistics(torch.zeros(0, 1).long(), now.target[:0], now.view(), 2)) == {"entropy", "empty"}


def test_one_class_has_no_statistics() -> None:
    now = store([0, 0], 1)
    assert label_statistics(now.index, now.target, now.view(), 1) == {}


def test_labels_without_any_class_have_no_statistics() -> None:
    now = store([-1, -1], 0)
    assert label_statistics(now.index, now.target, now.view(), 0) == {}


class Lines:
    def __init__(self, logger: Any) -> None:
        self.lines: list[str] = []
        logger.info = lambda message, *args: self.lines.append(str(message))


def test_the_lines_of_a_training(tmp_path: Path) -> None:
    options = {"train_cfg.val_interval": 1}
    runner = build_runner(config("odc", str(tmp_path), **options))
    lines = Lines(runner.logger).lines
    scalars: dict[str, int] = {}
    runner.visualizer.add_scalars = lambda values, step: scalars.update(dict.fromkeys(values, step))
    runner.train()
    number = r"\d+\.\d{4}"
    progress = [line for line in lines if line.startswith("epoch")]
    rest = rf"entropy {number}  empty \d+  left \d:\d\d:\d\d"
    assert re.fullmatch(rf"epoch 1/2  loss {number}  {rest}", progress[0]), progress[0]
    assert re.fullmatch(rf"epoch 2/2  loss {number}  churn {number}  nmi_prev {number}  {rest}", progress[1]), progress
    assert progress[1].endswith("left 0:00:00")
    assert len(progress) == 2
    evaluations = [line for line in lines if line.startswith("evaluation")]
    assert len(evaluations) == 2
    assert re.fullmatch(
        rf"evaluation  acc {number}  nmi {number}  nmi_geometric {number}  ari -?{number}  "
        rf"acc_many_to_one {number}  entropy {number}  empty \d+  knn {number}",
        evaluations[1],
    ), evaluations[1]
    assert {"train/loss", "train/churn", "train/entropy", "train/empty", "val/acc", "val/knn"} <= set(scalars)
    assert set(scalars.values()) == {2}


def test_a_line_inside_a_long_epoch(tmp_path: Path) -> None:
    runner = build_runner(config("odc", str(tmp_path), custom_hooks=[dict(type="ProgressHook", seconds=1e-9)]))
    lines = Lines(runner.logger).lines
    runner.train()
    inside = [line.split("  ")[:2] for line in lines if "  step " in line]
    assert inside == [[f"epoch {e}/2", f"step {s}/3"] for e in (1, 2) for s in (1, 2, 3)]


def test_seconds_must_be_positive() -> None:
    with pytest.raises(InputError, match="must be positive, not 0"):
        ProgressHook(seconds=0)


def test_sizes_are_unequal_below_nine_tenths_of_the_clusters() -> None:
    assert unequal(torch.tensor([50, 50, 50, 50])) is None
    assert unequal(torch.tensor([60, 40, 55, 45])) is None
    # Half in one of four, the rest in even parts: entropy ln 2 / 2 + 3 ln 6 / 6, that of 3.46 clusters.
    assert unequal(torch.tensor([300, 100, 100, 100])) == (
        "the clusters have 100 to 300 images, as unequal as if 3.5 of 4 were in use"
    )
    assert "0 to 1,000 images" in str(unequal(torch.tensor([1000, 0])))


@pytest.mark.parametrize("bound", [0.0, 1.1])  # no sizes contradict the method, or any
@pytest.mark.parametrize("assumption", [None, "favours equal ones (model.head.x)"])
def test_the_log_says_where_sizes_contradict_the_method(
    assumption: str | None, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odc.engine.hooks.EVEN", bound)
    runner = build_runner(config("dc", str(tmp_path), **{"train_cfg.val_interval": 1}))
    runner.model.head.equal_sizes = assumption
    runner.train()
    log = next(tmp_path.glob("*/*.log")).read_text()
    told = re.findall(r"WARNING - (the clusters have .* in use, but this method .*)", log)
    assert len(told) == (assumption is not None and bound > 1)  # after the last epoch alone
    if told:
        assert told[0].endswith("but this method favours equal ones (model.head.x)")
