"""Features on disk: one row a sample, the name of its image, and which data set they belong to."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from odc.data.datasets import ImageDataset
from odc.errors import InputError
from odc.files import written_whole
from odc.reading import mapping, memory, read_arrays, reading, text

_FINGERPRINT, _NOTES = b"odc.fingerprint", b"odc.meta"
_ARRAYS = {"index": ("i", 1), "paths": ("U", 1), "features": ("f", 2), "fingerprint": ("U", 0), "meta": ("U", 0)}
_META = mapping(text)
_ROWS = 16_384  # of a group in a Parquet file: what a reader must hold at once


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of (a part of) a data set.

    A ``.npz`` file holds the arrays ``index``, ``paths``, ``features``, ``fingerprint`` and ``meta`` (JSON), and no
    pickles. A ``.parquet`` file has one row a sample, ``id``, ``path`` and
    ``feature`` (a list of D float32), and fingerprint and meta in the metadata of its schema. Both keep every bit.

    Attributes:
        index: (N,) int64 sample ids, unique.
        paths: N names of the images, as ``ImageDataset.paths``.
        features: (N, D) float32, not normalised.
        fingerprint: of the data set that ``index`` counts in.
        meta: where the features are from, e.g. config, checkpoint and view.

    Raises ValueError where shapes or dtypes do not fit, or ids are not unique.
    """

    index: Tensor
    paths: tuple[str, ...]
    features: Tensor
    fingerprint: str
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        N = len(self.paths)
        if self.index.shape != (N,) or self.features.ndim != 2 or len(self.features) != N:
            raise ValueError(
                f"{N} paths need index ({N},) and features ({N}, D), not {tuple(self.index.shape)} and "
                f"{tuple(self.features.shape)}"
            )
        kinds = self.index.dtype, self.features.dtype
        if kinds != (torch.int64, torch.float32):
            raise ValueError(f"index and features must be int64 and float32, not {kinds[0]} and {kinds[1]}")
        if len(self.index.unique()) < N:
            raise ValueError(f"{N} rows of {len(self.index.unique())} samples: ids must be unique")

    def save(self, path: str | Path) -> None:
        """Write the table to ``path``, completely or not at all.

        Raises InputError as :func:`check_ending`, and where it cannot be written to or Parquet lacks UTF-8 paths.
        """
        path = Path(path)
        write = self._write_npz if check_ending(path) == ".npz" else self._write_parquet
        try:
            with written_whole(path) as file:
                write(file)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Read what :meth:`save` wrote, executing nothing in it; raises InputError where there is no such table."""
        path = Path(path)
        read = cls._read_npz if check_ending(path) == ".npz" else cls._read_parquet
        if not path.is_file():
            raise InputError(f"features '{path}' do not exist (looked at {path.absolute()}): odc extract writes them")
        with reading(path, "is not a table of features", "odc extract writes one"):
            return read(path)

    def for_dataset(self, dataset: ImageDataset) -> Tensor:
        """Return the features (N, D) by sample id; raises InputError where they are not of all its images."""
        if self.fingerprint != dataset.fingerprint:
            raise InputError(
                f"the features are of {len(self.index):,} images with fingerprint {self.fingerprint}, but the data "
                f"set has {len(dataset):,} images {dataset.origin} with fingerprint {dataset.fingerprint}: set data to "
                "what they were extracted from, or extract them anew (odc extract)"
            )
        order = self.index.argsort()
        if not torch.equal(self.index[order], torch.arange(len(dataset))):
            raise InputError(
                f"there are features of {len(self.index):,} of the {len(dataset):,} images {dataset.origin}: extract "
                "those of all (odc extract)"
            )
        return self.features[order]

    def _write_npz(self, file: IO[bytes]) -> None:
        np.savez(
            file,
            index=self.index.numpy(),
            paths=np.array(self.paths, dtype=np.str_),
            features=self.features.numpy(),
            fingerprint=np.array(self.fingerprint),
            meta=np.array(json.dumps(self.meta)),
        )

    @classmethod
    def _read_npz(cls, path: Path) -> Embeddings:
        # Uncompressed, so that it has no more bytes in memory than on disk.
        arrays = read_arrays(path, _ARRAYS, most=path.stat().st_size)
        return cls(
            torch.from_numpy(arrays["index"]),
            tuple(arrays["paths"].tolist()),
            torch.from_numpy(arrays["features"]),
            str(arrays["fingerprint"]),
            _META(json.loads(str(arrays["meta"]))),
        )

    def _write_parquet(self, file: IO[bytes]) -> None:
        pa, parquet = import_pyarrow()
        D = self.features.shape[1]
        values = pa.array(self.features.numpy().reshape(-1))
        try:
            paths = pa.array(self.paths, pa.string())
        except UnicodeEncodeError as error:
            name = str(error.object).encode("utf-8", "backslashreplace").decode()
            raise InputError(f"the name of {name} is not UTF-8, which Parquet needs: write an .npz file") from error
        table = pa.table(
            {"id": self.index.numpy(), "path": paths, "feature": pa.FixedSizeListArray.from_arrays(values, D)},
            metadata={_FINGERPRINT: self.fingerprint, _NOTES: json.dumps(self.meta)},
        )
        parquet.write_table(table, file, row_group_size=_ROWS, use_dictionary=False, write_page_checksum=True)

    @classmethod
    def _read_parquet(cls, path: Path) -> Embeddings:
        _, parquet = import_pyarrow()
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            D = _check_parquet(file)
            table = file.read()
        metadata = table.schema.metadata or {}
        feature = table.column("feature").combine_chunks()
        if any(column.null_count for column in table.columns) or feature.flatten().null_count:
            raise ValueError("some values are missing")
        return cls(
            torch.from_numpy(table.column("id").to_numpy().copy()),
            tuple(table.column("path").to_pylist()),
            torch.from_numpy(feature.flatten().to_numpy().reshape(-1, D).copy()),
            metadata[_FINGERPRINT].decode(),
            _META(json.loads(metadata[_NOTES])),
        )


def check_ending(path: str | Path) -> str:
    """Return the ending of a path, ``".npz"`` or ``".parquet"``, before long work whose result goes there.

    Raises InputError where it is neither.
    """
    suffix = Path(path).suffix
    if suffix not in (".npz", ".parquet"):
        raise InputError(f"'{path}' ends in neither .npz nor .parquet: the ending says which of the two it is")
    return suffix


def _check_parquet(file: Any) -> int:
    """Return D of a Parquet file that is opened, after a look at its schema and at how large it becomes in memory."""
    metadata, groups = file.metadata, [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
    kinds = {name: str(kind) for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)}
    found = re.fullmatch(r"fixed_size_list<\w+: float>\[(\d+)\]", kinds.get("feature", ""))
    if found is None or kinds != {"id": "int64", "path": "string", "feature": found[0]}:
        raise ValueError(f"its columns are {', '.join(f'{name}: {kind}' for name, kind in kinds.items())}"[:200])
    D, N = int(found[1]), metadata.num_rows
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    if any("DICTIONARY" in encoding for column in columns for encoding in column.encodings):
        raise ValueError("its values are encoded by a dictionary")
    size = N * (8 + 4 * D) + sum(column.total_uncompressed_size for column in columns)
    if size > memory() or sum(group.num_rows for group in groups) != N:
        raise ValueError(f"{N:,} rows of {D:,} numbers do not fit into memory")
    return D


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet, imported where they are needed, and not before."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet
