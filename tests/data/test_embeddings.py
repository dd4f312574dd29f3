"""Features on disk: every bit comes back, nothing is executed, and those of another data set are refused."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odc.data import ArrayDataset, Embeddings
from odc.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
ENDINGS = ("npz", "parquet")
DATASET = ArrayDataset(torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2), ["a.png", "b/ü.png", "c 日.png"])
TABLE = Embeddings(
    torch.tensor([0, 1, 2]),
    tuple(DATASET.paths),
    torch.tensor([[0.0, -0.0], [1.5, torch.inf], [1e-45, 3.4e38]]),
    DATASET.fingerprint,
    {"config": "odc.py", "view": "extract", "note": 'a "quoted"\nline'},
)


def assert_same(a: Embeddings, b: Embeddings) -> None:
    assert (a.paths, a.fingerprint, a.meta) == (b.paths, b.fingerprint, b.meta)
    for x, y in ((a.index, b.index), (a.features, b.features)):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.numpy().tobytes() == y.numpy().tobytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_bit_comes_back(ending: str, tmp_path: Path) -> None:
    TABLE.save(tmp_path / f"f.{ending}")
    read = Embeddings.load(str(tmp_path / f"f.{ending}"))
    assert_same(read, TABLE)
    read.features[0, 0] = 1.0  # a tensor of one's own, not a read-only map
    assert [path.name for path in tmp_path.iterdir()] == [f"f.{ending}"], "something else was left"


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(ENDINGS),
    st.integers(1, 4).flatmap(lambda D: st.lists(st.binary(min_size=4 * D, max_size=4 * D), min_size=1, max_size=5)),
    st.dictionaries(st.text(), st.text(), max_size=2),
    st.randoms(use_true_random=False),
)
def test_any_bits_in_any_order_come_back(ending: str, rows: list[bytes], meta: dict[str, str], random: Any) -> None:
    N = len(rows)
    features = torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.float32).reshape(N, -1).copy())
    ids = random.sample(range(1000), N)
    table = Embeddings(torch.tensor(ids), tuple(f"{i}.png" for i in ids), features, "0123456789abcdef", meta)
    with tempfile.TemporaryDirectory() as folder:
        table.save(Path(folder) / f"f.{ending}")
        assert_same(Embeddings.load(Path(folder) / f"f.{ending}"), table)


def test_other_programs_read_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    TABLE.save(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert sorted(file) == ["features", "fingerprint", "index", "meta", "paths"]
        assert file["paths"].tolist() == DATASET.paths
        np.testing.assert_array_equal(file["features"], TABLE.features.numpy())
    TABLE.save(tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["id", "path", "feature"]
    assert table.schema.field("feature").type == pa.list_(pa.float32(), 2)
    assert table.to_pylist()[1] == {"id": 1, "path": "b/ü.png", "feature": [1.5, float("inf")]}
    assert table.schema.metadata[b"odc.fingerprint"].decode() == DATASET.fingerprint


def test_features_in_the_order_of_the_data_set() -> None:
    order = torch.tensor([2, 0, 1])
    shuffled = replace(TABLE, index=order, paths=tuple(DATASET.paths[i] for i in order), features=TABLE.features[order])
    assert torch.equal(shuffled.for_dataset(DATASET), TABLE.features)


def test_another_data_set_is_refused() -> None:
    other = ArrayDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), ["a", "b", "c", "d"])
    with pytest.raises(InputError) as error:
        TABLE.for_dataset(other)
    line = str(error.value)
    for words in ("3 images", DATASET.fingerprint, "4 images", other.fingerprint, "odc extract"):
        assert words in line
    assert "\n" not in line
    part = replace(TABLE, index=TABLE.index[:2], paths=TABLE.paths[:2], features=TABLE.features[:2])
    with pytest.raises(InputError, match="2 of the 3 images in memory"):
        part.for_dataset(DATASET)
    with pytest.raises(InputError, match="3 of the 3 images"):
        replace(TABLE, index=torch.tensor([0, 1, 5])).for_dataset(DATASET)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"index": torch.tensor([0, 1])}, r"3 paths need index \(3,\) and features \(3, D\), not \(2,\) and \(3, 2\)"),
        ({"features": torch.zeros(3)}, r"not \(3,\) and \(3,\)"),
        ({"features": torch.zeros(3, 2, dtype=torch.float64)}, "int64 and float32, not torch.int64 and torch.float64"),
        ({"index": torch.tensor([0, 1, 1])}, "3 rows of 2 samples"),
    ],
)
def test_what_does_not_fit_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TABLE, **changes)


# -- files that are something else -----------------------------------------------------------------------------------


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def arrays(**changes: Any) -> dict[str, Any]:
    columns = dict(
        index=TABLE.index.numpy(),
        paths=np.array(TABLE.paths),
        features=TABLE.features.numpy(),
        fingerprint=np.array("f"),
        meta=np.array("{}"),
    )
    return {name: value for name, value in (columns | changes).items() if value is not None}


@pytest.mark.parametrize("name", list(arrays()))
def test_pickles_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 3, dtype=object)
    np.savez(tmp_path / "f.npz", **arrays(**{name: trap}))
    with pytest.raises(InputError, match=r"is not a table of features \(.* object "):
        Embeddings.load(tmp_path / "f.npz")
    (tmp_path / "g.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match="is not a table of features"):
        Embeddings.load(tmp_path / "g.npz")
    assert not (tmp_path / "sprung").exists()
    with np.load(tmp_path / "f.npz", allow_pickle=True) as file:
        file[name]
    assert (tmp_path / "sprung").exists(), "the trap does not work"


@pytest.mark.parametrize(
    "changes",
    [
        {"features": None},
        {"meta": np.array("no JSON")},
        {"meta": np.array("[1]")},
        {"paths": np.arange(3)},
        {"paths": np.array("a")},
        {"index": np.arange(2)},
        {"features": np.zeros((3, 2))},
        {"features": np.array(["a"] * 3)},
        {"features": np.zeros((3, 2), dtype=">f4")},
    ],
)
def test_npz_files_of_something_else(changes: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **arrays(**changes))
    with pytest.raises(InputError, match=r"f.npz' is not a table of features \(.+\): odc extract writes one") as error:
        Embeddings.load(tmp_path / "f.npz")
    assert "\n" not in str(error.value)


def test_parquet_files_of_something_else(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    TABLE.save(path)
    whole = pq.read_table(path)
    lists = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    for table in (
        whole.replace_schema_metadata(None),
        whole.drop_columns(["path"]),
        whole.set_column(2, "feature", lists),
        whole.set_column(2, "feature", pa.array([[1.0], [2.0], [3.0, 4.0]])),
        whole.set_column(0, "id", pa.array([0, 1, None])),
    ):
        pq.write_table(table, path)
        with pytest.raises(InputError, match=r"is not a table of features") as error:
            Embeddings.load(path)
        assert "\n" not in str(error.value)


def test_a_single_array(tmp_path: Path) -> None:
    with (tmp_path / "f.npz").open("wb") as file:
        np.save(file, TABLE.features.numpy())
    with pytest.raises(InputError, match=r"f.npz' is not a table of features \(File is not a zip file\)"):
        Embeddings.load(tmp_path / "f.npz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"f.{ending}"
    big = Embeddings(torch.arange(100), tuple(map(str, range(100))), torch.randn(100, 8, generator=GENERATOR), "f")
    big.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is not a table of features"):
            Embeddings.load(path)
    with pytest.raises(InputError, match=r"do not exist \(looked at /"):
        Embeddings.load(tmp_path / f"g.{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_changed_bit_is_noticed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"f.{ending}"
    features = torch.randn(100, 8, generator=GENERATOR)
    Embeddings(torch.arange(100), tuple(map(str, range(100))), features, "f").save(path)
    data = bytearray(path.read_bytes())
    at = data.index(features[50:51, :2].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not a table of features"):
        Embeddings.load(path)


# -- where they cannot go --------------------------------------------------------------------------------------------


def test_other_endings_and_places(tmp_path: Path) -> None:
    for act in (TABLE.save, Embeddings.load):
        with pytest.raises(InputError, match=r"'f.csv' ends in neither .npz nor .parquet"):
            act("f.csv")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*: (Not a directory|File exists)"):
        TABLE.save(tmp_path / "file" / "f.npz")
    TABLE.save(tmp_path / "new" / "f.npz")
    assert Embeddings.load(tmp_path / "new" / "f.npz").paths == TABLE.paths


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    odd = replace(TABLE, paths=("a.png", "b.png", name))
    TABLE.save(tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"the name of .*udcff.png is not UTF-8"):
        odd.save(tmp_path / "f.parquet")
    assert_same(Embeddings.load(tmp_path / "f.parquet"), TABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]
    odd.save(tmp_path / "f.npz")
    assert_same(Embeddings.load(tmp_path / "f.npz"), odd)
