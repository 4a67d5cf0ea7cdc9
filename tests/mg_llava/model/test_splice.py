"""Hand-worked splices and a slow reference, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_llava.model.splice import plan_splice, splice
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError

P = IMAGE_TOKEN_INDEX
X = IGNORE_INDEX


def test_one_picture_by_hand() -> None:
    plan = plan_splice(
        torch.tensor([[1, P, 7, 8]]), torch.tensor([[X, X, X, 8]]), torch.ones(1, 4, dtype=torch.bool), 2, [1]
    )
    # 1, two image tokens, one object token, 7, 8
    assert plan.input_ids.tolist() == [[1, 0, 0, 0, 7, 8]]
    assert plan.labels.tolist() == [[X, X, X, X, X, 8]]
    assert plan.image_positions.tolist() == [1, 2]
    assert plan.object_positions.tolist() == [3]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert (plan.target_positions.tolist(), plan.targets.tolist()) == ([4], [8])


def test_text_only_sample_beside_a_picture() -> None:
    ids = torch.tensor([[1, P, 5], [1, 6, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plan = plan_splice(ids, torch.tensor([[X, X, 5], [X, 6, X]]), mask, 2, [0])
    assert plan.input_ids.tolist() == [[1, 0, 0, 5], [1, 6, 0, 0]]
    assert plan.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    # flattened places: row 1 begins at 4
    assert plan.target_positions.tolist() == [2, 4]
    assert plan.targets.tolist() == [5, 6]


def test_left_padding() -> None:
    ids = torch.tensor([[1, P, 5], [0, 1, 6]])
    mask = torch.tensor([[True, True, True], [False, True, True]])
    plan = plan_splice(ids, torch.full_like(ids, X), mask, 2, [1], pad_left=True)
    assert plan.input_ids.tolist() == [[1, 0, 0, 0, 5], [0, 0, 0, 1, 6]]
    assert plan.attention_mask.tolist() == [[True] * 5, [False, False, False, True, True]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]


def test_packed_by_hand() -> None:
    """[1, picture, 5] and [1, 6]: V = 2 and one object make 5 tokens, and 2 more follow in the same row."""
    ids = torch.tensor([[1, P, 5], [1, 6, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plan = plan_splice(ids, torch.tensor([[X, X, 5], [1, 6, X]]), mask, 2, [1]).packed()
    assert plan.input_ids.tolist() == [[1, 0, 0, 0, 5, 1, 6]]
    assert plan.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    # the second sample's first token is supervised, but nothing of its own comes before it
    assert plan.labels.tolist() == [[X, X, X, X, 5, X, 6]]
    assert plan.attention_mask.all() and plan.attention_mask.shape == (1, 7)
    assert (plan.image_positions.tolist(), plan.object_positions.tolist()) == ([1, 2], [3])
    assert (plan.target_positions.tolist(), plan.targets.tolist()) == ([3, 5], [5, 6])


def test_picture_first_makes_its_successor_a_target() -> None:
    ids = torch.tensor([[P, 5]])
    plan = plan_splice(ids, torch.tensor([[X, 5]]), torch.ones_like(ids).bool(), 3, [2])
    assert plan.target_positions.tolist() == [4]


def test_placeholder_id_in_padding_is_no_picture() -> None:
    ids = torch.tensor([[1, P]])
    plan = plan_splice(ids, torch.full_like(ids, X), torch.tensor([[True, False]]), 3, [])
    assert plan.input_ids.tolist() == [[1]]


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_other_numbers_of_pictures_and_placeholders(counts: list[int]) -> None:
    ids = torch.tensor([[1, P]])
    with pytest.raises(XTunerError, match=rf"1 <image> placeholder .* but {len(counts)} picture"):
        plan_splice(ids, torch.full_like(ids, X), torch.ones_like(ids).bool(), 3, counts)


def slow_splice(rows: list[list[int]], image_tokens: int, objects: list[int]) -> list[list[str]]:
    """What stands where, one name per place."""
    picture = 0
    spliced = []
    for row in rows:
        names: list[str] = []
        for token in row:
            if token == P:
                names += [f"i{picture}.{k}" for k in range(image_tokens)]
                names += [f"o{picture}.{k}" for k in range(objects[picture])]
                picture += 1
            else:
                names.append(f"t{token}")
        spliced.append(names)
    return spliced


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([3, 4, 5, P]), min_size=1, max_size=6), min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)
def test_equals_splicing_token_by_token(rows: list[list[int]], data: st.DataObject, pad_left: bool) -> None:
    count = sum(row.count(P) for row in rows)
    objects = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
    plan = plan_splice(ids, ids.masked_fill(~mask | (ids == P), X), mask, 2, objects, pad_left)

    expected = slow_splice(rows, 2, objects)
    flat = [f"t{token}" for token in plan.input_ids.flatten().tolist()]
    names = [f"i{i}.{k}" for i in range(count) for k in range(2)]
    for place, name in zip(plan.image_positions.tolist(), names, strict=True):
        flat[place] = name
    names = [f"o{i}.{k}" for i in range(count) for k in range(objects[i])]
    for place, name in zip(plan.object_positions.tolist(), names, strict=True):
        flat[place] = name
    width = plan.input_ids.shape[1]
    for row, wanted in enumerate(expected):
        kept = [flat[row * width + k] for k in range(width) if plan.attention_mask[row, k]]
        assert kept == wanted
        assert plan.position_ids[row][plan.attention_mask[row]].tolist() == list(range(len(wanted)))


def test_splice_copies_tokens_to_their_places() -> None:
    text = torch.zeros(1, 6, 2, requires_grad=True)
    images, objects = torch.ones(1, 2, 2, requires_grad=True), torch.full((1, 2), 2.0)
    out = splice(text, images, objects, torch.tensor([1, 2]), torch.tensor([3]))
    assert out[0, :, 0].tolist() == [0, 1, 1, 2, 0, 0]
    out.sum().backward()
    assert text.grad[0, :, 0].tolist() == [1, 0, 0, 0, 1, 1]
    assert images.grad.eq(1).all()
