"""The one owner of pseudo-labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odc.errors import DamagedError, InputError
from odc.structures import UNLABELLED, LabelDelta, Labels, PseudoLabels, on_gpu

_STATE = ("index", "variant", "target", "num_classes", "counts")


class LabelStore(nn.Module):
    """Rows of pseudo-labels: replaced as a whole by a refresh, changed row by row by an update.

    It starts with one unlabelled row for each sample id, 0 to ``num_samples`` - 1. All state is in persistent buffers;
    ``load_state_dict`` takes tensors of any number of rows, columns and classes, because a refresh changes these.
    """

    resizes_on_load = True

    index: Tensor  # (M, P) int64 sample ids
    variant: Tensor  # (M,) int64 variants of the images
    target: Tensor  # (M, T) int64; -1 is unlabelled
    num_classes: Tensor  # (T,) int64
    counts: Tensor  # (K,) int64 rows in each class of the first target column, K = num_classes[0]; kept incrementally

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()  # of the classes of the first target column; they lie in a checkpoint's meta
        for name in _STATE:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        ids = torch.arange(num_samples).unsqueeze(1)
        self.replace(PseudoLabels(ids, torch.full_like(ids, UNLABELLED), (0,)))

    @torch.no_grad()
    def replace(self, labels: PseudoLabels) -> None:
        """Take these rows instead of all there were; copied to the store's device.

        Raises:
            InputError: a target is outside -1..C - 1 of its column, or an id is negative.
        """
        device = self.index.device
        target = labels.target.to(device, torch.int64, copy=True)
        self._check_targets(target, torch.tensor(labels.num_classes, device=device))
        index = labels.index.to(device, torch.int64, copy=True)
        if index.numel() and int(index.min()) < 0:
            raise InputError(f"sample ids start at 0, but the pseudo-labels hold {int(index.min())}")
        self.index, self.target = index, target
        self.variant = labels.variant.to(device, torch.int64, copy=True)
        self.num_classes = torch.tensor(labels.num_classes, dtype=torch.int64, device=device)
        self.names = labels.names
        first = target[:, 0]
        self.counts = torch.bincount(first[first >= 0], minlength=labels.num_classes[0])

    @torch.no_grad()
    def update(self, delta: LabelDelta) -> None:
        """Give some rows new targets; O(R). On a GPU nothing is checked, since that would wait for it.

        Raises:
            InputError: a row is given two targets or does not exist, or a target is outside -1..C - 1 of its column.
        """
        row = delta.row.to(self.target.device, non_blocking=True)
        target = delta.target.to(self.target.device, non_blocking=True)
        M, T = self.target.shape
        if target.shape != (row.shape[0], T):
            raise InputError(
                f"{row.shape[0]} rows change, so targets must be ({row.shape[0]}, {T}), not {tuple(target.shape)}"
            )
        if row.numel() == 0:
            return
        row, place = row.sort(stable=True)
        target = target[place]
        new = torch.ones_like(row, dtype=torch.bool)  # not what the row before is
        new[1:] = row[1:] != row[:-1]
        if not on_gpu(row):
            if int(row[0]) < 0 or int(row[-1]) >= M:
                raise InputError(f"rows {int(row[0])} to {int(row[-1])} change, but there are rows 0 to {M - 1}")
            if bool((~new[1:, None] & (target[1:] != target[:-1])).any()):
                raise InputError(f"of the {row.shape[0]} rows that change one has two targets")
            self._check_targets(target, self.num_classes)
        if self.counts.numel():
            for first, sign in ((self.target.index_select(0, row)[:, 0], -1), (target[:, 0], 1)):
                # Unlabelled rows add zero, to any class: no masking, which would wait for the GPU.
                self.counts.index_add_(0, first.clamp(min=0), ((first >= 0) & new).long() * sign)
        self.target[row] = target

    def view(self) -> Labels:
        """Return the read-only view that heads are given; it always shows the store as it is now, without copies."""
        return LabelView(self)

    @staticmethod
    def _check_targets(target: Tensor, num_classes: Tensor) -> None:
        if target.numel() and bool(((target < UNLABELLED) | (target >= num_classes)).any()):
            low, high = target.min(dim=0).values.tolist(), target.max(dim=0).values.tolist()
            raise InputError(f"targets run from {low} to {high}, but the numbers of classes are {num_classes.tolist()}")

    @staticmethod
    def _check_state(state: list[Any]) -> None:
        """Check that tensors to be loaded, in the order of their names, are those of one store.

        Raises:
            DamagedError: they do not fit each other.
        """
        if not all(isinstance(tensor, Tensor) for tensor in state):
            return  # some lack, which is reported as for any other module
        index, variant, target, num_classes, counts = state
        shapes = [tuple(tensor.shape) for tensor in state]
        (M, T), K = (target.shape if target.ndim == 2 else (-1, -1)), int(num_classes[0]) if num_classes.numel() else -1
        fits = index.ndim == 2 and [len(index), *shapes[1:4]] == [M, (M,), (M, T), (T,)] and shapes[4] == (K,)
        if not fits or any(tensor.dtype != torch.int64 for tensor in state):
            raise DamagedError(
                f"pseudo-labels are damaged: {dict(zip(_STATE, shapes, strict=True))} do not fit together"
            )
        if any(tensor.numel() and int(tensor.min()) < 0 for tensor in (index, variant)):
            raise DamagedError("pseudo-labels are damaged: an id or a variant is negative")
        first = target[:, 0]
        wrong = (target < UNLABELLED) | (target >= num_classes)
        if bool(wrong.any()) or not torch.equal(torch.bincount(first[first >= 0], minlength=K), counts):
            raise DamagedError(
                f"pseudo-labels are damaged: targets from {int(target.min())} to {int(target.max())} do not fit "
                f"{num_classes.tolist()} classes and their counts"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._check_state([state_dict.get(f"{prefix}{name}") for name in _STATE])
        for name, buffer in list(self.named_buffers(recurse=False)):
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor) and loaded.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LabelView:
    """The store without the methods that change it; the tensors are the store's own, not to be written to."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store

    @property
    def index(self) -> Tensor:
        """(M, P) int64 sample ids of every row."""
        return self._store.index

    @property
    def target(self) -> Tensor:
        """(M, T) int64 labels of every row, -1 unlabelled."""
        return self._store.target

    @property
    def counts(self) -> Tensor:
        """(K,) int64 rows in each class of the first target column."""
        return self._store.counts
