"""What the doctor says of machines, folders and configs, and when that is a problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from odc.apis import prepare_config
from odc.cli import main
from odc.config import find_config
from odc.data.datasets import build_dataset
from odc.doctor import Finding, machine, told
from odc.doctor.findings import ADVICE, OK, PROBLEM, duration, size
from odc.doctor.plans import clusters, fits
from odc.doctor.timing import measure

DIGITS, MOCO = "odc_convnet_1xb64-30e_digits", "moco_convnet_1xb64-100e_digits"


def test_two_packages_of_faiss_are_a_problem() -> None:
    found = machine.faiss_packages({"faiss-cpu", "faiss-gpu-cu12", "numpy"})
    assert found.status == PROBLEM
    assert "pip uninstall faiss-cpu faiss-gpu-cu12" in found.remedy
    assert machine.faiss_packages({"faiss-cpu", "numpy"}).status != PROBLEM


def test_another_package_of_the_name_is_a_problem() -> None:
    assert machine.namesakes(["Online_Deep_Clustering"]).status == OK
    found = machine.namesakes(["odc-geo", "online-deep-clustering"])
    assert (found.status, "odc-geo put modules" in found.found) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "broken", "status"),
    [
        ("2.15.0+cu132", "0.29.2+cu132", None, OK),
        ("2.15.0", "0.29.2+cpu", None, OK),
        ("2.15.0+cpu", "0.29.2+cu132", None, PROBLEM),
        ("2.15.0", "0.20.0", "operator torchvision::nms does not exist", PROBLEM),
    ],
)
def test_torchvision_must_be_that_of_torch(
    torch_version: str, vision_version: str, broken: str | None, status: str
) -> None:
    assert machine.matched(torch_version, vision_version, broken).status == status


@pytest.mark.parametrize(
    ("prefixes", "status"),
    [(["libgomp", "libgomp"], OK), (["libgomp", "libiomp"], ADVICE), (["libiomp", "libomp"], PROBLEM), ([], OK)],
)
def test_openmp_libraries_that_meet(prefixes: list[str], status: str) -> None:
    pools: list[dict[str, Any]] = [{"user_api": "openmp", "prefix": prefix} for prefix in prefixes]
    pools.append({"user_api": "blas", "prefix": "libopenblas", "internal_api": "openblas", "version": "0.3"})
    found = machine.runtimes(pools)
    assert found.status == status
    assert "BLAS openblas 0.3" in found.found


@pytest.mark.parametrize(
    ("number", "cores", "status", "remedy"),
    [
        (2, 2.0, OK, ""),
        (1, 2.0, OK, ""),
        (1, 16.0, ADVICE, "OMP_NUM_THREADS=16"),
        (8, 1.5, ADVICE, "OMP_NUM_THREADS=2"),
    ],
)
def test_threads_and_cores(number: int, cores: float, status: str, remedy: str) -> None:
    found = machine.threads(number, cores)
    assert (found.status, found.remedy) == (status, remedy)


def test_other_programs_are_told_of() -> None:
    assert machine.load(2.9, 2.0).status == OK
    assert machine.load(3.1, 2.0).status == ADVICE


def test_memory_and_cores_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8388608 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.free_memory() == 2**33
    assert machine.memory().status == OK
    (tmp_path / "memory.max").write_text(f"{2**32}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    assert machine.free_memory() == 2**30
    assert machine.memory().status == PROBLEM
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() == 2**33
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.cores() == 0.5


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert f"free at {tmp_path}" in machine.disk(tmp_path / "a" / "b").found


def test_this_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == int(any(finding["status"] == PROBLEM for finding in found))
    assert len({finding["name"] for finding in found}) == len(found) == 12
    assert {finding["name"]: finding["status"] for finding in found}["FAISS"] != PROBLEM
    assert found[0].keys() == {"name", "status", "found", "remedy"}


def test_a_problem_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "odc.doctor.look_at_machine", lambda: [Finding("FAISS", PROBLEM, "broken", "install it"), Finding("a", OK, "b")]
    )
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "problem FAISS  broken: install it\nok      a      b\n\n1 problem, no advice\n"


def test_clusters_and_images() -> None:
    assert clusters(100, 10).status == OK
    assert clusters(99, 10).status == ADVICE
    assert clusters(9, 10).status == PROBLEM


def test_numbers_as_a_person_reads_them() -> None:
    assert [size(n) for n in (10, 2048, 3 * 2**20, 1.5 * 2**30)] == ["10 B", "2 KiB", "3 MiB", "1.5 GiB"]
    assert [duration(n) for n in (89, 91, 5400)] == ["89 s", "2 min", "1.5 h"]


def test_a_queue_that_does_not_fit_has_a_remedy() -> None:
    config = prepare_config(find_config(MOCO), cfg_options={"model.head.queue_size": 4096})
    (queue, batch) = fits(config, 1797)
    assert (queue.name, queue.status, batch.name) == ("queue", PROBLEM, "batch")
    assert queue.remedy.startswith("--cfg-options model.head.queue_size=")
    fitting = dict([queue.remedy.split()[1].split("=")])
    assert all(
        f.status == OK
        for f in fits(prepare_config(find_config(MOCO), cfg_options={k: int(v) for k, v in fitting.items()}), 1797)
    )
    assert {f.status for f in fits(prepare_config(find_config(DIGITS)), 40)} == {ADVICE}  # 4 a cluster, batches of 64


def test_steps_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.doctor.timing._STEPS", 8)
    config = prepare_config(find_config(DIGITS), cfg_options={"train_cfg.max_epochs": 3})
    before = config.to_dict()
    found = measure(config, build_dataset(config.data.dataset))
    assert (found.epochs, found.steps) == (3, 3 * 29)  # of 1,797 images, 64 a step
    assert 0 < found.steps * found.step < found.seconds
    assert config.to_dict() == before
    assert found.rows % (2 * 4 * 1797) == 0


def test_a_folder_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    assert main(["doctor", str(tmp_path), "-k", "3"]) == 0
    printed = capsys.readouterr().out
    assert "12 pictures, colour, 20 pixels on the shorter side" in printed
    assert "advice  clusters" in printed
    assert f"odc cluster {tmp_path} -k 3 takes about" in printed
    assert main(["doctor", str(tmp_path), "-k", "13"]) == 1
    assert "problem clusters" in capsys.readouterr().out
    assert main(["doctor", "no_such_config"]) == 2


def test_findings_are_lined_up() -> None:
    lines = told([Finding("a", OK, "b"), Finding("long", ADVICE, "c", "d")]).splitlines()
    assert lines == ["ok      a     b", "advice  long  c: d", "", "no problems, 1 advice"]
