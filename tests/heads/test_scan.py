"""SCAN: the loss by hand and by an oracle, neighbours without self, the choice of a head, ranks, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.errors import InputError
from odc.heads.scan import SCANHead, negative_entropy, pair_losses
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, Losses, PseudoLabels, make_generator

COMM = LocalComm()


def rng(seed: int = 0) -> torch.Generator:
    return make_generator(seed, "test")


def scan(**options: Any) -> SCANHead:
    torch.manual_seed(0)
    return SCANHead(**{"in_channels": 6, "num_clusters": 3, "neighbours": 2, "batch_size": 15, **options})


def table(features: Tensor) -> FeatureTable:
    return FeatureTable(torch.arange(len(features)), features, None, len(features))


def step(head: SCANHead, z: Tensor, view: str = "train", comm: Any = COMM) -> Losses:
    """Return the losses of pairs with features (B, 2, D)."""
    B = len(z)
    rows = torch.arange(2 * B).view(B, 2)
    batch = Batch(torch.arange(B), rows, torch.zeros(B).long(), torch.zeros(B, 1).long(), {view: z})
    store = LabelStore(0)
    store.replace(PseudoLabels(rows, torch.zeros(B, 1, dtype=torch.int64), (1,)))
    return head.loss({"pairs": batch}, store.view(), rng(), comm)


def set_logits(head: SCANHead, logits: Tensor) -> None:
    """Let the features be the logits: the one classifier is the identity."""
    with torch.no_grad():
        head.classifiers.linear.weight.copy_(torch.eye(3, 6))
        head.classifiers.linear.bias.zero_()


def test_agreeing_sure_and_balanced_is_minus_lambda_log_k() -> None:
    """Consistency 0, and the entropy of equal clusters is log K."""
    head = scan(entropy_weight=5.0)
    set_logits(head, torch.zeros(0))
    z = torch.zeros(3, 2, 6)
    z[torch.arange(3), :, torch.arange(3)] = 60.0
    assert float(step(head, z).train["loss"].detach()) == pytest.approx(-5 * math.log(3), rel=1e-5)


def test_pairs_that_surely_disagree_are_finite() -> None:
    """⟨p, p'⟩ is 2 e⁻²⁰⁰, which float32 has as 0: the loss is 200 - log 2, and has a gradient."""
    a = torch.tensor([[200.0, 0.0, -1e4]], requires_grad=True)
    b = torch.tensor([[0.0, 200.0, -1e4]])
    loss = pair_losses(a.log_softmax(1), b.log_softmax(1)).sum()
    assert float(loss.detach()) == pytest.approx(200 - math.log(2), rel=1e-6)
    loss.backward()
    assert a.grad is not None
    assert float(a.grad.abs().sum()) > 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_loss_by_an_oracle(momentum: float) -> None:
    """Image by image in float64, from equation 2."""
    head = scan(num_heads=2, entropy_weight=1.5, mean_momentum=momentum)
    z = torch.randn(8, 2, 6, generator=rng())
    W, b = (x.detach().double() for x in (head.classifiers.linear.weight, head.classifiers.linear.bias))
    total = 0.0
    for h in range(2):
        rows = slice(3 * h, 3 * h + 3)
        p = [[(W[rows] @ x.double() + b[rows]).softmax(0).tolist() for x in pair] for pair in z]
        consistency = -sum(math.log(sum(u * v for u, v in zip(*pair, strict=True))) for pair in p) / 8
        mean = [sum(pair[0][c] for pair in p) / 8 for c in range(3)]
        mean = [momentum / 3 + (1 - momentum) * m for m in mean]
        total += consistency + 1.5 * sum(m * math.log(m) for m in mean)
    assert float(step(head, z).train["loss"].detach()) == pytest.approx(total, rel=1e-5)


def test_a_running_mean_has_the_gradient_of_the_batch() -> None:
    """With p̄ still at 1/K the running mean of a balanced batch is the same, and so are loss and gradient."""
    z = torch.zeros(3, 2, 6)
    z[torch.arange(3), :, torch.arange(3)] = 1.0
    found = []
    for momentum in (0.0, 0.9):
        head = scan(mean_momentum=momentum)
        set_logits(head, torch.zeros(0))
        loss = step(head, z).train["loss"]
        loss.backward()
        found.append((float(loss.detach()), head.classifiers.linear.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 99))
