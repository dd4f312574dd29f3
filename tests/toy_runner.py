"""A small model under the runner, on mmengine's own loop with a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from odc.errors import InputError
from odc.runner import Runner


class Points(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(i), 1.0]) / 8}


class Toy(BaseModel):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        z = self.bn(self.fc(x))
        return {"loss": (z - 1).square().mean()} if mode == "loss" else list(z)


class Loop(EpochBasedTrainLoop):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Scores(BaseMetric):
    """Scores in a given order, one an evaluation."""

    def __init__(self, scores: tuple[float, ...]) -> None:
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {"acc": next(self.scores)}


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Points(), batch_size=4)


def build(work_dir: Path, *, epochs: int = 2, **kwargs: Any) -> Runner:
    """Build a runner of the toy with 2 iterations an epoch."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "model": Toy(),
        "work_dir": str(work_dir),
        "train_dataloader": loader(),
        "train_cfg": {"type": Loop, "max_epochs": epochs},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "randomness": {"seed": 0},
    }
    return Runner(**(arguments | kwargs))


def evaluation(*scores: float) -> dict[str, Any]:
    return {"val_dataloader": loader(), "val_cfg": {}, "val_evaluator": Evaluator(Scores(scores))}


def weights(runner: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def log_of(runner: Any) -> str:
    return "".join(p.read_text() for p in Path(runner.log_dir).glob("*.log"))


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def save(path: Path, iteration: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"epoch": 1, "iter": iteration}, "state_dict": {"w": torch.zeros(2000)}}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])
