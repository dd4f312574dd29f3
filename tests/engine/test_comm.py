from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from odc.engine import comm
from odc.errors import InputError
from odc.structures import Comm, LocalComm, make_generator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def a_rank(rank: int, store: Path, pipe: Connection) -> None:
    """Rank 1 stands still for a while between two collectives."""
    comm.PATIENCE_S = 1.0
    setattr(comm, "print_log", lambda text, *_: pipe.send((rank, text)))  # noqa: B010
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = comm.get_comm()
    total = group.sum(torch.ones(1))
    if rank == 1:
        time.sleep(3)
    assert float(group.sum(total)) == 4.0
    pipe.send((rank, "done"))
    dist.destroy_process_group()


def run_on_two_ranks(target: Any, store: Path) -> Iterator[tuple[int, Any]]:
    """Yield what the two ranks send until each of them has sent "done"."""
    receive, send = multiprocessing.Pipe(duplex=False)
    context: Any = multiprocessing.get_context(
        "spawn" if torch.cuda.is_available() else "fork"
    )  # CUDA cannot be forked
    processes = [context.Process(target=target, args=(rank, store, send)) for rank in range(2)]
    with warnings.catch_warnings():
        # Python >= 3.12 warns of any fork beside other threads
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in processes:
            process.start()
    done = 0
    while done < 2:
        assert receive.poll(60)
        rank, said = receive.recv()
        if isinstance(said, str) and said == "done":
            done += 1
        else:
            yield rank, said
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_rank_that_stands_still_is_named(tmp_path: Path) -> None:
    told = list(run_on_two_ranks(a_rank, tmp_path / "store"))
    assert len(told) == 1, told
    rank, text = told[0]
    assert rank == 0
    assert "rank 0 has waited" in text
    assert "for rank 1 of 2" in text


def contrast(x: Tensor, weights: list[Tensor], group: Comm) -> Tensor:
    """Return a loss of the whole batch: every row is told from all others of it, on all ranks."""
    z = group.gather(x @ weights[0], gradient=True) @ weights[1]
    return torch.nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)).roll(1))


def parts(world: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows of each rank, 5 in all, and two layers: one before the gathering, one behind it."""
    generator = make_generator(0, "contrast")
    x = torch.randn(5, 3, generator=generator)
    weights = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((3, 4), (4, 2))]
    return list(torch.tensor_split(x, world)), weights


def whole_batch(rank: int, store: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = comm.get_comm()
    x, weights = parts(2)
    loss = contrast(x[rank], weights, group)
    loss.backward()
    pipe.send(
        (rank, [float(loss.detach()), *(group.sum(w.grad).div(2).tolist() for w in weights if w.grad is not None)])
    )
    pipe.send((rank, "done"))
    dist.destroy_process_group()


def test_a_loss_of_the_whole_batch_has_the_gradient_of_one_process(tmp_path: Path) -> None:
    x, weights = parts(1)
    loss = contrast(x[0], weights, LocalComm())
    loss.backward()
    ranks = dict(run_on_two_ranks(whole_batch, tmp_path / "store"))
    assert ranks[0] == ranks[1]
    value, *gradients = ranks[0]
    assert value == pytest.approx(float(loss.detach()), rel=1e-6)
    for found, weight in zip(gradients, weights, strict=True):
        torch.testing.assert_close(torch.tensor(found), weight.grad)


def decisions(rank: int, store: Path, pipe: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = comm.get_comm()

    def decide() -> tuple[Tensor, ...]:
        assert rank == 0, "another rank decides, too"
        return torch.tensor([3, 1]), torch.zeros(0, 2), torch.tensor(True)

    def refuse() -> tuple[Tensor, ...]:
        raise InputError("3 clusters of 2 images")

    found = group.first(decide)
    try:
        group.first(refuse)
    except InputError as error:
        pipe.send((rank, [str(error), *((x.tolist(), tuple(x.shape), str(x.dtype)) for x in found)]))
    pipe.send((rank, "done"))
    dist.destroy_process_group()


def test_the_first_rank_decides_for_all(tmp_path: Path) -> None:
    ranks = dict(run_on_two_ranks(decisions, tmp_path / "store"))
    assert ranks[0] == ranks[1]
    assert ranks[0] == [
        "3 clusters of 2 images",
        ([3, 1], (2,), "torch.int64"),
        ([], (0, 2), "torch.float32"),
        (True, (), "torch.bool"),
    ]


def exchange(rank: int, store: Path, pipe: Connection) -> None:
    """Rank 0 sends one row to itself and two to rank 1, which sends none to itself."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = comm.get_comm()
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6]] if rank == 0 else [[7.0, 8]]).requires_grad_()
    send, receive = ([1, 2], [1, 1]) if rank == 0 else ([1, 0], [2, 0])
    got = group.all_to_all(x, send, receive, gradient=True)
    (got * (rank + 1) * torch.arange(1.0, 1 + len(got))[:, None]).sum().backward()
    halves = group.all_to_all(x.detach().half(), send, receive)
    assert not halves.requires_grad
    pipe.send((rank, (got.tolist(), x.grad.tolist() if x.grad is not None else None, halves.tolist())))
    pipe.send((rank, "done"))
    dist.destroy_process_group()


def test_rows_go_to_other_ranks_and_their_gradients_come_back(tmp_path: Path) -> None:
    ranks = dict(run_on_two_ranks(exchange, tmp_path / "store"))
    came = [[[1.0, 2], [7, 8]], [[3.0, 4], [5, 6]]]
    assert ranks[0] == (came[0], [[1.0, 1], [2, 2], [4, 4]], came[0])
    assert ranks[1] == (came[1], [[2.0, 2]], came[1])
    alone = torch.ones(3, 2)
    assert LocalComm().all_to_all(alone, [3], [3], gradient=True) is alone
