"""Features of networks that are trained elsewhere, and not here: extracted once for all that cluster them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from mmengine.hooks import Hook
from mmengine.logging import print_log

from odc.data.feature_files import INDEX, read_space
from odc.engine.hooks import ExtractionHook
from odc.recipes.stage import FILES, Left, Stage, write_spaces
from odc.registry import check_arguments
from odc.sources import Space, extract_space, extraction_config, load_network

PARTS = ("train", "eval")  # what is clustered, and what is evaluated where that is another


@dataclass(frozen=True)
class Part:
    """A data set, and the spaces of features of its pictures."""

    spaces: tuple[Space, ...]
    pictures: Mapping[str, Any] | None  # config of the data set; None: nothing is known but the features

    @property
    def images(self) -> dict[str, Any]:
        """Config of the data set that people look at."""
        return self.dataset([space.spelling for space in self.spaces]) if self.pictures is None else {**self.pictures}

    def dataset(self, files: Sequence[str] = ()) -> dict[str, Any]:
        """Return the config of the data set of vectors."""
        pictures = None if self.pictures is None else {**self.pictures}
        return {"type": "Features", "files": list(files), "pictures": pictures}


@dataclass(frozen=True)
class Features(Stage):
    """The features of all pictures; leaves a file that says where they lie, and how wide each space is.

    What was extracted stays, so that an interrupted stage goes on.
    """

    leaves: ClassVar[tuple[str, ...]] = ("spaces",)
    seeded: ClassVar[bool] = False

    train: Part
    eval: Part | None = None

    @property
    def title(self) -> str:
        """What a person calls the features: networks and files."""
        return " + ".join(space.title for space in self.train.spaces)

    @property
    def images(self) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        """Configs of the data sets of pictures."""
        return self.train.images, None if self.eval is None else self.eval.images

    def configured(self, options: Mapping[str, Any], seed: int | None, amp: bool, strict: bool) -> Features:
        """Return the stage: it has no options."""
        check_arguments(type(self), options, f"stage '{self.name}'", given=tuple(f.name for f in fields(self)))
        return self

    def decides(self) -> Any:
        """Return the spaces and the pictures, wherever files of features lie."""
        return [
            None if part is None else [[space.decides() for space in part.spaces], part.pictures]
            for part in (self.train, self.eval)
        ]

    def check(self) -> None:
        """Load the weights of all networks, before anything runs.

        Raises:
            InputError: as :func:`odc.sources.load_network`.
        """
        for space in self.train.spaces:
            load_network(space)

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Extract what is not there yet."""
        files: dict[str, list[str]] = {name: [] for name in PARTS}
        widths: dict[str, list[int]] = {name: [] for name in PARTS}
        images, watch = 0, next((hook.extracted for hook in hooks if isinstance(hook, ExtractionHook)), None)
        for name in PARTS:
            part: Part | None = getattr(self, name)
            for number, space in enumerate(() if part is None else part.spaces):
                assert part is not None
                if space.model is None:
                    file = str(Path(space.spelling).absolute())
                else:
                    assert part.pictures is not None
                    file = f"{name}-{number}"
                    extract_space(space, extraction_config(space, part.pictures, folder), folder / file, watch)
                rows = read_space(str(folder / file)).rows
                files[name].append(file)
                widths[name].append(rows.shape[1])
                images += len(rows) if name == "train" and not number else 0
                print_log(f"{space.title}: {len(rows):,} vectors of {rows.shape[1]:,} numbers", "current")
        write_spaces(folder, files["train"], files["eval"], widths["train"])
        return {"images": images, "width": float(sum(widths["train"]))}

    def lacks(self, folder: Path, result: Mapping[str, Any], needed: bool) -> str | None:
        """Return which file is missing."""
        if not (folder / FILES["spaces"]).is_file():
            return FILES["spaces"]
        parts = {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}
        extracted = [f"{name}-{i}" for name, p in parts.items() for i, space in enumerate(p.spaces) if space.model]
        return next((name for name in extracted if not (folder / name / INDEX).is_file()), None)
