"""Networks of timm and torchvision as backbones, with public weights, weights from a file, or none.

Weights are loaded before a training starts, not when the network is made: a checkpoint of that training holds them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from mmengine.logging import print_log
from torch import Tensor, nn

from odc.checkpoints import load_plain
from odc.errors import InputError, nearest
from odc.models.backbones import check_images, init_convolutions
from odc.models.fetching import hub_file, torchvision_file
from odc.models.loading import load_backbone
from odc.models.pretrained import timm_library, timm_weights, torchvision_weights, trained_how
from odc.registry import BACKBONES

# Pixels a side to try on a network until it takes them: the small ones are fast, the odd ones some networks' only size.
_SIZES = (32, 64, 96, 128, 160, 192, 208, 224, 232, 240, 256, 288, 299, 300, 320, 336, 384, 448, 512, 518)
# Networks of torchvision with further classifiers, which serve supervised training alone.
_OF_SEVERAL = ("googlenet", "inception_v3")
_POOLS = ("class", "mean", "class+mean")


class Library(nn.Module):
    """A network of a library without its classifier. The network itself is asked for its width and its sizes of image.

    Nothing else is certain: what libraries say of the width is that of another layer in many of their networks, and
    some take one size of image only; ``remedy`` is what to do then, besides resizing.

    Raises:
        InputError: the network takes no size from 32 to 518 pixels, or does not give one vector an image; and at the
            first image of a size that it does not take.
    """

    library: ClassVar[str]

    def __init__(
        self, name: str, model: nn.Module, in_channels: int, remedy: str, pretrained: bool, weights: str | None
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise InputError(f"'{name}' has pretrained=True and weights='{weights}': leave one of them out")
        self.name = name
        self.in_channels = in_channels
        self.model: Any = model  # maps images (B, C, H, W) to features (B, D)
        self.pretrained, self.weights = pretrained, weights
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

    # -- weights

    def init_weights(self) -> None:
        """Load the weights that the options ask for; without any the network stays as its library initialised it.

        Raises:
            InputError: the file cannot be read safely or does not fit, or the library's weights are neither in its
                cache nor within reach.
        """
        if self.weights is not None:
            file = Path(self.weights).expanduser()
            told = load_backbone(self, load_plain(file), f"'{self.weights}'")
            print_log(f"{self.library}'s {self.name} from {self.weights}: {told}", "current")
        elif self.pretrained:
            trained = trained_how(self.library, self.name)
            how = f", trained {trained}" if trained else ""
            print_log(f"{self.library}'s {self.name} with its own weights{how}: {self._load_own()}", "current")

    def _load_own(self) -> str:
        """Load the library's weights; return where they come from."""
        raise NotImplementedError

    @functools.cached_property
    def classifier_names(self) -> frozenset[str]:
        """Names of the tensors that the library's network has and this one, which lacks its classifier, does not."""
        try:
            with torch.device("meta"):
                whole = self._whole()
        except InputError:  # some look at their numbers while they are made
            with torch.random.fork_rng(devices=[]):
                whole = self._whole()
        return frozenset(whole.state_dict().keys() - self.model.state_dict().keys())

    def _whole(self) -> nn.Module:
        """Return the library's network with its classifier, or classifiers."""
        raise NotImplementedError

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return published tensors by the names and shapes of this network, as far as the library knows how."""
        return tensors

    # -- features

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features.flatten(1)

    def _ask(self, height: int, width: int) -> Tensor | Exception:
        """Return the features of one black image, or why there are none; nothing is changed by that."""
        weight = next(self.model.parameters())
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return self._features(weight.new_zeros(1, self.in_channels, height, width))
        except Exception as error:  # networks tell a wrong size by all kinds of errors
            return error
        finally:
            for module, training in modes:
                module.training = training

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, out_channels)."""
        check_images(images, self.in_channels)
        try:
            return self._features(images)
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


@BACKBONES.register_module()
class TorchvisionBackbone(Library):
    """Any classification model of torchvision by name, without its classifier: pooled features (B, D).

    Args:
        name: one of ``torchvision.models.list_models(module=torchvision.models)``, and behind a dot, where it is not
            to be the default, which of its weights: ``"resnet50.IMAGENET1K_V1"``.
        pretrained: start from torchvision's weights, from torch's cache or fetched into it.
        weights: file of weights to start from instead, in torchvision's names or a layout of
            :data:`odc.models.convert.LAYOUTS`; a classifier in it is left.
        in_channels: channels of the images; with others than 3 the first convolution has new weights, or
            where those that are loaded are for colours, for grey images their sum, for others their repetition.
        linear_layers: how many linear layers of the classifier stay, the features being what the last of them gives,
            before its ReLU. DeepCluster and DeeperCluster keep the first 2 of a VGG's 3.
        image_size: pixels a side of the images, for the models that take one size only (vit, maxvit), 224 by default.

    Raises:
        InputError: for an unknown name, a model whose classifier has no more linear layers than should stay or that
            takes no ``image_size``; and at the first image of a size that the model does not take.
    """

    library = "torchvision"

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        in_channels: int = 3,
        linear_layers: int = 0,
        image_size: int | None = None,
    ) -> None:
        self._model_name, self._entry = torchvision_weights(name)
        sized = self._model_name.startswith(("vit_", "maxvit_"))
        if image_size is not None and not sized:
            raise InputError(f"torchvision's '{name}' takes images of many sizes: leave image_size={image_size} out")
        self._options: dict[str, Any] = {}
        if self._model_name in _OF_SEVERAL:
            self._options = {"aux_logits": False, "init_weights": True}
        if image_size is not None:
            key, size = ("image_size", image_size) if name.startswith("vit_") else ("input_size", (image_size,) * 2)
            self._options[key] = size
        model = _made(self._model_name, torchvision.models.get_model, weights=None, **self._options)
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
            init_convolutions(first)
        remedy = ", or set model.backbone.image_size" if sized else ""
        super().__init__(name, model, in_channels, remedy, pretrained, weights)

    def _whole(self) -> nn.Module:
        more = {"aux_logits": True, "init_weights": False} if self._model_name in _OF_SEVERAL else {}
        return _made(self._model_name, torchvision.models.get_model, weights=None, **self._options | more)

    def _load_own(self) -> str:
        file = torchvision_file(self.name, self._entry)
        told = load_backbone(self, load_plain(file), f"'{file}'")
        return f"{self._entry.name} ({file}): {told}"


