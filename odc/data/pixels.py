"""What transforms do to the pixels of B images at once, on any device: each image by parameters of its own.

Images are (B, C, H, W); where they are uint8, so is the result, rounded as torchvision's v2 rounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from odc.errors import InputError
from odc.structures import on_gpu


def constant(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers as a tensor on the device of ``like``, to which they go without a wait."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def like(x: Tensor, images: Tensor) -> Tensor:
    """Return float results in the dtype of ``images``: rounded for uint8."""
    return (x if images.is_floating_point() else x.round_()).to(images.dtype)


def update(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the images, those that are ``chosen`` (B,) replaced by ``change(those, their positions)``.

    On a GPU all are changed, which takes as many kernels, and no number of those that are chosen.
    """
    if on_gpu(images):
        changed = change(images, torch.arange(len(images), device=images.device))
        if changed.shape == images.shape and changed.dtype == images.dtype:
            return torch.where(chosen[:, None, None, None], changed, images)
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


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows @ image @ columns.T`` of every image, (B, C, H', W') float32, laid out as (B, H', C, W').

    ``images`` are (B, C, H, W), ``rows`` (B or 1, H', H) and ``columns`` (B or 1, W', W) float32.
    """
    B, C, H, W = images.shape
    # channels beside the width: then each is one product of large matrices, and no copy lies between the two
    x = torch.empty(B, H, C, W, device=images.device).copy_(images.permute(0, 2, 1, 3))
    x = torch.matmul(x.view(B, H * C, W), columns.mT)
    x = torch.matmul(rows, x.view(B, H, -1))
    return x.view(B, rows.shape[1], C, -1).permute(0, 2, 1, 3)


def resampling(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Return the matrices (B, out, size) that resample ``length`` pixels from ``start`` (both (B,)) to ``out``.

    The weights of torch's ``interpolate(mode="bilinear", antialias=True)``: a triangle as wide as an output pixel where
    that is wider than an input pixel; cut off at the crop's border and normalised.
    """
    start, length = start.to(torch.float32)[:, None, None], length.to(torch.float32)[:, None, None]
    scale = length / out
    centre = (torch.arange(out, device=start.device)[:, None] + 0.5) * scale
    position = torch.arange(size, device=start.device) - start
    weights = (1 - ((position + 0.5 - centre) / scale.clamp(min=1)).abs_()).clamp_(min=0)
    weights *= ((position >= 0) & (position < length)).to(torch.float32)
    return weights.div_(weights.sum(2, keepdim=True))


def blurring(sigma: Tensor, size: int, length: int) -> Tensor:
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


def affine(
    images: Tensor,
    mode: str = "nearest",
    fill: float | Sequence[float] | None = None,
    center: Sequence[float] | None = None,
    **of: Tensor,
) -> Tensor:
    """Return v2's affine maps of the images (B, C, H, W), sampled as :func:`sample` does with ``mode`` and ``fill``.

    The ``center`` of the rotation and the shears is in pixels; ``None``: the middle. ``of`` are ``angle``, ``shear_x``,
    ``shear_y`` in degrees, ``shift_x``, ``shift_y`` in pixels, ``scale``, each (B,) float64; none is needed.
    """
    H, W = images.shape[-2:]
    none = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    rotation, shear_x, shear_y = (of.get(name, none).deg2rad() for name in ("angle", "shear_x", "shear_y"))
    shift_x, shift_y, scale = of.get("shift_x", none), of.get("shift_y", none), of.get("scale", none + 1)
    centre_x, centre_y = (0.0, 0.0) if center is None else (center[0] - W * 0.5, center[1] - H * 0.5)
    # the rotation, shears and their inverse, as in torchvision's _get_inverse_affine_matrix
    a = (rotation - shear_y).cos() / shear_y.cos()
    b = -(a * shear_x.tan() + rotation.sin())
    c = (rotation - shear_y).sin() / shear_y.cos()
    d = rotation.cos() - c * shear_x.tan()
    x_x, x_y, y_x, y_y = d / scale, -b / scale, -c / scale, a / scale
    x_1 = centre_x - x_x * (centre_x + shift_x) - x_y * (centre_y + shift_y)
    y_1 = centre_y - y_x * (centre_x + shift_x) - y_y * (centre_y + shift_y)
    x = torch.arange(W, device=images.device) + (1 - W) * 0.5
    y = (torch.arange(H, device=images.device) + (1 - H) * 0.5)[:, None]
    grid = torch.empty(len(images), H, W, 2, device=images.device)
    for axis, (of_x, of_y, of_1, length) in enumerate(((x_x, x_y, x_1, W), (y_x, y_y, y_1, H))):
        of_x, of_y, of_1 = ((part / (0.5 * length)).to(torch.float32)[:, None, None] for part in (of_x, of_y, of_1))
        grid[..., axis] = of_x * x + (of_y * y + of_1)
    return sample(images, grid, mode, fill)


def sample(images: Tensor, grid: Tensor, mode: str, fill: float | Sequence[float] | None) -> Tensor:
    """Return ``images`` at the places of ``grid`` (B, H, W, 2), filling what lies outside as v2 does.

    ``mode`` is ``"nearest"`` or ``"bilinear"``.
    """
    x = images.to(torch.float32)
    mask = fill is not None and (mode == "bilinear" or fill != 0)
    if mask:
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    x = grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
    if mask and fill is not None:
        x, inside = x[:, :-1], x[:, -1:]
        values = constant(fill if isinstance(fill, Sequence) else [fill], x).view(-1, 1, 1)
        # a bilinear value near the border already holds zeros from outside, and is dimmed once more: as in v2
        x = torch.where(inside < 0.5, values, x) if mode == "nearest" else (x - values) * inside + values
    return like(x, images)


def grey(x: Tensor, bound: float) -> Tensor:
    """Return (B, 1, H, W): the luminance, whole numbers where the images' are."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    grey = (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)[:, None]
    return grey.floor_() if bound > 1 else grey


def _blend(x: Tensor, other: Tensor, factor: Tensor, bound: float) -> None:
    x.mul_(factor.to(torch.float32)).addcmul_(other, (1 - factor).to(torch.float32)).clamp_(0, bound)


def brightness(x: Tensor, factor: Tensor, bound: float) -> None:
    """Scale images (B, C, H, W) in 0..``bound`` in place, as the next three do, by ``factor`` (B, 1, 1, 1)."""
    x.mul_(factor.to(torch.float32)).clamp_(0, bound)


def contrast(x: Tensor, factor: Tensor, bound: float) -> None:
    """Move all pixels towards, or away from, their mean luminance."""
    _blend(x, grey(x, bound).mean((1, 2, 3), keepdim=True), factor, bound)


def saturation(x: Tensor, factor: Tensor, bound: float) -> None:
    """Move every pixel towards, or away from, its luminance."""
    _blend(x, grey(x, bound), factor, bound)


def hue(x: Tensor, factor: Tensor, bound: float) -> None:
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
