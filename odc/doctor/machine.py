"""This machine and what is installed on it."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy
import sklearn
import threadpoolctl  # type: ignore[import-untyped]
import torch
import torchvision

import odc
from odc import processes
from odc.clustering.kmeans import load_faiss
from odc.doctor.findings import ADVICE, OK, PROBLEM, Finding, size
from odc.engine.precision import lacks_bfloat16
from odc.errors import InputError, one_line

_OURS = "online-deep-clustering"
_SIDE = 512  # of the matrices whose product is timed
_LEAST_MEMORY, _GOOD_MEMORY = 2 * 2**30, 4 * 2**30
_LEAST_DISK, _GOOD_DISK = 2**30, 10 * 2**30
_EXTRAS = {"timm": "networks of timm (--features timm:NAME)", "onnxruntime": "odc export --format onnx"}
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def look_at_machine(where: str | Path = ".") -> list[Finding]:
    """Look at versions, FAISS, GPU, bfloat16, threads, memory, and the disk that ``where`` is on."""
    looks: Sequence[Callable[[], Finding]] = (
        versions,
        lambda: matched(torch.__version__, torchvision.__version__, _operators()),
        lambda: faiss_packages(_installed()),
        lambda: namesakes(_distributions_of("odc")),
        gpu,
        bfloat16,
        lambda: runtimes(threadpoolctl.threadpool_info()),
        lambda: threads(torch.get_num_threads(), cores()),
        lambda: load(os.getloadavg()[0], cores()),
        memory,
        lambda: disk(where),
        extras,
    )
    return [look() for look in looks]


def versions() -> Finding:
    """Name the versions of what results depend on."""
    told = (
        f"odc {odc.__version__}, Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__}, scikit-learn "
        f"{sklearn.__version__}"
    )
    return Finding("versions", OK, told)


def _operators() -> str | None:
    """Return why torchvision's compiled operators do not run, or ``None``."""
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # what a library of another version leads to
        return one_line(error)[:80]
    return None


def matched(torch_version: str, vision_version: str, broken: str | None) -> Finding:
    """Say whether torchvision is made for this torch: its compiled parts run, and both are for the same CUDA."""
    kinds = [version.partition("+")[2] for version in (torch_version, vision_version)]
    remedy = "install both by one command, pip install -c requirements/lock.txt -e '.[cpu]' say"
    if broken is not None:
        told = f"torchvision {vision_version} is not made for torch {torch_version}: {broken}"
        return Finding("torchvision", PROBLEM, told, remedy)
    if all(kinds) and kinds[0] != kinds[1]:
        told = f"torchvision is for {kinds[1]}, but torch for {kinds[0]}"
        return Finding("torchvision", PROBLEM, told, remedy)
    return Finding("torchvision", OK, "goes with this torch")


