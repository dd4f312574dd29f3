from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from small_heads import config
from test_conformance import differences
from torch import Tensor

from odc.apis import build_runner
from odc.checkpoints import load_plain
from odc.engine.plans import check_plan
from odc.errors import InputError
from odc.heads import ClusterHead
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream


@HEADS.register_module(force=True)
class Scripted(ClusterHead):
    """Follows the plan that it is given and notes what happens."""

    def __init__(self, in_channels: int, plan: dict[str, Any], streams: list[dict[str, Any]]) -> None:
        super().__init__()
        self.classifier = torch.nn.Linear(in_channels, 2)
        self.script = plan, streams
        self.events: list[Any] = []

    def plan(self, epoch: int) -> Plan:
        options, streams = self.script
        refresh = Refresh(**options["refresh"]) if "refresh" in options else None
        return Plan(tuple(Stream(**s) for s in streams), **{**options, "refresh": refresh})

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        self.events.append(("refresh", tuple(table.index.tolist())))
        return PseudoLabels(table.index[:, None], table.index[:, None] % 2, (2,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        self.events.append(("step", {name: tuple(b.index[:, 0].tolist()) for name, b in batches.items()}))
        z = torch.cat([z[:, 0] for b in batches.values() for z in b.z.values()])
        return Losses({"loss": self.classifier(z).square().mean()}, log={"noted": z.mean() * 0 + 7})

    def predict(self, z: Tensor) -> Tensor:
        scores: Tensor = self.classifier(z)
        return scores


def scripted(work_dir: Path, plan: dict[str, Any], *streams: dict[str, Any], **options: Any) -> Any:
    cfg = config("dc", str(work_dir), val_evaluator=None, **options)
    cfg.model.head = dict(type="Scripted", plan=plan, streams=list(streams) or [dict(name="all", size=16)])
    return build_runner(cfg)


def refreshes(runner: Any) -> list[tuple[int, ...]]:
    return [event[1] for event in runner.model.head.events if event[0] == "refresh"]


def steps(runner: Any) -> list[dict[str, tuple[int, ...]]]:
    return [event[1] for event in runner.model.head.events if event[0] == "step"]


# 48 samples: 20 + 28, since the tail of 8 would be shorter than 20; 24 + 24; 16 + 16 + 16; all; all.
@pytest.mark.parametrize(("chunk", "sizes"), [(20, [20, 28]), (24, [24, 24]), (16, [16] * 3), (48, [48]), (99, [48])])
def test_a_short_tail_joins_the_chunk_before_it(chunk: int, sizes: list[int], tmp_path: Path) -> None:
    runner = scripted(tmp_path, dict(refresh=dict(chunk=chunk)))
    runner.train()
    seen = refreshes(runner)
    assert [len(ids) for ids in seen] == sizes * 2
    for epoch in (seen[: len(sizes)], seen[len(sizes) :]):
        assert sorted(i for ids in epoch for i in ids) == list(range(48))
    assert all(ids == tuple(sorted(ids)) for ids in seen)
    if len(sizes) > 1:
        assert seen[0] != seen[len(sizes)], "the same chunks in every epoch"


def test_repeats_pass_over_the_rows_of_one_refresh(tmp_path: Path) -> None:
    runner = scripted(tmp_path, dict(refresh=dict(chunk=24, repeats=3)), **{"train_cfg.max_epochs": 1})
    runner.train()
    kinds = "".join(event[0][0] for event in runner.model.head.events)
    assert kinds == ("r" + "s" * 2 * 3) * 2
    first, seen = refreshes(runner)[0], steps(runner)
    passes = [seen[i]["all"] + seen[i + 1]["all"] for i in (0, 2, 4)]
    assert all(set(rows) == set(first) for rows in passes), "a pass did not see every row of its chunk"
    assert len(set(passes)) == 3, "the same order in every pass"
    assert runner.iter == 12


def test_streams_side_by_side(tmp_path: Path) -> None:
    streams = [dict(name="a", size=16), dict(name="b", size=4, rows="labelled", balance=(0,))]
    runner = scripted(tmp_path, dict(refresh={}, steps=5), *streams, **{"train_cfg.max_epochs": 1})
    runner.train()
    assert [{name: len(ids) for name, ids in step.items()} for step in steps(runner)] == [{"a": 16, "b": 4}] * 5
    odd = [sum(i % 2 for i in step["b"]) for step in steps(runner)]
    assert sum(odd) == 10, "10 of 20 rows come from each of the two classes"


def test_progress_and_rate_run_from_one_end_to_the_other(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Note(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            seen.append((runner.train_loop.progress, runner.optim_wrapper.optimizer.param_groups[0]["lr"]))

    runner = scripted(tmp_path, dict(refresh=dict(chunk=24, repeats=2)))
    runner.register_hook(Note())
    runner.train()
    shares = [share for share, _ in seen]
    assert shares == pytest.approx([i / 16 for i in range(16)])  # 2 epochs x 2 chunks x 2 repeats x 2 steps
    assert runner.train_loop.progress == 1.0
    assert [lr for _, lr in seen] == pytest.approx([0.05 * (1 + math.cos(math.pi * share)) / 2 for share in shares])


def test_only_losses_are_trained_on_and_everything_is_logged(tmp_path: Path) -> None:
    runner = scripted(tmp_path, {}, **{"train_cfg.max_epochs": 1})
    runner.train()
    means = runner.train_loop.epoch_means()
    assert means["noted"] == pytest.approx(7.0)
    assert 0 < means["loss"] < 7


def test_the_position_is_saved_and_taken_up(tmp_path: Path) -> None:
    every = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=99)}
    plan = dict(refresh=dict(chunk=24, repeats=2))
    runner = scripted(tmp_path, plan, **every)
    runner.train()
    positions = []
    for i in range(1, 17):
        checkpoint = load_plain(tmp_path / f"iter_{i}.pth")
        loop = checkpoint["loop"]
        positions.append((checkpoint["meta"]["epoch"], loop["chunk"], loop["repeat"], loop["step"]))
        assert (loop["seed"], loop["refreshed"], loop["begun"]) == (3, True, True)
        assert loop["order"]["all"].shape == (2, 16)
    assert positions == [(e, c, r, s) for e in (0, 1) for c in (0, 1) for r in (0, 1) for s in (1, 2)]
    again = scripted(tmp_path / "again", plan, resume=True, load_from=str(tmp_path / "iter_5.pth"))
    again.train()
    assert again.model.head.events == runner.model.head.events[7:]  # two refreshes and five steps are behind it


def test_a_run_goes_on_with_the_seed_that_it_began_with(tmp_path: Path) -> None:
    whole = scripted(tmp_path / "whole", {})
    whole.train()
    half = str(tmp_path / "whole" / "epoch_1.pth")
    runner = scripted(tmp_path / "half", {}, resume=True, load_from=half, **{"randomness.seed": 4})
    runner.train()
    assert runner.train_loop.seed == runner.seed == 3
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, runner.model.state_dict()[name]), name


def test_weights_that_are_no_numbers_are_not_trained_on(tmp_path: Path) -> None:
    runner = scripted(tmp_path, {})
    with torch.no_grad():
        runner.model.head.classifier.bias.fill_(torch.nan)
    with pytest.raises(InputError, match=r"'head.classifier.bias' of the model is not finite before the first step"):
        runner.train()
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Plan(()), ["different names", "[]"]),
        (lambda: Plan((Stream("a", 16), Stream("a", 16))), ["different names", "['a', 'a']"]),
        (lambda: Plan((Stream("a", 16),), steps=0), ["at least 1 step", "not 0"]),
        (lambda: Stream("a", 0), ["'a'", "at least 1 row", "not 0"]),
        (lambda: Stream("a", 1, rows="some"), ["'a'", "rows='some'", "all, labelled"]),
        (lambda: Refresh(chunk=0), ["1 sample a chunk", "chunk=0"]),
        (lambda: Refresh(repeats=0), ["1 pass", "repeats=0"]),
        (lambda: Losses({}), ["to train on", "[]"]),
        (lambda: Losses({"loss": torch.zeros(())}, log={"loss": torch.zeros(())}), ["other names", "['loss']"]),
    ],
)
def test_what_cannot_be_written(make: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("streams", "words"),
    [
        ([dict(name="all", size=15)], ["'all'", "15", "2 ranks", "multiple of 2"]),
        ([dict(name="all", size=16, views=("trian",))], ["'trian'", "did you mean 'train'"]),
        ([dict(name="all", size=16)], ["'clasifier'", "not a module of Scripted", "did you mean 'classifier'"]),
        (
            [dict(name="all", size=16)],
            ["'classifier' of Scripted", "a Linear cannot be drawn anew", "reset(generator)"],
        ),
    ],
)
def test_plans_that_cannot_be_followed(streams: list[dict[str, Any]], words: list[str], tmp_path: Path) -> None:
    reset = [name for name in ("clasifier", "classifier") if words[0].startswith(f"'{name}'")]
    runner = scripted(tmp_path, dict(refresh=dict(reset=tuple(reset))), *streams)
    loop = runner.train_loop if not isinstance(runner.train_loop, dict) else runner.build_train_loop(runner.train_loop)
    with pytest.raises(InputError) as error:
        check_plan(runner.model.head.plan(0), runner.model, loop.data.views, 2)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"val_interval": 0}])
