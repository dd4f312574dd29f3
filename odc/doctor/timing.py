"""How long a training takes, from a few of its own steps.

The real loop runs in a folder that is deleted, on a part of the images where a data set can have one, and is stopped
after some seconds. What does not depend on the number of steps (loading, features, labels that are made anew) counts
as often as the training does it.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import Config
from mmengine.hooks import Hook

from odc.apis import train
from odc.data.datasets import ImageDataset
from odc.doctor.findings import duration
from odc.engine.data import EXTRACT_VIEW
from odc.engine.extract import encode
from odc.folder.running import aside
from odc.models.cluster_model import unwrap

PART = 1_024  # images, where a data set can have a part
_A_CLUSTER = 20  # of them at least
_SECONDS, _STEPS = 12.0, 60  # of steps that are timed, whichever comes first
_WARM = 3  # steps that start workers and kernels
_ENCODED = 256  # images whose encoding is timed


@dataclass(frozen=True)
class Timing:
    """What a training takes."""

    seconds: float  # about, all of it
    step: float  # seconds a step
    steps: int  # of all epochs
    epochs: int
    before: float  # seconds before the first step
    evaluation: float  # seconds of one
    process: int  # bytes of memory of this process at its largest
    rows: int  # bytes of what is kept of all images: features, memories of heads

    @property
    def memory(self) -> int:
        """Bytes altogether."""
        return self.process + self.rows

    def __str__(self) -> str:
        return (
            f"about {duration(self.seconds)}: {self.epochs} epochs, {self.steps:,} steps of {self.step * 1000:.3g} ms, "
            f"{duration(self.before)} before them, {duration(self.evaluation)} an evaluation"
        )


class _EnoughError(Exception):
    """What was to be measured is."""


class _Watch(Hook):
    """Notes when what happens, and stops the training."""

    def __init__(self) -> None:
        self.epoch: float | None = None  # when the first one began
        self.marks: list[float] = []  # before the first step, then after each
        self.total = self.epochs = self.width = self.samples = self.made_anew = 0
        self.encoding = 0.0  # seconds an image

    def before_train_epoch(self, runner: Any) -> None:
        """Note the beginning of the first epoch."""
        if self.epoch is None:
            self.epoch = time.monotonic()
        elif self.marks:  # an epoch is over before enough steps were seen: what lies between is no step
            self._end(runner)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note the first step."""
        if not self.marks:
            self.marks.append(time.monotonic())

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the step; end after enough of them."""
        self.marks.append(time.monotonic())
        if len(self.marks) == 2:
            self.total = round(1 / runner.train_loop.progress)
        seen = len(self.marks) - 1
        if seen >= _STEPS or (seen > 2 * _WARM and self.marks[-1] - self.marks[_WARM] > _SECONDS):
            self._end(runner)

    def after_train(self, runner: Any) -> None:
        """End where the training does."""
        self._end(runner)

    def _end(self, runner: Any) -> None:
        model, loop = unwrap(runner.model), runner.train_loop
        self.epochs, self.samples = loop.max_epochs, len(loop.data.dataset)
        self.made_anew = sum(model.head.plan(epoch).refresh is not None for epoch in range(self.epochs))
        self.width = int(model.neck.out_channels)
        ids = np.arange(min(_ENCODED, self.samples))
        if not loop.data.dataset.spaces:
            model.eval()
            began = time.monotonic()
            keys = {EXTRACT_VIEW: np.zeros_like(ids)}
            for _ in encode(model, loop.data.train, ids, np.zeros_like(ids), keys, loop.data.extract_batch_size):
                pass
            self.encoding = (time.monotonic() - began) / len(ids)
        raise _EnoughError


def measure(config: Config, dataset: ImageDataset) -> Timing:
    """Return what a prepared training takes on this machine; some of its steps run.

    Raises:
        InputError: as :func:`odc.apis.train`.
    """
    N, watch = len(dataset), _Watch()
    config = config.copy()
    part = _part(config, N)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        config.work_dir, config.resume = place, False
        config.visualizer = None
        try:
            with aside(Path(place) / "log.txt"):
                train(config, [watch])
        except _EnoughError:
            pass
    scale = N / watch.samples
    steps = round(watch.total * (scale if part else 1))
    marks = np.array(watch.marks)
    warm = min(_WARM, max(0, len(marks) - 2))
    step = float(np.diff(marks)[warm:].mean())
    assert watch.epoch is not None
    anew = marks[0] - watch.epoch  # labels are made before the first step
    before = (watch.epoch - began) + anew * scale
    evaluations = _evaluations(config, watch.epochs)
    evaluation = watch.encoding * N
    seconds = before + max(0, watch.made_anew - 1) * anew * scale + steps * step + evaluations * evaluation
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Timing(seconds, step, steps, watch.epochs, before, evaluation, process, 2 * 4 * N * watch.width)


def _part(config: Config, N: int) -> bool:
    """Let the data set be a part of itself, where it can, and say whether it is."""
    K = config.model.head.get("num_clusters")
    enough = max(PART, _A_CLUSTER * K if isinstance(K, int) else 0)
    queue = config.model.head.get("queue_size")
    if isinstance(queue, int):
        enough = max(enough, 2 * queue)
    data = config.data.dataset
    data = data.dataset if data.type == "Shrunk" else data
    if enough >= N or data.type not in ("ImageFolder", "ImageList", "ImageCSV") or config.data.get("eval_dataset"):
        return False
    data.max_samples = enough
    if config.data.dataset.type == "Shrunk":
        config.data.dataset.cache = None
    return True


def _evaluations(config: Config, epochs: int) -> int:
    if not config.get("val_evaluator"):
        return 0
    interval = int(config.train_cfg.get("val_interval", 1))
    return -(-epochs // interval)
