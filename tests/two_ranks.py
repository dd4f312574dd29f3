"""One rank of two: trains every small head, whole and resumed, and writes digests of what was learnt."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS, config

from odc.apis import build_runner
from odc.clustering import margins, rank_share
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.errors import InputError
from odc.evaluation.gallery import write_clusters
from odc.heads import BYOLHead, DCBoostHead, ProPosHead, TurtleHead
from odc.memory.labels import LabelStore
from odc.memory.shards import shards_of
from odc.models.backbones import ConvNet
from odc.registry import BACKBONES
from odc.structures import Batch, LocalComm, make_generator

EVERY_STEP = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=99)}


@BACKBONES.register_module()
class WithOldClassifier(ConvNet):
    """A network with a layer that its forward does not use."""

    def __init__(self) -> None:
        super().__init__(widths=(4, 8))
        self.fc = torch.nn.Linear(8, 10)


UNUSED: dict[str, Any] = {
    "model.backbone": dict(type="WithOldClassifier", _delete_=True),
    "find_unused_parameters": True,
}


def digests(runner: Any) -> dict[str, str]:
    """Return a digest of each tensor of the model, whole on every rank, so that a difference has a name."""
    model, comm = runner.model.module, get_comm()
    state = model.state_dict()
    for name, shard in shards_of(model).items():
        state[name] = shard.whole(comm.gather(state[name]))
    return {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        for name, tensor in state.items()
    }


def clusters(folder: Path) -> dict[str, tuple[str, float]]:
    """Let two ranks share 47 images, write the table of their clusters, and return it as one rank alone finds it."""
    runner = build_runner(config("odc", str(folder), launcher="pytorch", **{"data.dataset.n": 47}))
    runner.train()
    data, model = runner.train_loop.data, runner.model.module
    model.head.predict = lambda z: 30 * torch.nn.functional.normalize(z - z.new_tensor(range(z.shape[1])).sin())
    evaluation = runner.val_loop.evaluate()
    if runner.rank == 0:
        write_clusters(data.dataset, evaluation, folder)
    table = extract(model, data.train, LocalComm(), batch_size=5, logits=model.head.predict)
    assert table.logits is not None
    margin = margins(table.logits)
    found = zip(table.index.tolist(), table.logits.argmax(1).tolist(), rank_share(margin).tolist(), strict=True)
    return {data.dataset.paths[i]: (str(c), p) for i, c, p in found}


def turtle_as_one() -> dict[str, float]:
    """Return how far TURTLE's losses and gradients on unequal shares of a batch are from those on all of it."""
    comm = get_comm()
    rng = make_generator(0)
    z = torch.randn(11, 7, generator=rng, dtype=torch.float64)
    found = []
    for ranks, part in ((comm, z.tensor_split(comm.world)[comm.rank]), (LocalComm(), z)):
        torch.manual_seed(1)
        head = TurtleHead(7, 3, spaces=(4, 3), inner_steps=4, inner_lr=0.1).double()
        row = torch.arange(len(part))
        batch = Batch(row, row[:, None], 0 * row, -1 - 0 * row[:, None], {"extract": part[:, None]})
        losses = head.loss({"train": batch}, LabelStore(0).view(), make_generator(2), ranks)
        torch.stack(list(losses.train.values())).sum().backward()
        gradients = [ranks.sum(p.grad) / ranks.world for p in head.parameters() if p.grad is not None]
        trained = [ranks.sum(loss.detach()) / ranks.world for loss in losses.train.values()]
        found.append([*gradients, *trained, *losses.log.values()])
    assert len(found[1]) == 6 + 2 + 4
    return {"difference": max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))}


def clusters_as_one(made: BYOLHead) -> dict[str, float]:
    """Return how far losses of clusters and their gradients, on two shares of a batch, are from those on all of it."""
    comm = get_comm()
    rng = make_generator(0)
    online, target = torch.randn(2, 12, 2, 4, generator=rng, dtype=torch.float64)
    found = []
    for ranks in (comm, LocalComm()):
        row = torch.arange(12).tensor_split(ranks.world)[ranks.rank]
        z = online.clone().requires_grad_()
        batch = Batch(row, row[:, None], 0 * row, row[:, None] % 3, {"online": z[row], "target": target[row]})
        losses = made.double().loss({"train": batch}, LabelStore(0).view(), make_generator(2), ranks)
        trained = [loss for name, loss in losses.train.items() if name != "align_loss"]  # with batch norm of a rank
        torch.stack(trained).sum().backward()
        found.append([ranks.sum(z.grad) / ranks.world, *(loss.detach() for loss in (*trained, *losses.log.values()))])
    assert all(float(value.abs().max()) > 0 for value in found[1])
    return {"difference": max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))}


def main(folder: Path) -> None:
    results: dict[str, dict[str, Any]] = {}
    rank = 0
    variants: dict[str, tuple[str, int, dict[str, Any]]] = {
        **{name: (name, 3, {}) for name in HEAD_CONFIGS},
        "odc, two steps a move": ("odc", 4, {"optim_wrapper.accumulative_counts": 2}),
        "odc, with a layer that is not used": ("odc", 3, UNUSED),
    }
    for name, (head, middle, options) in variants.items():
        whole = build_runner(config(head, str(folder / name), launcher="pytorch", **options, **EVERY_STEP))
        whole.train()
        resumed = {"resume": True, "load_from": str(folder / name / f"iter_{middle}.pth")}
        again = build_runner(config(head, str(folder / f"{name}-again"), launcher="pytorch", **options, **resumed))
        again.train()
        results[name] = {"whole": digests(whole), "resumed": digests(again)}
        rank = whole.rank
    results["turtle as one"] = turtle_as_one()
    results["propos as one"] = clusters_as_one(ProPosHead(5, 3, hidden_channels=6, out_channels=4))
    results["dcboost as one"] = clusters_as_one(DCBoostHead(5, 3, hidden_channels=6, out_channels=4))
    results["table"] = {"alone": clusters(folder / "table")}
    os.environ["ODC_BFLOAT16"] = str(1 - rank)  # the second rank must not
    one = build_runner(config("dc", str(folder / "one"), launcher="pytorch", precision="auto"))
    one.train()
    results["precision"] = {"whole": {"precision": one.precision}}
    refused: dict[str, dict[str, Any]] = {
        "unused": UNUSED | {"find_unused_parameters": False},
        "nan": {"optim_wrapper.optimizer.lr": 1e30},
    }
    for name, options in refused.items():
        with pytest.raises((InputError, SystemExit)) as error:
            build_runner(config("odc", str(folder / name), launcher="pytorch", **options)).train()
        results["refused"] = results.get("refused", {}) | {name: str(error.value)}
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()  # its threads may not outlive the interpreter
