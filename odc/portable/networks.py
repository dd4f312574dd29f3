"""From pictures to the features of one space: a network, and how it wants to see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from odc.data.pipeline import Pipeline
from odc.data.transforms import PixelTransform, build_transform
from odc.errors import InputError
from odc.models.necks import AvgPool
from odc.reading import fields, listing, mapping, optional, plain, text, whole
from odc.registry import BACKBONES, NECKS, build

SPEC = fields(
    {
        "title": text,  # what a person calls it
        "channels": whole(1, 4),  # of the pictures that the view is given
        "backbone": optional(mapping(plain)),  # config, without weights; None: the pixels themselves
        "neck": mapping(plain),  # config
        "view": listing(mapping(plain)),  # transforms, without chance
        "width": whole(1),  # of the features
        "side": optional(whole(1)),  # pixels of the square that the network sees; None: any size
    }
)


class Network(nn.Module):
    """A network of a portable model, described by an entry of :data:`SPEC`; its weights are loaded afterwards.

    Raises:
        InputError: a part is of a type that is not registered, or is configured wrongly, or the view draws.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = dict(spec)
        self.view = Pipeline(spec["view"])
        if self.view.random is not None:
            raise InputError(f"the view of a portable model must not draw, but {self.view.random} does")
        if spec["backbone"] is None:
            self.backbone: nn.Module = nn.Flatten()
            self.neck: nn.Module = AvgPool(spec["width"])
        else:
            self.backbone = build(BACKBONES, spec["backbone"]).to(memory_format=torch.channels_last)
            self.neck = build(NECKS, spec["neck"], in_channels=self.backbone.out_channels)
            if self.neck.out_channels != spec["width"]:
                raise InputError(
                    f"network '{spec['title']}' gives {self.neck.out_channels} numbers, not {spec['width']}"
                )
        self.eval().requires_grad_(False)

    def see(self, images: Sequence[Tensor]) -> Tensor:
        """Return what the network sees of pictures uint8 (C, H, W): (B, C', H', W') float32."""
        return seen_through(self.view, images, self.spec["channels"])

    def forward(self, x: Tensor) -> Tensor:
        """Map what it sees (B, C', H', W') to features (B, width) float32."""
        z: Tensor = self.neck(self.backbone(x.contiguous(memory_format=torch.channels_last)))
        return z.float()


def seen_through(view: Pipeline, images: Sequence[Tensor], channels: int) -> Tensor:
    """Return a view, (B, C', H', W') float32, of pictures uint8 (C, H, W) that are given it with so many channels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as when features were extracted: sums over pixels depend on it
    try:
        return view([_channels(image, channels) for image in images], torch.zeros(len(images), dtype=torch.int64))
    finally:
        torch.set_num_threads(threads)


def _channels(image: Tensor, channels: int) -> Tensor:
    if image.ndim != 3 or image.dtype != torch.uint8:
        raise InputError(f"images are uint8 (C, H, W), not {image.dtype} {tuple(image.shape)}")
    if len(image) == channels:
        return image
    if len(image) == 1:
        return image.expand(channels, -1, -1)
    if len(image) == 3 and channels == 1:
        grey: Tensor = rgb_to_grayscale(image)
        return grey
    raise InputError(f"an image has {len(image)} channels, the model takes {channels}")


class Finish(nn.Module):
    """What a view does to images once they have their size: the end of its transforms, as a module for export.

    It takes uint8 (B, C, H, W). A transform between that is not elementwise over batches cannot stand here.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.steps = [build_transform(transform) for transform in transforms]

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network sees, float32."""
        for step in self.steps:
            images = step(images)
        return images


def split_view(view: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the transforms that give pictures their size, and those behind, which are products and sums of pixels."""
    behind = len(view)
    while behind and isinstance(build_transform(view[behind - 1]), PixelTransform):
        behind -= 1
    return list(view[:behind]), list(view[behind:])
