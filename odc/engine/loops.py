"""The loop that trains every clustering method: the only file that orders the phases.

An epoch is: plan → chunks of the data set, each: extract → refresh the labels → repeats of steps, each: forward and
loss → optimiser → online update of the labels → and at the end, where the plan says so, extract → select.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from odc.checkpoints import mark_last
from odc.data.keys import mix, mix_array
from odc.data.label_file import LabelFile, low_shot
from odc.data.sampler import draw_rows
from odc.data.views import ViewRequest
from odc.engine.checkpointing import CheckpointHook
from odc.engine.comm import arrive, get_comm
from odc.engine.data import EXTRACT_VIEW, ClusterData
from odc.engine.extract import encode_views, extract
from odc.engine.finite import diverged, non_finite
from odc.engine.schedules import Schedule
from odc.errors import InputError, nearest
from odc.evaluation.evaluator import Evaluation
from odc.evaluation.results import read_results
from odc.memory.sample_buffer import SampleBuffer
from odc.models.cluster_model import ClusterModel
from odc.reading import fields, flag, mapping, whole
from odc.registry import LOOPS, METRICS, SCHEDULES, build
from odc.structures import (
    UNLABELLED,
    Batch,
    FeatureTable,
    Plan,
    PseudoLabels,
    Refresh,
    Stream,
    derive_seed,
    make_generator,
)


def unwrap(model: Any) -> ClusterModel:
    """Return the model inside a wrapper for several ranks, or the model itself."""
    inner: ClusterModel = getattr(model, "module", model)
    return inner


@dataclass(frozen=True)
class FeatureCache:
    """Features of the training views of one refresh, for a model that does not change them.

    Attributes:
        slot: (M, P) int64, where the features of each row's images are.
        z: ``{view: (S, D) float32}`` of the S different images (sample and variant) of the rows.
    """

    slot: Tensor
    z: dict[str, Tensor]

    def lookup(self, streams: Iterable[Stream], rows: dict[str, Batch]) -> dict[tuple[str, str], Tensor]:
        """Return the features of a step, ``{(stream, view): (B, P, D) float32}``."""
        return {(s.name, view): self.z[view][self.slot[rows[s.name].row]] for s in streams for view in s.views}


def _table(value: Any) -> Tensor:
    """Kind: whole numbers in rows, (M, ...) int64."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 2:
        raise ValueError("a table of whole numbers is expected")
    return value


