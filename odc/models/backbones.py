"""Backbones: images (B, C, H, W) float32 to a feature map (B, D, h, w), or to pooled features (B, D).

Every backbone has ``out_channels``, its D. Spatial pooling is the neck's work, and adaptive: no size of image is
written down anywhere.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from odc.errors import InputError
from odc.registry import BACKBONES

_STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def _check_channels(images: Tensor, in_channels: int) -> None:
    if images.shape[1] != in_channels:
        raise InputError(
            f"the images have {images.shape[1]} channels, but the backbone takes {in_channels}: set "
            "model.backbone.in_channels, grey of the data set, or a Grayscale or Sobel transform in data.views"
        )


def _init_convolutions(module: nn.Module) -> None:
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
        InputError: for another depth, stem or number of channels.
    """

    def __init__(self, depth: int = 18, stem: str = "imagenet", in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise InputError(f"ResNet has depth {sorted(_STAGES)}, not {depth}")
        if not 1 <= in_channels <= 4:
            raise InputError(f"ResNet takes 1 to 4 input channels, not {in_channels}")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        elif stem in ("stl", "cifar"):
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.MaxPool2d(2, stride=2, padding=1) if stem == "stl" else nn.Identity()
        else:
            raise InputError(f"ResNet has stem 'imagenet', 'stl' or 'cifar', not '{stem}'")
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
        _init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last stage's map (B, out_channels, h, w)."""
        _check_channels(images, self.conv1.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        features: Tensor = x
        return features


@BACKBONES.register_module()
class ConvNet(nn.Module):
    """A small net for digits: per stage two 3×3 convolutions with batch norm and ReLU; stages halve the map.

    Args:
        in_channels: channels of the images.
        widths: channels of each stage.

    Raises:
        InputError: for no stage, or one without channels.
    """

    def __init__(self, in_channels: int = 1, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise InputError(f"ConvNet's widths need at least one stage, each of at least 1 channel, not {widths}")
        self.in_channels = in_channels
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
        _init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, out_channels, H / 2^s, W / 2^s) with s = stages - 1."""
        _check_channels(images, self.in_channels)
        features: Tensor = self.layers(images)
        return features


@BACKBONES.register_module()
class TorchvisionBackbone(nn.Module):
    """Any classification model of torchvision by name, without its classifier: pooled features (B, D).

    Args:
        name: as ``torchvision.models.get_model`` takes it.

    Raises:
        InputError: for an unknown name, or a model whose classifier is not its last child.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            model = torchvision.models.get_model(name, weights=None)
        except ValueError as e:
            raise InputError(f"torchvision has no model '{name}'; torchvision.models.list_models() names them") from e
        child, classifier = list(model.named_children())[-1]
        linears = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
        if not linears:
            raise InputError(f"torchvision's '{name}' does not end in a linear classifier: use another model")
        self.out_channels = linears[0].in_features
        if isinstance(classifier, nn.Sequential):
            # Everything before the first linear layer (norm, flatten) still belongs to the features.
            first = next(i for i, m in enumerate(classifier) if isinstance(m, nn.Linear))
            setattr(model, child, classifier[:first])
        else:
            setattr(model, child, nn.Identity())
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        _check_channels(images, 3)
        features: Tensor = self.model(images)
        return features.flatten(1)


@BACKBONES.register_module()
class TimmBackbone(nn.Module):
    """Any timm model by name, without its classifier: pooled features (B, D). Needs the extra ``[timm]``.

    Args:
        name: as ``timm.create_model`` takes it.
        in_channels: channels of the images.

    Raises:
        InputError: for an unknown name, or when timm is not installed.
    """

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as e:
            raise InputError("timm is not installed: pip install 'online-deep-clustering[timm]'") from e
        if not timm.is_model(name):
            raise InputError(f"timm has no model '{name}'; timm.list_models() names them")
        self.in_channels = in_channels
        self.model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels)
        self.out_channels = self.model.num_features

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        _check_channels(images, self.in_channels)
        features: Tensor = self.model(images)
        return features
