"""From features to the scores of the clusters: a head that was trained, or the nearest prototype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from odc.clustering.preprocess import distances_to, unit_in_spaces
from odc.errors import InputError
from odc.heads.base import ClusterHead
from odc.reading import fields, flag, listing, mapping, optional, plain, text, whole
from odc.registry import HEADS, NECKS, build

TRAINED, NEAREST = "trained", "nearest"
_TRAINED = fields(
    {
        "kind": text,
        "head": mapping(plain),  # its config
        "given": mapping(plain),  # in_channels, and where it takes them the widths of spaces
        "neck": optional(mapping(plain)),  # config of what is between features and head; None: nothing
    }
)
_NEAREST = fields({"kind": text, "unit": flag, "spaces": listing(whole(1)), "num_clusters": whole(1)})


def head_spec(value: Any) -> dict[str, Any]:
    """Kind: how a portable model finds clusters."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in (TRAINED, NEAREST):
        raise ValueError(f"a head is '{TRAINED}' or '{NEAREST}', not {str(kind)[:30]!r}")
    found: dict[str, Any] = (_TRAINED if kind == TRAINED else _NEAREST)(value)
    return found


class Trained(nn.Module):
    """A head that a training here has left."""

    def __init__(self, spec: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.spec = dict(spec)
        self.neck: nn.Module = nn.Identity()
        if spec["neck"] is not None:
            self.neck = build(NECKS, spec["neck"], in_channels=width)
            width = int(self.neck.out_channels)  # type: ignore[arg-type]
        if spec["given"].get("in_channels") != width:
            raise InputError(f"the head takes {spec['given'].get('in_channels')} numbers, but is given {width}")
        self.head: ClusterHead = build(HEADS, spec["head"], **spec["given"])
        if not isinstance(self.head, ClusterHead):
            raise InputError(f"head '{type(self.head).__name__}' must inherit from odc.heads.ClusterHead")
        self.eval().requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to scores (B, K)."""
        return self.head.predict(self.neck(features))


class Nearest(nn.Module):
    """The nearest of K prototypes, the means of the clusters: features of unit length in each space, or as they are.

    It is how k-means itself assigns; clusters of a method that knows no new images are told apart by it as well as
    their means allow.
    """

    def __init__(self, spec: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.spec = dict(spec)
        if sum(spec["spaces"]) != width:
            raise InputError(f"prototypes are {sum(spec['spaces'])} wide, but features {width}")
        self.centers: Tensor = nn.Buffer(torch.zeros(spec["num_clusters"], width))
        self.filled: Tensor = nn.Buffer(torch.ones(spec["num_clusters"], dtype=torch.bool))
        self.eval()

    @classmethod
    def fit(cls, features: Tensor, cluster: Tensor, num_clusters: int, unit: bool, spaces: list[int]) -> Nearest:
        """Return the means of the clusters (N,), -1: in none, of features (N, D)."""
        spec = {"kind": NEAREST, "unit": unit, "spaces": spaces, "num_clusters": num_clusters}
        found = cls(spec, features.shape[1])
        x = found._input(features)[cluster >= 0].double()
        counts = torch.bincount(cluster[cluster >= 0], minlength=num_clusters)
        sums = torch.zeros(num_clusters, x.shape[1], dtype=torch.float64).index_add_(0, cluster[cluster >= 0], x)
        found.centers.copy_(sums / counts.clamp(min=1)[:, None])
        found.filled.copy_(counts > 0)
        return found

    def _input(self, features: Tensor) -> Tensor:
        return unit_in_spaces(features, self.spec["spaces"]) if self.spec["unit"] else features

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to minus the distances (B, K); -inf for a cluster that has no image."""
        distance = distances_to(self._input(features), self.centers)
        return (-distance).masked_fill(~self.filled, -torch.inf)


def build_head(spec: Mapping[str, Any], width: int) -> Trained | Nearest:
    """Return the head that a spec describes, its weights still to be loaded."""
    return (Trained if spec["kind"] == TRAINED else Nearest)(spec, width)
