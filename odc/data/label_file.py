"""Labels that a training starts from: a file of another run or of a person, or a fraction of the true ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.datasets import ImageDataset, Targets
from odc.data.table import classes_of, read_labels
from odc.errors import DamagedError, InputError
from odc.files import written_whole
from odc.reading import read_arrays, reading
from odc.structures import UNLABELLED, PseudoLabels, make_generator, sort_into_groups

_ARRAYS = {"target": ("iu", 1), "num_classes": ("iu", 0), "fingerprint": ("U", 0), "meta": ("U", 2)}
_MOST = 2**30  # bytes: labels of 134 million images


@dataclass(frozen=True)
class LabelFile:
    """Labels of the images of one data set, in a ``.npz`` of plain arrays.

    Attributes:
        target: (N,) int64 by sample id, from -1 (unlabelled) to K - 1; anything else is an :class:`InputError`.
        num_classes: K.
        fingerprint: of the data set (:attr:`odc.data.ImageDataset.fingerprint`).
        meta: where the labels are from, for whoever reads the file; nothing else reads it.
    """

    target: Targets
    num_classes: int
    fingerprint: str
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target = np.asarray(self.target)
        if target.ndim != 1 or target.dtype.kind not in "iu":
            raise InputError(
                f"labels are one integer for each image, (N,) int64, not {target.dtype} {tuple(target.shape)}"
            )
        if self.num_classes < 1:
            raise InputError(f"labels need at least 1 class, not {self.num_classes}")
        if target.size and not UNLABELLED <= target.min() <= target.max() < self.num_classes:
            raise InputError(
                f"labels run from {target.min()} to {target.max()}, but there are {self.num_classes} classes: give "
                f"-1 (unlabelled) to {self.num_classes - 1}"
            )
        object.__setattr__(self, "target", target.astype(np.int64))

    def save(self, path: str | Path) -> None:
        """Write to ``path``, completely or not at all; raises InputError where that is impossible or no ``.npz``."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"'{path}' does not end in .npz: labels are written as NumPy arrays")
        try:
            with written_whole(path) as file:
                np.savez_compressed(
                    file,
                    target=self.target,
                    num_classes=np.int64(self.num_classes),
                    fingerprint=np.str_(self.fingerprint),
                    meta=np.array(list(self.meta.items()), dtype=np.str_).reshape(-1, 2),
                )
        except OSError as error:
            raise InputError(f"cannot write labels to '{path}': {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> LabelFile:
        """Return what :meth:`save` wrote, executing nothing in it; raises DamagedError where there is no such file."""
        with reading(path, "is not a file of labels", "write one with odc reliable, or LabelFile.save"):
            target, number, fingerprint, meta = read_arrays(path, _ARRAYS, most=_MOST).values()
            if meta.shape[1] != 2:
                raise ValueError("its meta is not a list of pairs of texts")
        try:
            return cls(target, int(number), str(fingerprint), {str(k): str(v) for k, v in meta})
        except InputError as error:
            raise DamagedError(f"'{path}': {error}") from error

    def for_dataset(self, dataset: ImageDataset) -> Tensor:
        """Return the labels (N,) int64 of a data set's images; raises InputError where they are of others."""
        if self.fingerprint != dataset.fingerprint or len(self.target) != len(dataset):
            raise InputError(
                f"the labels are of {len(self.target):,} images with fingerprint {self.fingerprint}, but the data set "
                f"has {len(dataset):,} with fingerprint {dataset.fingerprint}: give data.dataset the images that the "
                "labels were made from, or make the labels anew from these images"
            )
        return torch.from_numpy(self.target.copy())


def low_shot(target: Targets, fraction: float, generator: torch.Generator) -> Tensor:
    """Return the labels of a random part of the images, as evenly over the classes as their sizes allow.

    The images of each class are put in a random order; the first of every class are taken, then the second of every
    class, and so on, until ``fraction``, in (0, 1], of the labelled images are. So two classes differ by 1 at most,
    unless one of them is used up, and no class is left without a label. ``generator`` is one of the CPU.

    ``target`` are (N,) int64 classes, -1 unlabelled; so is what is returned, where -1 is also what was not taken.
    """
    labels = torch.from_numpy(np.ascontiguousarray(target, dtype=np.int64))
    rows = (labels != UNLABELLED).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    by_class, _, place, size = sort_into_groups(labels[rows], int(labels.max()) + 1)
    turn = torch.empty_like(rows)  # of each row within its class
    turn[by_class] = place
    taken = rows[turn.argsort(stable=True)[: max(round(fraction * len(rows)), int((size > 0).sum()))]]
    out = torch.full_like(labels, UNLABELLED)
    out[taken] = labels[taken]
    return out


def first_labels(
    dataset: ImageDataset, label_file: str | None, label_fraction: float | None, seed: int
) -> PseudoLabels:
    """Return one row for every image: unlabelled, or by ``label_file`` or ``label_fraction`` of ``train_cfg``.

    A file of another run is a :class:`LabelFile`; a person's is a CSV table with the columns ``path`` and ``label``,
    whose labels name the classes. Raises InputError where the file is of other images, or there are no true labels to
    take a fraction of.
    """
    target, K = torch.full((len(dataset),), UNLABELLED), 0
    names: tuple[str, ...] = ()
    if label_file is not None and Path(label_file).suffix == ".csv":
        index, labels, _ = read_labels(label_file, dataset.paths)
        names, origin = classes_of(labels), label_file
        K = len(names)
        target[torch.from_numpy(index)] = torch.tensor([names.index(label) for label in labels])
    elif label_file is not None:
        file = LabelFile.load(label_file)
        target, K, origin = file.for_dataset(dataset), file.num_classes, label_file
    elif label_fraction is not None:
        if dataset.targets is None or dataset.classes is None:
            raise InputError(
                f"train_cfg.label_fraction={label_fraction} takes true labels, but the {len(dataset):,} images "
                f"{dataset.origin} have none: set train_cfg.label_file, or label_fraction=None"
            )
        target = low_shot(dataset.targets, label_fraction, make_generator(seed, "label_fraction"))
        K, origin = len(dataset.classes), f"ground truth (train_cfg.label_fraction={label_fraction})"
    if K:
        labelled = int((target >= 0).sum())
        print_log(f"{labelled:,} of {len(dataset):,} rows are labelled, {K} classes, from {origin}", "current")
    return PseudoLabels(torch.arange(len(dataset))[:, None], target[:, None], (K,), names=names)