def test_numbers_of_epochs_are_positive(options: dict[str, int], tmp_path: Path) -> None:
    runner = scripted(tmp_path, {}, **{f"train_cfg.{k}": v for k, v in options.items()})
    with pytest.raises(InputError, match=r"max_epochs and val_interval must be at least 1, not .*\b0\b"):
        runner.train()


class Kill(Hook):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number = at, number

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("name", ["dc", "odc"])
def test_a_signal_saves_and_the_resumed_run_is_bitwise_the_same(
    name: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    whole = build_runner(config(name, str(tmp_path / "whole")))
    whole.train()
    before = signal.getsignal(number)
    runner = build_runner(config(name, str(tmp_path / "part")))
    runner.register_hook(Kill(4, number))
    with pytest.raises(SystemExit) as error:
        runner.train()
    assert error.value.code == code
    assert signal.getsignal(number) is before
    assert (tmp_path / "part" / "last_checkpoint").read_text() == "iter_5.pth"
    resumed = build_runner(config(name, str(tmp_path / "part"), resume=True))
    resumed.train()
    assert resumed.iter == whole.iter == 6
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())
    assert not differences(whole.optim_wrapper.state_dict(), resumed.optim_wrapper.state_dict())
    assert whole.val_loop.values == resumed.val_loop.values


def test_the_last_epoch_is_evaluated_whatever_the_interval(tmp_path: Path) -> None:
    runs: list[int] = []
    runner = build_runner(config("dc", str(tmp_path), **{"train_cfg.max_epochs": 3, "train_cfg.val_interval": 2}))

    class Note(Hook):
        def before_val(self, runner: Any) -> None:
            runs.append(runner.epoch)

    runner.register_hook(Note())
    runner.train()
    assert runs == [2, 3]
