from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.errors import InputError
from odc.evaluation.metrics import nmi
from odc.heads.temi import TEMIHead, pair_losses, pair_weights
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, Losses, make_generator

NO_LABELS = LabelStore(0).view()


def batch(z: Tensor) -> dict[str, Batch]:
    """Return pairs with features (B, 2, D)."""
    none = torch.zeros(len(z), dtype=torch.int64)
    return {"pairs": Batch(none, none[:, None].expand(-1, 2), none, none[:, None], {"extract": z})}


def step_loss(head: TEMIHead, z: Tensor, comm: Any = None) -> Losses:
    return head.loss(batch(z), NO_LABELS, make_generator(0), comm or LocalComm())


def update(head: TEMIHead, z: Tensor, comm: Any = None) -> None:
    with torch.no_grad():
        assert not list(head.update(batch(z), NO_LABELS, make_generator(0), comm or LocalComm()))


def random_head(seed: int = 0, **options: Any) -> TEMIHead:
    """Return a head whose teachers differ from its students, with probabilities that are far from even."""
    options = {"num_heads": 3, "neighbours": 2, "hidden_channels": 7, "embedding_channels": 5, **options}
    head = TEMIHead(6, 4, **options)
    rng = make_generator(seed, "head")
    for parameter in (*head.student.parameters(), *head.teacher.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=rng)
    p = torch.rand(head.marginal.shape, generator=rng) + 0.1
    head.marginal.copy_(p / p.sum(1, keepdim=True))
    head.epochs.set(2)
    return head


def features(N: int = 20, D: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(N, D, generator=make_generator(seed, "z"))


def table(z: Tensor) -> FeatureTable:
    return FeatureTable(torch.arange(len(z)), z, None, total=len(z))


def state(head: TEMIHead) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


# -- the loss ------------------------------------------------------------------------------------------------------


def sure_head(K: int, H: int, beta: float) -> TEMIHead:
    """Return a head that gives the c-th unit vector all of cluster c, in each of its heads under another name."""
    head = TEMIHead(K, K, num_heads=H, neighbours=1, beta=beta, hidden_channels=K, embedding_channels=K)
    for part in (head.student, head.teacher):
        part.weight1.data = 10 * torch.eye(K).expand(H, K, K).clone()
        part.weight2.data = torch.eye(K).expand(H, K, K).clone()
        part.direction.data = torch.stack([torch.eye(K).roll(h, 0) for h in range(H)])
        part.gain.data.fill_(100.0)
    return head


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("K", "H", "beta"), [(2, 1, 0.6), (7, 1, 1.0), (10, 3, 0.6), (43, 5, 0.05)])
def test_sure_agreeing_balanced_heads_lose_minus_log_k(K: int, H: int, beta: float, autocast: bool) -> None:
    z = torch.eye(K)[:, None].expand(K, 2, K)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = step_loss(sure_head(K, H, beta), z)
    assert losses.train["loss"].dtype == torch.float32
    assert float(losses.train["loss"].detach()) == pytest.approx(-math.log(K), rel=1e-6)
    assert float(losses.log["pair_weight"]) == 1.0


def test_pairs_that_disagree_weigh_nothing() -> None:
    """Half of the pairs are of two clusters: w = 0 for these, so the loss is half of what it was."""
    z = torch.eye(4)[torch.tensor([[0, 0], [1, 1], [2, 3], [3, 2]])]
    losses = step_loss(sure_head(4, 2, 0.5), z)
    assert float(losses.train["loss"].detach()) == pytest.approx(-math.log(4) / 2, rel=1e-6)
    assert float(losses.log["pair_weight"]) == 0.5


def test_the_loss_of_one_pair_by_hand() -> None:
    """K = 2, one head, β = ½, p = (¼, ¾): q_s(x) = (.9, .1), q_t(x) = (.8, .2), q_s(x') = (.6, .4), q_t(x') = (.5, .5).

    l(x, x') = -log(√.45 / ¼ + √.05 / ¾) = -log 2.98142 and l(x', x) = -log(√.48 / ¼ + √.08 / ¾) = -log 3.14841.
    """
    log_s = torch.tensor([[[[0.9, 0.1], [0.6, 0.4]]]]).log()
    log_t = torch.tensor([[[[0.8, 0.2], [0.5, 0.5]]]]).log()
    found = pair_losses(log_s, log_t, torch.tensor([[0.25, 0.75]]).log(), 0.5)
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(-(math.log(2.98142) + math.log(3.14841)) / 2, rel=1e-5)
    assert float(pair_weights(log_t)) == pytest.approx(0.8 * 0.5 + 0.2 * 0.5)


