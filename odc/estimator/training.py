"""From samples to a trained model, by the parts that train everywhere else, in a folder that goes away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.hooks import Hook
from torch import Tensor

from odc.clustering.preprocess import unit_in_spaces
from odc.comparison.estimators import RAW, Estimate
from odc.comparison.plan import Request, plan
from odc.comparison.results import Outcome
from odc.data.datasets import build_dataset
from odc.data.feature_files import read_space
from odc.data.pipeline import Pipeline as View
from odc.engine.data import EXTRACT_VIEW, Source
from odc.engine.extract import extract
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation
from odc.models.cluster_model import ClusterModel, unwrap
from odc.recipes.pipeline import Pipeline
from odc.recipes.stage import Train
from odc.results.columns import prototypes, unit_vectors
from odc.sources import SCRATCH, Space, extract_space, extraction_config, read_source
from odc.structures import UNLABELLED, LocalComm

_NEVER = 2**31  # epochs between two checkpoints: the last is kept in any case
_AT_ONCE = 4096  # vectors
_FEWEST = 100, 4  # vectors, in all and a cluster, from which a head has something to learn from


@dataclass(frozen=True)
class Model:
    """Maps samples to clusters."""

    centers: Tensor  # (K, D) float32, mean directions, of length 1; zeros where there is no sample
    spaces: tuple[int, ...]  # widths of the spaces that features consist of, D in all
    networks: tuple[Space, ...]  # that pictures pass first, where they were trained elsewhere
    trained: ClusterModel | None  # maps pictures, or vectors, to scores; None: the nearest of means
    view: Sequence[Mapping[str, Any]]  # transforms by which it sees pictures
    means: Tensor | None = None  # (K, D) float32 of vectors, of length 1 in each space where `unit`
    unit: bool = True

    def see_vectors(self, x: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return cluster (N,) int64 and distance to each centre (N, K) float32 of vectors (N, D)."""
        vectors = torch.from_numpy(x)
        if self.trained is None:
            assert self.means is not None
            means = self.means
            found = [torch.cdist(self._as_clustered(part), means).min(1) for part in vectors.split(_AT_ONCE)]
            near = torch.cat([distance.isfinite() for distance, _ in found])
            return torch.where(near, torch.cat([c for _, c in found]), UNLABELLED), self._distances(vectors)
        with torch.no_grad(), self.trained.averaged():
            scores = [self._scores(self.trained.features(part[:, :, None, None])) for part in vectors.split(_AT_ONCE)]
        return torch.cat(scores).argmax(1), self._distances(vectors)

    def see_pictures(self, config: Mapping[str, Any], folder: Path) -> tuple[Tensor, Tensor]:
        """Return the same of the pictures of a data set; ``folder`` is for files on the way."""
        if self.networks:
            files = features_of(self.networks, config, folder / "new")
            return self.see_vectors(np.concatenate([_rows(file) for file in files], axis=1))
        assert self.trained is not None
        source = Source(build_dataset(config), {EXTRACT_VIEW: View(self.view)}, 0)
        try:
            z = extract(self.trained, source, LocalComm(), batch_size=256).features.cpu()
        finally:
            source.loader.close()
        with torch.no_grad(), self.trained.averaged():
            clusters = self._scores(z).argmax(1)
        return clusters, self._distances(z)

    def _scores(self, z: Tensor) -> Tensor:
        assert self.trained is not None
        scores: Tensor = self.trained.head.predict(z)
        return scores

    def _as_clustered(self, x: Tensor) -> Tensor:
        return unit_in_spaces(x, self.spaces) if self.unit else x

    def _distances(self, x: Tensor) -> Tensor:
        return 1 - torch.from_numpy(unit_vectors(x.numpy(), self.spaces)) @ self.centers.T


def centers_of(x: Tensor, cluster: Tensor, num_clusters: int, spaces: Sequence[int]) -> Tensor:
    """Return the mean directions (K, D) of the vectors (N, D) in each cluster, zeros where there are none."""
    return torch.from_numpy(prototypes(unit_vectors(x.numpy(), spaces), cluster.numpy(), num_clusters))


class _Watch(Hook):
    """Keeps the model of the last training, and what it says of the samples."""

    def __init__(self) -> None:
        self.model: ClusterModel | None = None
        self.evaluation: Evaluation | None = None
        self._runners = list[Any]()

    def before_run(self, runner: Any) -> None:
        """Remember the runner."""
        self._runners.append(runner)

    def after_val(self, runner: Any) -> None:
        """Keep both."""
        self.model, self.evaluation = unwrap(runner.model), runner.val_loop.evaluation

    def release(self) -> None:
        """Let go of all else: runners and loops refer to themselves, and would hold samples and files for long."""
        for runner in self._runners:
            vars(runner.train_loop).clear()
            vars(runner).clear()
        self._runners.clear()


def method_for(wanted: str | None, num_clusters: int, vectors: int | None) -> str:
    """Return which method clusters so many vectors, or where these are ``None`` pictures, if ``wanted`` is not one."""
    if vectors is None:
        return wanted or "odc"
    if num_clusters == 1:  # the same by every method, and most need two
        return "kmeans"
    if wanted is None:
        few, of_each = _FEWEST
        return "kmeans" if vectors < max(few, of_each * num_clusters) else "scan"
    # Of a method whose last part trains on images, the one that does not.
    return "spice-self" if wanted == "spice" else wanted


