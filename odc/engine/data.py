"""The data of a run: what is trained on, what is evaluated, and one loader for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.device import get_device

from odc.data.datasets import ImageDataset, build_dataset
from odc.data.image_files import FileDataset
from odc.data.pipeline import Pipeline
from odc.data.views import ViewDataset, make_loader
from odc.errors import InputError

EXTRACT_VIEW = "extract"


class Source:
    """A data set seen through views, with the loader that gives them; see :func:`odc.data.views.make_loader`."""

    def __init__(
        self,
        dataset: ImageDataset,
        views: dict[str, Pipeline],
        num_workers: int,
        device: torch.device | str | None = None,
        batched: bool | None = None,
    ) -> None:
        self.dataset, self.views = dataset, views
        self.watch: Callable[[int, int], None] | None = None  # is told how many of how many images are encoded
        if dataset.spaces:
            _check_vector_views(views)
        self.loader = make_loader(ViewDataset(dataset, views), num_workers, device, batched)


class ClusterData:
    """What ``data`` in a config stands for.

    Args:
        dataset: config of the data set to cluster.
        views: ``{name: [transforms]}``; ``"extract"`` is the deterministic one behind features and evaluation. Of
            vectors, all are empty lists.
        num_workers: processes that load and augment; 0 does it in the main process.
        extract_batch_size: images a forward when features are extracted.
        eval_dataset: config of the data set to evaluate on; by default the one that is clustered.
        batched: keep the images in memory and augment them in batches on the model's device. ``None``: where they all
            have one shape of at most 64 pixels a side, 4 GiB in all, and the transforms allow it; ``False``: load them
            as they are needed. The views are the same either way, up to rounding.
        feature_store: folder where a frozen backbone's features are kept, for this run when it resumes and for others
            with the same weights, views and images (:mod:`odc.engine.feature_store`); ``None``: in memory alone.

    Raises:
        InputError: for an unknown option, a missing view, or images that cannot be read.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        views: Mapping[str, Sequence[Mapping[str, Any]]],
        num_workers: int = 0,
        extract_batch_size: int = 256,
        eval_dataset: Mapping[str, Any] | None = None,
        batched: bool | None = None,
        feature_store: str | None = None,
    ) -> None:
        if EXTRACT_VIEW not in views:
            raise InputError(f"data.views must have a view '{EXTRACT_VIEW}'; it has {sorted(views)}")
        for name, transforms in views.items():
            if not isinstance(transforms, (list, tuple)):
                raise InputError(f"data.views.{name} must be a list of transforms, not {transforms!r}")
        if extract_batch_size < 1:
            raise InputError(f"data.extract_batch_size must be at least 1, not {extract_batch_size}")
        self.views = {name: Pipeline(transforms) for name, transforms in views.items()}
        self.extract_batch_size, self.feature_store = extract_batch_size, feature_store
        device = get_device()  # where the runner will put the model
        self.train = Source(build_dataset(dataset), self.views, num_workers, device, batched)
        self.eval = self.train
        if eval_dataset is not None:
            self.eval = Source(build_dataset(eval_dataset), self.views, num_workers, device, batched)
            _check_ranges(self.train.dataset, self.eval.dataset)
        self.steps = 1  # of the epoch that is running; mmengine's logs and timers read it through len()

    @property
    def dataset(self) -> ImageDataset:
        """The data set that is clustered."""
        return self.train.dataset

    def __len__(self) -> int:
        """Return the number of steps of the epoch that is running."""
        return self.steps

    def close(self) -> None:
        """End the worker processes."""
        self.train.loader.close()
        self.eval.loader.close()


def _check_vector_views(views: Mapping[str, Pipeline]) -> None:
    """Refuse transforms of pixels where the samples are vectors."""
    for name, view in views.items():
        if view.of_pixels:
            raise InputError(
                f"data.views.{name} has {view.of_pixels}, which is for images, but the samples of data.dataset are "
                f"vectors: set data.views.{name}=[]"
            )


def _check_ranges(train: ImageDataset, other: ImageDataset) -> None:
    """Check that images of more than 8 bits are seen by one scale, whichever of two data sets they are in."""
    ours, theirs = (data.value_range if isinstance(data, FileDataset) else None for data in (train, other))
    if ours is not None and theirs is not None and ours != theirs:
        raise InputError(
            f"images of more than 8 bits have the range {ours[0]:g} to {ours[1]:g} in data.dataset and "
            f"{theirs[0]:g} to {theirs[1]:g} in data.eval_dataset: give both the same value_range=[low,high]"
        )
