from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import config
from test_conformance import differences, train

from odc.apis import build_runner
from odc.config.checking import check_compile, check_parts
from odc.errors import InputError

EAGER = {"compile": dict(backend="eager")}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    torch.compiler.reset()


def names(folder: Path) -> list[str]:
    state = torch.load(max(folder.glob("epoch_*.pth")), weights_only=True)["state_dict"]
    return sorted(state)


@pytest.mark.parametrize("name", ["odc", "moco"])
def test_names_and_bits_are_those_without(name: str, tmp_path: Path) -> None:
    """The backend eager runs the traced operations as they are."""
    plain, traced = train(name, tmp_path / "plain"), train(name, tmp_path / "traced", **EAGER)
    assert not differences(plain, traced)
    assert names(tmp_path / "plain") == names(tmp_path / "traced")
    for start, options in (("plain", EAGER), ("traced", {})):
        first = str(tmp_path / start / "epoch_1.pth")
        again = train(name, tmp_path / f"from-{start}", resume=True, load_from=first, **options)
        assert not differences(plain, again)


def test_backbone_and_key_encoder_are_traced(tmp_path: Path) -> None:
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(sum("conv" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.register_backend(backend, name="counting")
    runner = build_runner(config("moco", str(tmp_path), compile=dict(backend="counting")))
    runner.train()
    with_grad = [n for n in seen if n]
    assert len(with_grad) >= 3  # queries with gradients, keys without, and the evaluation
    assert set(with_grad) == {4}, "the whole ConvNet is one graph"


def test_errors_of_the_input_are_still_one_line(tmp_path: Path) -> None:
    cfg = config("odc", str(tmp_path), **EAGER, **{"model.backbone.in_channels": 3})
    with pytest.raises(InputError, match="have 1 channels, but the backbone takes 3"):
        build_runner(cfg).train()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_trains_like_eager(tmp_path: Path) -> None:
    """The classifier, because it compiles one graph only."""
    few = {"model.backbone.widths": [2], "val_evaluator": None, "train_cfg.max_epochs": 1}
    plain = train("classifier", tmp_path / "plain", **few)["model"]
    compiled = train("classifier", tmp_path / "compiled", compile=True, **few)["model"]
    assert names(tmp_path / "plain") == names(tmp_path / "compiled")
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, but there is no '(g|clang)\+\+': .*compile=False"):
        check_parts(config("odc", str(tmp_path), compile=True))
    monkeypatch.setenv("CXX", "nvc++")
    with pytest.raises(InputError, match=r"no 'nvc\+\+'"):
        check_compile({"mode": "default"})
    assert check_compile({"backend": "eager"}) == {"backend": "eager"}


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ("yes", "True, False or a dict .*'yes'"),
        (dict(mod="default"), "no option 'mod'; did you mean 'mode'"),
        (dict(backend="eagre"), "no backend 'eagre'; known: .*eager"),
        (dict(mode="fast", backend="inductor"), "does not take .*fast"),
    ],
)
def test_wrong_options(cfg: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(InputError, match=message):
        check_compile(cfg)


@pytest.mark.parametrize("cfg", [None, False])
def test_not_asked_for(cfg: Any) -> None:
    assert check_compile(cfg) is None
