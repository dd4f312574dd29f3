"""What a training computes in: bfloat16 where it is asked for and the machine has it, and what is said where not."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import config
from test_conformance import differences
from torch import Tensor, nn

from odc.apis import build_runner, prepare_config, train
from odc.checkpoints import load_plain
from odc.comparison.plan import Cell, Request, plan
from odc.engine import precision as machine
from odc.engine.precision import settle_precision
from odc.errors import InputError
from odc.structures import Losses

ROOT = Path(__file__).parent.parent
MOCO = ROOT / "configs/moco/moco_convnet_1xb64-100e_digits.py"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ODC_BFLOAT16", raising=False)
    monkeypatch.setattr(machine, "_told", set())


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine pass for one with bfloat16: where it is emulated, it is slow, but small nets are small."""
    monkeypatch.setattr(machine, "_cpu_has_bfloat16", lambda: True)


def trained(folder: Path, precision: str | None, **options: Any) -> Any:
    cfg = config("dc", str(folder), precision=precision, log_level="INFO", **options)
    runner = build_runner(cfg)
    runner.train()
    return runner


def warnings_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split("WARNING - ")[1] for line in capsys.readouterr().out.splitlines() if "WARNING" in line]


# -- the machine -----------------------------------------------------------------------------------------------------


def test_forbidden_by_the_environment(monkeypatch: pytest.MonkeyPatch, native: None) -> None:
    assert settle_precision("bfloat16") == settle_precision("auto") == "bfloat16"
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    assert settle_precision("bfloat16") == settle_precision("auto") == "float32"
    monkeypatch.setenv("ODC_BFLOAT16", "no")
    assert settle_precision("float32") == "float32"
    with pytest.raises(InputError, match="ODC_BFLOAT16=no: 0 forbids bfloat16, 1 leaves it to the machine"):
        settle_precision("auto")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86")
def test_a_processor_that_would_emulate_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN takes bfloat16 on every AVX-512; the instructions for it are a feature of their own."""
    monkeypatch.setattr(machine, "get_device", lambda: "cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert "no instructions for it" in str(machine.lacks_bfloat16())
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert "no instructions for it" in str(machine.lacks_bfloat16()), "a torch that cannot tell"


@pytest.mark.parametrize("asked", ["float16", "bf16", 16, True])
def test_another_precision_is_refused(asked: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision must be float32, bfloat16 or auto, not"):
        build_runner(config("dc", str(tmp_path), precision=asked))


# -- a run -----------------------------------------------------------------------------------------------------------


def test_where_it_lacks_a_training_is_that_in_float32_and_the_reason_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    forced = trained(tmp_path / "a", "bfloat16")
    trained(tmp_path / "b", "bfloat16")
    assert warnings_of(capsys) == ["training in float32, not bfloat16: ODC_BFLOAT16=0 forbids it"]
    assert not differences(forced.model.state_dict(), trained(tmp_path / "c", None).model.state_dict())
    assert load_plain(tmp_path / "a" / "epoch_2.pth")["meta"]["precision"] == "float32"
    machine._told.clear()
    trained(tmp_path / "d", "auto")
    assert not warnings_of(capsys), "auto is content with either"


def test_a_result_says_what_it_was_trained_in(tmp_path: Path, native: None) -> None:
    runner = trained(tmp_path / "run", "bfloat16")
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
    checkpoint = load_plain(tmp_path / "run" / "epoch_2.pth")
    assert checkpoint["meta"]["precision"] == "bfloat16"
    other = trained(tmp_path / "float32", "float32").model.state_dict()
    assert differences(checkpoint["state_dict"], other), "nothing was computed in bfloat16"
    train(config("dc", str(tmp_path / "again"), precision="auto"))
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["precision"] == "bfloat16"


def test_a_resumed_run_keeps_its_precision_where_the_machine_can_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "whole", "bfloat16")
    trained(tmp_path / "float", "float32")
    middle = {"resume": True, "load_from": str(tmp_path / "whole" / "epoch_1.pth")}
    capsys.readouterr()
    kept = trained(tmp_path / "kept", None, **middle)
    assert warnings_of(capsys) == ["the run goes on in its checkpoint's precision, bfloat16, not in float32"]
    assert not differences(kept.model.state_dict(), whole.model.state_dict())
    begun = str(tmp_path / "float" / "epoch_1.pth")
    assert trained(tmp_path / "still", "bfloat16", resume=True, load_from=begun).precision == "float32"
    assert warnings_of(capsys) == ["the run goes on in its checkpoint's precision, float32, not in bfloat16"]
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    assert trained(tmp_path / "moved", None, **middle).precision == "float32"
    assert warnings_of(capsys) == ["the run was in bfloat16 so far and goes on in float32: ODC_BFLOAT16=0 forbids it"]
    # What only starts from its weights is a run of its own.
    assert trained(tmp_path / "new", "auto", load_from=begun).precision == "float32"
    assert not warnings_of(capsys)


def test_moco_trains_in_bfloat16(tmp_path: Path) -> None:
    """By ``--amp``, on a machine that has it; on another one in float32."""
    options = {"train_cfg.max_epochs": 2, "train_cfg.schedule": dict(_delete_=True, type="Constant")}
    cfg = prepare_config(MOCO, work_dir=tmp_path, cfg_options=options, amp=True)
    cfg.log_level = "ERROR"
    runner = build_runner(cfg)
    kinds: set[torch.dtype] = set()
    losses: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:  # evaluation is in float32
            kinds.add(output.dtype)

    for encoder in (runner.model.backbone, runner.model.key_encoder[0]):
        next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)
    original = runner.model.head.loss

    def loss(*args: Any) -> Losses:
        out: Losses = original(*args)
        losses.append(float(out.train["loss"].detach()))
        assert out.train["loss"].dtype == torch.float32
        return out

    runner.model.head.loss = loss
    runner.train()
    here = torch.float32 if machine.lacks_bfloat16() else torch.bfloat16
    assert kinds == {here}, "autocast reaches neither encoder's convolutions"
    queue = runner.model.head.queue.keys
    assert queue.dtype == torch.float32
    torch.testing.assert_close(
        queue.norm(dim=1).cpu(), torch.ones(len(queue))
    )  # unit length in float32, not to 3 digits
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[15:20]) - 0.5  # sums of five, after the queue has filled for the first time
    assert runner.val_loop.values["knn"] > 0.9


# -- a comparison and a pipeline -------------------------------------------------------------------------------------


def test_a_key_holds_what_a_cell_runs_in_and_not_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: None
) -> None:
    def cells(**more: Any) -> list[Cell]:
        return plan(Request(["odc", "kmeans-moco", "spice"], tmp_path, **more))

    def told(cells: list[Cell]) -> list[str]:
        return [cell.precision for cell in cells]

    plain, threads = cells(), cells(threads=2)
    asked, auto = (cells(options={"precision": value}) for value in ("bfloat16", "auto"))
    assert [c.method for c in plain] == ["moco", "odc", "kmeans-moco", "spice"]
    assert told(plain) == ["float32"] * 4
    assert told(asked) == told(auto) == ["bfloat16", "bfloat16", "float32", "bfloat16"]
    assert [c.key for c in asked] == [c.key for c in auto]
    for other in (asked, threads):
        assert not {c.key for c in plain} & {c.key for c in other}, "what starts from another MoCo is another, too"
    assert told(cells(options={"semi.precision": "auto"}))[3] == "float32 / bfloat16"
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    assert [c.key for c in cells(options={"precision": "bfloat16"})] == [c.key for c in plain]
