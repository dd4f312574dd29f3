"""What is seen of a folder before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from odc.data import build_dataset
from odc.folder.looking import look, repeated


def test_a_look(tmp_path: Path) -> None:
    for i, side in enumerate((8, 10, 30, 12)):
        pixels = (np.random.default_rng(i).random((side, 40, 3)) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "deeper").mkdir()
    shutil.copy(tmp_path / "1.png", tmp_path / "deeper" / "again.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "deeper" / "and again.png")
    (tmp_path / "notes.txt").write_text("no picture")
    seen = look(build_dataset({"type": "ImageFolder", "root": str(tmp_path)}), tmp_path)
    assert (seen.images, seen.sides, seen.grey, seen.skipped, seen.duplicates) == (6, (8, 10, 30), False, 1, 2)
    assert seen.load_seconds > 0
    assert seen.cores >= 1
    assert not seen.photographs


def test_grey_pictures_are_seen_to_be_grey(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(np.full((70, 90), i, np.uint8)).save(tmp_path / f"{i}.png")
    seen = look(build_dataset({"type": "ImageFolder", "root": str(tmp_path)}), tmp_path)
    assert seen.grey
    assert seen.photographs
    assert seen.duplicates == 0


def test_only_equal_bytes_repeat(tmp_path: Path) -> None:
    for name, content in (("a", b"1234"), ("b", b"1235"), ("c", b"1234"), ("d", b"12345")):
        (tmp_path / name).write_bytes(content)
    assert repeated(tmp_path, ["a", "b", "c", "d", "gone"]) == 1
