from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from odc.errors import InputError
from odc.models import ConvNet, ResNet, TimmBackbone, TorchvisionBackbone
from odc.registry import BACKBONES, build

STRIDES = {"imagenet": 32, "stl": 16, "cifar": 8}


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("stem", ["imagenet", "stl", "cifar"])
def test_resnet_gives_the_map_that_its_stem_and_width_say(depth: int, stem: str) -> None:
    expansion = 4 if depth == 50 else 1
    for size in (32, 96):
        model = ResNet(depth, stem, width=8).eval()
        with torch.no_grad():
            out = model(torch.randn(2, 3, size, size))
        # The pool of the stl stem pads: one pixel more before the stages that halve, rounded up.
        side = -(-(size // 2 + 1) // 8) if stem == "stl" else size // STRIDES[stem]
        assert out.shape == (2, 64 * expansion, side, side)
        assert model.out_channels == 64 * expansion


def test_published_maps() -> None:
    """METHODS' sizes: CIFAR 512x4x4 at 32 px, STL-10 with the cluster ResNet 512x7x7 at 96 px."""
    with torch.no_grad():
        assert ResNet(18, "cifar").eval()(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)
        assert ResNet(34, "stl").eval()(torch.randn(1, 3, 96, 96)).shape == (1, 512, 7, 7)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resnet_takes_one_to_four_channels(channels: int) -> None:
    model = ResNet(18, "cifar", in_channels=channels, width=4)
    assert model(torch.randn(2, channels, 16, 16)).shape == (2, 32, 2, 2)
    with pytest.raises(InputError, match=f"images have {channels + 1} channels, but the backbone takes {channels}"):
        model(torch.randn(2, channels + 1, 16, 16))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_loads_torchvision_weights(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    rng = torch.Generator().manual_seed(0)
    for name, buffer in theirs.named_buffers():  # statistics of their own, so that a mixed-up one would show
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=rng)
        elif name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5, generator=rng)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours = ResNet(depth).eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in state.items()}
    ours.load_state_dict(state, strict=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, got = theirs(images), ours(images).mean((2, 3))
    assert wanted.abs().max() > 0
    assert (wanted - got).abs().max() <= 1e-6 * wanted.abs().max()


def test_convnet_halves_between_stages() -> None:
    model = ConvNet(in_channels=2, widths=(4, 6, 8))
    assert model(torch.randn(3, 2, 16, 16)).shape == (3, 8, 4, 4)
    assert model.out_channels == 8
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("resnet18", 512, 32),
        ("mobilenet_v3_small", 576, 32),
        ("squeezenet1_1", 512, 32),
        ("shufflenet_v2_x0_5", 1024, 32),
        ("mnasnet0_5", 1280, 32),
        ("googlenet", 1024, 32),
        ("inception_v3", 2048, 96),
    ],
)
def test_torchvision_models(name: str, width: int, size: int) -> None:
    model = TorchvisionBackbone(name)
    assert model.out_channels == width
    assert_trains(model, size)
    assert not [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]


def assert_trains(model: Any, size: int) -> None:
    """Check that a network gives what it says in both modes of a training step, and refuses what it does not take."""
    images = torch.randn(2, model.in_channels, size, size)
    features = model.train()(images)
    assert features.shape == (2, model.out_channels)
    features.sum().backward()
    with torch.no_grad():
        assert model.eval()(images).shape == (2, model.out_channels)


def test_transformers_of_torchvision_take_one_size() -> None:
    with torch.device("meta"):  # 86 million parameters: the shapes are enough
        model = TorchvisionBackbone("vit_b_16").eval()
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 768)
        assert model.out_channels == 768
        assert TorchvisionBackbone("vit_b_16", image_size=64).eval()(torch.empty(1, 3, 64, 64)).shape == (1, 768)
        with pytest.raises(InputError, match=r"'vit_b_16' cannot be made with .*image_size=60"):
            TorchvisionBackbone("vit_b_16", image_size=60)
    with pytest.raises(InputError, match="'resnet18' takes images of many sizes: leave image_size=64 out"):
        TorchvisionBackbone("resnet18", image_size=64)


def test_asking_for_the_width_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = torchvision.models.mobilenet_v3_small(weights=None)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    model = TorchvisionBackbone("mobilenet_v3_small")  # has dropout and batch norm
    assert torch.equal(torch.get_rng_state(), after)
    assert all(module.training for module in model.modules())
    wanted = plain.state_dict()
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_vgg_keeps_nothing_of_its_classifier() -> None:
    with torch.device("meta"):
        model = TorchvisionBackbone("vgg11")
        assert model.eval()(torch.empty(1, 3, 64, 64)).shape == (1, 512 * 7 * 7)
    assert model.out_channels == 512 * 7 * 7


def test_vgg_of_deeper_cluster() -> None:
    """Two channels of gradients, and two of the classifier's linear layers; the features are before the last ReLU."""
    with torch.device("meta"):
        model = TorchvisionBackbone("vgg16_bn", in_channels=2, linear_layers=2)
        assert model.eval()(torch.empty(1, 2, 64, 64)).shape == (1, 4096)
        assert model.out_channels == 4096
        assert TorchvisionBackbone("vgg16_bn", linear_layers=1).out_channels == 4096
        assert [type(m).__name__ for m in model.model.classifier] == ["Linear", "ReLU", "Dropout", "Linear"]


