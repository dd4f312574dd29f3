"""Whether two runs left the same files: tensors bit for bit, tables byte for byte."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc.checkpoints import load_plain

_NUMBERED = re.compile(r"(iter|epoch)_\d+\.pth")
_TIME = re.compile(r"\d{8}_\d{6}")  # the folder of one start's log
# Costs, and when and by which command: no two runs have the same.
_VARIES = {"seconds", "pretrain_seconds", "peak_rss_mb", "date", "command", "git_revision"}
_MET = {"epoch", "iter", "seed"}  # of a checkpoint's meta; the rest is times, names and versions


def differences(whole: Path, part: Path) -> list[str]:
    """Return what the files of ``part`` lack, or have otherwise, compared with those of the unbroken run ``whole``.

    Compared are every checkpoint that both have, the last one above all; ``.npz`` array by array (but for ``meta``);
    JSON without costs; ``.csv`` and pictures byte for byte. Logs, configs and reports must be there. More checkpoints
    than the unbroken run keeps, and unfinished files, are differences too.
    """
    found = []
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        name = path.relative_to(whole)
        other = part / name
        if any(_TIME.match(folder) for folder in name.parts[:-1]) or path.name.endswith(".lock"):
            continue
        if not other.is_file():
            last = path.with_name("last_checkpoint")
            superseded = _NUMBERED.fullmatch(path.name) and last.is_file() and last.read_text().strip() != path.name
            if not superseded:
                found.append(f"{name} is missing")
        else:
            found += [f"{name}: {text}" for text in _compare(path, other)]
    ours, theirs = _checkpoints(whole), _checkpoints(part)
    found += [f"{theirs[f]} checkpoints are kept in '{f}', not {ours[f]}" for f in ours if theirs.get(f, 0) > ours[f]]
    found += [f"{path.relative_to(part)} is left" for path in sorted(part.rglob("*")) if ".tmp" in path.name]
    return found


def torn(folder: Path, whole: Path) -> list[str]:
    """Return the files under their final names that are not complete."""
    found: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".tmp" not in p.name):
        with _noting(path.name, found):
            if path.suffix == ".pth":
                load_plain(path)
            elif path.suffix == ".json" and path.parent.name != "vis_data":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".csv", ".png") and path.stat().st_size != (whole / path.name).stat().st_size:
                found.append(f"{path.name} is cut at {path.stat().st_size:,} bytes")
    return found


@contextlib.contextmanager
def _noting(name: str, found: list[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        found.append(f"{name}: {error}")


def _checkpoints(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in folder.rglob("*.pth"):
        if _NUMBERED.fullmatch(path.name):
            name = str(path.parent.relative_to(folder))
            counts[name] = counts.get(name, 0) + 1
    return counts


def _compare(path: Path, other: Path) -> list[str]:
    if path.suffix == ".pth":
        return _unlike(_told(load_plain(path)), _told(load_plain(other)), "")[:5]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as a, np.load(other, allow_pickle=False) as b:
            other_names = sorted(set(a.files) ^ set(b.files))
            # meta says which checkpoint it is from, and so where the folder lies.
            unlike = [k for k in a.files if k in b.files and k != "meta" and a[k].tobytes() != b[k].tobytes()]
        return [f"other arrays: {', '.join(other_names + unlike)}"] if other_names or unlike else []
    if path.name == "results.jsonl":
        return [] if _records(path) == _records(other) else [f"{_records(other)} instead of {_records(path)}"[:300]]
    if path.suffix == ".json" and path.name not in ("curves.json", "begun.json"):
        one, two = (_without_costs(json.loads(p.read_text(encoding="utf-8"))) for p in (path, other))
        return [] if one == two else [f"{two} instead of {one}"[:300]]
    if path.suffix in (".csv", ".png") or path.name == "last_checkpoint":
        return [] if path.read_bytes() == other.read_bytes() else [f"other bytes ({other.stat().st_size:,} of them)"]
    return []


def _records(path: Path) -> list[str]:
    """Return the last record of each cell without its costs."""
    last: dict[tuple[str, int], Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        last[record["method"], record["seed"]] = _without_costs(record)
    return sorted(json.dumps(record, sort_keys=True) for record in last.values())


def _without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_costs(v) for k, v in value.items() if k not in _VARIES}
    return value


def _told(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of the training, not of when and where it was written."""
    kept = {k: v for k, v in checkpoint.items() if k not in ("meta", "message_hub")}
    if isinstance(checkpoint.get("meta"), dict):
        kept["meta"] = {k: v for k, v in checkpoint["meta"].items() if k in _MET}
    return kept


def _unlike(one: Any, two: Any, where: str) -> list[str]:
    if type(one) is not type(two):
        return [f"{where} is a {type(two).__name__}, not a {type(one).__name__}"]
    if isinstance(one, Tensor):
        if one.dtype != two.dtype or one.shape != two.shape:
            return [f"{where} is {two.dtype} {tuple(two.shape)}, not {one.dtype} {tuple(one.shape)}"]
        bits = [t.contiguous().view(-1).view(torch.uint8) for t in (one, two)]
        return [] if torch.equal(*bits) else [f"{where} has other bits"]
    if isinstance(one, dict):
        keys = [f"{where}.{k} is only in one" for k in sorted(map(str, one.keys() ^ two.keys()))]
        return [*keys, *(d for k in one if k in two for d in _unlike(one[k], two[k], f"{where}.{k}"))]
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return [f"{where} has {len(two)} items, not {len(one)}"]
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in _unlike(a, b, f"{where}[{i}]")]
    return [] if repr(one) == repr(two) else [f"{where} is {two!r}, not {one!r}"]
