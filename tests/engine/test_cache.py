"""Features that cannot change are computed once for every labelling."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import NeighbourPairs, config
from torch import Tensor

from odc.apis import build_runner
from odc.data.views import BatchedLoader, ViewRequest
from odc.engine.extract import extract
from odc.engine.frozen import FeatureCache, features_are_fixed
from odc.engine.loops import ClusterTrainLoop
from odc.registry import HEADS
from odc.structures import Batch, LocalComm, Plan, PseudoLabels, Refresh, Stream

FROZEN: dict[str, Any] = {"model.frozen": ["backbone", "neck"]}


class Seen:
    """What was asked of the loader, and what the steps got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[ViewRequest] = []
        self.caches: list[FeatureCache | None] = []
        self.images: list[int] = []
        run, step = BatchedLoader.run, ClusterTrainLoop._train_step

        def counted_run(loader: BatchedLoader, batches: Any) -> Any:
            batches = [list(batch) for batch in batches]
            self.requests += [request for batch in batches for request in batch]
            return run(loader, batches)

        def counted_step(
            loop: ClusterTrainLoop, plan: Any, images: dict[Any, Tensor], cache: Any, group: range, steps: int
        ) -> dict[str, float] | None:
            self.caches.append(cache)
            self.images.append(sum(len(x) for x in images.values()))
            return step(loop, plan, images, cache, group, steps)

        monkeypatch.setattr(BatchedLoader, "run", counted_run)
        monkeypatch.setattr(ClusterTrainLoop, "_train_step", counted_step)


def train(name: str, work_dir: Path, **options: Any) -> Any:
    runner = build_runner(config(name, str(work_dir), val_evaluator=None, **options))
    runner.train()
    return runner


