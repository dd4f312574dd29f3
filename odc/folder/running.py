"""The stages of a recipe on a folder, with their progress, within a budget; and what they say of every picture."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.logging import MMLogger
from torch import Tensor

from odc.apis import load_runner
from odc.clustering import margins
from odc.comparison.results import Outcome
from odc.data.datasets import ImageDataset, build_dataset
from odc.engine.extract import extract
from odc.engine.hooks import NEAR_CHANCE, ExtractionHook
from odc.errors import InputError
from odc.files import write_text
from odc.folder.choice import short
from odc.folder.clock import Clock, Step, told
from odc.models.cluster_model import unwrap
from odc.models.moco import MoCo
from odc.reading import fields, read_json, real
from odc.recipes import Features, Left, Pipeline, Recipe, Stage, Train
from odc.recipes.stage import place_spaces
from odc.registry import MODELS, resolve
from odc.structures import FeatureTable, LocalComm

TIME = "time.json"  # seconds that the calls so far have taken
_TIME = fields({"seconds": real(0)})
_SOON = 5.0  # seconds of a step from which its speed is taken for known
_NEAR_CHANCE = "the features are near chance, so the clusters may say little: more pictures, or --features"
_LONG = 900.0  # seconds of a training that are worth a line
_KEEP = 5.0  # seconds between two notes of the time


class Watch(ExtractionHook):
    """Tell the clock how far stages are, and fit trainings into what the budget leaves them.

    From its first steps, and after every epoch, a training gets as many epochs as the time left is enough for, at most
    the recipe's: the schedule of its learning rate then ends when the time does. One whose first epoch would take
    longer ends within seconds.
    """

    def __init__(self, clock: Clock, keep: Callable[[], None]) -> None:
        self.clock, self.keep = clock, keep
        self.kept = 0.0
        self.most, self.mark, self.told = 1, (0.0, 0.0), False
        self.steps = 0
        self.remarks = dict[str, None]()  # what is to be said at the end, once

    def extracted(self, done: int, total: int) -> None:
        """Show it; give up soon where the budget is too small for all."""
        self.clock.at(done / total)
        self._note()
        check_fixed(self.clock, total)

    def before_train(self, runner: Any) -> None:
        """Start: the training may have begun in an earlier call."""
        self.most, self.steps, self.told = runner.train_loop.max_epochs, 0, False
        self.clock.at(runner.train_loop.progress)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Show it; plan as soon as the speed is known."""
        loop, now = runner.train_loop, self.clock.now()
        done = loop.progress * loop.max_epochs
        self.steps += 1
        if self.steps == 2:  # the first one starts workers and kernels
            self.mark = (now, done)
        elif self.steps > 4 and now - self.mark[0] > 2.0 and loop.max_epochs == self.most:
            self._plan(runner, done)
        if not self.told and self.steps > 4 and now - self.mark[0] > 2.0:
            self._tell(loop, done)
        self.clock.at(loop.progress)
        self._note()

    def after_train_epoch(self, runner: Any) -> None:
        """Plan the epochs that are left."""
        self._plan(runner, float(runner.epoch + 1))

    def after_train(self, runner: Any) -> None:
        """Remember that features are near chance."""
        found = runner.message_hub.runtime_info.get("preflight")
        if found and found["excess"] < NEAR_CHANCE:
            self.remarks[_NEAR_CHANCE] = None

    def _plan(self, runner: Any, done: float) -> None:
        loop, now = runner.train_loop, self.clock.now()
        available, (began, at) = self.clock.available(), self.mark
        if available is None or done <= at or now <= began:
            return
        epoch = (now - began) / (done - at)
        left = available - (now - self.clock.began)
        if runner.epoch == 0 and not loop.evaluated and epoch * (1.0 - done) > max(left, 0.0) and done < 1.0:
            raise InputError(
                f"an epoch of {self.clock.step.title if self.clock.step else 'the training'} takes about {told(epoch)} "
                f"here, and --budget leaves it {told(max(left, 1.0))}: raise the budget, or take --features"
            )
        runner.train_loop.max_epochs = int(min(self.most, max(runner.epoch + 1, done + max(0.0, left) // epoch)))

    def _tell(self, loop: Any, done: float) -> None:
        """Say once what a long training takes, by its first steps: whoever waits for hours should know in time."""
        self.told = True
        epoch = (self.clock.now() - self.mark[0]) / max(1e-9, done - self.mark[1])
        left = epoch * (loop.max_epochs - done)
        if left > _LONG and self.clock.step is not None:
            budget = "" if self.clock.budget is not None else "; --budget 30m, in another --out, makes it shorter"
            self.clock.say(
                f"measured: {self.clock.step.title} takes about {told(left)} here, {loop.max_epochs} epochs of "
                f"{told(epoch)}; Ctrl-C stops it, the same command goes on{budget}"
            )

    def _note(self) -> None:
        if self.clock.now() - self.kept > _KEEP:
            self.kept = self.clock.now()
            self.keep()


def check_fixed(clock: Clock, pictures: int) -> None:
    """Give up where a step that cannot be made shorter, and what follows, takes more than the budget.

    Raises:
        InputError: with both times.
    """
    step, budget = clock.step, clock.budget
    if budget is None or step is None or clock.now() - clock.began < _SOON or clock.share <= clock.from_share:
        return
    later = sum(other.guess for other in clock.steps if not (other.done or other.trains or other is step))
    needed = clock.used + clock.of_step() + later
    if needed > 1.1 * budget:
        raise InputError(
            f"{step.title} of {pictures:,} pictures, and what follows, takes about {told(needed)} here, more than "
            f"--budget {told(budget)}: raise it, see pictures smaller (--size), or take fewer"
        )


def used_before(run: Path) -> float:
    """Return the seconds that earlier calls on a folder have taken."""
    file = run / TIME
    if not file.is_file():
        return 0.0
    return float(read_json(file, _TIME, "does not say how much time was used", "delete it")["seconds"] or 0.0)


def keep_time(run: Path, clock: Clock) -> None:
    """Note the seconds that were used."""
    write_text(run / TIME, json.dumps({"seconds": round(clock.used, 1)}) + "\n")


def steps_of(recipe: Recipe, features: str, images: int, per_step: float, cores: int) -> list[Step]:
    """Return the stages of a recipe on features with first guesses of what they take, in seconds.

    The guesses were measured on two cores; ``per_step`` is what a step of a network on 128 pictures takes.
    """
    steps, faster = list[Step](), 2 / cores
    for stage in recipe.stages:
        name, trains, guess = stage.name, isinstance(stage, Train), 3.0 + 0.002 * images
        title = {"Extract": "features", "Reliable": "reliable labels"}.get(type(stage).__name__, f"clusters ({name})")
        if isinstance(stage, Features):
            title, guess = f"features of {short(features)}", 0.05 * images * faster
        elif isinstance(stage, Train):
            pretrains = issubclass(resolve(MODELS, stage.config.model)[0], MoCo)
            epochs, batch = stage.config.train_cfg.max_epochs, stage.config.model.head.get("batch_size", 128)
            still = bool(stage.config.model.get("frozen"))
            guess = 5.0 + 0.012 * images if still else 3.0 + epochs * images / batch * per_step * batch / 128
            title = "pre-training (MoCo)" if pretrains else f"clusters ({name.removesuffix('-moco')})"
        steps.append(Step(name, title, guess, trains))
    return steps


@dataclass(frozen=True)
class Found:
    """What a recipe says of N pictures."""

    features: Tensor  # (N, D) float32, what was clustered
    scores: Tensor | None  # (N, K) float32 of a head; None: there are only
    cluster: Tensor  # (N,) int64, -1 in none
    margin: Tensor  # (N,) float32, of the best cluster before the second
    lost: tuple[int, ...] = ()  # pictures that could not be decoded
    spaces: tuple[int, ...] = ()  # widths of the spaces that the features consist of; (): one


def run_stages(pipeline: Pipeline) -> dict[str, Left]:
    """Run a recipe, or what is left of it; return what its stages have left, by their names."""
    results = pipeline.run()
    return {
        stage.name: Left(stage, pipeline.places[stage.name], results[stage.name]) for stage in pipeline.recipe.stages
    }


def found(left: Mapping[str, Left], recipe: Recipe, images: int) -> Found:
    """Return what the last stage says of every picture."""
    last = left[recipe.stages[-1].name]
    given = vectors(left, recipe)
    spaces = () if given is None else given.spaces
    if not isinstance(last.stage, Train):
        outcome = Outcome.load(last.folder, images)
        if outcome is None:
            raise InputError(f"{last.folder} has no clusters any more: delete it, and run this again")
        cluster, margin = torch.from_numpy(outcome.cluster), torch.from_numpy(outcome.margin)
        features = torch.from_numpy(outcome.features)  # of pixels, or of an untrained network
        if recipe.shared:
            features = given_features(left, recipe)
        return Found(features, None, cluster, margin, spaces=spaces)
    table, lost = encoded(last, with_scores=True)
    assert table.logits is not None
    scores = table.logits.float().cpu()
    features = table.features.float().cpu() if given is None else numbers(given)
    return Found(features, scores, scores.argmax(1), margins(scores), tuple(sorted(lost)), spaces)


def given_features(left: Mapping[str, Left], recipe: Recipe) -> Tensor:
    """Return the features (N, D) float32 that come before the clusters: of networks, or of the pre-training."""
    given = vectors(left, recipe)
    if given is not None:
        return numbers(given)
    return encoded(left[recipe.shared[0]], with_scores=False)[0].features.float().cpu()


def encoded(left: Left, with_scores: bool) -> tuple[FeatureTable, Mapping[int, str]]:
    """Return features (N, D) and where wanted scores (N, K) of all pictures by a training; and what was lost."""
    runner, data = load_runner(left.config(left.folder / "evaluation"), str(left.file("checkpoint")))
    try:
        model = unwrap(runner.model)
        predict = model.head.predict if with_scores else None
        table = extract(model, data.train, LocalComm(), batch_size=data.extract_batch_size, logits=predict)
    finally:
        data.close()
    return table, data.train.dataset.lost


def vectors(left: Mapping[str, Left], recipe: Recipe) -> ImageDataset | None:
    """Return the data set of the vectors that were clustered; ``None``: pictures were."""
    stage = next((stage for stage in recipe.stages if isinstance(stage, Features)), None)
    if stage is None:
        return None
    config = Config({"data": {"dataset": stage.train.dataset()}, "model": {"backbone": {}}})
    place_spaces(config, left[stage.name].file("spaces"))
    return build_dataset(config.data.dataset)


def numbers(dataset: ImageDataset) -> Tensor:
    """Return the vectors (N, D) float32 of a data set that has them."""
    return dataset.images().flatten(1).float()


class _Aside:
    """A stream for what the parts print while a command shows one line: a file, and afterwards what it was before."""

    def __init__(self, file: Any, otherwise: Callable[[], Any]) -> None:
        self.file, self.otherwise = file, otherwise

    def write(self, text: str) -> int:
        """Write to the file, or once that is closed as everybody does."""
        return int((self.otherwise() if self.file is None else self.file).write(text))

    def flush(self) -> None:
        """Flush."""
        (self.otherwise() if self.file is None else self.file).flush()

    def isatty(self) -> bool:
        """Return False."""
        return False


@contextlib.contextmanager
def aside(path: Path) -> Iterator[None]:
    """Send what is printed, and the log's lines for the terminal, to the end of a file."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        streams = [_Aside(file, lambda: sys.stdout), _Aside(file, lambda: sys.stderr)]
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                MMLogger.get_instance(f"cluster {time.monotonic_ns()}", logger_name="mmengine")
                yield
        finally:
            for stream in streams:
                stream.file = None


def shorter(recipe: Recipe) -> Recipe:
    """Return the recipe without measurements that nobody reads here: they take time, and some want true classes."""

    def bare(stage: Stage) -> Stage:
        if not isinstance(stage, Train):
            return stage
        config = stage.config.copy()
        config.val_evaluator = [{"type": "ClusterMetrics"}]
        config.train_cfg.val_interval = config.train_cfg.max_epochs
        return replace(stage, config=config)

    return replace(recipe, stages=tuple(map(bare, recipe.stages)))
