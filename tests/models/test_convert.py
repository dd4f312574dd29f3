"""Checkpoints in the layouts of other projects, built from models re-keyed in each one's way, and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from small_heads import HEAD_CONFIGS, config
from torch import Tensor, nn

from odc.apis import build_runner
from odc.checkpoints import load_plain
from odc.cli import main
from odc.errors import InputError
from odc.models import ClusterModel, ConvNet, ResNet, TimmBackbone, TorchvisionBackbone
from odc.models.convert import (
    convert,
    listed,
    network_of,
    rename,
    suggest,
    take_backbone,
)
from odc.models.loading import load_backbone

timm = pytest.importorskip("timm")
State = dict[str, Tensor]


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def random_(model: nn.Module) -> nn.Module:
    """Give every tensor values of its own, so that a mixed-up one would show; statistics stay in a sane range."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=rng)
            elif tensor.is_floating_point():
                tensor.mul_(0.9).add_(0.02 * torch.randn(tensor.shape, generator=rng))
            else:
                tensor.fill_(7)
    return model.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def linear(name: str, inputs: int = 4, outputs: int = 3) -> State:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


def same(wanted: Tensor, got: Tensor) -> None:
    assert wanted.shape == got.shape
    assert wanted.std() > 1e-3, "this comparison would see nothing"
    assert (wanted - got).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))


