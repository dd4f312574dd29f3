"""MoCo: the loss and the queue from the equations, the order of the three steps, batch norm's company."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_heads import config

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads.moco import KeyQueue, MoCoHead, info_nce
from odc.models import MoCo
from odc.structures import Batch, LocalComm, make_generator

BACKBONE = dict(type="ConvNet", widths=[4, 8])


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=make_generator(seed)), dim=-1)


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    head = dict(type="MoCoHead", batch_size=8, queue_size=16, out_channels=4)
    made = MoCo(BACKBONE, head, **options)
    made.labels.replace(_rows(32))
    return made.train()


def _rows(n: int) -> Any:
    from odc.structures import PseudoLabels

    return PseudoLabels(torch.arange(n)[:, None], torch.full((n, 1), -1), (0,))


def batch(n: int) -> dict[str, Batch]:
    row = torch.arange(n)
    return {"train": Batch(row, row[:, None], torch.zeros(n, dtype=torch.int64), torch.full((n, 1), -1), {})}


def images(n: int, seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    rng = make_generator(seed)
    return {("train", view): torch.randn(n, 1, 1, 8, 8, generator=rng) for view in ("query", "key")}


def test_info_nce_is_the_equation() -> None:
    q, k, queue, t = unit(5, 3), unit(5, 3, seed=1), unit(7, 3, seed=2), 0.2
    for i, loss in enumerate(info_nce(q, k, queue, t).tolist()):
        positive = torch.exp(q[i] @ k[i] / t)
        negatives = sum(torch.exp(q[i] @ queue[j] / t) for j in range(7))
        assert loss == pytest.approx(float(-torch.log(positive / (positive + negatives))), abs=1e-6)


@pytest.mark.parametrize(("size", "batches"), [(4, [2, 2, 2]), (5, [2, 2, 2, 2]), (3, [5, 1]), (4, [4, 4])])
def test_the_queue_is_first_in_first_out(size: int, batches: list[int]) -> None:
    queue = KeyQueue(2, size)
    oracle = [row.tolist() for row in queue.keys]
    at = 0
    for number, n in enumerate(batches):
        keys = unit(n, 2, seed=number)
        queue.enqueue(keys)
        for key in keys.tolist():
            oracle[at % size] = key
            at += 1
        assert queue.keys.tolist() == oracle
        assert int(queue.position) == at % size


def test_key_follows_before_the_keys_and_the_queue_takes_them_after_the_loss() -> None:
    moco = model(momentum=0.9)
    with torch.no_grad():
        for parameter in moco.backbone.parameters():
            parameter.add_(1.0)
    before = {name: p.clone() for name, p in moco.key_encoder.named_parameters()}
    query = dict(torch.nn.ModuleList(moco._query_encoder()).named_parameters())
    queue = moco.head.queue.keys.clone()
    moco.after_move(0.0)
    losses, batches = moco(images(8), batch(8), make_generator(0), LocalComm())
    for name, p in moco.key_encoder.named_parameters():
        assert torch.allclose(p, 0.9 * before[name] + 0.1 * query[name], atol=1e-6), name
    assert torch.equal(moco.head.queue.keys, queue)
    z = batches["train"].z
    expected = info_nce(z["query"][:, 0], z["key"][:, 0], queue, 0.2).mean()
    assert losses.train["loss"].item() == pytest.approx(float(expected), abs=1e-6)
    # The keys are those of the key encoder as it is now.
    again = torch.nn.Sequential(*moco.key_encoder)(images(8)["train", "key"][:, 0])
    assert torch.allclose(F.normalize(again, dim=1), z["key"][:, 0], atol=1e-5)
    moco.head.update(batches, moco.labels.view(), make_generator(0), LocalComm())
    assert torch.equal(moco.head.queue.keys[:8], z["key"][:, 0])
    assert torch.equal(moco.head.queue.keys[8:], queue[8:])


def test_only_queries_have_gradients() -> None:
    moco = model()
    losses, _ = moco(images(8), batch(8), make_generator(0), LocalComm())
    losses.train["loss"].backward()
    assert all(p.grad is None for p in moco.key_encoder.parameters())
    assert all(p.grad is not None for part in moco._query_encoder() for p in part.parameters())


def test_the_symmetric_loss_takes_each_view_as_query_once() -> None:
    # In evaluation mode, where it does not matter which images are normalised together.
    one, both = model(momentum=0.9).eval(), model(momentum=0.9, symmetric=True).eval()
    swapped = {("train", "query"): images(8)["train", "key"], ("train", "key"): images(8)["train", "query"]}
    queue = both.head.queue.keys.clone()
    losses, batches = both(images(8), batch(8), make_generator(0), LocalComm())
    there, back = (
        one(images(8), batch(8), make_generator(0), LocalComm()),
        model(momentum=0.9).eval()(swapped, batch(8), make_generator(0), LocalComm()),
    )
    assert losses.train["loss"].item() == pytest.approx(
        (there[0].train["loss"].item() + back[0].train["loss"].item()) / 2, abs=1e-6
    )
    z = batches["train"].z
    assert z["query"].shape == z["key"].shape == (8, 2, 4)
    assert torch.allclose(z["key"][:, :1], there[1]["train"].z["key"], atol=1e-6)
    assert torch.allclose(z["key"][:, 1:], back[1]["train"].z["key"], atol=1e-6)
    losses.train["loss"].backward()
    assert all(p.grad is None for p in both.key_encoder.parameters())
    assert torch.equal(both.head.queue.keys, queue)
    both.head.update(batches, both.labels.view(), make_generator(0), LocalComm())
    assert torch.equal(both.head.queue.keys, z["key"].flatten(0, 1)), "both keys of every image, 16 in all"


def test_split_bn_normalises_in_groups_and_keeps_the_order() -> None:
    whole, split = model(), model(split_bn=2)
    x = torch.randn(8, 1, 8, 8, generator=make_generator(3))
    groups = torch.cat([whole._project(whole._query_encoder(), part) for part in x.chunk(2)])
    assert torch.equal(split._project(split._query_encoder(), x), groups)
    assert not torch.equal(whole._project(whole._query_encoder(), x), groups)
    # Without batch statistics the company does not matter: keys come back in their own order.
    split.eval()
    assert torch.allclose(split._keys(x, LocalComm()), whole.eval()._keys(x, LocalComm()), atol=1e-6)


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"48 keys, but 48 images make 48 an epoch.*queue_size=16$"):
        build_runner(config("moco", str(tmp_path), **{"model.head.queue_size": 48})).train()
    with pytest.raises(InputError, match="split_bn=9 leaves groups of less than 2 of the 16 images"):
        build_runner(config("moco", str(tmp_path), **{"model.split_bn": 9})).train()
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\], not 2"):
        model(momentum=2)
    with pytest.raises(InputError, match="temperature must be positive"):
        MoCoHead(8, temperature=0)


def test_a_batch_that_does_not_divide_the_queue_is_said(tmp_path: Path) -> None:
    build_runner(config("moco", str(tmp_path)))
    log = next(tmp_path.rglob("*.log")).read_text()
    assert "the queue of 40 keys is not a multiple of the batch of 16" in log


def test_the_key_encoder_starts_as_the_query_encoder() -> None:
    moco = model()
    with torch.no_grad():
        moco.backbone.layers[0].weight.add_(1.0)
    moco.init_weights()
    assert torch.equal(moco.key_encoder[0].layers[0].weight, moco.backbone.layers[0].weight)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 12, 20])
def test_the_advice_for_few_images_works(n: int, tmp_path: Path) -> None:
    def trained(name: str, **options: Any) -> None:
        few = {"data.dataset.n": n, "model.head.batch_size": 128, "model.head.queue_size": 4096, "model.split_bn": 8}
        build_runner(config("moco", str(tmp_path / name), **{**few, **options})).train()

    with pytest.raises(InputError, match=f"{n} images make {n}" if n > 3 else f"at least 4 images, not {n}") as error:
        trained("as-it-is")
    found = re.search(r"queue_size=(\d+) and batch_size=(\d+), and model\.split_bn to at most (\d+)$", str(error.value))
    assert (found is not None) == (n > 3)
    if found:
        names = ("model.head.queue_size", "model.head.batch_size", "model.split_bn")
        trained("advised", **{name: int(value) for name, value in zip(names, found.groups(), strict=True)})
