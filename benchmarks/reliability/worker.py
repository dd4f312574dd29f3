"""A process that runs many commands, one after the other, and tells what they did; and the one that asks it to.

A request is a line of JSON on stdin, a reply another on stdout: ``{"argv": [...]}`` runs ``odc``; ``{"image": PATH}``
decodes a file through the data set of files. The worker listens to Python's audit events, which no command can turn
off: programs started, connections made.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from .process import environment

EVENTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen"}
PLANTED = "antigravity"  # a module that nothing but a trial imports
CONNECTIONS = {"socket.connect", "socket.sendto", "urllib.Request"}
# What torch, mmengine and the comparison ask of the machine, for the log.
BENIGN = re.compile(r"'\"?(?:[\w/.-]*[/-])?(?:git|gcc|cc|c\+\+|g\+\+|nvcc|nvidia-smi|lscpu|uname|ldconfig)\b")
COMMANDS = 40  # of one process: then a fresh one, as loggers and buffers of mmengine gather


def harm(events: list[str], mark: str) -> list[str]:
    """Return the events that reading a file must not cause.

    Programs that ask about the machine, and libraries that Python itself loads, are none, unless the trial's mark is in
    their names.
    """

    def benign(event: str) -> bool:
        asks = event.startswith("subprocess.Popen") and BENIGN.search(event)
        return mark not in event and bool(asks or event.startswith("ctypes.dlopen"))

    return [event for event in events if not benign(event)]


# -- the side that asks ----------------------------------------------------------------------------------------------


class Reply(dict[str, Any]):
    """What a command did: ``code``, ``output``, ``raised`` (a traceback, or ``None``), ``events``.

    A worker that died has ``died``: a signal, or that it took too long.
    """

    @property
    def failed(self) -> str | None:
        """How it did not end with a result: the signal, the exception, or the code and the last line."""
        if self.died or self["raised"]:
            return self.died or str(self["raised"]).strip().splitlines()[-1][:300]
        lines = self["output"].strip().splitlines()
        return None if self["code"] == 0 else f"ended with {self['code']}: {lines[-1][:300] if lines else ''}"

    @property
    def died(self) -> str | None:
        """How the worker ended, if it did."""
        text: str | None = self.get("died")
        return text


class Worker:
    """The asking side; a worker that dies, or has run many commands, is replaced by a fresh one.

    Args:
        folder: where it writes what commands print.
        memory: MiB of address space that it may take on top of what it has at the start; ``None``: any.
        path: folder of programs that come before the machine's own.
    """

    def __init__(self, folder: Path, memory: int | None = None, path: Path | None = None) -> None:
        self.folder, self.memory = folder, memory
        self.environment = environment()
        if path is not None:
            self.environment["PATH"] = os.pathsep.join([str(path), self.environment["PATH"]])
        self.process: subprocess.Popen[bytes] | None = None
        self.count = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count = 0
        return subprocess.Popen(
            [sys.executable, "-m", "reliability.worker", str(self.memory or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            cwd=self.folder,
        )

    def ask(self, request: dict[str, Any], seconds: float = 180.0) -> Reply:
        """Return the reply to one request."""
        if self.process is None or (self.count >= COMMANDS and "argv" in request):
            self._end()
            self.process = self._start()
            self._wait(300.0)  # it says that it is ready
        self.count += 1
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._wait(seconds)

    def _wait(self, seconds: float) -> Reply:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return Reply(json.loads(line))
        died = f"does not end within {seconds:.0f} s"
        if ready:
            code = self.process.wait()
            died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"
        self._end()
        return Reply(died=died, events=[], output="", code=None, raised=None)


# -- the side that runs ----------------------------------------------------------------------------------------------


def _listen(events: list[str]) -> None:
    def watch(event: str, args: tuple[Any, ...]) -> None:
        planted = event == "import" and args[0] == PLANTED
        if event in EVENTS or event in CONNECTIONS or event == "ctypes.dlopen" or planted:
            events.append(f"{event} {args[:2]!r}"[:400])

    sys.addaudithook(watch)


def _command(argv: list[str]) -> dict[str, Any]:
    from odc.cli import main

    sys.argv = ["odc", *argv]
    raised, code = None, None
    try:
        code = main(argv)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        raised = traceback.format_exc()
    return {"code": code, "raised": raised}


def _image(path: str) -> dict[str, Any]:
    """Decode one file as a training would; anything but pixels or an InputError is a crash."""
    from odc.data.image_files import FileDataset
    from odc.errors import InputError

    raised, message = None, ""
    try:
        image = FileDataset(os.path.dirname(path), [os.path.basename(path)], {}, {}, strict=True).image(0)
        if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raised = f"decoded to {tuple(image.shape)}"
    except InputError as e:
        message = str(e)
    except BaseException:
        raised = traceback.format_exc()
    if "\n" in message:
        raised = f"more than one line: {message!r}"
    return {"code": 2 if message else 0, "raised": raised}


def serve(memory: int) -> None:
    """Answer requests until stdin ends; ``memory`` is in MiB, 0 for any."""
    import odc.apis  # noqa: F401  # what every command needs, so that the first is no slower than the others

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    events: list[str] = []
    _listen(events)
    if memory:
        status = Path("/proc/self/status").read_text()
        (size,) = re.findall(r"VmSize:\s+(\d+) kB", status)
        resource.setrlimit(resource.RLIMIT_AS, ((int(size) << 10) + (memory << 20),) * 2)
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        events.clear()
        with tempfile.TemporaryFile(dir=".") as out:
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            reply = _command(request["argv"]) if "argv" in request else _image(request["image"])
            sys.stdout.flush()
            sys.stderr.flush()
            out.seek(0)
            text = out.read().decode(errors="replace")
        answers.write(json.dumps({**reply, "output": text[-20_000:], "events": list(events)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
