"""Processes: the cores that they have, and those that end when nobody waits for them any more."""

from __future__ import annotations

import functools
import os
import threading
import time


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Let this process end, a second later at most, when the one that started it is gone, killed say.

    A thread looks who the parent is: what the kernel offers for this is Linux's alone, and follows the parent's thread
    instead of the parent.
    """
    _watch(os.getpid())


@functools.cache
def _watch(process: int) -> None:
    """Start the thread, once in a process: one that is forked has the threads of its parent no more."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
