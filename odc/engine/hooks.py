"""Observers: they log, and never write the state of a model."""

from __future__ import annotations

import datetime
import time
from typing import Any

from mmengine.hooks import Hook

from odc.engine.preflight import PreflightHook
from odc.errors import InputError
from odc.evaluation.evaluator import label_statistics
from odc.models.cluster_model import unwrap
from odc.registry import HOOKS

__all__ = ["PreflightHook", "ProgressHook"]


@HOOKS.register_module()
class ProgressHook(Hook):
    """What one wants to read while a training runs, and the same numbers for the visualizer.

    One line an epoch: losses, how the labels moved, how the clusters are filled, the time left. A collapse is visible
    at once: the entropy of the cluster sizes falls, clusters empty, labels stop moving. Inside a long epoch a line
    every ``seconds``, and a line for every evaluation.

    Args:
        seconds: time between two lines inside an epoch.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, seconds: float = 20.0) -> None:
        if seconds <= 0:
            raise InputError(f"ProgressHook's seconds must be positive, not {seconds}")
        self.seconds = seconds

    def before_train(self, runner: Any) -> None:
        """Start the clock of the lines; that of the time left starts with the first step."""
        self._noted = time.monotonic()
        # When, and at which progress, the first step began and ended. What went before it, loading and looking at
        # features, is not done again; nor is what makes the first step slow: workers and kernels that start.
        self._marks: list[tuple[float, float]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock, at the first step."""
        if not self._marks:
            self._marks.append((time.monotonic(), runner.train_loop.progress))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, float] | None = None
    ) -> None:
        """Log the step, if the last line is long ago."""
        if len(self._marks) == 1:
            self._marks.append((time.monotonic(), runner.train_loop.progress))
        if time.monotonic() - self._noted >= self.seconds:
            step = f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {batch_idx + 1}/{len(runner.train_dataloader)}"
            self._line(runner, step, runner.train_loop.epoch_means(), self._marks[1:])

    def after_train_epoch(self, runner: Any) -> None:
        """Log the epoch."""
        loop = runner.train_loop
        stats = dict(loop.epoch_means())
        now = unwrap(runner.model).labels.view()
        stats |= label_statistics(loop.index_before, loop.labels_before, now, len(now.counts))
        done = runner.epoch + 1
        runner.visualizer.add_scalars({f"train/{k}": v for k, v in stats.items()}, step=done)
        self._line(runner, f"epoch {done}/{runner.max_epochs}", stats, self._marks)

    def after_train(self, runner: Any) -> None:
        """Close the visualizer; warn where the head says that nothing was learnt, next to what the features were."""
        runner.visualizer.close()  # W&B would take the next training in this process for the same run
        means = runner.train_loop.epoch_means()
        found = unwrap(runner.model).head.diagnosis(means) if means else None
        if found is None:
            return
        known = runner.message_hub.get_info("preflight") if "preflight" in runner.message_hub.runtime_info else None
        before = f"; before the training the features had {_numbers(known)}" if known else ""
        runner.logger.warning(f"{found}{before}: pre-train longer or on more images, or see whether the features fit")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Log the evaluation."""
        metrics = metrics or {}
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in metrics.items()}, step=runner.epoch)
        runner.logger.info("evaluation  " + _numbers(metrics))

    def _line(self, runner: Any, where: str, stats: dict[str, float], marks: list[tuple[float, float]]) -> None:
        now = time.monotonic()
        done = runner.train_loop.progress
        line = f"{where}  {_numbers(stats)}"
        for began, progress in [mark for mark in marks if mark[1] < done][-1:]:
            left = (now - began) / (done - progress) * (1.0 - done)
            line += f"  left {datetime.timedelta(seconds=round(left))}"
        runner.logger.info(line)
        self._noted = now


def _numbers(values: dict[str, float]) -> str:
    """``empty`` counts clusters; everything else is a loss or a share."""
    return "  ".join(
        f"{name} {value:.0f}" if name == "empty" else f"{name} {value:.4f}" for name, value in values.items()
    )
