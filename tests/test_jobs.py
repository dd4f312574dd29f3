"""Cells as jobs: on this machine, and on a Slurm that is three scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import submitit
from PIL import Image

from odc.cli import main
from odc.comparison import jobs
from odc.comparison.results import read_results

TWO = ["--methods", "kmeans-pixels", "gmm-pixels", "--seeds", "0"]
ONE = ["--methods", "kmeans-pixels", "--seeds", "0"]
COSTS = {"seconds", "peak_rss_mb"}
# A cluster of one machine. Its nodes have what its front end has, and its accounts are in a file.
SLURM = {
    "sbatch": """#!/bin/sh
script=$(cat "$1")
export SLURM_JOB_ID=$$ SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
[ -e "$(dirname "$0")/broken" ] || bash -c "$script" >/dev/null 2>&1 &
echo "Submitted batch job $$"
[ ! -e "$(dirname "$0")/broken" ] || printf 'JobID|State|NodeList\\n%s|TIMEOUT|n1\\n' $$ >"$(dirname "$0")/accounts"
""",
    "srun": """#!/bin/sh
while case "$1" in */python*) false ;; esac do shift; done
exec "$@"
""",
    "sacct": """#!/bin/sh
cat "$(dirname "$0")/accounts"
""",
}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return str(folder)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / "accounts").write_text("JobID|State|NodeList\n")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def compare(pictures: str, out: Path, *more: str, methods: list[str] = TWO) -> list[str]:
    return ["compare", *methods, "--dataset", pictures, "--clusters", "3", "--out", str(out), *more]


def found(out: Path) -> dict[Any, dict[str, Any]]:
    records = read_results(out)
    assert all(record.error is None for record in records.values()), records
    return {place: {k: v for k, v in r.values.items() if k not in COSTS} for place, r in records.items()}


@pytest.mark.slow
def test_jobs_find_what_processes_find(
    pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    update = submitit.AutoExecutor.update_parameters
    monkeypatch.setattr(
        submitit.AutoExecutor, "update_parameters", lambda self, **given: (asked.update(given), update(self, **given))
    )
    assert main(compare(pictures, tmp_path / "processes", "--jobs", "2")) == 0
    options = ["--executor-options", "partition=gpu", "gpus_per_node=0", "slurm_account=x"]
    assert main(compare(pictures, tmp_path / "jobs", "--executor", "local-jobs", *options)) == 0
    assert len(found(tmp_path / "jobs")) == 2
    assert found(tmp_path / "jobs") == found(tmp_path / "processes")
    assert asked == {
        "timeout_min": jobs.DAY,
        "slurm_partition": "gpu",
        "gpus_per_node": 0,
        "slurm_account": "x",
        "name": "gmm-pixels-0",
    }
    capsys.readouterr()
    assert main(compare(pictures, tmp_path / "jobs", "--executor", "local-jobs")) == 0
    assert "2 of 2 cells are there already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_comparison_finds_its_jobs_again(pictures: str, tmp_path: Path) -> None:
    argv = compare(pictures, tmp_path / "out", "--executor", "local-jobs", "--jobs", "2")
    process = subprocess.Popen([sys.executable, "-m", "odc.cli", *argv], stdout=subprocess.DEVNULL)
    folder = tmp_path / "out" / "jobs"
    while len(list(folder.glob("*.local"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not read_results(tmp_path / "out")
    assert main(argv) == 0
    assert len(found(tmp_path / "out")) == 2
    assert len(list(folder.glob("*_submitted.pkl"))) == 2, "none was started twice"
    assert not list(folder.glob("*.local"))


def test_slurm_gets_what_was_asked_for(pictures: str, tmp_path: Path, slurm: Path) -> None:
    options = ["--executor-options", "partition=gpu", "gpus_per_node=1", "cpus_per_task=2", "timeout_min=60"]
    argv = compare(pictures, tmp_path / "out", "--executor", "slurm", *options, methods=ONE)
    assert main(argv) == 0
    ((_, record),) = read_results(tmp_path / "out").items()
    assert record.error is None
    assert record.threads == 2
    (script,) = (tmp_path / "out" / "jobs").glob("*_submission.sh")
    lines = script.read_text().splitlines()
    for line in ("partition=gpu", "gpus-per-node=1", "cpus-per-task=2", "time=60", "job-name=kmeans-pixels-0"):
        assert f"#SBATCH --{line}" in lines


def test_a_job_that_slurm_ended_is_a_failed_cell(
    pictures: str, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    (slurm / "broken").touch()
    assert main(compare(pictures, tmp_path / "out", "--executor", "slurm", methods=ONE)) == 1
    (record,) = read_results(tmp_path / "out").values()
    assert record.error is not None
    assert "ended without a result (timeout)" in record.error


def test_an_interrupted_comparison_says_which_jobs_go_on(
    pictures: str, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "broken").touch()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.Jobs, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(compare(pictures, tmp_path / "out", "--executor", "slurm", methods=ONE))
    (note,) = (tmp_path / "out" / "jobs").glob("*.slurm")
    assert f"scancel {note.read_text()}" in capsys.readouterr().out


def test_a_node_without_bfloat16_refuses_what_was_planned_in_it(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    argv = ["compare", "--methods", "dc", "--seeds", "0", "--cfg-options", "precision=auto", "--out", str(tmp_path)]
    assert main([*argv, "--executor", "slurm"]) == 1
    (record,) = read_results(tmp_path).values()
    assert record.precision == "bfloat16"
    assert record.error is not None
    assert "cannot train in bfloat16: ODC_BFLOAT16=0 forbids it" in record.error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--executor", "local-jobs", "--executor-options", "partitoin=gpu"], "has no 'partitoin'; did you mean"),
        (["--executor", "local-jobs", "--executor-options", "nodes=2"], "has no 'nodes'"),
        (["--executor", "local-jobs", "--executor-options", "timeout_min=long"], "timeout_min"),
        (["--executor-options", "partition=gpu"], "add --executor slurm"),
        (["--executor", "slurm"], 'Could not detect "srun"'),
    ],
)
def test_what_is_wrong_is_one_line(
    more: list[str], words: str, pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compare(pictures, tmp_path / "out", *more)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line


def test_without_submitit_one_reads_how_to_get_it(
    pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(compare(pictures, tmp_path / "out", "--executor", "slurm")) == 2
    assert "online-deep-clustering[slurm]" in capsys.readouterr().err
