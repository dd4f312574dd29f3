"""The hook by which a long training is watched; its config names it in ``custom_imports``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from odc.registry import HOOKS


@HOOKS.register_module()
class StepWatch(Hook):
    """Note the processor time of every step, and memory every hundred.

    Args:
        file: JSON to write at the end: ``steps`` in seconds, ``reference``, the same for a fixed piece of work at every
            tenth, and ``memory`` in MiB.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.last: float | None = None
        self.steps: list[float] = []
        self.reference: list[float] = []
        self.memory: list[float] = []
        self.matrix = torch.eye(64)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Note one step."""
        now = time.process_time()
        if self.last is not None:
            self.steps.append(now - self.last)
        if runner.iter % 10 == 0:
            self.reference.append(self._reference())
        if runner.iter % 100 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * 4096 / 2**20)
        self.last = time.process_time()

    def _reference(self) -> float:
        """Return the processor time of work that is always the same: other load on the machine slows both."""
        began = time.process_time()
        x = self.matrix
        for _ in range(50):
            x = (x @ self.matrix).relu()
        return time.process_time() - began

    def after_train(self, runner: Any) -> None:
        """Write what was noted."""
        Path(self.file).write_text(
            json.dumps({"steps": self.steps, "reference": self.reference, "memory": self.memory})
        )
