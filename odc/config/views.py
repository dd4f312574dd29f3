"""Views that the weights describe: the placeholder ``AsPretrained`` and what takes its place."""

from __future__ import annotations

from typing import Any

from mmengine import Config

from odc.config.loading import at
from odc.errors import InputError
from odc.models.pretrained import Preprocessing, describe
from odc.registry import check_arguments

PLACEHOLDER = "AsPretrained"
NOTE = "_as_pretrained"  # the key of a config that says, in words, what took the placeholder's place


def fill_views(cfg: Config) -> None:
    """Put resize, crop, ToFloat and Normalize, as ``model.backbone``'s weights want them, for ``AsPretrained``.

    A view is written as ``[dict(type='AsPretrained')]``, or with augmentations before it. ``size=160`` gives another
    number of pixels, of the shorter side and of the crop; by default it is what :func:`describe` says. Behind a crop to
    the same size nothing is resized any more. What the images are seen as is then in ``cfg[NOTE]``.

    Raises:
        InputError: for another option, or a backbone that nobody describes.
    """
    views = at(cfg, "data.views")
    told: dict[str, None] = {}
    for name, view in views.items() if isinstance(views, dict) else ():
        if not isinstance(view, list | tuple) or not any(_is_placeholder(transform) for transform in view):
            continue
        filled: list[Any] = []
        for transform in view:
            if not _is_placeholder(transform):
                filled.append(transform)
                continue
            found = _wanted(cfg, transform, f"data.views.{name}: {PLACEHOLDER}")
            told[str(found)] = None
            filled += found.transforms()
        views[name] = filled
    if told:
        backbone = at(cfg, "model.backbone.name")
        cfg[NOTE] = f"images are seen as the weights of {backbone} want them: {'; '.join(told)}"


def _is_placeholder(transform: Any) -> bool:
    return isinstance(transform, dict) and transform.get("type") == PLACEHOLDER


def _wanted(cfg: Config, transform: dict[str, Any], where: str) -> Preprocessing:
    options = {key: value for key, value in transform.items() if key != "type"}
    check_arguments(_options, options, where)
    size = _options(**options)
    if size is not None and size < 1:
        raise InputError(f"{where} has size={size}: give a number of pixels")
    return describe(at(cfg, "model.backbone") or {}, size)


def _options(size: int | None = None) -> int | None:
    return size
