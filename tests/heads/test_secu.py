from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads import SeCuHead
from odc.heads.secu import center_losses, entropy_gain, representation_losses
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, Refresh, make_generator

COMM = LocalComm()
D, K = 5, 3


def start(n: int = 12, **options: Any) -> tuple[SeCuHead, LabelStore]:
    torch.manual_seed(0)
    head = SeCuHead(D, K, **{"multiples": (1, 2), "batch_size": 6, "out_channels": 4, **options})
    store = LabelStore(n)
    with torch.no_grad():  # as the loop does
        labels = head.refresh(FeatureTable(torch.arange(n), torch.randn(n, D), None, n), torch.Generator(), COMM)
    assert labels is not None
    store.replace(labels)
    return head, store


def batch(store: LabelStore, rows: Tensor, seed: int = 0) -> dict[str, Batch]:
    z = torch.randn(2, len(rows), 1, D, generator=make_generator(seed))
    views = {"query": z[0], "key": z[1]}
    return {"train": Batch(rows, store.index[rows], store.variant[rows], store.target[rows], views)}


def follow(head: SeCuHead, store: LabelStore, batches: dict[str, Batch]) -> None:
    with torch.no_grad():
        for delta in head.update(batches, store.view(), torch.Generator(), COMM):
            store.update(delta)


def test_the_gradient_on_centres_is_that_of_the_paper() -> None:
    z = F.normalize(torch.randn(7, 4, generator=make_generator(1)))
    c = F.normalize(torch.randn(3, 4, generator=make_generator(2))).requires_grad_()
    label, t = torch.tensor([0, 0, 1, 0, 1, 0, 0]), 0.3
    logits = z @ c.T / t
    center_losses(logits, label).sum().backward()
    assert c.grad is not None
    p = logits.detach().softmax(1)
    for k in range(3):
        wanted = sum((-(1 - p[i, k]) * z[i] / t for i in range(7) if label[i] == k), torch.zeros(4))
        torch.testing.assert_close(c.grad[k], wanted)
    assert not c.grad[2].any(), "a cluster without an image is pushed"
    torch.testing.assert_close(center_losses(logits, label), F.cross_entropy(logits, label, reduction="none"))


def test_representation_losses_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two views of one image
    p = [math.exp(2) / (math.exp(2) + 1), 1 / (1 + math.e)]  # of the first cluster
    found = representation_losses(logits, torch.tensor([1]), 0.2)
    for view, (mine, other) in enumerate(((p[0], p[1]), (p[1], p[0]))):
        wanted = -(0.8 * other * math.log(mine) + (0.8 * (1 - other) + 0.2) * math.log(1 - mine))
        assert float(found[view, 0]) == pytest.approx(wanted, rel=1e-5)
    grad = logits.clone().requires_grad_()
    representation_losses(grad, torch.tensor([1]), 0.2)[0].sum().backward()
    assert grad.grad is not None
    assert not grad.grad[1].any(), "the other view is a target, without gradient"


def test_a_step_by_the_equations() -> None:
    head, store = start(tau=0.3, temperature=0.2, center_temperature=0.5, dual_lr=0.7)
    head.dual[:, 0] = torch.tensor([0.4, 0.1])
    rows = torch.tensor([3, 8, 1, 0, 11, 5])
    store.target[rows[:4]] = torch.tensor([[0, 5], [2, 0], [1, 1], [0, 3]])
    head.start_centers.add_(0.3)
    batches, before = batch(store, rows), head.dual.clone()
    losses = head.loss(batches, store.view(), torch.Generator(), COMM)

    x = torch.cat([batches["train"].z[view][:, 0] for view in ("query", "key")])
    z1, z2 = head.project(x).detach().double().chunk(2)
    center = representation = moved = 0.0
    labels = []
    for h, (low, high) in enumerate(((0, 3), (3, 9))):
        c = F.normalize(head.centers.detach().double()[low:high])
        c0 = F.normalize(head.start_centers.double()[low:high])
        new = []
        for i, row in enumerate(rows.tolist()):
            y = int(((z1[i] + z2[i]) @ c.T / 2 + before[h, : high - low]).argmax())
            new.append(y)
            known = int(store.target[row, h])
            moved += (h == 0) * (known >= 0 and known != y) / 6
            hot = F.one_hot(torch.tensor(known if known >= 0 else y), high - low).double()
            for mine, other in ((z1[i], z2[i]), (z2[i], z1[i])):
                center -= float((c @ mine / 0.5).log_softmax(0)[y]) / 24
                wanted = 0.7 * (c0 @ other / 0.2).softmax(0) + 0.3 * hot
                representation -= float((wanted * (c0 @ mine / 0.2).log_softmax(0)).sum()) / 24
        labels.append(new)
    assert float(losses.train["center_loss"].detach()) == pytest.approx(center, rel=1e-5)
    assert float(losses.train["loss"].detach()) == pytest.approx(representation, rel=1e-5)
    assert float(losses.log["moved"]) == pytest.approx(moved)
    assert torch.equal(head.dual, before), "the loss changes nothing"

    follow(head, store, batches)
    assert store.target[rows].T.tolist() == labels
    for h, size in enumerate((3, 6)):
        for k in range(size):
            dual = float(before[h, k]) + 0.7 * (0.9 / size - labels[h].count(k) / 6)
            assert float(head.dual[h, k]) == pytest.approx(max(0.0, dual), abs=1e-6)
    assert not head.dual[0, 3:].any(), "of clusters that the first clustering has not"


