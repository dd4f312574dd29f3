"""The training step of every head against a bare loop.

Ours is the loop of :mod:`odc.engine.loops` with all that it does for a step: requests, views, labels, forward, loss,
gradients, whether they are finite, the optimiser's move, hooks, and the head's update with the labels that follow. The
floor is what one would write without any of that, on a copy of the same model: the same views of as many images, the
same forward, the head's loss, backward and the optimiser; no update of memories, queues or labels, no averages, no
checks.

The model is a ResNet-18 with 16 channels in its first stage, at 32 pixels; 128 images pass through it in a step, and
the views are the cheapest of the shipped configs, a padded crop and a flip. Blocks of some steps are timed in turn.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from mmengine import Config
from mmengine.hooks import Hook

from odc.apis import train
from odc.data.datasets import ArrayDataset
from odc.data.sampler import draw_rows
from odc.models.cluster_model import ClusterModel, Images, unwrap
from odc.registry import DATASETS, OPTIMIZERS, build
from odc.structures import Batch, LocalComm, make_generator

from .timing import Found, Pairs, Spent, timed

BLOCK = 2  # steps
STEPS = 8 * BLOCK + 1  # of a short epoch: the first is not timed
IMAGES = 128  # through the network in a step

# Every head that is registered, by the name it is registered by: its options, so that a step has 128 images.
HEADS: dict[str, dict[str, Any]] = {
    "DeepClusterHead": dict(num_clusters=100, batch_size=IMAGES),
    "ODCHead": dict(num_clusters=100, batch_size=IMAGES, min_cluster=0.16, centroid_interval=BLOCK),
    "DeeperClusterHead": dict(num_clusters=100, num_super=4, batch_size=IMAGES, pca_dim=64),
    "MoCoHead": dict(batch_size=IMAGES // 2, queue_size=1024),
    "ProPosHead": dict(num_clusters=10, batch_size=IMAGES // 2, hidden_channels=512, warmup=0),
    "DCBoostHead": dict(num_clusters=10, batch_size=IMAGES // 2, hidden_channels=512, warmup=0),
    "SeCuHead": dict(num_clusters=10, batch_size=IMAGES // 2),
    "SpiceSelfHead": dict(num_clusters=10, num_heads=2, batch_size=IMAGES // 2),
    "SpiceSemiHead": dict(num_clusters=10, labelled_size=IMAGES // 4, batch_size=3 * IMAGES // 8, steps=STEPS),
    "SCANHead": dict(num_clusters=10, batch_size=IMAGES // 4),
    "SelfLabelHead": dict(num_clusters=10, batch_size=IMAGES // 2, threshold=0.05),
    "TEMIHead": dict(num_clusters=10, num_heads=4, batch_size=IMAGES // 2),
    "TurtleHead": dict(num_clusters=10, batch_size=IMAGES, steps=STEPS),
    "ClassifierHead": dict(num_classes=10, batch_size=IMAGES),
}


@DATASETS.register_module()
class NoisyImages(ArrayDataset):
    """``n`` images of 32×32 noise around the mean colour of one of ten classes."""

    def __init__(self, n: int) -> None:
        rng = make_generator(0, "noisy images")
        target = torch.arange(n) % 10
        colours = torch.randint(40, 215, (10, 3, 1, 1), generator=rng)
        images = colours[target] + torch.randint(-40, 40, (n, 3, 32, 32), generator=rng)
        super().__init__(images.to(torch.uint8), [f"{i:06d}" for i in range(n)], target.numpy(), list("0123456789"))


def config(name: str, work_dir: str, width: int) -> Config:
    """Return the config of a training that lasts until it is stopped."""
    finish = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.5] * 3, std=[0.25] * 3)]
    crop = [dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip"), *finish]
    views = dict.fromkeys(("train", "weak", "strong", "query", "key"), crop)
    views["rotated"] = [*crop[:2], dict(type="Rotate90"), *finish]
    model: dict[str, Any] = dict(
        type="ClusterModel",
        backbone=dict(type="ResNet", depth=18, stem="cifar", width=width),
        neck=dict(type="AvgPool"),
        head=dict(type=name, **HEADS[name]),
    )
    train_cfg: dict[str, Any] = dict(max_epochs=1000)
    if name == "ODCHead":
        model["neck"] = dict(type="ODCNeck", bn_momentum=0.1)
    elif name in ("MoCoHead", "ProPosHead", "DCBoostHead"):
        model["type"] = "MoCo" if name == "MoCoHead" else "BYOL"
    elif name in ("ClassifierHead", "SpiceSemiHead"):
        train_cfg["label_fraction"] = 1.0
    return Config(
        dict(
            model=model,
            data=dict(dataset=dict(type="NoisyImages", n=STEPS * IMAGES), views=dict(extract=finish, **views)),
            train_cfg=train_cfg,
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)),
            default_hooks=dict.fromkeys(("logger", "timer", "param_scheduler", "sampler_seed", "checkpoint")),
            custom_hooks=[dict(type="ProgressHook")],
            val_evaluator=[],
            randomness=dict(seed=0),
            work_dir=work_dir,
            log_level="ERROR",
        )
    )


class _EnoughError(Exception):
    """All pairs are timed."""


class _Pairing(Hook):
    """Times blocks of the training's steps, and after each as many of the bare loop's."""

    priority = "LOWEST"

    def __init__(self, pairs: int, bar: float, optimizer: dict[str, Any]) -> None:
        self.wanted, self.bar, self.optimizer = pairs, bar, optimizer
        self.found = Pairs(BLOCK)
        self.bare: Iterator[None] | None = None
        self.steps: int | None = None
        self.start = Spent.now()

    def before_train_epoch(self, runner: Any) -> None:
        """Leave the first step out: before it labels are made."""
        self.steps = None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count a step; after a block of them time the floor."""
        if self.steps is not None:
            self.steps += 1
        if self.steps == BLOCK:
            ours = Spent.now().since(self.start)
            if self.bare is None:
                self.bare = bare_loop(runner, self.optimizer)
                next(self.bare)
            bare = self.bare
            self.found.add(ours, timed(lambda: [next(bare) for _ in range(BLOCK)]))
            if self.found.settled(self.wanted, self.bar):
                raise _EnoughError
        if self.steps in (None, BLOCK):
            self.steps, self.start = 0, Spent.now()


