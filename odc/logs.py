"""Logs of one line each, in which no name can move the cursor, and files that say so when they cannot be written."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import mmengine.runner
import mmengine.visualization
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger, print_log
from mmengine.logging.logger import MMFormatter
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from odc.errors import printable
from odc.files import naming
from odc.registry import VISBACKENDS

MAX_HISTORY = 1000


def warn(message: str) -> None:
    """Log a warning where the present run logs."""
    print_log(message, logger="current", level=logging.WARNING)


@contextlib.contextmanager
def apart(level: str) -> Iterator[None]:
    """Return a context whose log, of this level, and whose runs' logs are its own, and end with it.

    mmengine keeps the loggers of a process by name and for good, and with them what else its runners share.
    """
    kinds = (MMLogger, MessageHub, DefaultScope, Visualizer)
    before = [kind._instance_dict for kind in kinds]
    for kind in kinds:
        kind._instance_dict = OrderedDict()
    try:
        MMLogger.get_instance("odc", logger_name="odc", log_level=level)
        yield
    finally:
        for logger in MMLogger._instance_dict.values():
            for handler in logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.close()
        for kind, instances in zip(kinds, before, strict=True):
            kind._instance_dict = instances


class _Formatter(MMFormatter):
    """mmengine's, without what no log should get: names of files could otherwise move the cursor, or forge a line.

    Only pages keep their lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record = copy.copy(record)
        record.msg, record.args = printable(record.getMessage(), "\n" if _is_page(record) else ""), None
        line: str = super().format(record)
        return line


mmengine.logging.logger.MMFormatter = _Formatter  # of all loggers that are made from now on


def _is_page(record: logging.LogRecord) -> bool:
    """Return whether it is a page of mmengine's runner: environment, whole config, list of hooks."""
    own = record.pathname == mmengine.runner.runner.__file__
    return bool(own and record.levelno <= logging.INFO and "\n" in record.getMessage())


class OneLiners(logging.Filter):
    """Keeps pages (environment, whole config, list of hooks) and mmengine's notes to itself off the terminal.

    The log file has everything.
    """

    _NOTES = (
        "FileClient",
        "HardDiskBackend",
        "Saving checkpoint at",
        "Checkpoints will be saved to",
        "all SyncBatchNorm (SyncBN) layers in the model",
        "paramwise_options -- ",  # a line for every parameter
    )

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is for the terminal."""
        return not _is_page(record) and not any(note in record.getMessage() for note in self._NOTES)


def log_failed(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Raise again what :mod:`logging` caught, with the name of the file."""
    error = sys.exc_info()[1]
    if error is not None:
        with naming(handler.baseFilename):
            raise error


@VISBACKENDS.register_module(force=True)
class LocalVisBackend(mmengine.visualization.LocalVisBackend):
    """mmengine's, with the name of the file in its errors."""

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        with naming(file_path):
            super()._dump(value_dict, file_path, file_format)


class CappedScalars(OrderedDict[str, HistoryBuffer]):
    """Log buffers of at most :data:`MAX_HISTORY` values: mmengine's copy their whole history at every update."""

    def __setitem__(self, key: str, buffer: HistoryBuffer) -> None:
        buffer.max_length = min(buffer.max_length, MAX_HISTORY)
        super().__setitem__(key, buffer)
