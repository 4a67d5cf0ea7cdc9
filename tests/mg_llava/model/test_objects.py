"""Box pooling on hand-worked maps, its edge cases, and the object encoder."""

from __future__ import annotations

import pytest
import torch

from mg_llava.model.objects import ObjectEncoder, axis_weights, pool_boxes
from xtuner.errors import XTunerError


def columns(size: int = 8) -> torch.Tensor:
    """A map whose cells hold their column's number."""
    return torch.arange(float(size)).expand(1, 1, size, size).contiguous()


class TestHandWorked:
    # frame of 8 px on 8 cells: sample positions are box positions, cell k's centre is k (aligned=False)
    def test_mean_of_a_ramp_is_its_middle(self) -> None:
        (pooled,) = pool_boxes([columns()], [torch.tensor([[1.0, 0.0, 5.0, 4.0]])], 8)
        torch.testing.assert_close(pooled, torch.tensor([[3.0]]))

    def test_point_is_widened_to_one_cell(self) -> None:
        (pooled,) = pool_boxes([columns()], [torch.tensor([[2.0, 2.0, 2.0, 2.0]])], 8)
        torch.testing.assert_close(pooled, torch.tensor([[2.5]]))

    def test_inverted_box_starts_at_its_first_corner(self) -> None:
        (pooled,) = pool_boxes([columns()], [torch.tensor([[4.0, 4.0, 1.0, 1.0]])], 8)
        torch.testing.assert_close(pooled, torch.tensor([[4.5]]))

    def test_far_away_is_zero(self) -> None:
        (pooled,) = pool_boxes([columns()], [torch.tensor([[50.0, 0.0, 60.0, 8.0], [-9.0, -9.0, -5.0, -5.0]])], 8)
        assert pooled.eq(0).all()

    def test_half_outside_counts_outside_as_zero(self) -> None:
        # x from 4 to 12: samples beyond 8 are zero, those in [7, 8] hold 7; mean = (∫4..7 x + 7) / 8 = 23.5 / 8
        (pooled,) = pool_boxes([columns()], [torch.tensor([[4.0, 0.0, 12.0, 7.0]])], 8)
        torch.testing.assert_close(pooled, torch.tensor([[23.5 / 8]]), rtol=1e-3, atol=0)

    def test_weights_inside_sum_to_one(self) -> None:
        weights = axis_weights(torch.tensor([[3.0, 1.0, 30.0, 20.0], [0.0, 0.0, 32.0, 32.0]]), 16, 32)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2))


class TestShapes:
    def test_pictures_and_stages_keep_their_order(self) -> None:
        maps = [torch.full((2, 3, 8, 8), 1.0), torch.full((2, 2, 4, 4), 5.0)]
        maps[0][1] = 2
        first, second = pool_boxes(maps, [torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 8, 8]] * 2)], 8)
        torch.testing.assert_close(first, torch.tensor([[1.0, 1, 1, 5, 5]]))
        torch.testing.assert_close(second, torch.tensor([[2.0, 2, 2, 5, 5]] * 2))

    def test_no_boxes_and_no_pictures(self) -> None:
        maps = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)]
        assert pool_boxes(maps, [torch.zeros(0, 4)], 8)[0].shape == (0, 5)
        assert pool_boxes([stage[:0] for stage in maps], [], 8) == []

    def test_boxes_do_not_see_each_other(self) -> None:
        maps = [torch.randn(1, 4, 8, 8)]
        boxes = torch.rand(20, 4) * 8
        together = pool_boxes(maps, [boxes], 8)[0]
        alone = torch.cat([pool_boxes(maps, [box.unsqueeze(0)], 8)[0] for box in boxes])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)

    def test_half_precision_gives_float32(self) -> None:
        pooled = pool_boxes([torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)], [torch.tensor([[0.0, 0, 4, 4]])], 8)[0]
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, torch.ones(1, 3))

    def test_autocast_changes_nothing(self) -> None:
        maps, boxes = [torch.randn(1, 3, 8, 8)], [torch.rand(5, 4) * 8]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = pool_boxes(maps, boxes, 8)[0]
        assert torch.equal(inside, pool_boxes(maps, boxes, 8)[0])


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e5, 3e38, -3e38])
def test_any_finite_box_gives_finite_features(value: float) -> None:
    boxes = torch.tensor([[value, value, value, value], [-value, 0, value, 8], [value, 8, -value, 0]])
    assert pool_boxes([columns()], [boxes], 8)[0].isfinite().all()


def test_wrong_numbers_and_shapes() -> None:
    with pytest.raises(XTunerError, match="1 box lists for 2 pictures"):
        pool_boxes([torch.zeros(2, 1, 4, 4)], [torch.zeros(0, 4)], 8)
    with pytest.raises(XTunerError, match=r"a stage map is \(4, 6\)"):
        pool_boxes([torch.zeros(1, 1, 4, 6)], [torch.zeros(0, 4)], 8)


class TestObjectEncoder:
    def test_tokens_in_picture_order(self) -> None:
        encoder = ObjectEncoder(3, 6, image_size=8)
        maps = [torch.randn(2, 3, 8, 8)]
        boxes = [torch.rand(2, 4) * 8, torch.rand(3, 4) * 8]
        tokens = encoder(maps, boxes)
        assert tokens.shape == (5, 6)
        torch.testing.assert_close(tokens, encoder.projector(torch.cat(encoder.pool(maps, boxes))))

    def test_without_pictures_gradients_are_zero_not_absent(self) -> None:
        encoder = ObjectEncoder(3, 6, image_size=8)
        encoder([torch.zeros(0, 3, 8, 8)], []).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


class TestNoSquare:
    @pytest.mark.parametrize("frame", [(48, 96), (96, 64)])
    def test_equals_roi_align_of_upsampled_maps(self, frame: tuple[int, int]) -> None:
        from torchvision.ops import roi_align

        height, width = frame
        maps = [torch.randn(2, channels, height // step, width // step) for channels, step in ((3, 4), (5, 8), (7, 16))]
        corners = torch.rand(2, 9, 2, 2).sort(dim=2).values * torch.tensor([width, height])
        boxes = list(corners.flatten(2) + torch.tensor([-4.0, 3.0, 5.0, 2.0]))
        size = maps[0].shape[-2:]
        whole = torch.cat([torch.nn.functional.interpolate(stage, size, mode="bilinear") for stage in maps], dim=1)
        expected = roi_align(whole, boxes, 56, spatial_scale=size[1] / width, sampling_ratio=-1, aligned=False)
        found = torch.cat(pool_boxes(maps, boxes, frame))
        # sums in another order: 5e-7 measured
        torch.testing.assert_close(found, expected.mean(dim=(2, 3)), rtol=1e-4, atol=5e-6)

    def test_maps_of_another_shape(self) -> None:
        with pytest.raises(XTunerError, match=r"a stage map is \(8, 8\): expected the shape of the frame \(8, 16\)"):
            pool_boxes([torch.zeros(1, 3, 8, 8)], [torch.zeros(0, 4)], (8, 16))
