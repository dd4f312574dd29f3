"""The help of every command: a screen, and an example that the command takes."""

from __future__ import annotations

import shlex

import pytest

from odc.cli import main
from odc.cli.arguments import Command, arg, flag, group
from odc.cli.help import WIDTH, build_parser
from odc.cli.main import COMMANDS, GROUPS

LINES = 40  # of a screen


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a call that ends in the parser."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    printed = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, printed.out, printed.err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@pytest.mark.parametrize("columns", ["60", "300"])  # of the terminal, which changes nothing
def test_help_fits_a_screen(
    columns: str, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = told(capsys, command.name, "--help")
    lines = out.rstrip("\n").split("\n")
    assert code == 0
    assert len(lines) <= LINES, f"the help of odc {command.name} has {len(lines)} lines"
    assert [line for line in lines if len(line) > WIDTH] == []
    assert lines[-1].strip() == command.example
    assert out.startswith(f"usage: odc {command.name} ")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_example_is_one(command: Command) -> None:
    program, *argv = shlex.split(command.example)
    assert program == "odc"
    assert build_parser(GROUPS).parse_args(argv).run is command.run
    for name, options in command.arguments:
        assert options["help"], f"{name} of odc {command.name} is not explained"


def test_the_overview_lists_all_commands_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "--help")
    assert code == 0
    code, nothing, err = told(capsys)
    assert (code, nothing, err) == (2, "", out)
    places = [out.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    for command in COMMANDS:
        assert f"\n  {command.name} " in out
    assert len(out.splitlines()) <= LINES
    assert max(map(len, out.splitlines())) <= WIDTH


def test_usage_names_what_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        arg("folder", "images"),
        *group(
            "where", arg("--out -o", "folder", metavar="DIR", required=True), arg("--sizes", "%%", nargs="+", type=int)
        ),
        flag("--json", "for programs"),
    )
    parser = build_parser({"one": (Command("sort", "Sort.", lambda args: 0, arguments, "odc sort x --out y"),)})
    with pytest.raises(SystemExit):
        parser.parse_args(["sort", "--help"])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "usage: odc sort FOLDER --out DIR [options]"
    assert "\nwhere:\n  --out DIR, -o DIR " in out or "\nwhere:\n  --out, -o DIR " in out
    assert "--sizes N ... " in out


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "trian")
    assert code == 2
    assert err.startswith("usage: odc COMMAND ...\nodc: error: ")
    assert "train" in err
