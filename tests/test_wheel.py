"""The package as people install it: a wheel, in an environment and a folder without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the commands of an environment in which the wheel is installed."""
    # Built from a copy: setuptools would put what an earlier build has left in build/ into the wheel, too.
    source = tmp_path_factory.mktemp("source")
    for name in ("odc", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = source / "wheels"
    call([*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(wheels)], source)
    (wheel,) = wheels.glob("*.whl")
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    bin_ = environment / "bin"
    call([*pip, "--python", str(bin_ / "python"), "install", "--no-deps", "--no-index", str(wheel)], source)
    (packages,) = environment.glob("lib/*/site-packages")
    # What the wheel depends on. The files .pth there, one of which may lead to the checkout, do not count here.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return bin_


def call(command: list[str], folder: Path) -> str:
    """Run a command in a folder, without the path of this process; return what it prints."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_code_and_the_configs_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import sys, odc; print(odc.__file__, *sys.path, sep='\\n')"
    file, *path = call([str(installed / "python"), "-c", code], tmp_path).splitlines()
    package = Path(file).parent
    assert package.is_relative_to(installed.parent)
    assert not {str(ROOT), str(ROOT / "odc")} & set(path)
    for here, there in ((ROOT / "odc", package), (ROOT / "configs", package / "configs")):
        for one in here.rglob("*.*"):
            assert one.suffix == ".pyc" or (there / one.relative_to(here)).is_file(), f"the wheel lacks {one}"
    printed = call([str(installed / "odc"), "print-config", "odc_convnet_1xb64-30e_digits"], tmp_path)
    assert "type='ODCHead'" in printed
    assert "type='Digits'" in printed, "from _base_"


@pytest.mark.slow
def test_it_trains_and_compares_by_name(installed: Path, tmp_path: Path) -> None:
    options = ["--cfg-options", "train_cfg.max_epochs=1", "model.head.batch_size=512"]
    call([str(installed / "odc"), "train", "odc_convnet_1xb64-30e_digits", *options], tmp_path)
    assert (tmp_path / "work_dirs/odc_convnet_1xb64-30e_digits/clusters.csv").is_file()
    methods = ["--methods", "kmeans-pixels", "odc", "--seeds", "0", *options]
    told = call([str(installed / "odc"), "compare", *methods, "--out", "compared"], tmp_path)
    assert "kmeans-pixels" in told
    records = [json.loads(line) for line in (tmp_path / "compared/results.jsonl").read_text().splitlines()]
    assert {r["config"] for r in records} == {"", "odc/configs/odc/odc_convnet_1xb64-30e_digits.py"}
    assert {r["git_revision"] for r in records} == {""}, "the environment is in no checkout of this project"
    assert (tmp_path / "compared/report.html").is_file()
