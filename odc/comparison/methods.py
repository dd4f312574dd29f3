"""What the names of methods mean: the rows of a comparison, each a recipe.

A comparison config is a dict of ``methods``, configs by name; of pre-trainings that methods may start from, each a
config by its own name; and where wanted of ``options``, settings for all of them. A config is a path, relative to this
file, or the name of one that the package has::

    comparison = dict(moco='../moco/….py', methods={'odc': '../odc/….py', 'spice': '../pipelines/….py'})
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.comparison.estimators import ESTIMATORS, FEATURES, Estimate
from odc.config import find_config, load_config, parse_config
from odc.errors import InputError, nearest
from odc.recipes.recipe import Recipe
from odc.recipes.stage import Stage


class Methods:
    """The methods of a comparison config, and those that follow from them.

    Raises:
        InputError: for a file that is no such config.
    """

    def __init__(self, path: Path, vectors: bool = False) -> None:
        self.path, self.vectors = path, vectors
        known = load_config(path).get("comparison")
        if not isinstance(known, Mapping) or not isinstance(known.get("methods"), Mapping) or not known["methods"]:
            raise InputError(
                f"{path}: a comparison must be a dict with methods, which are configs by name; it may have options, "
                "which are settings for all of them, and configs of pre-trainings by name"
            )
        self._options: dict[str, Any] = dict(known.get("options") or {})
        self._files = {name: find_config(file, path.parent) for name, file in known["methods"].items()}
        apart = ("methods", "options")
        self._first = {name: find_config(file, path.parent) for name, file in known.items() if name not in apart}
        self._parsed: dict[Path, Config] = {}

    def rows(self, methods: Sequence[str]) -> list[Recipe]:
        """Return the rows, each once, in the order of ``methods``.

        Raises:
            InputError: for an unknown method, or two of one name.
        """
        known = None if self.vectors else (*FEATURES, *self._first)
        estimators = {method: Estimate.parse(method, known) for method in methods}
        found = {method: self._row(method) for method, estimator in estimators.items() if estimator is None}
        rows: dict[str, Recipe] = {}
        for row in found.values():
            if row != rows.setdefault(row.name, row):
                raise InputError(
                    f"'{rows[row.name].source}' and '{row.source}' would both be the row '{row.name}': "
                    "give one of the files another name"
                )
        base = self.base([*rows.values()]) if len(found) < len(estimators) else None
        for method, estimator in estimators.items():
            if estimator is not None:
                recipe = Recipe(method, (replace(estimator, config=base),), "", single=True)
                rows[method] = self._started(recipe, estimator.features, method) or recipe
        return [rows[name] for name in dict.fromkeys(found[m].name if m in found else m for m in methods)]

    def options(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Return the config's options, less those of its methods' stages that are not among ``stages``."""
        if not self._options:
            return {}
        every = {stage.name for name, file in self._files.items() for stage in self._load(file, name).stages}
        absent = (every | self._first.keys()) - {stage.name for stage in stages}
        return {key: value for key, value in self._options.items() if key.partition(".")[0] not in absent}

    def base(self, rows: Sequence[Recipe] = ()) -> Config:
        """Return the config that estimators take data and network from: that of the first training."""
        recipes = itertools.chain(rows, map(self._load, self._files.values()))
        first = next(recipes)
        recipe = first if first.single else next((recipe for recipe in recipes if recipe.single), first)
        return recipe.trained[-1].config

    def _load(self, file: str | Path, name: str | None = None) -> Recipe:
        return Recipe.load(file, name, self._read)

    def _read(self, path: Path) -> Config:
        """Parse a config: each file once, however many rows name it."""
        file = path.resolve()
        if file not in self._parsed:
            self._parsed[file] = parse_config(path)
        return self._parsed[file]

    def _started(self, recipe: Recipe, first: str, title: str) -> Recipe | None:
        """Return a recipe of one training so that it starts from a pre-training, where there is one of this name."""
        if not recipe.single or first not in self._first:
            return None
        (stage,) = self._load(self._first[first], first).trained
        return recipe.starting_from(stage, title)

    def _find(self, method: str) -> Recipe | None:
        """Return the recipe of a name, or of the path of a config."""
        if method in self._files:
            return self._load(self._files[method], method)
        return self._load(method) if method.endswith(".py") else None

    def _row(self, method: str) -> Recipe:
        base, _, end = method.rpartition("-")
        if (recipe := self._find(method)) is not None:
            return self._started(recipe, recipe.name.rpartition("-")[2], recipe.name) or recipe
        if (recipe := self._find(base)) is not None:
            title = f"{recipe.name}-{end}"
            if (started := self._started(recipe, end, title)) is not None:
                return started
            if not recipe.single and end in {stage.name for stage in recipe.trained}:
                return recipe.until(end, title)
        raise InputError(f"unknown method '{method}'{nearest(method, self._names())}, or the path of a config")

    def _names(self) -> list[str]:
        ends = ("", "-raw") if self.vectors else tuple(f"-{features}" for features in (*FEATURES, *self._first))
        names = [f"{estimator}{end}" for estimator in ESTIMATORS for end in ends]
        for name in self._files:
            recipe = self._load(self._files[name], name)
            after = list(self._first) if recipe.single else [stage.name for stage in recipe.trained[:-1]]
            names += [name, *(f"{name}-{end}" for end in after)]
        return names
