"""The stages of a recipe, one after the other, each kept on disk.

Every stage has a folder and leaves a ``done.json`` there with a key: a hash of its config, of its data and of the
stages that it needs. A stage whose key is there already is skipped; one that was interrupted goes on from its last
checkpoint; one that is there with another key stops the pipeline, so nothing is ever overwritten by something else.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

from odc.data.datasets import build_dataset
from odc.engine.precision import settle_precision
from odc.errors import InputError
from odc.evaluation.gallery import listed, write_skipped
from odc.evaluation.markdown import markdown_table
from odc.files import writable, write_text
from odc.reading import fields, listing, optional, read_json, real, text, whole
from odc.recipes.recipe import Recipe
from odc.recipes.stage import Left, Stage, Train
from odc.work_dir import working

MEASURED = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN", "kmeans_acc": "k-means ACC"}


def _checkpoint(value: Any) -> str:
    """Kind: the name of a checkpoint in the folder of its stage."""
    if not re.fullmatch(r"(epoch|iter)_\d+\.pth", text(value)):
        raise ValueError(f"epoch_<number>.pth or iter_<number>.pth is expected, not '{value[:60]}'")
    return str(value)


_MARK = "is not the record of a stage"
_RAN = {"key": text, "seconds": real(0), "precision": text, "threads": whole(1)}
BEGUN = fields(_RAN)
DONE = fields(
    _RAN,
    optional(real()),  # metrics
    checkpoint=_checkpoint,
    told=text,
    per_cluster=listing(whole()),
    without_images=listing(whole()),
    **dict.fromkeys(("count", "total", "labelled", "images"), whole()),
)


class Pipeline:
    """A configured recipe that runs in a folder, in which each stage has one, unless ``places`` says another.

    The ``hooks`` are for every training; ``begins`` is told of every stage that runs, before it does.

    Raises:
        InputError: there are fewer images than clusters.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | Path,
        places: Mapping[str, Path] | None = None,
        hooks: Sequence[Hook] = (),
        begins: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.folder, self.hooks, self.begins, self.fitted = Path(folder), hooks, begins, list[str]()
        self.places = {stage.name: self.folder / stage.name for stage in recipe.stages} | dict(places or {})
        self.dataset = build_dataset(next(stage.images for stage in recipe.stages if stage.images is not None)[0])
        stages = list[Stage]()
        for stage in recipe.stages:
            if isinstance(stage, Train):
                stage, told = stage.fitted(len(self.dataset))
                self.fitted += [] if told is None else [told]
                if len(self.dataset) < (K := stage.config.model.head.get("num_clusters", 1)):
                    raise InputError(f"{K} clusters cannot share {len(self.dataset)} images: lower --clusters")
            stages.append(stage)
        self.recipe = replace(recipe, stages=tuple(stages))

    def run(self) -> dict[str, dict[str, Any]]:
        """Run what is not there yet; return each stage's result and, of several stages, write ``summary.md``.

        Raises:
            InputError: another command is at work in the folder, or as :func:`odc.apis.train`.
        """
        # A training keeps others out of its own folder.
        alone = self.folder not in self.places.values()
        with working(self.folder) if alone else contextlib.nullcontext():
            write_skipped(self.dataset, self.folder)
            # What is said before the first stage's own log exists.
            level = next((stage.config.get("log_level") for stage in self.recipe.stages if stage.config), None)
            self.logger = MMLogger("pipeline", logger_name="mmengine", log_level=level or "INFO")
            for told in self.fitted:
                self.logger.info(told)
            done = self._done()
            ran = {stage.name: _ran(stage) for stage in self.recipe.stages}
            keys = self.recipe.keys(ran, self.dataset.fingerprint)
            left: dict[str, Left] = {}
            for number, stage in enumerate(self.recipe.stages, start=1):
                given = {what: left[of] for what, of in stage.needs.items()}
                title = f"stage {number}/{len(self.recipe.stages)}, {stage.name}"
                result = self._stage(stage, given, keys[stage.name], ran[stage.name], title, done.get(stage.name))
                left[stage.name] = Left(stage, self.places[stage.name], result)
            results = {name: dict(one.result) for name, one in left.items()}
            if len(results) > 1:
                write_text(self.folder / "summary.md", summary(results) + "\n")
            return results

    def _done(self) -> dict[str, dict[str, Any]]:
        """Return the results of the stages that are done; where files are gone or damaged, a stage is done again."""
        results: dict[str, dict[str, Any]] = {}
        needed = False  # checkpoints are: a later stage has still to be done
        for stage in reversed(self.recipe.stages):
            place = self.places[stage.name]
            done = place / "done.json"
            if done.is_file():
                result = read_json(done, DONE, _MARK, f"delete {place} to run this stage again")
                missing = stage.lacks(place, result, needed)
                if missing is None:
                    results[stage.name] = result
                    continue
                self.logger.info(f"{stage.name} was done, but its {missing} is missing or damaged: it is made again")
                done.unlink()
            needed = True
        return results

    def _stage(
        self,
        stage: Stage,
        given: Mapping[str, Left],
        key: str,
        ran: Mapping[str, Any],
        title: str,
        done: dict[str, Any] | None,
    ) -> dict[str, Any]:
        folder = writable(self.places[stage.name])
        begun = folder / "begun.json"
        before = done
        if before is None and begun.exists():
            before = read_json(begun, BEGUN, _MARK, f"delete {folder} to run this stage again")
        # An unfinished stage that trains nothing has nothing to lose: other options may begin it anew.
        if before is not None and before["key"] != key and (done is not None or isinstance(stage, Train)):
            raise InputError(
                f"{folder} holds a stage of another config, other data or other stages before it"
                f"{_otherwise(before, ran)}: delete {folder}, or choose another --work-dir"
            )
        if done is not None:
            self.logger.info(f"{title}: there already, from the same config and data")
            return done
        self.logger.info(f"{title}: begins")
        self.begins(stage.name)
        earlier = 0.0 if before is None else before["seconds"]
        started = time.monotonic()

        def note(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
            seconds = float(round(earlier + time.monotonic() - started, 1))
            told = {"key": key, "seconds": seconds, **ran, **values}
            write_text(file, json.dumps(told, indent=2, default=float) + "\n")
            return told

        note(begun, {})
        try:
            values = stage.run(folder, given, self.hooks)
        finally:
            note(begun, {})
        return note(folder / "done.json", values)


def _ran(stage: Stage) -> dict[str, Any]:
    """Return how this machine computes a stage, on which its numbers depend beside config and data."""
    precision = settle_precision(stage.config.get("precision")) if isinstance(stage, Train) else "float32"
    return {"precision": precision, "threads": torch.get_num_threads()}


def _otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how a stage was computed in another way than it would be now, or nothing."""
    then, here = (f"in {ran.get('precision')} on {ran.get('threads')} threads" for ran in (before, now))
    return "" if then == here else f" (it ran {then}, now it would {here}; OMP_NUM_THREADS sets the threads)"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the stages in Markdown, how they were computed, and what they have to say."""
    measured = {m: name for m, name in MEASURED.items() if any(v.get(m) is not None for v in results.values())}
    rows = [["stage", *measured.values(), "seconds"]]
    for stage, values in results.items():
        cells = ["" if values.get(m) is None else f"{values[m]:.3f}" for m in measured]
        rows.append([stage, *cells, f"{values['seconds']:.1f}"])
    rows.append(["all", *[""] * len(measured), f"{sum(values['seconds'] for values in results.values()):.1f}"])
    trained = [values for values in results.values() if "epochs" in values] or list(results.values())
    precision, threads = (
        " / ".join(dict.fromkeys(str(values[name]) for values in trained)) for name in ("precision", "threads")
    )
    found = [values["told"] for values in results.values() if "told" in values]
    empty = [
        f"{stage}: {len(values['without_images'])} clusters have no image: {listed(values['without_images'])}"
        for stage, values in results.items()
        if values.get("without_images")
    ]
    return "\n".join([markdown_table(rows), "", f"Trained in {precision}, threads: {threads}.", "", *found, *empty])