def test_torchvision_models_take_other_channels() -> None:
    model = TorchvisionBackbone("resnet18", in_channels=2).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, 32, 32)).shape == (2, 512)
    weight = model.model.conv1.weight
    assert weight.shape == (64, 2, 7, 7)
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)
    with pytest.raises(InputError, match="images have 3 channels, but the backbone takes 2"):
        model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet10t", 32),
        ("mobilenetv3_small_050", 32),
        ("lcnet_050", 32),
        ("efficientvit_b0", 32),
        ("regnetx_002", 32),
        ("test_convnext", 32),
        ("levit_128s", 224),
        ("deit_tiny_distilled_patch16_224", 224),
        ("xcit_nano_12_p16_224", 32),
        ("test_vit", 160),
    ],
)
def test_timm_models(name: str, size: int) -> None:
    pytest.importorskip("timm")
    assert_trains(TimmBackbone(name, in_channels=1), size)


def test_timm_models_are_pooled_as_timm_does() -> None:
    timm = pytest.importorskip("timm")
    for name in ("test_vit", "mobilenetv3_small_050"):
        model = TimmBackbone(name).eval()
        theirs = timm.create_model(name).eval()
        theirs.load_state_dict(model.model.state_dict(), strict=False)
        images = torch.randn(2, 3, 160, 160)
        with torch.no_grad():
            wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
            assert torch.equal(model(images), wanted)


def test_timm_models_of_one_size() -> None:
    pytest.importorskip("timm")
    name = "deit_tiny_patch16_224"
    with torch.no_grad(), pytest.raises(InputError, match=r"images of 64×64 pixels, but of 224×224: .*image_size"):
        TimmBackbone(name).eval()(torch.randn(1, 3, 64, 64))
    assert_trains(TimmBackbone(name, image_size=64), 64)
    with pytest.raises(InputError, match=r"'resnet10t' cannot be made with .*img_size=64"):
        TimmBackbone("resnet10t", image_size=64)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(type="ResNet", depth=19), ["[18, 34, 50]", "19"]),
        (dict(type="ResNet", stem="moco"), ["'imagenet'", "'stl'", "'cifar'", "'moco'"]),
        (dict(type="ResNet", in_channels=5), ["1 to 4", "5"]),
        (dict(type="ResNet", in_channels=0), ["1 to 4", "0"]),
        (dict(type="ResNet", widht=8), ["no option 'widht'", "did you mean 'width'"]),
        (dict(type="RestNet"), ["unknown backbone 'RestNet'", "did you mean 'ResNet'"]),
        (dict(type="ConvNet", widths=[]), ["widths", "at least one"]),
        (dict(type="TorchvisionBackbone", name="resnet19"), ["'resnet19'", "list_models"]),
        (dict(type="TorchvisionBackbone", name="resnet18", linear_layers=1), ["1 linear layers", "0 to 0", "not 1"]),
        (dict(type="TorchvisionBackbone"), ["needs the option 'name'"]),
        (dict(type="TorchvisionBackbone", name="fcn_resnet50"), ["no classification model 'fcn_resnet50'"]),
        (dict(type="TimmBackbone", name="resnet1o"), ["'resnet1o'", "list_models"]),
        (dict(depth=18), ["'type'"]),
    ],
)
def test_wrong_backbones_are_told_in_one_line(cfg: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(BACKBONES, cfg)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("model", "smallest", "remedy"),
    [
        (lambda: ResNet(18, "imagenet", width=8), 32, r"or take stem 'stl' \(16\) or 'cifar' \(8\)"),
        (lambda: ResNet(18, "stl", width=8), 16, r"or take stem 'cifar' \(8\)"),
        (lambda: ResNet(18, "cifar", width=8), 8, r"enlarge them in data\.views$"),
        (lambda: ConvNet(3, (4, 8, 8)), 4, r"fewer model\.backbone\.widths"),
        (lambda: ConvNet(3, (4,)), 1, None),
    ],
)
def test_images_below_the_stride_are_refused(model: Any, smallest: int, remedy: str | None) -> None:
    net = model().eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, smallest, smallest + 1)).shape[2:].numel() >= 1
        if remedy:
            message = f"have {smallest + 1}×{smallest - 1} pixels, .* at least {smallest}×{smallest}: .*{remedy}"
            with pytest.raises(InputError, match=message):
                net(torch.randn(2, 3, smallest + 1, smallest - 1))


def test_images_that_a_library_does_not_take_are_told_in_one_line() -> None:
    net = TorchvisionBackbone("densenet121")
    with torch.no_grad(), pytest.raises(InputError, match=r"'densenet121' does not take images of 16×16") as error:
        net.eval()(torch.randn(2, 3, 16, 16))
    assert "but of 32×32" in str(error.value)
    assert "\n" not in str(error.value)
    with torch.device("meta"):
        vit = TorchvisionBackbone("vit_b_16")
        with pytest.raises(InputError, match=r"of 64×64 pixels, but of 224×224: .*\(Wrong image height"):
            vit.eval()(torch.empty(1, 3, 64, 64))


def test_other_errors_of_a_library_stay_what_they_are() -> None:
    net = TorchvisionBackbone("densenet121").double()
    with pytest.raises(RuntimeError, match=r"type|dtype"):
        net.eval()(torch.randn(1, 3, 32, 32))
