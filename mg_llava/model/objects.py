"""Object features in closed form, and the encoder that turns them into object tokens.

The published method upsamples all stage maps to the finest one's size, concatenates them, roi-aligns each box
to 56 × 56 and averages. All of that is linear in the maps and separable in x and y: a box's feature is
``wyᵀ · F · wx`` per stage, with two short weight vectors. The same numbers come out without the maps of 2880
channels and the 56 × 56 crops.
Source: MG-LLaVA (arXiv 2406.17770), section 3.2; sampling rules of torchvision's ``roi_align``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn

from mg_llava.pictures.frames import FrameSize, sides
from xtuner.errors import XTunerError
from xtuner.model.projector import MLPProjector

_BINS = 56
_MAX_COORDINATE = 1e6
"""Pixels; boxes beyond are pulled in, so that sample numbers stay exact (roi_align cannot do such boxes)."""

_SLICE_ROWS = 24
"""Maps are gone through in slices of so many rows: half-precision ones are widened slice by slice, and on the CPU boxes
are only weighed in the slices that they touch. float32 maps on a GPU are taken whole."""


def pool_boxes(
    stage_maps: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], image_size: FrameSize
) -> list[torch.Tensor]:
    """Averages the stage maps over each box.

    Equals: upsample every map to the finest one's size (bilinear, half-pixel centres), concatenate,
    ``roi_align`` with output 56, ``sampling_ratio=-1``, ``aligned=False`` and scale finest / image_size, then
    the mean over the bins. So samples beyond the map by more than a cell count as zero, and a box has at least
    one cell of the finest map each way: zero-area, inverted and far-away boxes give finite features too.

    Args:
        stage_maps: one (B, C_i, H_i, W_i) per stage, of the frame's shape, any floating type.
        boxes: B tensors (N_b, 4), xyxy in pixels of the `image_size` frame, finite; N_b may be 0.
        image_size: side of the frame in pixels, or its (height, width).

    Returns:
        B tensors (N_b, ΣC_i) in float32, differentiable in the maps. Time and memory are linear in the boxes.

    Raises:
        XTunerError: the numbers of pictures differ, or a map is not of the frame's shape.

    Examples:
        A map whose four columns hold 0, 1, 2, 3, in a frame of 64 pixels; the left half, then everything:

        >>> columns = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> boxes = torch.tensor([[0.0, 0.0, 32.0, 64.0], [0.0, 0.0, 64.0, 64.0]])
        >>> pool_boxes([columns], [boxes], image_size=64)[0].round(decimals=3).tolist()
        [[1.0], [1.875]]
    """
    _check(stage_maps, boxes, sides(image_size))
    if not boxes:
        return []
    counts = [len(box) for box in boxes]
    device = stage_maps[0].device
    # autocast would round the weights and the sums to half precision
    with torch.autocast(device.type, enabled=False):
        corners = torch.cat(list(boxes)).to(device, torch.float32)
        pooled: list[list[torch.Tensor]] = []
        for columns, rows in _map_weights(stage_maps, corners, sides(image_size)):
            pictures = zip(stage_maps[len(pooled)], columns.split(counts), rows.split(counts), strict=True)
            pooled.append([_weighted_mean(*picture) for picture in pictures])
    return [torch.cat(stages, dim=1) for stages in zip(*pooled, strict=True)]


def _map_weights(
    stage_maps: Sequence[torch.Tensor], boxes: torch.Tensor, frame: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields for each map the weights of its columns (N, W_i) and of its rows (N, H_i) in each box's mean."""
    finest = max((stage_map.shape[-2:] for stage_map in stage_maps), key=max)
    if frame[0] == frame[1]:
        weights = axis_weights(boxes, finest[0], frame[0])
        for stage_map in stage_maps:
            per_axis = weights @ _upsampling(stage_map.shape[-1], finest[0], boxes.device)
            yield per_axis[:, 0], per_axis[:, 1]
        return
    rows = axis_weights(boxes, finest[0], frame[0])[:, 1]
    columns = axis_weights(boxes, finest[1], frame[1])[:, 0]
    for stage_map in stage_maps:
        height, width = stage_map.shape[-2:]
        yield (
            columns @ _upsampling(width, finest[1], boxes.device),
            rows @ _upsampling(height, finest[0], boxes.device),
        )


def _check(stage_maps: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], frame: tuple[int, int]) -> None:
    for stage_map in stage_maps:
        if len(stage_map) != len(boxes):
            raise XTunerError(f"{len(boxes)} box lists for {len(stage_map)} pictures: expected one list per picture.")
        height, width = stage_map.shape[-2:]
        if height * frame[1] != width * frame[0]:
            shape = "a square one, of a square picture" if frame[0] == frame[1] else f"the shape of the frame {frame}"
            raise XTunerError(f"a stage map is {(height, width)}: expected {shape}.")


