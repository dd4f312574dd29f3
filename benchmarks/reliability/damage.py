"""The newest checkpoint is damaged, or both are: the older one is taken, or the refusal is one line."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from .entry import Injury
from .process import Run, command
from .same import differences
from .settings import ODC
from .trial import Bench, Family, Outcome, Trial, complaint
from .worker import Worker

Damage = Callable[[Path, random.Random], str]  # damages a file; returns how


def flip(path: Path, rng: random.Random) -> str:
    """Flip one to three random bits."""
    content = bytearray(path.read_bytes())
    places = [(rng.randrange(len(content)), rng.randrange(8)) for _ in range(rng.randint(1, 3))]
    for place, bit in places:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bits flipped at {', '.join(f'{place}:{bit}' for place, bit in places)} of {len(content)}"


def truncate(path: Path, rng: random.Random) -> str:
    """Cut the file at a random length."""
    size = path.stat().st_size
    length = rng.randrange(1, size)
    os.truncate(path, length)
    return f"cut at {length} of {size}"


def zero(path: Path, rng: random.Random) -> str:
    """Fill a random part, from there to the end, with zeros: a file system after a power cut."""
    size = path.stat().st_size
    start = rng.choice((0, rng.randrange(size)))
    os.truncate(path, start)
    os.truncate(path, size)
    return f"zeros from {start} of {size}"


def empty(path: Path, rng: random.Random) -> str:
    """Leave nothing."""
    os.truncate(path, 0)
    return "empty"


def noise(path: Path, rng: random.Random) -> str:
    """Overwrite a block of 512 random bytes somewhere."""
    size = path.stat().st_size
    start = rng.randrange(size - 512)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(rng.randbytes(512))
    return f"noise at {start} of {size}"


def interrupted(bench: Bench, folder: Path) -> Path:
    """Return the work directory of a run that was killed shortly before its end, when it had two checkpoints."""
    part = folder / "interrupted"
    injury = Injury("open", "iter_112.pth")
    run = Run(ODC.argv(bench.config(ODC), part), folder / "interrupted.txt", injury=injury.dumps())
    code = run.wait()
    if code != -9 or len(list(part.glob("iter_*.pth"))) != 2:
        raise RuntimeError(f"no run with two checkpoints to damage ({code}): {run.last_line()}")
    return part


def newest(folder: Path) -> Path:
    """Return the checkpoint that ``last_checkpoint`` names."""
    return folder / (folder / "last_checkpoint").read_text().strip()


def try_damages(bench: Bench, damages: list[Damage], folder: Path, rng: random.Random, *, real: bool) -> Outcome:
    """Damage the newest checkpoint in each of these ways, resume, and compare with the unbroken run."""
    whole, config = bench.whole(ODC), bench.config(ODC)
    start = interrupted(bench, folder)
    outcome = Outcome()
    with Worker(folder / "worker") as worker:
        for number, damage in enumerate(damages):
            part = folder / f"{number}"
            shutil.copytree(start, part)
            how = damage(newest(part), rng)
            argv = ODC.argv(config, part, resume=True)
            if real:
                run = Run(argv, folder / f"{number}.txt")
                failed = run.failed()
            else:
                failed = worker.ask({"argv": argv}).failed
            wrong = [failed] if failed else differences(whole.folder, part)
            outcome.tried += 1
            if wrong:
                outcome.lost.append(f"{how}: {'; '.join(wrong)[:400]}: {command(argv)}")
            else:
                shutil.rmtree(part)
    return outcome


def none_left(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Damage every checkpoint beyond use: exit 2 and one line; then ``last_checkpoint`` alone, in several ways."""
    whole, config = bench.whole(ODC), bench.config(ODC)
    start = interrupted(bench, folder)
    outcome = Outcome()
    damages: tuple[Damage, ...] = (truncate, zero, empty)
    with Worker(folder / "worker") as worker:
        for damage in damages:
            part = folder / damage.__name__
            shutil.copytree(start, part)
            for path in sorted(part.glob("iter_*.pth")):
                damage(path, rng)
            argv = ODC.argv(config, part, resume=True)
            reply = worker.ask({"argv": argv})
            outcome.tried += 1
            output = reply["output"] + (reply["raised"] or "")
            if wrong := reply.died or complaint(reply["code"], output):
                outcome.lost.append(f"all checkpoints damaged ({damage.__name__}): {wrong}: {command(argv)}")
        for number, content in enumerate(
            (b"", b"\xff\xfe\x00", b"iter_9999.pth", b"../../etc/passwd", b"iter_4.pth\n" * 99)
        ):
            part = folder / f"marker-{number}"
            shutil.copytree(start, part)
            (part / "last_checkpoint").write_bytes(content)
            argv = ODC.argv(config, part, resume=True)
            reply = worker.ask({"argv": argv})
            outcome.tried += 1
            wrong_files = [reply.failed] if reply.failed else differences(whole.folder, part)
            if wrong_files:
                outcome.lost.append(f"last_checkpoint holds {content[:20]!r}: {'; '.join(wrong_files)[:400]}")
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """Bit flips in process and other damages, in portions; a few of all by the command in its own process."""
    mixed: list[Damage] = [truncate, zero, empty, noise]

    def make(name: str, damages: list[Damage], seconds: float, *, real: bool = False) -> Trial:
        def run(folder: Path, rng: random.Random) -> Outcome:
            return try_damages(bench, damages, folder, rng, real=real)

        return Trial(name, run, seconds)

    if bench.quick:
        return [make("bits", [flip] * 4 + mixed, 25.0), Trial("none-left", lambda f, r: none_left(bench, f, r), 15.0)]
    return [
        *(make(f"bits-{number}", [flip] * 30, 40.0) for number in range(4)),
        *(make(f"mixed-{number}", mixed * 4, 30.0) for number in range(2)),
        make("command", [flip, truncate, zero], 30.0, real=True),
        Trial("none-left", lambda f, r: none_left(bench, f, r), 15.0),
    ]


FAMILY = Family("damage", "newest checkpoint damaged: bits, cut, zeros, noise, empty", True, trials, least=140)
