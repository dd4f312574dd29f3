"""Vectors in a folder that Hugging Face's ``datasets`` has saved (``save_to_disk``), read with pyarrow alone.

Such a folder holds Arrow streams, which ``state.json`` names, or, of several splits, a folder for each of them, which
``dataset_dict.json`` names. Nothing in it is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from odc.data.embeddings import import_pyarrow
from odc.errors import InputError, nearest
from odc.reading import anything, fields, inside, listing, read_json, reading, text

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_WHAT = "is no data set of Hugging Face", "save it anew by save_to_disk"
_NAMES = ("path", "file", "file_name", "filename", "image_path", "image_id", "id", "name")  # tried in this order
_FILES = fields({"_data_files": listing(fields({"filename": inside}, anything))}, anything)
_DICT = fields({"splits": listing(text)}, anything)
Rows = npt.NDArray[Any]


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder looks as ``save_to_disk`` leaves it."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def read_saved_dataset(
    folder: Path, column: str | None, names: str | None, split: str | None
) -> tuple[list[str], Rows, str]:
    """Return the names (N,) and vectors (N, D) of a saved data set, and the name of the column with the vectors.

    Args:
        folder: that of the data set.
        column: of lists or arrays of floating-point numbers, all equally long; ``None``: the only one.
        names: column of texts or whole numbers that name the rows; ``None``: ``path``, ``file_name``, ``id`` or the
            like, or else the numbers of the rows.
        split: one of several.

    Raises InputError where the folder has no such column, split or vectors, or is damaged.
    """
    where = _split(folder, split)
    table = _table(where)
    kinds = {field.name: field.type for field in table.schema}
    floating = [name for name, kind in kinds.items() if _is_vector(kind)]
    told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())[:300]
    if column is None:
        if len(floating) != 1:
            raise InputError(
                f"'{where}' has {len(floating)} columns of vectors ({', '.join(floating) or told}): give the file as "
                "dict(file=..., column=...)"
            )
        (column,) = floating
    if column not in kinds:
        raise InputError(f"'{where}' has no column '{column}'{nearest(column, kinds)}")
    if column not in floating:
        raise InputError(f"the column '{column}' of '{where}' has no vectors: it is {kinds[column]}")
    if names is not None and names not in kinds:
        raise InputError(f"'{where}' has no column '{names}'{nearest(names, kinds)}")
    found = names or next((name for name in _NAMES if name in kinds and _is_name(kinds[name])), None)
    if found is not None and not _is_name(kinds[found]):
        raise InputError(f"the column '{found}' of '{where}' has no names: it is {kinds[found]}")
    with reading(where, *_WHAT):
        rows = _vectors(table.column(column), column)
        if found is None:
            width = len(str(len(rows) - 1))
            return [f"{i:0{width}d}" for i in range(len(rows))], rows, column
        if table.column(found).null_count:
            raise ValueError(f"{table.column(found).null_count} rows have no '{found}'")
        return [str(name) for name in table.column(found).to_pylist()], rows, column


def _split(folder: Path, split: str | None) -> Path:
    if not (folder / _SPLITS).is_file():
        if split is not None:
            raise InputError(f"'{folder}' has no splits: leave split='{split}' out")
        return folder
    splits = read_json(folder / _SPLITS, _DICT, *_WHAT)["splits"]
    if split is None and len(splits) != 1:
        raise InputError(f"'{folder}' has the splits {', '.join(splits)}: give the file as dict(file=..., split=...)")
    if split is not None and split not in splits:
        raise InputError(f"'{folder}' has no split '{split}'{nearest(split, splits)}")
    with reading(folder / _SPLITS, *_WHAT):
        return folder / inside(split or splits[0])


def _table(folder: Path) -> Any:
    pyarrow, _ = import_pyarrow()
    files = [entry["filename"] for entry in read_json(folder / _STATE, _FILES, *_WHAT)["_data_files"]]
    if not files:
        raise InputError(f"'{folder}' is empty: it has no rows")
    tables = []
    for name in files:
        with reading(folder / name, "is no Arrow stream", "save the data set anew by save_to_disk"):
            if not (folder / name).is_file():
                raise ValueError("there is no such file")
            with pyarrow.memory_map(str(folder / name)) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
    with reading(folder, *_WHAT):
        return pyarrow.concat_tables(tables)


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _is_vector(kind: Any) -> bool:
    pyarrow, _ = import_pyarrow()
    kind = _storage(kind)
    if not _is_list(kind):
        return False
    while _is_list(kind):
        kind = _storage(kind.value_type)
    return bool(pyarrow.types.is_floating(kind))


def _is_list(kind: Any) -> bool:
    types = import_pyarrow()[0].types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_name(kind: Any) -> bool:
    types = import_pyarrow()[0].types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind))


def _vectors(column: Any, name: str) -> Rows:
    parts, width = [], None
    for chunk in column.chunks:
        if not len(chunk):
            continue
        values, N = getattr(chunk, "storage", chunk), len(chunk)
        values.validate(full=True)
        while _is_list(_storage(values.type)):  # arrays are lists of lists
            values = getattr(values, "storage", values)
            if values.null_count:
                raise ValueError(f"{values.null_count} vectors of '{name}' are missing")
            lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False)) if len(values) else np.zeros(1)
            if len(lengths) > 1:
                raise ValueError(f"the vectors of '{name}' have {int(lengths[0])} to {int(lengths[-1])} numbers")
            values = values.flatten()
        if values.null_count:
            raise ValueError(f"{values.null_count} numbers of '{name}' are missing")
        rows = values.to_numpy(zero_copy_only=False)
        if width not in (None, len(rows) // N) or len(rows) % N:
            raise ValueError(f"the vectors of '{name}' have {width} and {len(rows) / N:g} numbers")
        width = len(rows) // N
        parts.append(rows.reshape(N, width))
    if not parts:
        raise ValueError("it has no rows")
    return np.concatenate(parts)
