"""Checkpoints that would run something if they were unpickled, and checkpoints that are not what they should be."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .worker import PLANTED

Edit = Callable[[dict[str, Any]], object]


def call(name: str, *args: object) -> bytes:
    """Return the opcodes that call ``module.function`` with plain arguments, without a frame around them."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + pickle.dumps(args, 2)[2:-1] + b"R"


def whole(opcodes: bytes) -> bytes:
    """Return a pickle of some opcodes."""
    return b"\x80\x02" + opcodes + b"."


def gadgets(mark: str) -> dict[str, bytes]:
    """Return opcodes that would leave the file ``mark``, start something, or import a module, by name."""
    touch = f"touch {mark}"
    write = f"open({mark!r}, 'w').close()"
    evil = whole(call("os.system", touch))
    chain = (  # getattr(__import__('os'), 'system')(touch)
        b"cbuiltins\ngetattr\n(" + call("builtins.__import__", "os") + pickle.dumps("system", 2)[2:-1] + b"tR"
    )
    module, arguments = call("importlib.import_module", "os"), pickle.dumps((touch,), 2)[2:-1]
    return {
        "os.system": call("os.system", touch),
        "posix.system": call("posix.system", touch),
        "eval": call("builtins.eval", write),
        "exec": call("builtins.exec", write),
        "open": call("builtins.open", mark, "w"),
        "popen": call("os.popen", touch),
        "Popen": call("subprocess.Popen", ["touch", mark]),
        "check_output": call("subprocess.check_output", ["touch", mark]),
        "pty": call("pty.spawn", ["touch", mark]),
        "execv": call("os.execv", "/bin/true", ["true", mark]),
        "posix_spawn": call("os.posix_spawn", "/bin/touch", ["touch", mark], {}),
        "timeit": call("timeit.timeit", write),
        "runpy": call("runpy._run_code", write, {}),
        "runstring": call("numpy.testing._private.utils.runstring", write, {}),
        "import": call("builtins.__import__", PLANTED),
        "connect": call("socket.create_connection", ("127.0.0.1", 9)),
        "getattr": chain + arguments + b"R",
        "attrgetter": call("operator.attrgetter", "system") + b"(" + module + b"tR" + arguments + b"R",
        "methodcaller": call("operator.methodcaller", "system", touch) + b"(" + module + b"tR",
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + pickle.dumps(touch, 2)[2:-1] + b"tR(tR",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n" + pickle.dumps([touch], 2)[2:-1] + b"tRtR",
        "torch.load": call("torch.load", mark, None),
        "storage": call("torch.storage._load_from_bytes", evil),
        "hub": call("torch.hub.load", "no/repo", "model"),
        "loads": call("pickle.loads", evil),
        "yaml": call("yaml.unsafe_load", f"!!python/object/apply:os.system ['{touch}']"),
        "cdll": call("ctypes.CDLL", mark),
        "persistent": b"((" + call("os.system", touch) + b"tQ" + pickle.dumps("x", 2)[2:-1] + b"t",
        "build": b"ccollections\nOrderedDict\n)R}" + call("os.system", touch) + b"K\x01sb",
        "inst": b"(" + pickle.dumps(touch, 2)[2:-1] + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + pickle.dumps(touch, 2)[2:-1] + b"o",
    }


def in_archive(checkpoint: Path, data: bytes, path: Path) -> None:
    """Write the archive of a sound checkpoint with another pickle in it."""
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, data if info.filename.endswith("/data.pkl") else source.read(info))


def _put(*keys: str, value: object) -> Edit:
    def edit(checkpoint: dict[str, Any]) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


