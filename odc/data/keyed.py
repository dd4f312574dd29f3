"""Transforms that take a batch of images at once, on any device: two of ours, and forms of torchvision's v2.

What happens to an image is a function of its own key, whatever batch it is in, on the CPU as on a GPU, up to the
rounding of floating-point sums. The distribution of what comes out is that of v2, the numbers drawn are others. Where
v2 turns an image into integers again after each transform, so do these: uint8 stays uint8 until ``ToFloat``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from odc.data import pixels
from odc.data.keys import Draws
from odc.data.pixels import affine, blurring, like, resampling, sample, separable, update
from odc.data.transforms import KeyedTransform, PixelTransform, VariantTransform, require_uint8
from odc.errors import InputError
from odc.registry import TRANSFORMS
from odc.structures import on_gpu

Op = Callable[[Tensor, Draws, Tensor], Tensor]  # images (B, C, H, W), draws, variants (B,) -> images (B, C', H', W')

MAX_SMALL = 64  # pixels a side: up to here products of matrices for all images are faster than slices of each


@TRANSFORMS.register_module()
class Cutout(KeyedTransform):
    """Fill a square whose side is drawn from ``size`` and whose centre from the image; it is cut off at the border.

    ``size`` is the least and the largest side in pixels, both inclusive; ``fill`` is of the image's own range.
    """

    def __init__(self, size: tuple[int, int] = (1, 16), fill: float = 0) -> None:
        if not 1 <= size[0] <= size[1]:
            raise InputError(f"Cutout needs 1 <= least <= largest side, got {size}")
        (self.least, self.largest), self.fill = size, fill

    def batch(self, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        """Return the images (B, C, H, W), each with its square filled."""
        side = self.least + draws.integer(self.largest - self.least + 1)
        inside = []
        for length in images.shape[-2:]:
            first = (draws.integer(length) - side // 2)[:, None]
            position = torch.arange(length, device=images.device)
            inside.append((position >= first) & (position < first + side[:, None]))
        fill = self.fill if images.is_floating_point() else int(self.fill)
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], fill)


Change = Callable[[Tensor, Tensor], Tensor]  # images (b, C, H, W) uint8, magnitudes (b,) float64 -> the same images


def _each(images: Tensor, which: Tensor, magnitude: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return every image changed by the one of ``changes`` that ``which`` (B,) says, by its ``magnitude`` (B,)."""
    if on_gpu(images):  # all by each: as many kernels, and no sizes of groups to wait for
        out = images
        for number, change in enumerate(changes):
            out = torch.where((which == number)[:, None, None, None], change(images, magnitude), out)
        return out
    which, rows = which.sort()
    images, magnitude = images.index_select(0, rows), magnitude[rows]
    counts = torch.bincount(which, minlength=len(changes)).tolist()
    parts = zip(changes, images.split(counts), magnitude.split(counts), strict=True)
    return torch.cat([change(*part) for change, *part in parts if len(part[0])]).index_select(0, rows.argsort())


def _slope(m: Tensor) -> Tensor:
    return m.atan().rad2deg()


def _colouring(change: Callable[[Tensor, Tensor, float], None]) -> Change:
    def of(images: Tensor, m: Tensor) -> Tensor:
        if change is pixels.saturation and images.shape[1] == 1:
            return images
        x = images.to(torch.float32, copy=True)
        change(x, m[:, None, None, None], 255.0)
        return x.to(images.dtype)

    return of


def _sharpness(x: Tensor, factor: Tensor, bound: float) -> None:
    inside = x[..., 1:-1, 1:-1]
    if inside.numel():  # v2's kernel, whose result is rounded; the border stays
        H, W = inside.shape[-2:]
        blurred = 4 * inside + sum(x[..., i : i + H, j : j + W] for i in range(3) for j in range(3))
        inside.add_(blurred.div_(13).round_().sub_(inside).mul_(1 - factor.to(torch.float32)))
    x.clamp_(0, bound)


def _solarize(images: Tensor, m: Tensor) -> Tensor:
    return torch.where(images >= m[:, None, None, None], 255 - images, images)


