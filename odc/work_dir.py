"""The folder of a run: one command at a time, and apart from what another training has left there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine import Config

from odc import logs
from odc.errors import InputError
from odc.files import alone, writable

# What a training leaves in its work directory beside its config: checkpoints, logs, results.
_OF_A_RUN = re.compile(
    r"((epoch|iter)_\d+|best_.+)\.pth|last_checkpoint|\d{8}_\d{6}(_\d+)?"
    r"|\.results\.json|metrics\.json|clusters\.(csv|png)"
)


@contextlib.contextmanager
def working(folder: str | Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made where there is none.

    Raises:
        InputError: another command is at work there, or it cannot be written to.
    """
    with alone(writable(folder)) as doubt:
        if doubt:
            logs.warn(doubt)
        yield


def of_another_run(cfg: Config) -> list[str]:
    """Return the names of what another training has left in the work directory of one that does not go on with it.

    A folder without checkpoints has nothing to keep.

    Args:
        cfg: of the new training, before it writes anything.

    Raises:
        InputError: the new training starts from one of these files.
    """
    folder = Path(cfg.work_dir)

    def holds(file: str | None) -> bool:
        return file is not None and Path(file).resolve().parent == folder.resolve()

    names = [path.name for path in folder.iterdir() if _OF_A_RUN.fullmatch(path.name)]
    goes_on = cfg.get("resume") and (not cfg.get("load_from") or holds(cfg.load_from))
    if goes_on or not any(name.endswith(".pth") for name in names):
        return []
    starts = {
        "load_from": cfg.get("load_from"),
        "model.pretrained": cfg.model.get("pretrained"),
        "model.backbone.weights": cfg.model.backbone.get("weights"),
        "train_cfg.label_file": cfg.train_cfg.get("label_file"),
    }
    for name, file in starts.items():
        if holds(file):
            raise InputError(f"{name}='{file}' belongs to the training that {folder} holds: choose another --work-dir")
    written = folder / Path(cfg.filename or "").name
    return names + [written.name] * (written.is_file() and not written.samefile(cfg.filename))


def set_aside(folder: Path, names: list[str]) -> None:
    """Move files, where there are any, into a folder of their own: beside a new run's they would seem to be its own."""
    if not names:
        return
    number = 1
    while (place := folder / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    for name in names:
        (folder / name).rename(place / name)
    logs.warn(
        f"another training was in {folder} and is now in {place}: to go on with it, use --resume; to leave it where it "
        "is, another --work-dir"
    )