def test_gradients_reach_centres_by_their_loss_alone() -> None:
    head, store = start()
    batches = batch(store, torch.arange(6))
    losses = head.loss(batches, store.view(), torch.Generator(), COMM).train
    for loss, others in (("loss", [head.centers]), ("center_loss", list(head.projector.parameters()))):
        found = torch.autograd.grad(losses[loss], others, allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in found)


def test_the_centres_of_the_representation_loss_are_those_when_the_epoch_began() -> None:
    head, store = start()  # two steps an epoch
    first = head.start_centers.clone()
    assert torch.equal(first, head.centers)
    for step in range(4):
        batches = batch(store, torch.arange(6) + 6 * (step % 2), seed=step)
        head.loss(batches, store.view(), torch.Generator(), COMM)
        with torch.no_grad():
            head.centers.add_(1.0)  # what the optimiser does
        follow(head, store, batches)
        torch.testing.assert_close(head.start_centers, first + (step + 1) // 2 * 2)


def test_counts_follow_the_labels() -> None:
    head, store = start()
    for step in range(5):
        batches = batch(store, torch.randperm(12, generator=make_generator(step))[:6], seed=step)
        head.loss(batches, store.view(), torch.Generator(), COMM)
        follow(head, store, batches)
        for h, size in enumerate((3, 6)):
            known = store.target[:, h]
            assert head.counts[h, :size].tolist() == torch.bincount(known[known >= 0], minlength=size).tolist()


def slow_gain(counts: list[int], label: int, k: int) -> float:
    def negative_entropy(c: list[int]) -> float:
        total = sum(counts) + (label < 0)
        return sum(n / total * math.log(n / total) for n in c if n)

    after = list(counts)
    if label >= 0:
        after[label] -= 1
    after[k] += 1
    return negative_entropy(after) - negative_entropy(counts)


def test_entropy_gain_is_the_difference_of_two_entropies() -> None:
    counts, label = torch.tensor([[5, 1, 0], [2, 2, 2]]), torch.tensor([[0, 2], [1, 0], [-1, -1]])
    found = entropy_gain(counts, label)
    for b in range(3):
        for h in range(2):
            for k in range(3):
                wanted = slow_gain(counts[h].tolist(), int(label[b, h]), k)
                assert float(found[b, h, k]) == pytest.approx(wanted, abs=1e-6)


def test_the_entropy_spreads_equal_images_over_clusters() -> None:
    head, _ = start(constraint="entropy", entropy_weight=0.1, multiples=(1,))
    head.counts[:] = torch.tensor([[9, 2, 1]])
    nearer = torch.tensor([[[0.5, 0.4, 0.0]]])
    assert head.assign(nearer, torch.tensor([[0]])).tolist() == [[1]], (
        "0.12 of the entropy to gain is more than 0.1 of the similarity"
    )
    head.entropy_weight = 0.0
    assert head.assign(nearer, torch.tensor([[0]])).tolist() == [[0]]


def test_predict_is_the_rule_of_the_labels_for_one_view() -> None:
    head, _ = start()
    head.eval()
    head.dual[0, 2] = 0.3
    z = torch.randn(8, D, generator=make_generator(4))
    assert torch.equal(head.predict(z).argmax(1), head.assign(head.similarity(head.project(z), head.centers), z)[:, 0])
    assert head.predict(z).shape == (8, K)


def test_plans() -> None:
    head, _ = start()
    assert head.plan(0).refresh == Refresh()
    assert head.plan(1).refresh is None
    (stream,) = head.plan(1).streams
    assert (stream.size, stream.views, stream.distinct) == (6, ("query", "key"), True)


@pytest.mark.parametrize(
    "options",
    [
        dict(constraint="sizes"),
        dict(size_ratio=1.1),
        dict(tau=-0.1),
        dict(temperature=0.0),
        dict(center_temperature=-1.0),
        dict(multiples=()),
        dict(multiples=(0, 1)),
        dict(dual_lr=-1.0),
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        SeCuHead(D, K, **options)
    assert "\n" not in str(error.value)
    assert str(next(iter(options.values()))).strip("()") in str(error.value)


class Watch(Hook):
    """Holds the label that the loss sees against that of the end of the epoch before."""

    def __init__(self, head: Any) -> None:
        self.before: Tensor | None = None
        self.compared = 0
        self.loss = head.loss
        head.loss = self.on_loss

    def on_loss(self, batches: dict[str, Batch], *args: Any) -> Any:
        batch = batches["train"]
        if self.before is not None:
            assert torch.equal(batch.target, self.before[batch.row])
            self.compared += 1
        return self.loss(batches, *args)

    def after_train_epoch(self, runner: Any) -> None:
        self.before = runner.model.labels.target.clone()
        assert bool((self.before >= 0).all())


def test_in_training_the_stored_label_is_that_of_the_epoch_before(tmp_path: Path) -> None:
    runner = build_runner(config("secu", str(tmp_path), val_evaluator=None))
    watch = Watch(runner.model.head)
    runner.register_hook(watch)
    runner.train()
    assert watch.compared == 3
    head, labels = runner.model.head, runner.model.labels
    assert torch.equal(head.counts[0, :3], labels.counts)
    assert torch.equal(head.start_centers, head.centers)
