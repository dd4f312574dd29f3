"""Weights of timm's and torchvision's networks: from a file, from a cache, from nowhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from small_heads import config
from test_convert import dino, halved, random_, vit
from torch import Tensor

from odc import apis
from odc.errors import InputError
from odc.models import ClusterModel, TimmBackbone, TorchvisionBackbone, fetching
from odc.models.convert import convert

timm = pytest.importorskip("timm")
State = dict[str, Tensor]
SMALL = "test_efficientnet"  # 0.4 million parameters

# Networks of every kind of names: blocks in stages and in chunks, layers, heads with norms, none of these.
NETWORKS = (SMALL, "test_byobnet", "test_convnext", "test_resnet", "test_vit", "test_nfnet", "regnetx_002")
LARGER = (
    *(
        "mobilenetv3_small_050",
        "levit_128s",
        "xcit_nano_12_p16_224",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "starnet_s1",
    ),
    *("swin_tiny_patch4_window7_224", "convmixer_768_32", "mixer_s32_224", "tiny_vit_5m_224", "resnet10t"),
    *("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "hiera_tiny_224", "coat_tiny", "densenet121"),
)
FILES: dict[str, Callable[[State, State, Path], Path]] = {
    "safetensors, with the classifier": lambda whole, _, to: _saved(whole, to / "a.safetensors"),
    "under a key": lambda whole, _, to: _saved({"state_dict": whole, "epoch": 3}, to / "a.pth"),
    "without the classifier": lambda _, features, to: _saved(features, to / "a.pth"),
    "converted": lambda whole, _, to: _converted(whole, to / "b.pth"),
    "converted to safetensors": lambda _, features, to: _converted(features, to / "b.safetensors"),
}


def _saved(content: dict[str, Any], file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in content.items()}, file)
    else:
        torch.save(content, file)
    return file


def _converted(state: State, file: Path) -> Path:
    convert(_saved(state, file.with_name("a.pth")), file, to="odc" if file.suffix == ".pth" else "timm")
    return file


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_a_network_takes_its_own_weights_in_any_file(name: str, tmp_path: Path) -> None:
    whole = random_(timm.create_model(name)).state_dict()
    model = TimmBackbone(name, weights="a")
    features = {key: whole[key] for key in model.model.state_dict()}
    for kind, save in FILES.items():
        for tensor in model.model.state_dict().values():
            tensor.zero_()
        model.weights = str(save(whole, features, tmp_path))
        model.init_weights()
        assert all(torch.equal(tensor, features[key]) for key, tensor in model.model.state_dict().items()), kind


@pytest.mark.parametrize(
    "name",
    [
        *("squeezenet1_1", "mnasnet0_5", "regnet_x_400mf"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("googlenet", "inception_v3", "swin_t", "densenet121")
        ),
    ],
)
def test_a_network_of_torchvision_takes_its_own_weights(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    whole = random_(torchvision.models.get_model(name, weights=None, **options)).state_dict()
    model = TorchvisionBackbone(name, weights="a")
    features = {key: whole[key] for key in model.model.state_dict()}
    for content, file in ((whole, tmp_path / "a.pth"), (features, tmp_path / "a.safetensors")):
        for tensor in model.model.state_dict().values():
            tensor.zero_()
        model.weights = str(_saved(content, file))
        model.init_weights()
        assert all(torch.equal(tensor, features[key]) for key, tensor in model.model.state_dict().items())


def test_the_features_are_those_of_the_library(tmp_path: Path) -> None:
    whole: Any = random_(timm.create_model(SMALL))
    model = TimmBackbone(SMALL, weights=str(_saved(whole.state_dict(), tmp_path / "a.safetensors"))).eval()
    model.init_weights()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(images), pre_logits=True)
        assert torch.equal(model(images), wanted)
        assert wanted.std() > 0


def _wrong(tmp_path: Path) -> dict[str, tuple[Path, list[str]]]:
    state = timm.create_model(SMALL).state_dict()
    less = {name: tensor for name, tensor in state.items() if not name.startswith("conv_head")}
    infinite = {name: tensor * float("inf") if name == "conv_stem.weight" else tensor for name, tensor in state.items()}
    torn = _saved(state, tmp_path / "torn.safetensors")
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("no weights")
    other = timm.create_model("test_byobnet").state_dict()
    longer = state | {"blocks.9.0.conv.weight": torch.zeros(1)}
    return {
        "other": (
            _saved(other, tmp_path / "other.pth"),
            ["does not fit the model's TimmBackbone 'test_", "missing"],
        ),
        "less": (_saved(less, tmp_path / "less.pth"), ["1 missing (model.conv_head.weight)"]),
        "more": (_saved(longer, tmp_path / "more.pth"), ["1 unexpected (model.blocks.9.0.conv.weight)"]),
        "infinite": (_saved(infinite, tmp_path / "inf.pth"), ["conv_stem.weight has values that are not finite"]),
        "torn": (torn, ["torn.safetensors' is damaged", "use another file"]),
        "text": (tmp_path / "text.pth", ["text.pth' is damaged or not a checkpoint"]),
        "gone": (tmp_path / "gone.pth", ["gone.pth' does not exist"]),
    }


@pytest.mark.parametrize("case", ["other", "less", "more", "infinite", "torn", "text", "gone"])
def test_wrong_weights_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    file, words = _wrong(tmp_path)[case]
    model = TimmBackbone(SMALL, weights=str(file))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        model.init_weights()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_other_shapes_are_told_with_both(tmp_path: Path) -> None:
    file = _saved(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "a.pth")
    model = TimmBackbone("mobilenetv3_small_075", weights=str(file))
    with pytest.raises(InputError, match=r"\d+ mismatched \(model\..*: file \(.*\), model \(.*\)"):
        model.init_weights()


def test_both_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"pretrained=True and weights='x.pth': leave one of them out"):
        TimmBackbone(SMALL, pretrained=True, weights="x.pth")


def test_without_either_nothing_is_loaded_or_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    for model in (TimmBackbone(SMALL), TorchvisionBackbone("squeezenet1_1")):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.init_weights()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- channels, sizes, pooling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_weights_for_colours_are_fitted_to_other_channels(channels: int, tmp_path: Path) -> None:
    """As timm does it, which sums for grey, and repeats and scales for others."""
    from timm.models import adapt_input_conv

    whole = random_(timm.create_model(SMALL)).state_dict()
    model = TimmBackbone(SMALL, weights=str(_saved(whole, tmp_path / "a.pth")), in_channels=channels)
    model.init_weights()
    wanted = adapt_input_conv(channels, whole["conv_stem.weight"])
    assert torch.allclose(model.model.conv_stem.weight, wanted, rtol=1e-6, atol=1e-7)


def test_positions_are_interpolated_to_another_size(tmp_path: Path) -> None:
    """As timm does it for weights of its own."""
    whole = random_(timm.create_model("test_vit")).state_dict()
    model = TimmBackbone("test_vit", weights=str(_saved(whole, tmp_path / "a.pth")), image_size=96)
    model.init_weights()
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": dict(whole)}, num_classes=0, img_size=96
    )
    assert model.model.pos_embed.shape == (1, 37, 64)
    assert all(torch.equal(tensor, model.model.state_dict()[key]) for key, tensor in theirs.state_dict().items())


def test_positions_of_wrapped_weights_are_interpolated_too(tmp_path: Path) -> None:
    """A checkpoint of ours, at another size."""
    whole = random_(timm.create_model("test_vit", num_classes=0)).state_dict()
    ours = {f"backbone.model.{name}": tensor for name, tensor in whole.items()} | {"labels.index": torch.zeros(1)}
    plain, wrapped = _saved(whole, tmp_path / "a.pth"), _saved({"state_dict": ours}, tmp_path / "b.pth")
    models = [TimmBackbone("test_vit", weights=str(file), image_size=96) for file in (plain, wrapped)]
    for model in models:
        model.init_weights()
    one, other = (model.model.state_dict() for model in models)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_names_of_other_projects_are_read(tmp_path: Path) -> None:
    theirs = vit().state_dict()
    ours = TimmBackbone("test_vit")
    ours.model = vit()
    for tensor in ours.model.state_dict().values():
        tensor.zero_()
    ours.weights = str(_saved({k: v for k, v in dino(theirs).items() if k != "args"}, tmp_path / "dino.pth"))
    ours.init_weights()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.model.state_dict().items())


def test_an_average_comes_after_what_it_is_of(tmp_path: Path) -> None:
    whole = random_(timm.create_model(SMALL)).state_dict()
    file = _saved({"state_dict_ema": halved(whole), "state_dict": whole}, tmp_path / "a.pth")
    model = TimmBackbone(SMALL, weights=str(file))
    model.init_weights()
    assert torch.equal(model.model.conv_stem.weight, whole["conv_stem.weight"])


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_what_is_pooled(name: str) -> None:
    """By hand, from the tokens behind the last norm: a class token first, others behind it, then the patches."""
    plain = TimmBackbone(name).eval()
    images = torch.randn(2, 3, 160, 160)
    others = plain.model.num_prefix_tokens
    has_class = plain.model.cls_token is not None
    with torch.no_grad():
        tokens = plain.model.fc_norm(plain.model.forward_features(images))
        wanted = {"mean": plain.model.fc_norm(plain.model.forward_features(images)[:, others:].mean(1))}
        if has_class:
            wanted |= {"class": tokens[:, 0], "class+mean": torch.cat([tokens[:, 0], wanted["mean"]], dim=1)}
        for pool, z in wanted.items():
            model = TimmBackbone(name, pool=pool).eval()
            model.load_state_dict(plain.state_dict())
            assert model.out_channels == z.shape[1]
            assert torch.allclose(model(images), z, atol=1e-5), pool
    if not has_class:
        with pytest.raises(InputError, match=rf"'{name}' has no class token: leave pool='class' out"):
            TimmBackbone(name, pool="class")


def test_pools_that_there_are_not() -> None:
    with pytest.raises(InputError, match="'test_vit' has no pool 'avg'; known: class, class\\+mean, mean"):
        TimmBackbone("test_vit", pool="avg")
    with pytest.raises(InputError, match=f"'{SMALL}' has no tokens of its own to pool: leave pool='mean' out"):
        TimmBackbone(SMALL, pool="mean")
    with pytest.raises(InputError, match="leave pool='class' or projection=True out"):
        TimmBackbone("test_vit", pool="class", projection=True)


def test_a_projection_is_the_last_layer(tmp_path: Path) -> None:
    whole = random_(timm.create_model("test_vit"))
    file = _saved(whole.state_dict(), tmp_path / "a.pth")
    model = TimmBackbone("test_vit", weights=str(file), projection=True).eval()
    model.init_weights()
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model(images), whole(images))
    assert model.out_channels == 1000


# -- caches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, on a machine without a network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetching, "_unreachable", lambda url: "no such host")
    return tmp_path / "hub"


def test_weights_that_cannot_be_fetched(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TimmBackbone("test_vit.r160_in1k", pretrained=True)
    with pytest.raises(InputError) as error:
        model.init_weights()
    assert str(error.value) == (
        f"the weights of 'test_vit.r160_in1k' are not in the cache {hub} and cannot be fetched (no such host): file "
        "'model.safetensors' of the repository 'timm/test_vit.r160_in1k' on the Hugging Face hub; fetch them where "
        "there is a network and copy the cache, or give a file of them by weights=FILE"
    )
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        model.init_weights()


def test_weights_in_the_cache_need_no_network(hub: Path) -> None:
    whole = random_(timm.create_model("test_vit")).state_dict()
    repository = hub / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(whole, repository / "snapshots" / "abc" / "model.safetensors")
    model = TimmBackbone("test_vit", pretrained=True, image_size=160)
    model.init_weights()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in model.model.state_dict().items())
    (repository / "snapshots" / "abc" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model.safetensors' is damaged .*use another file"):
        model.init_weights()


def test_torchvisions_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fetching, "_unreachable", lambda url: "no such host")
    name = "squeezenet1_1.IMAGENET1K_V1"
    model = TorchvisionBackbone(name, pretrained=True)
    with pytest.raises(InputError, match=rf"the weights of '{name}' are not in the cache {tmp_path}/checkpoints and"):
        model.init_weights()
    whole = random_(torchvision.models.squeezenet1_1(weights=None)).state_dict()
    file = str(torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    torch.save(whole, tmp_path / "checkpoints" / file)
    model.init_weights()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in model.model.state_dict().items())
    named = TorchvisionBackbone("squeezenet1_1", weights=str(tmp_path / "checkpoints" / file))
    named.init_weights()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in named.model.state_dict().items())


def test_a_server_that_does_not_answer_is_told_quickly() -> None:
    assert "refused" in str(fetching._unreachable("http://127.0.0.1:9/weights")).lower()
    assert fetching._unreachable("nonsense") is not None


# -- in a run --------------------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(torch.randint(0, 255, (12, 40, 48, 3), generator=torch.Generator().manual_seed(0))):
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{i:02d}.png")
    return folder


def _training(tmp_path: Path, **options: Any) -> Any:
    cfg = config("dc", str(tmp_path / "run"))
    cfg.model.backbone = dict(type="TimmBackbone", name=SMALL, weights=str(tmp_path / "a.pth"))
    cfg.model.neck, cfg.model.frozen = dict(type="AvgPool"), ["backbone", "neck"]
    cfg.data.dataset = dict(type="ImageFolder", root=str(tmp_path / "pictures"))
    wanted = [dict(type="AsPretrained", size=32)]
    cfg.data.views = dict(extract=wanted, train=[dict(type="RandomResizedCrop", size=32), *wanted])
    cfg.model.head.batch_size = 4
    cfg.custom_hooks, cfg.val_evaluator, cfg.log_level = [], [dict(type="ClusterMetrics")], "INFO"
    return apis.prepare_config(cfg, cfg_options=options)


def test_a_run_needs_its_weights_once(tmp_path: Path) -> None:
    _pictures(tmp_path / "pictures")
    whole = random_(timm.create_model(SMALL)).state_dict()
    _saved(whole, tmp_path / "a.pth")
    apis.train(_training(tmp_path, **{"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}))
    (log,) = (tmp_path / "run").glob("*/*.log")
    text = log.read_text()
    assert f"timm's {SMALL} from {tmp_path}/a.pth: " in text
    assert "images are seen as the weights of test_efficientnet want them: 32×32 pixels (shorter side 32, bic" in text
    (tmp_path / "a.pth").unlink()

    apis.train(_training(tmp_path, resume=True, **{"train_cfg.val_interval": 1}))
    last = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)["state_dict"]
    assert torch.equal(last["backbone.model.conv_stem.weight"], whole["conv_stem.weight"])
    assert apis.evaluate(_training(tmp_path), str(tmp_path / "run" / "epoch_2.pth"))
    found = apis.extract_features(_training(tmp_path), str(tmp_path / "run" / "epoch_2.pth"))
    assert found.features.shape == (12, 256)

    shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match=r"a\.pth' does not exist"):
        apis.train(_training(tmp_path))


def test_a_pretrained_backbone_needs_no_other_weights(tmp_path: Path) -> None:
    whole = random_(timm.create_model(SMALL)).state_dict()
    backbone = dict(type="TimmBackbone", name=SMALL, weights=str(tmp_path / "gone.pth"))
    given = str(_saved(whole, tmp_path / "a.pth"))
    model = ClusterModel(backbone, dict(type="DeepClusterHead", num_clusters=3), pretrained=given)
    model.init_weights()
    assert torch.equal(model.backbone.model.conv_stem.weight, whole["conv_stem.weight"])


def test_frozen_is_one_flag_away() -> None:
    def trained(**options: Any) -> bool:
        model = ClusterModel(dict(type="ConvNet"), dict(type="DeepClusterHead", num_clusters=3), **options)
        return any(parameter.requires_grad for parameter in model.backbone.parameters())

    assert trained()
    assert trained(frozen=False)
    assert not trained(frozen=True)
    assert not trained(frozen=["backbone", "neck"])