class Headless(nn.Module):
    """A torchvision ResNet up to its pooled features."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        self.net.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}


def moco(state: State) -> dict[str, Any]:
    """Facebook's: the fc of version 2 has two layers."""
    fc = linear("fc.0", 8, 8) | linear("fc.2", 8)
    both = prefixed("module.encoder_q.", state | fc) | prefixed("module.encoder_k.", state | fc)
    queue = {"module.queue": torch.randn(3, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": both | queue, "optimizer": OPTIMIZER}


def shortcut(state: State) -> State:
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in state.items()}


def spice_self(state: State) -> dict[str, Any]:
    heads = linear("module.head.head_0.classifier.0") | linear("module.head.head_1.classifier.0")
    return {"epoch": 5, "state_dict": prefixed("module.feature_module.", state) | heads, "optimizer": OPTIMIZER}


def dino(state: State) -> dict[str, Any]:
    head = linear("head.mlp.0") | {"head.last_layer.weight_g": torch.randn(3, 1)}
    student = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {
        "student": prefixed("module.backbone.", student) | prefixed("module.", head),
        "teacher": prefixed("backbone.", state) | head,
        "optimizer": OPTIMIZER,
        "epoch": 100,
        "args": {"arch": "vit_small"},
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def openselfsup(state: State) -> dict[str, Any]:
    heads = linear("neck.fc0") | linear("head.fc_cls")
    return {"meta": {"epoch": 3}, "state_dict": prefixed("backbone.", state) | heads, "optimizer": OPTIMIZER}


# layout in the wild -> what is recognised, the checkpoint of a ResNet with the names of torchvision
RESNETS: dict[str, tuple[str, Callable[[State], dict[str, Any]], str]] = {
    "moco": ("moco", moco, "encoder_q.fc (4), encoder_k (124), queue (1), queue_ptr (1), epoch, arch, optimizer"),
    "spice's moco": ("moco", lambda s: moco(shortcut(s)), "encoder_q.fc (4), encoder_k (124), queue (1)"),
    "spice": ("spice", spice_self, "head (4), epoch, optimizer"),
    "spice for cifar": ("spice", lambda s: spice_self(shortcut(s)), "head (4), epoch, optimizer"),
    "spice selected": ("spice", lambda s: spice_self(s)["state_dict"], "head (4)"),
    "spice semi": (
        "spice-semi",
        lambda s: {
            "train_model": {k: torch.zeros_like(v) for k, v in s.items()},
            "eval_model": shortcut(s) | linear("fc"),
            "it": 9,
        },
        "fc (2), train_model (120), it",
    ),
    "dino": ("dino", dino, "head (3), student (123), optimizer, epoch, args, dino_loss (1)"),
    "openselfsup": ("openselfsup", openselfsup, "neck (2), head (2), meta, optimizer"),
    "mmselfsup's extracted": ("torchvision", lambda s: {"state_dict": s, "author": "me"}, "author"),
    "torchvision": ("torchvision", lambda s: s | linear("fc"), "fc (2)"),
    "compiled": ("torchvision", lambda s: prefixed("_orig_mod.module.", s), "nothing"),
}


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return random_(Headless(18))


def tensors_of(model: nn.Module) -> State:
    return {name.removeprefix("net."): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("case", RESNETS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_resnet_of_each_layout_computes_the_same(case: str, ending: str, resnet18: nn.Module, tmp_path: Path) -> None:
    layout, make, left = RESNETS[case]
    src, dst = tmp_path / "theirs.pth.tar", tmp_path / f"ours{ending}"
    torch.save(make(tensors_of(resnet18)), src)
    told = convert(src, dst)
    assert f"layout {layout} (" in told
    assert ": 120 tensors taken, a ResNet-18 with a 7x7 stem for colour images; " in told
    assert f"; left: {left}" in told
    ours = ResNet(18).eval()
    load_backbone(ours, load_plain(dst))
    with torch.no_grad():
        same(resnet18(images()), ours(images()).mean((2, 3)))


def test_what_is_said(resnet18: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(moco(tensors_of(resnet18)), tmp_path / "moco.pth")
    assert main(["convert", str(tmp_path / "moco.pth"), str(tmp_path / "new" / "ours.pth")]) == 0
    out = capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines()
    assert out == [
        "moco.pth: layout moco (encoder_q.*): 120 tensors taken, a ResNet-18 with a 7x7 stem for colour images; "
        "left: encoder_q.fc (4), encoder_k (124), queue (1), queue_ptr (1), epoch, arch, optimizer",
        "new/ours.pth: 120 tensors by the names of odc; use it with model.pretrained='new/ours.pth', "
        "model.backbone=dict(type='ResNet', depth=18, stem='imagenet')",
    ]


# SPICE's ResNet-18 for CIFAR and its ResNet-34 for STL-10 are ours of these stems, up to names.


@pytest.mark.parametrize(("depth", "stem"), [(18, "cifar"), (34, "stl")])
def test_small_stems(depth: int, stem: str, tmp_path: Path) -> None:
    theirs = random_(ResNet(depth, stem, width=8))
    torch.save(moco(shortcut(theirs.state_dict())), tmp_path / "moco.pth")
    told = convert(tmp_path / "moco.pth", tmp_path / "ours.pth")
    assert f"a ResNet-{depth} of width 8 with a 3x3 stem for colour images" in told
    assert f"dict(type='ResNet', depth={depth}, stem='cifar' (or 'stl'), width=8)" in told
    ours = ResNet(depth, stem, width=8).eval()
    load_backbone(ours, load_plain(tmp_path / "ours.pth"))
    with torch.no_grad():
        same(theirs(images()), ours(images()))


@pytest.mark.parametrize("depth", [34, 50])
def test_deeper_resnets_and_wrappers(depth: int, tmp_path: Path) -> None:
    """One file starts our ResNet, torchvision's and timm's."""
    theirs = random_(Headless(depth))
    torch.save(tensors_of(theirs) | linear("fc"), tmp_path / "theirs.pth")
    assert f"a ResNet-{depth} with" in convert(tmp_path / "theirs.pth", tmp_path / "ours.pth")
    state = load_plain(tmp_path / "ours.pth")
    models = [
        nn.Sequential(ResNet(depth), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(TorchvisionBackbone(f"resnet{depth}")),
        nn.Sequential(TimmBackbone(f"resnet{depth}")),
    ]
    for model in models:
        load_backbone(next(model.eval().children()), state)
        with torch.no_grad():
            same(theirs(images()), model(images()))


# -- DeepCluster -----------------------------------------------------------------------------------------------------


class FacebookVGG(nn.Module):
    """DeepCluster's VGG-16 up to its last hidden layer, on the two gradients of its Sobel layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 7)  # changes nothing at its own 224 px
        out: Tensor = self.classifier(x.flatten(1))
        return out


@pytest.fixture(scope="module")
def facebook() -> FacebookVGG:
    """In double precision: timm's linear layers are convolutions, which add 25,088 numbers in another order."""
    model = FacebookVGG().double()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.add_(0.1 if "running" in name else 7)
    return model.eval()


def test_deepcluster(facebook: FacebookVGG) -> None:
    state = facebook.state_dict()  # of torch 0.3: its batch norm does not count
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    state = {k.replace("features.", "features.module."): v for k, v in state.items()}
    state |= linear("top_layer") | linear("sobel.0") | linear("sobel.1")
    found = take_backbone({"epoch": 500, "arch": "vgg16", "state_dict": state})
    assert str(found) == (
        "layout deepcluster (*): 82 tensors taken, a VGG-16 with batch norm for two gradients (Sobel), 13 counters of "
        "batch norm added; left: top_layer (2), sobel (4), epoch, arch"
    )
    assert suggest(found.tensors) == "dict(type='TimmBackbone', name='vgg16_bn', in_channels=2)"
    ours = TimmBackbone("vgg16_bn", in_channels=2).double().eval()
    file = {"state_dict": rename(found)}
    load_backbone(ours, file)
    x = images(32, 2).double()
    with torch.no_grad():
        same(facebook(x), ours(x))
    with torch.device("meta"):
        coloured = TorchvisionBackbone("vgg16_bn")
    with pytest.raises(InputError) as error:
        load_backbone(coloured, file, "'ours'")
    assert "model.features.0.weight: file (64, 2, 3, 3), model (64, 3, 3, 3)" in str(error.value)


def test_deepercluster(facebook: FacebookVGG) -> None:
    state = prefixed("module.body.", facebook.state_dict())
    state |= prefixed("module.", linear("pred_layer") | linear("sobel.0") | linear("sobel.1"))
    found = take_backbone({"epoch": 100, "state_dict": state})
    assert (found.layout, listed(found.left)) == ("deepercluster", "pred_layer (2), sobel (4), epoch")
    assert all(found.tensors[name] is state[f"module.body.{name}"] for name in facebook.state_dict())


def test_alexnet_is_recognised_and_renamed() -> None:
    state = {
        "features.module.0.weight": torch.randn(96, 2, 11, 11),
        "features.module.0.bias": torch.randn(96),
        "features.module.1.running_mean": torch.randn(96),
        "classifier.1.weight": torch.randn(4, 5),
        "top_layer.weight": torch.randn(3, 4),
    }
    found = take_backbone({"state_dict": state, "arch": "alexnet"})
    assert (found.layout, found.left) == ("deepcluster", {"top_layer": 1, "arch": 0})
    assert network_of(found.tensors) == "an AlexNet with batch norm for two gradients (Sobel)"
    assert set(rename(found)) == {
        "backbone.model.features.0.weight",
        "backbone.model.features.0.bias",
        "backbone.model.features.1.running_mean",
        "backbone.model.features.1.num_batches_tracked",
        "backbone.model.classifier.1.weight",
    }
    for target in ("torchvision", "timm"):
        with pytest.raises(InputError, match=f"an AlexNet .*: {target} has no such names; write it with --to odc"):
            rename(found, target)


def test_torchvisions_own_alexnet() -> None:
    with torch.device("meta"):
        state = TorchvisionBackbone("alexnet").state_dict()
    found = take_backbone(prefixed("backbone.", state) | {"labels.index": torch.zeros(1)})
    assert rename(found, "torchvision").keys() == {name.removeprefix("model.") for name in state}


def test_torchvision_models_of_other_kinds(tmp_path: Path) -> None:
    """The classifier goes, and what torchvision keeps in it besides (a norm) stays."""
    for name, size in (("mobilenet_v3_small", 32), ("convnext_tiny", 32)):
        theirs = random_(torchvision.models.get_model(name, weights=None))
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        assert "layout torchvision" in convert(tmp_path / "theirs.pth", tmp_path / "ours.pth")
        ours = TorchvisionBackbone(name).eval()
        load_backbone(ours, load_plain(tmp_path / "ours.pth"))
        found: list[Tensor] = []
        last = [m for m in theirs.modules() if isinstance(m, nn.Linear)][-2 if "mobile" in name else -1]
        last.register_forward_pre_hook(lambda _, x, found=found: found.append(x[0]))
        with torch.no_grad():
            theirs(images(size))
            same(found[0], ours(images(size)))
        wrapped = take_backbone(prefixed("backbone.", ours.state_dict()) | {"labels.index": torch.zeros(1)})
        assert rename(wrapped, "torchvision").keys() == wrapped.tensors.keys()
        with pytest.raises(InputError, match="timm has no such names"):
            rename(wrapped, "timm")


# -- transformers ----------------------------------------------------------------------------------------------------


def vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, num_classes=0, **options
    )
    return random_(model)


def test_dino_transformer() -> None:
    theirs, ours = vit(), vit()
    for tensor in ours.state_dict().values():
        tensor.zero_()
    told = load_backbone(ours, dino(theirs.state_dict()))
    assert "layout dino, a transformer of 4 blocks, width 24, patches of 8 px; left: head (3), student (" in told
    with torch.no_grad():
        same(theirs(images()), ours(images()))
    assert take_backbone(theirs.state_dict()).layout == "timm"  # as DINO publishes it


@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2_without_registers(chunks: bool) -> None:
    theirs, ours = vit(init_values=0.1), vit(init_values=0.2)
    state = theirs.state_dict() | {"mask_token": torch.zeros(1, 24)}
    checkpoint: dict[str, Any] = dict(state)
    if chunks:  # as its training saves the teacher: two chunks of two blocks, numbered throughout
        state = {k: v for k, v in state.items() if not k.startswith("blocks.")} | {
            f"blocks.{int(k.split('.')[1]) // 2}.{k.removeprefix('blocks.')}": v
            for k, v in state.items()
            if k.startswith("blocks.")
        }
        checkpoint = {"teacher": prefixed("backbone.", state) | linear("dino_head.mlp.0")}
    told = load_backbone(ours, checkpoint)
    assert f"layout {'dino' if chunks else 'dinov2'}, a transformer of 4 blocks" in told
    assert told.endswith("left: backbone.mask_token (1), dino_head (2)" if chunks else "left: mask_token (1)")
    with torch.no_grad():
        same(theirs(images()), ours(images()))


def test_dinov2_with_registers_computes_as_timm_converts_it() -> None:
    """The oracle is timm's own conversion, which it applies to the files that the authors publish."""
    from timm.models.vision_transformer import _convert_dinov2

    options: dict[str, Any] = dict(init_values=0.1, reg_tokens=2, no_embed_class=True)
    theirs, ours = vit(**options), vit(**options)
    state = theirs.state_dict()
    published = {k: v for k, v in state.items() if k not in ("reg_token", "pos_embed")} | {
        "register_tokens": state["reg_token"],
        "pos_embed": torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(2)),
        "mask_token": torch.zeros(1, 24),
    }
    load_backbone(ours, published)
    theirs.load_state_dict(_convert_dinov2(dict(published), theirs))
    with torch.no_grad():
        same(theirs(images()), ours(images()))


def test_a_transformer_has_no_names_in_torchvision(tmp_path: Path) -> None:
    theirs = vit()
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"a transformer of 4 blocks.*: torchvision has no such names"):
        convert(tmp_path / "vit.safetensors", tmp_path / "out.pth", to="torchvision")
    convert(tmp_path / "vit.safetensors", tmp_path / "out.pth", to="timm")
    theirs.load_state_dict(load_plain(tmp_path / "out.pth"), strict=True)


# -- from ours -------------------------------------------------------------------------------------------------------


def cluster_model(**options: Any) -> ClusterModel:
    backbone = options.pop("backbone", dict(type="ResNet", depth=18))
    return ClusterModel(backbone, HEAD_CONFIGS["dc"], **options)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_ours_to_theirs_and_back(to: str, ending: str, tmp_path: Path) -> None:
    model = random_(cluster_model())
    torch.save({"state_dict": model.state_dict(), "meta": {}, "message_hub": {}}, tmp_path / "epoch_1.pth")
    told = convert(tmp_path / "epoch_1.pth", tmp_path / f"theirs{ending}", to=to)
    assert "layout odc (backbone.*): 120 tensors taken" in told
    assert f"120 tensors by the names of {to}" in told
    state = (
        load_file(tmp_path / "theirs.safetensors") if ending == ".safetensors" else load_plain(tmp_path / "theirs.pth")
    )
    theirs = Headless(18).net if to == "torchvision" else timm.create_model("resnet18", num_classes=0)
    theirs.load_state_dict(state, strict=True)
    back = ResNet(18).eval()
    convert(tmp_path / f"theirs{ending}", tmp_path / "back.pth")
    load_backbone(back, load_plain(tmp_path / "back.pth"))
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[f"backbone.{name}"]) for name, tensor in back.state_dict().items())
    with torch.no_grad():
        same(theirs.eval()(images()), back(images()).mean((2, 3)))


def test_vgg_between_torchvision_and_timm() -> None:
    theirs = torchvision.models.vgg11(weights=None, init_weights=False)
    found = take_backbone(theirs.state_dict())
    assert (found.layout, found.left) == ("torchvision", {"classifier.6": 2})
    state = rename(found, "timm")
    with torch.device("meta"):
        model = timm.create_model("vgg11", num_classes=0)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in model.state_dict().items()}
    back = rename(take_backbone(state), "torchvision")
    assert all(torch.equal(back.pop(name), t) for name, t in without(theirs.state_dict(), "classifier.6").items())
    assert not back
    told = load_backbone(TorchvisionBackbone("vgg11"), state)
    assert told.endswith("left: classifier.0 (2), classifier.3 (2)")


