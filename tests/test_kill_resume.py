"""SIGKILL loses nothing but the steps since the last checkpoint: the resumed run ends bitwise the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_heads import config
from test_conformance import differences

from odc.apis import build_runner
from odc.checkpoints import load_plain

ROOT = Path(__file__).parent.parent
EPOCHS = 6


def environment() -> dict[str, str]:
    search = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    threads = str(torch.get_num_threads())  # those of this process: another number rounds otherwise
    more = {"PYTHONPATH": search, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return {**os.environ, **more}


def same(a: Path, b: Path) -> list[str]:
    """Return what differs between two checkpoints: weights, memory, labels, optimiser, position."""
    one, two = load_plain(a), load_plain(b)
    return [d for key in ("state_dict", "optimizer", "loop") for d in differences(one[key], two[key], key)]


def test_a_killed_training_resumes_bitwise(tmp_path: Path) -> None:
    """The short form: a small head, killed once between two steps."""
    options = {"train_cfg.max_epochs": 20, "default_hooks.checkpoint.max_keep_ckpts": 2, "train_cfg.val_interval": 20}
    whole = build_runner(config("odc", str(tmp_path / "whole"), **options))
    whole.train()
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), "odc", str(tmp_path / "part")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 3 * 5 + 1:  # in the sixth epoch
                process.kill()
                break
    assert process.returncode == -9, "it ended before it was killed"
    checkpoint = load_plain(tmp_path / "part" / (tmp_path / "part" / "last_checkpoint").read_text())
    assert 5 <= checkpoint["meta"]["epoch"] < 20
    resumed = build_runner(config("odc", str(tmp_path / "part"), resume=True, **options))
    resumed.train()
    assert not same(tmp_path / "whole" / "epoch_20.pth", tmp_path / "part" / "epoch_20.pth")
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["deepcluster", "odc"])
def test_digits_killed_at_random_moments(method: str, workers: int, tmp_path: Path) -> None:
    (path,) = (ROOT / "configs" / method).glob("*digits.py")
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(path)]
    options = ["--cfg-options", f"train_cfg.max_epochs={EPOCHS}", f"data.num_workers={workers}"]

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        argv = [*command, "--work-dir", str(tmp_path / name), *more, *options]
        return subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    whole = start("whole")
    out, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, out.decode()
    seed = int.from_bytes(os.urandom(4), "little")
    moments = random.Random(seed)
    print(f"moments drawn from {seed}")
    kills = 0
    for after in (2, 3):  # epochs that are saved before the kill
        process = start("part", *(["--resume"] if kills else []))
        while not list((tmp_path / "part").glob(f"epoch_{after}.pth")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    assert kills, "it was too fast for every kill"
    again = start("part", "--resume")
    out, _ = again.communicate(timeout=600)
    assert again.returncode == 0, out.decode()
    assert not same(tmp_path / "whole" / f"epoch_{EPOCHS}.pth", tmp_path / "part" / f"epoch_{EPOCHS}.pth")
    for name in ("clusters.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
