"""Hooks that save checkpoints, and that stop a training early."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import mmengine.hooks
import mmengine.registry
import mmengine.runner
from mmengine.dist import is_main_process

from odc.checkpoints import mark_last
from odc.errors import InputError, nearest
from odc.registry import HOOKS

# mmengine's guess whether more of a metric is better, by parts of its name, knows none of clustering's.
_GREATER = [*mmengine.hooks.CheckpointHook._default_greater_keys, "nmi", "ari", "knn", "linear", "entropy"]
_LESS = [*mmengine.hooks.CheckpointHook._default_less_keys, "empty"]


def _check_measured(name: str, metrics: Mapping[str, float], who: str) -> None:
    if name not in metrics:
        raise InputError(
            f"{who} waits for the metric '{name}', which this evaluation does not measure{nearest(name, metrics)}"
        )


@mmengine.registry.HOOKS.register_module(force=True)  # whatever the scope
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook that never leaves the disk without a complete checkpoint, and writes none during evaluation.

    Takes the arguments of mmengine's. An old checkpoint is deleted after the new one is completely written, the best
    one too, and only in this run's own directory. The last ``max_keep_ckpts`` stay, one that a signal left among them;
    that one goes when training has come to the next of its own, so that the files end as those of an unbroken run.

    Raises:
        InputError: ``max_keep_ckpts=1``, which leaves nothing to fall back to, or an option that it does not have.
    """

    _default_greater_keys: ClassVar[list[str]] = _GREATER
    _default_less_keys: ClassVar[list[str]] = _LESS
    _in_training = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.args:  # mmengine takes any name, and fails when it saves
            if name not in inspect.signature(mmengine.runner.Runner.save_checkpoint).parameters:
                known = inspect.signature(mmengine.hooks.CheckpointHook).parameters
                raise InputError(f"CheckpointHook has no option '{name}'{nearest(name, known)}")
        if self.out_dir is not None:
            raise InputError(f"CheckpointHook saves into the work directory, not into out_dir='{self.out_dir}'")
        if self.max_keep_ckpts == 1:
            raise InputError("max_keep_ckpts=1 keeps no checkpoint to fall back to; use 2 or more, or -1 for all")

    def before_train(self, runner: mmengine.runner.Runner) -> None:
        """Find the directory, and what an earlier part of the run left in it."""
        super().before_train(runner)
        self._in_training = True
        # A resumed run's best file lies where the run is now, not where it was when the path was saved.
        self._set_best({k: path and os.path.join(self.out_dir, os.path.basename(path)) for k, path in self._best()})

    def after_train(self, runner: mmengine.runner.Runner) -> None:
        """Publish, where asked to."""
        super().after_train(runner)
        self._in_training = False

    def after_val_epoch(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        """Save the best model, in training."""
        if not self._in_training or not self.save_best or (not metrics and self.key_indicators == ["auto"]):
            return  # without ground truth an evaluation may measure nothing
        for name in self.key_indicators:
            if name != "auto":
                _check_measured(name, metrics, "save_best")
        super().after_val_epoch(runner, metrics)

    def _init_rule(self, rule: str | None, key_indicator: str) -> None:
        try:
            super()._init_rule(rule, key_indicator)
        except ValueError as error:
            raise InputError(f"save_best='{key_indicator}' needs rule='greater' or rule='less': {error}") from error

    def _best(self) -> list[tuple[str, str | None]]:
        if not self.save_best:
            return []
        single = len(self.key_indicators) == 1
        return [("", self.best_ckpt_path)] if single else list(self.best_ckpt_path_dict.items())

    def _set_best(self, paths: Mapping[str, str | None]) -> None:
        for key, path in paths.items():
            if key:
                self.best_ckpt_path_dict[key] = path
            else:
                self.best_ckpt_path = path

    def _save_best_checkpoint(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        old = dict(self._best())
        self._set_best(dict.fromkeys(old))  # mmengine deletes first what it knows of, so it is to know of nothing
        super()._save_best_checkpoint(runner, metrics)
        new = dict(self._best())
        self._set_best({key: new[key] or old[key] for key in new})
        for key, path in old.items():
            if path and new[key] and new[key] != path:
                self._delete(path)

    def _save_checkpoint_with_step(self, runner: mmengine.runner.Runner, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=False,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            mark_last(runner.work_dir, self.last_ckpt)
        self._delete_outdated(runner, name, step, runner.iter + 1)

    def after_stop(self, runner: mmengine.runner.Runner, name: str, iterations: int) -> None:
        """Take note that a signal stopped the run after ``iterations``, and left the checkpoint ``name``."""
        self._delete_outdated(runner, name, runner.epoch if self.by_epoch else iterations, iterations)

    def _delete_outdated(self, runner: mmengine.runner.Runner, newest: str, step: int, iterations: int) -> None:
        """Delete what is superfluous beside ``newest``; later checkpoints, of a run that went further, stay."""
        if self.max_keep_ckpts <= 0:
            return
        own = re.compile(re.escape(self.filename_tmpl).replace(r"\{\}", r"(\d+)"))
        regular: list[tuple[int, str]] = []
        for name in os.listdir(runner.work_dir):
            path = os.path.join(runner.work_dir, name)
            if name == newest:
                continue
            if found := own.fullmatch(name):
                if int(found[1]) <= step:
                    regular.append((int(found[1]), path))
            elif (found := re.fullmatch(r"iter_(\d+)\.pth", name)) and int(found[1]) <= iterations:
                self._delete(path)
        for _, path in sorted(regular)[: 1 - self.max_keep_ckpts]:
            self._delete(path)

    def _delete(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)


@HOOKS.register_module()
class EarlyStoppingHook(mmengine.hooks.EarlyStoppingHook):
    """mmengine's hook for any metric, which a resumed run continues to count.

    Takes the arguments of mmengine's.
    """

    _default_greater_keys: ClassVar[list[str]] = _GREATER
    _default_less_keys: ClassVar[list[str]] = _LESS
    _in_training = False

    def before_run(self, runner: mmengine.runner.Runner) -> None:
        """Do nothing: mmengine builds the loop here, only to see whether it can be stopped."""

    def before_train(self, runner: mmengine.runner.Runner) -> None:
        """Remember that there is something to stop."""
        self._in_training = True

    def after_val_epoch(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        """Stop the training, if the metric says so: a function of its values so far, by epoch."""
        if not self._in_training:
            return
        _check_measured(self.monitor, metrics, type(self).__name__)
        hub, key = runner.message_hub, f"early_stopping_{self.monitor}"
        values = {**hub.runtime_info.get(key, {}), runner.epoch: float(metrics[self.monitor])}
        hub.update_info(key, values)
        self.wait_count, self.best_score = 0, -math.inf if self.rule == "greater" else math.inf
        for epoch in sorted(values):
            stop, message = self._check_stop_condition(values[epoch])
        if stop:
            runner.train_loop.stop_training = True
            runner.logger.info(message)
