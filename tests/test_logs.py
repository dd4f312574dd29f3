"""Logs: bounded, of one line each."""

from __future__ import annotations

import logging
from pathlib import Path

import mmengine
import pytest
from mmengine.logging import HistoryBuffer
from toy_runner import build

from odc import logs
from odc.logs import MAX_HISTORY


def test_log_buffers_are_bounded(tmp_path: Path) -> None:
    hub = build(tmp_path).message_hub
    for _ in range(MAX_HISTORY + 5):
        hub.update_scalar("train/loss", 1.0)
    assert len(hub.get_scalar("train/loss").data[0]) == MAX_HISTORY
    hub.log_scalars["direct"] = HistoryBuffer()
    assert hub.get_scalar("direct").max_length == MAX_HISTORY


def test_warnings_go_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logger = mmengine.logging.MMLogger.get_instance("logs-test", logger_name="logs-test")
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logs.warn("careful")
    assert records == ["careful"]


def test_pages_stay_off_the_terminal_and_go_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = build(tmp_path)
    runner.logger.info("a line")
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "a line" in shown
    assert "Hooks will be executed" not in shown
    assert "Hooks will be executed in the following order:\n" in next(tmp_path.rglob("*.log")).read_text()


def test_no_name_forges_a_line_or_moves_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = build(tmp_path)
    capsys.readouterr()
    name = "a\x1b[2J\x07\rb\n11/26 00:00:00 - mmengine - INFO - evaluation  acc 1.0000\u202e\udcff.png"
    runner.logger.info("skipped %s", name)
    runner.logger.warning(f"skipped {name}")
    captured = capsys.readouterr()
    shown = (captured.out + captured.err).splitlines()
    log = next(tmp_path.rglob("*.log")).read_text()
    expected = r"skipped a\x1b[2J\x07\rb\n11/26 00:00:00 - mmengine - INFO - evaluation  acc 1.0000\u202e\udcff.png"
    assert [line.endswith(expected) for line in shown] == [True, True]
    assert all(line in log for line in shown)