def test_our_wrappers_and_small_nets(tmp_path: Path) -> None:
    wrapped = random_(cluster_model(backbone=dict(type="TorchvisionBackbone", name="resnet18")))
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "wrapped.pth")
    assert "layout odc (backbone.model.*): 120 tensors" in convert(tmp_path / "wrapped.pth", tmp_path / "plain.pth")
    load_backbone(ResNet(18), load_plain(tmp_path / "plain.pth"))
    small = random_(cluster_model(backbone=dict(type="ConvNet", widths=[4, 6])))
    torch.save({"state_dict": small.state_dict()}, tmp_path / "small.pth")
    assert "a ConvNet of 4 convolutions for grey images" in convert(tmp_path / "small.pth", tmp_path / "out.pth")
    ours = ConvNet(widths=(4, 6)).eval()
    load_backbone(ours, load_plain(tmp_path / "out.pth"))
    with torch.no_grad():
        same(small.get_submodule("backbone")(images(8, 1)), ours(images(8, 1)))
    with pytest.raises(InputError, match="a ConvNet of 4 convolutions for grey images: torchvision has no such names"):
        convert(tmp_path / "small.pth", tmp_path / "out.pth", to="torchvision")


# -- a config's model.pretrained -------------------------------------------------------------------------------------


def pretrained_config(tmp_path: Path, path: Path, **options: Any) -> Any:
    cfg = config("dc", str(tmp_path / "run"), **{"train_cfg.max_epochs": 1, **options})
    cfg.model.backbone = dict(type="ConvNet", in_channels=1, widths=[4, 8])
    cfg.model.pretrained = str(path)
    cfg.log_level = "INFO"
    return cfg


