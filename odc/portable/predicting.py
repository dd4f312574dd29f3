"""``odc predict``: new images to a table that is written as they go, and goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.parquet

from odc.errors import InputError
from odc.files import naming, table_lines, writable_file, write_table, write_text, written_whole
from odc.portable.model import PortableModel
from odc.portable.stream import WINDOW, Assigner, New, Row, find_new, identity
from odc.reading import fields, mapping, read_json, text, whole
from odc.results.clustering import digest_of, escaped, folder_name
from odc.results.duplicates import Prints

STDOUT = "-"
ENDINGS = (".csv", ".parquet")


@dataclass
class Summary:
    """What a prediction has done."""

    images: int = 0
    sizes: dict[int, int] = field(default_factory=dict)  # of the clusters
    outliers: int = 0
    duplicates: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None  # table of what could not be read
    out: str | None = None

    def count(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Count some rows."""
        cluster, outlier, duplicate = (columns.index(name) for name in ("cluster", "outlier", "duplicate_of"))
        for row in rows:
            self.images += 1
            number = int(str(row[cluster]))
            self.sizes[number] = self.sizes.get(number, 0) + 1
            self.outliers += int(str(row[outlier]))
            self.duplicates += bool(row[duplicate])

    def told(self) -> str:
        """Return it in a line or two."""
        line = f"{self.images:,} images in {len(self.sizes)} clusters, {self.outliers:,} outliers, "
        line += f"{self.duplicates:,} that were there before"
        if self.out is not None:
            line += f": {self.out}"
        if self.unread:
            path, why = next(iter(self.unread.items()))
            where = "" if self.skipped is None else f", all in {self.skipped}"
            line += f"\n{len(self.unread):,} files could not be read ({path}: {why}{where})"
        return line


