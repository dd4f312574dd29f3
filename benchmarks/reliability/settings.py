"""Small trainings of every head, some two seconds each, and the pipeline and the comparison, for a few more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from odc.config import load_config
from odc.data.label_file import LabelFile
from odc.registry import DATASETS, build

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

DATA = dict(type="LongTail", dataset=dict(type="Digits", size=16), ratio=0.5)  # 359 images of 10 classes
# For every training: checkpoints every four steps and an evaluation every other epoch, so that something is always
# being written or about to be.
SMALL: dict[str, Any] = {
    "model.backbone.widths": [4, 8],
    "data.dataset": dict(_delete_=True, **DATA),
    "train_cfg.max_epochs": 5,
    "train_cfg.val_interval": 2,
    "default_hooks.checkpoint.by_epoch": False,
    "default_hooks.checkpoint.interval": 4,
}
EPOCHS = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 1}


@dataclass(frozen=True)
class Setting:
    """A command to break, and what it needs.

    Attributes:
        name: unique.
        base: config that a training's is made from, relative to ``configs/``.
        options: what is changed in it, on top of :data:`SMALL`.
        files: writes what the config names into the folder of the config; returns more options.
        command: ``train``, ``run`` or ``compare``.
        parts: trainings that the config of a recipe or a comparison names.
        more: more of the command line.
    """

    name: str
    base: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    files: Callable[[Path], dict[str, Any]] | None = None
    command: str = "train"
    parts: dict[str, Setting] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the config into a folder, unless it is there; return its path."""
        path = folder / f"{self.name}.py"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: str(part.write(folder)) for name, part in self.parts.items()}
        if self.command == "run":
            options = dict(neighbours=10, threshold=0.5, allow_empty=True)
            recipe = [
                dict(name="moco", config=parts["moco"]),
                dict(name="embeddings", type="Extract", checkpoint="moco"),
                dict(name="self", config=parts["self"], backbone="moco"),
                dict(name="reliable", type="Reliable", checkpoint="self", features="embeddings", **options),
                dict(name="semi", config=parts["semi"], backbone="moco", labels="reliable"),
            ]
            path.write_text(f"recipe = {recipe}\n")
        elif self.command == "compare":
            path.write_text(f"comparison = {dict(moco=parts.pop('moco'), methods=parts)}\n")
        else:
            made = {} if self.files is None else self.files(folder)
            load_config(CONFIGS / self.base, {**SMALL, **self.options, **made}).dump(str(path))
        return path

    def argv(self, config: Path, out: Path, *, resume: bool = False) -> list[str]:
        """Return the arguments of ``odc``."""
        if self.command == "compare":
            return ["compare", "--dataset", str(config), "--out", str(out), *self.more]
        again = ["--resume"] if resume and self.command == "train" else []
        return [self.command, str(config), "--work-dir", str(out), *self.more, *again]


def _labels(folder: Path) -> dict[str, Any]:
    dataset = build(DATASETS, DATA)
    target = np.where(np.arange(len(dataset)) % 3 == 0, dataset.targets, -1)
    file = folder / "labels.npz"
    LabelFile(target, 10, dataset.fingerprint).save(file)
    return {"train_cfg.label_file": str(file)}


def pictures(folder: Path, count: int = 120, size: int = 16) -> None:
    """Write so many small PNG files of digits in folders of their classes."""
    from torchvision.transforms.v2.functional import to_pil_image

    dataset = build(DATASETS, dict(type="Digits", size=size))
    for i in range(count):
        path = folder / str(dataset.targets[i]) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(dataset.image(i)).save(path)


def _pictures(folder: Path) -> dict[str, Any]:
    pictures(folder / "pictures")
    return {"data.dataset": dict(_delete_=True, type="ImageFolder", root=str(folder / "pictures"), grey=True)}


_BATCH = {"model.head.batch_size": 16}
ODC = Setting("odc", "odc/odc_convnet_1xb64-30e_digits.py", {**_BATCH, "model.head.min_cluster": 5})
# Nothing is left to train when its last checkpoint is there, but results are to be written.
EPOCHWISE = Setting(
    "odc-epochs",
    ODC.base,
    {**ODC.options, "default_hooks.checkpoint.by_epoch": True, "default_hooks.checkpoint.interval": 1},
)
DC = Setting("dc", "deepcluster/deepcluster_convnet_1xb64-30e_digits.py", {**_BATCH, "model.head.pca_dim": 8})
MOCO = Setting("moco", "moco/moco_convnet_1xb64-100e_digits.py", {**_BATCH, **EPOCHS, "model.head.queue_size": 64})
SELF = Setting("spice-self", "spice/spice-self_convnet_1xb128-30e_digits.py", {"model.pretrained": None})
SEMI = Setting(
    "spice-semi",
    "spice/spice-semi_convnet_1xb256-20e_digits.py",
    {
        "model.pretrained": None,
        "model.head.labelled_size": 8,
        "model.head.batch_size": 16,
        "model.head.steps": 10,
        "model.head.threshold": 0.3,
    },
    files=_labels,
)
TRAININGS = (
    DC,
    ODC,
    EPOCHWISE,
    Setting(
        "odc-files-workers",
        ODC.base,
        {**ODC.options, "data.num_workers": 2, "data.batched": False, "model.head.min_cluster": 3},
        files=_pictures,
    ),
    Setting(
        "deepercluster",
        "deepercluster/deepercluster_convnet_1xb64-30e_digits.py",
        {**_BATCH, **EPOCHS, "model.head.pca_dim": 8},
    ),
    MOCO,
    SELF,
    SEMI,
    Setting("classifier", "finetune/finetune_convnet_1xb64-20e_digits.py", _BATCH),
)


def _part(setting: Setting, name: str) -> Setting:
    """Return a training as a part of something else: it keeps a checkpoint an epoch, as the configs do."""
    every_epoch = {"default_hooks.checkpoint.by_epoch": True, "default_hooks.checkpoint.interval": 1}
    return replace(setting, name=name, options={**setting.options, **EPOCHS, **every_epoch})


SPICE = Setting(
    "spice",
    command="run",
    parts={name: _part(part, f"stage-{name}") for name, part in (("moco", MOCO), ("self", SELF), ("semi", SEMI))},
)
COMPARE = Setting(
    "compare",
    command="compare",
    parts={name: _part(part, f"row-{name}") for name, part in (("moco", MOCO), ("odc", ODC), ("dc", DC))},
    more=("--methods", "kmeans-pixels", "odc", "dc", "--seeds", "0", "--jobs", "1"),
)
