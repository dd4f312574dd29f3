"""What a number needs to be repeated: versions, machine, revision, command."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "onedl-mmengine", "mmengine", "faiss-cpu", "faiss-gpu")


def provenance() -> dict[str, Any]:
    """Return versions, machine, revision of the checkout, command and date: JSON values by name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "machine": machine(),
        "git_revision": _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def command() -> str:
    """Return the command line of this process, as one would type it in the checkout."""
    program = Path(sys.argv[0])
    called = ["python", relative(sys.argv[0])]
    if program.name == "odc" or program.parts[-3:] == ("odc", "cli", "__main__.py"):
        called = ["odc"]
    return shlex.join([*called, *sys.argv[1:]])


def machine() -> str:
    """Return processor and number of cores of this machine."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def relative(path: str | Path) -> str:
    """Return a path relative to the checkout, if it is inside."""
    full = Path(path).resolve()
    return str(full.relative_to(ROOT)) if full.is_relative_to(ROOT) else str(path)


def _git(*args: str) -> str:
    if not (ROOT / ".git").exists():  # installed: what git finds further up is another project, or an environment's
        return ""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
