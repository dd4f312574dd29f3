"""BYOL's two networks: which views they see, how the target follows, and where it stands in for the online one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_heads import config

from odc.apis import build_runner
from odc.engine.extract import extract
from odc.errors import InputError
from odc.models import BYOL, ClusterModel
from odc.structures import LocalComm, make_generator

BACKBONE = dict(type="ConvNet", widths=[4, 8])
HEAD = dict(type="ProPosHead", num_clusters=3, batch_size=8, hidden_channels=6, out_channels=4, warmup=0)


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    return BYOL(BACKBONE, HEAD, **options).train()


def images(n: int, seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    rng = make_generator(seed)
    return {("train", view): torch.randn(n, 1, 1, 8, 8, generator=rng) for view in ("query", "key")}


def test_each_view_is_a_forward_of_its_own_and_the_target_sees_the_other_one() -> None:
    byol, given = model(), images(6)
    with torch.no_grad():
        for parameter in byol.target.parameters():
            parameter.mul_(1.1)
    z = byol.encode(given, LocalComm())
    online, target = z["train", "online"], z["train", "target"]
    assert online.shape == target.shape == (6, 2, 4)
    assert online.requires_grad
    assert not target.requires_grad
    for v, (mine, other) in enumerate((("query", "key"), ("key", "query"))):
        alone = byol.head.projector(byol.features(given["train", mine][:, 0]))
        assert torch.allclose(online[:, v], alone)
        backbone, neck, projector = byol.target
        assert torch.allclose(target[:, v], projector(neck(backbone(given["train", other][:, 0]))))
    assert not torch.allclose(online, target.flip(1))


@pytest.mark.parametrize(("final", "progress", "m"), [(None, 0.5, 0.9), (1.0, 0.0, 0.9), (1.0, 0.5, 0.95)])
def test_the_target_follows_and_has_no_gradient(final: float | None, progress: float, m: float) -> None:
    byol = model(momentum=0.9, final_momentum=final)
    before = [p.clone() for p in byol.target.parameters()]
    z = byol.encode(images(6), LocalComm())
    (z["train", "online"] - z["train", "target"]).square().sum().backward()
    assert all(p.grad is None for p in byol.target.parameters())
    online = [p for part in byol._online() for p in part.parameters()]
    assert all(p.grad is not None for p in online)
    with torch.no_grad():
        for p in online:
            p.add_(1.0)
    byol.after_move(progress)
    for old, new, follows in zip(before, byol.target.parameters(), online, strict=True):
        assert torch.allclose(new, m * old + (1 - m) * follows)


def test_the_target_stands_in_and_goes_back() -> None:
    byol = model().eval()
    with torch.no_grad():
        for parameter in byol.target.parameters():
            parameter.add_(0.1)
    x = images(4)["train", "query"][:, 0]
    names, parts = list(byol.state_dict()), byol._online()
    online = byol.head.logits(byol.features(x))
    with byol.averaged():
        assert list(byol.state_dict()) == names
        inside = byol.head.logits(byol.features(x))
    backbone, neck, projector = byol.target
    assert torch.equal(inside, F.normalize(projector(neck(backbone(x))), dim=1))
    assert not torch.equal(inside, online)
    assert all(a is b for a, b in zip(byol._online(), parts, strict=True))
    assert torch.equal(byol.head.logits(byol.features(x)), online)


def test_labels_are_made_of_the_targets_projections(tmp_path: Path) -> None:
    runner = build_runner(config("propos", str(tmp_path)))
    model, near = runner.model, []
    original = model.head.refresh

    def refresh(table: Any, *others: Any) -> Any:
        for averaged in (True, False):
            found = extract(
                *(model, runner.train_loop.data.train, LocalComm()),
                batch_size=7,
                logits=model.head.logits,
                averaged=averaged,
            )
            assert found.logits is not None
            near.append(torch.allclose(table.logits, found.logits, atol=1e-5))
        return original(table, *others)

    model.head.refresh = refresh
    runner.train()
    assert near == [True, False]


def test_both_networks_begin_from_a_backbone_of_any_method(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = ClusterModel(BACKBONE, dict(type="DeepClusterHead", num_clusters=3))
    torch.save({"state_dict": trained.state_dict(), "meta": {}}, tmp_path / "epoch_1.pth")
    byol = model(pretrained=str(tmp_path / "epoch_1.pth"))
    byol.init_weights()
    for backbone in (byol.backbone, byol.target[0]):
        found = backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in trained.backbone.state_dict().items())
    projector = byol.head.projector.state_dict()
    assert all(torch.equal(projector[name], value) for name, value in byol.target[2].state_dict().items())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\] and not fall, but goes from 0.9 to 0.8"):
        model(momentum=0.9, final_momentum=0.8)
    with pytest.raises(InputError, match="inherits from BYOLHead, not 'DeepClusterHead'"):
        BYOL(BACKBONE, dict(type="DeepClusterHead", num_clusters=3))
    with pytest.raises(InputError, match="a step of 1 image a process"):
        model().encode(images(1), LocalComm())
