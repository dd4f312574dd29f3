"""TURTLE's head: the step against loops of autograd and torch's Adam, cases by hand, and what the log says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from odc.data.sampler import draw_rows
from odc.errors import InputError
from odc.heads import TurtleHead
from odc.heads.turtle import Inner, _views, draw_inner, fit_inner
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, Losses, Stream, make_generator

COMM = LocalComm()


def make_batch(z: Tensor) -> dict[str, Batch]:
    row = torch.arange(len(z))
    return {"train": Batch(row, row[:, None], 0 * row, row[:, None] * 0 - 1, {"extract": z[:, None]})}


def losses_of(head: TurtleHead, z: Tensor, seed: int = 0) -> Losses:
    return head.loss(make_batch(z), LabelStore(0).view(), make_generator(seed), COMM)


def make_head(seed: int = 0, **options: Any) -> TurtleHead:
    torch.manual_seed(seed)
    return TurtleHead(**{"in_channels": 7, "num_clusters": 3, "spaces": (4, 3), **options}).double()


def number(x: Tensor) -> float:
    return float(x.detach())


def slow_losses(head: TurtleHead, z: Tensor, start: Inner) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both parts of the loss, and the inner loss before and after: equations of the paper, image by image."""
    parts = z.split(head.spaces, 1)
    K = head.num_clusters
    encoders: Any = head.encoders
    by_space = [[encoder(image).exp() / encoder(image).exp().sum() for image in part]
                for encoder, part in zip(encoders, parts, strict=True)]  # fmt: skip
    tau = [sum(of_image) / len(parts) for of_image in zip(*by_space, strict=True)]
    classifiers = []
    for weight, bias in _views(start.weight, K, head.spaces):
        layer = nn.Linear(weight.shape[1], K).double()
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        classifiers.append(layer)

    def inner(target: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for layer, part in zip(classifiers, parts, strict=True):
            for image, wanted in zip(part, target, strict=True):
                total = total - (wanted * layer(image).log_softmax(0)).sum() / len(z)
        return total

    given = [t.detach() for t in tau]
    adam = torch.optim.Adam([p for layer in classifiers for p in layer.parameters()], lr=head.inner_lr)
    before = inner(given).detach()
    for _ in range(head.inner_steps):
        adam.zero_grad()
        inner(given).backward()
        adam.step()
    for layer in classifiers:
        layer.requires_grad_(False)
    entropy = torch.zeros((), dtype=torch.float64)
    for of_space in by_space:
        mean = sum(of_space) / len(z)
        for k in range(K):
            entropy = entropy - mean[k] * mean[k].log()
    return inner(tau), -head.gamma * entropy, before, inner(given).detach()


@pytest.mark.parametrize("spaces", [(4, 3), (7,), (2, 2, 3)])
def test_the_step_is_that_of_the_equations(spaces: tuple[int, ...]) -> None:
    head = make_head(spaces=spaces, inner_steps=4, inner_lr=0.05, gamma=2.5)
    z = torch.randn(9, 7, generator=make_generator(1), dtype=torch.float64)
    start = draw_inner(3, spaces, make_generator(0), like=z)
    losses = losses_of(head, z)
    sum(losses.train.values(), torch.tensor(0.0)).backward()
    mine = [p.grad for p in head.parameters()]
    head.zero_grad()
    ce, entropy_loss, before, after = slow_losses(head, z, start)
    (ce + entropy_loss).backward()
    for name, expected in {"loss": ce, "entropy_loss": entropy_loss}.items():
        assert number(losses.train[name]) == pytest.approx(number(expected), rel=1e-12)
    assert float(losses.log["inner_start"]) == pytest.approx(float(before), rel=1e-12)
    assert float(losses.log["inner_end"]) == pytest.approx(float(after), rel=1e-12)
    assert float(before) > float(after)
    for got, parameter in zip(mine, head.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-13, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), steps=st.integers(1, 5), lr=st.sampled_from([1e-3, 0.1]), K=st.integers(2, 5))
