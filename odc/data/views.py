"""Rows to batches of augmented images, each image under a random stream of its own.

What a row's images look like is a function of the request alone: not of the batch it is in, the worker that loads it,
or what else used a random generator. So a run resumes bitwise at any step, with any number of workers.

Two loaders give the same views, up to the rounding of sums: :class:`BatchLoader` decodes and augments in this process
or in workers; :class:`BatchedLoader` holds all images in memory and augments whole batches on the model's device, for
small images. :func:`make_loader` picks.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from odc.data.datasets import ImageDataset
from odc.data.keyed import MAX_SMALL
from odc.data.keys import mix_array
from odc.data.pipeline import Pipeline
from odc.errors import InputError, nearest
from odc.processes import cores, end_with_parent

Views = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class ViewRequest:
    """One row through one view.

    The row, of P sample ids ``ids``, is for the stream named ``stream``; ``variant`` is its own (rotation by 90° ×
    variant). The augmentation of its image p is drawn from (``key``, p).
    """

    stream: str
    view: str
    ids: tuple[int, ...]
    variant: int
    key: int


class ViewDataset(Dataset[Views]):
    """Images through views, a pipeline for every name, a batch of requests at a time."""

    def __init__(self, source: ImageDataset, views: Mapping[str, Pipeline]) -> None:
        self.source, self.views = source, dict(views)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, requests: Sequence[ViewRequest]) -> Views:
        """Load images as :meth:`odc.data.ImageDataset.present` does, and return their views as :meth:`take` does."""
        uses = Counter(i for request in requests for i in request.ids)
        decoded: dict[int, Tensor] = {}  # images that a later request of this batch needs again

        def image(i: int) -> Tensor:
            found = decoded.pop(i) if i in decoded else self.source.present(i)
            uses[i] -= 1
            if uses[i]:
                decoded[i] = found
            return found

        threads = torch.get_num_threads()
        if threads > 1:
            torch.set_num_threads(1)  # as in workers: sums over pixels depend on the number of threads
        try:
            return self.take(requests, lambda ids: map(image, ids.tolist()))
        finally:
            if threads > 1:
                torch.set_num_threads(threads)

    def take(
        self,
        requests: Sequence[ViewRequest],
        images: Callable[[Tensor], Tensor | Iterable[Tensor]],
        device: torch.device | str = "cpu",
    ) -> Views:
        """Return ``{(stream, view): (B, P, C, H, W) float32}``, each in the order of its requests.

        ``images`` gives the images of sample ids (B,) on ``device``, as :class:`Pipeline` takes them. The state of
        torch's default generator is left as it was.

        Raises InputError for an unknown view, an image that cannot be transformed, or images of different shapes,
        ValueError for rows of one stream and view with different numbers of samples.
        """
        groups: dict[tuple[str, str], list[ViewRequest]] = {}
        for request in requests:
            groups.setdefault((request.stream, request.view), []).append(request)
        out: Views = {}
        for (stream, name), rows in groups.items():
            if name not in self.views:
                raise InputError(f"stream '{stream}' asks for view '{name}'{nearest(name, self.views)}")
            if len({len(row.ids) for row in rows}) > 1:
                raise ValueError(f"rows of stream '{stream}' differ in their number of samples")
            ids = np.array([row.ids for row in rows], dtype=np.int64)
            keys = mix_array(np.array([row.key for row in rows], dtype=np.int64)[:, None], np.arange(ids.shape[1]))
            variants = np.array([row.variant for row in rows], dtype=np.int64).repeat(ids.shape[1])
            numbers = torch.from_numpy(np.stack((ids.reshape(-1), keys.reshape(-1), variants))).to(
                device, non_blocking=True
            )
            views = self.views[name](images(numbers[0]), numbers[1], numbers[2], name)
            out[stream, name] = views.view(*ids.shape, *views.shape[1:])
        return out


class _Guarded(Dataset[Views]):
    """Gives an :class:`InputError` back as a value: raised in a worker it would come wrapped in a traceback's text.

    Beside it are the images that were lost (:attr:`odc.data.ImageDataset.lost`) in this process since the last batch.
    """

    def __init__(self, dataset: ViewDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, requests: Sequence[ViewRequest]) -> tuple[Views | InputError, dict[int, str]]:
        lost = self._dataset.source.lost
        before = len(lost)
        try:
            result: Views | InputError = self._dataset.__getitems__(requests)
        except InputError as error:
            result = InputError(*error.args)  # without its traceback and cause, which may not pickle
        return result, dict(itertools.islice(lost.items(), before, None))


class _Feed:
    """The batches of the current run; the loader keeps this object, and with it its workers, for the next run."""

    def __init__(self) -> None:
        self.batches: Iterable[list[ViewRequest]] = ()

    def __iter__(self) -> Iterator[list[ViewRequest]]:
        return iter(self.batches)


class BatchLoader:
    """Loads batches of requests in order, in this process (0 workers) or, bitwise the same, in workers that stay."""

    def __init__(self, dataset: ViewDataset, num_workers: int) -> None:
        self._dataset, self._num_workers = dataset, num_workers
        self._feed = _Feed()
        self._loader: DataLoader[Any] | None = None
        self._workers: Any = None  # the loader's own iterator, which stays from run to run
        self._run = 0

    def run(self, batches: Iterable[list[ViewRequest]]) -> Iterator[Views]:
        """Load ``batches``, each as :meth:`ViewDataset.__getitems__` gives it.

        With workers, batches are taken from the iterable ahead of the one that is given out. A run may be abandoned at
        any point; a new one ends those before it.

        Raises InputError as that does (the next run works), RuntimeError where another run was started since, or a
        worker died (:meth:`close`, and a new run works).
        """
        self._run += 1
        try:
            if self._loader is None:
                self._start()
            self._feed.batches = batches
            assert self._loader is not None
            iterator = iter(self._loader)
        except Exception:
            self.close()
            raise
        return self._iterate(iterator, self._run)

    def close(self) -> None:
        """End the workers; the next run starts new ones."""
        self._run += 1
        if self._workers is not None:
            # Left to the garbage collector this can happen long after, and then finalise a queue's pipe while the
            # queue's thread closes it: the number may be another file's by then.
            self._workers._shutdown_workers()
        self._loader = self._workers = None

    def _iterate(self, iterator: Iterator[tuple[Views | InputError, dict[int, str]]], run: int) -> Iterator[Views]:
        while True:
            if run != self._run:
                raise RuntimeError("this run was ended by a later one")
            try:
                batch, lost = next(iterator)
            except StopIteration:
                return
            except Exception:
                self.close()  # a worker died or failed: the next run starts afresh
                raise
            self._dataset.source.note_lost(lost)
            if isinstance(batch, InputError):
                raise batch
            yield batch

    def _start(self) -> None:
        # Fork starts in milliseconds and inherits the data set and every registered class. The known danger, OpenMP
        # threads of the parent, is met by workers running torch on one thread and never calling FAISS or a GPU.
        # Elsewhere than on Linux system libraries do not survive a fork.
        start = "fork" if sys.platform == "linux" else "spawn"
        self._loader = DataLoader(
            _Guarded(self._dataset),
            batch_sampler=self._feed,
            num_workers=self._num_workers,
            collate_fn=tuple,  # which it is
            worker_init_fn=_init_worker,
            multiprocessing_context=multiprocessing.get_context(start) if self._num_workers else None,
            generator=torch.Generator(),  # else each run would draw a seed from the global one
            persistent_workers=self._num_workers > 0,
        )
        if self._num_workers:
            self._feed.batches = ()  # workers exist, and can be ended, before the batches may raise
            with warnings.catch_warnings():
                # Python >= 3.12 warns of any fork beside other threads
                warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
                self._workers = iter(self._loader)


# What is held in memory unless asked for. A constant, not what the machine has: the choice may change the rounding, and
# a run must resume elsewhere.
MAX_BATCHED_BYTES = 4 << 30


class BatchedLoader:
    """Loads batches of requests from images of one shape that all lie in memory, on the model's device; no workers.

    The images are decoded at the first run.
    """

    def __init__(self, dataset: ViewDataset, device: torch.device | str) -> None:
        self._dataset, self._device = dataset, torch.device(device)
        self._images: Tensor | None = None
        self._run = 0

    def run(self, batches: Iterable[list[ViewRequest]]) -> Iterator[Views]:
        """Load ``batches`` as :meth:`BatchLoader.run` does, but on the device."""
        self._run += 1
        return self._iterate(batches, self._run)

    def close(self) -> None:
        """End the run, where there is one; the images stay in memory."""
        self._run += 1

    def _iterate(self, batches: Iterable[list[ViewRequest]], run: int) -> Iterator[Views]:
        if self._images is None:
            self._images = self._dataset.source.images().to(self._device)
        images = self._images
        for batch in batches:
            if run != self._run:
                raise RuntimeError("this run was ended by a later one")
            yield self._dataset.take(batch, images.__getitem__, self._device)


def make_loader(
    dataset: ViewDataset, num_workers: int = 0, device: torch.device | str | None = None, batched: bool | None = None
) -> BatchLoader | BatchedLoader:
    """Return the loader of a data set's views, and log which one and why.

    Args:
        num_workers: processes that load images as they are needed; no more than this process has cores, since their
            number changes speed alone.
        device: the model's; ``None``: not known, images are loaded to main memory as they are needed.
        batched: hold the images in memory and augment them in batches (:class:`BatchedLoader`), or load them as they
            are needed (:class:`BatchLoader`). ``None``: in memory where all images have one shape, of at most 64 pixels
            a side and 4 GiB in all, and every view has a form for batches. Vectors are in memory anyway, those of more
            than 4 GiB in the machine's.

    Raises InputError where ``num_workers`` is negative, or ``batched`` is True and not possible.
    """
    if num_workers < 0:
        raise InputError(f"num_workers must be 0 or more, got {num_workers}")
    num_workers = min(num_workers, cores())
    if device is None:
        return BatchLoader(dataset, num_workers)
    shape = dataset.source.image_shape or ()
    told, size = "×".join(map(str, shape)), len(dataset) * math.prod(shape)
    if dataset.source.spaces and batched is not False:
        size *= 4
        device = device if size <= MAX_BATCHED_BYTES else "cpu"
        print_log(
            f"vectors of {told} stay in memory ({size / 2**20:,.1f} MiB) on {device}",
            "current",
        )
        return BatchedLoader(dataset, device)
    obstacles = [f"{name} ({view.obstacle})" for name, view in dataset.views.items() if view.obstacle]
    reason = ""
    if not shape:
        reason = "they differ in shape"
    elif max(shape[1:]) > MAX_SMALL:
        reason = f"they have {told} pixels, more than {MAX_SMALL} a side"
    elif batched is None and size > MAX_BATCHED_BYTES:
        reason = (
            f"they would take {size / 2**30:.1f} GiB, more than {MAX_BATCHED_BYTES >> 30}; data.batched=True holds them"
        )
    elif obstacles:
        reason = f"these views have no form for batches: {', '.join(obstacles)}"
    if batched and reason:
        raise InputError(f"data.batched=True is not possible for these images: {reason}")
    if batched is False:
        reason = "data.batched=False"
    if reason:
        where = f"{num_workers} workers" if num_workers else "this process"
        print_log(f"images are loaded and augmented in {where}: {reason}", "current")
        return BatchLoader(dataset, num_workers)
    if torch.device(device).type not in ("cpu", "cuda"):
        device = "cpu"  # others lack the 64-bit numbers that the draws need
    print_log(f"images of {told} stay in memory ({size / 2**20:,.1f} MiB), augmented in batches on {device}", "current")
    return BatchedLoader(dataset, device)


def _init_worker(worker: int) -> None:
    """Let the parent decide when to stop: a signal sent to the whole process group reaches workers too.

    Ctrl-C is the parent's to handle. SIGTERM ends the worker in silence instead of making the parent fail while it
    saves its checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    end_with_parent()  # torch's workers notice only where they wait for work
