"""What the samples of a comparison are: pictures, or features of them that networks trained elsewhere give."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.comparison.methods import Methods
from odc.config import at, configs_folder, override
from odc.data.datasets import ImageDataset
from odc.errors import InputError, nearest
from odc.models.cluster_model import frozen_parts
from odc.recipes.features import Features, Part
from odc.recipes.stage import Stage
from odc.registry import DATASETS, resolve
from odc.sources import SCRATCH, enlarged, read_source, typical_side

_SMALL = 64  # pixels a side up to which pictures are no photographs to the configs for small ones


def comparisons() -> Path:
    """Return the folder of the package's comparison configs."""
    return configs_folder() / "comparisons"


def dataset_of(dataset: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of the comparison config, and the options that the data set adds to all configs."""
    names = sorted({path.stem for path in comparisons().glob("*.py")} - {"features"})
    if dataset in names:
        return comparisons() / f"{dataset}.py", {}
    if Path(dataset).is_dir():
        return comparisons() / "folder32.py", {"data.dataset.root": dataset}
    if dataset.endswith(".py"):
        return Path(dataset), {}
    raise InputError(
        f"unknown data set '{dataset}'{nearest(dataset, names)}, or a folder of pictures, or the path of a comparison "
        "config"
    )


def pictures_of(dataset: str) -> Config:
    """Return a config that has the data set of a name, a folder or a comparison config, and where known its K."""
    path, options = dataset_of(dataset)
    methods = Methods(path)
    base = methods.base()
    named = {**methods.options([]), **options}
    return override(base, {key: value for key, value in named.items() if key.startswith("data.dataset")})


def features_of(
    source: str | None, size: int | None, dataset: str | None, evaluate_on: str | None, clusters: int | None
) -> Features | None:
    """Return the stage that gives all methods their samples, ``None`` where these are pictures.

    Raises:
        InputError: for an unknown source, or one that cannot be had of what is to be clustered or evaluated.
    """
    if source is None or source == SCRATCH:
        if size is not None:
            raise InputError(f"--size {size} is for --features: the configs say at what size they see pictures")
        return None
    spaces = read_source(source, size)
    networks = [space.spelling for space in spaces if space.model is not None]
    if dataset is None and networks:
        raise InputError(f"--features {networks[0]} needs pictures: add --dataset, a folder or a name")
    base = None if dataset is None else pictures_of(dataset)
    if clusters is None and (base is None or Path(dataset or "").is_dir()):
        raise InputError("nothing says how many clusters there are: add --clusters")
    pictures = None if base is None else base.data.dataset.to_dict()
    train = Part(spaces, pictures)
    if not networks:
        others = None if evaluate_on is None else read_source(evaluate_on)
        if others is not None and (len(others) != len(spaces) or any(other.model is not None for other in others)):
            raise InputError(
                f"--features {source} are {len(spaces)} files of features: --evaluate-on needs as many, of other "
                f"pictures, not {evaluate_on}"
            )
        return Features("features", train=train, eval=None if others is None else Part(others, None))
    assert base is not None
    other = base.data.get("eval_dataset") if evaluate_on is None else evaluated(base.data.dataset, evaluate_on)
    if other is not None and len(networks) < len(spaces):
        raise InputError(
            f"--features {source} has files: they are not of the pictures to evaluate on; extract both parts, and give "
            "--features and --evaluate-on files alone"
        )
    own = None if other is None else {key: value for key, value in other.items() if key != "_delete_"}
    return Features("features", train=train, eval=None if own is None else Part(spaces, own))


def remarks(features: Features | None, config: Config, dataset: ImageDataset) -> list[str]:
    """Return what to know of the samples before hours of work: a line each.

    Args:
        features: the stage that gives them, ``None`` where they are pictures.
        config: of a training on them.
        dataset: the pictures.
    """
    if dataset.pictures is None:
        return []
    if features is not None:
        return enlarged(features.train.spaces, dataset)
    side = typical_side(dataset)
    sizes = [at(step, "size") for step in config.data.views.extract]
    seen = min((size if isinstance(size, int) else min(size) for size in sizes if size), default=side)
    if side <= _SMALL or seen > _SMALL:
        return []
    network = ", ".join(f"{key}={value}" for key, value in config.model.backbone.items() if key != "type")
    return [
        f"the pictures have some {side} pixels on the shorter side, and are seen at {seen} by "
        f"{config.model.backbone.type}({network}), from random weights unless a row is pre-trained: for photographs "
        "add --features dinov2-small, or another network that has seen millions of them"
    ]


def on_vectors(stage: Stage, features: Features) -> dict[str, Any]:
    """Return the options by which a config of pictures, or of other vectors, takes these vectors."""
    neck = (stage.config.model.get("neck") or {"type": "AvgPool"})["type"]
    frozen = {"backbone", *(["neck"] if neck == "AvgPool" else []), *frozen_parts(stage.config.model.get("frozen"))}
    return {
        "data.dataset": {**features.train.dataset(), "_delete_": True},
        "data.eval_dataset": None if features.eval is None else {**features.eval.dataset(), "_delete_": True},
        "data.views": {**{name: [] for name in stage.config.data.views}, "_delete_": True},
        "model.backbone": {"type": "Vectors", "spaces": [1], "_delete_": True},  # how wide they are, the files will say
        "model.pretrained": None,
        "model.frozen": sorted(frozen),
    }


def evaluated(dataset: Config, where: str) -> dict[str, Any] | None:
    """Return what ``--evaluate-on`` means for a data set: another split of it, or a folder; ``None`` is itself."""
    if "split" in inspect.signature(resolve(DATASETS, dataset)[0]).parameters:
        other = {**dataset, "split": where}
    elif Path(where).is_dir():
        other = {"type": "ImageFolder", "root": where}
    else:
        raise InputError(
            f"--evaluate-on {where}: there is no such folder, and {dataset.type} has no splits: give a folder of "
            "pictures, or leave it out to evaluate on the images that are clustered"
        )
    return None if other == dataset else {**other, "_delete_": True}