def test_each_image_is_augmented_once_for_every_labelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    runner = train("spice-self", tmp_path)
    assert runner.iter == 12
    assert sum(seen.images) == 0, "a step loaded images"
    strong = Counter(request.ids for request in seen.requests if request.view == "strong")
    assert set(strong.values()) <= {1, 2}, "at most once in each of two epochs"
    keys = {request.key for request in seen.requests if request.view == "strong"}
    assert len(keys) == sum(strong.values()), "each epoch augments anew"
    # The heads' weak views are needed to label the chunks, not to select.
    assert sum(request.view == "weak" for request in seen.requests) == 2 * 48
    # Without augmentation they are encoded once for the whole run, and for what looks at the features before it.
    assert sum(request.view == "extract" for request in seen.requests) == 48
    loop, model = runner.train_loop, runner.model
    table = extract(model, loop.data.train, LocalComm(), batch_size=48)
    fixed = loop.features.extract(model, None, None).features
    assert torch.equal(fixed, table.features)
    chunk = torch.tensor([4, 7, 31])
    part = loop.features.extract(model, chunk, "weak")
    assert torch.equal(part.index.cpu(), chunk)
    assert torch.equal(part.features, fixed[chunk])
    assert part.logits.shape == (3, 2, 3)
    assert not torch.allclose(part.logits, model.head.logits(part.features), atol=1e-3), "not through the weak view"
    plain = loop.features.extract(model, chunk, "extract")
    assert torch.allclose(plain.logits, model.head.logits(part.features), atol=1e-5)
    assert (part.total, loop.features.extract(model, None, None).logits) == (3, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spice-self", {"model.frozen": ["backbone"]}),
        ("spice-self", {"model.frozen": []}),
        ("spice-self", {"model.norm_eval": False}),
        ("spice-semi", FROZEN),  # no labelling: an image is augmented anew every time it is drawn
    ],
)
def test_otherwise_every_step_loads_images(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    train(name, tmp_path, **options)
    assert set(seen.caches) == {None}
    assert min(seen.images) > 0


class Once(NeighbourPairs):
    """Labels are made before the first epoch alone."""

    def plan(self, epoch: int) -> Plan:
        plan = super().plan(epoch)
        return plan if epoch == 0 else replace(plan, refresh=None)


HEADS.register_module(module=Once, force=True)
ONCE = {**FROZEN, "model.head.type": "Once", "train_cfg.max_epochs": 4, "train_cfg.schedule.type": "Constant"}


def test_labels_that_stay_need_no_image_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    finish = config("pairs", "w").data.views.extract
    runner = train("pairs", tmp_path, **ONCE, **{"data.views.train": finish})
    assert sum(seen.images) == 0
    assert Counter(request.view for request in seen.requests) == {"extract": 48}, "the two views are one"
    assert (runner.epoch, runner.train_loop.images_seen) == (4, 48)


def test_views_of_chance_stay_until_the_next_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    runner = train("pairs", tmp_path / "whole", **ONCE)
    images = len(runner.model.labels.index.unique())
    assert sum(seen.images) == 0
    assert Counter(request.view for request in seen.requests) == {"extract": 48, "train": images}
    assert runner.train_loop.images_seen == images
    # a run that goes on in an epoch without labels of its own encodes the same views, and counts them once
    train("pairs", tmp_path / "part", **{**ONCE, "train_cfg.max_epochs": 2})
    resumed = train("pairs", tmp_path / "part", **ONCE, resume=True)
    assert resumed.train_loop.images_seen == images
    for name, tensor in runner.model.state_dict().items():
        if not torch.equal(tensor, resumed.model.state_dict()[name]):
            raise AssertionError(name)


def test_evaluations_take_the_features_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    other = {"data.eval_dataset": dict(type="Blobs", n=30), "train_cfg.val_interval": 1}
    runner = build_runner(config("dc", str(tmp_path), **FROZEN, **other))
    runner.train()
    assert Counter(request.view for request in seen.requests) == {"extract": 48 + 30, "train": 2 * 48}
    model = runner.model
    table = extract(model, runner.train_loop.data.eval, LocalComm(), batch_size=256, logits=model.head.predict)
    found = runner.val_loop.evaluate()
    assert torch.equal(found.features, table.features.cpu())
    assert table.logits is not None
    assert torch.equal(found.scores, table.logits.cpu())


def test_the_loop_looks_for_itself(tmp_path: Path) -> None:
    model = build_runner(config("spice-self", str(tmp_path))).model.train()
    assert features_are_fixed(model)
    model.neck.layers[3].train()  # the dropout
    assert not features_are_fixed(model)
    model.train()
    next(model.backbone.parameters()).requires_grad_(True)
    assert not features_are_fixed(model)


def test_a_step_gets_the_features_of_its_images(tmp_path: Path) -> None:
    """Pairs of images, variants, and two streams of two views without chance: as if the images were encoded there."""
    cfg = config("spice-self", str(tmp_path), val_evaluator=None)
    cfg.data.views.strong = [dict(type="Rotate90"), *cfg.data.views.extract]
    cfg.data.views.weak = cfg.data.views.extract
    runner = build_runner(cfg)
    runner.train()
    loop, model = runner.train_loop, runner.model
    index, variant = torch.tensor([[3, 5], [5, 3], [3, 3], [7, 5]]), torch.tensor([0, 1, 3, 0])
    model.labels.replace(PseudoLabels(index, torch.zeros(4, 1).long(), (1,), variant))
    streams = (Stream("s", 2, views=("weak", "strong")), Stream("t", 1, views=("strong",)))
    cache = loop.features.cache(model, Plan(streams, refresh=Refresh()), (0, 0))
    assert cache is not None
    assert cache.encoded == {"extract/0": 48, "strong/0": 48, "strong/1": 48, "strong/3": 48}
    assert cache.z["strong"].shape == (3 * 48, 8)
    chosen = {"s": torch.tensor([3, 1], device=loop.device), "t": torch.tensor([2], device=loop.device)}
    out = cache.lookup(streams, {name: Batch(row, index, variant, index, {}) for name, row in chosen.items()})
    assert set(out) == {("s", "weak"), ("s", "strong"), ("t", "strong")}
    finish = loop.data.views["extract"]
    for (name, view), z in out.items():
        assert z.shape == (len(chosen[name]), 2, 8)
        for row, features in zip(chosen[name].tolist(), z, strict=True):
            for i, got in zip(index[row].tolist(), features, strict=True):
                turns = int(variant[row]) if view == "strong" else 0
                image = finish(loop.data.dataset.image(i).rot90(turns, (1, 2))[None], torch.tensor([0]))
                with torch.no_grad():
                    assert torch.allclose(got, model.features(image.to(got.device))[0], atol=1e-5)


def test_the_optimiser_holds_the_head_alone_and_the_rest_stays(tmp_path: Path) -> None:
    adam = {"optim_wrapper": dict(constructor="ByName", optimizer=dict(type="Adam", lr=0.05, weight_decay=0.1))}
    cfg = config("spice-self", str(tmp_path), val_evaluator=None)
    cfg.optim_wrapper = adam["optim_wrapper"]
    runner = build_runner(cfg)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    runner.train()
    held = [p for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in runner.model.head.parameters()}
    after = runner.model.state_dict()
    for name in before:
        if name.startswith(("backbone", "neck")):
            assert torch.equal(before[name], after[name]), name
        elif name.startswith("head.mlps"):
            assert not torch.equal(before[name], after[name]), name