def test_the_inner_steps_are_those_of_adam(seed: int, steps: int, lr: float, K: int) -> None:
    """Also where they go on with the moments of earlier ones."""
    rng = make_generator(seed)
    x = [torch.randn(8, width, generator=rng, dtype=torch.float64) for width in (2, 3)]
    target = torch.rand(8, K, generator=rng, dtype=torch.float64)
    target /= target.sum(1, keepdim=True)
    start = draw_inner(K, (2, 3), rng, like=x[0])
    weight = nn.Parameter(start.weight.clone())
    adam = torch.optim.Adam([weight], lr=lr)
    state = start
    for _ in range(2):
        state, log_q, _ = fit_inner(x, target, state, steps, lr, 8, COMM)
    for _ in range(2 * steps):
        adam.zero_grad()
        scores = [F.linear(part, w, b) for part, (w, b) in zip(x, _views(weight, K, (2, 3)), strict=True)]
        sum((F.cross_entropy(s, target) for s in scores), torch.tensor(0.0)).backward()
        adam.step()
    torch.testing.assert_close(state.weight, weight.data, rtol=1e-9, atol=1e-10)
    expected = sum(
        F.linear(part, w, b).log_softmax(1) for part, (w, b) in zip(x, _views(weight.data, K, (2, 3)), strict=True)
    )
    torch.testing.assert_close(log_q, expected, rtol=1e-7, atol=1e-8)


def test_one_space_by_hand() -> None:
    """Two images at -1 and 1, a step of Adam: it moves every parameter by lr against the sign of its gradient."""
    head = TurtleHead(1, 2, inner_steps=1, inner_lr=0.5, gamma=10.0).double()
    encoder: Any = head.encoders[0]
    encoder.weight = torch.tensor([[-0.5], [0.5]]).double() * math.log(3)  # τ(1) = (1/4, 3/4), τ(-1) = (3/4, 1/4)
    encoder.bias.data.zero_()
    z = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    nothing = torch.zeros(4, dtype=torch.float64)
    start = Inner(nothing, nothing, nothing, 0)
    tau = head.predict(z).exp()
    torch.testing.assert_close(tau, torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64))
    state, log_q, before = fit_inner([z], tau, start, 1, 0.5, 2, COMM)
    assert float(before / 2) == pytest.approx(math.log(2))
    # The gradient of the weights is (1/4, -1/4), that of the biases 0: the weights are now (-1/2, 1/2).
    torch.testing.assert_close(state.weight, torch.tensor([-0.5, 0.5, 0, 0], dtype=torch.float64), atol=1e-6, rtol=0)
    right = -math.log(1 + math.exp(-1))
    torch.testing.assert_close(log_q[0], torch.tensor([right, right - 1]).double(), atol=1e-6, rtol=0)
    head._start = lambda x, generator: start  # type: ignore[method-assign]
    found = losses_of(head, z)
    assert number(found.train["loss"]) == pytest.approx(-0.75 * right - 0.25 * (right - 1), abs=1e-6)
    assert number(found.train["entropy_loss"]) == pytest.approx(-10 * math.log(2)), "clusters are of one size"


def test_labels_are_a_mean_of_softmaxes_and_each_space_has_an_entropy() -> None:
    """Two spaces that are sure of different clusters: τ is half and half, a softmax of the mean would be, too; of
    unequal sureness it is not."""
    head = TurtleHead(2, 2, spaces=(1, 1), gamma=1.0).double()
    encoders: Any = head.encoders
    for encoder, weight in zip(encoders, ([[-25.0], [25.0]], [[1.0], [-1.0]]), strict=True):
        encoder.weight = torch.tensor(weight).double()
        encoder.bias.data.zero_()
    z = torch.ones(5, 2, dtype=torch.float64)
    p = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(head.predict(z).exp()[0], torch.tensor([p / 2, 1 - p / 2]).double())
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)  # and 0 of the first space
    assert number(losses_of(head, z).train["entropy_loss"]) == pytest.approx(-entropy)