def bare_loop(runner: Any, optimizer_cfg: dict[str, Any]) -> Iterator[None]:
    """Train a copy of the runner's model, a step at a time."""
    loop, model = runner.train_loop, copy.deepcopy(unwrap(runner.model))
    plan, labels, comm = model.head.plan(loop.epoch), model.labels, LocalComm()
    images, views = loop.data.dataset.images(), loop.data.views
    generator = make_generator(0, "bare")
    optimizer = build(OPTIMIZERS, {**optimizer_cfg, "params": [p for p in model.parameters() if p.requires_grad]})
    order, steps = {}, plan.steps
    for stream in plan.streams:
        order[stream.name] = draw_rows(stream, labels.target, steps, generator)
        steps = len(order[stream.name])
    view = labels.view()
    step = 0
    while True:
        batches, seen = {}, {}
        for stream in plan.streams:
            row = order[stream.name][step % len(order[stream.name])]
            index = labels.index[row]
            batches[stream.name] = Batch(row, index, labels.variant[row], labels.target[row], {})
            for name in stream.views:
                keys = torch.randint(2**62, (index.numel(),), generator=generator)
                variant = labels.variant[row].repeat_interleave(index.shape[1])
                batch = views[name](images[index.flatten()], keys, variant)
                seen[stream.name, name] = batch.view(*index.shape, *batch.shape[1:])
        for key, z in _encoded(model, seen).items():
            batches[key[0]].z[key[1]] = z
        losses = model.head.loss(batches, view, generator, comm)
        loss = torch.stack(list(losses.train.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        yield


def _encoded(model: ClusterModel, images: Images) -> Images:
    """Return the features of all views by one pass; a model with an encoding of its own by that."""
    if not model.encodes_alone:
        return model.encode(images, LocalComm())
    flat = {key: x.flatten(0, 1) for key, x in images.items()}
    x = torch.cat(list(flat.values())).contiguous(memory_format=torch.channels_last)
    parts = model.neck(model.backbone(x)).split([len(part) for part in flat.values()])
    return {key: z.unflatten(0, images[key].shape[:2]) for key, z in zip(flat, parts, strict=True)}


def training_step(name: str, tiny: bool, bar: float) -> Found:
    """Return how often the bare loop's time a step of the training of a head takes."""
    with tempfile.TemporaryDirectory() as place:
        cfg = config(name, place, width=1 if tiny else 16)
        hook = _Pairing(2 if tiny else 6, bar, cfg.optim_wrapper.optimizer.to_dict())
        try:
            train(cfg, [hook])
        except _EnoughError:
            return hook.found.found()
    raise AssertionError(f"the training of {name} ended")
