"""From a raw image to one view of it: torchvision's v2 transforms by name, and what they lack.

A view is a list of configs, run in order::

    [dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip"), dict(type="ToFloat")]

Every transform draws from torch's default generator alone, which :mod:`odc.data.views` seeds for each image.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from odc.errors import InputError, nearest
from odc.registry import TRANSFORMS


class PixelTransform(ABC):
    """A transform without chance that takes (..., C, H, W) on any device, each image on its own to the last bit.

    At the end of a view such transforms run once for the whole batch.
    """

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the transformed images, (..., C', H, W)."""


class VariantTransform(ABC):
    """A transform that the row's variant decides; it can stand in a view, not inside another transform."""

    @abstractmethod
    def __call__(self, image: Tensor, variant: int) -> Tensor:
        """Return the image (C, H, W) transformed by ``variant``."""


@TRANSFORMS.register_module()
class ToFloat(PixelTransform):
    """Scale uint8 to float32 in [0, 1]; float images pass as they are."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape."""
        return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


@TRANSFORMS.register_module()
class Normalize(PixelTransform):
    """Subtract ``mean`` and divide by ``std``, one number a channel.

    Raises:
        InputError: the numbers of means, deviations and channels differ, a deviation is not > 0, or images are uint8.
    """

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
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


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
    """Rotate square images by 90° × the row's variant, anti-clockwise.

    Raises:
        InputError: the image is not square.
    """

    def __call__(self, image: Tensor, variant: int) -> Tensor:
        """Return the rotated image (C, H, H)."""
        if image.shape[-1] != image.shape[-2]:
            raise InputError(f"Rotate90 needs square images, got {tuple(image.shape)}; put a square crop before it")
        return torch.rot90(image, variant, (-2, -1))


@TRANSFORMS.register_module()
class Cutout:
    """Fill a square whose side is drawn from ``size`` and whose centre from the image; it is cut off at the border.

    Args:
        size: least and largest side in pixels, both inclusive.
        fill: value of the filled pixels, of the image's own range.
    """

    def __init__(self, size: tuple[int, int] = (1, 16), fill: float = 0) -> None:
        if not 1 <= size[0] <= size[1]:
            raise InputError(f"Cutout needs 1 <= least <= largest side, got {size}")
        self.least, self.largest = size
        self.fill = fill

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image (C, H, W) with the square filled."""
        height, width = image.shape[-2:]
        side, y, x = _draw_int(self.least, self.largest), _draw_int(0, height - 1), _draw_int(0, width - 1)
        top, left = y - side // 2, x - side // 2
        image = image.clone()
        image[..., max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = self.fill
        return image


@TRANSFORMS.register_module()
class RandomOps:
    """Apply ``n`` operations drawn with replacement from 14, each with a magnitude drawn uniformly from its range.

    The strong augmentation of SPICE-Self: identity, auto-contrast, equalise, rotate, solarise, colour, contrast,
    brightness, sharpness, posterise, and shear and translate along either axis. For uint8 images of 1 or 3 channels;
    what geometry leaves empty is black.
    """

    def __init__(self, n: int = 4) -> None:
        if n < 1:
            raise InputError(f"RandomOps needs n >= 1, got {n}")
        self.n = n

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, uint8 (C, H, W)."""
        require_uint8(image, "RandomOps")
        operations = tuple(OPS.values())
        chosen = torch.randint(len(operations), (self.n,)).tolist()
        for index, share in zip(chosen, torch.rand(self.n, dtype=torch.float64).tolist(), strict=True):
            low, high, operation = operations[index]
            image = operation(image, low + share * (high - low))
        return image


