"""Backbones: images (B, C, H, W) float32 to a feature map (B, D, h, w), or to pooled features (B, D).

Every backbone has ``out_channels``, its D. Spatial pooling is the neck's work, and adaptive: no size of image is
written down anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from odc.errors import InputError
from odc.registry import BACKBONES

_STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
# Kernel and stride of the first convolution, kernel of the pooling behind it (0: none), stride of the last map.
_STEMS = {"imagenet": (7, 2, 3, 32), "stl": (3, 1, 2, 16), "cifar": (3, 1, 0, 8)}


def check_images(images: Tensor, in_channels: int, smallest: int = 1, remedy: str = "") -> None:
    """Refuse other channels, and images that leave less than one pixel of the last map: it sees mostly padding."""
    channels, height, width = images.shape[1:]
    if channels != in_channels:
        raise InputError(
            f"the images have {channels} channels, but the backbone takes {in_channels}: set "
            "model.backbone.in_channels, grey of the data set, or a Grayscale or Sobel transform in data.views"
        )
    if min(height, width) < smallest:
        raise InputError(
            f"the images have {height}×{width} pixels, but the backbone takes at least {smallest}×{smallest}: {remedy}"
        )


def init_convolutions(module: nn.Module) -> None:
    """Draw the weights of a network's convolutions by He's rule, for ReLUs."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


@BACKBONES.register_module()
class ResNet(nn.Module):
    """ResNet-18, -34 or -50 (He et al. 2016) of torchvision's blocks, with torchvision's parameter names.

    Args:
        depth: 18, 34 or 50.
        stem: ``"imagenet"``: 7×7 stride 2, 3×3 max-pool stride 2 (÷4); ``"stl"``: 3×3 stride 1, 2×2 max-pool with
            padding 1 (÷2); ``"cifar"``: 3×3 stride 1 (÷1).
        in_channels: 1 to 4.
        width: channels of the first stage; 64 is the paper's.

    Raises:
        InputError: for another depth, stem or number of channels; and at the first image whose shorter side is less
            than the ``stride`` of the last map (32, 16 or 8 pixels by the stem).
    """

    def __init__(self, depth: int = 18, stem: str = "imagenet", in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise InputError(f"ResNet has depth {sorted(_STAGES)}, not {depth}")
        if not 1 <= in_channels <= 4:
            raise InputError(f"ResNet takes 1 to 4 input channels, not {in_channels}")
        if stem not in _STEMS:
            raise InputError(f"ResNet has stem 'imagenet', 'stl' or 'cifar', not '{stem}'")
        kernel, stride, pool, self.stride = _STEMS[stem]
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.maxpool = nn.MaxPool2d(pool, stride=2, padding=1) if pool else nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        block, counts = _STAGES[depth]
        channels = width
        for stage, count in enumerate(counts):
            planes = width << stage
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                downsample = None
                if stride > 1 or channels != planes * block.expansion:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, planes * block.expansion, 1, stride=stride, bias=False),
                        nn.BatchNorm2d(planes * block.expansion),
                    )
                blocks.append(block(channels, planes, stride, downsample))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last stage's map (B, out_channels, h, w)."""
        other = {32: ", or take stem 'stl' (16) or 'cifar' (8)", 16: ", or take stem 'cifar' (8)"}.get(self.stride, "")
        check_images(images, self.conv1.in_channels, self.stride, f"enlarge them in data.views{other}")
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


@BACKBONES.register_module()
class ConvNet(nn.Module):
    """A small net for digits: per stage two 3×3 convolutions with batch norm and ReLU; stages halve the map.

    ``widths`` are the channels of each stage.

    Raises:
        InputError: for no stage, or one without channels; and at the first image of less than 2^s pixels a side.
    """

    def __init__(self, in_channels: int = 1, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise InputError(f"ConvNet's widths need at least one stage, each of at least 1 channel, not {widths}")
        self.in_channels = in_channels
        self.stride = 2 ** (len(widths) - 1)
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, width in enumerate(widths):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                channels = width
        self.layers = nn.Sequential(*layers)
        self.out_channels = channels
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, out_channels, H / 2^s, W / 2^s) with s = stages - 1."""
        check_images(
            images, self.in_channels, self.stride, "enlarge them in data.views, or take fewer model.backbone.widths"
        )
        features: Tensor = self.layers(images)
        return features


@BACKBONES.register_module()
class Vectors(nn.Module):
    """No network: vectors that lie in files already, given as images (B, D, 1, 1), are the features. Nothing trains.

    Args:
        spaces: widths of the spaces that the vectors consist of, as the data set ``Features`` has them.

    Raises:
        InputError: for no space, or one without width; and at vectors of another width, or images.
    """

    def __init__(self, spaces: Sequence[int]) -> None:
        super().__init__()
        if not spaces or min(spaces) < 1:
            raise InputError(f"Vectors.spaces needs the width of at least one space, each at least 1, not {spaces}")
        self.spaces = tuple(spaces)
        self.out_channels = sum(self.spaces)

    def forward(self, images: Tensor) -> Tensor:
        """Map vectors (B, D, 1, 1) to (B, D)."""
        if images.shape[1:] != (self.out_channels, 1, 1):
            found = "×".join(map(str, images.shape[1:]))
            raise InputError(
                f"the samples are {found}, but the backbone takes vectors of {self.out_channels}×1×1: set "
                "model.backbone.spaces, or data.dataset, to what belongs together"
            )
        return images.flatten(1)
