"""DeeperCluster's head: the loss against the equation row by row, labels, sampling, and the special cases."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deeper_ranks import slow_loss
from mmengine.logging import MMLogger
from torch import Tensor

from odc.clustering import two_level_kmeans
from odc.data.sampler import draw_rows
from odc.errors import InputError
from odc.heads import DeeperClusterHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, PseudoLabels, Refresh, make_generator

COMM = LocalComm()
MODES = ("hierarchy", "sum", "product")


def table(features: Tensor) -> FeatureTable:
    """Return a table of a copy, since a refresh overwrites it."""
    return FeatureTable(torch.arange(len(features)), features.clone(), None, len(features))


def groups(sizes: tuple[int, ...] = (30, 20, 10, 25, 15, 12), D: int = 8) -> Tensor:
    rng = make_generator(0)
    centres = 4 * torch.randn(len(sizes), D, generator=rng).repeat_interleave(torch.tensor(sizes), 0)
    return centres + 0.05 * torch.randn(centres.shape, generator=rng) + 7


def make_head(seed: int = 0, **options: Any) -> DeeperClusterHead:
    """Return a head whose weights are all sizeable."""
    head = DeeperClusterHead(**{"in_channels": 8, "num_clusters": 7, "num_super": 2, **options})
    rng = make_generator(seed)
    for parameter in head.parameters():
        parameter.data.normal_(generator=rng)
    return head


def make_batch(head: DeeperClusterHead, B: int = 30, dtype: torch.dtype = torch.float64) -> Batch:
    rng = make_generator(1)
    S, C = head.num_classes
    target = torch.stack([torch.randint(S, (B,), generator=rng), torch.randint(C, (B,), generator=rng)], 1)
    if head.sub_classifiers is not None:
        exists = head.sub_classifiers.exists
        target[:, 1] %= exists.sum(1)[target[:, 0] if len(exists) > 1 else 0]
    z = torch.randn(B, 1, head.mean.shape[0], generator=rng, dtype=dtype)
    row = torch.arange(B)
    return Batch(row, row[:, None], torch.zeros_like(row), target, {"rotated": z})


def losses_of(head: DeeperClusterHead, batch: Batch) -> dict[str, Tensor]:
    return head.loss({"train": batch}, LabelStore(0).view(), make_generator(0), COMM).train


@pytest.mark.parametrize("classes", MODES)
@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("num_super", [1, 2, 3])
def test_loss_and_gradients_are_those_of_the_equation(classes: str, rotation: bool, num_super: int) -> None:
    head = make_head(num_super=num_super, rotation=rotation, classes=classes).double()
    batch = make_batch(head)
    z = batch.z["rotated"].requires_grad_()
    torch.stack(list(losses_of(head, batch).values())).sum().backward()
    got = [p.grad for p in (z, *head.parameters())]
    for p in (z, *head.parameters()):
        p.grad = None
    slow_loss(head, batch).backward()
    for mine, p in zip(got, (z, *head.parameters()), strict=True):
        assert p.grad is not None
        assert p.grad.any()
        torch.testing.assert_close(mine, p.grad, atol=1e-12, rtol=1e-9)


def test_loss_in_float32_and_with_all_rows_in_one_super_class() -> None:
    head = make_head()
    batch = make_batch(head, dtype=torch.float32)
    for column in (batch.target[:, 0], torch.full_like(batch.target[:, 0], 3)):
        one = replace(batch, target=torch.stack([column, batch.target[:, 1]], 1))
        losses = losses_of(head, one)
        assert set(losses) == {"super_loss", "sub_loss"}
        total = torch.stack(list(losses.values())).sum()
        assert float(total.detach()) == pytest.approx(float(slow_loss(head, one).detach()), rel=1e-6)


def test_missing_classes_take_no_part() -> None:
    head = make_head().double()
    below = head.sub_classifiers
    assert below is not None
    exists = torch.ones(8, 4, dtype=torch.bool)
    exists[:4, 2:] = exists[5, 3] = False
    below.exists.copy_(exists)
    batch = make_batch(head)
    losses = torch.stack(list(losses_of(head, batch).values())).sum()
    assert float(losses.detach()) == pytest.approx(float(slow_loss(head, batch).detach()), rel=1e-12)
    losses.backward()
    assert below.weight.grad is not None
    assert below.bias.grad is not None
    assert not below.weight.grad[~exists].any()
    assert not below.bias.grad[~exists].any()
    assert bool(below.weight.grad.isfinite().all())


def test_a_scaled_gradient_is_that_of_the_sub_classifiers_alone() -> None:
    plain, scaled = make_head(), make_head(scale_sub_gradient=True)
    z = []
    for head in (plain, scaled):
        batch = make_batch(head, dtype=torch.float32)
        z.append(batch.z["rotated"].requires_grad_())
        torch.stack(list(losses_of(head, batch).values())).sum().backward()
    torch.testing.assert_close(z[0].grad, z[1].grad)
    for (name, p), q in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = 8 if name.startswith("sub_classifiers") else 1
        torch.testing.assert_close(q.grad, p.grad * factor)  # type: ignore[operator]


def refresh(head: DeeperClusterHead, seed: int) -> None:
    """Refresh as the loop does: new labels, then new classifiers."""
    generator = make_generator(seed)
    plan = head.plan(0).refresh
    head.refresh(table(groups()), generator, COMM)
    assert plan is not None
    for name in plan.reset:
        module: Any = head.get_submodule(name)
        module.reset(generator)


def test_rows_are_images_times_rotations() -> None:
    x = groups()
    head = DeeperClusterHead(8, 6, num_super=2, pca_dim=5)
    labels = head.refresh(table(x), make_generator(1), COMM)
    N = len(x)
    assert labels.num_classes == (8, 3)
    assert labels.index[:, 0].tolist() == [i for i in range(N) for _ in range(4)]
    assert labels.variant.tolist() == [0, 1, 2, 3] * N
    s, z = labels.target.view(N, 4, 2).unbind(2)
    assert torch.equal(s - s[:, :1], torch.arange(4).expand(N, 4)), "s = 4 · super-cluster + rotation"
    assert not (s[:, 0] % 4).any()
    assert torch.equal(z, z[:, :1].expand(N, 4)), "the four rotations share their sub-label"
    LabelStore(N).replace(labels)


def test_clusters_are_those_of_the_whitened_unit_features() -> None:
    x = groups()
    head = DeeperClusterHead(8, 6, num_super=2, pca_dim=5, rotation=False)
    labels = head.refresh(table(x), make_generator(1), COMM)
    u = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False).U[:, :5]
    wanted = two_level_kmeans(F.normalize(u).float(), 6, 2, generator=make_generator(1), comm=COMM)
    assert torch.equal(labels.target, torch.stack([wanted.super_labels, wanted.sub_labels], 1))


def test_the_other_ways_to_combine_rotation_and_clusters() -> None:
    x = groups()
    rows: dict[str, PseudoLabels] = {}
    for classes in MODES:
        head = DeeperClusterHead(8, 7, num_super=2, pca_dim=5, classes=classes)
        rows[classes] = head.refresh(table(x), make_generator(1), COMM)
        assert all(int(rows[classes].target[:, c].max()) < n for c, n in enumerate(head.num_classes))
    s, z = rows["hierarchy"].target.unbind(1)
    rotation = torch.arange(4).repeat(len(x))
    cluster = torch.where(s // 4 == 0, 0, 4) + z  # 7 clusters: 4 in the first super-cluster, 3 in the second
    assert rows["sum"].num_classes == (4, 7)
    assert torch.equal(rows["sum"].target, torch.stack([rotation, cluster], 1))
    assert rows["product"].num_classes == (1, 28)
    assert torch.equal(rows["product"].target, torch.stack([0 * rotation, 4 * cluster + rotation], 1))


def test_clustering_alone() -> None:
    head = DeeperClusterHead(8, 6, num_super=2, pca_dim=5, rotation=False)
    labels = head.refresh(table(groups()), make_generator(1), COMM)
    assert labels.num_classes == (2, 3)
    assert not labels.variant.any()
    assert len(labels.index) == 112
    assert head.plan(0).streams[0].views == ("train",)
    assert DeeperClusterHead(8, 6, num_super=1, rotation=False).classifier is None, "one class: nothing to learn"


def test_rotation_alone_is_rotnet() -> None:
    head = make_head(num_clusters=1, num_super=1)
    assert head.sub_classifiers is None
    # Rotations keep their names, so no reset: the classifier goes on learning.
    assert [head.plan(epoch).refresh for epoch in range(5)] == [Refresh(reset=()), None, None, None, None]
    assert head.classifier is not None
    before = head.classifier.weight.clone()
    labels = head.refresh(table(groups()), make_generator(1), COMM)
    assert torch.equal(head.classifier.weight, before)
    assert torch.equal(labels.target, torch.stack([labels.variant, 0 * labels.variant], 1))
    assert labels.num_classes == (4, 1)
    batch = make_batch(head, dtype=torch.float32)
    losses = losses_of(head, batch)
    assert set(losses) == {"super_loss"}
    wanted = torch.nn.functional.cross_entropy(head.classifier(batch.z["rotated"][:, 0].relu()), batch.target[:, 0])
    assert torch.equal(losses["super_loss"], wanted)
    assert head.predict(torch.randn(3, 8)).shape == (3, 1)


def test_rows_are_drawn_evenly_over_super_classes_and_then_over_sub_labels() -> None:
    head = DeeperClusterHead(8, 6, num_super=2, pca_dim=5, batch_size=32)
    labels = head.refresh(table(groups()), make_generator(1), COMM)
    rows = draw_rows(head.plan(0).streams[0], labels.target, None, make_generator(2))
    assert rows.shape == (14, 32)
    drawn = labels.target[rows.flatten()]
    counts = torch.zeros(8, 3, dtype=torch.int64).index_put_(tuple(drawn.unbind(1)), torch.tensor(1), accumulate=True)
    assert set(counts.sum(1).tolist()) == {56}, "448 rows over 8 super-classes"
    assert int(counts.min()) >= 56 // 3
    assert int(counts.max()) <= 56 // 3 + 1


def test_plans() -> None:
    def plans(**options: Any) -> list[tuple[str, ...] | None]:
        head = DeeperClusterHead(8, 6, **options)
        found = [head.plan(epoch) for epoch in range(4)]
        assert all(plan.streams[0].balance == (0, 1) for plan in found)
        resets = [None if plan.refresh is None else plan.refresh.reset for plan in found]
        assert {name for reset in resets for name in reset or ()} <= {name for name, _ in head.named_children()}
        return resets

    both, sub = ("classifier", "sub_classifiers"), ("sub_classifiers",)
    assert plans(num_super=2) == [both, None, None, both]
    assert plans(num_super=2, refresh_interval=2) == [both, None, both, None]
    assert plans(num_super=1, refresh_interval=1) == [sub] * 4
    assert plans(num_super=2, classes="sum") == [sub, None, None, sub]
    assert DeeperClusterHead(8, 6).plan(0).streams[0].views == ("rotated",)


@pytest.mark.parametrize(
    ("num_super", "classes", "anew"), [(2, "hierarchy", True), (1, "hierarchy", False), (2, "sum", False)]
)
def test_classifiers_of_new_classes_are_drawn_anew(num_super: int, classes: str, anew: bool) -> None:
    head = make_head(num_clusters=6, num_super=num_super, classes=classes, pca_dim=5)
    assert head.classifier is not None
    assert head.sub_classifiers is not None
    before = head.classifier.weight.clone()
    refresh(head, 1)
    assert torch.equal(head.classifier.weight, before) != anew
    first = head.sub_classifiers.weight.clone()
    assert 0.005 < float(first.detach().std()) < 0.02
    assert not head.sub_classifiers.bias.any()
    refresh(head, 1)
    assert torch.equal(head.sub_classifiers.weight, first), "not a function of the generator alone"
    refresh(head, 2)
    assert not torch.equal(head.sub_classifiers.weight, first)


def test_the_cluster_of_an_image_is_that_of_its_label() -> None:
    rng = make_generator(7)
    x = torch.randn(300, 8, generator=rng)
    for num_clusters, num_super, pca_dim in ((20, 3, None), (7, 1, 4), (9, 9, 5)):
        head = DeeperClusterHead(8, num_clusters, num_super=num_super, pca_dim=pca_dim, classes="sum")
        labels = head.refresh(table(x), make_generator(1), COMM)
        scores = head.predict(x)
        assert scores.shape == (300, num_clusters)
        # Two matrix products of different shapes may round differently: a point on a border may fall either way.
        assert int((scores.argmax(1) == labels.target[::4, 1]).sum()) >= 299


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


def test_a_super_cluster_with_too_few_images_has_fewer_sub_clusters_and_that_is_said() -> None:
    x = groups((40, 2), D=4)  # two images far from all others, where 3 sub-clusters are due
    x[40:] = torch.tensor([[1e3, 0, 0, 0], [1e3, 1e-2, 0, 0]])
    head = DeeperClusterHead(4, 42, num_super=14, pca_dim=4)
    logger, lines = MMLogger.get_current_instance(), Lines()
    logger.addHandler(lines)
    try:
        labels = head.refresh(table(x), make_generator(1), COMM)
    finally:
        logger.removeHandler(lines)
    missing = 42 - int(head.num_sub.sum())
    assert missing > 0
    said = [line for level, line in lines.lines if level == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith(f"{missing} of 42 sub-clusters are missing")
    assert head.sub_classifiers is not None
    exists = head.sub_classifiers.exists
    assert int((~exists).sum()) == 4 * missing
    s, z = labels.target.unbind(1)
    assert bool(exists[s, z].all())
    assert len(labels.target[::4].unique(dim=0)) == 42 - missing, "no sub-cluster is empty"
    scores = head.predict(x)
    assert int((scores == -torch.inf).all(0).sum()) == missing
    batch = Batch(s, s[:, None], s, labels.target, {"rotated": x.repeat_interleave(4, 0)[:, None] / 100})
    assert bool(torch.stack(list(losses_of(head, batch).values())).isfinite().all())


def test_what_does_not_fit_into_memory_is_said_with_both_numbers() -> None:
    with pytest.raises(
        InputError, match=r"16 sub-classifiers of 250,000,000 .* need [\d.]+ GiB .* has [\d.]+ GiB"
    ) as e:
        DeeperClusterHead(4096, 10**9, num_super=4)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_clusters=5, classes="flat"), "'hierarchy', 'sum' or 'product', not 'flat'"),
        (dict(num_clusters=3, num_super=4), "4 super-clusters of 3 clusters"),
        (dict(num_clusters=3, num_super=0), "0 super-clusters of 3 clusters"),
        (dict(num_clusters=5, refresh_interval=0), "at least 1, not 0"),
        (dict(num_clusters=1, num_super=1, rotation=False), "nothing to learn"),
    ],
)
def test_wrong_options_are_told_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        DeeperClusterHead(8, **options)
    assert "\n" not in str(error.value)


def test_more_clusters_than_images() -> None:
    with pytest.raises(InputError, match="200 clusters from 112 samples"):
        DeeperClusterHead(8, 200).refresh(table(groups()), make_generator(0), COMM)
