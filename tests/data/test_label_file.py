from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.format import write_array

from odc.data import ArrayDataset, LabelFile
from odc.errors import InputError

IMAGES = torch.arange(4 * 4, dtype=torch.uint8).view(4, 1, 2, 2)


def dataset(n: int = 4) -> ArrayDataset:
    return ArrayDataset(IMAGES[:n], [str(i) for i in range(n)])


def labels() -> LabelFile:
    return LabelFile(np.array([1, -1, 0, 2]), 3, dataset().fingerprint, {"model": "run/epoch_3.pth", "name": "ä"})


def test_save_then_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.npz"
    labels().save(path)
    again = LabelFile.load(path)
    assert again.target.dtype == np.int64
    assert again.target.tolist() == [1, -1, 0, 2]
    assert (again.num_classes, again.fingerprint, dict(again.meta)) == (3, dataset().fingerprint, labels().meta)
    assert [p.name for p in path.parent.iterdir()] == ["labels.npz"]
    assert torch.equal(again.for_dataset(dataset()), torch.tensor([1, -1, 0, 2]))


@settings(max_examples=25, deadline=None)
@given(
    target=st.lists(st.integers(-1, 4), max_size=20),
    meta=st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.just("x")),
)
def test_any_labels_survive(target: list[int], meta: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.npz"
    LabelFile(np.array(target, dtype=np.int32), 5, "f", meta).save(path)
    again = LabelFile.load(path)
    assert (again.target.tolist(), dict(again.meta)) == (target, meta)


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 images with fingerprint \w{16}, but the data set has 3 with \w+ \w{16}"):
        labels().for_dataset(dataset(3))
    same_number = ArrayDataset(IMAGES + 1, ["0", "1", "2", "3"])
    with pytest.raises(InputError, match=f"{dataset().fingerprint}.*{same_number.fingerprint}.*make the labels anew"):
        labels().for_dataset(same_number)


@pytest.mark.parametrize(
    ("target", "classes", "message"),
    [
        (np.array([0, 3]), 3, "from 0 to 3, but there are 3 classes"),
        (np.array([-2, 0]), 3, "from -2 to 0"),
        (np.array([[0]]), 3, r"int64 \(1, 1\)"),
        (np.array([0.5]), 3, "float64"),
        (np.array([], dtype=np.int64), 0, "at least 1 class, not 0"),
    ],
)
def test_wrong_labels_are_refused(target: np.ndarray, classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelFile(target, classes, "f")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are not labels; return what the message must say of each."""
    arrays = dict(target=np.zeros(2, np.int64), num_classes=np.int64(1), fingerprint=np.str_("f"))
    meta = np.zeros((0, 2), np.str_)
    np.savez(folder / "names.npz", a=np.zeros(2))
    np.savez(folder / "dtype.npz", **{**arrays, "num_classes": np.float64(1)}, meta=meta)
    np.savez(folder / "meta.npz", **arrays, meta=np.zeros(3, np.str_))
    np.savez(folder / "target.npz", **{**arrays, "target": np.array([0, 5])}, meta=meta)
    np.savez(folder / "object.npz", **arrays, meta=np.array([[Evil(), 1]], dtype=object))
    with zipfile.ZipFile(folder / "raw.npz", "w") as archive:
        for name in ("target", "num_classes", "fingerprint", "meta"):
            archive.writestr(name, pickle.dumps(Evil()))
    (folder / "pickle.npz").write_bytes(pickle.dumps(Evil()))
    with (folder / "npy.npz").open("wb") as file:
        write_array(file, np.zeros(3))
    (folder / "empty.npz").write_bytes(b"")
    labels().save(folder / "whole.npz")
    (folder / "half.npz").write_bytes((folder / "whole.npz").read_bytes()[:-40])
    (folder / "a_folder.npz").mkdir()
    return {
        "names": "it holds a, not fingerprint",
        "dtype": "num_classes.npy has float64",
        "meta": r"meta.npy has <U1 \(3,\)",
        "target": "from 0 to 5",
        "object": "not a file of labels",
        "raw": "not a file of labels",
        "pickle": "not a file of labels",
        "npy": "not a file of labels",
        "empty": "not a file of labels",
        "half": "not a file of labels",
        "a_folder": "a folder",
        "missing": "no such file",
    }


def test_other_files_are_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            LabelFile.load(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_flipped_bytes_never_load_silently_wrong(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    labels().save(path)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :])
        try:
            again = LabelFile.load(path)
        except InputError:
            continue
        assert (again.target.tolist(), dict(again.meta)) == ([1, -1, 0, 2], labels().meta)


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.npz"):
        labels().save(tmp_path / "labels.pth")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write labels"):
        labels().save(tmp_path / "file" / "labels.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="cannot write labels"):
        labels().save(tmp_path / "folder.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.npz"]