def train(
    method: str | None,
    num_clusters: int,
    folder: Path,
    *,
    vectors: npt.NDArray[np.float32] | None = None,
    pictures: Mapping[str, Any] | None = None,
    features: str = SCRATCH,
    seed: int = 0,
    max_epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
    log_level: str = "INFO",
) -> tuple[Tensor, Model]:
    """Cluster vectors (N, D) or pictures, a config of a data set; return the cluster (N,) of each, and the model.

    Args:
        method: as ``odc compare --methods`` takes it; ``None``: see :func:`method_for`.
        num_clusters: K.
        folder: for all that is written on the way.
        features: what pictures become first, as ``odc compare --features`` takes it.
        seed: of everything random.
        max_epochs: that the trainings of the method share; ``None``: those of its config.
        options: settings to change, ``{"dotted.key": value}``.
        log_level: of all logs.

    Raises:
        InputError: for an unknown method or option, or one that cannot be of these samples.
    """
    networks, files = tuple[Space, ...](), list[Path]()
    N = len(build_dataset(pictures or {})) if vectors is None else len(vectors)
    if num_clusters > N:
        raise InputError(f"n_samples={N} should be >= n_clusters={num_clusters}: take fewer clusters")
    if vectors is not None:
        files = [folder / "vectors.npy"]
        np.save(files[0], vectors)
        files[0].with_suffix(".txt").write_text("".join(f"{i:09d}\n" for i in range(len(vectors))), encoding="utf-8")
    elif features != SCRATCH:
        networks = read_source(features)
        if any(space.model is None for space in networks):
            raise InputError(f"features='{features}' are there already: give them as X")
        assert pictures is not None
        files = features_of(networks, pictures, folder / "features", log_level)
    rows = [_rows(file) for file in files]
    chosen = method_for(method, num_clusters, len(rows[0]) if rows else None)
    if chosen == "kmeans" and method != chosen:  # which trains nothing
        max_epochs = None
    # Nobody goes on with a training that was interrupted, or looks at its log.
    quiet: dict[str, Any] = {"default_hooks.checkpoint.interval": _NEVER, "log_level": log_level}
    if log_level != "INFO":
        quiet["custom_hooks"] = []
    request = Request(
        methods=[chosen],
        out=folder / "run",
        dataset=None if files else "folder32",
        features="+".join(map(str, files)) or None,
        seeds=[seed],
        threads=torch.get_num_threads(),
        epochs=max_epochs,
        clusters=num_clusters,
        options={
            **quiet,
            **({} if files else {"data.dataset": {**(pictures or {}), "_delete_": True}}),
            **(options or {}),
        },
    )
    cell = plan(request)[-1]
    watch, last = _Watch(), cell.recipe.stages[-1]
    try:
        results = Pipeline(cell.recipe, cell.folder, places=cell.places, hooks=[watch]).run()
    finally:
        watch.release()
    x = torch.from_numpy(np.concatenate(rows, axis=1)) if rows else None
    spaces = tuple(part.shape[1] for part in rows)
    if isinstance(last, Train):
        assert watch.model is not None
        assert watch.evaluation is not None
        if not watch.evaluation.scores.shape[1]:
            raise InputError(f"the method '{chosen}' has no clusters: it only trains a network")
        x = watch.evaluation.features if x is None else x
        spaces, clusters = spaces or (x.shape[1],), watch.evaluation.clusters
        model, view = watch.model.cpu().eval(), last.config.data.views[EXTRACT_VIEW]
        return clusters, Model(centers_of(x, clusters, num_clusters, spaces), spaces, networks, model, view)
    if x is None or not isinstance(last, Estimate):
        raise InputError(f"the method '{chosen}' has no model for new images: take it on features of a network")
    outcome = Outcome.load(cell.home, int(results[last.name]["images"]))
    assert outcome is not None
    clusters, unit = torch.from_numpy(outcome.cluster), last.features != RAW
    K = max(num_clusters, int(clusters.max()) + 1)
    seen = unit_in_spaces(x, spaces) if unit else x
    inside = clusters != UNLABELLED
    means = torch.zeros(K, x.shape[1]).index_add_(0, clusters[inside], seen[inside])
    counts = torch.bincount(clusters[inside], minlength=K)[:, None]
    means = torch.where(counts > 0, means / counts, torch.inf)  # never the nearest
    return clusters, Model(centers_of(x, clusters, K, spaces), spaces, networks, None, (), means, unit)


def features_of(
    networks: Sequence[Space], pictures: Mapping[str, Any], folder: Path, log_level: str = "ERROR"
) -> list[Path]:
    """Write what networks make of pictures; return a folder of each, as :func:`read_space` reads it."""
    files = [folder / f"space{i}" for i in range(len(networks))]
    for space, file in zip(networks, files, strict=True):
        config = extraction_config(space, pictures, folder / "work")
        config.log_level = log_level
        extract_space(space, config, file)
    return files


def _rows(file: Path) -> npt.NDArray[np.float32]:
    rows: npt.NDArray[np.float32] = read_space(str(file)).rows.astype(np.float32, copy=False)
    return rows
