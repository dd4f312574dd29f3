"""Records of cells as a comparison keeps them, without running one."""

from __future__ import annotations

import dataclasses
from typing import Any

from odc.comparison.results import Record

FACTS: dict[str, Any] = {
    **dict(dataset="digits", evaluated_on="train", images=100, num_clusters=10, config="", folder="nowhere"),
    **dict(precision="float32", threads=1, key="0" * 16, versions={"torch": "2.15", "numpy": "2.4"}),
    **dict(machine="a small one", git_revision="abc", command="the command", date="2026-11-22T10:00:00+00:00"),
}
NAMES = {field.name for field in dataclasses.fields(Record)}


def record(method: str, seed: int, **told: Any) -> Record:
    """Return a record with these entries; those that are no attributes are values."""
    values = {name: value for name, value in told.items() if name not in NAMES}
    given = {name: value for name, value in told.items() if name in NAMES}
    return Record(method, seed, values=values, **{**FACTS, **given})
