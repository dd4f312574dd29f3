"""What the names of methods mean: the rows of a comparison, each a recipe.

A comparison config is a dict of ``methods``, configs by name; of pre-trainings that methods may start from, each a
config by its own name; and where wanted of ``options``, settings for all of them. A config is a path, relative to this
file, or the name of one that the package has::

    comparison = dict(moco='../moco/….py', methods={'odc': '../odc/….py', 'spice': '../pipelines/….py'})
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.comparison.estimators import ESTIMATORS, FEATURES, Estimate, Estimator
from odc.config import find_config, load_config, parse_config
from odc.errors import InputError, nearest
from odc.recipes.recipe import Recipe
from odc.recipes.stage import Stage, Train


@dataclass(frozen=True)
class Row:
    """A method, before its seeds.

    Attributes:
        name: of the row.
        recipe: of the method.
        group: rows of one group share the stages that they have in common.
    """

    name: str
    recipe: Recipe
    group: str


class Methods:
    """The methods of a comparison config, and those that follow from them.

    Args:
        path: of the config.

    Raises:
        InputError: for a file that is no such config.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        self._read = functools.cache(parse_config)  # each file once, however many rows it is in

    def rows(self, methods: Sequence[str]) -> list[Row]:
        """Return the rows, each once, in the order of ``methods``.

        Raises:
            InputError: for an unknown method, or two of one name.
        """
        rows: dict[str, Row] = {}
        estimators = {method: Estimator.parse(method, (*FEATURES, *self._first)) for method in methods}
        for method, estimator in estimators.items():
            if estimator is None and (row := self._row(method)) != rows.setdefault(row.name, row):
                raise InputError(
                    f"'{rows[row.name].recipe.source}' and '{row.recipe.source}' would both be the row '{row.name}': "
                    "give one of the files another name"
                )
        base = self._base(list(rows.values()))
        for method, estimator in estimators.items():
            if estimator is not None:
                recipe = Recipe(method, (Estimate(method, config=base, estimator=estimator),), "", single=True)
                first = self._pretraining(estimator.features)
                rows[method] = Row(method, recipe if first is None else recipe.starting_from(first, method), method)
        titles = {method: method if method in rows else self._row(method).name for method in methods}
        return [rows[name] for name in dict.fromkeys(titles.values())]

    def options(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Return the config's options, less those of its methods' stages that are not among ``stages``."""
        every = {stage.name for name in self._files for stage in self._load(self._files[name], name).stages}
        absent = (every | self._first.keys()) - {stage.name for stage in stages}
        return {key: value for key, value in self._options.items() if key.partition(".")[0] not in absent}

    def _base(self, rows: Sequence[Row]) -> Config:
        """Return the config that estimators take data and network from: that of the first training."""
        recipes = [row.recipe for row in rows] + [self._load(file) for file in self._files.values()]
        recipe = next((recipe for recipe in recipes if recipe.single), recipes[0])
        return recipe.trained[-1].config

    def _load(self, file: str | Path, name: str | None = None) -> Recipe:
        return Recipe.load(file, name, self._read)

    def _pretraining(self, name: str) -> Train | None:
        if name not in self._first:
            return None
        (stage,) = self._load(self._first[name], name).trained
        return stage

    def _find(self, method: str) -> Recipe | None:
        """Return the recipe of a name, or of the path of a config."""
        if method in self._files:
            return self._load(self._files[method], method)
        return self._load(method) if method.endswith(".py") else None

    def _row(self, method: str) -> Row:
        base, _, end = method.rpartition("-")
        recipe = self._find(method)
        if recipe is not None:
            first = self._pretraining(recipe.name.rpartition("-")[2])
            if recipe.single and first is not None:
                recipe = recipe.starting_from(first, recipe.name)
            return Row(recipe.name, recipe, recipe.name)
        recipe = self._find(base)
        if recipe is not None:
            title = f"{recipe.name}-{end}"
            first = self._pretraining(end)
            if recipe.single and first is not None:
                return Row(title, recipe.starting_from(first, title), title)
            if not recipe.single and end in {stage.name for stage in recipe.trained}:
                return Row(title, recipe.until(end, title), recipe.name)
        raise InputError(f"unknown method '{method}'{nearest(method, self._names())}, or the path of a config")

    def _names(self) -> list[str]:
        names = [f"{estimator}-{features}" for estimator in ESTIMATORS for features in (*FEATURES, *self._first)]
        for name in self._files:
            recipe = self._load(self._files[name], name)
            ends = list(self._first) if recipe.single else [stage.name for stage in recipe.trained[:-1]]
            names += [name, *(f"{name}-{end}" for end in ends)]
        return names
