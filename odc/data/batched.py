"""Views of many small images at once, on any device: the transforms of :mod:`odc.data.transforms`, batch by batch.

The configs are the same, and so is the distribution of what comes out; the numbers drawn are others. Torch's
generators draw for one image after another, so here a counter-based generator, SplitMix64 over (key, draw), takes
their place: what happens to an image is a function of its own key, whatever batch it is in, on the CPU as on a GPU,
up to the rounding of floating-point sums.

Where v2 turns an image into integers again after each transform, so do these: uint8 stays uint8 until ``ToFloat``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from odc.data.keys import FIRST, GAMMA, SECOND, mix
from odc.data.transforms import OPS, Cutout, PixelTransform, RandomOps, Rotate90, build_transform, require_uint8
from odc.errors import InputError

_CHUNK = 256  # images at a time on the CPU: what is between two transforms stays in its cache


class Draws:
    """Random numbers for B images, image by image a function of its key: SplitMix64 of key and counter.

    Args:
        keys: (B,) int64.
    """

    def __init__(self, keys: Tensor) -> None:
        self._state = _finalise(keys + _signed(GAMMA))
        self._stream = 0
        self._next = 0

    def child(self, number: int) -> Draws:
        """Return the same images' stream ``number`` below this one, so that no transform shifts another's draws."""
        return self._derive(self._state, mix(self._stream, number))

    def at(self, index: Tensor) -> Draws:
        """Return the streams, from their start, of the images ``index`` (b,) int64."""
        return self._derive(self._state[index], self._stream)

    def bits(self, n: int) -> Tensor:
        """Return the next ``n`` draws of every image, (B, n) int64: 64 random bits each."""
        counter = torch.arange(self._next + 1, self._next + n + 1, device=self._state.device)
        self._next += n
        return _finalise(self._state[:, None] + (counter * _signed(GAMMA) + _signed(self._stream << 1)))

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers drawn uniformly from [low, high), (B, n) float64."""
        return _shift(self.bits(n), 11).to(torch.float64).mul_((high - low) * 2.0**-53).add_(low)

    def number(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return one number for every image, drawn uniformly from [low, high), (B,) float64."""
        return self.uniform(1, low, high)[:, 0]

    def integer(self, count: Tensor | int) -> Tensor:
        """Return one of 0..count-1 for every image, (B,) int64; ``count`` is one number or one an image."""
        return (self.number() * count).long()

    def normal(self, n: int) -> Tensor:
        """Return numbers from the standard normal distribution, (B, n) float32, by Box and Muller's transform."""
        bits = self.bits((n + 1) // 2)
        radius = _shift(bits, 32).add_(1).to(torch.float32).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
        return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :n]

    @staticmethod
    def _derive(state: Tensor, stream: int) -> Draws:
        out = Draws.__new__(Draws)
        out._state, out._stream, out._next = state, stream, 0
        return out


Op = Callable[[Tensor, Draws, Tensor], Tensor]  # images (B, C, H, W), draws, variants (B,) -> images (B, C', H', W')


class BatchedPipeline:
    """One view, for a batch of images at a time.

    Args:
        transforms: configs, or built transforms, as :class:`odc.data.transforms.Pipeline` takes them.

    Raises:
        InputError: as ``Pipeline``; or a transform has no form for batches (see :meth:`obstacle`).
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> None:
        self._ops: list[tuple[str, Op]] = []
        for transform in map(build_transform, transforms):
            op = _build(transform)
            if op is None:
                raise InputError(f"{_describe(transform)} has no form for batches; set data.batched=False")
            self._ops.append((type(transform).__name__, op))

    @staticmethod
    def obstacle(transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> str | None:
        """Return the first transform without a form for batches, with the option in the way, or ``None``."""
        for transform in map(build_transform, transforms):
            if _build(transform) is None:
                return _describe(transform)
        return None

    @staticmethod
    def supports(transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> bool:
        """Return whether a view of these transforms can be built."""
        return BatchedPipeline.obstacle(transforms) is None

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Tensor, variants: Tensor | None = None) -> Tensor:
        """Return the view of every image.

        Args:
            images: (B, C, H, W) uint8, B at least 1, on any device; they are not changed.
            keys: (B,) int64: what each image's augmentation is drawn from. No generator of torch's is used.
            variants: (B,) int64, each image's variant; ``None``: 0.

        Returns:
            (B, C', H', W') float32, on the device of the images.

        Raises:
            InputError: a transform fails on these images, or the result is not float32.
        """
        keys = keys.to(images.device)
        variants = torch.zeros_like(keys) if variants is None else variants.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            if images.device.type != "cpu" or len(images) <= _CHUNK:
                return self._run(images, keys, variants)
            parts = zip(images.split(_CHUNK), keys.split(_CHUNK), variants.split(_CHUNK), strict=True)
            return torch.cat([self._run(*part) for part in parts])

    def _run(self, images: Tensor, keys: Tensor, variants: Tensor) -> Tensor:
        draws = Draws(keys)
        for number, (name, op) in enumerate(self._ops):
            images = _checked(name, op, images, draws.child(number), variants)
        if images.dtype != torch.float32:
            raise InputError(f"a view gives {images.dtype}, not float32; add dict(type='ToFloat')")
        return images


def _checked(name: str, op: Op, images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
    """Run one transform; its errors become one line, as in ``Pipeline.augment``."""
    try:
        return op(images, draws, variants)
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} failed on an image {images.dtype} {tuple(images.shape[1:])}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


# -- one function a transform: the transform that v2 has checked and parsed, to its form for batches or None ----------


def _deterministic(transform: Any) -> Op:
    return lambda images, draws, variants: transform(images)


def _random_flip(dim: int) -> Callable[[Any], Op]:
    def build(transform: Any) -> Op:
        def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
            return _update(images, draws.number() < transform.p, lambda some, index: some.flip(dim))

        return op

    return build


def _random_pixels(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Any], Op]:
    """For transforms that change the images which chance picks by ``change(transform, images)``."""

    def build(transform: Any) -> Op:
        def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
            return _update(images, draws.number() < transform.p, lambda some, index: change(transform, some))

        return op

    return build


def _rotate90(transform: Rotate90) -> Op:
    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        if images.shape[-1] != images.shape[-2]:
            raise InputError(
                f"Rotate90 needs square images, got {tuple(images.shape[1:])}; put a square crop before it"
            )
        for quarter in (1, 2, 3):
            images = _update(images, variants % 4 == quarter, _quarter_turn(quarter))
        return images

    return op


def _quarter_turn(times: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, index: images.rot90(times, (-2, -1))


def _cutout(transform: Cutout) -> Op:
    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        side = transform.least + draws.integer(transform.largest - transform.least + 1)
        inside = []
        for length in images.shape[-2:]:
            first = (draws.integer(length) - side // 2)[:, None]
            position = torch.arange(length, device=images.device)
            inside.append((position >= first) & (position < first + side[:, None]))
        fill = transform.fill if images.is_floating_point() else int(transform.fill)
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], fill)

    return op


def _random_crop(transform: Any) -> Op | None:
    if isinstance(transform.fill, dict):
        return None
    height, width = transform.size

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        left, right, top, bottom = transform.padding or (0, 0, 0, 0)
        if transform.pad_if_needed:
            # by the whole of what lacks on either side, as v2
            more = max(height - (images.shape[-2] + top + bottom), 0)
            top, bottom = top + more, bottom + more
            more = max(width - (images.shape[-1] + left + right), 0)
            left, right = left + more, right + more
        if left or right or top or bottom:
            sides = [left, top, right, bottom]
            images = F.pad(images, sides, fill=transform.fill, padding_mode=transform.padding_mode)
        spare = images.shape[-2] - height, images.shape[-1] - width
        if min(spare) < 0:
            raise ValueError(
                f"the crop of {(height, width)} is larger than the image, {tuple(images.shape[-2:])} padded"
            )
        first, second = draws.integer(spare[0] + 1), draws.integer(spare[1] + 1)
        windows = images.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(images), device=images.device), :, first, second].contiguous()

    return op


def _random_resized_crop(transform: Any) -> Op | None:
    mode = _mode(transform)
    if mode not in ("bilinear", "bicubic") or transform.antialias is not True:
        return None
    low, high = min(transform.ratio), max(transform.ratio)

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        area = draws.uniform(10, *transform.scale) * (H * W)
        ratio = draws.uniform(10, math.log(transform.ratio[0]), math.log(transform.ratio[1])).exp_()
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
        top = torch.where(found, draws.integer(H - height + 1), (H - height).div(2, rounding_mode="floor").long())
        left = torch.where(found, draws.integer(W - width + 1), (W - width).div(2, rounding_mode="floor").long())
        rows = _resampling(top, height, H, transform.size[0], mode)
        columns = _resampling(left, width, W, transform.size[1], mode)
        return _like(_separable(images, rows, columns), images, clamp=mode == "bicubic")

    return op


def _random_affine(transform: Any) -> Op | None:
    mode = _mode(transform)
    if mode not in ("nearest", "bilinear") or isinstance(transform.fill, dict):
        return None

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        angle = draws.number(*transform.degrees)
        shift_x = shift_y = shear_x = shear_y = torch.zeros_like(angle)
        if transform.translate is not None:
            most_x, most_y = transform.translate[0] * W, transform.translate[1] * H
            shift_x, shift_y = draws.number(-most_x, most_x).round(), draws.number(-most_y, most_y).round()
        scale = torch.ones_like(angle) if transform.scale is None else draws.number(*transform.scale)
        if transform.shear is not None:
            shear_x = draws.number(*transform.shear[:2])
            if len(transform.shear) == 4:
                shear_y = draws.number(*transform.shear[2:])
        grid = _affine_grid(H, W, angle, (shift_x, shift_y), scale, (shear_x, shear_y), transform.center)
        return _sample(images, grid, mode, transform.fill)

    return op


def _random_rotation(transform: Any) -> Op | None:
    mode = _mode(transform)
    if mode not in ("nearest", "bilinear") or isinstance(transform.fill, dict) or transform.expand:
        return None

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        angle = draws.number(*transform.degrees)
        none = torch.zeros_like(angle)
        # v2 turns this way in one and the other way in the other
        grid = _affine_grid(H, W, -angle, (none, none), none + 1, (none, none), transform.center)
        return _sample(images, grid, mode, transform.fill)

    return op


def _elastic(transform: Any) -> Op | None:
    mode = _mode(transform)
    if mode not in ("nearest", "bilinear") or isinstance(transform.fill, dict):
        return None
    if (transform.sigma[0] > 0) != (transform.sigma[1] > 0):
        return None  # v2 takes both sigmas for either axis, and refuses a 0

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        noise = draws.uniform(2 * H * W, -1.0, 1.0).to(torch.float32).view(-1, 2, H, W)
        moved = []
        for axis, length in enumerate((W, H)):  # x, then y
            part = noise[:, axis : axis + 1]
            if transform.sigma[axis] > 0:
                size = int(8 * transform.sigma[axis] + 1) | 1
                sigma_x, sigma_y = torch.tensor(transform.sigma, dtype=torch.float32, device=images.device)[:, None]
                part = _separable(part, _blurring(sigma_y, size, H), _blurring(sigma_x, size, W))
            moved.append(part[:, 0] * (transform.alpha[axis] / length))
        x = (torch.arange(W, device=images.device) * 2 + 1 - W) / W
        y = (torch.arange(H, device=images.device) * 2 + 1 - H) / H
        grid = torch.stack((moved[0] + x, moved[1] + y[:, None]), dim=-1)
        return _sample(images, grid, mode, transform.fill)

    return op


def _gaussian_blur(transform: Any) -> Op:
    width, height = transform.kernel_size  # v2 takes the first for the width

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        sigma = draws.number(*transform.sigma).to(torch.float32)
        rows = _blurring(sigma, height, images.shape[-2])
        return _like(_separable(images, rows, _blurring(sigma, width, images.shape[-1])), images)

    return op


def _gaussian_noise(transform: Any) -> Op:
    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        noise = draws.normal(images[0].numel()).view(images.shape)
        if images.is_floating_point():
            out: Tensor = images + (transform.mean + noise * transform.sigma)
            return out.clamp_(0, 1) if transform.clip else out
        whole: Tensor = images + (transform.mean * 255 + noise * (transform.sigma * 255)).to(torch.int16)
        return (whole.clamp_(0, 255) if transform.clip else whole).to(torch.uint8)

    return op


def _color_jitter(transform: Any) -> Op:
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    changes = (_brightness, _contrast, _saturation, _hue)

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"ColorJitter takes images of 1 or 3 channels, not of {images.shape[1]}")
        order = draws.uniform(4).argsort(1)
        factors = [None if bounds is None else draws.number(*bounds)[:, None, None, None] for bounds in ranges]
        bound = 1.0 if images.is_floating_point() else 255.0
        x = images.to(torch.float32, copy=True)
        now = torch.arange(len(images), device=images.device)  # which image is in each row of x
        for place in range(4):
            # rows that are to undergo the same change come to lie together
            which, rows = order[now, place].sort()
            x, now = x.index_select(0, rows), now[rows]
            ends = [0, *torch.bincount(which, minlength=4).cumsum(0).tolist()]
            for change, factor, start, end in zip(changes, factors, ends, ends[1:], strict=False):
                # grey images have neither saturation nor hue
                if factor is None or start == end or (change in (_saturation, _hue) and x.shape[1] == 1):
                    continue
                part = x[start:end]
                change(part, factor[now[start:end]], bound)
                if not images.is_floating_point():
                    part.floor_()
        return x.index_select(0, now.argsort()).to(images.dtype)

    return op


def _random_apply(transform: Any) -> Op | None:
    inner = [_build(part) for part in transform.transforms]
    ops = [op for op in inner if op is not None]
    if len(ops) < len(inner):
        return None

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        def change(some: Tensor, index: Tensor) -> Tensor:
            own = draws.at(index)
            for number, part in enumerate(ops):
                some = part(some, own.child(number), variants[index])
            return some

        return _update(images, draws.number() < transform.p, change)

    return op


def _random_ops(transform: RandomOps) -> Op:
    ranges = torch.tensor([(low, high) for low, high, _ in OPS.values()], dtype=torch.float64)
    changes = [_CHANGES[name] for name in OPS]

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        require_uint8(images, "RandomOps")
        low, high = ranges.to(images.device).unbind(1)
        for _ in range(transform.n):
            which, share = draws.integer(len(changes)), draws.number()
            images = _each(images, which, low[which] + share * (high - low)[which], changes)
        return images

    return op


def _rand_augment(transform: Any) -> Op | None:
    mode = _mode(transform)
    if mode not in ("nearest", "bilinear") or isinstance(transform.fill, dict):
        return None

    def move(**of: Any) -> Change:
        return _moving(mode=mode, fill=transform.fill, **of)

    # v2's magnitudes are differences from the operation's neutral factor, and shares of what a pixel can be
    changes: dict[str, Change] = {
        "Identity": _CHANGES["identity"],
        "ShearX": move(shear_x=_slope, center=(0, 0)),
        "ShearY": move(shear_y=_slope, center=(0, 0)),
        "TranslateX": move(shift_x=lambda m, images: m.trunc()),
        "TranslateY": move(shift_y=lambda m, images: m.trunc()),
        "Rotate": move(angle=lambda m, images: -m),
        "Brightness": lambda images, m: _CHANGES["brightness"](images, 1 + m),
        "Color": lambda images, m: _CHANGES["saturation"](images, 1 + m),
        "Contrast": lambda images, m: _CHANGES["contrast"](images, 1 + m),
        "Sharpness": lambda images, m: _CHANGES["sharpness"](images, 1 + m),
        "Posterize": _CHANGES["posterize"],
        "Solarize": lambda images, m: _CHANGES["solarize"](images, 255 * m),
        "AutoContrast": _CHANGES["autocontrast"],
        "Equalize": _CHANGES["equalize"],
    }
    space = transform._AUGMENTATION_SPACE
    if set(space) != set(changes):
        return None

    def op(images: Tensor, draws: Draws, variants: Tensor) -> Tensor:
        require_uint8(images, "RandAugment")
        sizes = []
        for bins_of, _ in space.values():
            bins = bins_of(transform.num_magnitude_bins, *images.shape[-2:])
            sizes.append(0.0 if bins is None else float(bins[transform.magnitude]))
        magnitude = torch.tensor(sizes, dtype=torch.float64, device=images.device)
        signed = torch.tensor([both for _, both in space.values()], device=images.device)
        for _ in range(transform.num_ops):
            which, coin = draws.integer(len(space)), draws.number()
            m = torch.where(signed[which] & (coin < 0.5), -magnitude[which], magnitude[which])
            images = _each(images, which, m, [changes[name] for name in space])
        return images

    return op


_BUILDERS: dict[type, Callable[[Any], Op | None]] = {
    Cutout: _cutout,
    RandomOps: _random_ops,
    Rotate90: _rotate90,
    v2.CenterCrop: _deterministic,
    v2.ColorJitter: _color_jitter,
    v2.ElasticTransform: _elastic,
    v2.GaussianBlur: _gaussian_blur,
    v2.GaussianNoise: _gaussian_noise,
    v2.Grayscale: _deterministic,
    v2.Identity: _deterministic,
    v2.Pad: _deterministic,
    v2.RandAugment: _rand_augment,
    v2.RandomAffine: _random_affine,
    v2.RandomApply: _random_apply,
    v2.RandomCrop: _random_crop,
    v2.RandomGrayscale: _random_pixels(lambda transform, x: F.rgb_to_grayscale(x, num_output_channels=x.shape[1])),
    v2.RandomHorizontalFlip: _random_flip(-1),
    v2.RandomInvert: _random_pixels(lambda transform, x: F.invert(x)),
    v2.RandomResizedCrop: _random_resized_crop,
    v2.RandomRotation: _random_rotation,
    v2.RandomSolarize: _random_pixels(lambda transform, x: F.solarize(x, transform.threshold)),
    v2.RandomVerticalFlip: _random_flip(-2),
    v2.Resize: _deterministic,
    v2.RGB: _deterministic,
}


def _build(transform: Callable[..., Tensor]) -> Op | None:
    if isinstance(transform, PixelTransform):
        return _deterministic(transform)
    builder = _BUILDERS.get(type(transform))
    return None if builder is None else builder(transform)


def _describe(transform: Any) -> str:
    name = getattr(transform, "__name__", type(transform).__name__)
    if type(transform) not in _BUILDERS:
        return str(name)
    if isinstance(transform, v2.RandomApply):
        return next(f"{name} of {_describe(part)}" for part in transform.transforms if _build(part) is None)
    return f"{name} with these options"


# -- changes by a magnitude, for RandomOps and RandAugment ------------------------------------------------------------

Change = Callable[[Tensor, Tensor], Tensor]  # images (b, C, H, W) uint8, magnitudes (b,) float64 -> the same images


def _each(images: Tensor, which: Tensor, magnitude: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return every image changed by the one of ``changes`` that ``which`` (B,) says, by its ``magnitude`` (B,)."""
    which, rows = which.sort()
    images, magnitude = images.index_select(0, rows), magnitude[rows]
    counts = torch.bincount(which, minlength=len(changes)).tolist()
    parts = zip(changes, images.split(counts), magnitude.split(counts), strict=True)
    return torch.cat([change(*part) for change, *part in parts if len(part[0])]).index_select(0, rows.argsort())


def _moving(mode: str = "nearest", fill: Any = None, center: Sequence[float] | None = None, **of: Any) -> Change:
    """Return an affine map: ``angle``, ``shear_x``, ``shear_y`` in degrees, ``shift_x``, ``shift_y`` in pixels.

    Each is a function of the magnitudes and the images.
    """

    def change(images: Tensor, m: Tensor) -> Tensor:
        names = ("angle", "shift_x", "shift_y", "shear_x", "shear_y")
        angle, *rest = (of[name](m, images) if name in of else torch.zeros_like(m) for name in names)
        shift, shear = (rest[0], rest[1]), (rest[2], rest[3])
        H, W = images.shape[-2:]
        return _sample(images, _affine_grid(H, W, angle, shift, torch.ones_like(m), shear, center), mode, fill)

    return change


def _slope(m: Tensor, images: Tensor) -> Tensor:
    return m.atan().rad2deg()


def _colouring(change: Callable[[Tensor, Tensor, float], None]) -> Change:
    def of(images: Tensor, m: Tensor) -> Tensor:
        if change is _saturation and images.shape[1] == 1:
            return images
        x = images.to(torch.float32, copy=True)
        change(x, m[:, None, None, None], 255.0)
        return x.to(images.dtype)

    return of


def _sharpness(x: Tensor, factor: Tensor, bound: float) -> None:
    blurred = F.adjust_sharpness(x.to(torch.uint8), 0.0).to(torch.float32)
    x.add_(blurred.sub_(x).mul_(1 - factor.to(torch.float32))).clamp_(0, bound)


def _solarize(images: Tensor, m: Tensor) -> Tensor:
    return torch.where(images >= m[:, None, None, None], 255 - images, images)


def _posterize(images: Tensor, m: Tensor) -> Tensor:
    mask = 256 - 2 ** (8 - m.long())
    return images & mask.to(torch.uint8)[:, None, None, None]


# -- parts ------------------------------------------------------------------------------------------------------------


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift int64 to the right, filling with zeros."""
    shifted: Tensor = (x >> by) & ((1 << (64 - by)) - 1)
    return shifted


def _finalise(x: Tensor) -> Tensor:
    """Return SplitMix64's output for its state ``x``, int64 modulo 2**64."""
    x = (x ^ _shift(x, 30)) * _signed(FIRST)
    x = (x ^ _shift(x, 27)) * _signed(SECOND)
    return torch.bitwise_xor(x, _shift(x, 31))


def _mode(transform: Any) -> str | None:
    mode = transform.interpolation
    return mode.value if isinstance(mode, InterpolationMode) else mode if isinstance(mode, str) else None


def _like(x: Tensor, images: Tensor, clamp: bool = False) -> Tensor:
    """Return float results in the dtype of ``images``: rounded, and with ``clamp`` kept in 0..255, for uint8."""
    if not images.is_floating_point():
        x = x.round_()
        if clamp:
            x = x.clamp_(0, 255)
    return x.to(images.dtype)


def _update(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the images, those that are ``chosen`` (B,) replaced by ``change(those, their positions)``."""
    index = chosen.nonzero()[:, 0]
    if not len(index):
        return images
    changed = change(images.index_select(0, index), index)
    if len(index) == len(images):
        return changed
    if changed.shape[1:] != images.shape[1:] or changed.dtype != images.dtype:
        raise InputError(
            f"only some images become {changed.dtype} {tuple(changed.shape[1:])}, the others stay {images.dtype} "
            f"{tuple(images.shape[1:])}: a transform that changes size or type must apply to all"
        )
    rest = (~chosen).nonzero()[:, 0]
    # several times faster on the CPU than writing to some rows of a copy
    place = torch.cat((index, rest)).argsort()
    return torch.cat((changed, images.index_select(0, rest))).index_select(0, place)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply a matrix to the columns and one to the rows of every image: ``rows @ image @ columns.T``.

    Args:
        images: (B, C, H, W).
        rows: (B or 1, H', H) float32.
        columns: (B or 1, W', W) float32.

    Returns:
        (B, C, H', W') float32; memory is laid out as (B, H', C, W').
    """
    B, C, H, W = images.shape
    # channels beside the width: then each is one product of large matrices, and no copy lies between the two
    x = torch.empty(B, H, C, W, device=images.device).copy_(images.permute(0, 2, 1, 3))
    x = torch.matmul(x.view(B, H * C, W), columns.mT)
    x = torch.matmul(rows, x.view(B, H, -1))
    return x.view(B, rows.shape[1], C, -1).permute(0, 2, 1, 3)


def _resampling(start: Tensor, length: Tensor, size: int, out: int, mode: str) -> Tensor:
    """Return the matrices (B, out, size) that resample ``length`` pixels from ``start`` (both (B,)) to ``out``.

    The weights of torch's ``interpolate(antialias=True)``: a triangle, or for bicubic Keys's kernel with a = -0.5, as
    wide as an output pixel where that is wider than an input pixel; cut off at the crop's border and normalised.
    """
    start, length = start.to(torch.float32)[:, None, None], length.to(torch.float32)[:, None, None]
    scale = length / out
    centre = (torch.arange(out, device=start.device)[:, None] + 0.5) * scale
    position = torch.arange(size, device=start.device) - start
    x = ((position + 0.5 - centre) / scale.clamp(min=1)).abs_()
    if mode == "bilinear":
        weights = (1 - x).clamp_(min=0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights *= ((position >= 0) & (position < length)).to(torch.float32)
    return weights.div_(weights.sum(2, keepdim=True))


def _blurring(sigma: Tensor, size: int, length: int) -> Tensor:
    """Return the matrices (B, length, length) of a Gaussian of ``size`` taps with reflected borders.

    The taps are v2's: at a distance of d pixels exp(-d² / 2σ²), normalised. ``sigma`` is (B,).
    """
    half = size // 2
    if half >= length:
        raise ValueError(f"{size} taps need an image of more than {half} pixels a side, not {length}")
    distance = torch.arange(-half, half + 1, device=sigma.device)
    taps = torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, dim=1)
    source = torch.arange(length, device=sigma.device)[:, None] + distance
    source = length - 1 - (length - 1 - source.abs()).abs()  # reflected at either border
    matrices = torch.zeros(len(sigma), length, length, device=sigma.device)
    return matrices.scatter_add_(
        2, source.expand(len(sigma), -1, -1), taps[:, None, :].expand(-1, length, -1).contiguous()
    )


def _affine_grid(
    H: int,
    W: int,
    angle: Tensor,
    shift: tuple[Tensor, Tensor],
    scale: Tensor,
    shear: tuple[Tensor, Tensor],
    center: Sequence[float] | None,
) -> Tensor:
    """Return the grids (B, H, W, 2) of ``grid_sample`` for v2's affine maps; all parameters are (B,) float64."""
    rotation, shear_x, shear_y = (x.deg2rad() for x in (angle, *shear))
    centre_x, centre_y = (0.0, 0.0) if center is None else (center[0] - W * 0.5, center[1] - H * 0.5)
    # the rotation, shears and their inverse, as in torchvision's _get_inverse_affine_matrix
    a = (rotation - shear_y).cos() / shear_y.cos()
    b = -(a * shear_x.tan() + rotation.sin())
    c = (rotation - shear_y).sin() / shear_y.cos()
    d = rotation.cos() - c * shear_x.tan()
    x_x, x_y, y_x, y_y = d / scale, -b / scale, -c / scale, a / scale
    x_1 = centre_x - x_x * (centre_x + shift[0]) - x_y * (centre_y + shift[1])
    y_1 = centre_y - y_x * (centre_x + shift[0]) - y_y * (centre_y + shift[1])
    x = torch.arange(W, device=angle.device) + (1 - W) * 0.5
    y = (torch.arange(H, device=angle.device) + (1 - H) * 0.5)[:, None]
    grid = torch.empty(len(angle), H, W, 2, device=angle.device)
    for axis, (of_x, of_y, of_1, length) in enumerate(((x_x, x_y, x_1, W), (y_x, y_y, y_1, H))):
        of_x, of_y, of_1 = ((part / (0.5 * length)).to(torch.float32)[:, None, None] for part in (of_x, of_y, of_1))
        grid[..., axis] = of_x * x + (of_y * y + of_1)
    return grid


def _sample(images: Tensor, grid: Tensor, mode: str, fill: float | Sequence[float] | None) -> Tensor:
    """Return ``images`` at the places of ``grid`` (B, H, W, 2), with v2's way of filling what lies outside."""
    x = images.to(torch.float32)
    mask = fill is not None and (mode == "bilinear" or fill != 0)
    if mask:
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    x = grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
    if mask:
        x, inside = x[:, :-1], x[:, -1:]
        values = torch.tensor(fill, dtype=torch.float32, device=x.device).view(-1, 1, 1)
        # a bilinear value near the border already holds zeros from outside, and is dimmed once more: as in v2
        x = torch.where(inside < 0.5, values, x) if mode == "nearest" else (x - values) * inside + values
    return _like(x, images)


def _grey(x: Tensor, bound: float) -> Tensor:
    """Return (B, 1, H, W): the luminance, whole numbers where the images' are."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    grey = (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)[:, None]
    return grey.floor_() if bound > 1 else grey


def _blend(x: Tensor, other: Tensor, factor: Tensor, bound: float) -> None:
    x.mul_(factor.to(torch.float32)).addcmul_(other, (1 - factor).to(torch.float32)).clamp_(0, bound)


def _brightness(x: Tensor, factor: Tensor, bound: float) -> None:
    x.mul_(factor.to(torch.float32)).clamp_(0, bound)


def _contrast(x: Tensor, factor: Tensor, bound: float) -> None:
    _blend(x, _grey(x, bound).mean((1, 2, 3), keepdim=True), factor, bound)


def _saturation(x: Tensor, factor: Tensor, bound: float) -> None:
    _blend(x, _grey(x, bound), factor, bound)


def _hue(x: Tensor, factor: Tensor, bound: float) -> None:
    """Turn the hue by ``factor`` of the circle.

    HSV and back as v2 does it, in one formula a channel, and without comparisons, remainders or ``where``, which take
    the CPU ten times as long as arithmetic.
    """
    r, g, b = x.unbind(1)
    most = torch.maximum(torch.maximum(r, g), b)
    chroma = most - torch.minimum(torch.minimum(r, g), b)
    # 1 where this channel is the largest, and none before it
    not_r, not_g = (most - r).sign_(), (most - g).sign_()
    is_g = not_r - not_r * not_g
    is_b = not_r * not_g
    hue = (g - b) * (1 - not_r) + (b - r) * is_g + (r - g) * is_b  # in sixths of the circle, times chroma
    hue.div_(chroma.clamp(min=1e-12)).add_(is_g, alpha=2).add_(is_b, alpha=4)
    hue += (6 * factor).to(torch.float32)[:, 0]
    # v2 goes through [0, 1] and back to 255 by a factor a little larger, and truncates
    scale = (255 + 1.0 - 1e-3) / 255 if bound > 1 else 1.0
    most, chroma = most * scale, chroma * scale
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = hue + offset
        k -= (k * (1 / 6)).floor_().mul_(6)
        part = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(most, part.mul_(chroma), out=x[:, channel])


_CHANGES: dict[str, Change] = {
    "identity": lambda images, m: images,
    "autocontrast": lambda images, m: F.autocontrast(images),
    "equalize": lambda images, m: F.equalize(images),
    "rotate": _moving(angle=lambda m, images: -m),
    "solarize": _solarize,
    "saturation": _colouring(_saturation),
    "contrast": _colouring(_contrast),
    "brightness": _colouring(_brightness),
    "sharpness": _colouring(_sharpness),
    "posterize": _posterize,
    "shear_x": _moving(shear_x=_slope),
    "shear_y": _moving(shear_y=_slope),
    "translate_x": _moving(shift_x=lambda m, images: (m * images.shape[-1]).round()),
    "translate_y": _moving(shift_y=lambda m, images: (m * images.shape[-2]).round()),
}
