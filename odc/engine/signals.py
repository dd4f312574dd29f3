"""Signals that ask a training to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Signals:
    """Remembers SIGTERM and the first Ctrl-C until the training can obey them; a second one ends the process at once.

    A context, inside of which signals are caught, where this is the main thread.

    Attributes:
        asked: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)  # asked twice: do not wait for the step to end
        self.asked = number

    def __enter__(self) -> None:
        try:
            self._before = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # only the main thread may
            self._before = {}

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
