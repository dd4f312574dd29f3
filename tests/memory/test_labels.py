"""The label store: counts under any sequence of changes, loading of any size, the read-only view."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from odc.errors import InputError
from odc.memory import LabelStore
from odc.structures import LabelDelta, Labels, PseudoLabels


def pseudo(ids: list[Any], targets: list[list[int]], classes: tuple[int, ...]) -> PseudoLabels:
    index = torch.tensor(ids)
    return PseudoLabels(index if index.ndim == 2 else index.unsqueeze(1), torch.tensor(targets), classes)


def expected_counts(store: LabelStore) -> list[int]:
    first = store.target[:, 0]
    return torch.bincount(first[first >= 0], minlength=int(store.num_classes[0])).tolist()


def test_starts_unlabelled() -> None:
    store = LabelStore(3)
    assert store.index.tolist() == [[0], [1], [2]]
    assert store.target.tolist() == [[-1]] * 3
    assert store.variant.tolist() == [0] * 3
    assert store.num_classes.tolist() == [0]
    assert store.counts.tolist() == []


def test_update_by_hand() -> None:
    store = LabelStore(4)
    store.replace(pseudo([3, 1, 0], [[0], [2], [-1]], (3,)))
    assert store.counts.tolist() == [1, 0, 1]
    store.update(LabelDelta(torch.tensor([2, 0]), torch.tensor([[1], [-1]])))
    assert store.target.tolist() == [[-1], [2], [1]]
    assert store.counts.tolist() == [0, 1, 1]
    store.update(LabelDelta(torch.empty(0, dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64)))
    assert store.counts.tolist() == [0, 1, 1]


@st.composite
def changes(draw: st.DrawFn) -> list[PseudoLabels | LabelDelta]:
    sequence: list[PseudoLabels | LabelDelta] = []
    rows, columns = 5, 1
    classes: tuple[int, ...] = (0,)
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 2))
            classes = tuple(draw(st.lists(st.integers(1, 4), min_size=columns, max_size=columns)))
            chosen = list(range(rows))
        else:
            chosen = draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=rows))
        target = [[draw(st.integers(-1, c - 1)) for c in classes] for _ in chosen]
        tensor = torch.tensor(target, dtype=torch.int64).reshape(len(chosen), columns)
        if chosen == list(range(rows)) and classes != (0,):
            sequence.append(PseudoLabels(torch.arange(rows).unsqueeze(1), tensor, classes))
        else:
            sequence.append(LabelDelta(torch.tensor(chosen, dtype=torch.int64), tensor))
    return sequence


@settings(max_examples=100, deadline=None)
@given(changes())
def test_counts_follow_every_change(sequence: list[PseudoLabels | LabelDelta]) -> None:
    store = LabelStore(5)
    view = store.view()
    for change in sequence:
        if isinstance(change, PseudoLabels):
            store.replace(change)
        else:
            store.update(change)
        assert view.counts.tolist() == expected_counts(store)


def test_view_shows_the_store_as_it_is_and_cannot_change_it() -> None:
    store = LabelStore(2)
    view: Labels = store.view()
    store.replace(pseudo([0, 1], [[0], [1]], (2,)))
    assert view.target.data_ptr() == store.target.data_ptr()
    assert view.index.data_ptr() == store.index.data_ptr()
    assert view.counts.tolist() == [1, 1]
    assert not {"replace", "update"} & set(dir(view))
    with pytest.raises(AttributeError):
        view.target = torch.zeros(2, 1)  # type: ignore[misc]


def test_the_store_does_not_share_memory_with_what_it_was_given() -> None:
    labels = pseudo([0, 1], [[0], [1]], (2,))
    store = LabelStore(2)
    store.replace(labels)
    labels.target.zero_()
    assert store.target.tolist() == [[0], [1]]


def test_loads_another_number_of_rows_inside_a_model() -> None:
    source = nn.ModuleDict({"labels": LabelStore(4)})
    store = source["labels"]
    assert isinstance(store, LabelStore)
    store.replace(PseudoLabels(torch.tensor([[7], [2]]), torch.tensor([[4, 0], [1, 1]]), (5, 2), torch.tensor([3, 0])))
    model = nn.ModuleDict({"labels": LabelStore(9)})
    model.load_state_dict(source.state_dict())
    loaded = model["labels"]
    assert isinstance(loaded, LabelStore)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert LabelStore.resizes_on_load


def test_modules_can_still_be_walked_with_apply() -> None:
    seen: list[nn.Module] = []
    nn.Sequential(LabelStore(2)).apply(seen.append)
    assert len(seen) == 2


def test_a_row_that_comes_again_counts_once() -> None:
    store = LabelStore(4)
    store.replace(pseudo([0, 1, 2], [[0], [1], [-1]], (3,)))
    again = LabelDelta(torch.tensor([2, 0, 2, 0]), torch.tensor([[1], [2], [1], [2]]))
    for _ in range(2):
        store.update(again)
        assert store.target.tolist() == [[2], [1], [1]]
        assert store.counts.tolist() == [0, 2, 1]


def test_errors_name_the_numbers() -> None:
    store = LabelStore(4)
    store.replace(pseudo([3, 0], [[0], [1]], (2,)))
    with pytest.raises(InputError, match="of the 2 rows that change one has two targets"):
        store.update(LabelDelta(torch.tensor([1, 1]), torch.tensor([[0], [1]])))
    with pytest.raises(InputError, match="rows 0 to 1"):
        store.update(LabelDelta(torch.tensor([2]), torch.tensor([[0]])))
    with pytest.raises(InputError, match=r"\[2\].*\[2\]"):
        store.update(LabelDelta(torch.tensor([1]), torch.tensor([[2]])))
    with pytest.raises(InputError, match=r"must be \(1, 1\), not \(1, 2\)"):
        store.update(LabelDelta(torch.tensor([1]), torch.tensor([[0, 0]])))
    with pytest.raises(InputError, match="start at 0"):
        store.replace(pseudo([-1], [[0]], (1,)))
    assert store.counts.tolist() == [1, 1]
