"""What a plan asks for, looked at before it is followed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from odc.errors import InputError, nearest
from odc.models.cluster_model import ClusterModel
from odc.structures import Plan, make_generator


class Resettable(Protocol):
    """A module that can be drawn anew."""

    def reset(self, generator: torch.Generator) -> None:
        """Draw the parameters from ``generator``."""


def check_plan(plan: Plan, model: ClusterModel, views: Collection[str], world: int) -> None:
    """Check a plan against the model, the labels that it has now, the data's views and the number of ranks.

    Raises:
        InputError: it cannot be followed.
    """
    target = model.labels.target[:, 0]
    for stream in plan.streams:
        if stream.size % world:
            raise InputError(
                f"stream '{stream.name}' has {stream.size} rows a step, which {world} ranks cannot share equally: use "
                f"a multiple of {world}"
            )
        if stream.rows == "labelled" and plan.refresh is None and not bool((target >= 0).any()):
            raise InputError(
                f"stream '{stream.name}' trains on labelled rows, but all {len(target):,} are unlabelled: set "
                "train_cfg.label_file, or, for low-shot and full fine-tuning, train_cfg.label_fraction"
            )
    wanted = [view for stream in plan.streams for view in stream.views]
    if plan.refresh is not None:
        wanted += [plan.refresh.logits] if plan.refresh.logits else []
        for name in plan.refresh.reset:
            resettable(model.head, name)
    for view in wanted:
        if view not in views:
            raise InputError(f"the head wants the view '{view}'{nearest(view, views)} (data.views)")


def resettable(head: nn.Module, name: str) -> Resettable:
    """Return the head's module of this name, which a plan wants to draw anew.

    Raises:
        InputError: there is none, or it has no method ``reset``.
    """
    known = dict(head.named_modules())
    known.pop("")
    if name not in known:
        raise InputError(
            f"Refresh.reset names '{name}', which is not a module of {type(head).__name__}{nearest(name, known)}"
        )
    module: Any = known[name]
    if not hasattr(module, "reset"):
        raise InputError(
            f"Refresh.reset names '{name}' of {type(head).__name__}, but a {type(module).__name__} cannot be drawn "
            "anew: give it a method reset(generator), as odc.heads.LinearClassifier has"
        )
    found: Resettable = module
    return found


def chunks(plan: Plan, num_images: int, seed: int, epoch: int) -> list[Tensor | None]:
    """Return the sample ids of each chunk, ascending, drawn by seed and epoch; ``None`` stands for all."""
    N, chunk = num_images, None if plan.refresh is None else plan.refresh.chunk
    if chunk is None or chunk >= N:
        return [None]
    order = torch.randperm(N, generator=make_generator(seed, "chunks", epoch))
    full = N // chunk
    parts = [order[i * chunk : (i + 1) * chunk if i + 1 < full else N] for i in range(full)]
    return [part.sort().values for part in parts]
