"""A training keeps its own modules beside its config: the folder can go elsewhere, and is what it was."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_heads import config

from odc.cli import main
from odc.config.modules import hash_of, own_modules
from odc.errors import InputError

HEAD = """
from odc.heads import DeepClusterHead
from odc.registry import HEADS
from their_helper import NAME
from their_package import of


@HEADS.register_module(force=True)
class Theirs(DeepClusterHead):
    said = NAME
"""
SMALL = {"train_cfg.max_epochs": 1, "model.head.type": "Theirs"}


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("their_")]:
        del sys.modules[name]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that changes to another folder, in which nothing is imported yet."""
    path = list(sys.path)

    def go(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        sys.path[:] = path
        forget()

    yield go
    sys.path[:] = path
    forget()


def write(folder: Path, said: str = "first") -> None:
    cfg = config("dc", "unused", **SMALL).to_dict()
    del cfg["work_dir"]
    cfg["log_level"] = "INFO"
    lines = ["custom_imports = dict(imports=['small_heads', 'their_head'])", *(f"{k} = {v!r}" for k, v in cfg.items())]
    (folder / "small.py").write_text("\n".join(lines) + "\n")
    (folder / "their_head.py").write_text(HEAD)
    (folder / "their_helper.py").write_text(f"NAME = {said!r}\n")
    package = folder / "their_package"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("from .of import here as of\n")
    (package / "of.py").write_text("here = 1\n")


def test_a_work_directory_moves_with_its_modules(
    elsewhere: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere("home")
    write(Path.cwd())
    assert main(["train", "small.py", "--work-dir", "run"]) == 0
    told = capsys.readouterr().out
    assert f"their_head.py (SHA-256 {hash_of(HEAD.encode())})" in told
    kept = {p.relative_to("run").as_posix() for p in Path("run").rglob("*.py") if "vis_data" not in p.parts}
    assert kept == {
        *("small.py", "small_heads.py", "their_head.py", "their_helper.py"),
        *("their_package/__init__.py", "their_package/of.py"),
    }
    shutil.move(str(tmp_path / "home" / "run"), tmp_path / "moved")
    shutil.rmtree(tmp_path / "home")

    elsewhere("other")
    assert main(["test", "../moved/small.py", "../moved/epoch_1.pth", "--out", "out"]) == 0
    assert (Path("out") / "clusters.csv").read_bytes() == (tmp_path / "moved" / "clusters.csv").read_bytes()
    assert main(["train", "../moved/small.py", "--work-dir", "../moved", "--resume"]) == 0
    assert not list((tmp_path / "moved").glob("*.py.*")), "they are there already"


def test_a_module_that_has_changed(elsewhere: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere("home")
    write(Path.cwd())
    assert main(["train", "small.py", "--work-dir", "run"]) == 0
    write(Path.cwd(), said="second")
    first, second = (hash_of(f"NAME = {said!r}\n".encode()) for said in ("first", "second"))

    elsewhere("home")
    capsys.readouterr()
    assert main(["test", "run/small.py", "run/epoch_1.pth"]) == 0
    assert sys.modules["their_head"].Theirs.said == "first", "what lies beside the config"

    elsewhere("home")
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    (Path.cwd() / "their_head.py").write_text(f"# another\n{HEAD}")
    assert main(["test", "run/small.py", "run/epoch_1.pth"]) == 0
    warned = capsys.readouterr()
    assert "'their_head' is" in warned.out + warned.err
    assert f"not run/their_head.py ({hash_of(HEAD.encode())})" in warned.out + warned.err

    elsewhere("home")
    (Path.cwd() / "their_head.py").write_text(HEAD)
    assert main(["train", "small.py", "--work-dir", "run", "--resume"]) == 0
    warned = capsys.readouterr()
    line = f"their_helper.py has changed since the training began (SHA-256 {first}, now {second})"
    assert line in warned.out + warned.err
    assert (Path("run") / f"their_helper.py.{first}").read_text() == "NAME = 'first'\n"
    assert (Path("run") / "their_helper.py").read_text() == "NAME = 'second'\n"


def test_a_new_training_sets_the_former_modules_aside(elsewhere: Callable[[str], None]) -> None:
    elsewhere("home")
    write(Path.cwd())
    assert main(["train", "small.py", "--work-dir", "run"]) == 0
    write(Path.cwd(), said="second")
    elsewhere("home")
    assert main(["train", "small.py", "--work-dir", "run"]) == 0
    assert (Path("run") / "earlier-1" / "their_helper.py").read_text() == "NAME = 'first'\n"
    assert (Path("run") / "earlier-1" / "their_package" / "of.py").is_file()
    assert (Path("run") / "their_helper.py").read_text() == "NAME = 'second'\n"
    assert not list(Path("run").glob("*.py.*"))


def test_which_modules_are_ones_own(elsewhere: Callable[[str], None]) -> None:
    elsewhere("home")
    write(Path.cwd())
    sys.path.append(str(Path.cwd()))
    assert own_modules(None) == {}
    assert own_modules({"imports": ["torch", "json", "odc.heads", "not_there", "sys"]}) == {}
    found = own_modules({"imports": "their_package.of"})
    assert list(found) == ["their_package/__init__.py", "their_package/of.py"]
    for i in range(1001):
        (Path("their_package") / f"m{i}.py").write_text("")
    with pytest.raises(InputError, match="'their_package' has more than 1,000 files"):
        own_modules({"imports": ["their_package"]})