def _posterize(images: Tensor, m: Tensor) -> Tensor:
    mask = 256 - 2 ** (8 - m.long())
    return images & mask.to(torch.uint8)[:, None, None, None]


# name: (least magnitude, largest, change); of shifts and slopes they are shares of the image
OPS: dict[str, tuple[float, float, Change]] = {
    "identity": (0, 1, lambda images, m: images),
    "autocontrast": (0, 1, lambda images, m: F.autocontrast(images)),
    "equalize": (0, 1, lambda images, m: F.equalize(images)),
    "rotate": (-30, 30, lambda images, m: affine(images, angle=-m)),
    "solarize": (0, 255, _solarize),
    "saturation": (0.05, 0.95, _colouring(pixels.saturation)),
    "contrast": (0.05, 0.95, _colouring(pixels.contrast)),
    "brightness": (0.05, 0.95, _colouring(pixels.brightness)),
    "sharpness": (0.05, 0.95, _colouring(_sharpness)),
    "posterize": (4, 8, _posterize),
    "shear_x": (-0.1, 0.1, lambda images, m: affine(images, shear_x=_slope(m))),
    "shear_y": (-0.1, 0.1, lambda images, m: affine(images, shear_y=_slope(m))),
    "translate_x": (-0.1, 0.1, lambda images, m: affine(images, shift_x=(m * images.shape[-1]).round())),
    "translate_y": (-0.1, 0.1, lambda images, m: affine(images, shift_y=(m * images.shape[-2]).round())),
}