@BACKBONES.register_module()
class TimmBackbone(Library):
    """Any timm model by name, without its classifier, pooled to (B, D).

    Args:
        name: as ``timm.create_model`` takes it, with the weights behind a dot where it is not to be the default.
        pretrained: start from timm's weights, from its cache or fetched into it.
        weights: file of weights to start from instead (``.safetensors``, or a ``.pth`` of nothing else), in timm's
            names, in those that timm can convert, or in a layout of :data:`odc.models.convert.LAYOUTS`; a classifier in
            it is left.
        pool: of a transformer ``"class"``, its class token; ``"mean"``, that of the patches' tokens; or
            ``"class+mean"``, both, one behind the other. ``None`` is what timm does.
        projection: keep the last layer, for networks whose is no classifier: CLIP's embedding comes after it.
        in_channels: channels of the images; weights for colours are summed for grey images, else repeated.
        image_size: pixels a side of the images, for the models that take one size only (most transformers). Weights
            for other sizes have their positions interpolated.

    Raises:
        InputError: for an unknown name, a model that takes no ``image_size`` or not this one, or has no such ``pool``;
            and at the first image of a size that the model does not take.
    """

    library = "timm"

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        pool: str | None = None,
        projection: bool = False,
        in_channels: int = 3,
        image_size: int | None = None,
    ) -> None:
        timm_weights(name)
        if pool is not None and pool not in _POOLS:
            raise InputError(f"'{name}' has no pool '{pool}'{nearest(pool, _POOLS)}")
        if pool is not None and projection:
            raise InputError(f"'{name}' projects what timm pools: leave pool='{pool}' or projection=True out")
        self._options = {"in_chans": in_channels} | ({"img_size": image_size} if image_size else {})
        self._last = {} if projection else {"num_classes": 0}
        model = _made(name, timm_library().create_model, **self._last, **self._options)
        if pool is not None:
            _check_pool(name, model, pool)
        self.pool = pool
        remedy = ", or set model.backbone.image_size where the model has one size"
        super().__init__(name, model, in_channels, remedy, pretrained, weights)

    def _features(self, images: Tensor) -> Tensor:
        if self.pool is None:
            return super()._features(images)
        tokens: Tensor = self.model.forward_features(images)  # (B, T, D): class token, others, patches
        patches = tokens[:, self.model.num_prefix_tokens :]
        kinds = {"class": lambda: tokens[:, 0], "mean": lambda: patches.mean(dim=1)}
        # timm's own pooling normalises behind it where it does not before.
        return torch.cat([self.model.fc_norm(kinds[kind]()) for kind in self.pool.split("+")], dim=1)

    def _whole(self) -> nn.Module:
        return _made(self.name, timm_library().create_model, **self._options)

    def _load_own(self) -> str:
        overlay: dict[str, Any] = {}
        file: Path | str = "fetched by timm"
        told = timm_weights(self.name)
        if told.get("hf_hub_id") and not told.get("custom_load"):
            file = hub_file(self.name, told["hf_hub_id"], told.get("hf_hub_filename"))
            # Read here, as every file is: no code in it runs.
            overlay = {"state_dict": load_plain(file)}
        try:
            # By timm's own way, which knows for each network what is left of its file, and how it is fitted.
            given = timm_library().create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=overlay, **self._last, **self._options
            )
        except Exception as error:  # of reading, fetching or fitting
            raise InputError(
                f"timm cannot load its weights of '{self.name}' ({_line(error)}): remove what is in its cache, or give "
                "a file by weights=FILE"
            ) from error
        self.model.load_state_dict(given.state_dict())
        return str(file)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return published tensors by the names and shapes of this network, as far as timm knows how."""
        convert = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return tensors
        try:
            found: dict[str, Tensor] = convert(dict(tensors), self.model)
        except Exception:  # it is for files of such a network only, and may fail anyhow on others
            return tensors
        return found


def _check_pool(name: str, model: Any, pool: str) -> None:
    """Raise InputError where a model of timm has no such tokens to pool."""
    tokens = hasattr(model, "num_prefix_tokens") and hasattr(model, "fc_norm") and hasattr(model, "forward_features")
    if not tokens or ("class" in pool and getattr(model, "cls_token", None) is None):
        kind = "class token" if tokens else "tokens of its own to pool"
        raise InputError(f"'{name}' has no {kind}: leave pool='{pool}' out, and it is pooled as timm does")


def _made(name: str, make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Return the library's model; :class:`InputError` where it does not take an option that it is made with."""
    try:
        return make(name, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(f"'{name}' cannot be made with {told}: {_line(error)}") from error