def test_the_parts_have_their_bounds(K: int, seed: int) -> None:
    log_p, log_q = (3 * torch.randn(5, K, generator=rng(seed + i)) for i in (0, 1))
    losses = pair_losses(log_p.log_softmax(1), log_q.log_softmax(1))
    assert bool((losses >= -1e-6).all())
    torch.testing.assert_close(losses, -(log_p.softmax(1) * log_q.softmax(1)).sum(1).log())
    entropy = negative_entropy(log_p.softmax(1).mean(0))
    assert -math.log(K) - 1e-6 <= float(entropy) <= 0
    assert float(negative_entropy(torch.eye(K)[0])) == 0, "a cluster that is empty costs nothing, and is no NaN"


def test_ranks_share_the_mean_of_the_batch() -> None:
    """Two ranks' gradients, averaged, are those of one process with both halves."""
    z = torch.randn(8, 2, 6, generator=rng())
    whole = scan(num_heads=2)
    step(whole, z).train["loss"].backward()
    parts = z.split(4)
    found = torch.zeros_like(whole.classifiers.linear.weight)
    for rank in range(2):
        head = scan(num_heads=2)

        class Two:
            world = 2

            def gather(self, x: Tensor, gradient: bool = False, mine: int = rank, head: SCANHead = head) -> Tensor:
                """Both means; a rank's own has twice its gradient, since the other rank sends the same back."""
                assert gradient
                other = head.classifiers(parts[1 - mine][:, 0]).softmax(-1).mean(0)[None].detach()
                both = [other, other]
                both[mine] = 2 * x - x.detach()
                return torch.cat(both)

        step(head, parts[rank], comm=Two()).train["loss"].backward()
        assert head.classifiers.linear.weight.grad is not None
        found += head.classifiers.linear.weight.grad / 2
    torch.testing.assert_close(found, whole.classifiers.linear.weight.grad)


def test_neighbours_are_not_the_image_itself_and_are_drawn_anew() -> None:
    x = torch.randn(20, 6, generator=rng())
    x[5] = x[4]  # a copy is a neighbour
    head = scan()
    first, second = (head.refresh(table(x), rng(seed), COMM) for seed in (0, 1))
    assert first.index.shape == (20, 2)
    assert first.index[:, 0].tolist() == list(range(20)), "every image once"
    assert bool((head.classifiers.nearest.rows != torch.arange(20)[:, None]).all())
    assert int(head.classifiers.nearest.rows[4, 0]) == 5
    unit = torch.nn.functional.normalize(x)
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    found = similarity.gather(1, head.classifiers.nearest.rows.long())  # a copy and its copy are equally near
    torch.testing.assert_close(found, similarity.topk(2).values)
    assert not torch.equal(first.index, second.index)
    before = head.classifiers.nearest.rows.clone()
    head.refresh(table(x.flip(0)), rng(), COMM)  # the network has changed
    assert torch.equal(before, head.classifiers.nearest.rows), "neighbours are those of the pre-trained features"