@pytest.mark.parametrize("kind", ["backbone only", "whole checkpoint"])
def test_pretrained_is_loaded_before_training(kind: str, tmp_path: Path) -> None:
    theirs = random_(ConvNet(widths=(4, 8)))
    state = prefixed("backbone.", theirs.state_dict())
    path = tmp_path / "backbone.pth"
    if kind == "whole checkpoint":
        state |= {"head.classifier.weight": torch.zeros(7, 5), "labels.index": torch.zeros(3)}
    torch.save({"state_dict": state, "meta": {}}, path)
    cfg = pretrained_config(tmp_path, path, **{"optim_wrapper.optimizer.lr": 0.0})
    runner = build_runner(cfg)
    before = runner.model.backbone.state_dict()["layers.0.weight"].to("cpu", copy=True)
    assert not torch.equal(before, theirs.state_dict()["layers.0.weight"]), "loaded too early: testing needs no file"
    runner.train()
    after = dict(runner.model.cpu().backbone.named_parameters())  # at a learning rate of 0
    assert all(torch.equal(tensor, after[name]) for name, tensor in theirs.named_parameters())
    (log,) = (tmp_path / "run").rglob("*.log")
    left = "head (1), labels (1), meta" if kind == "whole checkpoint" else "meta"
    (line,) = [line for line in log.read_text().splitlines() if f"backbone from {path}" in line]
    assert "24 tensors loaded of layout" in line
    assert line.endswith(f"; left: {left}")