def _gradient(value: Any) -> Tensor:
    """Kind: a finite tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isfinite().all()):
        raise ValueError("a tensor of finite numbers is expected")
    return value


_POSITION = fields(
    {
        **dict.fromkeys(("chunk", "repeat", "step", "images_seen", "seed"), whole()),
        **dict.fromkeys(("begun", "refreshed", "encoded", "evaluated"), flag),
        **dict.fromkeys(("index_before", "labels_before"), _table),
        "order": mapping(_table),
        "gradients": mapping(_gradient),
        **dict.fromkeys(("threads", "ranks"), whole(1)),
    }
)


def _flat(tables: dict[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(table.flatten() for table in tables.values())])


@LOOPS.register_module()
class ClusterTrainLoop(BaseLoop):
    """Train a :class:`ClusterModel` by its head's plans.

    The position (chunk, repeat, step, order of the rows) is part of every checkpoint, and everything random is a
    function of the seed and the position: resuming is bitwise, at any step. SIGTERM and the first Ctrl-C save a
    checkpoint and stop.

    Where a plan refreshes labels and nothing in backbone and neck can change an image's features, those of the training
    views are computed once a refresh, for all repeats and all rows of an image, and no image is loaded in between. An
    image is then augmented once for each (epoch, chunk, view), from a key of these, its id and its variant, instead of
    anew at every position. The features of the images without augmentation, N×D numbers, are computed once. None of
    them is saved: a resumed run computes the same ones again.

    Args:
        runner: the runner.
        dataloader: the run's :class:`ClusterData`.
        max_epochs: epochs to train.
        val_interval: epochs between two evaluations; the last epoch is always evaluated.
        schedule: config of the learning rate's schedule; by default constant.
        label_file: start from the labels in this :class:`odc.data.LabelFile` instead of none.
        label_fraction: start from the true labels of this share, in (0, 1], of the images, drawn by the seed evenly
            over the classes, at least one of each: for low-shot and full fine-tuning only. A head that makes its own
            labels replaces them. These two options exclude each other, and no other way leads from ground truth to
            training.
        accumulative_counts: steps of one move of the optimiser, which takes the mean of their gradients, and at the end
            of a pass of as many as there are. A config says so in ``optim_wrapper``, as in mmengine. What follows the
            weights (moving averages, MoCo's key encoder) moves with the optimiser; batch norm's statistics, memories,
            queues and labels at every step, since they follow the images. Ranks average the gradients at every step
            too: then they stay equal, and a checkpoint inside a group is complete.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: ClusterData,
        max_epochs: int,
        val_interval: int = 1,
        schedule: dict[str, Any] | None = None,
        label_file: str | None = None,
        label_fraction: float | None = None,
        accumulative_counts: int = 1,
    ) -> None:
        super().__init__(runner, dataloader)
        if max_epochs < 1 or val_interval < 1:
            raise InputError(f"max_epochs and val_interval must be at least 1, not {max_epochs} and {val_interval}")
        if accumulative_counts < 1:
            raise InputError(f"optim_wrapper.accumulative_counts must be at least 1, not {accumulative_counts}")
        if label_fraction is not None and not 0.0 < label_fraction <= 1.0:
            raise InputError(f"train_cfg.label_fraction is a share of the images in (0, 1], not {label_fraction}")
        if label_file is not None and label_fraction is not None:
            raise InputError(
                f"train_cfg has label_file='{label_file}' and label_fraction={label_fraction}: labels start from one "
                "of them, set the other to None"
            )
        self.label_file = label_file
        self.label_fraction = label_fraction
        self.data = dataloader
        self.max_epochs = max_epochs
        self.val_interval = val_interval
        self.accumulative_counts = accumulative_counts
        self.schedule: Schedule = build(SCHEDULES, schedule or {"type": "Constant"})
        self.comm = get_comm()
        self.seed = int(runner.seed)
        self._epoch = self._iter = 0
        self._chunk = self._repeat = self._step = 0
        self._begun = False  # this epoch has begun: labels_before holds what it started from
        self._refreshed = False  # this chunk's labels are written
        self._order: dict[str, Tensor] = {}  # rows of every step of this pass, by stream
        self._encoded = False  # the views of this chunk are in images_seen: a resumed run encodes them once more
        self._evaluated = False  # nothing has been trained since the last evaluation
        self._fixed: Tensor | None = None  # (N, D) of all images without augmentation, while these cannot change
        self.index_before = self.labels_before = torch.zeros(0, 1, dtype=torch.int64)
        self.progress = 0.0  # share of the training that is done
        self.images_seen = 0  # views of images that the training has put through the network, over all ranks
        self._sums: dict[str, float] = {}
        self._count = 0
        self._signal: int | None = None
        self.stop_training = False  # set by mmengine's EarlyStoppingHook, after an evaluation

    # -- what mmengine and the hooks read ------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._epoch

    @property
    def iter(self) -> int:
        """Steps completed since the start of the training."""
        return self._iter

    @property
    def max_iters(self) -> int:
        """Steps of the whole training, if every epoch had as many as this one."""
        return self.max_epochs * len(self.data)

    @property
    def batch_size(self) -> int:
        """Rows of one move of the optimiser, of the largest stream of the first epoch, over all ranks."""
        streams = unwrap(self.runner.model).head.plan(0).streams
        return max(stream.size for stream in streams) * self.accumulative_counts

    @property
    def labels_now(self) -> Any:
        """The present labels, read-only."""
        return unwrap(self.runner.model).labels.view()

    def epoch_means(self) -> dict[str, float]:
        """Return the means of what was logged in this epoch (since the resume, where there was one)."""
        return {name: total / self._count for name, total in self._sums.items()} if self._count else {}

    # -- position ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position inside the epoch: plain numbers and tensors."""
        parameters = unwrap(self.runner.model).named_parameters()
        return {
            "gradients": {name: p.grad for name, p in parameters if p.grad is not None},  # not yet taken
            "chunk": self._chunk,
            "repeat": self._repeat,
            "step": self._step,
            "begun": self._begun,
            "refreshed": self._refreshed,
            "encoded": self._encoded,
            "evaluated": self._evaluated,
            "order": dict(self._order),
            "index_before": self.index_before,
            "labels_before": self.labels_before,
            "images_seen": self.images_seen,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "ranks": self.comm.world,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the rest of the run has the seed that it began with.

        Raises:
            ValueError: it is no position, or one among other rows than the model's labels have.
        """
        state = _POSITION(state)
        model = unwrap(self.runner.model)
        M, N = len(model.labels.index), len(self.data.dataset)
        for what, index, most in (("labels", model.labels.index, N), ("rows", _flat(state["order"]), M)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < most:
                raise ValueError(f"{what} {int(index.min())} to {int(index.max())} of {most:,}")
        memories = [module.rows for module in model.modules() if isinstance(module, SampleBuffer)]
        if any(len(rows) not in (0, M, N) for rows in memories):
            raise ValueError(f"memories of {[len(rows) for rows in memories]} rows for {M:,} labels of {N:,} images")
        if any(state["step"] > len(order) for order in state["order"].values()):
            raise ValueError(f"step {state['step']}, but its order ends before")
        expected, found = model.head.label_classes, tuple(model.labels.num_classes.tolist())
        if expected is not None and found not in (expected, (0,)):
            raise ValueError(f"the labels have {found} classes, the head {expected}")
        self.seed = state["seed"]
        if state["threads"] != torch.get_num_threads():
            self.runner.logger.warning(
                f"the checkpoint was trained on {state['threads']} threads, this process has "
                f"{torch.get_num_threads()}: sums round differently (OMP_NUM_THREADS={state['threads']} repeats them)"
            )
        if state["ranks"] != self.comm.world:
            self.runner.logger.warning(
                f"the checkpoint was trained on {state['ranks']} processes, this run has {self.comm.world}: sums and "
                f"batch-norm statistics differ from here on ({state['ranks']} processes repeat them)"
            )
        self._chunk, self._repeat, self._step = state["chunk"], state["repeat"], state["step"]
        self._begun, self._refreshed = state["begun"], state["refreshed"]
        self._encoded, self._evaluated = state["encoded"], state["evaluated"]
        self._order = dict(state["order"])
        self.index_before, self.labels_before = state["index_before"], state["labels_before"]
        self.images_seen = state["images_seen"]
        for name, parameter in model.named_parameters():
            gradient = state["gradients"].get(name)
            if gradient is not None and gradient.shape != parameter.shape:
                raise ValueError(f"the gradient of {name} has the shape {tuple(gradient.shape)}")
            parameter.grad = None if gradient is None else gradient.to(parameter)

    # -- the phases ----------------------------------------------------------------------------------------------

    def run(self) -> torch.nn.Module:
        """Train; return the model."""
        self.runner.settle_precision()
        model = unwrap(self.runner.model)
        fresh = self._iter == 0 and not self._begun
        if model.labels.index.shape[0] == 0 or (fresh and (self.label_file or self.label_fraction)):
            model.labels.replace(self._first_labels())
        handlers = self._catch_signals()
        try:
            self.progress = self._epoch / self.max_epochs
            if self._epoch >= self.max_epochs:
                self.runner.logger.info(
                    f"nothing to train: {self._epoch} of {self.max_epochs} epochs are done (train_cfg.max_epochs)"
                )
            if (name := non_finite(model)) is not None:
                source = self.runner.cfg.get("load_from") or model.pretrained or "its initialisation"
                raise InputError(
                    f"'{name}' of the model is not finite before the first step, from {source}: take another"
                )
            self.runner.call_hook("before_train")
            if self._epoch >= self.max_epochs:
                self._complete()
            elif self._epoch and not self._begun and not self._evaluated:
                self._evaluate()  # the run was stopped between the checkpoint and the end of the evaluation
            while self._epoch < self.max_epochs and not self.stop_training:
                self.run_epoch()
                self._evaluate()
                if self._epoch < self.max_epochs and not self.stop_training:
                    self._stop_if_asked(between_epochs=True)
            self.runner.call_hook("after_train")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.data.close()
        return model

    def _evaluate(self) -> None:
        """Evaluate after an epoch, where it is time to."""
        if self.runner.val_loop is not None and (
            self._epoch >= self.max_epochs or self._epoch % self.val_interval == 0
        ):
            self.runner.val_loop.run()
            asked = torch.tensor(int(self.stop_training), device=next(self.runner.model.parameters()).device)
            self.stop_training = bool(self.comm.sum(asked))
        self._evaluated = True

    def _complete(self) -> None:
        """Evaluate at the end of a training of which no epoch is left, unless its results are there and whole."""
        if self.runner.val_loop is None:
            return
        found = [read_results(Path(self.runner.work_dir), self._epoch) if self.comm.rank == 0 else None]
        broadcast_object_list(found)  # one choice for all ranks
        if found[0] is None:
            self._evaluate()
        else:
            self.runner.val_loop.values = found[0].values
            self.runner.logger.info(f"the results in {self.runner.work_dir} are complete: nothing to evaluate")

    def _first_labels(self) -> PseudoLabels:
        """Return one row for every image: unlabelled, or by ``label_file`` or ``label_fraction``."""
        dataset = self.data.dataset
        target, K = torch.full((len(dataset),), -1), 0
        if self.label_file is not None:
            file = LabelFile.load(self.label_file)
            target, K, origin = file.for_dataset(dataset), file.num_classes, self.label_file
        elif self.label_fraction is not None:
            if dataset.targets is None or dataset.classes is None:
                raise InputError(
                    f"train_cfg.label_fraction={self.label_fraction} takes true labels, but the {len(dataset):,} "
                    f"images {dataset.origin} have none: set train_cfg.label_file, or label_fraction=None"
                )
            target = low_shot(dataset.targets, self.label_fraction, make_generator(self.seed, "label_fraction"))
            K, origin = len(dataset.classes), f"ground truth (train_cfg.label_fraction={self.label_fraction})"
        if K:
            self.runner.logger.info(
                f"{int((target >= 0).sum()):,} of {len(dataset):,} rows are labelled, {K} classes, from {origin}"
            )
        return PseudoLabels(torch.arange(len(dataset))[:, None], target[:, None], (K,))

    def run_epoch(self) -> None:
        """Train one epoch, or what is left of it after a resume."""
        model = unwrap(self.runner.model)
        plan = model.head.plan(self._epoch)
        self._check(plan)
        self._sums, self._count = {}, 0
        if not self._begun:
            self.index_before, self.labels_before = model.labels.index.clone(), model.labels.target.clone()
            self._begun, self._evaluated = True, False
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        chunks = self._chunks(plan)
        while self._chunk < len(chunks):
            if plan.refresh is not None and not self._refreshed:
                self._refresh(plan.refresh, chunks[self._chunk])
            self._refreshed = True
            cache = self._cache(plan)
            while self._repeat < plan.repeats:
                self._pass(plan, len(chunks), cache)
                self._repeat, self._step, self._order = self._repeat + 1, 0, {}
            self._chunk, self._repeat, self._refreshed, self._encoded = self._chunk + 1, 0, False, False
        if plan.select:
            with torch.no_grad():
                model.head.select(self._extract(None, None), self.comm)
        self._chunk, self._begun = 0, False
        self.progress = (self._epoch + 1) / self.max_epochs
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _check(self, plan: Plan) -> None:
        for stream in plan.streams:
            if stream.size % self.comm.world:
                raise InputError(
                    f"stream '{stream.name}' has {stream.size} rows a step, which {self.comm.world} ranks cannot "
                    f"share equally: use a multiple of {self.comm.world}"
                )
            labels = self.labels_now
            if stream.rows == "labelled" and plan.refresh is None and not bool((labels.target[:, 0] >= 0).any()):
                raise InputError(
                    f"stream '{stream.name}' trains on labelled rows, but all {len(labels.target):,} are unlabelled: "
                    "set train_cfg.label_file, or, for low-shot and full fine-tuning, train_cfg.label_fraction"
                )
        wanted = [view for stream in plan.streams for view in stream.views]
        if plan.refresh is not None:
            wanted += [plan.refresh.logits] if plan.refresh.logits else []
            for name in plan.refresh.reset:
                _resettable(unwrap(self.runner.model).head, name)
        for view in wanted:
            if view not in self.data.views:
                raise InputError(f"the head wants the view '{view}'{nearest(view, self.data.views)} (data.views)")

    def _chunks(self, plan: Plan) -> list[Tensor | None]:
        N = len(self.data.dataset)
        chunk = None if plan.refresh is None else plan.refresh.chunk
        if chunk is None or chunk >= N:
            return [None]
        order = torch.randperm(N, generator=make_generator(self.seed, "chunks", self._epoch))
        full = N // chunk
        parts = [order[i * chunk : (i + 1) * chunk if i + 1 < full else N] for i in range(full)]
        return [part.sort().values for part in parts]

    def _extract(self, index: Tensor | None, logits_view: str | None) -> FeatureTable:
        """Extract features of some images, or of all, and where a view is given, the head's logits through it."""
        model = unwrap(self.runner.model)
        if _features_are_fixed(model):
            return self._extract_fixed(model, index, logits_view)
        with self.runner.autocast():
            return extract(
                model,
                self.data.train,
                self.comm,
                batch_size=self.data.extract_batch_size,
                index=index,
                logits=None if logits_view is None else model.head.logits,
                logits_view=logits_view,
                seed=derive_seed(self.seed, "logits", self._epoch, self._chunk),
                averaged=False,
            )

    @torch.no_grad()
    def _extract_fixed(self, model: ClusterModel, index: Tensor | None, logits_view: str | None) -> FeatureTable:
        """As :meth:`_extract`, where the features without augmentation have to be computed only once."""
        everything = torch.arange(len(self.data.dataset))
        if self._fixed is None:
            self._fixed = self._encode(model, everything, torch.zeros_like(everything), [EXTRACT_VIEW])[EXTRACT_VIEW]
        index = everything if index is None else index
        mine = torch.tensor_split(index, self.comm.world)[self.comm.rank].to(self._fixed.device)
        logits, training = None, model.head.training
        if logits_view is not None:
            model.head.eval()
            z = self._encode(model, index, torch.zeros_like(index), [logits_view], "logits")[logits_view]
            z = torch.tensor_split(z, self.comm.world)[self.comm.rank]
            logits = torch.cat([model.head.logits(part).float() for part in z.split(self.data.extract_batch_size)])
            model.head.train(training)
        return FeatureTable(mine, self._fixed[mine], logits, total=len(index))

    def _encode(
        self, model: ClusterModel, index: Tensor, variant: Tensor, views: list[str], purpose: str = ""
    ) -> dict[str, Tensor]:
        with self.runner.autocast():
            return encode_views(
                model,
                self.data.train,
                self.comm,
                batch_size=self.data.extract_batch_size,
                index=index,
                variant=variant,
                views=views,
                seed=derive_seed(self.seed, purpose, self._epoch, self._chunk),
            )

    def _cache(self, plan: Plan) -> FeatureCache | None:
        """Compute the features of the training views, where these stay what they are until the next refresh."""
        model = unwrap(self.runner.model)
        if plan.refresh is None or not _features_are_fixed(model):
            return None
        store = model.labels
        variants = int(store.variant.max()) + 1
        images, slot = (store.index * variants + store.variant[:, None]).unique(return_inverse=True)
        views = sorted({view for stream in plan.streams for view in stream.views})
        self.images_seen += 0 if self._encoded else len(images) * len(views)
        self._encoded = True
        return FeatureCache(slot, self._encode(model, images // variants, images % variants, views, "train"))

    @torch.no_grad()
    def _refresh(self, refresh: Refresh, index: Tensor | None) -> None:
        model = unwrap(self.runner.model)
        generator = make_generator(self.seed, "refresh", self._epoch, self._chunk)
        labels = model.head.refresh(self._extract(index, refresh.logits), generator, self.comm)
        optimizer = self.runner.optim_wrapper.optimizer
        for name in refresh.reset:
            module: Any = _resettable(model.head, name)
            module.reset(generator)
            for parameter in module.parameters():
                optimizer.state.pop(parameter, None)
                parameter.grad = None
        if self.comm.world > 1:
            for tensor in (*model.head.parameters(), *model.head.buffers()):
                tensor.copy_(self.comm.broadcast(tensor))
        if labels is not None:
            model.labels.replace(labels)
        self._check_ranks(model)

    def _check_ranks(self, model: ClusterModel) -> None:
        if self.comm.world == 1:
            return
        digest = hashlib.sha256(model.labels.target.cpu().numpy().tobytes())
        for tensor in (*model.head.parameters(), *model.head.buffers()):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        number = torch.tensor([int.from_bytes(digest.digest()[:7], "little")], device=model.labels.target.device)
        if self.comm.gather(number).unique().numel() > 1:
            raise RuntimeError("the ranks disagree about labels or head after a refresh")

    def _pass(self, plan: Plan, num_chunks: int, cache: FeatureCache | None) -> None:
        """One pass over the rows of a refresh: draw their order, then a step for each batch."""
        model = unwrap(self.runner.model)
        target = model.labels.target.cpu()
        if not self._order:
            steps = plan.steps
            for stream in plan.streams:
                generator = make_generator(self.seed, "order", self._epoch, self._chunk, self._repeat, stream.name)
                self._order[stream.name] = draw_rows(stream, target, steps, generator)
                steps = self._order[stream.name].shape[0]  # the first stream sets the number of steps
        steps = self._order[plan.streams[0].name].shape[0]
        self.data.steps = steps * plan.repeats * num_chunks
        loaded: Iterable[dict[tuple[str, str], Tensor]]
        if cache is None:
            loaded = self.data.train.loader.run(self._requests(plan, model, steps))
        else:
            loaded = itertools.repeat({}, steps - self._step)
        for images in loaded:
            passes = self._chunk * plan.repeats + self._repeat
            first = self._step - self._step % self.accumulative_counts
            group = range(first, min(first + self.accumulative_counts, steps))  # of the optimiser's present move

            def progress(step: int, passes: int = passes) -> float:
                return (self._epoch + (passes + step / steps) / (plan.repeats * num_chunks)) / self.max_epochs

            self.progress = progress(self._step)
            self._set_rate(progress(first))
            batch_idx = passes * steps + self._step
            self.runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=images)
            logged = self._train_step(plan, images, cache, group)
            self._step += 1
            for name, value in logged.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._count += 1
            self.runner.call_hook("after_train_iter", batch_idx=batch_idx, data_batch=images, outputs=logged)
            self._stop_if_asked()
            self._iter += 1
        if (weight := non_finite(model)) is not None:
            raise diverged(self.runner, f"'{weight}' of the model is not finite after {self._here()}")

    def _my_rows(self, stream: Stream, step: int) -> Tensor:
        return self._order[stream.name][step].chunk(self.comm.world)[self.comm.rank]

    def _requests(self, plan: Plan, model: ClusterModel, steps: int) -> Iterator[list[ViewRequest]]:
        """Requests of the steps from the present one on; samples and variants of a row do not change in a pass."""
        index, variant = model.labels.index.cpu().numpy(), model.labels.variant.cpu().numpy()
        for step in range(self._step, steps):
            requests = []
            for s, stream in enumerate(plan.streams):
                rows = self._my_rows(stream, step).numpy()
                position = np.arange(len(rows)) + self.comm.rank * len(rows)
                for v, view in enumerate(stream.views):
                    key = mix(self.seed, self._epoch, self._chunk, self._repeat, step, s, v)
                    keys = mix_array(key, position)
                    requests += [
                        ViewRequest(stream.name, view, tuple(index[row].tolist()), int(variant[row]), int(k))
                        for row, k in zip(rows, keys, strict=True)
                    ]
            yield requests

    def _train_step(
        self, plan: Plan, images: dict[tuple[str, str], Tensor], cache: FeatureCache | None, group: range
    ) -> dict[str, float]:
        runner, model = self.runner, unwrap(self.runner.model)
        device = next(model.parameters()).device
        store = model.labels
        if cache is None:
            self._fixed = None  # this step may change the features
            self.images_seen += store.index.shape[1] * sum(stream.size * len(stream.views) for stream in plan.streams)
        rows = {}
        for stream in plan.streams:
            row = self._my_rows(stream, self._step).to(store.target.device)
            rows[stream.name] = Batch(row, store.index[row], store.variant[row], store.target[row], {})
        images = {key: x.to(device, non_blocking=True) for key, x in images.items()}
        # Dropout and the like draw from the global generator: seeded by the position, a resume finds the same draws.
        torch.manual_seed(mix(self.seed, self._epoch, self._chunk, self._repeat, self._step, self.comm.rank))
        z = None if cache is None else cache.lookup(plan.streams, rows)
        with runner.optim_wrapper.optim_context(runner.model), runner.autocast():
            losses, batches = runner.model(images, rows, self._generator("loss"), self.comm, z)
        loss = torch.stack(list(losses.train.values())).sum()
        # Before anything takes it, and on all ranks together: one that stopped alone would leave the others waiting.
        if float(self.comm.sum((~loss.detach().isfinite()).float())):
            broken = self._broken_images(images, rows)
            if broken is not None:
                raise diverged(runner, f"{broken} at {self._here()}", "mend the images, or the transforms of that view")
            raise diverged(runner, f"the loss is {float(loss.detach())} at {self._here()}")
        arrive()  # the ranks add up their gradients
        runner.optim_wrapper.backward(loss / len(group))
        if self.comm.world > 1:
            self._check_gradients(runner.model)
        moves = self._step == group[-1]
        if moves:
            self._move(model)
        with torch.no_grad():
            self._average_statistics(model)
            if moves:
                model.after_move()
            for delta in model.head.update(batches, store.view(), self._generator("update"), self.comm):
                store.update(delta)
        return {name: float(value.detach()) for name, value in {**losses.train, **losses.log}.items()}

    def _generator(self, purpose: str) -> torch.Generator:
        """Return a generator that is a function of the present step, and the same on every rank."""
        return make_generator(self.seed, purpose, self._epoch, self._chunk, self._repeat, self._step)

    def _move(self, model: ClusterModel) -> None:
        """Let the optimiser take the gradients, which are those of all ranks, if they are finite."""
        wrapper = self.runner.optim_wrapper
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients:
            total = torch.stack([g.sum() for g in gradients]).sum()  # nine times as fast as the largest of them
            if not bool(total.isfinite()):
                raise diverged(
                    self.runner, f"the loss is finite but its gradient sums to {float(total)} at {self._here()}"
                )
        wrapper.step()
        wrapper.zero_grad()

    def _check_gradients(self, model: Any) -> None:
        """Refuse parameters that the loss does not reach, unless told of them: ranks would wait for their gradients."""
        if not getattr(model, "find_unused_parameters", True):
            unused = [name for name, p in unwrap(model).named_parameters() if p.requires_grad and p.grad is None]
            if unused:
                raise InputError(
                    f"the loss does not depend on {len(unused)} trained parameters, '{unused[0]}' first, whose "
                    "gradients the processes would wait for: take them out, or set find_unused_parameters=True"
                )

    def _here(self) -> str:
        return f"epoch {self._epoch + 1}, step {self._step + 1}"

    def _broken_images(self, images: dict[tuple[str, str], Tensor], rows: dict[str, Batch]) -> str | None:
        """Return what says which images of this step, on any rank, have pixels that are not finite; ``None``: none."""
        for stream, view in sorted(images):
            finite = images[stream, view].isfinite().flatten(2).all(2)
            ids = self.comm.gather(rows[stream].index.to(finite.device)[~finite]).unique()
            if len(ids):
                first = self.data.dataset.paths[int(ids[0])]
                return f"{len(ids)} images, '{first}' first, have pixels that are not finite through data.views.{view}"
        return None

    def _average_statistics(self, model: ClusterModel) -> None:
        """Give all ranks the mean of their batch-norm statistics: one small collective, and the ranks stay equal.

        Broadcasting all buffers, as DDP can, would send the head's memory and the labels at every step.
        """
        if self.comm.world == 1:
            return
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        statistics = [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
        if statistics:
            mean = self.comm.sum(torch.cat([b.flatten() for b in statistics])) / self.comm.world
            for b, new in zip(statistics, mean.split([b.numel() for b in statistics]), strict=True):
                b.copy_(new.view_as(b))

    def _set_rate(self, progress: float) -> None:
        factor = self.schedule.factor(progress)
        for group in self.runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    # -- signals -------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        def remember(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                os._exit(128 + number)  # asked twice: do not wait for the step to end
            self._signal = number

        try:
            return {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # only the main thread may
            return {}

    def _stop_if_asked(self, between_epochs: bool = False) -> None:
        asked = torch.tensor([self._signal or 0], device=next(self.runner.model.parameters()).device)
        number = int(self.comm.gather(asked).max())  # together, or one rank would wait for the others for ever
        if not number:
            return
        self._iter -= between_epochs  # mmengine saves the number of the step that runs, plus one
        name = f"iter_{self._iter + 1}.pth"
        self.runner.save_checkpoint(self.runner.work_dir, name, by_epoch=False)
        if self.comm.rank == 0:
            mark_last(self.runner.work_dir, Path(self.runner.work_dir) / name)
        for hook in self.runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook.after_stop(self.runner, name, self._iter + 1)
        self.runner.logger.warning(f"stopped by {signal.Signals(number).name}: saved {name}; continue with --resume")
        raise SystemExit(128 + number)


def _resettable(head: torch.nn.Module, name: str) -> torch.nn.Module:
    """Return the head's module of this name, which a plan wants to draw anew.

    Raises:
        InputError: there is none, or it has no method ``reset``.
    """
    known: dict[str, torch.nn.Module] = dict(head.named_modules())
    if not name or name not in known:
        raise InputError(
            f"Refresh.reset names '{name}', which is no module of {type(head).__name__}{nearest(name, known)}"
        )
    if not hasattr(known[name], "reset"):
        raise InputError(
            f"Refresh.reset names '{name}' of {type(head).__name__}, but a {type(known[name]).__name__} cannot be "
            "drawn anew: give it a method reset(generator), as odc.heads.LinearClassifier has"
        )
    return known[name]


def _features_are_fixed(model: ClusterModel) -> bool:
    """Return whether an image's features change neither with a step nor with the batch that the image is in.

    So it is where nothing in backbone and neck trains or is in training mode, and nothing else encodes the images.
    """
    encoder = (*model.backbone.modules(), *model.neck.modules())
    trains = any(p.requires_grad for module in encoder for p in module.parameters(recurse=False))
    return not trains and not any(module.training for module in encoder) and model.encodes_alone


@LOOPS.register_module()
class ClusterValLoop(BaseLoop):
    """Predict a cluster for every image and measure; ground truth is touched here and nowhere else.

    Args:
        runner: the runner.
        dataloader: the run's :class:`ClusterData`.
        evaluator: configs of metrics (registry ``METRICS``).
    """

    def __init__(self, runner: Any, dataloader: ClusterData, evaluator: list[dict[str, Any]]) -> None:
        super().__init__(runner, dataloader)
        self.data = dataloader
        self.metrics = [build(METRICS, cfg) for cfg in evaluator]
        self.evaluation: Evaluation | None = None
        self.values: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Return the metrics by name."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.evaluation, self.values = self.evaluate(), {}
        for metric in self.metrics:
            self.values |= metric(self.evaluation)
        self.runner.call_hook("after_val_epoch", metrics=self.values)
        self.runner.call_hook("after_val")
        return self.values

    def evaluate(self) -> Evaluation:
        """Return features and cluster scores of every image of the evaluation set."""
        model, comm, source = unwrap(self.runner.model), get_comm(), self.data.eval
        table = extract(model, source, comm, batch_size=self.data.extract_batch_size, logits=model.head.predict)
        if table.logits is None:
            raise RuntimeError("extract did not return the scores that it was asked for")
        mine = torch.zeros(len(source.dataset), device=table.features.device)
        mine[list(source.dataset.lost)] = 1
        lost, targets = comm.sum(mine).cpu() > 0, source.dataset.targets
        return Evaluation(
            features=comm.gather(table.features).cpu(),
            scores=comm.gather(table.logits).cpu(),
            targets=None if targets is None else np.where(lost.numpy(), UNLABELLED, targets),
            lost=lost,
        )
