"""Backbones: images (B, C, H, W) float32 to a feature map (B, D, h, w), or to pooled features (B, D).

Every backbone has ``out_channels``, its D. Spatial pooling is the neck's work, and adaptive: no size of image is
written down anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from odc.errors import InputError
from odc.registry import BACKBONES

# Pixels a side to try on a network until it takes them: the small ones are fast, the odd ones some networks' only size.
_SIZES = (32, 64, 96, 128, 160, 192, 208, 224, 232, 240, 256, 288, 299, 300, 320, 336, 384, 448, 512)
_STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
# Kernel and stride of the first convolution, kernel of the pooling behind it (0: none), stride of the last map.
_STEMS = {"imagenet": (7, 2, 3, 32), "stl": (3, 1, 2, 16), "cifar": (3, 1, 0, 8)}


def _check(images: Tensor, in_channels: int, smallest: int = 1, remedy: str = "") -> None:
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


class _Library(nn.Module):
    """A network of a library without its classifier. The network itself is asked for its width and its sizes of image.

    Nothing else is certain: what libraries say of the width is that of another layer in many of their networks, and
    some take one size of image only; ``remedy`` is what to do then, besides resizing.

    Raises:
        InputError: the network takes no size from 32 to 512 pixels, or does not give one vector an image; and at the
            first image of a size that it does not take.
    """

    def __init__(self, name: str, model: nn.Module, in_channels: int, remedy: str) -> None:
        super().__init__()
        self.name = name
        self.in_channels = in_channels
        self.model: Any = model  # maps images (B, C, H, W) to features (B, D)
        self._remedy = remedy
        for self._size in _SIZES:
            features = self._ask(self._size, self._size)
            if isinstance(features, Tensor):
                break
        else:
            sides = f"{_SIZES[0]} to {_SIZES[-1]}"
            raise InputError(
                f"'{name}' fails on images of {in_channels} channels and {sides} pixels a side: {_line(features)}"
            )
        if features.ndim != 2:
            raise InputError(f"'{name}' gives {tuple(features.shape)} for one image, not one vector: use another model")
        self.out_channels = features.shape[1]

    def _ask(self, height: int, width: int) -> Tensor | Exception:
        """Return the features of one black image, or why there are none; nothing is changed by that."""
        weight = next(self.model.parameters())
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                features: Tensor = self.model(weight.new_zeros(1, self.in_channels, height, width)).flatten(1)
            return features
        except Exception as error:  # networks tell a wrong size by all kinds of errors
            return error
        finally:
            for module, training in modes:
                module.training = training

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        _check(images, self.in_channels)
        try:
            features: Tensor = self.model(images).flatten(1)
            return features
        except Exception as error:
            height, width = images.shape[2:]
            reason = self._ask(height, width)
            if isinstance(reason, Tensor):
                raise
            raise InputError(
                f"'{self.name}' does not take images of {height}×{width} pixels, but of {self._size}×{self._size}: "
                f"resize them in data.views{self._remedy} ({_line(reason)})"
            ) from error


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
        _init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the last stage's map (B, out_channels, h, w)."""
        other = {32: ", or take stem 'stl' (16) or 'cifar' (8)", 16: ", or take stem 'cifar' (8)"}.get(self.stride, "")
        _check(images, self.conv1.in_channels, self.stride, f"enlarge them in data.views{other}")
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
        _init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, out_channels, H / 2^s, W / 2^s) with s = stages - 1."""
        _check(images, self.in_channels, self.stride, "enlarge them in data.views, or take fewer model.backbone.widths")
        features: Tensor = self.layers(images)
        return features


@BACKBONES.register_module()
class TorchvisionBackbone(_Library):
    """Any classification model of torchvision by name, without its classifier: pooled features (B, D).

    Args:
        name: one of ``torchvision.models.list_models(module=torchvision.models)``.
        in_channels: channels of the images; with others than 3 the first convolution has new weights.
        linear_layers: how many linear layers of the classifier stay, the features being what the last of them gives,
            before its ReLU. DeepCluster and DeeperCluster keep the first 2 of a VGG's 3.
        image_size: pixels a side of the images, for the models that take one size only (vit, maxvit), 224 by default.

    Raises:
        InputError: for an unknown name, a model whose classifier has no more linear layers than should stay or that
            takes no ``image_size``; and at the first image of a size that the model does not take.
    """

    def __init__(self, name: str, in_channels: int = 3, linear_layers: int = 0, image_size: int | None = None) -> None:
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise InputError(
                f"torchvision has no classification model '{name}'; "
                "torchvision.models.list_models(module=torchvision.models) names them"
            )
        options: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):  # their other classifiers serve supervised training alone
            options = {"aux_logits": False, "init_weights": True}
        sized = name.startswith(("vit_", "maxvit_"))
        if image_size is not None and not sized:
            raise InputError(f"torchvision's '{name}' takes images of many sizes: leave image_size={image_size} out")
        if image_size is not None:
            options = {"image_size": image_size} if name.startswith("vit_") else {"input_size": (image_size,) * 2}
        model = _made(name, torchvision.models.get_model, weights=None, **options)
        child, classifier = list(model.named_children())[-1]
        layers = [m for m in classifier.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if not 0 <= linear_layers < len(layers):
            raise InputError(
                f"the classifier of torchvision's '{name}' has {len(layers)} linear layers, of which 0 to "
                f"{len(layers) - 1} can stay, not {linear_layers}"
            )
        if isinstance(classifier, nn.Sequential):
            # Everything before the first linear layer (norm, flatten) still belongs to the features.
            places = [i for i, m in enumerate(classifier) if m in layers]
            kept = classifier[: places[linear_layers - 1] + 1 if linear_layers else places[0]]
            # SqueezeNet pools after its classifier, a convolution.
            setattr(model, child, kept.append(nn.AdaptiveAvgPool2d(1)) if isinstance(layers[0], nn.Conv2d) else kept)
        else:
            setattr(model, child, nn.Identity())
        if in_channels != 3:
            first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
            first.in_channels = in_channels
            first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, in_channels, *first.kernel_size))
            _init_convolutions(first)
        super().__init__(name, model, in_channels, ", or set model.backbone.image_size" if sized else "")


@BACKBONES.register_module()
class TimmBackbone(_Library):
    """Any timm model by name, without its classifier, pooled as timm does: (B, D). Needs the extra ``[timm]``.

    Args:
        name: as ``timm.create_model`` takes it.
        in_channels: channels of the images.
        image_size: pixels a side of the images, for the models that take one size only (most transformers).

    Raises:
        InputError: for an unknown name, a model that takes no ``image_size`` or not this one, or when timm is not
            installed; and at the first image of a size that the model does not take.
    """

    def __init__(self, name: str, in_channels: int = 3, image_size: int | None = None) -> None:
        try:
            import timm
        except ImportError as e:
            raise InputError("timm is not installed: pip install 'online-deep-clustering[timm]'") from e
        if not timm.is_model(name):
            raise InputError(f"timm has no model '{name}'; timm.list_models() names them")
        options = {"num_classes": 0, "in_chans": in_channels} | ({"img_size": image_size} if image_size else {})
        model = _made(name, timm.create_model, pretrained=False, **options)
        super().__init__(name, model, in_channels, ", or set model.backbone.image_size where the model has one size")


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


def _made(name: str, make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Return the library's model; :class:`InputError` where it does not take an option that it is made with."""
    try:
        return make(name, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(f"'{name}' cannot be made with {told}: {_line(error)}") from error