class Rows:
    """Where rows go: a stream for other programs, as CSV or as JSON, a line an image."""

    def __init__(self, stream: IO[bytes], columns: Sequence[str], as_json: bool) -> None:
        self.stream, self.columns, self.as_json = stream, columns, as_json
        if not as_json:
            stream.write(table_lines([columns]))

    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows, so that whoever reads gets them now."""
        if self.as_json:
            self.stream.write(b"".join(json.dumps(self._entry(row)).encode() + b"\n" for row in rows))
        else:
            self.stream.write(table_lines(rows))
        self.stream.flush()

    def _entry(self, row: Row) -> dict[str, object]:
        return {n: float(str(x)) if n in _NUMBERS else x for n, x in zip(self.columns, row, strict=True)}


class Links:
    """A folder for each cluster, with links to its images, made as they come."""

    def __init__(self, folder: str | None, model: PortableModel) -> None:
        self.folder, self.model = None if folder is None else Path(folder), model

    def add(self, root: str, rows: Sequence[Row]) -> None:
        """Add links to the images of some rows."""
        if self.folder is None:
            return
        for row in rows:
            path, cluster = str(row[0]), int(str(row[1]))
            source = os.path.abspath(os.path.join(root, path))
            place = self.folder / folder_name(cluster, self.model.num_clusters, self.model.names.get(cluster, ""))
            place.mkdir(parents=True, exist_ok=True)
            for name in (os.path.basename(path), path.strip("/").replace("/", "_")):
                link = place / name
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(source)
                if link.is_symlink() and os.readlink(link) == source:
                    break


def predict(
    model: PortableModel,
    new: str,
    out: str,
    *,
    stream: IO[bytes] | None = None,
    as_json: bool = False,
    link: str | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Summary:
    """Assign new images to clusters; write the columns of a clustering, a row an image, in the order of their names.

    Args:
        model: the model.
        new: a folder, a list of files (.txt, .csv), an image, or a file of features.
        out: table to write, .csv or .parquet; ``-``: the rows go to ``stream`` as they come. Until a file is there,
            what is done lies in a folder beside it that ends in ``.part``, and the same call goes on from that.
        stream: for ``-``.
        as_json: an object a line to ``stream`` instead of CSV.
        link: folder for links to the images, a folder in it for each cluster.
        watch: told how many of how many images are done.

    Raises:
        InputError: as :func:`odc.portable.stream.find_new`, for an ``out`` that cannot be written, or where no image
            can be read.
    """
    file = None if out == STDOUT else writable_file(out)
    if file is not None and file.suffix not in ENDINGS:
        raise InputError(f"'{out}' ends in neither .csv nor .parquet: the ending says which of the two it is")
    found, links, summary = find_new(new, model), Links(link, model), Summary()
    assigner, done = Assigner(model), 0
    rows_out = None if file is not None or stream is None else Rows(stream, assigner.columns, as_json)
    part = None if file is None else Part(file, identity(model, new), assigner, found)
    try:
        if part is not None:
            done = part.resume(summary)
        for reached, rows in assigner.batches(found, done):
            summary.count(rows, assigner.columns)
            summary.unread = assigner.unread
            links.add(found.root, rows)
            if part is not None:
                part.add(rows, reached, summary)
            if rows_out is not None:
                rows_out.write(rows)
            if watch is not None:
                watch(reached, len(found.paths))
    finally:
        assigner.close()
        if part is not None:
            part.close()
    if not summary.images:
        path, why = next(iter(summary.unread.items()))
        if part is not None:
            shutil.rmtree(part.folder)
        raise InputError(f"none of {len(found.paths):,} images can be read; {path}: {why}")
    if part is not None and file is not None:
        summary.skipped = write_unread(file, summary.unread)
        part.finish(file)
        summary.out = str(file)
    return summary


def write_unread(file: Path, unread: dict[str, str]) -> str | None:
    """Write beside a table which files could not be read, and why; return the path, ``None`` where there are none."""
    table = file.with_name(f"{file.stem}-skipped.csv")
    if not unread:
        table.unlink(missing_ok=True)
        return None
    write_table(table, ("path", "reason"), sorted(unread.items()))
    return str(table)


_STATE = fields(
    {
        "paths": text,
        "done": whole(),
        "bytes": whole(),
        "prints": whole(),
        "images": whole(),
        "sizes": mapping(whole()),
        "outliers": whole(),
        "duplicates": whole(),
        "unread": mapping(text),
    }
)


class Part:
    """A table until it is whole: its rows, and the prints by which later images are compared with earlier ones.

    ``state.json``, written after each batch, says how much of these two files counts.
    """

    def __init__(self, file: Path, key: str, assigner: Assigner, new: New) -> None:
        self.folder = file.with_name(f"{file.name}.{key}.part")
        self.assigner, self.new = assigner, new
        self.folder.mkdir(exist_ok=True)
        self.rows, self.prints = ((self.folder / name).open("ab") for name in ("rows.csv", "prints"))
        self.known = digest_of(new.paths)

    def resume(self, summary: Summary) -> int:
        """Take up what an earlier call has left, or begin; return how many of the new images are done."""
        state = self._state()
        if state is None:
            self.rows.truncate(0)
            self.prints.truncate(0)
            self.rows.write(table_lines([self.assigner.columns]))
            return 0
        self.rows.truncate(state["bytes"])
        self.prints.truncate(state["prints"] * _PRINT)
        summary.images, summary.outliers, summary.duplicates = (
            state[name] for name in ("images", "outliers", "duplicates")
        )
        summary.sizes = {int(c): n for c, n in state["sizes"].items()}
        self.assigner.unread = state["unread"]
        if self.new.vectors is None:
            self._recall(state["prints"])
        return int(state["done"])

    def _state(self) -> dict[str, Any] | None:
        """Return the state where it is that of these images, and the files are as long as it says."""
        file = self.folder / "state.json"
        if not file.is_file():
            return None
        state: dict[str, Any] = read_json(file, _STATE, "does not say how far a prediction is", f"delete {self.folder}")
        sizes = [os.fstat(one.fileno()).st_size for one in (self.rows, self.prints)]
        short = sizes[0] < state["bytes"] or sizes[1] < state["prints"] * _PRINT
        return None if short or state["paths"] != self.known or state["done"] > len(self.new.paths) else state

    def _recall(self, images: int) -> None:
        """Let the last images be compared with later ones again: their names are in the rows."""
        prints = np.fromfile(self.folder / "prints", _RECORD, count=images)[-WINDOW:]
        names: deque[str] = deque(maxlen=len(prints))
        names.extend(row[0].removeprefix("./") for row in rows_of(self.folder / "rows.csv"))
        self.assigner.recent.add(Prints(*(np.ascontiguousarray(prints[name]) for name in FIELDS)), list(names))

    def add(self, rows: Sequence[Row], done: int, summary: Summary) -> None:
        """Add a batch."""
        self.rows.write(table_lines(rows))
        if self.new.vectors is None:
            records = np.empty(len(rows), _RECORD)
            for name in FIELDS:
                records[name] = getattr(self.assigner.last, name)
            self.prints.write(records.tobytes())
        self.rows.flush()
        self.prints.flush()
        state = {
            "paths": self.known,
            "done": done,
            "bytes": self.rows.tell(),
            "prints": self.prints.tell() // _PRINT,
            "images": summary.images,
            "sizes": {str(c): n for c, n in summary.sizes.items()},
            "outliers": summary.outliers,
            "duplicates": summary.duplicates,
            "unread": summary.unread,
        }
        write_text(self.folder / "state.json", json.dumps(state) + "\n")

    def close(self) -> None:
        """Close the files."""
        self.rows.close()
        self.prints.close()

    def finish(self, file: Path) -> None:
        """Make the table of the rows, and remove the folder."""
        if file.suffix == ".csv":
            with naming(file):
                os.replace(self.folder / "rows.csv", file)
        else:
            with written_whole(file) as out:
                write_parquet(self.folder / "rows.csv", self.assigner.columns, out)
        shutil.rmtree(self.folder)


FIELDS = ("exact", "rough", "thumbs", "side")
_RECORD = np.dtype([("exact", "<u8", 2), ("rough", "<u8", 2), ("thumbs", "u1", 256), ("side", "<i8")])
_PRINT = _RECORD.itemsize


def rows_of(table: Path) -> Iterator[list[str]]:
    """Yield the rows of a table that was written here, less its heading."""
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        yield from rows


_NUMBERS = ("confidence", "consistency", "distance")
_TYPES: dict[str, Callable[[str], object]] = {"cluster": int, "outlier": "1".__eq__, **dict.fromkeys(_NUMBERS, float)}


def write_parquet(table: Path, columns: Sequence[str], out: IO[bytes]) -> None:
    """Write the rows of a table as Parquet, with the types of :meth:`odc.results.Clustering.arrow`, in parts."""
    kinds = {"cluster": pyarrow.int64(), "outlier": pyarrow.bool_()}
    kinds |= dict.fromkeys(_NUMBERS, pyarrow.float32())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])

    def value(name: str, cell: str) -> object:
        if name in _TYPES:
            return _TYPES[name](cell)
        plain = escaped(cell.removeprefix("./"))
        return plain if plain or name == "path" else None

    rows = rows_of(table)
    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        while some := list(itertools.islice(rows, _GROUP)):
            arrays = {
                name: pyarrow.array([value(name, row[i]) for row in some], schema.field(name).type)
                for i, name in enumerate(columns)
            }
            writer.write_table(pyarrow.table(arrays, schema=schema))


_GROUP = 16_384  # rows
