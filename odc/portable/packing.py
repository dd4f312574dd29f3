"""From what a training, or a recipe, has left to a portable model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import Config
from torch import Tensor, nn

from odc.checkpoints import load_plain, load_state, model_state
from odc.clustering import margins
from odc.comparison.estimators import FEATURES, RAW, Estimate
from odc.data.datasets import ImageDataset, build_dataset
from odc.engine.data import EXTRACT_VIEW
from odc.errors import InputError
from odc.models.backbones import Vectors
from odc.models.cluster_model import ClusterModel
from odc.models.loading import load_backbone
from odc.models.necks import AvgPool
from odc.portable.heads import TRAINED, Nearest, Trained
from odc.portable.model import PortableModel
from odc.portable.networks import Network
from odc.portable.reference import MOST, Reference
from odc.recipes import Features, Left, Recipe, Train
from odc.registry import DATASETS, MODELS, build, resolve
from odc.results.clustering import Clustering
from odc.results.columns import prototypes
from odc.results.duplicates import Prints
from odc.sources import Space, network_of, view_of

_ROWS = 4096  # scored at a time
_TRIED = ((90, 70), (70, 120))  # sizes of pictures


@dataclass(frozen=True)
class Pictures:
    """What is to be known of the pictures that a model was made for."""

    channels: int
    shape: tuple[int, int] | None  # pixels, height and width, where they all have these
    levels: tuple[float, float] | None  # values that become 0 and 255 where there are more than 8 bits

    @classmethod
    def of(cls, dataset: ImageDataset) -> Pictures:
        """Look at a data set."""
        shape = dataset.image_shape
        return cls(len(dataset.image(0)), None if shape is None else shape[1:], getattr(dataset, "value_range", None))


def pack(
    clustering: Clustering, left: Mapping[str, Left], recipe: Recipe, pictures: ImageDataset | None
) -> PortableModel:
    """Return the model of a recipe that has run.

    Args:
        clustering: of ``pictures``; its features are what the networks give: those of the sources where there are some,
            else the z of the last training.
        left: what the stages have left, by their names.
        recipe: with these stages. The last one is a training with clusters, or an estimator, whose new images then go
            to the nearest prototype.
        pictures: the images; ``None``: there are only vectors.

    Raises:
        InputError: the last stage has no clusters, or the features are not those of the networks.
    """
    last = left[recipe.stages[-1].name]
    sources = next((stage.train.spaces for stage in recipe.stages if isinstance(stage, Features)), ())
    if isinstance(last.stage, Train):
        return pack_training(clustering, last.stage.config, last.file("checkpoint"), pictures, sources)
    if not isinstance(last.stage, Estimate):
        raise InputError(f"no model can be made of {last.stage.name}: take one of the rows that it combines")
    config, file = last.stage.config, last.stage.pretrained
    if "backbone" in last.stage.needs:
        file = str(left[last.stage.needs["backbone"]].file("backbone"))
    networks = networks_of(sources, pictures)
    if not sources and pictures is not None:
        backbone = None if last.stage.features == FEATURES[0] else _plain(config.model.backbone)
        spec = _spec(config.filename or "the network", backbone, None, config, Pictures.of(pictures))
        network = Network(spec | {"width": clustering.features.shape[1]})
        if file is not None and backbone is not None:
            load_backbone(network.backbone, load_plain(file), f"checkpoint '{file}'")
        elif backbone is not None:
            raise InputError("the features of an untrained network cannot be packed: its weights were not kept")
        networks = [network]
    unit = last.stage.features not in (RAW, FEATURES[0])
    return pack_nearest(clustering, networks, pictures, unit, sources)


def pack_training(
    clustering: Clustering,
    config: Config,
    checkpoint: str | Path,
    pictures: ImageDataset | None,
    sources: Sequence[Space] = (),
) -> PortableModel:
    """Return the model of a training's checkpoint: of pictures, or of the features of ``sources``.

    Raises:
        InputError: the checkpoint does not fit the config, or the head has no clusters.
    """
    model: ClusterModel = build(MODELS, config.model.to_dict())
    state = model_state(load_plain(checkpoint), f"checkpoint '{checkpoint}'")
    load_state(model, state, source=f"checkpoint '{checkpoint}'", otherwise="give the config that it was trained by")
    model.eval()
    of_vectors = isinstance(model.backbone, Vectors)
    neck = None if config.model.get("neck") is None else _plain(config.model.neck)
    head_config = _plain(config.model.head)
    spec = {
        "kind": TRAINED,
        "head": head_config,
        "given": json.loads(json.dumps(model.given(head_config))),
        "neck": neck if of_vectors and not isinstance(model.neck, AvgPool) else None,
    }
    with model.averaged():
        head = Trained(spec, model.backbone.out_channels if of_vectors else model.neck.out_channels)
        _copy(model.head, head.head)
        if of_vectors:
            if spec["neck"] is not None:
                _copy(model.neck, head.neck)
            networks = networks_of(sources, pictures)
        else:
            if pictures is None:
                raise InputError("a model that was trained on pictures is packed with them: pictures is None")
            title = Path(config.filename).stem if config.filename else "the network"
            network = Network(
                _spec(title, _plain(config.model.backbone), neck, config, Pictures.of(pictures))
                | {"width": model.neck.out_channels}
            )
            _copy(model.backbone, network.backbone)
            _copy(model.neck, network.neck)
            networks = [network]
    return _assembled(clustering, networks, head, pictures, sources, "the trained head assigns them")


def pack_nearest(
    clustering: Clustering,
    networks: Sequence[Network],
    pictures: ImageDataset | None,
    unit: bool = True,
    sources: Sequence[Space] = (),
) -> PortableModel:
    """Return the model by which new images go to the cluster whose mean is nearest; ``unit``: of unit vectors."""
    features, cluster = torch.from_numpy(np.asarray(clustering.features)), torch.from_numpy(clustering.cluster)
    spaces = list(clustering.spaces or clustering.features.shape[1:])
    head = Nearest.fit(features, cluster, clustering.num_clusters, unit, spaces)
    return _assembled(clustering, networks, head, pictures, sources, "they go to the nearest prototype")


def networks_of(sources: Sequence[Space], pictures: ImageDataset | None) -> list[Network]:
    """Return the networks behind spaces of features; none where one of these is only a file, or there are no pictures.

    Raises:
        InputError: weights cannot be had.
    """
    if pictures is None or any(space.model is None for space in sources):
        return []
    seen, networks = Pictures.of(pictures), []
    for space in sources:
        assert space.model is not None
        loaded = network_of(space)
        backbone, view = _plain(space.model["backbone"]), _plain(view_of(space, seen.channels))
        spec = _sized({"title": space.title, "backbone": backbone, "neck": {"type": "AvgPool"}, "view": view}, seen)
        network = Network(spec | {"width": loaded.neck.out_channels})
        _copy(loaded.backbone, network.backbone)
        networks.append(network)
    return networks


def _assembled(
    clustering: Clustering,
    networks: Sequence[Network],
    head: Trained | Nearest,
    pictures: ImageDataset | None,
    sources: Sequence[Space],
    new_images: str,
) -> PortableModel:
    spaces = clustering.spaces or (clustering.features.shape[1],)
    widths = tuple(network.spec["width"] for network in networks)
    if networks and sum(widths) != sum(spaces):
        raise InputError(f"the clustering has features of {sum(spaces)} numbers, but the networks give {sum(widths)}")
    spaces = widths or spaces
    head = head.cpu().eval()
    scores = _scored(head, clustering.features)
    if scores.shape[1] != clustering.num_clusters:
        raise InputError(f"the head has {scores.shape[1]} clusters, but the clustering {clustering.num_clusters}")
    held = torch.from_numpy(clustering.cluster >= 0)
    agree = scores.argmax(1) == torch.from_numpy(clustering.cluster)
    margin = margins(scores)[held].sort().values
    places = torch.linspace(0, max(0, len(margin) - 1), min(MOST, len(margin))).round().long()
    prints = clustering.prints
    if prints is None and pictures is not None:
        prints = Prints.of(pictures)
    kept = ("method", "features", "seed", "fingerprint", "recipe", "versions", "date")
    about = {name: clustering.about[name] for name in kept if name in clustering.about}
    about |= {
        "features": about.get("features", "+".join(space.spelling for space in sources)),
        "images": len(clustering),
        "agreement": round(float(agree[held].float().mean()), 6) if bool(held.any()) else 1.0,
        "new_images": new_images,
    }
    features = np.asarray(clustering.features)
    return PortableModel(
        networks=networks,
        head=head,
        spaces=tuple(spaces),
        num_clusters=clustering.num_clusters,
        quantiles=margin[places].numpy(),
        prototypes=prototypes(clustering.unit, clustering.cluster, clustering.num_clusters),
        reference=Reference.of(features, clustering.cluster, clustering.num_clusters, clustering.paths, spaces, prints),
        names=dict(clustering.names),
        levels=getattr(pictures, "value_range", None),
        about=about,
    )


@torch.no_grad()
def _scored(head: nn.Module, features: Any) -> Tensor:
    parts = [torch.from_numpy(np.array(features[i : i + _ROWS])) for i in range(0, len(features), _ROWS)]
    return torch.cat([head(part).float() for part in parts])


def _spec(
    title: str, backbone: dict[str, Any] | None, neck: dict[str, Any] | None, config: Config, pictures: Pictures
) -> dict[str, Any]:
    """Return the description of a network that sees the pictures of a config's data set."""
    view = _plain(config.data.views[EXTRACT_VIEW])
    data = config.data.dataset.to_dict()
    kind = resolve(DATASETS, data)[0]
    if getattr(kind, "transforms", None) is not ImageDataset.transforms:
        view = [*_plain(build_dataset(data).transforms), *view]
    spec = {"title": title, "backbone": backbone, "neck": neck or {"type": "AvgPool"}, "view": view}
    return _sized(spec, pictures)


