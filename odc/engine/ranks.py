"""Ranks without a GPU, and gradients that are averaged in one order."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from odc.errors import InputError

ONE_BUCKET = 2**20  # MiB


def average_in_order(order: Mapping[Tensor, int], bucket: Any) -> torch.futures.Future[Tensor]:
    """Average gradients over the ranks, laid out in the order of the model's parameters.

    How sums of three numbers or more are rounded depends on where they lie in what is reduced. After its first step DDP
    lays gradients out anew, in the order in which they came, so a resumed run would differ from an unbroken one.
    """
    gradients = [
        gradient
        for _, gradient in sorted(
            zip(bucket.parameters(), bucket.gradients(), strict=True), key=lambda pair: order[pair[0]]
        )
    ]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch_dist.get_world_size()

    def put_back(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        parts = done.value()[0].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        whole: Tensor = bucket.buffer()
        return whole

    return torch_dist.all_reduce(flat, async_op=True).get_future().then(put_back)


_RANK_VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def is_first_rank(launcher: str) -> bool:
    """Return whether this process is the first of those that ``launcher`` started, before they speak to each other."""
    return launcher not in _RANK_VARIABLES or os.environ.get(_RANK_VARIABLES[launcher][0], "0") == "0"


def init_gloo(launcher: str, timeout: float | None) -> None:
    """Start gloo from the launcher's environment variables; mmengine's own start-up requires a GPU."""
    variables = _RANK_VARIABLES[launcher]
    try:
        values = [os.environ[name] for name in variables]
    except KeyError as error:
        starter = {"slurm": "tools/slurm_train.sh", "mpi": "mpirun"}.get(launcher, "tools/dist_train.sh")
        raise InputError(
            f"--launcher {launcher} needs the environment variable {error}, which {starter} sets: start with that"
        ) from None
    os.environ.update(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), values, strict=True))
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ and launcher == "slurm":
        hosts = subprocess.run(
            ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
        )
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    limit = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    torch_dist.init_process_group(backend="gloo", **limit)  # type: ignore[arg-type]