def slow_step(head: TEMIHead, z: Tensor) -> tuple[float, Tensor, list[float]]:
    """Return loss, marginals and loss of each head: equations 1 to 4, one number at a time, in double precision."""

    def q(part: Any, h: int, x: Tensor) -> list[float]:
        w = {name: p.detach().double() for name, p in part.named_parameters()}
        hidden = w["weight1"][h] @ x + w["bias1"][h]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        e = w["weight2"][h] @ hidden + w["bias2"][h, 0]
        e = e / e.norm()
        logits = [
            float(w["gain"][h, c, 0] * (e @ w["direction"][h, c]) / w["direction"][h, c].norm()) / head.temperature
            for c in range(head.num_clusters)
        ]
        exps = [math.exp(v - max(logits)) for v in logits]
        return [v / sum(exps) for v in exps]

    H, B, K = len(head.marginal), len(z), head.num_clusters
    s = [[[q(head.student, h, x.double()) for x in pair] for pair in z] for h in range(H)]
    t = [[[q(head.teacher, h, x.double()) for x in pair] for pair in z] for h in range(H)]
    m = head.marginal_momentum
    p = [
        [
            m * float(head.marginal[h, c]) + (1 - m) * sum(t[h][b][i][c] for b in range(B) for i in (0, 1)) / (2 * B)
            for c in range(K)
        ]
        for h in range(H)
    ]
    w = [sum(t[h][b][0][c] * t[h][b][1][c] for h in range(H) for c in range(K)) / H for b in range(B)]

    def pmi(h: int, b: int, i: int) -> float:
        return -math.log(sum((s[h][b][i][c] * t[h][b][1 - i][c]) ** head.beta / p[h][c] for c in range(K)))

    per_head = [sum(w[b] * (pmi(h, b, 0) + pmi(h, b, 1)) / 2 for b in range(B)) / B for h in range(H)]
    return sum(per_head) / H, torch.tensor(p), per_head


@pytest.mark.parametrize("beta", [0.3, 0.6, 1.0])
def test_a_step_by_an_oracle(beta: float) -> None:
    head, z = random_head(beta=beta), features(10).view(5, 2, 6)
    wanted, marginal, per_head = slow_step(head, z)
    before = state(head)
    assert float(step_loss(head, z).train["loss"].detach()) == pytest.approx(wanted, rel=2e-5)
    after = state(head)
    assert all(torch.equal(before[name], after[name]) for name in before), "the loss has changed something"
    student = before["student.weight1"] + 1  # the optimiser moves
    head.student.weight1.data.copy_(student)
    update(head, z)
    assert torch.allclose(head.marginal, marginal, rtol=1e-5)
    assert torch.allclose(head.epoch_loss, torch.tensor(per_head), rtol=1e-4)
    moved = 0.996 * before["teacher.weight1"] + 0.004 * student
    assert torch.allclose(head.teacher.weight1, moved, atol=1e-6)
    step_loss(head, z)
    update(head, z)
    assert float(head.epoch_loss.sum()) != pytest.approx(sum(per_head)), "the second step adds to the epoch's loss"


def test_only_students_are_trained() -> None:
    head, z = random_head(), features(10).view(5, 2, 6)
    step_loss(head, z).train["loss"].backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    assert {name for name, g in gradients.items() if g is not None} == {
        f"student.{name}" for name, _ in head.student.named_parameters()
    }
    assert all(bool(g.any()) for g in gradients.values() if g is not None)


