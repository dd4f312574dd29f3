"""Files that are whole or not there, and folders with one command at a time: with real processes, killed ones too."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from odc import cli
from odc.cli.arguments import Command
from odc.errors import InputError
from odc.files import alone, explain, write_text, written_whole

ROOT = Path(__file__).parent.parent


def start(code: str, *args: object) -> subprocess.Popen[str]:
    """Run Python code with nothing but the standard library and this package."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may be larger than 4 KiB, as if the disk were full; nor what pytest prints to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_what_does_not_fit_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(OSError, match="File too large") as error, small_files():
        write_text(path, "new" * 4096)
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "text")
    with pytest.raises(OSError, match="File name too long") as error:
        write_text(tmp_path / ("x" * 256), "text")
    assert error.value.filename == str(tmp_path / ("x" * 256))


def test_an_error_of_something_else_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, written_whole(tmp_path / "x"):
        (tmp_path / "missing").read_bytes()
    assert error.value.filename == str(tmp_path / "missing")


HAMMER = """
import sys
from odc.files import write_text
for i in range(40):
    write_text(sys.argv[1], f"{sys.argv[2]} {i} " * 2000)
"""


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writers = [start(HAMMER, path, name) for name in ("a", "b")]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            words = path.read_text().split()
            assert len(words) == 4000
            assert words == words[:2] * 2000
            seen.add(words[0])
    for w in writers:
        w.communicate()
    assert [w.returncode for w in writers] == [0, 0]
    assert seen
    assert os.listdir(tmp_path) == ["x"]


UNFINISHED = """
import sys, time
from odc.files import written_whole
with written_whole(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.tmp").touch()
    living, dead = (start(UNFINISHED, tmp_path / name) for name in ("living", "dead"))
    try:
        assert said(living) == said(dead) == "written"
        assert len(os.listdir(tmp_path)) == 3
        dead.kill()
        dead.communicate()
        write_text(tmp_path / "x", "text")
        names = set(os.listdir(tmp_path)) - {"mine.tmp", "x"}
        assert len(names) == 1, "only the living one's is left"
        assert living.poll() is None
    finally:
        living.kill()
        living.communicate()


WORKING = """
import os, sys, time
from odc.files import alone
with alone(sys.argv[1]):
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_for_one_command_until_that_is_dead(tmp_path: Path) -> None:
    other = start(WORKING, tmp_path / "run")
    process, child = map(int, said(other).split())
    try:
        with pytest.raises(InputError, match="another command is at work in") as error, alone(tmp_path / "run"):
            pass
        assert f"run (process {process} on " in str(error.value)
        assert "\n" not in str(error.value)
        other.kill()
        other.wait()
        with alone(tmp_path / "run") as doubt:  # the child lives, and holds nothing
            assert doubt is None
        assert not os.listdir(tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        other.communicate()  # not before: the child has the pipes, too


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    monkeypatch.setattr("fcntl.flock", none)
    with alone(tmp_path) as doubt:
        assert doubt is not None
        assert "without locks" in doubt
        write_text(tmp_path / "x", "text")


ENDING = """
import os, sys, time
from odc.processes import end_with_parent
if os.fork() == 0:
    end_with_parent()
    if os.fork() == 0:  # a worker of a rank
        end_with_parent()
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    launcher = start(ENDING)
    below = [int(said(launcher)), int(said(launcher))]
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and _lives(pid) for pid in below):
        assert time.monotonic() < deadline, "they run on"
        time.sleep(0.1)
    assert launcher.stdout is not None
    launcher.stdout.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device; free some space there"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EACCES, "permission denied; change its permissions"),
        (errno.EROFS, "read-only file system; write to another place"),
        (errno.EIO, "input/output error"),
        (errno.EISDIR, "is a directory; give the name of a file"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_a_file(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    command = Command("fail", "fail", fail, (), "odc fail")
    monkeypatch.setattr(sys.modules["odc.cli.main"], "GROUPS", {"some": (command,)})
    assert cli.main(["fail"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("odc: error: 'some/file': ")
    assert words in err
    assert err.count("\n") == 1


def test_other_errors_are_faults_of_the_program() -> None:
    assert explain(OSError("something else")) is None
    assert explain(ConnectionResetError(errno.ECONNRESET, "reset")) is None