def axis_weights(boxes: torch.Tensor, size: int, image_size: int) -> torch.Tensor:
    """Weights of a map's columns and rows in the mean over each box.

    Args:
        boxes: (N, 4) float32, xyxy in pixels of the `image_size` frame.
        size: cells along each side of the map.
        image_size: side of the frame in pixels.

    Returns:
        (N, 2, size) float32: [:, 0] for x, [:, 1] for y. Their sums are below 1 where samples fall outside
        the map.
    """
    corners = boxes.clamp(-_MAX_COORDINATE, _MAX_COORDINATE).view(-1, 2, 2) * (size / image_size)
    start = corners[:, 0]
    extent = (corners[:, 1] - start).clamp(min=1.0)
    positions, valid, total = _sample_positions(start, extent, size)
    share = valid / total.unsqueeze(-1)
    # cell centres are the integers; a sample between two cells is shared by its distance to them
    positions = positions.clamp(0, size - 1)
    lower = positions.long()
    upper_share = share * (positions - lower)
    weights = torch.zeros(*positions.shape[:2], size, device=boxes.device)
    weights.scatter_add_(2, lower, share - upper_share)
    return weights.scatter_add_(2, (lower + 1).clamp(max=size - 1), upper_share)


def _sample_positions(
    start: torch.Tensor, extent: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions of roi_align's samples along an axis, in cells: those that can touch the map, (..., K).

    Written in roi_align's own order of float32 operations, so that samples at the border fall on its side.
    Returns also which of the K count (float, 0 or 1) and how many samples there are in all, (...).
    """
    per_bin = (extent / _BINS).ceil()
    total = per_bin * _BINS
    step = extent / total
    # with several samples a bin they lie at least half a cell apart, so this many reach across the map
    window = max(_BINS, 2 * (size + 1) + 8)
    if not start.is_cuda and len(start):
        window = min(window, int(total.max()))
    first = ((-1 - start) / step - 3).floor().clamp(min=0)
    index = first.unsqueeze(-1) + torch.arange(window, device=start.device)
    bin_index = (index / per_bin.unsqueeze(-1)).floor()
    within = index - bin_index * per_bin.unsqueeze(-1)
    bin_extent = (extent / _BINS).unsqueeze(-1)
    within_bin = (within + 0.5) * bin_extent / per_bin.unsqueeze(-1)
    positions = start.unsqueeze(-1) + bin_index * bin_extent + within_bin
    valid = (index < total.unsqueeze(-1)) & (positions >= -1) & (positions <= size)
    return positions, valid.float(), total


def _upsampling(size: int, finest: int, device: torch.device) -> torch.Tensor:
    """Returns the (finest, size) matrix of bilinear upsampling along one axis (``align_corners=False``)."""
    source = (torch.arange(finest, device=device) + 0.5) * (size / finest) - 0.5
    distance = source.clamp(0, size - 1).unsqueeze(1) - torch.arange(size, device=device)
    return (1 - distance.abs()).clamp(min=0)


def _weighted_mean(feature_map: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(C, H, W), (N, W) and (N, H) → (N, C), sums in float32."""
    channels, height, width = feature_map.shape
    cells = feature_map.flatten(1)
    step = height if cells.is_cuda and cells.dtype == torch.float32 else _SLICE_ROWS
    pooled = torch.zeros(len(rows), channels, device=cells.device)
    for top in range(0, height, step):
        slice_weights = rows[:, top : top + step]
        # which boxes touch the slice is only asked where the answer makes nobody wait
        boxes = slice(None) if cells.is_cuda else slice_weights.any(dim=1).nonzero().squeeze(1)
        weights = slice_weights[boxes].unsqueeze(2) * columns[boxes].unsqueeze(1)
        part = cells[:, top * width : (top + step) * width]
        pooled[boxes] += weights.flatten(1) @ part.float().T
    return pooled


class ObjectEncoder(nn.Module):
    """Pools each box over all stage maps and projects the result to the language model's width.

    Args:
        in_channels: ΣC_i of the stage maps.
        out_channels: width D of the language model.
        image_size: side of the frame that boxes are in, in pixels, or (height, width).
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels", "image_size")

    def __init__(self, in_channels: int, out_channels: int, image_size: FrameSize) -> None:
        super().__init__()
        self.image_size = image_size
        self.projector = MLPProjector(in_channels, out_channels)

    def pool(self, stage_maps: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`pool_boxes` in this encoder's frame."""
        return pool_boxes(stage_maps, boxes, self.image_size)

    def forward(self, stage_maps: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> torch.Tensor:
        """One (B, C_i, H_i, W_i) per stage and B box tensors (N_b, 4) → (ΣN_b, D), picture after picture."""
        pooled = self.pool(stage_maps, boxes)
        width = self.projector.in_channels
        features = torch.cat(pooled) if pooled else stage_maps[0].new_zeros((0, width), dtype=torch.float32)
        return self.projector(features.to(next(self.projector.parameters()).dtype))
