"""What a view costs a worker, next to torchvision's own form of it; and in memory, next to the network that it feeds.

A worker's: one thread, 32 decoded images to float32, a batch a call. The floor is torchvision's v2, image after image,
with a generator seeded for each. The crops are RandomCrop with padding, and a flip; MoCo's view is the shipped one,
with a blur as wide as a tenth of the image; photographs differ in size, about 375×500.

In memory: the loader with all that it does for a batch of 128, from its requests to float32 images. The floor is the
forward and backward pass of a ResNet-18 of 16 channels on such a batch.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc.config import load_config
from odc.data import ArrayDataset
from odc.data.keys import mix_array
from odc.data.pipeline import Pipeline
from odc.data.transforms import build_transform
from odc.data.views import BatchedLoader, ViewDataset, ViewRequest
from odc.models.backbones import ResNet
from odc.structures import make_generator

from .timing import Found, in_turn

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets" / "folder32.py"
PHOTOGRAPHS = [(375 + 3 * i, 500 - 5 * i) for i in range(32)]


def crops(side: int) -> list[dict[str, Any]]:
    """Return the plain view: a padded crop and a flip."""
    return [dict(type="RandomCrop", size=side, padding=side // 8), dict(type="RandomHorizontalFlip")]


def moco(side: int) -> list[dict[str, Any]]:
    """Return MoCo v2's view."""
    jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    blur = dict(type="GaussianBlur", kernel_size=side // 20 * 2 + 1, sigma=[0.1, 2.0])
    return [
        dict(type="RandomResizedCrop", size=side, scale=[0.2, 1.0]),
        dict(type="RandomApply", p=0.8, transforms=[jitter]),
        dict(type="RandomGrayscale", p=0.2),
        dict(type="RandomApply", p=0.5, transforms=[blur]),
        dict(type="RandomHorizontalFlip"),
    ]


# name: (view, sizes of the images)
WORKER: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "crop-32": (crops(32), [(32, 32)]),
    "moco-32": (moco(32), [(32, 32)]),
    "crop-224": (crops(224), [(224, 224)]),
    "moco-224": (moco(224), [(224, 224)]),
    "resized-crop-photographs": ([moco(224)[0], moco(224)[-1]], PHOTOGRAPHS),
}


def smooth_images(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return images uint8 (n, 3, *size) with smooth parts and noise."""
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    noise = torch.rand(n, 3, *size, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).to(torch.uint8)


def worker_view(name: str, tiny: bool, bar: float) -> Found:
    """Return how often the time of torchvision's v2 a view takes."""
    transforms, sizes = WORKER[name]
    closing: list[dict[str, Any]] = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.5] * 3, std=[0.25] * 3)]
    rng = make_generator(0, "images")
    images = [smooth_images(1, sizes[i % len(sizes)], rng)[0] for i in range(4 if tiny else 32)]
    keys = torch.from_numpy(mix_array(1, np.arange(len(images))))
    view, built = Pipeline([*transforms, *closing]), [build_transform(t) for t in transforms]
    finish = [build_transform(t) for t in closing]

    def v2() -> None:
        state, out = torch.default_generator.get_state(), []
        for image, key in zip(images, keys.tolist(), strict=True):
            torch.default_generator.manual_seed(key)
            out.append(functools.reduce(lambda x, transform: transform(x), built, image))
        torch.default_generator.set_state(state)
        functools.reduce(lambda x, transform: transform(x), finish, torch.stack(out))

    found = in_turn(lambda: view(images, keys), v2, 3 if tiny else 7, bar).found()
    return Found(found.value, found.told, {**found.detail, "images": len(images)})


def views_in_memory(tiny: bool, bar: float) -> Found:
    """Return how often the network's time MoCo's view of a batch in memory takes."""
    B, rng = (16 if tiny else 128), make_generator(0, "images")
    images = smooth_images(4 * B, (32, 32), rng)
    source = ArrayDataset(images, [f"{i:06d}" for i in range(len(images))])
    dataset = ViewDataset(source, {"query": Pipeline(load_config(CONFIG).data.views["query"])})
    loader, done = BatchedLoader(dataset, "cpu"), 0
    backbone = ResNet(18, "cifar", width=16).to(memory_format=torch.channels_last).train()
    batch = torch.randn(B, 3, 32, 32, generator=rng).contiguous(memory_format=torch.channels_last)

    def load() -> None:
        nonlocal done
        done += 1
        ids = torch.randint(len(images), (B,), generator=rng).tolist()
        keys = mix_array(done, np.arange(B)).tolist()
        list(loader.run([[ViewRequest("", "query", (i,), 0, key) for i, key in zip(ids, keys, strict=True)]]))

    def train() -> None:
        backbone.zero_grad(set_to_none=True)
        backbone(batch).mean().backward()

    return in_turn(load, train, 3 if tiny else 7, bar).found()
