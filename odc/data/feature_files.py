"""Files of features, from this package or from elsewhere: a vector a sample, and the name of its image.

Each of them is one *space*, read by what it is:

- ``.npz`` or ``.parquet`` of ``odc extract`` (:class:`odc.data.Embeddings`);
- a folder of a feature store: ``features.npy``, which stays on the disk, and ``index.json``;
- a folder that Hugging Face's ``datasets`` has saved: its only column of vectors, or ``column``, under the names in the
  column ``names``, and of several splits the ``split`` (:mod:`odc.data.arrow_folders`);
- ``.npy`` with a list of names: ``NAME.txt`` (a line each) or ``NAME.csv`` (the column ``path``) beside it, or what
  ``paths`` names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from odc.data.arrow_folders import is_saved_dataset, read_saved_dataset
from odc.data.embeddings import Embeddings
from odc.data.table import read_names, read_table
from odc.errors import InputError, nearest
from odc.files import open_regular
from odc.reading import fields, listing, mapping, reading, text, whole
from odc.registry import check_kind

FEATURES, INDEX = "features.npy", "index.json"  # of a folder of a feature store
_ENDINGS = (".npz", ".parquet", ".npy")
_OPTIONS = {"file": ("str", ""), "paths": ("str | None", ".npy")} | dict.fromkeys(
    ("column", "names", "split"), ("str | None", "a saved data set")
)
_MOST_NAMES = 2**31  # bytes
_ROWS = 16_384  # looked at at once
_INDEX = fields(
    {
        "fingerprint": text,
        "lost": mapping(text),  # images that another had to stand in for, and why
        "meta": mapping(text),
        "paths": listing(text),
        "sha256": text,  # of the vectors, see digest_of
        "shape": listing(whole()),
    }
)


@dataclass(frozen=True, eq=False)
class Space:
    """The vectors of one file, in its own order."""

    file: str
    paths: Sequence[str]  # N names, unique
    rows: npt.NDArray[Any]  # (N, D) float16 or float32, perhaps mapped from the file; not to be changed
    fingerprint: str | None = None  # of the images that the file is of, where it says so
    meta: Mapping[str, str] = field(default_factory=dict)  # where the features are from
    sha256: str | None = None  # what digest_of says of the rows, where they are as they were written
    lost: Mapping[str, str] = field(default_factory=dict)  # names whose vector is that of another image, and why

    def lost_of(self, paths: Sequence[str]) -> dict[int, str]:
        """Return :attr:`lost` by the places of the names among ``paths``."""
        return {i: self.lost[path] for i, path in enumerate(paths) if path in self.lost} if self.lost else {}


def read_space(entry: str | Mapping[str, Any]) -> Space:
    """Read one file of features: its path, or a dict of the path as ``file`` and the options of its kind.

    Raises InputError where there is no such file, it is damaged, or its vectors are none.
    """
    options = {"file": entry} if isinstance(entry, str) else dict(entry)
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InputError(f"a file of features has no option '{name}'{nearest(name, _OPTIONS)}")
        check_kind(value, _OPTIONS[name][0], f"'{name}' of a file of features")
    if "file" not in options:
        raise InputError(f"a file of features needs the option 'file'; it has {sorted(options)}")
    file = options["file"]
    path = Path(file)
    if not path.exists():
        raise InputError(f"features '{file}' do not exist (looked at {path.absolute()}): odc extract writes them")
    kind = "" if path.is_dir() else path.suffix
    if path.is_dir() and is_saved_dataset(path):
        kind = "a saved data set"
    for name, value in options.items():
        if value is not None and _OPTIONS[name][1] not in ("", kind):
            raise InputError(f"'{file}' takes no option '{name}', which is for {_OPTIONS[name][1]}: leave it out")
    if kind == ".npy":
        space = _array(path, options.get("paths"))
    elif kind == "a saved data set":
        paths, rows, column = read_saved_dataset(path, *(options.get(name) for name in ("column", "names", "split")))
        space = Space(str(file), paths, rows, meta={"column": column})
    elif path.is_dir():
        space = read_folder(path)
    elif kind in _ENDINGS:
        table = Embeddings.load(path)
        space = Space(str(file), table.paths, table.features.numpy(), table.fingerprint, table.meta)
    else:
        raise InputError(f"'{file}' is no file of features: it ends in none of {', '.join(_ENDINGS)}")
    if not len(space.paths) or not space.rows.shape[1]:
        raise InputError(f"'{file}' has {len(space.paths)} vectors of {space.rows.shape[1]} numbers: there are none")
    if len(set(space.paths)) < len(space.paths):
        seen: set[str] = set()
        twice = next(name for name in space.paths if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"'{file}' names {twice} twice: every vector needs a name of its own")
    return space


def read_folder(path: Path) -> Space:
    """Read a folder of a feature store; its vectors are mapped, not read."""
    if not (path / INDEX).is_file():
        raise InputError(f"the folder '{path}' holds no features: it has no {INDEX}")
    with reading(path / INDEX, "is no index of features", "extract them anew"):
        index = _INDEX(json.loads(_read_text(path / INDEX)))
    rows = map_features(path / FEATURES)
    if list(rows.shape) != index["shape"] or len(rows) != len(index["paths"]):
        raise InputError(
            f"'{path}' is damaged: {FEATURES} has the shape {rows.shape}, but {INDEX} has {len(index['paths']):,} "
            f"names and the shape {tuple(index['shape'])}: extract them anew"
        )
    return Space(str(path), index["paths"], rows, index["fingerprint"], index["meta"], index["sha256"], index["lost"])


def digest_of(rows: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of vectors (N, D), as hexadecimal digits, with their shape and dtype."""
    digest = hashlib.sha256(f"{rows.dtype} {rows.shape}".encode())
    for start in range(0, len(rows), _ROWS):
        digest.update(np.ascontiguousarray(rows[start : start + _ROWS]).data)
    return digest.hexdigest()


def _read_text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read(_MOST_NAMES).decode()


def map_features(path: Path) -> npt.NDArray[Any]:
    """Return the array (N, D) of a ``.npy`` file, mapped from it; writes go to a copy."""
    with reading(path, "is no array of features", "write it anew with numpy.save"):
        with open_regular(path):
            pass
        rows: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(rows, np.memmap):
            raise ValueError("it holds several arrays")
    if rows.dtype.kind != "f" or rows.ndim != 2:
        raise InputError(f"'{path}' holds {rows.dtype} {rows.shape}, not vectors of floating-point numbers (N, D)")
    return rows


def _array(path: Path, names: str | None) -> Space:
    """Read a ``.npy`` file, and the list of names that is beside it or in ``names``."""
    beside = [Path(names)] if names is not None else [path.with_suffix(".txt"), path.with_suffix(".csv")]
    found = next((file for file in beside if file.is_file()), None)
    if found is None:
        looked = " nor ".join(f"'{file}'" for file in beside)
        raise InputError(
            f"'{path}' has vectors without names: there is {'no' if names else 'neither'} {looked}; write the path of "
            "each vector's image there, a line each, or give the file as dict(file=..., paths=...)"
        )
    if found.suffix == ".csv":
        paths = [row["path"] for row in read_table(found, "path")]
    else:
        with reading(found, "is no list of names", "write a path a line"):
            lines = [line.removesuffix("\r") for line in read_names(found).split("\n")]
            paths = [line.removeprefix("./") for line in lines if line.strip()]
    rows = map_features(path)
    if len(rows) != len(paths):
        raise InputError(f"'{path}' has {len(rows):,} vectors, but '{found}' has {len(paths):,} names")
    return Space(str(path), paths, rows)
