"""A recipe: the stages of a method in the order in which they run, and which of them takes what of which.

A config file writes it as a list. A stage that says no type is a training (:class:`odc.recipes.Train`)::

    recipe = [
        dict(name='moco', config='../moco/moco_convnet_1xb64-300e_digits.py'),
        dict(name='mine', config='my_config.py', backbone='moco'),
    ]

A config is a file beside the recipe, or one of the package by its name; ``options``, ``{"dotted.key": value}``, change
it. The config of one training is a recipe of one stage. On a command line, an option's address is ``STAGE.key``;
without a stage's name in front it is for the configs of all trainings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.config import at, find_config, override, parse_config
from odc.config.checking import KNOWN_KEYS
from odc.errors import InputError, nearest
from odc.recipes.stage import Stage, Train
from odc.refused import REFUSED_KEYS
from odc.registry import STAGES, resolve

_NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class Recipe:
    """The stages of a method."""

    name: str  # of the method
    stages: tuple[Stage, ...]  # in the order in which they run; the last one's result is the method's
    source: str  # path of the config file
    single: bool = False  # it is the config of one training
    whole: str = ""  # name of the recipe of which it is the beginning

    @classmethod
    def load(cls, config: str | Path, name: str | None = None, read: Callable[[Path], Config] = parse_config) -> Recipe:
        """Read a recipe, or the config of one training, from a file or by its name in the package.

        The method has the file's name where it gets none; ``read`` reads the configs.

        Raises:
            InputError: a file cannot be read, or describes no recipe.
        """
        path = find_config(config)
        cfg = read(path)
        name = name or path.stem
        if "recipe" not in cfg:
            return cls(name, (Train(name, config=cfg),), str(path), single=True)
        entries = cfg["recipe"]
        if not isinstance(entries, Sequence) or not entries or not all(isinstance(e, Mapping) for e in entries):
            raise InputError(f"{path}: a recipe must be a list of stages, each a dict with a name, not {entries!r}")
        imports = {"custom_imports": cfg["custom_imports"]} if "custom_imports" in cfg else {}
        override(cfg)  # imports what the recipe names
        stages: list[Stage] = []
        for entry in entries:
            stage = _stage(dict(entry), stages, path, read)
            if imports and stage.config is not None and "custom_imports" not in stage.config:
                stage = replace(stage, config=override(stage.config, imports))
            stages.append(stage)
        return cls(name, _taken(stages), str(path))

    @property
    def trained(self) -> tuple[Train, ...]:
        """The stages that are trainings."""
        return tuple(stage for stage in self.stages if isinstance(stage, Train))

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the stages that rows of a comparison share: pre-trainings, and features from elsewhere."""
        return tuple(stage.name for stage in self.stages if {"backbone", "spaces"} & set(stage.gives))

    @property
    def pretraining(self) -> tuple[str, ...]:
        """Names of the stages that others take their backbone from."""
        return tuple(stage.name for stage in self.stages if "backbone" in stage.gives)

    def __getitem__(self, name: str) -> Stage:
        """Return a stage.

        Raises:
            InputError: there is none of this name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise InputError(f"{self.source} has no stage '{name}'{nearest(name, names)}; it has {', '.join(names)}")

    def until(self, name: str, title: str | None = None) -> Recipe:
        """Return the recipe of a stage and all that it needs."""
        wanted = {self[name].name}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted |= set(stage.needs.values())
        stages = tuple(stage for stage in self.stages if stage.name in wanted)
        return replace(self, name=title or self.name, stages=stages, whole=self.name)

    def starting_from(self, first: Stage, title: str) -> Recipe:
        """Return the recipe of one training after another, whose backbone it starts from."""
        (training,) = self.stages
        training = replace(training, name=title, needs={"backbone": first.name})
        return replace(self, name=title, stages=_taken([first, training]))

    def on_spaces(self, features: Stage) -> Recipe:
        """Return the recipe whose trainings, and what else can, take their samples from a stage that leaves spaces."""
        stages = [
            replace(stage, needs={**stage.needs, "spaces": features.name}) if "spaces" in stage.takes else stage
            for stage in self.stages
        ]
        return replace(self, stages=_taken([features, *stages]))

    def with_backbone(self, file: str | Path) -> Recipe:
        """Return the recipe without its pre-training: from a backbone in a file.

        A stage that takes anything else of the pre-training goes too; one that can do without it does.

        Raises:
            InputError: there is no such file.
        """
        if not Path(file).is_file():
            raise InputError(f"there is no backbone '{file}' to start from")
        given: dict[str, Any] = {"pretrained": str(file), "digest": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
        gone, stages = set(self.pretraining), list[Stage]()
        for stage in self.stages:
            lost = {what for what, of in stage.needs.items() if of in gone}
            if stage.name in gone or any(stage.takes[what] for what in lost):
                gone.add(stage.name)
                continue
            kept = {what: of for what, of in stage.needs.items() if what not in lost}
            stages.append(replace(stage, needs=kept, gives=(), **(given if "backbone" in lost else {})))
        return replace(self, stages=_taken(stages))

    def configured(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        amp: bool = False,
        strict: bool = False,
        clusters: int | None = None,
    ) -> Recipe:
        """Return the recipe with options applied, ready to run.

        Args:
            options: as for :func:`addressed`.
            seed: of all trainings; by default the configs'.
            amp: bfloat16 autocast.
            strict: unreadable images are an error instead of being skipped.
            clusters: K of every head that has clusters, but for pre-training; by default the configs'.

        Raises:
            InputError: for an option that no stage reads, a part that is configured wrongly, or trainings that do not
                fit each other.
        """
        by_stage = addressed(options or {}, self.stages)
        stages = []
        for stage in self.stages:
            mine = by_stage[stage.name]
            finds = stage.config is not None and stage.name not in self.pretraining
            if clusters is not None and finds and "num_clusters" in stage.config.model.head:
                mine = {**mine, "model.head.num_clusters": clusters}
            stages.append(stage.configured(mine, seed, amp, strict))
        new = replace(self, stages=tuple(stages))
        for stage in new.trained:
            first = new.trained[0]
            for what, key in (("see the same images", "data.dataset"), ("have the same backbone", "model.backbone")):
                mine, other = at(stage.config, key), at(first.config, key)
                if mine != other:
                    told = f"{key} is {other} for {first.name} but {mine} for {stage.name}"
                    raise InputError(f"the stages must {what}: {told}")
        return new

    def keys(self, ran: Mapping[str, Any], *parts: Any) -> dict[str, str]:
        """Return for each stage a hash of all that decides its result.

        That is its own settings, how this machine computes it (``ran``), and ``parts`` that concern all: the data.
        """
        keys: dict[str, str] = {}
        for stage in self.stages:
            before = {what: keys[of] for what, of in stage.needs.items()}
            if stage.digest is not None:
                before["file"] = stage.digest
            told = [type(stage).__name__, stage.decides(), before, ran[stage.name] if stage.seeded else None, *parts]
            text = json.dumps(told, sort_keys=True, default=str)
            keys[stage.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return keys


def addressed(options: Mapping[str, Any], stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return the options of each stage by its name.

    Args:
        options: ``{"STAGE.key": value}`` or ``{"STAGE": {"key": value}}`` for one stage, which wins over
            ``{"key": value}`` for all that have a config.
        stages: of one recipe, or of several.

    Raises:
        InputError: an option's address begins with the name of no stage and of no setting.
    """
    shared: dict[str, Any] = {}
    special: dict[str, dict[str, Any]] = {stage.name: {} for stage in stages}
    for key, value in options.items():
        first, _, rest = key.partition(".")
        if key in special and isinstance(value, Mapping):
            special[key].update(value)
        elif first in special and rest:
            special[first][rest] = value
        elif first in KNOWN_KEYS or first in REFUSED_KEYS or first.startswith("_"):
            shared[key] = value
        else:
            raise InputError(
                f"nothing reads the option '{key}': no stage and no setting is called '{first}'"
                f"{nearest(first, [*special, *KNOWN_KEYS])}; the stages are {', '.join(special) or 'none'}"
            )
    return {s.name: {**(shared if s.config is not None else {}), **special[s.name]} for s in stages}


