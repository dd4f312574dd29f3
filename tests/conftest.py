"""Makes what lies beside it importable from every folder of tests."""

from __future__ import annotations

import pytest

from odc import logs


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(logs, "warn", messages.append)
    return messages
