"""How a budget becomes epochs, by a clock that is moved by hand; and logs that stand aside."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.logging import print_log

from odc.errors import InputError
from odc.folder.clock import Clock, Step
from odc.folder.running import Watch, aside, check_fixed, keep_time, used_before


class Hands:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Said(io.StringIO):
    """Passes on what is said for good, but not the progress."""

    def write(self, text: str) -> int:
        if not text.startswith("["):
            print(text, end="")
        return len(text)


def trained(hands: Hands, budget: float | None, epochs: int, seconds: float, steps: int = 10) -> tuple[int, float]:
    """Train with a clock: return the epochs that were made, and the seconds of the whole."""
    clock = Clock([Step("moco", "MoCo", 50, trains=True), Step("page", "page", 20.0)], Said(), budget, now=hands)
    watch, began = Watch(clock, lambda: None), hands.now
    loop = SimpleNamespace(max_epochs=epochs, progress=0.0, evaluated=False)
    hub = SimpleNamespace(runtime_info={"preflight": {"excess": 0.1}})
    runner: Any = SimpleNamespace(train_loop=loop, epoch=0, message_hub=hub)
    clock.begin("moco")
    watch.before_train(runner)
    while runner.epoch < loop.max_epochs:
        for step in range(steps):
            hands.now += seconds / steps
            loop.progress = (runner.epoch + (step + 1) / steps) / loop.max_epochs
            watch.after_train_iter(runner)
        watch.after_train_epoch(runner)
        runner.epoch += 1
    watch.after_train(runner)
    assert list(watch.remarks) == [
        "the features are near chance, so the clusters may say little: more pictures, or --features"
    ]
    return runner.epoch, hands.now - began


def test_a_long_training_is_told_once_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(Hands(), None, 3, 100)[0] == 3
    assert capsys.readouterr().out == ""
    assert trained(Hands(), None, 30, 100)[0] == 30
    assert capsys.readouterr().out == (
        "measured: MoCo takes about 49 min here, 30 epochs of 2 min; Ctrl-C stops it, the same command goes on; "
        "--budget 30m, in another --out, makes it shorter\n"
    )


def test_without_a_budget_all_epochs_are_made() -> None:
    assert trained(Hands(), None, 30, 10) == (30, 300)


def test_a_budget_gets_as_many_epochs_as_fit_less_what_follows() -> None:
    epochs, taken = trained(Hands(), 120.0, 30, 10)
    assert epochs == 10
    assert taken == pytest.approx(100)


def test_a_budget_is_no_reason_to_train_longer() -> None:
    assert trained(Hands(), 10_000, 3, 10)[0] == 3


def test_an_epoch_that_does_not_fit_is_refused_within_its_first_steps() -> None:
    hands = Hands()
    with pytest.raises(InputError, match="an epoch of MoCo takes about 17 min here, and --budget leaves it"):
        trained(hands, 120.0, 30, 1000, steps=200)
    assert hands.now < 1030


def test_a_step_that_cannot_be_shorter_is_refused_soon() -> None:
    hands = Hands()
    clock = Clock([Step("features", "features", 10), Step("page", "page", 20.0)], None, 60.0, now=hands)
    clock.begin("features")
    clock.at(0.0)
    hands.now += 4
    clock.at(0.05)
    check_fixed(clock, 100)  # too early to say
    hands.now += 4
    clock.at(0.1)
    with pytest.raises(InputError, match="features of 100 pictures, and what follows, takes about 2 min"):
        check_fixed(clock, 100)
    clock.budget = 100
    check_fixed(clock, 100)


def test_the_time_of_earlier_calls_counts(tmp_path: Path) -> None:
    hands = Hands()
    assert used_before(tmp_path) == 0
    clock = Clock([], None, used=5, now=hands)
    hands.now += 7
    keep_time(tmp_path, clock)
    assert used_before(tmp_path) == 12


def test_logs_stand_aside_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.txt"
    with aside(file):
        print("printed")
        print("a warning", file=sys.stderr)
        print_log("logged", "current", logging.WARNING)
    assert capsys.readouterr() == ("", "")
    text = file.read_text()
    assert "printed" in text
    assert "a warning" in text
    assert "logged" in text
    print_log("afterwards", "current", logging.WARNING)
    assert "afterwards" in "".join(capsys.readouterr())
    assert "afterwards" not in file.read_text()
