"""The runner: mmengine's, with checkpoints that are plain, strictly loaded and resumable."""

from __future__ import annotations

import functools
import logging
import os
import types
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import mmengine.runner
import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

import odc.engine.checkpointing  # noqa: F401  # its hooks take the place of mmengine's
from odc import logs
from odc.checkpoints import TAKE_PART, find_resume, load_plain, load_state, model_state, to_plain
from odc.engine.comm import ONE_BUCKET, average_in_order, get_comm, init_gloo, launched
from odc.engine.finite import diverged, non_finite
from odc.engine.precision import PRECISIONS, lacks_bfloat16_anywhere, repeat_on_gpu, settle_precision
from odc.engine.resume import HUB, META, change_options, check_state, options_of, take_names
from odc.engine.shards import check_optimizer, gather_state, leave_out_of_ddp, own_gradients, own_state, put_whole
from odc.errors import DamagedError, InputError, one_line
from odc.files import write_text
from odc.memory.shards import spread_over
from odc.models.cluster_model import unwrap
from odc.processes import end_with_parent
from odc.reading import reading


class Runner(mmengine.runner.Runner):
    """mmengine's runner with checkpoints that are plain, strictly loaded and resumable.

    Each method says what it does otherwise than mmengine's. Besides, ``resume=True`` without ``load_from`` takes the
    newest checkpoint that is whole (:func:`find_resume`), and says which ones are not; any number of runners can be
    built in one process; and a train loop has a state of its own, ``checkpoint['loop']``: ``state_dict()`` returns it
    on rank 0, and ``load_state_dict(state)`` takes it up on every rank, last of all when resuming.
    """

    precision = "float32"  # what the weights are, or were, trained in; evaluation and extraction are in float32
    _resumed_precision: str | None = None
    _timestamps: ClassVar[Counter[str]] = Counter()  # runners by the second they were made in
    _whole: Mapping[tuple[Any, ...], Tensor] = types.MappingProxyType({})  # of what is spread, while it is saved
    _loaded = False
    _config_written = False
    _configured: list[dict[str, Any]] | None = None  # the optimiser's options, a dict a group
    _timestamp: str
    _randomness_cfg: dict[str, Any]
    optim_wrapper: Any

    # -- building

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up processes and ranks; on a machine without a GPU the ranks speak gloo, whatever the config says.

        On a GPU a run repeats to the last bit.
        """
        if self.distributed:
            # Against a fresh process's own default (all cores, on every rank); mmengine does the same and warns.
            for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ.setdefault(variable, "1")
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's ranks; Slurm and MPI see to theirs
                end_with_parent()
            if not is_distributed():
                launched(self.launcher, torch.cuda.device_count())
                if get_device() == "cpu":
                    init_gloo(self.launcher, env_cfg.get("dist_cfg", {}).get("timeout"))
        if get_device() == "cuda":
            repeat_on_gpu()
        super().setup_env(env_cfg)
        # mmengine shares logger and message hub between runners of one name, and names them by the second.
        self._timestamps[self._timestamp] += 1
        if (number := self._timestamps[self._timestamp]) > 1:
            self._timestamp += f"_{number}"

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Return mmengine's logger, whose terminal shows one-line messages only; the file has everything.

        A file that cannot be written stops the run, as its other files do: :mod:`logging` would print a traceback for
        every line and go on.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(logs.OneLiners())
            elif isinstance(handler, logging.FileHandler):
                handler.handleError = functools.partial(logs.log_failed, handler)  # type: ignore[method-assign]
        return logger

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Log the environment; where nobody reads that, as the log is to have errors alone, spare what it takes.

        That is 0.1 s, and the same again for laying out the config.
        """
        if self.cfg.get("log_level", "INFO") in ("DEBUG", "INFO"):
            super()._log_env(env_cfg)
        else:
            object.__setattr__(self.cfg, "_format_python_code", False)

    def dump_config(self) -> None:
        """Do nothing yet: one whose checkpoint is refused must not replace the config of the run that is there."""

    def _write_config(self) -> None:
        """Write the formatted config into the work directory; from then on it is not formatted any more.

        mmengine puts the config's text into every checkpoint and lets yapf format it anew each time: 0.4 s.
        """
        name = os.path.basename(self.cfg.filename or f"{self.timestamp}.py")
        if is_main_process():
            write_text(Path(self.work_dir) / name, self.cfg.dump())
        object.__setattr__(self.cfg, "_format_python_code", False)

    def build_message_hub(self, message_hub: dict[str, Any] | None = None) -> MessageHub:
        """Return mmengine's message hub with every log buffer, now and later, of a bounded length."""
        hub = super().build_message_hub(message_hub)
        hub._log_scalars = logs.CappedScalars(hub.log_scalars)
        return hub

    def use_data(self, train: Any, val: Any) -> None:
        """Train on ``train`` and evaluate on ``val`` (``None``: never) instead of what the constructor was given."""
        self._train_dataloader, self._val_dataloader = train, val

    def build_model(self, model: Any) -> nn.Module:
        """Build the model, with this rank's parts of what is spread over the ranks."""
        with spread_over(get_comm()):
            built: nn.Module = super().build_model(model)
        return built

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimiser; one that would make ranks differ in what they share is refused."""
        built = super().build_optim_wrapper(optim_wrapper)
        check_optimizer(built, unwrap(self.model))
        return built

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap ``model`` in DDP where there are ranks; without a GPU with ``device_ids=None``."""
        cfg = dict(model_wrapper_cfg or {})
        leave_out_of_ddp(model)
        if self.distributed and not is_model_wrapper(model):
            cfg.setdefault("type", "MMDistributedDataParallel")
            if cfg["type"] == "MMDistributedDataParallel":
                unused = self.cfg.get("find_unused_parameters", False)
                cfg = dict(bucket_cap_mb=ONE_BUCKET, broadcast_buffers=False, find_unused_parameters=unused) | cfg
                if get_device() == "cpu":
                    cfg["device_ids"] = None
        with warnings.catch_warnings():
            # torch's replacement, forward_sync_buffers, overwrites buffers with rank 0's when the model is wrapped:
            # those of a rank's own must stay.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped: nn.Module = super().wrap_model(cfg or None, model)
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            order = {parameter: place for place, parameter in enumerate(wrapped.parameters())}
            # Without annotations: DDP takes those that are texts for wrong ones.
            wrapped.register_comm_hook(order, lambda order, bucket: average_in_order(order, bucket))
        return wrapped

    def _maybe_compile(self, target: str) -> None:
        """Do nothing: mmengine would compile ``train_step``, which no loop here calls."""

    # -- precision

    def settle_precision(self) -> None:
        """Settle what the training that begins computes in: the config's ``precision``, or that of the resumed run."""
        self.precision = settle_precision(self.cfg.get("precision"))
        before = self._resumed_precision
        if before in (None, self.precision):
            return
        if before == "bfloat16" and (reason := lacks_bfloat16_anywhere()) is not None:
            self.logger.warning(f"the run was in {before} so far and goes on in {self.precision}: {reason}")
        else:
            self.logger.warning(f"the run goes on in its checkpoint's precision, {before}, not in {self.precision}")
            self.precision = before

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model trains: autocast to bfloat16, where that is the run's precision.

        It has float32's range, so there is no loss scaling; parameters, gradients and optimiser state stay float32.
        """
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=torch.bfloat16)

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook; what it does not take is wrong input."""
        try:
            super().register_hook(hook, priority)
        except InputError:
            raise
        except (TypeError, ValueError, AssertionError, ImportError, KeyError) as error:
            name = hook.get("type") if isinstance(hook, Mapping) else type(hook).__name__
            raise InputError(f"hook '{name}' cannot be made of {hook}: {one_line(error)}") from error

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rates by the rows of a move of the optimiser; mmengine would ask a ``DataLoader``."""
        if auto_scale_lr and auto_scale_lr.get("enable"):
            rows, base = self.train_loop.batch_size, auto_scale_lr["base_batch_size"]
            for group in optim_wrapper.optimizer.param_groups:
                group["lr"] *= rows / base
            self.logger.info(
                f"learning rates are multiplied by {rows / base:g}: they are for {base} rows, a step has {rows} "
                "(auto_scale_lr)"
            )

    # -- saving

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, unless a weight is not finite: a checkpoint is there to go on from."""
        comm = get_comm()
        if (name := non_finite(self.model, comm)) is not None:
            raise diverged(self, f"'{name}' of the model is not finite after iteration {self.iter + 1}")
        optimizer = self.optim_wrapper.optimizer if kwargs.get("save_optimizer", True) else None
        self._whole = gather_state(unwrap(self.model), optimizer, comm)
        super().save_checkpoint(*args, **kwargs)
        self._whole = {}

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; after those ``before_save_checkpoint``, complete the checkpoint and make it plain."""
        super().call_hook(fn_name, **kwargs)
        if fn_name != "before_save_checkpoint":
            return
        checkpoint = kwargs["checkpoint"]  # here rather than in a hook: no hook can then come after it
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {}  # the histories are not for a run that goes on
        hub["resumed_keys"] = {k: True for k in hub["runtime_info"] if hub["resumed_keys"].get(k)}
        checkpoint["meta"] |= {"torch_version": torch.__version__, "precision": self.precision}
        if "optimizer" in checkpoint:
            checkpoint["loop"] = self.train_loop.state_dict()
        put_whole(checkpoint, self._whole)
        plain = to_plain(checkpoint)
        checkpoint.clear()
        checkpoint.update(plain)

    # -- loading

    def _init_model_weights(self) -> None:
        """Initialise the model, unless a checkpoint is about to replace all of it: weights are not read for nothing.

        So a resumed run needs neither the files that the first one started from nor a network.
        """
        whole = self._load_from is not None and (self.resumes or not self.cfg.get("load_partial", False))
        found = [whole or (self.resumes and is_main_process() and next(find_resume(self.work_dir), None) is not None)]
        broadcast_object_list(found)
        if not found[0]:
            super()._init_model_weights()

    def load_checkpoint(self, filename: str) -> dict[str, Any]:
        """Load the model's state from ``filename`` and return the whole checkpoint.

        Names and shapes must all fit, unless the config has ``load_partial = True`` and this is not to resume a run.

        Args:
            filename: local path, ``http(s)://`` or ``torchvision://`` address.

        Raises:
            InputError: the file cannot be read safely, or does not fit (see :func:`load_state`).
        """
        checkpoint = load_plain(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        otherwise = TAKE_PART
        if self.resumes:  # which takes all or nothing
            otherwise = f"start anew with what fits: load_from='{filename}' and load_partial=True, without --resume"
        partial, source = self.cfg.get("load_partial", False) and not self.resumes, f"checkpoint '{filename}'"
        state = model_state(checkpoint, source)
        report = load_state(self.model, state, partial=partial, source=source, otherwise=otherwise)
        self._loaded = True
        meta = checkpoint.get("meta")
        if not partial:
            take_names(self.model, meta, source)
        saved = meta.get("precision") if isinstance(meta, Mapping) else None
        self.precision = saved if saved in PRECISIONS[:2] else "float32"
        self.logger.info(f"model state from {filename}: {report}")
        return checkpoint

    @property
    def resumes(self) -> bool:
        """Whether this is to go on with another run."""
        return bool(self._resume)

    def load_or_resume(self) -> None:
        """Load or resume what the config asks for, once, and write the config, which now is that of the run."""
        if not self._loaded and self._load_from is not None:
            (self.resume if self.resumes else self.load_checkpoint)(self._load_from)
        elif not self._loaded and self.resumes:
            self._resume_newest()
        if not self._config_written:
            self._write_config()
            self._config_written = True

    def _resume_newest(self) -> None:
        candidates, tried = find_resume(self.work_dir), []
        while True:
            found = [next(candidates, None) if is_main_process() else None]
            broadcast_object_list(found)  # one choice for all ranks
            if found[0] is None:
                break
            try:
                self.resume(found[0])
                return
            except DamagedError as error:
                tried.append(found[0])
                logs.warn(f"not resuming from {found[0]}: {error}")
        if tried:
            raise InputError(
                f"work_dir '{self.work_dir}' has {len(tried)} checkpoint(s), none of which can be loaded "
                f"('{tried[0]}', ...); start anew in another work_dir"
            )
        self.logger.info(f"no checkpoint to resume from in {self.work_dir}; starting from the beginning")

    def resume(self, filename: str) -> None:
        """Continue the run that wrote ``filename``: model, position, seed, optimiser, the loop's own state.

        Options of the optimiser that the config has changed since, the learning rate say, are applied, with a warning
        that has both numbers.

        Raises:
            InputError: the checkpoint does not fit, or lacks what resuming needs.
            DamagedError: it cannot be read safely, or holds what no run could have written.
        """
        loop = self.train_loop
        if loop is None:
            raise InputError(f"resuming '{filename}' needs a training config; to evaluate it, set load_from only")
        checkpoint = self.load_checkpoint(filename)
        if lacking := sorted({"loop", "meta", "message_hub", "optimizer"} - checkpoint.keys()):
            raise InputError(
                f"checkpoint '{filename}' lacks {', '.join(lacking)}, so training cannot continue from it; "
                "to start from its weights, set load_from without resume"
            )
        with reading(filename, "is not the checkpoint of a run", "use another one"):
            meta, hub = META(checkpoint["meta"]), HUB(checkpoint["message_hub"])
            loop._epoch, loop._iter = meta["epoch"], meta["iter"]
            self._resume_seed(meta.get("seed"), filename)
            self._resumed_precision = self.precision
            self.message_hub.load_state_dict(hub)
            self._resume_optimizer(checkpoint["optimizer"], filename)
            loop.load_state_dict(own_gradients(checkpoint["loop"], unwrap(self.model)))
        self.logger.info(f"resumed {filename} at epoch {self.epoch}, iteration {self.iter}")

    def _resume_seed(self, seed: int | None, filename: str) -> None:
        configured = self._randomness_cfg.get("seed")
        if seed not in (None, configured):
            if configured is not None:
                self.logger.warning(f"the run of '{filename}' continues with its own seed {seed}, not {configured}")
            self._randomness_cfg = {**self._randomness_cfg, "seed": seed}
            self.set_randomness(**self._randomness_cfg)

    def _resume_optimizer(self, state: Any, filename: str) -> None:
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        optimizer = self.optim_wrapper.optimizer
        state = own_state(state, unwrap(self.model), optimizer)
        check_state(state, optimizer)
        if self._configured is None:  # once: a damaged checkpoint may have left its own before the older one is taken
            self._configured = options_of(optimizer.param_groups)
        try:
            self.optim_wrapper.load_state_dict(state)
        except ValueError as error:
            raise InputError(f"the optimiser of checkpoint '{filename}' does not fit: {one_line(error)}") from None
        change_options(optimizer, self._configured)
