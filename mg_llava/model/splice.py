"""Where text, image and object tokens go: planned on the CPU from the ids, done on the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xtuner.constants import FRAME_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError, counted


@dataclass(frozen=True)
class SplicePlan:
    """Positions in the spliced batch (B, T'), T' the longest sample's text + image + object tokens.

    Attributes:
        input_ids: (B, T') text ids; 0 stands where image and object tokens go, and in padding.
        labels: (B, T'); `IGNORE_INDEX` on image and object tokens and in padding.
        attention_mask: (B, T') bool, True = a token.
        position_ids: (B, T') counted from each sample's first token. Right padding goes on counting, left
            padding is 0.
        image_positions: (ΣV_i,) places of the image tokens in the flattened (B·T'), picture after picture.
        object_positions: (ΣN,) the same for object tokens.
        target_positions: (S,) places in (B·T') whose output predicts a supervised token.
        targets: (S,) the ids to be predicted there.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    image_positions: torch.Tensor
    object_positions: torch.Tensor
    target_positions: torch.Tensor
    targets: torch.Tensor

    def packed(self) -> SplicePlan:
        """Returns the same samples joined in one row without padding, (1, all tokens); positions restart in each.

        Transformers' models take restarting positions without a mask as packed samples, which do not see each other.
        """
        kept = self.attention_mask.flatten()
        moved_to = kept.cumsum(0) - 1
        # a sample's first token would be predicted from the sample before it
        labels = self.labels.masked_fill(self.position_ids == 0, IGNORE_INDEX)
        return SplicePlan(
            input_ids=self.input_ids.flatten()[kept].unsqueeze(0),
            labels=labels.flatten()[kept].unsqueeze(0),
            attention_mask=kept[kept].unsqueeze(0),
            position_ids=self.position_ids.flatten()[kept].unsqueeze(0),
            image_positions=moved_to[self.image_positions],
            object_positions=moved_to[self.object_positions],
            target_positions=moved_to[self.target_positions],
            targets=self.targets,
        )


def plan_splice(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor,
    num_image_tokens: int,
    object_counts: Sequence[int],
    pad_left: bool = False,
    num_frame_tokens: int | None = None,
) -> SplicePlan:
    """Plans how each `IMAGE_TOKEN_INDEX` becomes V image tokens followed by that picture's object tokens, and each
    `FRAME_TOKEN_INDEX` likewise those of a frame.

    Pictures belong to placeholders in order of appearance, sample after sample.

    Args:
        input_ids: (B, T) on the CPU; placeholders are `IMAGE_TOKEN_INDEX` and, of frames, `FRAME_TOKEN_INDEX`.
        labels: (B, T), `IGNORE_INDEX` where not supervised.
        attention_mask: (B, T) bool, True = a token of the sample.
        num_image_tokens: V.
        object_counts: object tokens of each of the I pictures.
        pad_left: pads on the left, as generation needs; else on the right.
        num_frame_tokens: image tokens of a frame; None = V.

    Raises:
        XTunerError: the numbers of placeholders and pictures differ.

    Examples:
        A picture (-200) of two image tokens and one box, and a supervised token:

        >>> ids, labels = torch.tensor([[5, -200, 6]]), torch.tensor([[-100, -100, 6]])
        >>> plan = plan_splice(ids, labels, torch.ones(1, 3), num_image_tokens=2, object_counts=[1])
        >>> plan.input_ids.tolist(), plan.image_positions.tolist(), plan.object_positions.tolist()
        ([[5, 0, 0, 0, 6]], [1, 2], [3])
        >>> plan.target_positions.tolist(), plan.targets.tolist()
        ([3], [6])
    """
    attention_mask = attention_mask.bool()
    is_frame = (input_ids == FRAME_TOKEN_INDEX) & attention_mask
    is_image = ((input_ids == IMAGE_TOKEN_INDEX) & attention_mask) | is_frame
    _check_counts(is_image, len(object_counts))
    images = torch.full_like(input_ids[is_image], num_image_tokens)
    if num_frame_tokens is not None:
        images[is_frame[is_image]] = num_frame_tokens
    objects, widths = torch.as_tensor(object_counts, dtype=torch.long), attention_mask.long()
    widths[is_image] = images + objects

    ends = widths.cumsum(dim=1)
    lengths, length = ends[:, -1], int(ends[:, -1].max())
    shift = (length - lengths if pad_left else torch.zeros_like(lengths)).unsqueeze(1)
    starts = ends - widths + shift + length * torch.arange(len(input_ids)).unsqueeze(1)

    is_text = attention_mask & ~is_image
    spliced_labels = _place(labels, starts, is_text, length, fill=IGNORE_INDEX)
    columns, image_starts = torch.arange(length).unsqueeze(0), starts[is_image]
    # labels of column t are predicted by column t - 1; the first column has no predecessor
    rows, previous = (spliced_labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return SplicePlan(
        input_ids=_place(input_ids, starts, is_text, length, fill=0),
        labels=spliced_labels,
        attention_mask=(columns >= shift) & (columns < shift + lengths.unsqueeze(1)),
        position_ids=(columns - shift).clamp(min=0),
        image_positions=_ranges(image_starts, images),
        object_positions=_ranges(image_starts + images, objects),
        target_positions=rows * length + previous,
        targets=spliced_labels[rows, previous + 1],
    )


def placeholder_positions(
    is_image: torch.Tensor, image_counts: Sequence[int], object_counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds where image and object tokens go in ids that hold a placeholder for each of them.

    Args:
        is_image: (B, T) bool, True = a placeholder. Each picture has some for its image tokens and then one per box,
            in order of appearance, sample after sample.
        image_counts: V_i, image tokens of each of the I pictures.
        object_counts: object tokens of each.

    Returns:
        `SplicePlan`'s image_positions (ΣV_i,) and object_positions (ΣN,), on the device of `is_image`.

    Raises:
        XTunerError: another number of placeholders.
    """
    places = is_image.flatten().nonzero().squeeze(1)
    needed = sum(image_counts) + sum(object_counts)
    if len(places) != needed:
        raise XTunerError(
            f"the ids hold {counted(len(places), 'placeholders')} of image and object tokens, but "
            f"{counted(len(object_counts), 'pictures')} with {counted(sum(object_counts), 'boxes')} need {needed}: "
            "let the processor make ids, pictures and boxes together."
        )
    images, objects = (torch.as_tensor(counts, dtype=torch.long) for counts in (image_counts, object_counts))
    ends = (images + objects).cumsum(0)
    starts = ends - images - objects
    image = _ranges(starts, images)
    return places[image.to(places.device)], places[_ranges(starts + images, objects).to(places.device)]


def splice(
    text_embeds: torch.Tensor,
    image_tokens: torch.Tensor,
    object_tokens: torch.Tensor,
    image_positions: torch.Tensor,
    object_positions: torch.Tensor,
) -> torch.Tensor:
    """Puts image and object tokens into the embedded text; waits for nothing on the device.

    Args:
        text_embeds: (B, T', D), of the plan's ``input_ids``.
        image_tokens: (I, V, D), or (ΣV_i, D) where frames have fewer.
        object_tokens: (ΣN, D).
        image_positions, object_positions: the plan's.

    Returns:
        (B, T', D) in the type of `text_embeds`.
    """
    # to its device too: a loader may have spread the parts over several
    tokens = torch.cat([image_tokens.flatten(0, -2), object_tokens.to(image_tokens.device)]).to(text_embeds)
    positions = torch.cat([image_positions, object_positions])
    return text_embeds.flatten(0, 1).index_copy(0, positions, tokens).view_as(text_embeds)


def _check_counts(is_image: torch.Tensor, num_pictures: int) -> None:
    per_sample = is_image.sum(dim=1)
    if int(per_sample.sum()) != num_pictures:
        raise XTunerError(
            f"the batch has {counted(int(per_sample.sum()), f'{IMAGE_TOKEN} placeholders')} (by sample: "
            f"{per_sample.tolist()}) but {counted(num_pictures, 'pictures')}: each {IMAGE_TOKEN} needs its own picture."
        )


def _place(values: torch.Tensor, starts: torch.Tensor, chosen: torch.Tensor, length: int, fill: int) -> torch.Tensor:
    placed = values.new_full((len(values) * length,), fill)
    placed[starts[chosen]] = values[chosen]
    return placed.view(len(values), length)


def _ranges(starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[s, s + 1, …, s + n − 1] for each (s, n), one after the other."""
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + torch.repeat_interleave(starts - before, counts)