@TRANSFORMS.register_module()
class RandomOps(KeyedTransform):
    """Apply ``n`` operations drawn with replacement from 14, each with a magnitude drawn uniformly from its range.

    The strong augmentation of SPICE-Self: identity, auto-contrast, equalise, rotate, solarise, colour, contrast,
    brightness, sharpness, posterise, and shear and translate along either axis. For uint8 images of 1 or 3 channels;
    what geometry leaves empty is black.
    """

    def __init__(self, n: int = 4) -> None:
        if n < 1:
            raise InputError(f"RandomOps needs n >= 1, got {n}")
        self.n = n

    def batch(self, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        """Return the images, uint8 (B, C, H, W)."""
        require_uint8(images, "RandomOps")
        *ends, changes = zip(*OPS.values(), strict=True)
        low, high = (pixels.constant(end, images, torch.float64) for end in ends)
        for _ in range(self.n):
            which, share = draws.integer(len(changes)), draws.number()
            images = _each(images, which, low[which] + share * (high - low)[which], changes)
        return images


# -- torchvision's v2: what it has checked and parsed, applied to a batch ----------------------------------------------

Form = Callable[[Any, Tensor, Draws, Tensor], Tensor]  # the transform, images, draws, variants -> images


def _random_flip(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    return update(images, draws.number() < transform.p, lambda some, index: some.flip(-1))


def _random_grayscale(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    return update(images, draws.number() < transform.p, lambda some, index: F.rgb_to_grayscale(some, some.shape[1]))


def _random_solarize(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    return update(images, draws.number() < transform.p, lambda some, index: F.solarize(some, transform.threshold))


def _random_crop(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    height, width = transform.size
    left, right, top, bottom = transform.padding or (0, 0, 0, 0)
    if transform.pad_if_needed:
        # v2 adds all that is missing to either side
        more = max(height - (images.shape[-2] + top + bottom), 0)
        top, bottom = top + more, bottom + more
        more = max(width - (images.shape[-1] + left + right), 0)
        left, right = left + more, right + more
    if left or right or top or bottom:
        images = F.pad(images, [left, top, right, bottom], fill=transform.fill, padding_mode=transform.padding_mode)
    spare = images.shape[-2] - height, images.shape[-1] - width
    if min(spare) < 0:
        raise ValueError(f"the crop of {(height, width)} is larger than the image, {tuple(images.shape[-2:])} padded")
    first, second = draws.integer(spare[0] + 1), draws.integer(spare[1] + 1)
    if max(height, width) > MAX_SMALL:
        places = zip(images, first.tolist(), second.tolist(), strict=True)
        return torch.stack([image[:, y : y + height, x : x + width] for image, y, x in places])
    windows = images.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, first, second].contiguous()


def _random_resized_crop(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    H, W = images.shape[-2:]
    low, high = min(transform.ratio), max(transform.ratio)
    drawn = draws.uniform(22)  # at once: one image at a time, drawing takes as long as resizing
    (least, most), (narrow, wide) = transform.scale, map(math.log, transform.ratio)
    area = (drawn[:, :10] * (most - least) + least) * (H * W)
    ratio = (drawn[:, 10:20] * (wide - narrow) + narrow).exp_()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
    first = fits.long().argmax(1, keepdim=True)
    # where none of ten tries fits: the largest crop of an allowed ratio, in the middle
    shape = W / H
    middle_width = float(round(H * high) if shape > high else W)
    middle_height = float(round(W / low) if shape < low else H)
    found = fits.any(1)
    width = torch.where(found, width.gather(1, first)[:, 0], middle_width)
    height = torch.where(found, height.gather(1, first)[:, 0], middle_height)
    top = torch.where(found, drawn[:, 20] * (H - height + 1), (H - height) / 2).long()
    left = torch.where(found, drawn[:, 21] * (W - width + 1), (W - width) / 2).long()
    if max(H, W) <= MAX_SMALL and _mode(transform) == "bilinear" and transform.antialias is True:
        rows = resampling(top, height, H, transform.size[0])
        return like(separable(images, rows, resampling(left, width, W, transform.size[1])), images)
    options = {"interpolation": transform.interpolation, "antialias": transform.antialias}
    places = torch.stack((top, left, height.long(), width.long()), 1).tolist()
    parts = zip(images, places, strict=True)
    return torch.stack([F.resized_crop(image, *place, list(transform.size), **options) for image, place in parts])


def _random_affine(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    of = {"angle": draws.number(*transform.degrees)}
    if transform.translate is not None:
        for name, share, length in zip(("shift_x", "shift_y"), transform.translate, images.shape[:-3:-1], strict=True):
            of[name] = draws.number(-share * length, share * length).round()
    if transform.scale is not None:
        of["scale"] = draws.number(*transform.scale)
    if transform.shear is not None:
        of["shear_x"] = draws.number(*transform.shear[:2])
        if len(transform.shear) == 4:
            of["shear_y"] = draws.number(*transform.shear[2:])
    return affine(images, _mode(transform), transform.fill, transform.center, **of)


def _random_rotation(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    # v2 turns this way in one and the other way in the other
    angle = -draws.number(*transform.degrees)
    return affine(images, _mode(transform), transform.fill, transform.center, angle=angle)


def _elastic(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    H, W = images.shape[-2:]
    noise = draws.uniform(2 * H * W, -1.0, 1.0).to(torch.float32).view(-1, 2, H, W)
    moved = []
    for axis, length in enumerate((W, H)):  # x, then y
        part = noise[:, axis : axis + 1]
        if transform.sigma[axis] > 0:
            size = int(8 * transform.sigma[axis] + 1) | 1
            sigma_x, sigma_y = pixels.constant(transform.sigma, images)[:, None]
            part = separable(part, blurring(sigma_y, size, H), blurring(sigma_x, size, W))
        moved.append(part[:, 0] * (transform.alpha[axis] / length))
    x = (torch.arange(W, device=images.device) * 2 + 1 - W) / W
    y = (torch.arange(H, device=images.device) * 2 + 1 - H) / H
    grid = torch.stack((moved[0] + x, moved[1] + y[:, None]), dim=-1)
    return sample(images, grid, _mode(transform), transform.fill)


def _gaussian_blur(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    width, height = transform.kernel_size  # v2 takes the first for the width
    sigma = draws.number(*transform.sigma).to(torch.float32)
    rows = blurring(sigma, height, images.shape[-2])
    return like(separable(images, rows, blurring(sigma, width, images.shape[-1])), images)


def _gaussian_noise(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    noise = draws.normal(images[0].numel()).view(images.shape)
    if images.is_floating_point():
        out: Tensor = images + (transform.mean + noise * transform.sigma)
        return out.clamp_(0, 1) if transform.clip else out
    whole: Tensor = images + (transform.mean * 255 + noise * (transform.sigma * 255)).to(torch.int16)
    return (whole.clamp_(0, 255) if transform.clip else whole).to(torch.uint8)


def _color_jitter(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise InputError(f"ColorJitter takes images of 1 or 3 channels, not of {images.shape[1]}")
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    changes = (pixels.brightness, pixels.contrast, pixels.saturation, pixels.hue)
    order = draws.uniform(4).argsort(1)
    factors = {
        number: draws.number(*bounds)[:, None, None, None] for number, bounds in enumerate(ranges) if bounds is not None
    }
    if images.shape[1] == 1:  # grey: neither saturation nor hue
        factors = {number: factor for number, factor in factors.items() if number < 2}
    bound = 1.0 if images.is_floating_point() else 255.0
    x = images.to(torch.float32, copy=True)

    def changed(some: Tensor, number: int, factor: Tensor) -> None:
        changes[number](some, factor, bound)
        if not images.is_floating_point():
            some.floor_()

    if on_gpu(images):  # as in `_each`
        for place in range(4):
            before = x
            for number, factor in factors.items():
                some = before.clone()
                changed(some, number, factor)
                x = torch.where((order[:, place] == number)[:, None, None, None], some, x)
        return x.to(images.dtype)
    now = torch.arange(len(images), device=images.device)  # which image is in each row of x
    for place in range(4):
        # rows that are to undergo the same change come to lie together
        which, rows = order[now, place].sort()
        x, now = x.index_select(0, rows), now[rows]
        ends = [0, *torch.bincount(which, minlength=4).cumsum(0).tolist()]
        for number, factor in factors.items():
            start, end = ends[number : number + 2]
            if start < end:
                changed(x[start:end], number, factor[now[start:end]])
    return x.index_select(0, now.argsort()).to(images.dtype)


def _random_apply(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    def change(some: Tensor, index: Tensor) -> Tensor:
        own = draws.at(index)
        for number, part in enumerate(transform.transforms):
            some = keyed_form(part)(some, own.child(number), variants[index])
        return some

    return update(images, draws.number() < transform.p, change)


def _rand_augment(transform: Any, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    require_uint8(images, "RandAugment")
    move = functools.partial(affine, mode=_mode(transform), fill=transform.fill)
    # v2's magnitudes are differences from the operation's neutral factor, and shares of what a pixel can be
    changes: dict[str, Change] = {
        "Identity": OPS["identity"][2],
        "ShearX": lambda images, m: move(images, center=(0, 0), shear_x=_slope(m)),
        "ShearY": lambda images, m: move(images, center=(0, 0), shear_y=_slope(m)),
        "TranslateX": lambda images, m: move(images, shift_x=m.trunc()),
        "TranslateY": lambda images, m: move(images, shift_y=m.trunc()),
        "Rotate": lambda images, m: move(images, angle=-m),
        "Brightness": lambda images, m: OPS["brightness"][2](images, 1 + m),
        "Color": lambda images, m: OPS["saturation"][2](images, 1 + m),
        "Contrast": lambda images, m: OPS["contrast"][2](images, 1 + m),
        "Sharpness": lambda images, m: OPS["sharpness"][2](images, 1 + m),
        "Posterize": OPS["posterize"][2],
        "Solarize": lambda images, m: OPS["solarize"][2](images, 255 * m),
        "AutoContrast": OPS["autocontrast"][2],
        "Equalize": OPS["equalize"][2],
    }
    space = transform._AUGMENTATION_SPACE
    bins = [bins_of(transform.num_magnitude_bins, *images.shape[-2:]) for bins_of, _ in space.values()]
    sizes = [0.0 if b is None else float(b[transform.magnitude]) for b in bins]
    magnitude = pixels.constant(sizes, images, torch.float64)
    signed = pixels.constant([both for _, both in space.values()], images, torch.bool)
    for _ in range(transform.num_ops):
        which, coin = draws.integer(len(space)), draws.number()
        m = torch.where(signed[which] & (coin < 0.5), -magnitude[which], magnitude[which])
        images = _each(images, which, m, [changes[name] for name in space])
    return images


_FORMS: dict[type, Form] = {
    v2.ColorJitter: _color_jitter,
    v2.ElasticTransform: _elastic,
    v2.GaussianBlur: _gaussian_blur,
    v2.GaussianNoise: _gaussian_noise,
    v2.RandAugment: _rand_augment,
    v2.RandomAffine: _random_affine,
    v2.RandomApply: _random_apply,
    v2.RandomCrop: _random_crop,
    v2.RandomGrayscale: _random_grayscale,
    v2.RandomHorizontalFlip: _random_flip,
    v2.RandomResizedCrop: _random_resized_crop,
    v2.RandomRotation: _random_rotation,
    v2.RandomSolarize: _random_solarize,
}
_WITHOUT_CHANCE = (v2.CenterCrop, v2.Resize)
_FIXED = (*_WITHOUT_CHANCE, v2.Grayscale, v2.Identity, v2.Normalize, v2.Pad, v2.ToDtype, v2.ToImage)
_SAMPLING = (v2.ElasticTransform, v2.RandAugment, v2.RandomAffine, v2.RandomRotation)


def keyed_form(transform: Any) -> Op:
    """Return what a transform that has no :func:`obstacle` does to a batch."""
    if isinstance(transform, KeyedTransform):
        return transform.batch
    if isinstance(transform, (PixelTransform, *_WITHOUT_CHANCE)):
        return lambda images, draws, variants: transform(images)
    if isinstance(transform, VariantTransform):
        return functools.partial(_by_variant, transform)
    return functools.partial(_FORMS[type(transform)], transform)


def without_chance(transform: Any) -> bool:
    """Return whether a transform is known to do the same to an image whenever it is asked."""
    return isinstance(transform, PixelTransform | VariantTransform) or type(transform) in _FIXED


def obstacle(transform: Any) -> str | None:
    """Return why a transform has no form for batches, its name with the option in the way, or ``None`` if it has."""
    if isinstance(transform, (KeyedTransform, PixelTransform, VariantTransform)) or type(transform) in _WITHOUT_CHANCE:
        return None
    name = getattr(transform, "__name__", type(transform).__name__)
    if type(transform) not in _FORMS:
        return str(name)
    if isinstance(transform, v2.RandomApply):
        inner = next(filter(None, map(obstacle, transform.transforms)), None)
        return inner and f"{name} of {inner}"
    odd = isinstance(getattr(transform, "fill", None), dict) or getattr(transform, "expand", False)
    if isinstance(transform, _SAMPLING):
        odd |= _mode(transform) not in ("nearest", "bilinear")
    if isinstance(transform, v2.ElasticTransform):  # v2 takes both sigmas for either axis, and refuses a 0
        odd |= (transform.sigma[0] > 0) != (transform.sigma[1] > 0)
    return f"{name} with these options" if odd else None


def _by_variant(transform: VariantTransform, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    if on_gpu(images) and transform.period is not None:
        parts = [transform(images, variant) for variant in range(transform.period)]
        if all(part.shape == images.shape for part in parts):
            for variant, part in enumerate(parts):
                images = torch.where((variants % transform.period == variant)[:, None, None, None], part, images)
            return images
    places = {variant: (variants == variant).nonzero()[:, 0] for variant in variants.unique().tolist()}
    parts = [transform(images.index_select(0, place), variant) for variant, place in places.items()]
    return torch.cat(parts).index_select(0, torch.cat([*places.values()]).argsort())


def _mode(transform: Any) -> str:
    mode = transform.interpolation
    return str(mode.value if isinstance(mode, InterpolationMode) else mode)
