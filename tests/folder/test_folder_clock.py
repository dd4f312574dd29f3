"""The line of progress, the time left, and the budget, by a clock that stands still until it is moved."""

from __future__ import annotations

import io

import pytest

from odc.errors import InputError
from odc.folder.clock import Clock, Step, seconds_of, told


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def clock(hands: Hands, budget: float | None = None, used: float = 0.0, stream: io.StringIO | None = None) -> Clock:
    steps = [Step("a", "reading", 10.0), Step("b", "training", 60.0, trains=True), Step("c", "more", 30.0, trains=True)]
    return Clock([*steps, Step("d", "page", 5.0)], stream, budget, used, hands)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), (" 2m30s ", 150)]
)
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "m", "-5m", "1d", "30m1h"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="90s, 10m or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (40, "40 s"), (89, "89 s"), (90, "2 min"), (5360, "89 min"), (7500, "2 h 5 min")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert told(seconds) == text


def test_the_time_left_is_guessed_and_then_measured() -> None:
    hands = Hands()
    one = clock(hands)
    one.begin("a")
    assert one.left() == 105
    hands.now += 4
    assert one.left() == 101, "the guess, less what is gone"
    one.at(0.0)
    hands.now += 5
    one.at(0.5)
    assert one.left() == 5 + 95, "half in five seconds"
    one.begin("c")
    assert one.left() == 35
    assert [step.done for step in one.steps] == [True, True, False, False]


def test_what_an_earlier_call_has_done_does_not_count_as_speed() -> None:
    hands = Hands()
    one = clock(hands)
    one.begin("b")
    one.at(0.8)
    hands.now += 10
    one.at(0.9)
    assert one.of_step() == pytest.approx(10)


def test_trainings_share_what_the_rest_leaves_of_a_budget() -> None:
    hands = Hands()
    one = clock(hands, budget=95, used=15)
    one.begin("a")
    hands.now += 15
    one.begin("b")
    assert one.available() == pytest.approx((95 - 30 - 5) * 60 / 90), "two thirds of what is left but for the page"
    hands.now += 50
    one.begin("c")
    assert one.available() == pytest.approx(95 - 80 - 5)
    assert one.used == 80
    assert clock(hands).available() is None


def test_a_file_gets_a_line_when_a_step_begins_and_every_half_minute() -> None:
    hands, stream = Hands(), io.StringIO()
    one = clock(hands, stream=stream)
    one.begin("a")
    for share in (0.1, 0.2, 0.3):
        hands.now += 11
        one.at(share)
    one.say("a line with \x1b[2J")
    assert stream.getvalue().split("\n") == [
        "[1/4] reading  about 0:01:45 left",
        "[1/4] reading  30%  about 0:02:52 left",
        r"a line with \x1b[2J",
        "",
    ]


def test_a_terminal_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    hands, stream = Hands(), io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    one = clock(hands, stream=stream)
    one.begin("a")
    one.at(0.0)
    hands.now += 1
    one.at(0.5)
    one.clear()
    lines = stream.getvalue().split("\r\033[K")
    assert all(len(line) <= 29 and "\n" not in line for line in lines)
    assert lines[-1] == ""
    assert len(lines) >= 3
