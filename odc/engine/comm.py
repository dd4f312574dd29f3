"""How ranks start, what they say to each other, and what keeps them equal: where ``torch.distributed`` is known."""

from __future__ import annotations

import atexit
import datetime
import functools
import hashlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odc.errors import InputError
from odc.memory.shards import shards_of
from odc.models.cluster_model import ClusterModel, unwrap
from odc.structures import Comm, LocalComm

PATIENCE_S = 60.0  # of a rank that waits for others, before it says so


class Watch:
    """Says for which ranks this one waits, where it waits for long: a collective would be silent until its timeout.

    Every rank counts the places that it comes to where ranks wait for each other, and a thread publishes the count, so
    that one that waits sees who is behind. It costs a step nothing but the counting.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._store = dist.distributed_c10d._get_default_store()
        self._here, self._since = 0, time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def arrive(self) -> None:
        """Count a place where ranks wait for each other."""
        self._here, self._since = self._here + 1, time.monotonic()

    def _stop(self) -> None:
        self._end.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        told = -1
        while not self._end.wait(PATIENCE_S / 10):
            here, waited = self._here, time.monotonic() - self._since
            try:
                self._store.set(_key(self.rank), str(here))
                behind = [] if waited < PATIENCE_S or told == here else self._behind(here)
            except RuntimeError:  # the process that keeps the counts is gone, and the ranks with it
                return
            if behind:
                told = here
                print_log(
                    f"rank {self.rank} has waited {waited:.0f} s for rank {', '.join(map(str, behind))} of "
                    f"{self.world}: is it still at work?",
                    "current",
                    logging.WARNING,
                )

    def _behind(self, here: int) -> list[int]:
        others = [rank for rank in range(self.world) if rank != self.rank]
        return [r for r in others if not self._store.check([_key(r)]) or int(self._store.get(_key(r))) < here]


def _key(rank: int) -> str:
    return f"odc.watch.{rank}"


@functools.cache
def _watch(process: int) -> Watch:
    return Watch()


def arrive() -> None:
    """Note that this rank comes to where it may wait for the others, outside of :class:`DistComm`."""
    if isinstance(get_comm(), DistComm):
        _watch(os.getpid()).arrive()


class DistComm:
    """The ranks of the default process group; semantics in :class:`odc.structures.Comm`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._watch = _watch(os.getpid())

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks."""
        self._watch.arrive()
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        """Return the concatenation over ranks along dimension 0."""
        if gradient:
            gathered: Tensor = _Gather.apply(x, self)
            return gathered
        self._watch.arrive()
        length = torch.tensor([x.shape[0]], device=x.device)
        lengths = [torch.empty_like(length) for _ in range(self.world)]
        dist.all_gather(lengths, length)
        sizes = [int(n) for n in lengths]
        # Collectives want equal shapes: pad to the longest, cut afterwards.
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.shape[0]] = x.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    def all_to_all(self, x: Tensor, send: Sequence[int], receive: Sequence[int], gradient: bool = False) -> Tensor:
        """Send ``send[r]`` rows to each rank r, and return the ``receive[r]`` that came from each."""
        if gradient:
            exchanged: Tensor = _AllToAll.apply(x, self, send, receive)
            return exchanged
        self._watch.arrive()
        received = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(received, x.detach().contiguous(), list(receive), list(send))
        return received

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's ``x``."""
        self._watch.arrive()
        copy = x.detach().clone()
        dist.broadcast(copy, src=0)
        return copy

    def first(self, decide: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what ``decide`` returns on rank 0."""
        self._watch.arrive()
        found: tuple[Tensor, ...] = ()
        told: list[Any] = [None]  # the shapes and types of what comes, or why nothing does
        if self.rank == 0:
            try:
                found = decide()
                told = [[(tuple(x.shape), x.dtype, x.device.type) for x in found]]
            except InputError as error:
                told = [str(error)]
        dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], str):
            raise InputError(told[0])
        return tuple(
            self.broadcast(found[i] if self.rank == 0 else torch.empty(shape, dtype=dtype, device=device))
            for i, (shape, dtype, device) in enumerate(told[0])
        )


class _Gather(torch.autograd.Function):
    """The concatenation over ranks; the gradient of a rank's part is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: DistComm) -> Tensor:
        gathered = comm.gather(x)
        lengths = comm.gather(torch.tensor([len(x)], device=x.device)).tolist()
        start = sum(lengths[: comm.rank])
        ctx.comm, ctx.mine = comm, slice(start, start + len(x))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.comm.sum(gradients[0])[ctx.mine], None


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks; their gradients come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: DistComm, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.comm, ctx.send, ctx.receive = comm, send, receive
        return comm.all_to_all(x, send, receive)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.comm.all_to_all(gradients[0], ctx.receive, ctx.send), None, None, None


def get_comm() -> Comm:
    """Return the process group's collectives, or the identity where there is only this process."""
    return DistComm() if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else LocalComm()


ONE_BUCKET = 2**20  # MiB


def average_in_order(order: Mapping[Tensor, int], bucket: Any) -> torch.futures.Future[Tensor]:
    """Average gradients over the ranks, laid out in the order of the model's parameters.

    How sums of three numbers or more are rounded depends on where they lie in what is reduced. After its first step DDP
    lays gradients out anew, in the order in which they came, so a resumed run would differ from an unbroken one.
    """
    pairs = sorted(zip(bucket.parameters(), bucket.gradients(), strict=True), key=lambda pair: order[pair[0]])
    gradients = [gradient for _, gradient in pairs]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()

    def put_back(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        parts = done.value()[0].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        whole: Tensor = bucket.buffer()
        return whole

    return dist.all_reduce(flat, async_op=True).get_future().then(put_back)


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


def shared_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers that are the same on every rank: all but the parts of what is spread."""
    parts = shards_of(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name not in parts:
            yield tensor


def check_agreement(model: ClusterModel, comm: Comm) -> None:
    """Raise :class:`RuntimeError` if the ranks' labels or heads differ in a bit."""
    if comm.world == 1:
        return
    digest = hashlib.sha256(model.labels.target.cpu().numpy().tobytes())
    for tensor in shared_tensors(model.head):
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


_RANK_VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def is_first_rank(launcher: str) -> bool:
    """Return whether this process is the first of those that ``launcher`` started, before they speak to each other."""
    return launcher not in _RANK_VARIABLES or os.environ.get(_RANK_VARIABLES[launcher][0], "0") == "0"


def launched(launcher: str, gpus: int) -> list[str]:
    """Return rank, number of ranks and rank on this machine, as the launcher's environment variables have them.

    Raises:
        InputError: one is not set, or this machine has ``gpus``, but fewer of them than ranks.
    """
    try:
        values = [os.environ[name] for name in _RANK_VARIABLES[launcher]]
    except KeyError as error:
        starter = {"slurm": "tools/slurm_train.sh", "mpi": "mpirun"}.get(launcher, "tools/dist_train.sh")
        raise InputError(
            f"--launcher {launcher} needs the environment variable {error}, which {starter} sets: start with it"
        ) from None
    local = int(values[-1])
    if 0 < gpus <= local:
        raise InputError(
            f"process {local + 1} on this machine has no GPU of its own, there are {gpus}: start at most {gpus} "
            "processes, or set CUDA_VISIBLE_DEVICES= to train without GPUs"
        )
    return values


def init_gloo(launcher: str, timeout: float | None) -> None:
    """Start gloo from the launcher's environment variables; mmengine's own start-up requires a GPU."""
    os.environ.update(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), launched(launcher, 0), strict=True))
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ and launcher == "slurm":
        hosts = subprocess.run(
            ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
        )
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    limit = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    dist.init_process_group(backend="gloo", **limit)  # type: ignore[arg-type]
