"""``odc predict --watch``: images of a folder as they arrive, a row each at the end of a table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from odc.data.image_files import list_images
from odc.errors import InputError
from odc.files import naming, table_lines, writable_file
from odc.portable.model import BATCH, PortableModel
from odc.portable.predicting import Links, Rows, Summary, rows_of, write_unread
from odc.portable.stream import Assigner, Row

SECONDS = 2.0  # between two looks


class Arrivals:
    """The images of a folder that are there in full: a file counts once two looks have found the same size and time.

    ``known`` are names that are done. One that could not be read counts again once it has changed.
    """

    def __init__(self, folder: str, known: Sequence[str] = ()) -> None:
        self.folder, self.known = folder, set(known)
        self.seen: dict[str, tuple[int, int]] = {}
        self.refused: dict[str, tuple[int, int]] = {}

    def look(self) -> list[str]:
        """Return what has arrived since, in the order of the names."""
        there = set(list_images(self.folder)[0]) - self.known
        arrived, seen = [], {}
        for path in sorted(there):
            try:
                status = os.stat(os.path.join(self.folder, path))
            except OSError:  # it has gone again
                continue
            seen[path] = status.st_size, status.st_mtime_ns
            if self.seen.get(path) == seen[path] != self.refused.get(path):
                arrived.append(path)
        self.seen = seen
        self.known.update(arrived)
        return arrived

    def refuse(self, paths: Sequence[str]) -> None:
        """Say that files could not be read as they are."""
        for path in paths:
            if path in self.known and path in self.seen:
                self.known.discard(path)
                self.refused[path] = self.seen[path]


def follow(
    model: PortableModel,
    folder: str,
    out: str | None,
    *,
    rows_out: Rows | None = None,
    link: str | None = None,
    notice: Callable[[Sequence[Row], Summary], None] | None = None,
    wait: Callable[[float], bool] | None = None,
) -> Summary:
    """Assign the images of a folder, and then those that come, until somebody ends it.

    Args:
        model: the model.
        folder: of images.
        out: table (.csv) that rows are added to; what it has already is not done again.
        rows_out: where rows go, too.
        link: folder for links to the images, a folder in it for each cluster.
        notice: told of the rows of each batch.
        wait: waits so many seconds; returns whether to end. By default it waits, until a KeyboardInterrupt.

    The table is whole at any time, up to a row that a kill may cut, which the next call makes up for.

    Raises:
        InputError: ``folder`` is none, ``out`` cannot be written or is another table, or the model takes vectors.
    """
    if not Path(folder).is_dir():
        raise InputError(f"--watch looks at a folder, and '{folder}' is none")
    model.check_pictures()
    assigner, links, summary = Assigner(model), Links(link, model), Summary(out=out)
    file = None if out is None else _table(out, assigner.columns)
    arrivals = Arrivals(folder, () if file is None else [row[0].removeprefix("./") for row in rows_of(file)])
    wait = wait or _sleep
    try:
        while True:
            paths = arrivals.look()
            for start in range(0, len(paths), BATCH):
                rows = assigner.images(folder, paths[start : start + BATCH])
                arrivals.refuse(list(assigner.unread))
                links.add(folder, rows)
                if file is not None:
                    with naming(file), file.open("ab") as table:
                        table.write(table_lines(rows))
                if rows_out is not None:
                    rows_out.write(rows)
                summary.count(rows, assigner.columns)
                summary.unread = assigner.unread
                if notice is not None:
                    notice(rows, summary)
            if wait(SECONDS):
                break
    except KeyboardInterrupt:
        pass
    finally:
        assigner.close()
        if file is not None:
            summary.skipped = write_unread(file, summary.unread)
    return summary


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _table(out: str, columns: Sequence[str]) -> Path:
    """Return the table to add to, with its heading, and without the rest of a row that was cut."""
    file = writable_file(out)
    if file.suffix != ".csv":
        raise InputError(f"--watch adds rows to a .csv file, and '{out}' ends otherwise")
    heading = table_lines([columns])
    with naming(file), file.open("ab+") as table:
        table.seek(0)
        content = table.read()
        if not content:
            table.write(heading)
        elif not content.startswith(heading):
            raise InputError(f"'{out}' is another table, without the columns {', '.join(columns)}: give a new file")
        elif not content.endswith(b"\r\n"):
            table.truncate(content.rfind(b"\r\n") + 2)
    return file
