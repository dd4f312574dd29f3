"""From samples to a model, by the parts that train everywhere else, in a folder that goes away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine import Config
from mmengine.hooks import Hook
from torch import Tensor

from odc.clustering import margins
from odc.comparison.estimators import ESTIMATORS, RAW, Estimate
from odc.comparison.plan import Request, plan
from odc.comparison.results import Outcome
from odc.data.datasets import ImageDataset, build_dataset
from odc.data.feature_files import read_space
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation
from odc.folder.choice import Choice, choose
from odc.folder.looking import Look, look
from odc.folder.running import run_stages, shorter
from odc.portable import PortableModel, pack
from odc.portable.packing import networks_of, pack_nearest, pack_training
from odc.recipes import Features, Left, Pipeline, Recipe, Train
from odc.recipes.stage import place_spaces
from odc.results.clustering import Clustering
from odc.results.columns import unit_vectors
from odc.sources import SCRATCH, Space, extract_space, extraction_config, read_source
from odc.structures import UNLABELLED

_NEVER = 2**31  # epochs between two checkpoints: the last is kept in any case
_AT_ONCE = 4096  # vectors
_PICTURES = 32  # that are decoded at a time, in so many threads
_THREADS = 8
_FILES = "vectors"  # what features are called that are there already

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


# ------------------------------------------------------------------------------------------------------------ seeing


def see_vectors(model: PortableModel, x: Floats) -> tuple[Ints, Floats]:
    """Return the cluster (N,) of vectors (N, D), -1 where none has a sample, and 1 - cosine to each (N, K)."""
    return _see(model, (torch.from_numpy(x[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE)))


def see_pictures(model: PortableModel, dataset: ImageDataset) -> tuple[Ints, Floats]:
    """Return the same of pictures, of which few are in memory at a time."""
    N = len(dataset)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        batches = (range(i, min(i + _PICTURES, N)) for i in range(0, N, _PICTURES))
        return _see(model, (model.features(list(pool.map(dataset.image, batch))) for batch in batches))


def _see(model: PortableModel, batches: Iterator[Tensor]) -> tuple[Ints, Floats]:
    clusters, distances = list[Ints](), list[Floats]()
    for features in batches:
        best, cluster = model.scores(features).max(1)
        clusters.append(torch.where(best > -torch.inf, cluster, UNLABELLED).numpy())
        distances.append(1 - unit_vectors(features.numpy(), model.spaces) @ model.prototypes.T)
    return np.concatenate(clusters), np.concatenate(distances)


# ---------------------------------------------------------------------------------------------------------- training


class _Watch(Hook):
    """Keeps what the last training says of the samples, and lets Ctrl-C stop it at once, as the rest of a program."""

    def __init__(self) -> None:
        self.evaluation: Evaluation | None = None
        self._runners = list[Any]()
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def before_train(self, runner: Any) -> None:
        """Take the signals back: a loop ends its process in an orderly way, but this one is not its own."""
        with contextlib.suppress(ValueError):  # only the main thread may, and no other loop has them
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def before_run(self, runner: Any) -> None:
        """Remember the runner."""
        self._runners.append(runner)

    def after_val(self, runner: Any) -> None:
        """Keep it."""
        self.evaluation = runner.val_loop.evaluation

    def release(self) -> None:
        """Let go of all else: runners and loops refer to themselves, and would hold samples and files for long."""
        for runner in self._runners:
            vars(runner.train_loop).clear()
            vars(runner).clear()
        self._runners.clear()


@dataclass(frozen=True)
class Samples:
    """What is clustered: vectors, or pictures."""

    vectors: Floats | None  # (N, D)
    pictures: Mapping[str, Any] | None = None  # config of a data set
    features: str = SCRATCH  # what pictures become first, see odc.sources


def train(
    samples: Samples,
    num_clusters: int,
    folder: Path,
    *,
    method: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
    log_level: str = "INFO",
) -> tuple[Clustering, PortableModel]:
    """Cluster samples.

    Args:
        samples: N of them.
        num_clusters: K.
        folder: for all that is written on the way.
        method: as ``odc cluster --method`` takes it; ``None``: what that chooses.
        seed: of everything random.
        max_epochs: of a pre-training, and that the trainings after it share; ``None``: those of their configs.
        options: settings to change, ``{"dotted.key": value}``.
        log_level: of all logs.

    Raises:
        InputError: for an unknown method or option, or one that cannot be of these samples.
    """
    dataset = None if samples.pictures is None else build_dataset(samples.pictures)
    N = len(dataset if samples.vectors is None else samples.vectors)  # type: ignore[arg-type]
    if num_clusters > N:
        raise InputError(f"n_samples={N} should be >= n_clusters={num_clusters}: take fewer clusters")
    networks, files = tuple[Space, ...](), list[Path]()
    if samples.vectors is not None:
        files = [_written(samples.vectors, folder)]
    elif samples.features != SCRATCH:
        networks = read_source(samples.features)
        files = _extracted(networks, samples, folder, log_level)
    choice = _choice(method, num_clusters, max_epochs, N, dataset, bool(files), folder)
    trains = choice.row.partition("-")[0] not in ESTIMATORS  # besides a pre-training
    if max_epochs is not None and choice.row == method and not trains and not choice.row.endswith("-moco"):
        raise InputError(f"max_epochs={max_epochs} is for methods that are trained: '{method}' is not, leave it out")
    # Nobody goes on with a training that was interrupted, or looks at its log.
    given: dict[str, Any] = {"default_hooks.checkpoint.interval": _NEVER, "log_level": log_level, **choice.options}
    if log_level != "INFO":
        given["custom_hooks"] = []
    if not files:
        given["data.dataset"] = {**_pictures(samples, choice), "_delete_": True}
    request = Request(
        methods=[choice.row],
        out=folder / "run",
        dataset=None if files else "folder32",
        features="+".join(map(str, files)) or None,
        seeds=[seed],
        threads=torch.get_num_threads(),
        epochs=max_epochs if trains else None,
        clusters=num_clusters,
        options={**given, **(options or {})},
    )
    cell = plan(request)[-1]
    watch = _Watch()
    pipeline = Pipeline(shorter(cell.recipe), cell.folder, places=cell.places, hooks=[watch])
    try:
        left = run_stages(pipeline)
    finally:
        watch.release()
    clustering = _described(left, pipeline.recipe, watch.evaluation, files, num_clusters, pipeline.dataset)
    return clustering, _packed(clustering, left, pipeline.recipe, dataset, networks, bool(files))


def _choice(
    method: str | None,
    num_clusters: int,
    max_epochs: int | None,
    samples: int,
    dataset: ImageDataset | None,
    features: bool,
    folder: Path,
) -> Choice:
    """Return the row of a comparison that ``odc cluster`` would take."""
    if num_clusters == 1:  # the same by every method, and most need two
        method = "kmeans" if features else "kmeans-pixels"
    elif features and method == "spice":  # whose last part trains on images
        method = "spice-self"
    if features or dataset is None:
        seen = Look(samples, sides=(1, 1, 1), grey=False, skipped=0, duplicates=0, load_seconds=0.0, cores=1)
        return choose(seen, num_clusters, _FILES, method)
    return choose(look(dataset, folder), num_clusters, SCRATCH, method, max_epochs)


def _pictures(samples: Samples, choice: Choice) -> dict[str, Any]:
    """Return the config of the data set of pictures that a training sees."""
    assert samples.pictures is not None
    if choice.square is None:
        return {**samples.pictures}
    return {"type": "Shrunk", "dataset": {**samples.pictures}, "size": choice.square}


def _written(vectors: Floats, folder: Path) -> Path:
    """Write vectors (N, D) as a file of features."""
    file = folder / "vectors.npy"
    np.save(file, vectors)
    file.with_suffix(".txt").write_text("".join(f"{i:09d}\n" for i in range(len(vectors))), encoding="utf-8")
    return file


def _extracted(networks: Sequence[Space], samples: Samples, folder: Path, log_level: str) -> list[Path]:
    """Write what networks make of pictures; return a folder of features of each."""
    if any(space.model is None for space in networks):
        raise InputError(f"features='{samples.features}' are there already: give them as X")
    assert samples.pictures is not None
    files = [folder / f"space{i}" for i in range(len(networks))]
    for space, file in zip(networks, files, strict=True):
        config = extraction_config(space, samples.pictures, folder / "extraction")
        config.log_level = log_level
        extract_space(space, config, file)
    return files


def _described(
    left: Mapping[str, Left],
    recipe: Recipe,
    evaluation: Evaluation | None,
    files: Sequence[Path],
    num_clusters: int,
    dataset: ImageDataset,
) -> Clustering:
    """Return the clustering that a recipe has left, of the vectors in ``files`` or of what it has learnt."""
    last = left[recipe.stages[-1].name]
    rows = [read_space(str(file)).rows.astype(np.float32, copy=False) for file in files]
    found: Tensor | tuple[Ints, Floats]
    if isinstance(last.stage, Train):
        assert evaluation is not None
        if not evaluation.scores.shape[1]:
            raise InputError(f"the method '{recipe.name}' has no clusters: it only trains a network")
        features, found = evaluation.features.numpy(), evaluation.scores
        if evaluation.lost is not None and bool(evaluation.lost.any()):
            cluster = torch.where(evaluation.lost, UNLABELLED, evaluation.clusters)
            found = cluster.numpy(), margins(evaluation.scores).numpy()
    else:
        outcome = Outcome.load(last.folder, len(dataset))
        assert outcome is not None
        features, found = outcome.features, (outcome.cluster, outcome.margin)
        num_clusters = max(num_clusters, int(outcome.cluster.max()) + 1)
    return Clustering.describe(
        "",
        dataset.paths,
        np.concatenate(rows, axis=1) if rows else features,
        found,
        num_clusters,
        about={"method": recipe.name},
        spaces=[part.shape[1] for part in rows],
    )


def _packed(
    clustering: Clustering,
    left: Mapping[str, Left],
    recipe: Recipe,
    pictures: ImageDataset | None,
    networks: Sequence[Space],
    features: bool,
) -> PortableModel:
    """Return the model of a recipe that has run on pictures, or on ``features`` that ``networks`` have made of them."""
    last = left[recipe.stages[-1].name]
    if not features:
        return pack(clustering, left, recipe, pictures)
    if isinstance(last.stage, Train):
        config: Config = last.stage.config.copy()
        place_spaces(config, left[_features_in(recipe)].file("spaces"))
        return pack_training(clustering, config, last.file("checkpoint"), pictures, networks)
    assert isinstance(last.stage, Estimate)
    unit = last.stage.features != RAW
    return pack_nearest(clustering, networks_of(networks, pictures), pictures, unit, networks)


def _features_in(recipe: Recipe) -> str:
    return next(stage.name for stage in recipe.stages if isinstance(stage, Features))