def _named(part: str, change: Callable[[torch.Tensor], Any]) -> Edit:
    """Change every tensor of the model whose name has ``part`` in it."""

    def edit(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        names = [name for name in state if part in name and isinstance(state[name], torch.Tensor)]
        if not names:
            raise KeyError(f"no tensor with '{part}' in its name")
        for name in names:
            state[name] = change(state[name])

    return edit


def _groups(checkpoint: dict[str, Any]) -> None:
    for group in checkpoint["optimizer"]["param_groups"]:
        group["lr"] = "fast"


def _momentum(checkpoint: dict[str, Any]) -> None:
    for state in checkpoint["optimizer"]["state"].values():
        state["momentum_buffer"] = torch.zeros(3)


def _deep(checkpoint: dict[str, Any]) -> None:
    nest: list[Any] = []
    for _ in range(400):
        nest = [nest]
    checkpoint["meta"] = {"epoch": nest, "iter": nest}


EDITS: dict[str, Edit] = {
    "meta-none": _put("meta", value=None),
    "meta-list": _put("meta", value=[1, 2]),
    "meta-empty": _put("meta", value={}),
    "epoch-text": _put("meta", "epoch", value="third"),
    "epoch-negative": _put("meta", "epoch", value=-5),
    "epoch-huge": _put("meta", "epoch", value=10**30),
    "iter-none": _put("meta", "iter", value=None),
    "iter-nan": _put("meta", "iter", value=float("nan")),
    "seed-text": _put("meta", "seed", value="abc"),
    "seed-huge": _put("meta", "seed", value=2**70),
    "nested": _deep,
    "loop-list": _put("loop", value=[]),
    "loop-empty": _put("loop", value={}),
    "step-negative": _put("loop", "step", value=-7),
    "chunk-text": _put("loop", "chunk", value="one"),
    "order-text": _put("loop", "order", value="abc"),
    "order-huge": _put("loop", "order", value={"train": torch.full((23, 16), 10**9)}),
    "loop-seed": _put("loop", "seed", value="x"),
    "threads": _put("loop", "threads", value=[1]),
    "before": _put("loop", "labels_before", value=torch.zeros(2)),
    "images-seen": _put("loop", "images_seen", value="many"),
    "optimizer-list": _put("optimizer", value=[]),
    "optimizer-empty": _put("optimizer", value={}),
    "optimizer-lr": _groups,
    "optimizer-shape": _momentum,
    "hub-number": _put("message_hub", value=3),
    "hub-empty": _put("message_hub", value={}),
    "state-list": _put("state_dict", value=[1]),
    "state-numbers": _put("state_dict", value={1: 2}),
    "labels-huge": _named("labels.target", lambda t: torch.full_like(t, 10**9)),
    "labels-negative": _named("labels.target", lambda t: torch.full_like(t, -7)),
    "labels-short": _named("labels.target", lambda t: t[:3]),
    "labels-float": _named("labels.target", lambda t: t.float() + 0.5),
    "index-huge": _named("labels.index", lambda t: t + 10**9),
    "weights-nan": _named("backbone", lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t),
    "weights-text": _named("backbone", lambda t: "text"),
    "expanded": _named("labels.target", lambda t: torch.zeros(1, dtype=t.dtype).expand(10**11, 1)),
    "complex": _named("backbone", lambda t: t.to(torch.complex64)),
    "sparse": _named("backbone", lambda t: t.to_sparse() if t.ndim > 1 else t),
}


def edited(checkpoint: dict[str, Any], edit: Edit, path: Path) -> None:
    """Write a sound checkpoint with one thing changed."""
    changed = copy.deepcopy(checkpoint)
    edit(changed)
    torch.save(changed, path)


def archives(checkpoint: Path) -> dict[str, bytes]:
    """Return files that are no checkpoint, or only nearly, by name."""
    content = checkpoint.read_bytes()

    def made(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return buffer.getvalue()

    tensor = whole(  # 2^50 floats in a storage of four bytes
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00"
        b"\x00\x00cpuJ\xff\xff\xff\x7ftQK\x00\x8a\x07\x00\x00\x00\x00\x00\x00\x04\x85K\x01\x85\x89ccollections\n"
        b"OrderedDict\n)RtR"
    )
    return {
        "nothing": b"",
        "text": b"hello\n" * 100,
        "html": b"<!DOCTYPE html><html>404</html>",
        "zip-empty": made({}),
        "zip-no-data": made({"a/version": b"3\n"}),
        "zip-no-storage": made({"a/data.pkl": tensor, "a/version": b"3\n"}),
        "zip-huge-tensor": made({"a/data.pkl": tensor, "a/data/0": b"1234", "a/version": b"3\n"}),
        "zip-up": made({"../../a/data.pkl": whole(b"}"), "../../a/version": b"3\n"}),
        "zip-bomb": made({"a/data.pkl": bytes(1 << 28), "a/version": b"3\n"}, zipfile.ZIP_DEFLATED),
        "zip-version": made({"a/data.pkl": whole(b"}"), "a/version": b"99\n"}),
        "zip-tail": content[: len(content) // 2] + content[-200:],
        "deep": whole(b"(" * 100_000 + b"t" * 100_000),
        "memo": whole(b"h\xffh\xfe"),
        "long": whole(b"\x8b\xff\xff\xff\x7f"),
        "dict": whole(b"}"),
        "legacy": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"a": 1}, 2),
        "safetensors-header": (2**62).to_bytes(8, "little") + b"{}",
    }