def _installed() -> set[str]:
    return {(d.metadata["Name"] or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}


def faiss_packages(installed: Iterable[str]) -> Finding:
    """Say whether exactly one FAISS is installed, and whether it reaches the GPU."""
    found = sorted(name for name in installed if re.fullmatch(r"faiss-(cpu|gpu.*)", name))
    if len(found) > 1:
        remedy = f"pip uninstall {' '.join(found)}, then install one of them again"
        return Finding("FAISS", PROBLEM, f"{' and '.join(found)} are installed, and both own the module faiss", remedy)
    try:
        faiss = load_faiss()
        gpus = int(faiss.get_num_gpus())
    except (InputError, AttributeError) as error:
        reason = str(error) if isinstance(error, InputError) else "FAISS is broken: two packages of it were installed"
        return Finding("FAISS", PROBLEM, reason, "" if isinstance(error, InputError) else "install one of them again")
    told = f"{' '.join(found) or 'faiss'} {faiss.__version__}, " + (f"{gpus} GPUs" if gpus else "on the processor")
    if torch.cuda.is_available() and not gpus:
        return Finding("FAISS", ADVICE, f"{told}: k-means does not use the GPU", "install faiss-gpu instead")
    return Finding("FAISS", OK, told)


def _distributions_of(package: str) -> list[str]:
    return sorted(set(importlib.metadata.packages_distributions().get(package, [])))


def namesakes(distributions: Iterable[str]) -> Finding:
    """Say whether another package puts modules into ``odc``."""
    others = [name for name in distributions if name.lower().replace("_", "-") != _OURS]
    if others:
        remedy = "use an environment for each"
        return Finding("package odc", PROBLEM, f"{', '.join(others)} put modules into the package odc, too", remedy)
    return Finding("package odc", OK, str(Path(odc.__file__).parent))


def gpu() -> Finding:
    """Say which GPU there is, and whether PyTorch reaches it."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        told = f"{torch.cuda.get_device_name()}, {size(free)} of {size(total)} free, CUDA {torch.version.cuda}"
        return Finding("GPU", OK, told)
    there = glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")
    if there and torch.version.cuda is None:
        return Finding(
            "GPU", PROBLEM, "there is one, but this PyTorch is for processors alone", "install one with CUDA"
        )
    if there:
        remedy = "see nvidia-smi, and whether its driver is as new as the CUDA of PyTorch"
        return Finding(
            "GPU", PROBLEM, f"there is one, but PyTorch (CUDA {torch.version.cuda}) does not reach it", remedy
        )
    return Finding("GPU", OK, "none: everything runs on the processor")


def bfloat16() -> Finding:
    """Say whether bfloat16 is native, and how fast a product is in it."""
    reason = lacks_bfloat16()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = (_seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    speed = f"a product of matrices takes {other / one:.2g} times as long as in float32"
    if reason is None:
        return Finding("bfloat16", OK, f"native; {speed}")
    return Finding("bfloat16", ADVICE, f"not used, since {reason}; {speed}", "leave --amp out")


def _seconds(dtype: torch.dtype, device: str) -> float:
    x = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    found = []
    for _ in range(4):  # the first one starts kernels
        began = time.perf_counter()
        x @ x
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return max(min(found[1:]), 1e-9)


def runtimes(pools: Iterable[Mapping[str, Any]]) -> Finding:
    """Say whether thread pools of different makers meet in this process, from what threadpoolctl knows of them."""
    pools = list(pools)
    openmp = sorted({str(p["prefix"]) for p in pools if p.get("user_api") == "openmp"})
    blas = sorted(
        {f"{p['internal_api']} {p.get('version') or ''}".strip() for p in pools if p.get("user_api") == "blas"}
    )
    told = f"OpenMP {', '.join(openmp) or 'none'}; BLAS {', '.join(blas) or 'none'}"
    if {"libiomp", "libomp"} <= set(openmp):
        remedy = "install numpy, scipy, scikit-learn and torch all by pip, or all by conda"
        return Finding("thread pools", PROBLEM, f"{told}: Intel's and LLVM's OpenMP together may hang", remedy)
    if len(openmp) > 1:
        remedy = "where it is slow, install numpy, scipy, scikit-learn and torch all by pip, or all by conda"
        return Finding(
            "thread pools", ADVICE, f"{told}: each of several OpenMP libraries starts its own threads", remedy
        )
    return Finding("thread pools", OK, told)


def cores() -> float:
    """Return the cores that this process may use, a share of one too, as containers give them."""
    count = float(processes.cores())
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return count if quota == "max" else min(count, int(quota) / int(period))
    except (OSError, ValueError):
        return count


def threads(number: int, cores: float) -> Finding:
    """Say whether PyTorch has as many threads as there are cores."""
    told = f"PyTorch has {number} threads on {cores:g} cores"
    if number > math.ceil(cores):
        remedy = f"OMP_NUM_THREADS={math.ceil(cores)}"
        return Finding("threads", ADVICE, f"{told}: they get into each other's way", remedy)
    if number < cores // 2:
        return Finding("threads", ADVICE, f"{told}: most of them idle", f"OMP_NUM_THREADS={int(cores)}")
    return Finding("threads", OK, told)


def load(average: float, cores: float) -> Finding:
    """Say whether other programs compute, too: what is timed takes longer then."""
    told = f"{average:.1f} on {cores:g} cores over the last minute"
    if average > 1.5 * cores:
        return Finding("load", ADVICE, f"{told}: everything takes longer than alone", "wait for other programs to end")
    return Finding("load", OK, told)


def free_memory() -> int:
    """Return the bytes of memory that are free, at most what the container leaves."""
    try:
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        most, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        return max(0, min(free, most - used))
    except (OSError, ValueError):
        return free


def memory() -> Finding:
    """Say how much memory is free."""
    return _enough("memory", free_memory(), "", _LEAST_MEMORY, _GOOD_MEMORY, "close other programs")


def disk(where: str | Path) -> Finding:
    """Say how much of the disk is free."""
    path = Path(where).absolute()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    return _enough("disk", free, f" at {path}", _LEAST_DISK, _GOOD_DISK, "free some, or work on another disk")


def _enough(name: str, free: int, where: str, least: int, good: int, remedy: str) -> Finding:
    told = f"{size(free)} free{where}"
    if free < least:
        return Finding(name, PROBLEM, f"{told}, less than {size(least)}", remedy)
    if free < good:
        return Finding(name, ADVICE, f"{told}, which may not do for large folders", remedy)
    return Finding(name, OK, told)


def extras() -> Finding:
    """Name optional packages that are missing, and what they are for."""
    lacking = [f"{name} for {use}" for name, use in _EXTRAS.items() if importlib.util.find_spec(name) is None]
    if not lacking:
        return Finding("extras", OK, f"{', '.join(_EXTRAS)} are installed")
    return Finding("extras", OK, f"not installed: {'; '.join(lacking)}")