def test_the_directions_do_not_train_in_the_first_epoch() -> None:
    head, z = random_head(), features(10).view(5, 2, 6)
    value = step_loss(head, z).train["loss"]
    head.epochs.set(1)
    first = step_loss(head, z).train["loss"]
    assert float(first.detach()) == float(value.detach())
    first.backward()
    for name, p in head.student.named_parameters():
        assert p.grad is not None  # ranks would miss it
        assert bool(p.grad.any()) == (name not in ("direction", "gain")), name


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 5),
    st.floats(0.05, 1.0),
    st.sampled_from([0.1, 3.0, 1000.0]),
    st.integers(0, 99),
)
def test_what_holds_for_all_probabilities(H: int, B: int, K: int, beta: float, spread: float, seed: int) -> None:
    rng = make_generator(seed, "q")
    log_s, log_t = ((spread * torch.randn(H, B, 2, K, generator=rng)).log_softmax(3) for _ in range(2))
    log_p = torch.randn(H, K, generator=rng).log_softmax(1)
    losses, weights = pair_losses(log_s, log_t, log_p, beta), pair_weights(log_t)
    assert bool(losses.isfinite().all())
    assert bool(((weights >= 0) & (weights <= 1 + 1e-5)).all())
    # Σ_c [qq']^β / p ≤ Σ_c 1/p: the loss has a floor.
    assert bool((losses >= -(-log_p).logsumexp(1)[:, None] - 1e-4).all())
    # Image and neighbour are of equal rank, and the names of a head's clusters mean nothing.
    assert torch.allclose(pair_losses(log_s.flip(2), log_t.flip(2), log_p, beta), losses, atol=1e-5, rtol=1e-5)
    names = torch.randperm(K, generator=rng)
    renamed = pair_losses(log_s[..., names], log_t[..., names], log_p[:, names], beta)
    assert torch.allclose(renamed, losses, atol=1e-4, rtol=1e-4)
    assert torch.allclose(pair_weights(log_t[..., names]), weights, atol=1e-5)


# -- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_are_an_image_and_one_of_its_nearest() -> None:
    z = features(30)
    z[7] = 3 * z[3]  # a copy, by the cosine: its neighbour, and never a row itself
    head = random_head(neighbours=4, normalize="standard")
    unit = F.normalize(z, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-9)
    nearest = [set(row.tolist()) for row in cosine.topk(4).indices]
    drawn: list[set[int]] = [set() for _ in range(30)]
    for epoch in range(40):
        labels = head.refresh(table(z), make_generator(epoch), LocalComm())
        assert labels.index[:, 0].tolist() == list(range(30))
        for i, j in labels.index.tolist():
            drawn[i].add(j)
    assert drawn == nearest
    assert 7 in drawn[3]
    assert int(head.epochs) == 2 + 40
    assert torch.allclose(head.mean, z.mean(0), atol=1e-6)
    assert torch.allclose(head.scale, 1 / z.std(0, correction=0), rtol=1e-5)


def test_neighbours_are_found_anew_where_features_change() -> None:
    head, z = random_head(), features(12)
    head.refresh(table(z), make_generator(0), LocalComm())
    found = head.neighbours.rows.clone()
    head.neighbours.rows.fill_(5)
    again = random_head(seed=1)
    again.load_state_dict(head.state_dict())
    for one in (head, again):  # a resumed training has its neighbours, too
        labels = one.refresh(table(z), make_generator(1), LocalComm())
        assert labels.index[:, 1].tolist() == [5] * 12
    head.refresh(table(z + 1e-3 * features(12, seed=1)), make_generator(1), LocalComm())
    assert torch.equal(head.neighbours.rows, found)
    head.refresh(table(z[:9]), make_generator(1), LocalComm())
    assert len(head.neighbours.rows) == 9


def test_an_epoch_starts_its_losses_anew() -> None:
    head, z = random_head(), features(10)
    step_loss(head, z.view(5, 2, 6))
    update(head, z.view(5, 2, 6))
    assert bool(head.epoch_loss.any())
    head.refresh(table(z), make_generator(0), LocalComm())
    assert not bool(head.epoch_loss.any())


def test_spaces_count_alike_however_long_their_vectors_are() -> None:
    z = features(15)
    z[:, 2:] *= 100
    head = random_head(neighbours=1, normalize="unit", spaces=[2, 4])
    parts = [F.normalize(z[:, :2], dim=1), F.normalize(z[:, 2:], dim=1)]
    cosine = sum(part @ part.T for part in parts)
    assert isinstance(cosine, Tensor)
    labels = head.refresh(table(z), make_generator(0), LocalComm())
    assert labels.index[:, 1].tolist() == cosine.fill_diagonal_(-9).argmax(1).tolist()
    assert torch.allclose(head._input(z), torch.cat(parts, dim=1), atol=1e-6)
    other = random_head(normalize="none", spaces=[2, 4])
    assert torch.equal(other._input(z), z)


# -- ranks ---------------------------------------------------------------------------------------------------------