def test_testing_needs_no_pretrained_file(tmp_path: Path) -> None:
    model = build_runner(pretrained_config(tmp_path, tmp_path / "gone.pth")).model
    with pytest.raises(InputError, match=r"gone\.pth' does not exist"):
        model.init_weights()


def test_pretrained_of_another_stem_stops() -> None:
    state = prefixed("backbone.", ResNet(18).state_dict())
    with pytest.raises(InputError) as error:
        load_backbone(ResNet(18, "cifar"), {"state_dict": state}, "checkpoint 'x.pth'")
    assert str(error.value) == (
        "checkpoint 'x.pth' holds a ResNet-18 with a 7x7 stem for colour images (layout openselfsup), which does not "
        "fit the model's ResNet: 119 loaded; 0 missing; 0 unexpected; 1 mismatched (conv1.weight: file (64, 3, 7, 7), "
        "model (64, 3, 3, 3)); set model.backbone=dict(type='ResNet', depth=18, stem='imagenet')"
    )


def test_pretrained_of_another_depth_stops_and_changes_nothing() -> None:
    """Every tensor of a ResNet-18 is in a ResNet-34, with its shape."""
    model = ResNet(18, width=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"holds a ResNet-34 .* 0 missing; 96 unexpected \(layer1\.2\.conv1\.weight"):
        load_backbone(model, random_(ResNet(34, width=8)).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main(["convert", *map(str, argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("odc: error: ")
    assert err.count("\n") == 1, err
    return err


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, dst = tmp_path / "good.pth", tmp_path / "ours.pth"
    torch.save(prefixed("module.encoder_q.", ResNet(18, width=4).state_dict()), good)
    code = tmp_path / "code.pth"
    torch.save({"state_dict": {}, "args": argparse.Namespace(arch="vit_small")}, code)
    assert "holds a argparse.Namespace, which only running code from the file" in refused(capsys, code, dst)
    assert "does not exist" in refused(capsys, tmp_path / "none.pth", dst)
    (tmp_path / "text.safetensors").write_text("this is nothing of the kind")
    assert "is damaged" in refused(capsys, tmp_path / "text.safetensors", dst)
    for ending in ("ours.onnx", "ours", "ours.pth.tar"):
        line = refused(capsys, good, tmp_path / ending)
        assert "ends in neither .pth nor .safetensors" in line
    assert "is the checkpoint itself" in refused(capsys, good, good)
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refused(capsys, good, tmp_path / "folder.pth")
    assert "not for 'onnx'" in refused(capsys, good, dst, "--to", "onnx")
    assert "no layout 'mocco'; did you mean 'moco'?" in refused(capsys, good, dst, "--layout", "mocco")
    line = refused(capsys, good, dst, "--layout", "openselfsup")
    assert "has no backbone.* under 'state_dict' or 'model'" in line
    assert not dst.exists()
    assert main(["convert", str(good), str(dst), "--layout", "moco"]) == 0
    assert dst.exists()


def test_unknown_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save({"state_dict": {f"trunk.{i}.kernel": torch.zeros(2) for i in range(9)}}, src)
    assert "layout own (*): 9 tensors taken, a network without a name here" in convert(src, dst)
    with pytest.raises(InputError, match=r"does not fit the model's ResNet: 0 loaded; 120 missing .*; 9 unexpected"):
        load_backbone(ResNet(18, width=4), load_plain(dst))
    torch.save({"epoch": 3, "optimizer": OPTIMIZER}, src)
    assert "it holds no tensors, but epoch, optimizer" in refused(capsys, src, dst)
    torch.save({f"trunk.{i}.kernel": torch.zeros(2) for i in range(9)} | linear("head"), src)
    assert "9 tensors taken, a network without a name here" in convert(src, dst, layout="timm")
    torch.save(prefixed("module.encoder_q.", linear("fc")), src)
    assert "holds no backbone, only encoder_q.fc (2)" in refused(capsys, src, dst)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        lambda s: {"net": prefixed("module.", s), "epoch": 3},
        lambda s: {"backbone": s, "head": {}},
        lambda s: {"model": {"state_dict": s}, "args": {"lr": 0.1}},
        lambda s: {"student": halved(s), "teacher": s},
        lambda s: {"model_ema": halved(s), "anything": s},
        lambda s: {"state_dict": s, "state_dict_ema": halved(s)},
        lambda s: {"losses": {"curve": torch.zeros(3)}, "ema": s},
        lambda s: {"state": {"trainer": {"encoder": prefixed("_orig_mod.", s)}}},
    ],
)
def test_tensors_may_lie_under_any_key(wrap: Callable[[State], dict[str, Any]]) -> None:
    model = random_(ResNet(18, "cifar", width=4))
    checkpoint = wrap({**model.state_dict(), **linear("fc")})
    fresh = ResNet(18, "cifar", width=4).eval()
    assert load_backbone(fresh, checkpoint).startswith("120 tensors loaded of layout torchvision")
    with torch.no_grad():
        same(model(images()), fresh(images()))
    left = take_backbone(checkpoint).left
    assert left["fc"] == 2
    assert set(left) <= {"fc", *checkpoint}
    assert sum(left.values()) + 120 == counted(checkpoint)


def halved(state: State) -> State:
    return {name: tensor / 2 for name, tensor in state.items()}


def counted(value: dict[Any, Any]) -> int:
    """Return how many tensors the parts with names hold."""
    inner = [v for k, v in value.items() if isinstance(k, str)]
    return sum(counted(v) if isinstance(v, dict) else isinstance(v, Tensor) for v in inner)
