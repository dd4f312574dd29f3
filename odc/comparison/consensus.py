"""Rows that combine others: the clusters that most of their clusterings agree on.

``consensus`` is that of all other rows of a seed, ``METHOD-consensus`` that of the runs of one method over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.hooks import Hook

from odc.clustering.consensus import agreement, consensus
from odc.comparison.results import OUTCOME, Outcome
from odc.data.datasets import build_dataset
from odc.errors import InputError
from odc.evaluation.evaluator import ClusterMetrics, Evaluation
from odc.evaluation.gallery import CLUSTERS, write_assigned
from odc.recipes.stage import Left, Stage
from odc.structures import make_generator

ROW, END = "consensus", "-consensus"


def is_consensus(method: str) -> bool:
    """Return whether a row of this name combines others."""
    return method == ROW or method.endswith(END)


@dataclass(frozen=True)
class Consensus(Stage):
    """The consensus of rows that have ended; the margin of an image is the share of them that agree on it."""

    writes: ClassVar[tuple[str, ...]] = (OUTCOME, CLUSTERS)

    dataset: Mapping[str, Any]  # config of the images that all rows are evaluated on
    members: Mapping[str, Path]  # by what a person calls it, the folder of each row
    keys: tuple[str, ...]  # of the rows
    num_clusters: int  # K
    seed: int

    @property
    def images(self) -> tuple[Mapping[str, Any], None]:
        """Config of the images."""
        return self.dataset, None

    def decides(self) -> Any:
        """Return the keys of the rows, wherever they lie."""
        return [sorted(self.keys), self.num_clusters, self.seed]

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Combine, and leave the outcome."""
        dataset = build_dataset(self.dataset)
        found = [self._outcome(title, place, len(dataset)) for title, place in self.members.items()]
        labels = torch.stack([torch.from_numpy(outcome.cluster) for outcome in found])
        generator = make_generator(self.seed, "consensus")
        clusters = consensus(labels, self.num_clusters, generator)
        share = agreement(labels, clusters)
        # The features of one of them, for the map of the report.
        Outcome(found[0].features, clusters.numpy(), share.numpy(), share.numpy()).save(folder)
        write_assigned(dataset, clusters, share, share, folder)
        scores = torch.nn.functional.one_hot(clusters, self.num_clusters).float()
        values = ClusterMetrics()(Evaluation(torch.zeros(len(clusters), 0), scores, dataset.targets))
        costs = {"members": float(len(found)), "epochs": 0.0, "images_seen": 0.0}
        return {**values, **costs, "images": len(clusters)}

    def _outcome(self, title: str, place: Path, total: int) -> Outcome:
        outcome = Outcome.load(place, total)
        if outcome is None:
            raise InputError(f"{title} has left no clusters: '{self.name}' combines rows that have clusters")
        return outcome
