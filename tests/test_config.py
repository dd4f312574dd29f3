"""Configs: read, overridden, and what they import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_runner import one_line

import odc
from odc.apis import prepare_config
from odc.config import configs_folder, find_config, load_config, override, parse_config
from odc.errors import InputError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("base", [True, False])
def test_a_classic_config_may_import_and_call(tmp_path: Path, base: bool) -> None:
    write(tmp_path / "base.py", "lr = 1\n")
    text = (
        "import os.path as osp\nimport numpy as np\nx = osp.join('a', str(int(np.prod([2, 3]))))\nmodel = dict(k=1)\n"
    )
    path = write(tmp_path / "c.py", text + ("_base_ = ['base.py']\n" if base else ""))
    config = load_config(path, {"model.j": 5})
    assert (config.x, config.model.k, config.model.j, config.get("lr")) == ("a/6", 1, 5, 1 if base else None)


@pytest.mark.parametrize(("wrong", "right"), [("odc/r50.py", "odc/r50x.py"), ("odcc/r50x.py", "odc")])
def test_a_missing_config_suggests_the_nearest(tmp_path: Path, wrong: str, right: str) -> None:
    write(tmp_path / "odc" / "r50x.py", "")
    with pytest.raises(InputError) as error:
        load_config(tmp_path / wrong)
    assert f"did you mean '{tmp_path / right}'" in one_line(error)
    with pytest.raises(InputError, match="nothing like it"):
        load_config(tmp_path / "odc" / "qqqqqqqqqqqqqqqq")


def test_a_syntax_error_names_file_and_line_even_in_a_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base.py", "a = 1\nb = (\n")
    for path in (base, write(tmp_path / "c.py", "_base_ = 'base.py'\n")):
        with pytest.raises(InputError) as error:
            load_config(path)
        assert str(base) in one_line(error)
        assert "line 2" in one_line(error)


@pytest.mark.parametrize("text", ["a = undefined_name", "_base_ = 'missing.py'"])
def test_a_config_that_cannot_be_run_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"undefined_name|missing\.py") as error:
        load_config(write(tmp_path / "c.py", text))
    assert "c.py" in one_line(error)


def test_an_override_without_a_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place for the overrides") as error:
        load_config(write(tmp_path / "c.py", "a = [1]\nb = 3\n"), {"a.7": 1})
    one_line(error)


@pytest.mark.usefixtures("clean_imports")
def test_custom_modules_are_found_beside_the_config_and_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    write(tmp_path / "cwd" / "custom_cwd_head.py", "NAME = 'cwd'\n")
    write(tmp_path / "configs" / "custom_near_head.py", "NAME = 'near'\n")
    imports = "custom_imports = dict(imports=['custom_near_head', 'custom_cwd_head'])\n"
    load_config(write(tmp_path / "configs" / "c.py", imports))
    assert sys.modules["custom_near_head"].NAME == "near"
    assert sys.modules["custom_cwd_head"].NAME == "cwd"
    assert str(tmp_path / "configs") in sys.path  # for worker processes, which import by name
    assert str(tmp_path / "cwd") in sys.path
    load_config(write(tmp_path / "configs" / "d.py", ""), {"custom_imports": {"imports": "custom_near_head"}})


@pytest.mark.usefixtures("clean_imports")
def test_a_failed_custom_import_says_why(tmp_path: Path, warned: list[str]) -> None:
    write(tmp_path / "custom_broken.py", "x = 1\nimport not_there_at_all\n")
    write(tmp_path / "custom_syntax.py", "x = 1\ny = (\n")
    for name, reason in (
        ("custom_absent", "put it next to the config"),
        ("custom_broken", r"No module named 'not_there_at_all' \(.*custom_broken.py, line 2\)"),
        ("custom_syntax", r"SyntaxError: .*custom_syntax.py, line 2"),
    ):
        path = write(tmp_path / "c.py", f"custom_imports = dict(imports=['{name}'])\n")
        with pytest.raises(InputError, match=reason) as error:
            load_config(path)
        assert f"cannot import '{name}'" in one_line(error)
    write(path, "custom_imports = dict(imports=['custom_absent'], allow_failed_imports=True)\n")
    load_config(path)
    assert len(warned) == 1


DIGITS = "odc_convnet_1xb64-30e_digits"


@pytest.mark.parametrize("name", [DIGITS, f"{DIGITS}.py", f"odc/{DIGITS}", f"configs/odc/{DIGITS}.py"])
def test_a_config_of_the_package_is_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == configs_folder() / "odc" / f"{DIGITS}.py"
    assert prepare_config(name).work_dir == f"work_dirs/{DIGITS}"
    own = write(tmp_path / name, "")
    assert find_config(name) == Path(name), "a file that is there wins"
    own.unlink()


def test_configs_of_an_installed_package_lie_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odc, "__file__", str(tmp_path / "odc" / "__init__.py"))
    write(tmp_path / "configs" / "other.py", "")
    inside = write(tmp_path / "odc" / "configs" / "a" / "mine.py", "")
    assert find_config("mine") == inside
    with pytest.raises(InputError, match="'other' does not exist"):
        find_config("other")


def test_a_name_of_no_config_or_of_several_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"did you mean '{DIGITS}'") as error:
        find_config(DIGITS[:-1])
    one_line(error)
    with pytest.raises(InputError, match=r"'_base_/datasets/digits.py' and 'comparisons/digits.py'") as error:
        find_config("digits")
    one_line(error)


def test_options_leave_the_parsed_config_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "read_once.py", "model = dict(k=1, l=[dict(a=1)])\n")
    parsed = parse_config(tmp_path / "read_once.py")
    (tmp_path / "read_once.py").unlink()
    changed = override(parsed, {"model.k": 5, "model.l.0.a": 7})
    assert (changed.model.k, changed.model.l, changed.filename) == (5, [{"a": 7}], parsed.filename)
    assert (parsed.model.k, parsed.model.l) == (1, [{"a": 1}])
    digits = parse_config(DIGITS)
    assert prepare_config(digits, cfg_options={"train_cfg.max_epochs": 2}, seed=4).train_cfg.max_epochs == 2
    assert digits.to_dict() == parse_config(DIGITS).to_dict()


def test_a_config_is_read_without_torch() -> None:
    code = (
        f"import sys; from odc.config import parse_config; parse_config('{DIGITS}'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
