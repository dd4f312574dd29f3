from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from odc.engine import comm

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


def test_a_rank_that_stands_still_is_named(tmp_path: Path) -> None:
    receive, send = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=a_rank, args=(rank, tmp_path / "store", send)) for rank in range(2)]
    with warnings.catch_warnings():
        # Python >= 3.12 warns of any fork beside other threads
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in processes:
            process.start()
    said: list[tuple[int, str]] = []
    while sum(text == "done" for _, text in said) < 2:
        assert receive.poll(60), said
        said.append(receive.recv())
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    told = [(rank, text) for rank, text in said if text != "done"]
    assert len(told) == 1, told
    rank, text = told[0]
    assert rank == 0
    assert "rank 0 has waited" in text
    assert "for rank 1 of 2" in text
