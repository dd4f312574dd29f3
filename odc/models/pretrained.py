"""Public weights by short names, and what they want to see: size, crop, interpolation, mean and std of their images.

Nothing here builds a network or fetches weights: the libraries keep a description of each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torchvision

from odc.errors import InputError, nearest

_LIBRARIES = {"timm": "TimmBackbone", "torchvision": "TorchvisionBackbone"}


@dataclass(frozen=True)
class Known:
    """Weights with a short name."""

    name: str  # as their library has it
    trained: str  # how, in words: whether labels were seen is what a comparison must say
    options: Mapping[str, Any] = field(default_factory=dict)  # of their backbone, besides name and pretrained
    library: str = "timm"


_DINOV2 = "without labels, on LVD-142M"
_DINOV3 = "without labels, on LVD-1689M"
_DINO = "without labels, on ImageNet"
_CLIP = "on 400 million pictures with captions"
_IMAGENET = "with the labels of ImageNet"
# DINOv2's own size, 518 pixels, takes five times as long as the 224 at which its authors classify. They and DINOv3's
# use the class token, which timm's DINOv3 does not; CLIP's embedding comes after its last layer, the projection.
_SMALL: Mapping[str, Any] = {"image_size": 224}
_CLASS: Mapping[str, Any] = {"pool": "class"}
_PROJECTED: Mapping[str, Any] = {"projection": True}
KNOWN: dict[str, Known] = {
    "dinov2-small": Known("vit_small_patch14_dinov2.lvd142m", _DINOV2, _SMALL),
    "dinov2-base": Known("vit_base_patch14_dinov2.lvd142m", _DINOV2, _SMALL),
    "dinov2-large": Known("vit_large_patch14_dinov2.lvd142m", _DINOV2, _SMALL),
    "dinov2-giant": Known("vit_giant_patch14_dinov2.lvd142m", _DINOV2, _SMALL),
    "dinov3-small": Known("vit_small_patch16_dinov3.lvd1689m", _DINOV3, _CLASS),
    "dinov3-base": Known("vit_base_patch16_dinov3.lvd1689m", _DINOV3, _CLASS),
    "dinov3-large": Known("vit_large_patch16_dinov3.lvd1689m", _DINOV3, _CLASS),
    "dino-small": Known("vit_small_patch16_224.dino", _DINO),
    "dino-base": Known("vit_base_patch16_224.dino", _DINO),
    "mae-base": Known("vit_base_patch16_224.mae", _DINO),
    "clip-b32": Known("vit_base_patch32_clip_quickgelu_224.openai", _CLIP, _PROJECTED),
    "clip-b16": Known("vit_base_patch16_clip_quickgelu_224.openai", _CLIP, _PROJECTED),
    "clip-l14": Known("vit_large_patch14_clip_quickgelu_224.openai", _CLIP, _PROJECTED),
    "siglip2-base": Known("vit_base_patch16_siglip_224.v2_webli", "on pictures with captions (WebLI)"),
    "efficientnet-lite0": Known("tf_efficientnet_lite0.in1k", _IMAGENET),
    "convnext-tiny": Known("convnext_tiny.fb_in1k", _IMAGENET),
    "resnet18": Known("resnet18.IMAGENET1K_V1", _IMAGENET, library="torchvision"),
    "resnet50": Known("resnet50.IMAGENET1K_V2", _IMAGENET, library="torchvision"),
}


def backbone_of(source: str) -> dict[str, Any]:
    """Return the config of the backbone that a text names, with its weights.

    Args:
        source: a key of :data:`KNOWN`, ``timm:NAME`` or ``torchvision:NAME``, whose weights the library fetches; or
            one of these with ``@FILE``, a file of weights, and then nothing is fetched.

    Raises:
        InputError: for an unknown name, or a file that is not there.
    """
    named, separator, file = source.partition("@")
    library, colon, name = named.partition(":")
    if colon:
        if library not in _LIBRARIES:
            raise InputError(f"'{source}': no library '{library}'{nearest(library, _LIBRARIES)}")
        config: dict[str, Any] = {"type": _LIBRARIES[library], "name": name}
        check_name(library, name)
    elif named in KNOWN:
        known = KNOWN[named]
        config = {"type": _LIBRARIES[known.library], "name": known.name, **copy.deepcopy(dict(known.options))}
    else:
        raise InputError(
            f"no pre-trained backbone '{named}' (others: timm:NAME, torchvision:NAME, NAME@FILE){nearest(named, KNOWN)}"
        )
    if not separator:
        return {**config, "pretrained": True}
    if not Path(file).expanduser().is_file():
        raise InputError(f"'{source}': there is no file '{file}' of weights: check the path behind the @")
    return {**config, "weights": str(Path(file).expanduser())}


# ----------------------------------------------------------------------------------------------- what the libraries say


def timm_library() -> Any:
    """Return the module ``timm``, which takes seconds to import: where it is needed, and not before."""
    import timm

    return timm


def check_name(library: str, name: str) -> None:
    """Raise InputError where a library has no model, or no weights, of a name."""
    timm_weights(name) if library == "timm" else torchvision_weights(name)


def timm_weights(name: str) -> dict[str, Any]:
    """Return timm's description of a model's weights (its ``pretrained_cfg``); empty where it knows none.

    Raises:
        InputError: timm has no model, or no weights, of this name.
    """
    timm = timm_library()
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise InputError(
            f"timm has no model '{name}'{_close(model, timm.list_models())}; timm.list_models() names them"
        )
    tags = timm.models.list_pretrained(f"{model}.*") if tag else []
    if tag and name not in tags:
        raise InputError(
            f"timm has no weights '{name}' of '{model}'{_close(name, tags)}; timm.list_pretrained() names them"
        )
    found = timm.models.get_pretrained_cfg(name)
    return {} if found is None else dict(found.to_dict())


def torchvision_weights(name: str) -> tuple[str, Enum]:
    """Return the model and the weights that ``MODEL`` or ``MODEL.WEIGHTS`` is of torchvision.

    Raises:
        InputError: torchvision has no classification model, or no weights, of this name.
    """
    model, _, entry = name.partition(".")
    models = torchvision.models.list_models(module=torchvision.models)
    if model not in models:
        raise InputError(
            f"torchvision has no classification model '{name}'{_close(model, models)}; "
            "torchvision.models.list_models(module=torchvision.models) names them"
        )
    weights: Any = torchvision.models.get_model_weights(model)
    if entry and entry not in weights.__members__:
        raise InputError(f"torchvision has no weights '{entry}' of '{model}'{nearest(entry, weights.__members__)}")
    return model, weights[entry] if entry else weights.DEFAULT


def _close(name: str, known: Any) -> str:
    """Return :func:`nearest`, unless it would list hundreds."""
    told = nearest(name, known)
    return told if "did you mean" in told or len(known) < 20 else ""


def trained_how(library: str, name: str) -> str | None:
    """Return how a library's weights were trained, in words behind "trained": whether with labels is what matters.

    Where :data:`KNOWN` has them not, a classifier that is part of them says it. ``None``: nothing does.
    """
    known = [w for w in KNOWN.values() if w.library == library and name in (w.name, w.name.partition(".")[0])]
    if known:
        return known[0].trained
    if library == "torchvision":
        return _IMAGENET
    classes = timm_weights(name).get("num_classes", 0)
    # CLIP's projections are no classifiers; ImageNet, its larger kin and JFT's have these numbers.
    return f"with labels of {classes:,} classes" if classes == 1000 or classes > 10_000 else None


# ------------------------------------------------------------------------------------------------------ preprocessing


@dataclass(frozen=True)
class Preprocessing:
    """How images must look to a network: what its weights were evaluated with."""

    size: int  # pixels a side
    resize: int | tuple[int, int]  # shorter side before the central crop, or both sides, whatever the proportions were
    interpolation: str
    mean: tuple[float, ...]  # of each channel, in [0, 1]
    std: tuple[float, ...]

    def transforms(self) -> list[dict[str, Any]]:
        """Return the transforms, as a view has them; they end in float32 images."""
        resize = self.resize if isinstance(self.resize, int) else list(self.resize)
        return [
            {"type": "Resize", "size": resize, "interpolation": self.interpolation},
            {"type": "CenterCrop", "size": self.size},
            {"type": "ToFloat"},
            {"type": "Normalize", "mean": list(self.mean), "std": list(self.std)},
        ]

    def __str__(self) -> str:
        side = (
            f"shorter side {self.resize}"
            if isinstance(self.resize, int)
            else f"squeezed to {self.resize[0]}×{self.resize[1]}"
        )
        mean, std = (" ".join(f"{x:.3f}" for x in numbers) for numbers in (self.mean, self.std))
        return f"{self.size}×{self.size} pixels ({side}, {self.interpolation}), mean {mean}, std {std}"


def describe(backbone: Mapping[str, Any], size: int | None = None) -> Preprocessing:
    """Return what the weights of a backbone want to see, by its library's description of them.

    Args:
        backbone: config of a ``TimmBackbone`` or ``TorchvisionBackbone``. With ``weights``, a file, it is what the
            library's weights of this name want.
        size: pixels of the shorter side and of the crop; by default ``image_size`` of the backbone, and where that is
            not given either what the weights were trained for. These two keep the share that is cropped.

    Raises:
        InputError: for a backbone of another type, an unknown name, or images that are not square.
    """
    kind, name = backbone.get("type"), backbone.get("name")
    if kind in _LIBRARIES.values() and not isinstance(name, str):
        raise InputError(f"backbone '{kind}' needs the option 'name'")
    if kind not in _LIBRARIES.values():
        raise InputError(
            f"AsPretrained is for {' and '.join(_LIBRARIES.values())}, whose libraries say what weights want; for "
            f"'{kind}' write Resize, CenterCrop, ToFloat and Normalize into data.views"
        )
    told = _timm_wants(str(name)) if kind == "TimmBackbone" else _torchvision_wants(str(name))
    wanted = size or backbone.get("image_size")
    if wanted is not None:
        shorter = told.resize if isinstance(told.resize, int) else told.resize[0]
        shorter = wanted if size else math.floor(wanted * shorter / told.size)
        told = replace(told, size=wanted, resize=shorter if isinstance(told.resize, int) else (shorter, shorter))
    channels = backbone.get("in_channels", 3)
    if channels == len(told.mean):
        return told
    mean, std = ((sum(numbers) / len(numbers),) * channels for numbers in (told.mean, told.std))
    return replace(told, mean=mean, std=std)


def _timm_wants(name: str) -> Preprocessing:
    weights = timm_weights(name)
    config = timm_library().data.resolve_data_config(pretrained_cfg=weights or {"input_size": (3, 224, 224)})
    height, width = config["input_size"][-2:]
    if height != width:
        raise InputError(f"timm's '{name}' takes images of {height}×{width} pixels: write its data.views by hand")
    resize = math.floor(height / config["crop_pct"])
    both = config["crop_mode"] == "squash"
    return Preprocessing(
        height, (resize, resize) if both else resize, config["interpolation"], config["mean"], config["std"]
    )


def _torchvision_wants(name: str) -> Preprocessing:
    _, weights = torchvision_weights(name)
    preset: Any = weights.value.transforms()
    (size,), (resize,) = preset.crop_size, preset.resize_size
    return Preprocessing(size, resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))
