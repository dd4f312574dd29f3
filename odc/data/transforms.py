"""From a raw image to one view of it: torchvision's v2 transforms by name, and what they lack.

A view is a list of configs, run in order::

    [dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip"), dict(type="ToFloat")]

What torchvision calls, and how images draw, is in :mod:`odc.data.keyed` and :mod:`odc.data.pipeline`.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from odc.data.keys import Draws
from odc.errors import InputError, nearest
from odc.registry import TRANSFORMS


class PixelTransform(ABC):
    """A transform without chance that takes (..., C, H, W) on any device, each image on its own to the last bit."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the transformed images, (..., C', H, W)."""


class VariantTransform(ABC):
    """A transform that the row's variant decides, without chance; it can stand in a view, not inside another transform.

    It takes (..., C, H, W) on any device, as :class:`PixelTransform` does.
    """

    period: int | None = None  # after so many variants it repeats; None: nobody knows

    @abstractmethod
    def __call__(self, images: Tensor, variant: int) -> Tensor:
        """Return the images (..., C, H, W) transformed by ``variant``."""


class KeyedTransform(ABC):
    """A transform that draws for every image from a stream of the image's own, for a batch at a time on any device."""

    @abstractmethod
    def batch(self, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        """Return ``images`` (B, C, H, W), not to be changed, transformed; their ``variants`` are (B,) int64."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return one image (C, H, W) transformed, drawn from torch's default generator: as part of a v2 transform."""
        key = torch.randint(2**62, (1,))
        return self.batch(image[None], Draws(key), torch.zeros_like(key))[0]


@TRANSFORMS.register_module()
class ToFloat(PixelTransform):
    """Scale uint8 to float32 in [0, 1]; float images pass as they are."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape."""
        return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


@TRANSFORMS.register_module()
class Normalize(PixelTransform):
    """Subtract ``mean`` and divide by ``std`` > 0, one number a channel; refuses uint8 images."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(f"Normalize needs a mean and a std > 0 for every channel, got {mean} and {std}")
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape."""
        _require_float(images, "Normalize")
        if images.shape[-3] != len(self.mean):
            raise InputError(f"Normalize has {len(self.mean)} means but the image has {images.shape[-3]} channels")
        mean, std = (x.to(images.device, non_blocking=True) for x in (self.mean, self.std))
        return (images - mean) / std


@TRANSFORMS.register_module()
class Sobel(PixelTransform):
    """Replace colours by two gradients: the mean of the channels, then Sobel's 3×3 kernels on a zero border.

    The fixed first layer of DeepCluster: (..., C, H, W) float to (..., 2, H, W), horizontal and vertical.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return float images (..., 2, H, W)."""
        _require_float(images, "Sobel")
        # sums of slices, in a fixed order, keep every image's bits its own, as a reduction or convolution might not
        grey = functools.reduce(torch.add, images.unbind(-3)) / images.shape[-3]
        x = torch.nn.functional.pad(grey, (1, 1, 1, 1))
        # both kernels separate into a difference and a (1, 2, 1) sum
        across = x[..., :-2] - x[..., 2:]
        down = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        horizontal = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        vertical = down[..., :-2, :] - down[..., 2:, :]
        return torch.stack((horizontal, vertical), dim=-3)


@TRANSFORMS.register_module()
class Rotate90(VariantTransform):
    """Rotate square images by 90° × the row's variant, anti-clockwise; refuses others."""

    period = 4

    def __call__(self, images: Tensor, variant: int) -> Tensor:
        """Return the rotated images (..., C, H, H)."""
        if images.shape[-1] != images.shape[-2]:
            shape = tuple(images.shape[-3:])
            raise InputError(f"Rotate90 needs square images, got {shape}; put a square crop before it")
        return torch.rot90(images, variant, (-2, -1))


def build_transform(config: Mapping[str, Any] | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Build one transform: ours or a registered one by its name, else torchvision's v2.

    An argument ``transforms`` holds configs itself (``RandomApply``, ``RandomChoice``, ...), and ``interpolation`` may
    be given by name, as ``"bicubic"``. A callable is returned as it is.

    Raises InputError for an unknown transform or argument, or a value that the transform refuses.
    """
    if not isinstance(config, Mapping):
        return config
    arguments = dict(config)
    name = arguments.pop("type", None)
    kind = _known().get(name) if isinstance(name, str) else name
    if kind is None:
        raise InputError(f"no transform '{name}'{nearest(str(name), _known())}")
    label = getattr(kind, "__name__", str(kind))
    parameters = inspect.signature(kind).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for argument in arguments:
            if argument not in parameters:
                raise InputError(f"{label} has no argument '{argument}'{nearest(argument, parameters)}")
    if isinstance(mode := arguments.get("interpolation"), str):
        modes = {mode.value: mode for mode in InterpolationMode}
        if mode not in modes:
            raise InputError(f"{label} has no interpolation '{mode}'{nearest(mode, modes)}")
        arguments["interpolation"] = modes[mode]
    if "transforms" in arguments:
        arguments["transforms"] = [build_transform(inner) for inner in arguments["transforms"]]
        if any(isinstance(inner, VariantTransform) for inner in arguments["transforms"]):
            raise InputError(f"{label} cannot hold a transform that the row's variant decides; put it in the view")
    try:
        built: Callable[..., Tensor] = kind(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{label}: {str(error).splitlines()[0]}") from error
    return built


def _known() -> dict[str, Callable[..., Any]]:
    """Return every transform by name; where names are equal, ours wins over torchvision's."""
    classes = {name: kind for name, kind in vars(v2).items() if inspect.isclass(kind) and kind is not v2.Transform}
    theirs = {name: kind for name, kind in classes.items() if issubclass(kind, v2.Transform)}
    inherited = {} if TRANSFORMS.parent is None else TRANSFORMS.parent.module_dict
    return {**inherited, **theirs, **TRANSFORMS.module_dict}


def require_uint8(images: Tensor, name: str) -> None:
    """Raise :class:`InputError` if the images that the transform ``name`` gets are no longer whole numbers."""
    if images.dtype != torch.uint8:
        raise InputError(f"{name} needs uint8 images, got {images.dtype}; put it before ToFloat")


def _require_float(images: Tensor, name: str) -> None:
    if not images.is_floating_point():
        raise InputError(f"{name} needs float images, got {images.dtype}; put dict(type='ToFloat') before it")
