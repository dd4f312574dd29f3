"""Which recipe suits a folder: a function of what was looked at, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from odc.errors import InputError
from odc.folder.looking import Look
from odc.sources import SCRATCH

HEADS = ("dc", "odc", "deepercluster", "scan", "spice-self", "temi", "turtle")  # on features, whichever they are
RECIPES = ("spice", "spice-self")  # begin with a pre-training by themselves; the first one trains the whole network
ENDINGS = ("-moco", "-pixels", "-backbone")
FEWEST = 100  # pictures from which a training on them, or on their features, has something to learn from
_BATCH = 128  # of MoCo's config
_STEPS, _STEPS_GPU = 1500, 8000  # of MoCo: see docs/folder.md for what they reach
_EPOCHS = 20, 300  # least and most
_SQUARE = 64  # pixels a side that pictures are kept at; the network sees crops of them at VIEW
VIEW = 32
# MoCo's own view without its grey pictures, and with hues that hardly turn: a network that learns to overlook colours
# cannot tell pictures apart by them, and people's pictures often differ in little else at this size.
COLOURFUL: tuple[dict[str, Any], ...] = (
    {"type": "RandomResizedCrop", "size": VIEW, "scale": [0.2, 1.0]},
    {
        "type": "RandomApply",
        "p": 0.8,
        "transforms": [{"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.02}],
    },
    {
        "type": "RandomApply",
        "p": 0.5,
        "transforms": [{"type": "GaussianBlur", "kernel_size": 3, "sigma": [0.1, 2.0]}],
    },
    {"type": "RandomHorizontalFlip"},
    {"type": "ToFloat"},
    {"type": "Normalize", "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]},
)
ADVISED, DOWNLOAD = "dinov2-small", "88 MB"


@dataclass(frozen=True)
class Choice:
    """A recipe for a folder, as a comparison names it, and what is said of it."""

    row: str  # of a comparison: METHOD on features, METHOD-moco or the like from scratch
    told: str  # the recipe in words
    why: str
    advice: str = ""  # what would be better, where that is known
    square: int | None = None  # pixels a side that the pictures are kept at; None: they are decoded as they are needed
    options: Mapping[str, Any] = field(default_factory=dict)  # {"STAGE.key": value} for the recipe


def choose(
    look: Look, num_clusters: int, features: str = SCRATCH, method: str | None = None, epochs: int | None = None
) -> Choice:
    """Return the recipe for a folder.

    Args:
        look: what the folder holds.
        num_clusters: K.
        features: what the method is to stand on, as somebody has written it.
        method: the one that somebody wants; ``None``: what suits the pictures.
        epochs: of pre-training, where somebody has said how many.

    Raises:
        InputError: the method is for pictures, and there are features.
    """
    if features == SCRATCH:
        return _from_scratch(look, num_clusters, method, epochs)
    if method == "spice":
        raise InputError(
            f"--method {method} trains a network on pictures, and --features {features} has one: take --method "
            f"{method}-self, or leave --features out"
        )
    if method is not None:
        return Choice(method, f"{_called(method)} on features of {short(features)}", "--method says so")
    if _few(look, num_clusters):
        why = f"{look.images:,} pictures are too few to train on"
        return Choice("kmeans", f"k-means on features of {short(features)}", why)
    told = f"SCAN on features of {short(features)}: an image and its nearest neighbours share a cluster"
    return Choice("scan", told, "of what was compared on photographs it was the best that new pictures can go through")


def _from_scratch(look: Look, K: int, method: str | None, epochs: int | None) -> Choice:
    advice = ""
    if look.photographs and not look.grey:
        advice = (
            f"features that others have trained on millions of photographs are usually better: --features {ADVISED} "
            f"(fetches {DOWNLOAD}, once)"
        )
    few = _few(look, K)
    if method is None:
        method = "kmeans-pixels" if few else "scan"
    row = method if method in RECIPES or method.endswith((*ENDINGS, ".py")) else f"{method}-moco"
    square = None if row.endswith(".py") else max(VIEW, min(_SQUARE, look.sides[1]))
    options: dict[str, Any] = {}
    told = f"{_called(row)} on the pixels, at {VIEW} pixels a side"
    why = f"{look.images:,} pictures are too few to train a network on"
    if row.endswith("-moco") or row in RECIPES:
        epochs = epochs or epochs_of(look)
        options["moco.train_cfg.max_epochs"] = epochs
        if not look.grey:
            options |= {f"moco.data.views.{view}": [dict(step) for step in COLOURFUL] for view in ("query", "key")}
        if look.gpu:
            options["model.backbone.width"] = 64
        width = 64 if look.gpu else 16
        told = (
            f"MoCo trains a ResNet-18 of width {width} on the pictures at {VIEW} pixels a side, {epochs} epochs, then "
            f"{_called(row.removesuffix('-moco'))}"
        )
        why = "nothing but the pictures is needed"
    elif row.endswith("-backbone"):
        told = f"{_called(row.removesuffix('-backbone'))} on features of an untrained network"
    elif row.endswith(".py"):
        told, why = row, "--method says so"
    return Choice(row, told, why, advice, square, options)


def epochs_of(look: Look) -> int:
    """Return MoCo's epochs: so many that it makes a number of steps, whatever the number of pictures."""
    steps = max(1, look.images // _BATCH)
    least, most = _EPOCHS
    return min(most, max(least, round((_STEPS_GPU if look.gpu else _STEPS) / steps)))


def _few(look: Look, K: int) -> bool:
    return look.images < max(FEWEST, 4 * K)


def short(features: str) -> str:
    """Return a source without the folders of its files."""
    return "+".join(
        part.rpartition("/")[2] if "@" not in part else part.partition("@")[0] for part in features.split("+")
    )


def _called(row: str) -> str:
    names = {"kmeans": "k-means", "gmm": "a Gaussian mixture", "odc": "ODC", "dc": "DeepCluster"}
    name = row.removesuffix("-raw")
    for end in ENDINGS:
        name = name.removesuffix(end)
    return names.get(name, name.upper() if name in (*HEADS, *RECIPES) else name)
