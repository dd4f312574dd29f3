"""Where a training stands inside an epoch, as a checkpoint has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odc.memory.sample_buffer import SampleBuffer
from odc.models.cluster_model import ClusterModel
from odc.reading import fields, flag, mapping, whole


def _table(value: Any) -> Tensor:
    """Kind: whole numbers in rows, (M, ...) int64."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 2:
        raise ValueError("a table of whole numbers is expected")
    return value


def _gradient(value: Any) -> Tensor:
    """Kind: a finite tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isfinite().all()):
        raise ValueError("a tensor of finite numbers is expected")
    return value


_POSITION = fields(
    {
        **dict.fromkeys(("chunk", "repeat", "step", "images_seen", "seed"), whole()),
        **dict.fromkeys(("begun", "refreshed", "encoded", "evaluated"), flag),
        **dict.fromkeys(("index_before", "labels_before"), _table),
        "order": mapping(_table),
        "gradients": mapping(_gradient),
        **dict.fromkeys(("threads", "ranks"), whole(1)),
    }
)


def read_position(state: Any, model: ClusterModel, num_images: int) -> dict[str, Any]:
    """Return a position that was saved, once it is one among the labels and memories that ``model`` has loaded.

    Raises:
        ValueError: it is no position, or one of another model, of other labels or other images.
    """
    position: dict[str, Any] = _POSITION(state)
    M, N = len(model.labels.index), num_images
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(order.flatten() for order in position["order"].values())])
    for what, index, most in (("labels", model.labels.index, N), ("rows", rows, M)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError(f"{what} {int(index.min())} to {int(index.max())} of {most:,}")
    memories = [len(module.rows) for module in model.modules() if isinstance(module, SampleBuffer)]
    if not set(memories) <= {0, M, N}:
        raise ValueError(f"memories of {memories} rows for {M:,} labels of {N:,} images")
    if any(position["step"] > len(order) for order in position["order"].values()):
        raise ValueError(f"step {state['step']}, but its order ends before")
    expected, found = model.head.label_classes, tuple(model.labels.num_classes.tolist())
    if expected is not None and found not in (expected, (0,)):
        raise ValueError(f"the labels have {found} classes, the head {expected}")
    for name, parameter in model.named_parameters():
        gradient = position["gradients"].get(name)
        if gradient is not None and gradient.shape != parameter.shape:
            raise ValueError(f"the gradient of {name} has the shape {tuple(gradient.shape)}")
    return position
