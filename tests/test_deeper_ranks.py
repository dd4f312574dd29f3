"""DeeperCluster on one, two and four ranks: the same clusters to the last bit, and the training of the equation."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from typing import Any

import pytest
import torch
from deeper_ranks import (
    HEADS,
    SMALLEST,
    cases,
    cluster,
    drawn,
    head_and_batch,
    main,
    refreshed,
    remembered,
    slow_loss,
    spread,
)

from odc.structures import LocalComm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
Results = dict[tuple[int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    # Forked: four interpreters that import everything would take most of the time. What CUDA has
    # looked at cannot be forked. The ranks run on one thread.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=main, args=(folder, rank)) for rank in range(4)]
    with warnings.catch_warnings():
        # Python >= 3.12 warns of any fork beside other threads
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4
    return {(w, r): torch.load(folder / f"{w}-{r}.pt", weights_only=True) for w in (2, 4) for r in range(w)}


@pytest.mark.parametrize("name", cases())
def test_the_number_of_ranks_changes_no_bit(name: str, results: Results) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = cluster(name, LocalComm())
    finally:
        torch.set_num_threads(threads)
    assert int(one["sub_sizes"].sum()) == len(cases()[name][0])
    for where, result in results.items():
        for what, wanted in one.items():
            assert torch.equal(result[name][what], wanted), f"{what} on rank {where[1]} of {where[0]}"


def test_refresh_is_the_same_on_all_ranks_and_gives_the_same_labels_on_any_number(results: Results) -> None:
    one = refreshed(LocalComm())
    for (world, rank), result in results.items():
        for what, wanted in results[world, 0]["refresh"].items():
            if not what.startswith("classifier"):  # what a refresh draws anew, the loop broadcasts
                assert torch.equal(result["refresh"][what], wanted), f"{what} on rank {rank} of {world}"
        for what in ("index", "target", "variant", "num_sub"):
            assert torch.equal(result["refresh"][what], one[what]), what
        # Whitening sums in the order of the ranks: float64, so the last bit of a float32 may differ.
        torch.testing.assert_close(result["refresh"]["centroids"], one["centroids"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_spread_sub_classifiers_train_as_those_of_one_process(name: str, results: Results) -> None:
    one = spread(name, LocalComm())
    for (world, rank), result in results.items():
        got = result["spread"][name]
        assert rank or got.keys() == one.keys(), "the first rank has the whole"
        for what, value in got.items():
            torch.testing.assert_close(value, one[what], atol=2e-6, rtol=2e-5, msg=f"{what}, {rank} of {world}")


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_of_spread_sub_classifiers_is_that_of_the_equation(name: str, results: Results) -> None:
    head, batch = head_and_batch(name)
    z = batch.z["rotated"].requires_grad_()
    loss = slow_loss(head, batch)
    loss.backward()
    for result in results.values():
        got = result["spread"][name]
        torch.testing.assert_close(got["loss"], loss.detach())
        torch.testing.assert_close(got["z"], z.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_any_number_of_ranks_draws_the_same_sub_classifiers(name: str, results: Results) -> None:
    one = drawn(name, LocalComm())["weight"]
    assert float(one.std()) == pytest.approx(0.01, rel=0.3)
    for (_, rank), result in results.items():
        assert rank or torch.equal(result["drawn"][name]["weight"], one)


@pytest.mark.parametrize("min_cluster", SMALLEST)
def test_a_spread_memory_is_that_of_one_process_and_the_same_on_all_ranks(min_cluster: int, results: Results) -> None:
    one = remembered(min_cluster, LocalComm())
    assert int(one["moves"]) > 12, "no cluster became small"
    assert int(one["skipped"]) == 12
    for (world, rank), result in results.items():
        got = result["remembered"][min_cluster]
        for what, value in got.items():
            assert torch.equal(value, results[world, 0]["remembered"][min_cluster][what]), f"{what}, rank {rank}"
            if what in ("bank", "target", "counts", "moves", "skipped", "dirty"):
                assert torch.equal(value, one[what]), what
            else:  # sums that are computed anew add up in another order
                torch.testing.assert_close(value, one[what], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_a_step_sends_as_many_bytes_as_the_documentation_says(name: str, results: Results) -> None:
    B, D = 24, 5
    groups = {"eight classifiers": 8, "three": 3}.get(name, 1)
    for (world, _), result in results.items():
        P = -(-world // groups)
        assert int(result["bytes"][name]["deeper"]) == P * B * (8 * D + 32) + 8 * world**2
        assert int(result["bytes"][name]["odc, all_to_all"]) == B * (4 * D + 8) + 8 * world**2
        assert int(result["bytes"][name]["odc, gather"]) == B * (4 * D + 16)
