"""One view: transforms in order, the same for one image in a worker as for a batch in memory.

Every image draws from its own key, so its neighbours in the batch change nothing but, at most, the rounding of sums.
What has no form for batches, a function of one's own say, gets image after image, and draws from torch's default
generator, seeded by the image's key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odc.data.keyed import keyed_form, obstacle, without_chance
from odc.data.keys import Draws
from odc.data.transforms import VariantTransform, build_transform
from odc.errors import InputError

# How much goes through the transforms at once on the CPU: what is between two of them stays in its cache.
_CHUNK = 256  # images of a tensor
_HELD = 2**21  # values of images that come one by one


class Pipeline:
    """One view of images, of transforms for :func:`~odc.data.transforms.build_transform`, whose errors are raised.

    ``obstacle`` is the first transform without a form for batches, with the option in the way, or ``None``;
    ``of_pixels`` the first one of torchvision or of this package, which are all for images; ``random`` the first one
    that draws, or may; ``varies``: whether the row's variant changes something. ``description`` tells views apart that
    are written in a config, and is ``None`` of functions.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> None:
        self.obstacle: str | None = None
        self.of_pixels: str | None = None
        self.random: str | None = None
        self.varies = False
        self.description = _described(transforms)
        self._steps: list[tuple[str, Callable[[Tensor, Draws, Tensor], Tensor | list[Tensor]]]] = []
        for transform in map(build_transform, transforms):
            missing = obstacle(transform)
            self.obstacle = self.obstacle or missing
            if type(transform).__module__.startswith(("torchvision.", "odc.")):
                self.of_pixels = self.of_pixels or type(transform).__name__
            if not without_chance(transform):
                self.random = self.random or getattr(transform, "__name__", type(transform).__name__)
            self.varies |= isinstance(transform, VariantTransform)
            self._steps.append((type(transform).__name__, _one_by_one(transform) if missing else keyed_form(transform)))

    @torch.no_grad()
    def __call__(
        self, images: Tensor | Iterable[Tensor], keys: Tensor, variants: Tensor | None = None, name: str = ""
    ) -> Tensor:
        """Return the view of every image, (B, C', H', W') float32 on their device.

        Args:
            images: (B, C, H, W) uint8 on any device (vectors are float32 (B, D, 1, 1)), or B images (C, H, W) on the
                CPU that may differ in size; they are not changed. B is at least 1.
            keys: (B,) int64: what each image's augmentation is drawn from.
            variants: (B,) int64, each image's variant; ``None``: 0.
            name: of the view, for messages.

        Raises InputError where a transform fails, or the results differ in shape or are not float32.
        """
        if isinstance(images, Tensor):
            if not self._steps and images.dtype == torch.float32:  # vectors: a large batch is a copy of rows, no more
                return images
            keys = keys.to(images.device)
        variants = torch.zeros_like(keys) if variants is None else variants.to(keys.device)
        parts: list[Tensor] = []
        done = 0
        with torch.autocast(keys.device.type, enabled=False):
            for some in _chunks(images):
                rows = slice(done, done + len(some))
                views = self._run(some, keys[rows], variants[rows])
                parts += [views] if isinstance(views, Tensor) else [view[None] for view in views]
                done += len(some)
        view = f"view '{name}'" if name else "a view"
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise InputError(
                f"{view} gives images of different shapes, {' and '.join(map(str, sorted(shapes)[:2]))}; add a crop, "
                "or Resize with both sides"
            )
        if parts[0].dtype != torch.float32:
            raise InputError(f"{view} gives {parts[0].dtype}, not float32; add dict(type='ToFloat')")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run(self, images: Tensor | list[Tensor], keys: Tensor, variants: Tensor) -> Tensor | list[Tensor]:
        draws = Draws(keys)
        for number, (name, step) in enumerate(self._steps):
            own = draws.child(number)
            images = _together(images)
            if isinstance(images, Tensor):
                images = _checked(name, step, images, own, variants)
                continue
            groups: dict[tuple[int, ...], list[int]] = {}
            for i, image in enumerate(images):
                groups.setdefault(tuple(image.shape), []).append(i)
            changed = list(images)
            for index in groups.values():
                some = images[index[0]][None] if len(index) == 1 else torch.stack([images[i] for i in index])
                at = torch.tensor(index)
                for i, view in zip(index, _checked(name, step, some, own.at(at), variants[at]), strict=True):
                    changed[i] = view
            images = changed
        return _together(images)


def _described(transforms: Sequence[Mapping[str, Any] | Callable[..., Tensor]]) -> str | None:
    try:
        return json.dumps(list(transforms), sort_keys=True)
    except TypeError:
        return None


def _chunks(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor | list[Tensor]]:
    """Yield the images in parts that a cache, and of large ones the memory, can hold."""
    if isinstance(images, Tensor):
        yield from images.split(_CHUNK if images.device.type == "cpu" else len(images))
        return
    held: list[Tensor] = []
    values = 0
    for image in images:
        held.append(image)
        values += image.numel()
        if values >= _HELD:
            yield held
            held, values = [], 0
    if held:
        yield held


def _together(images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Return a list of images as one tensor if they have one shape."""
    if isinstance(images, Tensor) or len({(image.shape, image.dtype) for image in images}) > 1:
        return images
    return torch.stack(images)


def _one_by_one(transform: Callable[..., Tensor]) -> Callable[[Tensor, Draws, Tensor], list[Tensor]]:
    """Return what applies a transform to image after image, and leaves torch's default generator as it was."""

    def step(images: Tensor, draws: Draws, variants: Tensor) -> list[Tensor]:
        generator = torch.default_generator
        state, out = generator.get_state(), []
        try:
            for image, seed in zip(images, draws.bits(1)[:, 0].tolist(), strict=True):
                generator.manual_seed(seed)
                out.append(transform(image.clone()))  # it may write into what it is given
        finally:
            generator.set_state(state)
        if not all(isinstance(image, Tensor) and image.ndim == 3 for image in out):
            raise InputError(
                f"{type(transform).__name__} does not return one image (C, H, W), so it cannot be part of a view"
            )
        return out

    return step


def _checked(name: str, step: Callable[..., Any], images: Tensor, draws: Draws, variants: Tensor) -> Any:
    """Run one transform; what it raises becomes one line."""
    try:
        return step(images, draws, variants)
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} failed on an image {images.dtype} {tuple(images.shape[1:])}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