class Thread(LocalComm):
    """One of two ranks that are threads of this process."""

    world = 2
    barrier = threading.Barrier(2, timeout=30)
    shared: dict[int, Tensor] = {}  # noqa: RUF012

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def _all(self, x: Tensor) -> list[Tensor]:
        self.shared[self.rank] = x
        self.barrier.wait()
        parts = [self.shared[0], self.shared[1]]
        self.barrier.wait()
        return parts

    def sum(self, x: Tensor) -> Tensor:
        return sum(self._all(x), torch.zeros(()))

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        return torch.cat(self._all(x))


def test_two_ranks_are_one() -> None:
    """Half of the pairs each: mean of the gradients, marginals and losses are those of all pairs on one process."""
    z = features(16).view(8, 2, 6)
    one = random_head()
    step_loss(one, z).train["loss"].backward()
    update(one, z)
    heads = [random_head(), random_head()]

    def work(rank: int) -> None:
        step_loss(heads[rank], z.chunk(2)[rank], Thread(rank)).train["loss"].backward()
        update(heads[rank], z.chunk(2)[rank], Thread(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, p in one.student.named_parameters():
        gradients = [dict(head.student.named_parameters())[name].grad for head in heads]
        mean = torch.stack([g for g in gradients if g is not None]).sum(0) / 2
        assert p.grad is not None
        assert torch.allclose(mean, p.grad, atol=1e-6, rtol=1e-4), name
    for head in heads:
        assert torch.allclose(head.marginal, one.marginal, atol=1e-7)
        assert torch.allclose(head.epoch_loss, one.epoch_loss, rtol=1e-5)


# -- the answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["none", "unit", "standard"])
def test_the_answer_is_the_teacher_with_the_lowest_loss(normalize: str) -> None:
    head, z = random_head(normalize=normalize), features()
    head.refresh(table(z), make_generator(0), LocalComm())
    head.epoch_loss.copy_(torch.tensor([0.5, -1.5, -1.0]))
    with torch.no_grad():
        wanted = head.teacher(head._input(z))[1] / head.temperature
        assert torch.allclose(head.predict(z), wanted, atol=1e-5)
    assert head.predict(z).shape == (20, 4)


def test_it_finds_groups() -> None:
    """150 points around five directions, 25 to 35 of each."""
    rng = make_generator(0, "groups")
    truth = torch.arange(5).repeat_interleave(torch.tensor([25, 28, 30, 32, 35]))
    z = 2 * torch.eye(8)[:5][truth] + 0.4 * torch.randn(150, 8, generator=rng)
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_channels": 32, "embedding_channels": 16, "teacher_momentum": 0.9}  # so few steps
    head = TEMIHead(8, 5, num_heads=4, neighbours=5, **small)
    optimizer = torch.optim.AdamW(head.student.parameters(), lr=3e-3)
    for epoch in range(150):
        with torch.no_grad():
            pairs = head.refresh(table(z), make_generator(epoch), LocalComm()).index
        optimizer.zero_grad()
        step_loss(head, z[pairs]).train["loss"].backward()
        optimizer.step()
        update(head, z[pairs])
    assert nmi(head.predict(z).argmax(1), truth) > 0.85


def test_what_is_told_of_a_training() -> None:
    head = random_head()  # K = 4
    assert head.diagnosis({"pair_weight": 0.6}) is None
    told = str(head.diagnosis({"pair_weight": 0.3}))
    assert "probability 0.300, and 0.250 is chance" in told
    assert "beta=0.6" in str(head.equal_sizes)
    assert "model.head.beta" in str(head.equal_sizes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalize": "l2"}, "'none', 'unit' or 'standard', not 'l2'"),
        ({"num_heads": 0}, "not 0, 4 and 2"),
        ({"neighbours": 0}, "not 3, 4 and 0"),
        ({"beta": 0.0}, "beta must be in"),
        ({"beta": 1.5}, "not 1.5"),
        ({"temperature": 0.0}, "not 0.6 and 0.0"),
        ({"teacher_momentum": 1.0}, "teacher_momentum must be in"),
        ({"marginal_momentum": -0.1}, "marginal_momentum must be in"),
        ({"spaces": [2, 3]}, "are 5 wide, but features have 6"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        random_head(**options)


def test_too_few_images() -> None:
    head = random_head(neighbours=5)
    with pytest.raises(InputError, match="5 neighbours need more than 5 images, but there are 5"):
        head.refresh(table(features(5)), make_generator(0), LocalComm())
    with pytest.raises(InputError, match="are equal"):
        head.refresh(table(torch.ones(9, 6)), make_generator(0), LocalComm())
