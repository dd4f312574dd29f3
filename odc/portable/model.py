"""The model that a clustering leaves: pictures to clusters, from a folder of two files that hold no code.

``model.json`` says what the parts are, by the names under which they are registered; ``model.safetensors`` has their
weights, and what new images are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import odc
from odc.checkpoints import write_tensors
from odc.clustering import margins, rank_share
from odc.data import decoding
from odc.data.decoding import MAX_PIXELS
from odc.data.pipeline import Pipeline
from odc.errors import InputError, one_line
from odc.files import write_text
from odc.portable.files import (
    FORMAT,
    MODEL,
    WEIGHTS,
    model_folder,
    read_model,
    reference_tensors,
    strangers,
    used_state,
)
from odc.portable.heads import Nearest, Trained
from odc.portable.networks import Finish, Network, seen_through, split_view
from odc.portable.reference import Reference
from odc.results.clustering import COLUMNS
from odc.results.columns import Bools, Floats, Ints, distances, unit_vectors
from odc.results.duplicates import Prints, print_of

BATCH = 64  # pictures at a time


@dataclass(frozen=True, eq=False)
class Predictions:
    """What is told of B images; see :class:`odc.results.Clustering`."""

    cluster: Ints  # (B,) int64
    confidence: Floats  # (B,) float32 in [0, 1], the share of the clustering's images whose margin is not larger
    consistency: Floats  # (B,) float32, of the 20 nearest images of the clustering
    distance: Floats  # (B,) float32, to the mean direction of its cluster there
    outlier: Bools  # (B,) bool: farther from all images of the clustering than nearly all of them
    repeats: Ints  # (B,) int64, the image of :attr:`PortableModel.reference` that it is once more, or -1
    scores: Floats  # (B, K) float32
    features: Floats  # (B, D) float32


@dataclass(eq=False)
class PortableModel:
    """Networks, a head on what they give side by side, and what new images are compared with.

    Made by :func:`odc.portable.pack`, written by :meth:`save` and read by :meth:`load`.
    """

    networks: Sequence[Network]  # one for each space; none: the model takes vectors
    head: Trained | Nearest
    spaces: tuple[int, ...]  # widths of the spaces, D in all
    num_clusters: int  # K
    quantiles: Floats  # (Q,) float32 ascending, margins of the clustering's images, evenly spaced in their order
    prototypes: Floats  # (K, D) float32, mean directions of the clusters
    reference: Reference
    names: Mapping[int, str] = field(default_factory=dict)  # of clusters
    levels: tuple[float, float] | None = None  # values that become 0 and 255 in pictures of more than 8 bits
    about: Mapping[str, Any] = field(default_factory=dict)  # method, features, agreement, images, new_images, ...

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._parts().to(self.device)

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"networks": nn.ModuleList(self.networks), "head": self.head})

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table of predictions: ``name`` is there only where clusters have names."""
        return COLUMNS if self.names else tuple(name for name in COLUMNS if name != "name")

    # -- from pictures to clusters

    def decode(self, path: str | Path) -> Tensor:
        """Return an image file as uint8 (C, H, W), as the model takes it; raises InputError where it is none."""
        grey = all(network.spec["channels"] == 1 for network in self._seeing())
        try:
            return decoding.decode(str(path), grey, MAX_PIXELS, self.levels)
        except Exception as error:  # decoders raise whatever the damaged bytes lead them to
            raise InputError(f"cannot decode {path} ({one_line(error)})") from error

    def check_pictures(self) -> None:
        """Raise InputError where the model takes vectors, and no pictures."""
        self._seeing()

    def _seeing(self) -> Sequence[Network]:
        if not self.networks:
            raise InputError(
                f"this model takes vectors, not pictures: it was made of {self.about.get('features') or 'features'}, "
                f"and knows no network that computes them; give a file of features ({sum(self.spaces):,} numbers each)"
            )
        return self.networks

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> Tensor:
        """Map pictures uint8 (C, H, W) of any size to features (B, D) float32, those of all networks side by side.

        Raises:
            InputError: the model takes vectors, or a picture is not of this kind.
        """
        parts = []
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            parts.append(torch.cat([n.forward(n.see(some).to(self.device)).cpu() for n in self._seeing()], dim=1))
        return torch.cat(parts) if parts else torch.zeros(0, sum(self.spaces))

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Map features (B, D) to the scores (B, K) of the clusters, float32.

        Raises:
            InputError: the features have another width.
        """
        if features.ndim != 2 or features.shape[1] != sum(self.spaces):
            raise InputError(
                f"the model takes features of {' + '.join(map(str, self.spaces))} numbers, not {tuple(features.shape)}"
            )
        found: Tensor = self.head(features.float().to(self.device))
        return found.float().cpu()

    def predict(self, images: Sequence[Tensor]) -> Predictions:
        """Return what is told of pictures uint8 (C, H, W) of any size."""
        features = self.features(images)
        return self.judge(features, Prints.join([print_of(image) for image in images]))

    def judge(self, features: Tensor, prints: Prints | None = None) -> Predictions:
        """Return what is told of features (B, D), of pictures with these prints.

        Raises:
            InputError: they have another width, or are not finite.
        """
        scores = self.scores(features)
        if not bool(features.isfinite().all()):
            raise InputError(f"the features of {int((~features.isfinite().all(1)).sum())} images are not finite")
        cluster = scores.argmax(1).numpy()
        unit = unit_vectors(features.numpy(), self.spaces)
        share, outlier, repeats = self.reference.judge(unit, cluster, prints)
        return Predictions(
            cluster=cluster,
            confidence=rank_share(margins(scores), torch.from_numpy(self.quantiles)).numpy(),
            consistency=share,
            distance=distances(unit, cluster, self.prototypes),
            outlier=outlier,
            repeats=repeats,
            scores=scores.numpy(),
            features=features.numpy(),
        )

    # -- for export

    @property
    def prepare(self) -> list[Mapping[str, Any]]:
        """The transforms, of a view, that make :meth:`module`'s input of a picture: to a size, still uint8.

        Raises:
            InputError: the networks want to see pictures differently, so no one input is for all of them.
        """
        found = [split_view(network.spec["view"])[0] for network in self._seeing()]
        if any(part != found[0] for part in found):
            sides = " and ".join(str(network.spec["side"]) for network in self.networks)
            raise InputError(f"the networks of this model see pictures at {sides} pixels: they have no common input")
        return found[0]

    def prepared(self, images: Sequence[Tensor]) -> Tensor:
        """Return the input of :meth:`module` for pictures uint8 (C, H, W): uint8 (B, C', S, S)."""
        view = Pipeline([*self.prepare, {"type": "ToFloat"}])
        return (seen_through(view, images, self.networks[0].spec["channels"]) * 255).round().to(torch.uint8)

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """(C, S, S) of :meth:`module`'s input; ``None``: S is free."""
        side = self._seeing()[0].spec["side"]
        if side is None:
            return None
        channels = self.prepared([torch.zeros(self.networks[0].spec["channels"], side, side, dtype=torch.uint8)])
        return channels.shape[1], side, side

    def module(self) -> nn.Module:
        """Return a module that maps uint8 (B, C, S, S), as :meth:`prepare` makes it, to cluster (B,) and scores (B, K).

        Raises:
            InputError: as :attr:`prepare`.
        """
        return _Whole(self)

    # -- the disk

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and then ``model.json`` into a folder, each whole; raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"networks.{i}.{name}": t for i, n in enumerate(self.networks) for name, t in n.state_dict().items()}
        tensors |= {f"head.{name}": tensor for name, tensor in used_state(self.head).items()}
        tensors |= {"quantiles": torch.from_numpy(self.quantiles), "prototypes": torch.from_numpy(self.prototypes)}
        tensors |= reference_tensors(self.reference)
        write_tensors(folder / WEIGHTS, tensors)
        told = {
            "format": FORMAT,
            "written_by": f"odc {odc.__version__}",
            "num_clusters": self.num_clusters,
            "names": {str(c): name for c, name in sorted(self.names.items())},
            "networks": [network.spec for network in self.networks],
            "head": self.head.spec,
            "spaces": list(self.spaces),
            "value_range": None if self.levels is None else list(self.levels),
            "needs": sorted(set(strangers(self.networks, self.head))),
            "about": dict(self.about),
        }
        write_text(folder / MODEL, json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> PortableModel:
        """Read a model from its folder, or from the folder of the clustering that it lies in as ``model``.

        Raises:
            InputError: there is none, it is of another format, or needs parts that are not registered here.
            DamagedError: a file is damaged, or they do not belong together.
        """
        folder = model_folder(Path(folder))
        if not (folder / MODEL).is_file():
            raise InputError(f"'{folder}' holds no model: it has no {MODEL}; give the folder that odc cluster wrote")
        return cls(**read_model(folder))


class _Whole(nn.Module):
    """A portable model as one module, for export: see :meth:`PortableModel.module`."""

    def __init__(self, model: PortableModel) -> None:
        super().__init__()
        assert model.prepare is not None
        self.finish = nn.ModuleList(Finish(split_view(network.spec["view"])[1]) for network in model.networks)
        self.networks = nn.ModuleList(model.networks)
        self.head = model.head
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 (B, C, S, S) to the cluster (B,) int64 and the scores (B, K) float32."""
        parts: list[Tensor] = []
        for finish, network in zip(self.finish, self.networks, strict=True):
            assert isinstance(network, Network)
            parts.append(network.neck(network.backbone(finish(images))).float())
        z = torch.cat(parts, dim=1)
        scores = self.head(z)
        return scores.argmax(1), scores
