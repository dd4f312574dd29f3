"""Backbones: images (B, C, H, W) float32 to a feature map (B, D, h, w), or to pooled features (B, D).

Every backbone has ``out_channels``, its D. Spatial pooling is the neck's work, and adaptive: no size of image is
written down anywhere.
"""

from __future__ import annotations

import re

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


def _check_size(images: Tensor, smallest: int, remedy: str) -> None:
    """Refuse images that leave less than one pixel of the last map: what is left of it sees mostly padding."""
    height, width = images.shape[2:]
    if min(height, width) < smallest:
        raise InputError(
            f"the images have {height}×{width} pixels, but the backbone takes at least {smallest}×{smallest}: {remedy}"
        )


def _pooled(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return ``model(images)``, with a clear error where the library's network does not take this size of image."""
    try:
        features: Tensor = model(images)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if not re.search(r"too small|can't be greater than actual|Wrong image|doesn't match model", reason):
            raise
        height, width = images.shape[2:]
        raise InputError(
            f"'{name}' does not take images of {height}×{width} pixels: resize them in data.views ({reason})"
        ) from error
    return features


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
        InputError: for another depth, stem or number of channels; and at the first image whose shorter side is less
            than the ``stride`` of the last map (32, 16 or 8 pixels by the stem).
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
        self.stride = {"imagenet": 32, "stl": 16, "cifar": 8}[stem]
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
        other = {32: "stem 'stl' (16) or 'cifar' (8)", 16: "stem 'cifar' (8)"}.get(self.stride)
        _check_size(images, self.stride, "enlarge them in data.views" + (f", or take {other}" if other else ""))
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
        _init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, out_channels, H / 2^s, W / 2^s) with s = stages - 1."""
        _check_channels(images, self.in_channels)
        _check_size(images, self.stride, "enlarge them in data.views, or take fewer model.backbone.widths")
        features: Tensor = self.layers(images)
        return features


@BACKBONES.register_module()
class TorchvisionBackbone(nn.Module):
    """Any classification model of torchvision by name, without its classifier: pooled features (B, D).

    Args:
        name: as ``torchvision.models.get_model`` takes it.
        in_channels: channels of the images; with others than 3 the first convolution has new weights.
        linear_layers: how many linear layers of the classifier stay, the features being what the last of them gives,
            before its ReLU. DeepCluster and DeeperCluster keep the first 2 of a VGG's 3.

    Raises:
        InputError: for an unknown name, a model whose classifier is not its last child or has no more linear layers
            than should stay; and at the first image of a size that the model does not take.
    """

    def __init__(self, name: str, in_channels: int = 3, linear_layers: int = 0) -> None:
        super().__init__()
        self.name = name
        self.in_channels = in_channels
        try:
            model = torchvision.models.get_model(name, weights=None)
        except ValueError as e:
            raise InputError(f"torchvision has no model '{name}'; torchvision.models.list_models() names them") from e
        child, classifier = list(model.named_children())[-1]
        linears = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
        if not linears:
            raise InputError(f"torchvision's '{name}' does not end in a linear classifier: use another model")
        if not 0 <= linear_layers < len(linears):
            raise InputError(
                f"the classifier of torchvision's '{name}' has {len(linears)} linear layers, of which 0 to "
                f"{len(linears) - 1} can stay, not {linear_layers}"
            )
        self.out_channels = linears[linear_layers].in_features
        if isinstance(classifier, nn.Sequential):
            # Everything before the first linear layer (norm, flatten) still belongs to the features.
            places = [i for i, m in enumerate(classifier) if isinstance(m, nn.Linear)]
            setattr(model, child, classifier[: places[linear_layers - 1] + 1 if linear_layers else places[0]])
        else:
            setattr(model, child, nn.Identity())
        if in_channels != 3:
            first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
            first.in_channels = in_channels
            first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, in_channels, *first.kernel_size))
            _init_convolutions(first)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        _check_channels(images, self.in_channels)
        return _pooled(self.model, images, self.name).flatten(1)


@BACKBONES.register_module()
class TimmBackbone(nn.Module):
    """Any timm model by name, without its classifier: pooled features (B, D). Needs the extra ``[timm]``.

    Args:
        name: as ``timm.create_model`` takes it.
        in_channels: channels of the images.

    Raises:
        InputError: for an unknown name, or when timm is not installed; and at the first image of a size that the
            model does not take.
    """

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as e:
            raise InputError("timm is not installed: pip install 'online-deep-clustering[timm]'") from e
        if not timm.is_model(name):
            raise InputError(f"timm has no model '{name}'; timm.list_models() names them")
        self.name = name
        self.in_channels = in_channels
        self.model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels)
        self.out_channels = self.model.num_features

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        _check_channels(images, self.in_channels)
        return _pooled(self.model, images, self.name)