def _sized(spec: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """Return a description whose view gives one size of all pictures, where that can be; the ``width`` is to follow."""
    spec = {**spec, "channels": pictures.channels, "side": None, "width": 1}
    if spec["backbone"] is not None:
        spec["backbone"] = {k: v for k, v in spec["backbone"].items() if k not in ("weights", "pretrained")}
    side = _side(spec)
    if side is None and pictures.shape is not None:
        spec["view"] = [{"type": "Resize", "size": list(pictures.shape)}, *spec["view"]]
        side = _side(spec)
    return {**spec, "side": side}


def _side(spec: dict[str, Any]) -> int | None:
    """Return the pixels a side of the square that a view makes of any picture; ``None``: it depends on the picture."""
    only = Network({**spec, "backbone": None})
    try:
        shapes = [only.see([torch.zeros(spec["channels"], *size, dtype=torch.uint8)]).shape[2:] for size in _TRIED]
    except InputError:
        return None
    height, width = shapes[0]
    return int(height) if shapes[0] == shapes[1] and height == width else None


def _copy(source: nn.Module, target: nn.Module) -> None:
    load_state(target, {name: tensor.clone() for name, tensor in source.state_dict().items()})


def _plain(config: Any) -> Any:
    """Return a part of a config as JSON has it."""
    try:
        return json.loads(json.dumps(config.to_dict() if isinstance(config, Config) else config))
    except TypeError as error:
        raise InputError(f"a portable model names its parts; this config holds more than names: {error}") from error