def test_the_labels_are_trained_and_the_classifiers_are_not() -> None:
    """Without entropy the gradient is that of τ times what the trained classifiers say, which themselves have none."""
    head = make_head(gamma=0.0)
    z = torch.randn(6, 7, generator=make_generator(1), dtype=torch.float64)
    losses = losses_of(head, z)
    start = draw_inner(3, (4, 3), make_generator(0), like=z)
    with torch.no_grad():
        tau = head.predict(z).exp()
        _, log_q, _ = fit_inner(z.split((4, 3), 1), tau, start, head.inner_steps, head.inner_lr, 6, COMM)
    assert not log_q.requires_grad
    expected = torch.autograd.grad(-(head.predict(z).exp() * log_q).sum() / 6, list(head.parameters()))
    got = torch.autograd.grad(losses.train["loss"], list(head.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert all(bool(g.any()) for g in got)


def test_a_cold_start_follows_the_generator_and_a_warm_one_the_step_before() -> None:
    z = torch.randn(6, 7, generator=make_generator(1), dtype=torch.float64)
    for warm in (False, True):
        head = make_head(warm_start=warm, inner_lr=0.1)
        before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        first = losses_of(head, z, seed=0).log
        assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items()), "loss writes"
        assert not torch.equal(losses_of(head, z, seed=1).log["inner_end"], first["inner_end"])
        losses_of(head, z, seed=0)
        list(head.update(make_batch(z), LabelStore(0).view(), make_generator(9), COMM))
        again = losses_of(head, z, seed=0).log
        if warm:
            assert int(head.inner_taken) == head.inner_steps
            assert float(again["inner_start"]) == pytest.approx(float(first["inner_end"]), rel=1e-12)
        else:
            assert torch.equal(again["inner_start"], first["inner_start"])


def test_clusters_that_are_there_are_found() -> None:
    rng = make_generator(0)
    truth = torch.arange(90) % 3
    z = 3 * torch.eye(3)[truth].repeat(1, 3) + 0.3 * torch.randn(90, 9, generator=rng)
    torch.manual_seed(0)
    head = TurtleHead(9, 3, spaces=(6, 3), inner_lr=0.05)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        losses = losses_of(head, z, seed=step)
        sum(losses.train.values(), torch.tensor(0.0)).backward()
        optimizer.step()
    found = head.predict(z).argmax(1)
    assert len({(int(a), int(b)) for a, b in zip(found, truth, strict=True)}) == 3
    assert head.diagnosis({name: float(value) for name, value in losses.log.items()}) is None
    assert float(losses.log["clusters"]) == 3
    assert float(losses.log["confidence"]) > 0.9


def test_whitened_features_are_what_the_layers_see() -> None:
    rng = make_generator(0)
    z = torch.randn(40, 7, generator=rng) * torch.tensor([9, 1, 1, 0.1, 9, 1, 1]) + 3
    torch.manual_seed(0)
    head = TurtleHead(7, 3, spaces=(4, 3), whiten=3)
    assert [encoder.in_features for encoder in head.encoders] == [3, 3]
    head.refresh(FeatureTable(torch.arange(40), z, None, 40), rng, COMM)
    for part in head._inputs(z):
        torch.testing.assert_close(part.mean(0), torch.zeros(3), atol=1e-2, rtol=0)
    for part, columns in zip(head._inputs(z), (z[:, :4], z[:, 4:]), strict=True):
        unit = F.normalize(columns, dim=1).double()
        variances = torch.linalg.eigvalsh(torch.cov(unit.T, correction=0)).flip(0)[:3]
        expected = variances / variances.clamp(min=0.01 * float(variances[0]))
        torch.testing.assert_close((part.T @ part / 40).double(), expected.diag(), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="features of all 40 images are equal"):
        head.refresh(FeatureTable(torch.arange(40), torch.ones(40, 7), None, 40), rng, COMM)


def test_no_image_is_twice_in_a_step() -> None:
    (stream,) = TurtleHead(4, 2, batch_size=6, steps=7).plan(0).streams
    target = torch.full((10, 1), -1)
    order = draw_rows(stream, target, 7, make_generator(0))
    assert order.shape == (7, 6)
    assert all(len(rows.unique()) == 6 for rows in order)
    assert len(order.unique()) == 10
    few = draw_rows(stream, target[:4], 7, make_generator(0))
    assert [sorted(rows.tolist()) for rows in few] == [[0, 1, 2, 3]] * 7
    assert draw_rows(Stream("a", 5, distinct=True), target, None, make_generator(0)).flatten().unique().tolist() == [
        *range(10)
    ]
    with pytest.raises(InputError, match="distinct rows with balance or replace"):
        Stream("a", 5, distinct=True, replace=True)


def test_the_log_tells_what_does_not_learn() -> None:
    head = TurtleHead(4, 10)
    means = {"inner_start": 2.3, "inner_end": 0.9, "clusters": 10.0}
    assert head.diagnosis(means) is None
    stuck = head.diagnosis(means | {"inner_end": 2.2})
    assert stuck is not None
    assert "from 2.300 to 2.200" in stuck
    assert "model.head.inner_lr" in stuck
    collapsed = head.diagnosis(means | {"clusters": 2.0})
    assert collapsed is not None
    assert "of 10 clusters 2.0 are in use: raise model.head.gamma, now 10" in collapsed
    assert "gamma=10" in str(head.equal_sizes)


def test_features_that_are_too_small_are_told() -> None:
    z = 0.01 * torch.randn(50, 7, generator=make_generator(0), dtype=torch.float64)
    head = make_head()
    told = head.diagnosis({name: float(value) for name, value in losses_of(head, z).log.items()})
    assert told is not None
    assert "whiten" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spaces": (4, 4)}, "have 8 numbers, the features 7"),
        ({"num_clusters": 1}, "num_clusters=1"),
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"inner_lr": 0.0}, "inner_lr > 0"),
        ({"gamma": -1.0}, "gamma >= 0"),
        ({"whiten": 0}, "whiten"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_head(**options)
