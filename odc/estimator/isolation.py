"""A training inside of somebody else's program: quiet, one at a time, and the process is as before when it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from odc.logs import apart

_ONE_AT_A_TIME = threading.RLock()  # a training seeds generators and starts logs that a process has once


@contextlib.contextmanager
def isolated(verbose: bool) -> Iterator[str]:
    """Return a context for trainings, that gives the level of their logs; afterwards the process is as it was.

    Generators (of Python, NumPy and torch), logs, and what a runner sets for its process get their state back, also
    after an error. Threads take turns.
    """
    level = "INFO" if verbose else "ERROR"
    with _ONE_AT_A_TIME, contextlib.ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002  # it is left as it was
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        undo.callback(multiprocessing.set_start_method, multiprocessing.get_start_method(allow_none=True), force=True)
        # As a runner does: it would warn of another's, which is joblib's own in a process of joblib's.
        multiprocessing.set_start_method("fork", force=True)
        undo.callback(cv2.setNumThreads, cv2.getNumThreads())
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        undo.enter_context(_settings_of_gpus())
        undo.enter_context(apart(level))
        yield level


@contextlib.contextmanager
def _settings_of_gpus() -> Iterator[None]:
    """Keep what :func:`odc.engine.precision.repeat_on_gpu` sets, but for what a GPU has read by then."""
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    before = cudnn.benchmark, cudnn.allow_tf32, memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    variables = {
        name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")
    }
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, memory.fill_uninitialized_memory = before  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
