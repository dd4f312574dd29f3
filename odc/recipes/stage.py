"""The stages that a recipe is made of. Each takes what earlier stages leave, and leaves something itself."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from mmengine import Config
from mmengine.hooks import Hook

from odc.apis import extract_features, prepare_config, train
from odc.checkpoints import find_resume
from odc.config import at, find_config, override
from odc.config.checking import check_parts
from odc.errors import InputError
from odc.evaluation.results import read_results
from odc.files import write_text
from odc.models.cluster_model import ClusterModel
from odc.models.convert import convert
from odc.options import read_arguments
from odc.reading import fields as fields_of
from odc.reading import listing, read_json, text, whole
from odc.registry import MODELS, STAGES, check_arguments, resolve

# What is left, as what.
FILES = {"backbone": "backbone.pth", "features": "features.npz", "labels": "labels.npz", "spaces": "spaces.json"}


@dataclass(frozen=True)
class Stage(ABC):
    """A part of a recipe. Another kind of stage inherits from this and is registered in ``STAGES``.

    The options of a kind of stage are the fields that it adds, unless it reads and configures them by itself.
    """

    takes: ClassVar[Mapping[str, bool]] = {}  # what this kind may take, and whether it must
    leaves: ClassVar[tuple[str, ...]] = ()  # what others may take of it
    writes: ClassVar[tuple[str, ...]] = ()  # files that it leaves besides
    seeded: ClassVar[bool] = True  # seed and threads change what it leaves

    name: str  # its folder, and the address of its options
    _: KW_ONLY
    needs: Mapping[str, str] = field(default_factory=dict)  # what it takes, and of which stage: {"backbone": "moco"}
    gives: tuple[str, ...] = ()  # what later stages take of it
    config: Config = None  # of the training, or of the estimator's data, that it is
    pretrained: str | None = None  # file of a backbone to start from, where no earlier stage gives one
    digest: str | None = None  # hash of that file

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any], near: Path, read: Callable[[Path], Config]) -> Stage:
        """Return the stage that an entry of the recipe ``near``, less its needs, describes; ``read`` reads configs."""
        check_arguments(cls, entry, f"{near}: stage '{name}'", given=_FIELDS)
        return cls(name, **entry)

    def configured(self, options: Mapping[str, Any], seed: int | None, amp: bool, strict: bool) -> Stage:
        """Return the stage with options, ``{"dotted.key": value}``, applied.

        Raises:
            InputError: for an option that nothing reads.
        """
        new = read_arguments(options, type(self))
        check_arguments(type(self), {**self.decides(), **new}, f"stage '{self.name}'", given=_FIELDS)
        return replace(self, **new)

    def decides(self) -> Any:
        """Return what decides the result, beside the data and the stages before: JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FIELDS}

    @property
    def images(self) -> tuple[Mapping[str, Any], Mapping[str, Any] | None] | None:
        """Configs of the images that it clusters and, where these are others, of those evaluated; ``None``: unsaid."""
        if self.config is None:
            return None
        other = self.config.data.get("eval_dataset")
        return self.config.data.dataset.to_dict(), None if other is None else other.to_dict()

    @abstractmethod
    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Do the work, or go on with it; leave the files in ``folder`` and return what is to be known of them.

        ``given`` is, by what it is, what the earlier stages in ``needs`` have left; ``hooks`` are for trainings.
        """

    def lacks(self, folder: Path, result: Mapping[str, Any], needed: bool) -> str | None:
        """Return which file of the stage, which is done, is missing or damaged; ``needed``: a stage is to follow."""
        files = [*(FILES[what] for what in self.leaves), *self.writes]
        return next((file for file in files if not (folder / file).is_file()), None)


_FIELDS = tuple(f.name for f in fields(Stage))  # of every stage, and no options


@dataclass(frozen=True)
class Left:
    """What a stage has left: the stage, its folder, and what it said of its work."""

    stage: Stage
    folder: Path
    result: Mapping[str, Any]

    def file(self, what: str) -> Path:
        """Return the file of what it leaves."""
        return self.folder / (self.result["checkpoint"] if what == "checkpoint" else FILES[what])

    def config(self, folder: Path) -> Config:
        """Return the config of the training that it was, for one that only reads its checkpoint."""
        config: Config = self.stage.config.copy()
        config.work_dir = str(folder)
        return config


_SPACES = fields_of({"train": listing(text), "eval": listing(text), "widths": listing(whole(1))})


def write_spaces(folder: Path, train: Sequence[str], other: Sequence[str], widths: Sequence[int]) -> None:
    """Write where the features of the data set, and of what is evaluated, lie: paths, or names inside ``folder``."""
    told = {"train": list(train), "eval": list(other), "widths": list(widths)}
    write_text(folder / FILES["spaces"], json.dumps(told, indent=1) + "\n")


def place_spaces(config: Config, file: Path) -> None:
    """Let a config of vectors take those that :func:`write_spaces` names, in place.

    Raises:
        DamagedError: the file holds anything else.
    """
    told = read_json(file, _SPACES, "does not say where features lie", f"delete {file.parent}, and run this again")
    for part, key in (("train", "dataset"), ("eval", "eval_dataset")):
        if config.data.get(key) is not None:
            config.data[key].files = [str(file.parent / name) for name in told[part]]
    config.model.backbone.spaces = told["widths"]


@STAGES.register_module()
@dataclass(frozen=True)
class Train(Stage):
    """A training by a config. Leaves its checkpoint and its backbone; may start from these, and from labels.

    From a checkpoint it takes everything, the head included, which must have the same state.
    """

    takes: ClassVar[Mapping[str, bool]] = {"backbone": False, "labels": False, "checkpoint": False, "spaces": False}
    leaves: ClassVar[tuple[str, ...]] = ("checkpoint", "backbone")

    by_hand: tuple[str, ...] = ()  # keys of the config that somebody has set for this run

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any], near: Path, read: Callable[[Path], Config]) -> Train:
        """Read the config, and change what the recipe's ``options`` say."""
        if "config" not in entry or set(entry) - {"config", "options"}:
            raise InputError(
                f"{near}: stage '{name}' is a training: it needs a config, may have options, and has {sorted(entry)}"
            )
        config = read(find_config(entry["config"], near.parent))
        return cls(name, config=override(config, entry["options"]) if entry.get("options") else config)

    def configured(self, options: Mapping[str, Any], seed: int | None, amp: bool, strict: bool) -> Train:
        """Return the training with options applied to its config, which is then checked whole."""
        config = prepare_config(self.config, cfg_options=dict(options), seed=seed, amp=amp, strict=strict)
        new = replace(self, config=config, by_hand=tuple(options))
        try:
            check_parts(new._placed(Path(), dict.fromkeys(self.needs, "x")))
        except InputError as error:
            raise InputError(f"stage '{self.name}' ({config.filename}): {error}") from error
        return new

    def fitted(self, num_samples: int) -> tuple[Train, str | None]:
        """Return the training as it suits so many images, and one line on what was changed, where anything was.

        What somebody has set by hand stays.
        """
        kind = resolve(MODELS, self.config.model)[0]
        before = self.config.model.to_dict()
        model, told = kind.fitted(before, num_samples) if issubclass(kind, ClusterModel) else (before, None)
        config = self.config.copy()
        config.model = model
        if told is None or any(at(config, key) != at(self.config, key) for key in self.by_hand):
            return self, None
        return replace(self, config=config), told

    def decides(self) -> Any:
        """Return the config, less where it writes to and what is said otherwise."""
        apart = ("work_dir", "resume", "load_from", "visualizer", "precision")
        return {k: v for k, v in self.config.to_dict().items() if k not in apart and not k.startswith("_")}

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Train, or go on from the last checkpoint in the folder."""
        config = self._placed(folder, {what: str(left.file(what)) for what, left in given.items()})
        values = train(config, hooks)
        found = read_results(folder, int(values["epochs"]))
        checkpoint = Path(next(find_resume(folder))).name
        if "backbone" in self.gives:
            convert(folder / checkpoint, folder / FILES["backbone"])
        return {**values, "without_images": [] if found is None else found.without_images, "checkpoint": checkpoint}

    def lacks(self, folder: Path, result: Mapping[str, Any], needed: bool) -> str | None:
        """Return which file is missing; the checkpoint is needed only where a stage is to follow."""
        if self.config.get("val_evaluator") and read_results(folder, int(result["epochs"])) is None:
            return "evaluation"
        files = [result["checkpoint"]] if needed else []
        files += [FILES["backbone"]] if "backbone" in self.gives else []
        return next((str(file) for file in files if not (folder / file).is_file()), None)

    def _placed(self, folder: Path, given: Mapping[str, str]) -> Config:
        """Return the config for a folder, with the files that it starts from."""
        config: Config = self.config.copy()
        config.work_dir, config.resume = str(folder), True
        backbone = given.get("backbone", self.pretrained)
        if backbone is not None:
            config.model.pretrained = backbone
        if "labels" in given:
            config.train_cfg.label_file = given["labels"]
        if "checkpoint" in given:
            begun = next(find_resume(folder), None) is not None
            config.resume, config.load_from = begun, None if begun else given["checkpoint"]
        if Path(given.get("spaces", "")).is_file():
            place_spaces(config, Path(given["spaces"]))
        return config


@STAGES.register_module()
@dataclass(frozen=True)
class Extract(Stage):
    """The features of all images by a training's last checkpoint."""

    takes: ClassVar[Mapping[str, bool]] = {"checkpoint": True}
    leaves: ClassVar[tuple[str, ...]] = ("features",)

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Extract."""
        left = given["checkpoint"]
        found = extract_features(left.config(folder), str(left.file("checkpoint")), folder / FILES["features"])
        return {"images": len(found.index)}
