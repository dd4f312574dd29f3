"""Commands in processes of their own: start, hurt, wait for them, and see what they leave running."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "ODC_RELIABILITY_RUN"  # in the environment of every process of a run, whoever its parent is
LIMIT = 600.0  # seconds that any run may take


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a run: this checkout, one thread, no GPU."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    search = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    return {**os.environ, **threads, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "", **more}


def command(argv: Sequence[str], injury: str | None = None, ranks: int = 1) -> str:
    """Return a command, and the injury built into it, as one would type it in the checkout."""
    if ranks > 1:
        return shlex.join(["tools/dist_train.sh", argv[1], str(ranks), *argv[2:]])
    if injury is not None:
        return shlex.join(["PYTHONPATH=.:benchmarks", "python", "-m", "reliability.entry", injury, *argv])
    return shlex.join(["odc", *argv])


class Run:
    """One start of ``odc``, or of ``tools/dist_train.sh`` on several ranks.

    Args:
        argv: what follows ``odc``.
        log: file for everything it prints; its folder is made.
        injury: what happens to it from inside, as JSON of :class:`reliability.entry.Injury`.
        ranks: processes.
    """

    def __init__(self, argv: Sequence[str], log: Path, *, injury: str | None = None, ranks: int = 1) -> None:
        self.argv, self.log = list(argv), log
        self.mark = uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        self.injury, self.ranks = injury, ranks
        entry = ["-m", "odc.cli"] if injury is None else ["-m", "reliability.entry", injury]
        called = [sys.executable, *entry, *argv]
        more = {MARK: self.mark}
        if ranks > 1:
            called = [str(ROOT / "tools" / "dist_train.sh"), argv[1], str(ranks), *argv[2:]]
            more |= {"PYTHON": sys.executable, "PORT": str(_free_port())}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                called, env=environment(**more), stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=log.parent
            )

    @property
    def command(self) -> str:
        """The command as one would type it in the checkout, to see the same again."""
        return command(self.argv, self.injury, self.ranks)

    def wait_for_sign(self, folder: Path) -> None:
        """Wait until the run has begun its log under ``folder``, or has ended."""
        before = set(folder.rglob("*.log")) if folder.exists() else set()
        end = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < end:
            if folder.exists() and set(folder.rglob("*.log")) - before:
                return
            time.sleep(0.05)

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Return the exit code, negative for a signal; ``None`` where it had to be stopped after so many seconds."""
        code = self.wait_at_most(seconds)
        if code is None:
            self.clear()
        return code

    def wait_at_most(self, seconds: float) -> int | None:
        """Return the exit code, or ``None`` where it still runs after so many seconds."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: int) -> bool:
        """Send a signal to the first process; return whether it was still running."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True

    def pids(self) -> dict[int, dict[str, str]]:
        """Return the processes of this run that are left, by pid, with the environment that they began with."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"{MARK}={self.mark}" in words and state != "Z":
                found[int(entry.name)] = dict(word.split("=", 1) for word in words if "=" in word)
        return found

    def left_after(self, seconds: float) -> int:
        """Wait until nothing of it runs any more; return how many processes still do after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self.pids()) and time.monotonic() < end:
            self.process.poll()
            time.sleep(0.1)
        return len(left)

    def clear(self) -> None:
        """End whatever is left of it."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def failed(self, seconds: float = LIMIT) -> str | None:
        """Wait for it; return how it did not end with a result, ``None`` where it did."""
        code = self.wait(seconds)
        if code is None:
            return f"does not end within {seconds:.0f} s"
        return None if code == 0 else f"ended with {code}: {self.last_line()}"

    def output(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """Return the last line that it has printed."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
