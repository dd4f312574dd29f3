"""The loop that trains every clustering method: the only file that orders the phases.

An epoch is: plan → chunks of the data set, each: extract → refresh the labels → repeats of steps, each: forward and
loss → optimiser → online update of the labels → and at the end, where the plan says so, extract → select.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor

from odc.checkpoints import mark_last
from odc.data.keys import mix, mix_array, seed_globally
from odc.data.label_file import first_labels
from odc.data.sampler import draw_rows
from odc.data.views import ViewRequest
from odc.engine.checkpointing import CheckpointHook
from odc.engine.comm import arrive, average_statistics, check_agreement, check_gradients, get_comm, shared_tensors
from odc.engine.data import ClusterData
from odc.engine.finite import Readings, broken_images, diverged, non_finite, sum_of_gradients
from odc.engine.frozen import FeatureCache, Features, features_are_fixed
from odc.engine.optim import CONSTANT, Schedule, forget
from odc.engine.plans import check_plan, chunks, last_labelling
from odc.engine.resume import POSITION, read_position
from odc.errors import InputError
from odc.evaluation.results import read_results
from odc.models.cluster_model import ClusterModel, unwrap
from odc.registry import LOOPS, SCHEDULES, build
from odc.structures import Batch, Plan, Refresh, Stream, derive_seed, make_generator


@LOOPS.register_module()
class ClusterTrainLoop(BaseLoop):
    """Train a :class:`ClusterModel` by its head's plans.

    The position (chunk, repeat, step, order of the rows) is part of every checkpoint, and everything random is a
    function of the seed and the position: resuming is bitwise, at any step. SIGTERM and the first Ctrl-C save a
    checkpoint and stop.

    Where nothing in backbone and neck can change an image's features, they are computed once, of a view of chance once
    a refresh, and no image is loaded in between: see :class:`Features`.

    Args:
        runner: the runner.
        dataloader: the run's :class:`ClusterData`.
        max_epochs: epochs to train.
        val_interval: epochs between two evaluations; the last epoch is always evaluated.
        schedule: config of the learning rate's schedule; by default constant.
        label_file: start from the labels in this file instead of none: a :class:`odc.data.LabelFile`, or a CSV table
            with the columns ``path`` and ``label``, whose labels name the classes in all that is written.
        label_fraction: start from the true labels of this share, in (0, 1], of the images, drawn by the seed evenly
            over the classes, at least one of each: for low-shot and full fine-tuning only. A head that makes its own
            labels replaces them. These two options exclude each other, and no other way leads from ground truth to
            training.
        accumulative_counts: steps of one move of the optimiser, which takes the mean of their gradients, and at the end
            of a pass of as many as there are. A config says so in ``optim_wrapper``, as in mmengine. What follows the
            weights (moving averages, MoCo's key encoder) moves with the optimiser; what follows the images (batch
            norm's statistics, memories, queues, labels) at every step, and ranks average the gradients then too.
        log_interval: steps between two readings of losses, and of whether they are finite, from a GPU, which the
            processor would wait for at every step; and between two looks of several ranks whether one was asked to
            stop. On a CPU losses are read at every step.
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
        log_interval: int = 10,
    ) -> None:
        super().__init__(runner, dataloader)
        if max_epochs < 1 or val_interval < 1:
            raise InputError(f"max_epochs and val_interval must be at least 1, not {max_epochs} and {val_interval}")
        if accumulative_counts < 1:
            raise InputError(f"optim_wrapper.accumulative_counts must be at least 1, not {accumulative_counts}")
        if log_interval < 1:
            raise InputError(f"train_cfg.log_interval must be at least 1 step, not {log_interval}")
        if label_fraction is not None and not 0.0 < label_fraction <= 1.0:
            raise InputError(f"train_cfg.label_fraction must be a share of the images in (0, 1], not {label_fraction}")
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
        self.chunk = self.repeat = self.step = 0
        self.begun = False  # this epoch has begun: labels_before holds what it started from
        self.refreshed = False  # this chunk's labels are written
        self.order: dict[str, Tensor] = {}  # rows of every step of this pass, by stream
        self.counted: list[str] = []  # caches that are in images_seen: a resumed run encodes them once more
        self.evaluated = False  # nothing has been trained since the last evaluation
        self.index_before = self.labels_before = torch.zeros(0, 1, dtype=torch.int64)
        self.progress = 0.0  # share of the training that is done
        self.images_seen = 0  # views of images that the training has put through the network, over all ranks
        self._readings = Readings()
        self.log_interval = log_interval
        self.device = next(runner.model.parameters()).device
        self.reads_late = self.device.type == "cuda"  # losses, and whether they are finite
        self._signals = Signals()
        self.features = Features(runner, self.data, self.comm, lambda *purpose: derive_seed(self.seed, *purpose))
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

    def epoch_means(self) -> dict[str, float]:
        """Return the means of what was logged in this epoch (since the resume, where there was one) and read so far."""
        return self._readings.means()

    # -- position ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position inside the epoch: plain numbers and tensors."""
        parameters = unwrap(self.runner.model).named_parameters()
        return {
            **{name: getattr(self, name) for name in POSITION},
            "gradients": {name: p.grad for name, p in parameters if p.grad is not None},  # not yet taken
            "threads": torch.get_num_threads(),
            "ranks": self.comm.world,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the rest of the run has the seed that it began with.

        Raises:
            ValueError: it is no position, or one among other rows than the model's labels have.
        """
        model = unwrap(self.runner.model)
        state = read_position(state, model, len(self.data.dataset))
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
        for name in POSITION:
            setattr(self, name, state[name])
        self.index_before, self.labels_before = (x.to(self.device) for x in (self.index_before, self.labels_before))
        for name, parameter in model.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter)

    # -- the phases ----------------------------------------------------------------------------------------------

    def run(self) -> torch.nn.Module:
        """Train; return the model."""
        self.runner.settle_precision()
        model = unwrap(self.runner.model)
        fresh = self._iter == 0 and not self.begun
        if model.labels.index.shape[0] == 0 or (fresh and (self.label_file or self.label_fraction)):
            model.labels.replace(first_labels(self.data.dataset, self.label_file, self.label_fraction, self.seed))
        with contextlib.closing(self.data), self._signals:
            self.progress = self._epoch / self.max_epochs
            if self._epoch >= self.max_epochs:
                self.runner.logger.info(
                    f"nothing to train: {self._epoch} of {self.max_epochs} epochs are done (train_cfg.max_epochs)"
                )
            if (name := non_finite(model, self.comm)) is not None:
                source = self.runner.cfg.get("load_from") or model.pretrained or "its initialisation"
                raise InputError(
                    f"'{name}' of the model is not finite before the first step, from {source}: take another"
                )
            self.runner.call_hook("before_train")
            if self._epoch >= self.max_epochs:
                self._complete()
            elif self._epoch and not self.begun and not self.evaluated:
                self._evaluate()  # the run was stopped between the checkpoint and the end of the evaluation
            while self._epoch < self.max_epochs and not self.stop_training:
                self.run_epoch()
                self._evaluate()
                if self._epoch < self.max_epochs and not self.stop_training:
                    self._stop_if_asked(between_epochs=True)
            self.runner.call_hook("after_train")
        return model

    def _evaluate(self) -> None:
        """Evaluate after an epoch, where it is time to."""
        if self.runner.val_loop is not None and (
            self._epoch >= self.max_epochs or self._epoch % self.val_interval == 0
        ):
            self.runner.val_loop.run()
            asked = torch.tensor(int(self.stop_training), device=self.device)
            self.stop_training = bool(self.comm.sum(asked))
        self.evaluated = True

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

    def run_epoch(self) -> None:
        """Train one epoch, or what is left of it after a resume."""
        model = unwrap(self.runner.model)
        plan = model.head.plan(self._epoch)
        check_plan(plan, model, self.data.views, self.comm.world)
        self._readings.clear()
        if not self.begun:
            self.index_before, self.labels_before = model.labels.index.clone(), model.labels.target.clone()
            self.begun, self.evaluated = True, False
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        parts = chunks(plan, len(self.data.dataset), self.seed, self._epoch)
        while self.chunk < len(parts):
            if plan.refresh is not None and not self.refreshed:
                self._refresh(plan.refresh, parts[self.chunk])
            self.refreshed = True
            N = len(self.data.dataset)
            cache = self.features.cache(model, plan, last_labelling(model, N, self.seed, self._epoch, self.chunk))
            if cache is not None:
                self.images_seen += sum(n for name, n in cache.encoded.items() if name not in self.counted)
                # of views of chance only the present ones come again
                self.counted = sorted({*cache.encoded, *(name for name in self.counted if "@" not in name)})
            elif not features_are_fixed(model):
                self.features.forget()
            while self.repeat < plan.repeats:
                self._pass(plan, len(parts), cache)
                self.repeat, self.step, self.order = self.repeat + 1, 0, {}
            self.chunk, self.repeat, self.refreshed = self.chunk + 1, 0, False
        if plan.select:
            with torch.no_grad():
                model.head.select(self.features.extract(model, None, None), self.comm)
        self.chunk, self.begun = 0, False
        self.progress = (self._epoch + 1) / self.max_epochs
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    @torch.no_grad()
    def _refresh(self, refresh: Refresh, index: Tensor | None) -> None:
        model = unwrap(self.runner.model)
        generator = make_generator(self.seed, "refresh", self._epoch, self.chunk)
        table = self.features.extract(model, index, refresh.logits, (self._epoch, self.chunk), refresh.pooled)
        labels = model.head.refresh(table, generator, self.comm)
        optimizer = self.runner.optim_wrapper.optimizer
        for name in refresh.reset:
            module: Any = model.head.get_submodule(name)
            module.reset(generator)
            for parameter in module.parameters():
                forget(optimizer, parameter)
                parameter.grad = None
        if self.comm.world > 1:
            for tensor in shared_tensors(model.head):
                tensor.copy_(self.comm.broadcast(tensor))
        if labels is not None:
            model.labels.replace(labels)
        check_agreement(model, self.comm)

    def _pass(self, plan: Plan, num_chunks: int, cache: FeatureCache | None) -> None:
        """One pass over the rows of a refresh: draw their order, then a step for each batch."""
        model = unwrap(self.runner.model)
        target = model.labels.target.cpu()
        if not self.order:
            steps = plan.steps
            for stream in plan.streams:
                generator = make_generator(self.seed, "order", self._epoch, self.chunk, self.repeat, stream.name)
                self.order[stream.name] = draw_rows(stream, target, steps, generator)
                steps = self.order[stream.name].shape[0]  # the first stream sets the number of steps
        steps = self.order[plan.streams[0].name].shape[0]
        self.data.steps = steps * plan.repeats * num_chunks
        loaded: Iterable[dict[tuple[str, str], Tensor]]
        if cache is None:
            loaded = self.data.train.loader.run(self._requests(plan, model, steps))
        else:
            loaded = itertools.repeat({}, steps - self.step)
        for images in loaded:
            passes = self.chunk * plan.repeats + self.repeat
            first = self.step - self.step % self.accumulative_counts
            group = range(first, min(first + self.accumulative_counts, steps))  # of the optimiser's present move

            def progress(step: int, passes: int = passes) -> float:
                return (self._epoch + (passes + step / steps) / (plan.repeats * num_chunks)) / self.max_epochs

            self.progress = progress(self.step)
            self._set_rate(progress(first))
            batch_idx = passes * steps + self.step
            self.runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=images)
            logged = self._train_step(plan, images, cache, group, steps)
            self.step += 1
            self.progress = progress(self.step)
            self.runner.call_hook("after_train_iter", batch_idx=batch_idx, data_batch=images, outputs=logged)
            if self.comm.world == 1 or self.step % self.log_interval == 0 or self.step == steps:
                self._stop_if_asked()
            self._iter += 1
        if (weight := non_finite(model, self.comm)) is not None:
            raise diverged(self.runner, f"'{weight}' of the model is not finite after {self._here()}")

    def _my_rows(self, stream: Stream, step: int) -> Tensor:
        return self.order[stream.name][step].tensor_split(self.comm.world)[self.comm.rank]

    def _requests(self, plan: Plan, model: ClusterModel, steps: int) -> Iterator[list[ViewRequest]]:
        """Requests of the steps from the present one on; samples and variants of a row do not change in a pass."""
        index, variant = model.labels.index.cpu().numpy(), model.labels.variant.cpu().numpy()
        for step in range(self.step, steps):
            requests = []
            for s, stream in enumerate(plan.streams):
                rows, size = self._my_rows(stream, step).numpy(), self.order[stream.name].shape[1]
                position = np.array_split(np.arange(size), self.comm.world)[self.comm.rank]
                for v, view in enumerate(stream.views):
                    key = mix(self.seed, self._epoch, self.chunk, self.repeat, step, s, v)
                    keys = mix_array(key, position)
                    requests += [
                        ViewRequest(stream.name, view, tuple(index[row].tolist()), int(variant[row]), int(k))
                        for row, k in zip(rows, keys, strict=True)
                    ]
            yield requests

    def _train_step(
        self, plan: Plan, images: dict[tuple[str, str], Tensor], cache: FeatureCache | None, group: range, steps: int
    ) -> dict[str, float] | None:
        """Do a step; return the losses of it where they are read."""
        runner, model = self.runner, unwrap(self.runner.model)
        store = model.labels
        if cache is None:
            views = sum(len(stream.views) * self.order[stream.name].shape[1] for stream in plan.streams)
            self.images_seen += store.index.shape[1] * views
        rows = {}
        for stream in plan.streams:
            row = self._my_rows(stream, self.step).to(store.target.device, non_blocking=True)
            rows[stream.name] = Batch(row, store.index[row], store.variant[row], store.target[row], {})
        images = {key: x.to(self.device, non_blocking=True) for key, x in images.items()}
        # Dropout and the like draw from the global generator: seeded by the position, a resume finds the same draws.
        seed_globally(mix(self.seed, self._epoch, self.chunk, self.repeat, self.step, self.comm.rank), self.device)
        z = None if cache is None else cache.lookup(plan.streams, rows)
        with runner.optim_wrapper.optim_context(runner.model), runner.autocast():
            losses, batches = runner.model(images, rows, self._generator("loss"), self.comm, z)
        loss = torch.stack(list(losses.train.values())).sum()
        if not self.reads_late:  # before anything takes it
            wrong = None if bool(loss.isfinite()) else f"the loss is {float(loss.detach())} at {self._here()}"
            self._stop_unless_finite(wrong, images, rows)
        arrive()  # the ranks add up their gradients
        runner.optim_wrapper.backward(loss / len(group))
        if self.comm.world > 1:
            check_gradients(runner.model)
        moves = self.step == group[-1]
        gradient = self._move(model) if moves else None
        with torch.no_grad():
            average_statistics(model, self.comm)
            if moves:
                model.after_move(self.progress)
            for delta in model.head.update(batches, store.view(), self._generator("update"), self.comm):
                store.update(delta)
        self._readings.add(self._here(), loss, gradient, losses)
        if self.reads_late and (self.step + 1) % self.log_interval and self.step + 1 < steps and not self._saves():
            return None
        wrong = self._readings.read()
        if self.reads_late:
            self._stop_unless_finite(wrong, images, rows)
        return self._readings.last

    def _generator(self, purpose: str) -> torch.Generator:
        """Return a generator that is a function of the present step, and the same on every rank."""
        return make_generator(self.seed, purpose, self._epoch, self.chunk, self.repeat, self.step)

    def _move(self, model: ClusterModel) -> Tensor | None:
        """Let the optimiser take the gradients, which are those of all ranks, if they are finite; return their sum."""
        wrapper, total = self.runner.optim_wrapper, sum_of_gradients(model, self.comm)
        if total is not None:
            if not self.reads_late and not bool(total.isfinite()):
                raise diverged(
                    self.runner, f"the loss is finite but its gradient sums to {float(total)} at {self._here()}"
                )
            if getattr(wrapper.optimizer, "_step_supports_amp_scaling", False):  # a fused one, which looks on the GPU
                wrapper.optimizer.found_inf = (~total.isfinite()).float()
        wrapper.step()
        wrapper.zero_grad()
        return total

    def _saves(self) -> bool:
        """Return whether a checkpoint is written after this step, which must not hold what is not finite."""
        hooks = [hook for hook in self.runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        return any(hook.every_n_train_iters(self.runner, hook.interval) for hook in hooks)

    def _stop_unless_finite(
        self, wrong: str | None, images: dict[tuple[str, str], Tensor], rows: dict[str, Batch]
    ) -> None:
        """End the training on all ranks where one has read what is not finite: alone it would leave the others waiting.

        The images of this step are named where their pixels are at fault.
        """
        here = torch.tensor(float(wrong is not None), device=self.device)
        if not float(self.comm.sum(here)):
            return
        broken = broken_images(images, rows, self.comm, self.data.dataset.paths)
        if broken is not None:
            broken = f"{broken} at {self._here()}"
            raise diverged(self.runner, broken, "mend the images, or the transforms of that view")
        raise diverged(self.runner, wrong or f"the loss of another process is not finite at {self._here()}")

    def _here(self) -> str:
        return f"epoch {self._epoch + 1}, step {self.step + 1}"

    def _set_rate(self, progress: float) -> None:
        factor = self.schedule.factor(progress)
        for group in self.runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1.0 if group.get(CONSTANT) else factor)

    # -- signals -------------------------------------------------------------------------------------------------

    def _stop_if_asked(self, between_epochs: bool = False) -> None:
        number = self._signals.asked
        if self.comm.world > 1:  # together, or one rank would wait for the others for ever
            asked = torch.tensor([number], device=self.device)
            number = int(self.comm.gather(asked).max())
        if not number:
            return
        if (wrong := self._readings.read()) is not None:
            raise diverged(self.runner, wrong)
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


class Signals:
    """Remembers SIGTERM and the first Ctrl-C until the training can obey them; a second one ends the process at once.

    A context, inside of which signals are caught, where this is the main thread.
    """

    def __init__(self) -> None:
        self.asked = 0  # number of the signal, 0 for none
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)  # asked twice: do not wait for the step to end
        self.asked = number

    def __enter__(self) -> None:
        with contextlib.suppress(ValueError):  # only the main thread may
            self._before = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