def _affine(x: Tensor, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    """Shift by shares of the width and height, shear by slopes; a slope keeps the image's centre where it is."""
    height, width = x.shape[-2:]
    pixels = [round(shift[0] * width), round(shift[1] * height)]
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    out: Tensor = F.affine(x, angle=0.0, translate=pixels, scale=1.0, shear=degrees)
    return out


# name: (least magnitude, largest, operation)
OPS: dict[str, tuple[float, float, Callable[[Tensor, float], Tensor]]] = {
    "identity": (0, 1, lambda x, m: x),
    "autocontrast": (0, 1, lambda x, m: F.autocontrast(x)),
    "equalize": (0, 1, lambda x, m: F.equalize(x)),
    "rotate": (-30, 30, lambda x, m: F.rotate(x, m)),
    "solarize": (0, 255, lambda x, m: F.solarize(x, m)),
    "saturation": (0.05, 0.95, lambda x, m: F.adjust_saturation(x, m)),
    "contrast": (0.05, 0.95, lambda x, m: F.adjust_contrast(x, m)),
    "brightness": (0.05, 0.95, lambda x, m: F.adjust_brightness(x, m)),
    "sharpness": (0.05, 0.95, lambda x, m: F.adjust_sharpness(x, m)),
    "posterize": (4, 8, lambda x, m: F.posterize(x, int(m))),
    "shear_x": (-0.1, 0.1, lambda x, m: _affine(x, shear=(m, 0))),
    "shear_y": (-0.1, 0.1, lambda x, m: _affine(x, shear=(0, m))),
    "translate_x": (-0.1, 0.1, lambda x, m: _affine(x, shift=(m, 0))),
    "translate_y": (-0.1, 0.1, lambda x, m: _affine(x, shift=(0, m))),
}


class Pipeline:
    """One view: transforms in order.

    Calling it runs all on one image. :meth:`augment` and :meth:`finish` are its two parts, for batches: what draws or
    may change the size, image by image; then the pixel transforms at the end, once.

    Args:
        transforms: configs (``dict(type=..., **arguments)``) or callables from image to image.

    Attributes:
        transforms: the transforms, built.

    Raises:
        InputError: unknown transform or argument, or a value that the transform refuses.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> None:
        built = [build_transform(transform) for transform in transforms]
        self.transforms = tuple(built)
        split = len(built)
        while split and isinstance(built[split - 1], PixelTransform):
            split -= 1
        self._each, self._batch = built[:split], built[split:]

    def __call__(self, image: Tensor, variant: int = 0) -> Tensor:
        """Return the view of one image, uint8 (C, H, W) to float32 (C', H', W')."""
        return self.finish(self.augment(image, variant))

    def augment(self, image: Tensor, variant: int) -> Tensor:
        """Return the image (C, H, W) after all but the closing pixel transforms.

        Raises:
            InputError: a transform fails on this image, or gives something else than one image.
        """
        for transform in self._each:
            try:
                image = transform(image, variant) if isinstance(transform, VariantTransform) else transform(image)
            except InputError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                raise InputError(
                    f"{type(transform).__name__} failed on an image {image.dtype} {tuple(image.shape)}: "
                    f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
                ) from error
            if not isinstance(image, Tensor) or image.ndim != 3:
                raise InputError(f"{type(transform).__name__} does not return one image (C, H, W): not for a view")
        return image

    def finish(self, images: Tensor) -> Tensor:
        """Return images (..., C, H, W) after the closing pixel transforms, float32.

        Raises:
            InputError: the result is not float32.
        """
        for transform in self._batch:
            images = transform(images)
        if images.dtype != torch.float32:
            raise InputError(f"a view gives {images.dtype}, not float32; add dict(type='ToFloat')")
        return images


def build_transform(config: Mapping[str, Any] | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Build one transform: ours or a registered one by its name, else torchvision's v2.

    An argument ``transforms`` holds configs itself (``RandomApply``, ``RandomChoice``, ...), and ``interpolation`` may
    be given by name, as ``"bicubic"``. A callable is returned as it is.

    Raises:
        InputError: unknown transform or argument, or a value that the transform refuses.
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
    if isinstance(arguments.get("interpolation"), str):
        modes = {mode.value: mode for mode in InterpolationMode}
        mode = arguments["interpolation"]
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
    theirs = {
        name: kind
        for name, kind in vars(v2).items()
        if inspect.isclass(kind) and issubclass(kind, v2.Transform) and kind is not v2.Transform
    }
    inherited = {} if TRANSFORMS.parent is None else TRANSFORMS.parent.module_dict
    return {**inherited, **theirs, **TRANSFORMS.module_dict}


def require_uint8(images: Tensor, name: str) -> None:
    """Raise :class:`InputError` if the images that the transform ``name`` gets are no longer whole numbers."""
    if images.dtype != torch.uint8:
        raise InputError(f"{name} needs uint8 images, got {images.dtype}; put it before ToFloat")


def _require_float(images: Tensor, name: str) -> None:
    if not images.is_floating_point():
        raise InputError(f"{name} needs float images, got {images.dtype}; put dict(type='ToFloat') before it")


def _draw_int(low: int, high: int) -> int:
    """Draw from low..high, both inclusive."""
    return int(torch.randint(low, high + 1, ()))