def _stage(entry: dict[str, Any], earlier: Sequence[Stage], path: Path, read: Callable[[Path], Config]) -> Stage:
    """Return the stage that an entry of a recipe describes."""
    name = entry.pop("name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in KNOWN_KEYS:
        raise InputError(
            f"{path}: a stage needs a name of letters and digits, other than a setting's, and has {name!r}"
        )
    there, where = {stage.name: stage for stage in earlier}, f"{path}: stage '{name}'"
    if name in there:
        raise InputError(f"{path}: two stages are called '{name}': each needs a name of its own")
    kind = resolve(STAGES, {"type": entry.pop("type", "Train")}, name=name)[0]
    needs = {what: entry.pop(what) for what in kind.takes if entry.get(what) is not None}
    for what, must in kind.takes.items():
        if must and what not in needs:
            raise InputError(f"{where} needs {what}='...', the name of an earlier stage")
    for what, of in needs.items():
        if of not in there:
            raise InputError(f"{where} takes its {what} of '{of}', which is not an earlier stage")
        if what not in there[of].leaves:
            left = ", ".join(there[of].leaves) or "nothing"
            raise InputError(f"{where} takes its {what} of '{of}', which leaves {left}")
    stage: Stage = kind.read(name, entry, path, read)
    return replace(stage, needs=needs)


def _taken(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages, each of which knows what the others take of it."""
    return tuple(
        replace(s, gives=tuple(sorted({what for t in stages for what, of in t.needs.items() if of == s.name})))
        for s in stages
    )
