"""Rows to batches of augmented images, each image under a random stream of its own.

What a row's images look like is a function of the request alone: not of the batch it is in, the worker that loads it,
or what else used a random generator. So a run resumes bitwise at any step, with any number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from odc.data.datasets import ImageDataset
from odc.data.transforms import Pipeline
from odc.errors import InputError, nearest

Views = dict[tuple[str, str], Tensor]

_MASK = (1 << 64) - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64


def mix(seed: int, *parts: int) -> int:
    """Return a 63-bit hash of ``seed`` and ``parts``, in this order: SplitMix64 chained over them."""
    state = _step(seed & _MASK)
    for part in parts:
        state = _step(state ^ (part & _MASK))
    return state >> 1


def _step(x: int) -> int:
    x = (x + _GAMMA) & _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def mix_array(seed: int, *parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return :func:`mix` of every element of ``parts`` broadcast together, int64."""
    state = np.asarray(_step(seed & _MASK), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for part in parts:
            bits = np.uint64(part & _MASK) if isinstance(part, int) else part.astype(np.uint64)
            x = (state ^ bits) + np.uint64(_GAMMA)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
            state = x ^ (x >> np.uint64(31))
    return np.asarray(state >> np.uint64(1)).astype(np.int64)


@dataclass(frozen=True)
class Request:
    """One row through one view.

    Attributes:
        stream: name of the stream that the row is for.
        view: name of the view.
        ids: P sample ids.
        variant: the row's variant (rotation by 90° × variant).
        key: what the augmentation is drawn from; image p of the row is drawn from (key, p).
    """

    stream: str
    view: str
    ids: tuple[int, ...]
    variant: int
    key: int


class ViewDataset(Dataset[Views]):
    """Images through named views, a batch of requests at a time.

    Args:
        source: the images.
        views: a pipeline for every name. Its transforms draw from torch's default generator only.
    """

    def __init__(self, source: ImageDataset, views: Mapping[str, Pipeline]) -> None:
        self.source = source
        self.views = dict(views)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, requests: Sequence[Request]) -> Views:
        """Return ``{(stream, view): (B, P, C, H, W) float32}``, each in the order of its requests.

        The state of torch's default generator is left as it was.

        Raises:
            InputError: unknown view, an image that cannot be decoded or transformed, or images of different shapes.
            ValueError: rows of one stream and view with different numbers of samples.
        """
        groups: dict[tuple[str, str], list[Request]] = {}
        for request in requests:
            groups.setdefault((request.stream, request.view), []).append(request)
        uses = Counter(i for request in requests for i in request.ids)
        decoded: dict[int, Tensor] = {}  # images that a later request of this batch needs again
        out: Views = {}
        generator = torch.default_generator
        state, threads = generator.get_state(), torch.get_num_threads()
        if threads > 1:
            torch.set_num_threads(1)  # as in workers: sums over pixels depend on the number of threads
        try:
            for (stream, name), rows in groups.items():
                if name not in self.views:
                    raise InputError(f"stream '{stream}' asks for view '{name}'{nearest(name, self.views)}")
                view = self.views[name]
                images = []
                for row in rows:
                    for p, i in enumerate(row.ids):
                        image = decoded.pop(i) if i in decoded else self.source.image(i)
                        uses[i] -= 1
                        if uses[i]:
                            decoded[i] = image.clone()  # a transform may write into what it is given
                        generator.manual_seed(mix(row.key, p))
                        images.append(view.augment(image, row.variant))
                if len({len(row.ids) for row in rows}) > 1:
                    raise ValueError(f"rows of stream '{stream}' differ in their number of samples")
                shapes = {tuple(image.shape) for image in images}
                if len(shapes) > 1:
                    some = " and ".join(map(str, sorted(shapes)[:2]))
                    raise InputError(
                        f"view '{name}' gives images of different shapes, {some}; add a crop, or Resize with both sides"
                    )
                batch = view.finish(torch.stack(images))
                out[stream, name] = batch.view(len(rows), -1, *batch.shape[1:])
        finally:
            generator.set_state(state)
            if threads > 1:
                torch.set_num_threads(threads)
        return out


class _Guarded(Dataset[Views]):
    """Gives an :class:`InputError` back as a value: raised in a worker it would come wrapped in a traceback's text."""

    def __init__(self, dataset: ViewDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, requests: Sequence[Request]) -> Views | InputError:
        try:
            return self._dataset.__getitems__(requests)
        except InputError as error:
            return InputError(*error.args)  # without its traceback and cause, which may not pickle


class _Feed:
    """The batches of the current run; the loader keeps this object, and with it its workers, for the next run."""

    def __init__(self) -> None:
        self.batches: Iterable[list[Request]] = ()

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.batches)


class BatchLoader:
    """Loads batches of requests in order, in this process or in workers that stay between runs.

    Args:
        dataset: gives the batches.
        num_workers: processes that load; 0 loads in this one. The tensors are bitwise the same.
    """

    def __init__(self, dataset: ViewDataset, num_workers: int) -> None:
        if num_workers < 0:
            raise InputError(f"num_workers must be 0 or more, got {num_workers}")
        self._dataset, self._num_workers = dataset, num_workers
        self._feed = _Feed()
        self._loader: DataLoader[Views] | None = None
        self._workers: Any = None  # the loader's own iterator, which stays from run to run
        self._run = 0

    def run(self, batches: Iterable[list[Request]]) -> Iterator[Views]:
        """Load ``batches``, each as :meth:`ViewDataset.__getitems__` gives it.

        With workers, batches are taken from the iterable ahead of the one that is given out. A run may be abandoned at
        any point; a new one ends those before it.

        Raises:
            InputError: as :meth:`ViewDataset.__getitems__`; the next run works.
            RuntimeError: another run was started since, or a worker died (:meth:`close`, and a new run works).
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

    def _iterate(self, iterator: Iterator[Views | InputError], run: int) -> Iterator[Views]:
        while True:
            if run != self._run:
                raise RuntimeError("this run was ended by a later one")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception:
                self.close()  # a worker died or failed: the next run starts afresh
                raise
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
            collate_fn=_identity,
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


def make_loader(dataset: ViewDataset, num_workers: int = 0) -> BatchLoader:
    """Return the loader of a data set's views; see :class:`BatchLoader`."""
    return BatchLoader(dataset, num_workers)


def _identity(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    """Let the parent decide when to stop: a signal sent to the whole process group reaches workers too.

    Ctrl-C is the parent's to handle. SIGTERM ends the worker in silence instead of making the parent fail while it
    saves its checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
