"""Data sets that Hugging Face's library has saved, imitated by pyarrow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from odc.data import Features
from odc.errors import InputError
from odc.structures import make_generator

Z = torch.randn(5, 4, generator=make_generator(0, "arrow")).numpy()
NAMES = ["e.png", "a.png", "d.png", "b.png", "c.png"]
FLAT = pa.array(Z.reshape(-1))


def lists(kind: Any = None) -> Any:
    return pa.array([row.tolist() for row in Z], kind or pa.list_(pa.float32()))


def saved(folder: Path, columns: dict[str, Any], parts: int = 2) -> str:
    """Write a table as ``save_to_disk`` does: Arrow streams, and a file that names them."""
    folder.mkdir(parents=True)
    table, files = pa.table(columns), []
    for i, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        files.append({"filename": f"data-{i:05d}-of-{parts:05d}.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as out, pa.ipc.new_stream(out, table.schema) as to:
            to.write_table(table.slice(int(rows[0]), len(rows)) if len(rows) else table.slice(0, 0), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "0", "_format_type": None}))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


def vectors(entry: Any) -> tuple[list[str], Any]:
    dataset = Features([entry])
    return dataset.paths, dataset.images().flatten(1).numpy()


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "double", "half", "array"])
def test_columns_of_all_kinds(kind: str, tmp_path: Path) -> None:
    column = {
        "list": lambda: lists(),
        "large_list": lambda: lists(pa.large_list(pa.float32())),
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(FLAT, 4),
        "double": lambda: lists(pa.list_(pa.float64())),
        "half": lambda: pa.FixedSizeListArray.from_arrays(pa.array(Z.astype(np.float16).reshape(-1)), 4),
        "array": lambda: pa.array([row.reshape(2, 2).tolist() for row in Z], pa.list_(pa.list_(pa.float32()))),
    }[kind]()
    paths, z = vectors(saved(tmp_path / "d", {"label": [0] * 5, "embedding": column, "file_name": NAMES}))
    assert paths == sorted(NAMES)
    expected = Z.astype(np.float16).astype(np.float32) if kind == "half" else Z
    assert np.array_equal(z, expected[np.argsort(NAMES)])


def test_names(tmp_path: Path) -> None:
    columns = {"embedding": lists(), "id": [40, 30, 20, 11, 10], "other": NAMES}
    folder = saved(tmp_path / "d", columns, parts=1)
    assert vectors(folder)[0] == ["10", "11", "20", "30", "40"]
    paths, z = vectors(dict(file=folder, names="other"))
    assert paths == sorted(NAMES)
    assert np.array_equal(z, Z[np.argsort(NAMES)])
    paths, z = vectors(saved(tmp_path / "e", {"embedding": lists()}))
    assert paths == ["0", "1", "2", "3", "4"]
    assert np.array_equal(z, Z)


def test_splits_and_columns(tmp_path: Path) -> None:
    columns = {"small": lists(), "large": lists(), "path": NAMES}
    saved(tmp_path / "d" / "train", columns)
    saved(tmp_path / "d" / "test", columns)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    folder = str(tmp_path / "d")
    assert np.array_equal(vectors(dict(file=folder, split="test", column="large"))[1], Z[np.argsort(NAMES)])
    for entry, message in (
        (folder, "has the splits train, test"),
        (dict(file=folder, split="tset", column="large"), "has no split 'tset'; did you mean 'test'?"),
        (dict(file=folder, split="test"), "has 2 columns of vectors (small, large)"),
        (dict(file=folder, split="test", column="lrage"), "no column 'lrage'; did you mean 'large'?"),
        (dict(file=folder, split="test", column="path"), "the column 'path' of"),
        (dict(file=folder, split="test", column="large", names="small"), "has no names: it is list<"),
        (dict(file=folder, split="test", column="large", names="nmae"), "has no column 'nmae'"),
        (dict(file=f"{folder}/test", split="test"), "has no splits: leave split='test' out"),
        (dict(file=folder, paths="x.txt"), "takes no option 'paths', which is for .npy"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            Features([entry])


def test_what_is_damaged(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"z": pa.array([[1.0, 2.0], [3.0]])}, "have 1 to 2 numbers"),
        ({"z": pa.array([[1.0, 2.0], None])}, "1 vectors of 'z' are missing"),
        ({"z": pa.array([[1.0, 2.0], [3.0, None]])}, "1 numbers of 'z' are missing"),
        ({"z": pa.array([[1.0], [2.0]]), "path": pa.array(["a", None])}, "1 rows have no 'path'"),
        ({"z": pa.array([[1.0], [2.0]]), "path": ["a", "a"]}, "names a twice"),
        ({"z": pa.array([[1, 2], [3, 4]])}, "has 0 columns of vectors (z (list"),
        ({"z": pa.array([], pa.list_(pa.float32()))}, "it has no rows"),
        ({"z": pa.array([[], []], pa.list_(pa.float32()))}, "there are none"),
    ]
    for i, (columns, message) in enumerate(cases):
        folder = saved(tmp_path / str(i), columns, parts=1)
        with pytest.raises(InputError, match=re.escape(message)) as error:
            Features([folder])
        assert "\n" not in str(error.value)
    folder = saved(tmp_path / "cut", {"z": lists()})
    file = next(Path(folder).glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="is no Arrow stream"):
        Features([folder])
    file.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        Features([folder])
    (Path(folder) / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(InputError, match="a path inside the folder is expected"):
        Features([folder])