def test_several_spaces_count_equally_for_neighbours() -> None:
    x = torch.randn(30, 6, generator=rng())
    x[:, 4:] *= 1000
    head = scan(spaces=(4, 2), normalize="unit")
    head.refresh(table(x), rng(), COMM)
    parts = [torch.nn.functional.normalize(part) for part in x.split((4, 2), dim=1)]
    similarity = torch.stack([part @ part.T for part in parts]).sum(0).fill_diagonal_(-9)
    assert torch.equal(head.classifiers.nearest.rows.long().sort().values, similarity.topk(2).indices.sort().values)
    seen = head.classifiers._input(x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert float(seen.square().mean()) == pytest.approx(1, rel=1e-5)


def test_the_head_with_the_lowest_loss_on_all_pairs_is_chosen() -> None:
    """By a loop over all images and neighbours, in float64."""
    x = torch.randn(20, 6, generator=rng())
    head = scan(num_heads=3, entropy_weight=2.0)
    head.refresh(table(x), rng(), COMM)
    head.select(table(x), COMM)
    p = head.logits(x).detach().double().softmax(2)
    expected = []
    for h in range(3):
        pairs = [(i, int(j)) for i in range(20) for j in head.classifiers.nearest.rows[i]]
        consistency = -sum(math.log(float(p[i, h] @ p[j, h])) for i, j in pairs) / len(pairs)
        mean = p[:, h].mean(0)
        expected.append(consistency + 2 * float((mean * mean.log()).sum()))
    assert head.classifiers.losses.tolist() == pytest.approx(expected, rel=1e-5)
    best = expected.index(min(expected))
    assert int(head.classifiers.best) == best
    torch.testing.assert_close(head.predict(x), head.logits(x)[:, best])


def test_the_answer_may_be_the_consensus() -> None:
    """A cluster of a head votes by the images that it shares with the clusters of the consensus."""
    head = scan(num_heads=3, answer="consensus")
    clusters = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2], [2, 2, 2, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 2, 2]])
    votes = head.classifiers.agree(clusters, rng())
    names = votes[0].argmax(1)  # of the consensus for the clusters of the first head
    assert torch.equal(votes[0], torch.nn.functional.one_hot(names, 3).float())
    assert torch.equal(votes[1], torch.nn.functional.one_hot(names[[1, 2, 0]], 3).float())
    assert votes[2, 1, names].tolist() == pytest.approx([0, 0.75, 0.25])
    head.classifiers.votes.copy_(votes)
    z = torch.randn(5, 6, generator=rng())
    p = head.logits(z).softmax(2)
    expected = sum(p[:, h] @ votes[h] for h in range(3)) / 3
    torch.testing.assert_close(head.predict(z).exp(), expected)
    torch.testing.assert_close(head.predict(z).softmax(1), expected, msg="they are probabilities")


def test_the_consensus_is_found_after_every_epoch() -> None:
    x = torch.randn(20, 6, generator=rng())
    head = scan(num_heads=4, answer="consensus")
    head.refresh(table(x), rng(), COMM)
    head.select(table(x), COMM)
    clusters = head.logits(x).argmax(2).T
    generator = torch.Generator().manual_seed(int(head.classifiers.seed))
    torch.testing.assert_close(head.classifiers.votes, head.classifiers.agree(clusters, generator))


def test_a_small_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(20, 6, generator=rng())
    for options, told in (({"batch_size": 14}, True), ({"batch_size": 14, "mean_momentum": 0.9}, False), ({}, False)):
        lines: list[str] = []
        monkeypatch.setattr("odc.heads.scan.print_log", lambda line, *_, lines=lines: lines.append(line))
        scan(**options).refresh(table(x), rng(), COMM)
        assert told == any("14 rows a step are few for 3 clusters" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_clusters": 1}, "2 clusters"),
        ({"neighbours": 0}, "1 neighbour"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"mean_momentum": 1.0}, r"mean_momentum must be in \[0, 1\), not 1.0"),
        ({"answer": "all"}, "'best' or 'consensus', not 'all'"),
        ({"normalize": "max"}, "'none' or 'unit', not 'max'"),
        ({"spaces": (4, 4)}, "8 wide, but features have 6"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        scan(**options)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 neighbours need more than 2 images, but there are 2: lower model.head"):
        scan().refresh(table(torch.randn(2, 6, generator=rng())), rng(), COMM)


def test_the_view_of_both_images_is_an_option() -> None:
    head = scan(view="strong")
    assert head.plan(0).streams[0].views == ("strong",)
    assert math.isfinite(float(step(head, torch.randn(4, 2, 6, generator=rng()), "strong").train["loss"].detach()))


def test_no_learning_is_told() -> None:
    guess = math.log(3)
    assert scan().diagnosis({"consistency": 0.5 * guess}) is None
    assert "1.000, where a guess among 3 clusters has 1.099" in str(scan().diagnosis({"consistency": 1.0}))
