"""What a training computes in: bfloat16 only where processor or GPU computes it themselves, and the same bits again."""

from __future__ import annotations

import logging
import os
import platform

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, is_distributed
from mmengine.logging import print_log

from odc.errors import InputError

PRECISIONS = ("float32", "bfloat16", "auto")
FORBID_BFLOAT16 = "ODC_BFLOAT16"


def lacks_bfloat16() -> str | None:
    """Return why this process, alone, is not to compute in bfloat16, or ``None`` where its device has instructions.

    Elsewhere it is emulated, which takes many times as long as float32.

    Raises:
        InputError: the environment variable ``ODC_BFLOAT16`` is neither 0, which forbids it, nor 1.
    """
    forbidden = os.environ.get(FORBID_BFLOAT16, "1")
    if forbidden not in ("0", "1"):
        raise InputError(f"{FORBID_BFLOAT16}={forbidden}: 0 forbids bfloat16, 1 leaves it to the machine")
    if forbidden == "0":
        return f"{FORBID_BFLOAT16}=0 forbids it"
    device = get_device()
    if device == "cpu":
        return None if _cpu_has_bfloat16() else "this processor has no instructions for it and would emulate it"
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return f"the GPU ({torch.cuda.get_device_name()}) would emulate it"
    return f"nothing is known of it on the device '{device}'"


def _cpu_has_bfloat16() -> bool:
    try:
        through_onednn = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return through_onednn
    # oneDNN says yes to every AVX-512, and emulates where that has no bfloat16.
    return through_onednn and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def settle_precision(asked: str | None) -> str:
    """Return what to train in, ``"float32"`` or ``"bfloat16"``: the latter where it is asked for and all ranks have it.

    What is ``asked`` for is one of :data:`PRECISIONS`, or ``None`` for the first. The answer is told once in a process;
    where ``"bfloat16"`` cannot be, unlike ``"auto"``, as a warning.
    """
    if asked in (None, "float32"):
        return "float32"
    reason = lacks_bfloat16_anywhere()
    told = f"training in {'bfloat16' if reason is None else f'float32, not bfloat16: {reason}'}"
    if told not in _told:
        _told.add(told)
        print_log(told, "current", logging.WARNING if asked == "bfloat16" and reason else logging.INFO)
    return "bfloat16" if reason is None else "float32"


_told: set[str] = set()  # what settle_precision has said in this process


def lacks_bfloat16_anywhere() -> str | None:
    """Return why one of the ranks at least is not to compute in bfloat16, or ``None``."""
    reason = lacks_bfloat16()
    reasons = all_gather_object(reason) if is_distributed() else [reason]  # ranks of different kinds must agree
    return next((r for r in reasons if r is not None), None)


def repeat_on_gpu() -> None:
    """Let the GPU compute the same bits each time: the fastest kernels of torch, cuDNN and cuBLAS add in any order.

    And in float32 where nothing less is asked for. An operation that has no other kernel is an error of torch's, which
    names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.backends.cudnn.benchmark = False  # which kernel is the fastest may differ between two runs
    torch.backends.cudnn.allow_tf32 = False  # convolutions that round to ten bits are no float32
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
