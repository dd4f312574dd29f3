from __future__ import annotations

from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS
from torch import Tensor, nn

from odc.errors import InputError
from odc.heads import ClusterHead
from odc.models import ClusterModel
from odc.registry import HEADS
from odc.structures import Batch, Comm, Labels, LocalComm, Losses, Plan, Stream, make_generator


@HEADS.register_module(force=True)
class Spy(ClusterHead):
    """Keeps the batches it was given."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_channels))
        self.seen: dict[str, Batch] = {}
        self.autocast = True

    def plan(self, epoch: int) -> Plan:
        return Plan((Stream("train", 4),))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        self.seen = batches
        self.autocast = torch.is_autocast_enabled("cpu")
        return Losses(
            {"loss": torch.stack([(z * self.scale).sum() for b in batches.values() for z in b.z.values()]).sum()}
        )

    def predict(self, z: Tensor) -> Tensor:
        return z


def model(**options: Any) -> ClusterModel:
    return ClusterModel(**{"backbone": dict(type="ConvNet", widths=[4, 6]), "head": dict(type="Spy"), **options})


def rows(n: int, P: int = 1) -> Batch:
    return Batch(torch.arange(n), torch.zeros(n, P).long(), torch.zeros(n).long(), torch.zeros(n, 1).long(), {})


def images(shapes: dict[tuple[str, str], tuple[int, int, int]]) -> dict[tuple[str, str], Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {key: torch.randn(B, P, 1, side, side, generator=rng) for key, (B, P, side) in shapes.items()}


def count_forwards(m: ClusterModel) -> list[int]:
    sizes: list[int] = []
    m.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize(("images", "left"), [(50, 10), (11, 10), (10, 9), (2, 1)])
def test_an_image_has_no_more_neighbours_than_there_are_others(images: int, left: int) -> None:
    before = dict(head=dict(type="SCANHead", neighbours=10))
    after, told = ClusterModel.fitted(before, images)
    assert after["head"] == dict(type="SCANHead", neighbours=left)
    assert before["head"]["neighbours"] == 10
    assert (told is None) == (left == 10)
    assert told is None or f"{images} images have {left} neighbours each, not 10" in told
    assert ClusterModel.fitted(dict(head=dict(type="ODCHead")), images) == (dict(head=dict(type="ODCHead")), None)


def test_all_views_of_all_streams_pass_the_backbone_once() -> None:
    m = model()
    sizes = count_forwards(m)
    x = images({("a", "weak"): (4, 2, 8), ("a", "strong"): (4, 2, 8), ("b", "weak"): (6, 1, 8)})
    _, batches = m(x, {"a": rows(4, 2), "b": rows(6)}, make_generator(0), LocalComm())
    assert sizes == [4 * 2 + 4 * 2 + 6]
    assert {k: tuple(z.shape) for k, z in batches["a"].z.items()} == {"weak": (4, 2, 6), "strong": (4, 2, 6)}
    assert {k: tuple(z.shape) for k, z in batches["b"].z.items()} == {"weak": (6, 1, 6)}


def test_one_forward_for_each_size_of_image() -> None:
    m = model()
    sizes = count_forwards(m)
    x = images({("a", "small"): (4, 1, 8), ("a", "large"): (4, 1, 16), ("b", "small"): (3, 1, 8)})
    m(x, {"a": rows(4), "b": rows(3)}, make_generator(0), LocalComm())
    assert sorted(sizes) == [4, 7]


def test_every_image_gets_its_own_features() -> None:
    m = model().eval()
    x = images({("a", "v"): (3, 2, 8), ("a", "w"): (3, 2, 8), ("b", "v"): (5, 1, 8), ("a", "large"): (3, 2, 12)})
    _, batches = m(x, {"a": rows(3, 2), "b": rows(5)}, make_generator(0), LocalComm())
    for (stream, view), value in x.items():
        for b in range(value.shape[0]):
            for p in range(value.shape[1]):
                alone = m.features(value[b, p][None])[0]
                torch.testing.assert_close(batches[stream].z[view][b, p], alone)


def test_the_loss_sees_gradients_and_the_update_does_not() -> None:
    m = model()
    head = m.head
    assert isinstance(head, Spy)
    losses, batches = m(images({("a", "v"): (4, 1, 8)}), {"a": rows(4)}, make_generator(0), LocalComm())
    assert head.seen["a"].z["v"].requires_grad
    assert not batches["a"].z["v"].requires_grad
    assert torch.equal(head.seen["a"].z["v"], batches["a"].z["v"])
    losses.train["loss"].backward()
    assert all(p.grad is not None for p in m.parameters())


def test_heads_compute_in_float32_under_autocast() -> None:
    m = model()
    head = m.head
    assert isinstance(head, Spy)
    kinds: list[torch.dtype] = []
    m.backbone.layers[0].register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, batches = m(images({("a", "v"): (4, 1, 8)}), {"a": rows(4)}, make_generator(0), LocalComm())
    assert kinds == [torch.bfloat16], "the backbone did not compute in bfloat16"
    assert head.seen["a"].z["v"].dtype == batches["a"].z["v"].dtype == losses.train["loss"].dtype == torch.float32
    assert not head.autocast


def test_labels_are_part_of_the_state_and_start_empty() -> None:
    m = model()
    assert m.labels.index.shape[0] == 0
    assert {"labels.index", "labels.target", "labels.counts"} <= set(m.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(head={**HEAD_CONFIGS["dc"], "pca_dims": 4}), ["'DeepClusterHead'", "'pca_dims'", "'pca_dim'"]),
        (dict(head={**HEAD_CONFIGS["odc"], "min_clusters": 4}), ["'ODCHead'", "'min_clusters'", "'min_cluster'"]),
        (dict(head=dict(type="ODCHead")), ["'ODCHead'", "num_clusters"]),
        (dict(head=dict(type="DeepClusterHaed")), ["'DeepClusterHaed'", "'DeepClusterHead'"]),
        (dict(head={**HEAD_CONFIGS["dc"], "balance": "weight"}), ["'sampling'", "'weights'", "'weight'"]),
        (dict(head={**HEAD_CONFIGS["odc"], "assign": "cosine"}), ["'l2'", "'dot'", "'cosine'"]),
        (dict(head={**HEAD_CONFIGS["odc"], "centroid_interval": 0}), ["centroid_interval", "at least 1", "0"]),
        (dict(head={**HEAD_CONFIGS["odc"], "momentum": 0.0}), ["momentum", "0.0"]),
        (dict(neck=dict(type="ODCNek")), ["'ODCNek'", "'ODCNeck'"]),
        (dict(neck=dict(type="ODCNeck", width=3)), ["'ODCNeck'", "'width'"]),
        (dict(head=dict(type=nn.Linear, out_features=3, in_features=3)), ["Linear"]),
    ],
)
def test_wrong_parts_are_told_in_one_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        model(**options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_head_must_be_a_cluster_head() -> None:
    class Impostor(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()

    with pytest.raises(InputError, match=r"'Impostor' must inherit from odc\.heads\.ClusterHead"):
        model(head=dict(type=Impostor))


def test_batch_norm_needs_two_images() -> None:
    model = ClusterModel(
        dict(type="ConvNet", widths=[4]), dict(type="DeepClusterHead", num_clusters=2), neck=dict(type="ODCNeck")
    )
    with pytest.raises(InputError, match=r"a step of 1 image a process: set model\.head\.batch_size to at least 2"):
        model.features(torch.zeros(1, 1, 8, 8))
    assert model.features(torch.zeros(2, 1, 8, 8)).shape == (2, 256)
    assert model.eval().features(torch.zeros(1, 1, 8, 8)).shape == (1, 256)
