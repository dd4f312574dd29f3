"""What ranks do to stay equal, and whether they are."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from odc.errors import InputError
from odc.models.cluster_model import ClusterModel, unwrap
from odc.structures import Comm


def average_statistics(model: ClusterModel, comm: Comm) -> None:
    """Give all ranks the mean of their batch-norm statistics: one small collective, and the ranks stay equal.

    Broadcasting all buffers, as DDP can, would send the head's memory and the labels at every step.
    """
    if comm.world == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    statistics = [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
    if statistics:
        mean = comm.sum(torch.cat([b.flatten() for b in statistics])) / comm.world
        for b, new in zip(statistics, mean.split([b.numel() for b in statistics]), strict=True):
            b.copy_(new.view_as(b))


def check_agreement(model: ClusterModel, comm: Comm) -> None:
    """Raise :class:`RuntimeError` if the ranks' labels or heads differ in a bit."""
    if comm.world == 1:
        return
    digest = hashlib.sha256(model.labels.target.cpu().numpy().tobytes())
    for tensor in (*model.head.parameters(), *model.head.buffers()):
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    number = torch.tensor([int.from_bytes(digest.digest()[:7], "little")], device=model.labels.target.device)
    if comm.gather(number).unique().numel() > 1:
        raise RuntimeError("the ranks disagree about labels or head after a refresh")


def check_gradients(model: Any) -> None:
    """Refuse parameters that the loss does not reach, unless told of them: ranks would wait for their gradients."""
    if not getattr(model, "find_unused_parameters", True):
        unused = [name for name, p in unwrap(model).named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise InputError(
                f"the loss does not depend on {len(unused)} trained parameters, '{unused[0]}' first, whose "
                "gradients the processes would wait for: take them out, or set find_unused_parameters=True"
            )
