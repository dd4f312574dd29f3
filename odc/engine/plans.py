"""What a plan asks for, looked at before it is followed."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from odc.errors import InputError, nearest
from odc.models.cluster_model import ClusterModel
from odc.structures import Plan, make_generator


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
        known = {name: module for name, module in model.head.named_modules() if name}
        for name in plan.refresh.reset:
            what = f"Refresh.reset names '{name}'"
            if name not in known:
                raise InputError(f"{what}, which is not a module of {type(model.head).__name__}{nearest(name, known)}")
            if not hasattr(known[name], "reset"):
                raise InputError(
                    f"{what} of {type(model.head).__name__}, but a {type(known[name]).__name__} cannot be drawn anew: "
                    "give it a method reset(generator), as odc.heads.LinearClassifier has"
                )
    for view in wanted:
        if view not in views:
            raise InputError(f"the head wants the view '{view}'{nearest(view, views)} (data.views)")


def chunks(plan: Plan, num_images: int, seed: int, epoch: int) -> list[Tensor | None]:
    """Return the sample ids of each chunk, ascending, drawn by seed and epoch; ``None`` stands for all."""
    chunk = num_images if plan.refresh is None or plan.refresh.chunk is None else plan.refresh.chunk
    if chunk >= num_images:
        return [None]
    order = torch.randperm(num_images, generator=make_generator(seed, "chunks", epoch))
    ends = tuple(range(chunk, num_images - chunk + 1, chunk))  # of all but the last
    return [part.sort().values for part in order.tensor_split(ends)]


def last_labelling(model: ClusterModel, num_images: int, seed: int, epoch: int, chunk: int) -> tuple[int, int] | None:
    """Return epoch and chunk of the refresh that this chunk of an epoch trains on, or ``None`` where there was none.

    Plans are pure functions of the epoch, so nothing has to be remembered.
    """
    for earlier in range(epoch, -1, -1):
        plan = model.head.plan(earlier)
        if plan.refresh is not None:
            return earlier, chunk if earlier == epoch else len(chunks(plan, num_images, seed, earlier)) - 1
    return None
