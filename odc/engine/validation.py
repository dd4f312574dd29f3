"""The loop that evaluates: the only place where ground truth is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.runner.base_loop import BaseLoop

from odc.engine.comm import get_comm
from odc.engine.data import ClusterData
from odc.evaluation.evaluator import Evaluation
from odc.models.cluster_model import unwrap
from odc.registry import LOOPS, METRICS, build
from odc.structures import UNLABELLED


@LOOPS.register_module()
class ClusterValLoop(BaseLoop):
    """Predict a cluster for every image and measure; ground truth is touched here and nowhere else.

    ``evaluator`` are configs of metrics (registry ``METRICS``).
    """

    def __init__(self, runner: Any, dataloader: ClusterData, evaluator: list[dict[str, Any]]) -> None:
        super().__init__(runner, dataloader)
        self.data = dataloader
        self.metrics = [build(METRICS, cfg) for cfg in evaluator]
        self.evaluation: Evaluation | None = None
        self.values: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Return the metrics by name."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.evaluation, self.values = self.evaluate(), {}
        for metric in self.metrics:
            self.values |= metric(self.evaluation)
        self.runner.call_hook("after_val_epoch", metrics=self.values)
        self.runner.call_hook("after_val")
        return self.values

    def evaluate(self) -> Evaluation:
        """Return features and cluster scores of every image of the evaluation set."""
        model, comm, source = unwrap(self.runner.model), get_comm(), self.data.eval
        table = self.runner.train_loop.features.evaluation(model, source)
        assert table.logits is not None
        mine = torch.zeros(len(source.dataset), device=table.features.device)
        mine[list(source.dataset.lost)] = 1
        lost, targets = comm.sum(mine).cpu() > 0, source.dataset.targets
        return Evaluation(
            features=comm.gather(table.features).cpu(),
            scores=comm.gather(table.logits).cpu(),
            targets=None if targets is None else np.where(lost.numpy(), UNLABELLED, targets),
            lost=lost,
            spaces=source.dataset.spaces if sum(source.dataset.spaces) == table.features.shape[1] else (),
        )
