"""Parts of one's own, in files outside the package: as the documentation shows them, and what goes wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from odc.cli import main
from odc.data import ImageDataset, build_dataset
from odc.errors import InputError
from odc.models import ClusterModel
from odc.registry import BACKBONES, DATASETS, TRANSFORMS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    registries = (BACKBONES, DATASETS, TRANSFORMS)
    known = [dict(registry.module_dict) for registry in registries]
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("my_parts", None)
    for registry, before in zip(registries, known, strict=True):
        registry._module_dict = before


def test_the_files_of_the_documentation_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for block, name in re.findall(r"^```python\n(# (\S+)\n.*?)^```", text, re.M | re.S):
        (tmp_path / name).write_text(block)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    images = np.random.default_rng(0).integers(0, 256, (240, 3, 16, 16), np.uint8)
    np.save(tmp_path / "my_images.npy", images)
    monkeypatch.chdir(tmp_path)
    options = ["--work-dir", "run", "--cfg-options", "train_cfg.max_epochs=1"]
    assert main(["train", "my_parts_config.py", *options]) == 0, capsys.readouterr().err
    assert "240 images in my_images.npy (no labels)" in capsys.readouterr().out
    assert len((tmp_path / "run" / "clusters.csv").read_text().splitlines()) == 241


def refused(kind: type, **options: Any) -> str:
    DATASETS.register_module(module=kind, force=True)
    with pytest.raises(InputError) as caught:
        build_dataset({"type": kind.__name__, **options})
    return str(caught.value)


def test_a_data_set_that_something_is_missing_of_is_one_line() -> None:
    class Bare:
        def __len__(self) -> int:
            return 3

    class Half(ImageDataset):
        def image(self, i: int) -> Any:
            return None

    class Nameless(Half):
        fingerprint = origin = ""

    assert refused(Bare).startswith("data set 'Bare' does not have paths, fingerprint, origin and ")
    assert "does not have paths, fingerprint, origin: inherit from odc.data.ArrayDataset" in refused(Half)
    assert "'Nameless' does not have paths: inherit" in refused(Nameless)


def test_a_backbone_without_its_width_is_one_line() -> None:
    BACKBONES.register_module(module=nn.Identity, force=True)
    with pytest.raises(InputError, match="backbone 'Identity' has no out_channels: set it in __init__"):
        ClusterModel({"type": "Identity"}, {"type": "ODCHead", "num_clusters": 3, "num_samples": 9})
