"""Training samples: tokenised text, 8-bit pictures and the boxes of their objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track

from mg_llava.box_store import BoxRecord, BoxStore, no_match_message, other_size_message
from mg_llava.boxes import BoxSelection, PictureBoxes, drop_lowest, no_boxes, valid_boxes
from mg_llava.data_check import check_training_data
from mg_llava.images import missing_pictures, picture_size
from mg_llava.preprocess import ImageProcessor
from mg_llava.text_folders import as_paths, open_text, prepare_text_folders
from xtuner.data.collate import collate
from xtuner.data.prepare import Template, column
from xtuner.errors import ProblemsError, XTunerError
from xtuner.log import console, get_logger
from xtuner.model.llm import read_llm_config
from xtuner.registry import build

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHOWN = 10


class MGLLaVADataset(torch.utils.data.Dataset[dict[str, Any]]):
    """LLaVA records with pictures and boxes.

    The text is tokenised once and memory-mapped (see `xtuner.data.prepare.load_text`). Sample i is a dict of

    - ``sample_id``: the record's id;
    - ``input_ids``, ``labels``: (T,) int64, a picture as one `IMAGE_TOKEN_INDEX`;
    - ``pixel_values``: (n, 3, S, S) uint8 RGB, one per ``<image>``; n may be 0;
    - ``boxes``: n tensors (N, 4) float32, xyxy in pixels of the S x S frame, the objects that become tokens.

    Where text, image and object tokens would pass the language model's context, the lowest-scored boxes of
    the sample go. What is dropped or cut is counted and logged.

    Args:
        data_path: LLaVA JSON or JSONL, or a list of such files; None where `offline_processed_text_folder` is
            given.
        image_folder: folder that the records' picture paths are relative to.
        tokenizer: or the config node that builds it.
        image_processor: or the config node that builds it.
        prompt_template: name, template or config node.
        max_length: most text tokens of a sample, a picture counting as one.
        box_json_path: see `BoxStore`; None = no object tokens.
        boxes: which boxes become tokens, or the config node that builds it; None = the defaults of
            `BoxSelection`.
        llm_name_or_path: language model whose context length bounds a sample; None = no bound.
        offline_processed_text_folder: use exactly this prepared text; None = prepare it in the cache.

    Attributes:
        lengths: (number of samples,) int64 tokens of each: text, image and object tokens. Exact where the box
            file gives the pictures' sizes; elsewhere boxes that lie outside their picture, or are cut off
            with its margins, count too.
        modality: (number of samples,) bool: has a picture.
        report: what was dropped or cut, by kind.

    Raises:
        XTunerError: a file is missing, malformed or prepared with other settings, the box file knows none of the
            pictures, or no sample is left.
        ProblemsError: pictures are missing.
    """

    def __init__(
        self,
        data_path: str | Sequence[str] | None,
        image_folder: str,
        tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
        image_processor: ImageProcessor | Mapping[str, Any],
        prompt_template: Template,
        max_length: int,
        box_json_path: str | None = None,
        boxes: BoxSelection | Mapping[str, Any] | None = None,
        llm_name_or_path: str | None = None,
        offline_processed_text_folder: str | None = None,
    ) -> None:
        self.image_folder = image_folder
        self.max_length = max_length
        self.tokenizer = build(tokenizer)
        self.image_processor: ImageProcessor = build(image_processor)
        self.selection: BoxSelection = BoxSelection() if boxes is None else build(boxes)
        self.context_length = _context_length(llm_name_or_path)
        self.box_store = None if box_json_path is None else BoxStore(box_json_path)
        self.text = open_text(
            as_paths(data_path), self.tokenizer, prompt_template, max_length, offline_processed_text_folder
        )
        self.report: Counter[str] = Counter()
        self._check_pictures()
        self._survey()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def groups(self) -> np.ndarray:
        """A number per sample for samplers that keep kinds apart: 0 without a picture, 1 with one."""
        return self.modality.astype(np.int64)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.text[int(self._rows[index])]
        try:
            pixels, found = self._pictures(record)
        except XTunerError as error:
            raise XTunerError(f"sample '{record['id']}' (number {index}): {error}") from error
        size = self.image_processor.image_size
        return {
            "sample_id": record["id"],
            "input_ids": torch.tensor(record["input_ids"], dtype=torch.long),
            "labels": torch.tensor(record["labels"], dtype=torch.long),
            "pixel_values": torch.stack(pixels) if pixels else torch.zeros((0, 3, size, size), dtype=torch.uint8),
            "boxes": [torch.from_numpy(picture.boxes) for picture in found],
        }

    def collate_fn(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Joins B samples.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` (B, T) and ``sample_ids`` as
            `xtuner.data.collate.collate`; ``pixel_values`` (I, 3, S, S) uint8: all pictures in order of
            appearance, I may be 0; ``boxes``: I tensors (N, 4).
        """
        batch = collate(samples, self.tokenizer.pad_token_id)
        batch["pixel_values"] = torch.cat([sample["pixel_values"] for sample in samples])
        batch["boxes"] = [boxes for sample in samples for boxes in sample["boxes"]]
        return batch

    def describe(self, index: int) -> str:
        """Returns a few lines on sample `index` for people: lengths, pictures, labels of the boxes."""
        record = self.text[int(self._rows[index])]
        lines = [f"{self.lengths[index]} tokens with those of pictures and objects"]
        _, found = self._pictures(record)
        for path, picture in zip(record["images"], found, strict=True):
            width, height = picture_size(
                os.path.join(self.image_folder, path), self.image_processor.apply_exif_orientation
            )
            counts = Counter(picture.labels).most_common()
            labels = ", ".join(f"{label} x{count}" if count > 1 else label for label, count in counts)
            lines.append(
                f"picture {path} ({width}x{height}): {self.image_processor.num_image_tokens} image tokens, "
                f"{len(picture.labels)} object tokens{f' ({labels})' if labels else ''}"
            )
        return "\n".join(lines)

    @classmethod
    def check_records(cls, node: Mapping[str, Any]) -> list[str]:
        """Returns every problem of the data of a config's ``train_dataset``, as ``"kind: sentence"``."""
        return check_training_data(node)

    @classmethod
    def prepare(cls, node: Mapping[str, Any], out_folder: str, num_proc: int | None = None) -> dict[str, int]:
        """Tokenises the text of a config's ``train_dataset`` into `out_folder`; returns counts.

        Raises:
            XTunerError: as `xtuner.data.prepare.prepare_text`.
        """
        return prepare_text_folders(
            as_paths(node.get("data_path")),
            out_folder,
            build(node["tokenizer"]),
            node["prompt_template"],
            node["max_length"],
            num_proc,
        )

    def _box_record(self, path: str, sample_id: str, num_images: int) -> BoxRecord | None:
        return None if self.box_store is None else self.box_store.find(path, sample_id, num_images)

    def _select(self, boxes: BoxRecord | None, num_ids: int) -> PictureBoxes:
        """Boxes of one picture in its own frame, chosen as in training."""
        if boxes is None:
            return no_boxes()
        return self.selection(*boxes.found, num_ids=num_ids, max_length=self.max_length, training=True)

    def _pictures(self, record: Mapping[str, Any]) -> tuple[list[torch.Tensor], list[PictureBoxes]]:
        """Pixels and boxes, both in the S x S frame, of a sample's pictures."""
        paths, num_ids = record["images"], len(record["input_ids"])
        pixels: list[torch.Tensor] = []
        found: list[PictureBoxes] = []
        for path in paths:
            image = self.image_processor.open(os.path.join(self.image_folder, path))
            boxes = self._box_record(path, record["id"], len(paths))
            if boxes is not None and boxes.size not in (None, image.size):
                raise XTunerError(other_size_message(path, image.size, boxes))
            chosen = self._select(boxes, num_ids)
            mapped, kept = self.image_processor.map_boxes(chosen.boxes, image.size)
            found.append(chosen.take(kept)._replace(boxes=mapped))
            pixels.append(self.image_processor.pixels(image))
        room = self._room(num_ids, len(paths)) if paths else None
        return pixels, found if room is None else _keep_best(found, room)

    def _room(self, num_ids: int, num_images: int) -> int | None:
        """Object tokens for which the context has room; None without a bound."""
        if self.context_length is None:
            return None
        image_tokens = num_images * (self.image_processor.num_image_tokens - 1) if num_images else 0
        return self.context_length - num_ids - image_tokens

    def _check_pictures(self) -> None:
        """Refuses pictures that are not there: better now than hours later."""
        names = zip(_values(self.text, "id"), _values(self.text, "images"), strict=True)
        users = {path: sample_id for sample_id, paths in names for path in paths}
        missing = list(missing_pictures(self.image_folder, users))
        if not missing:
            return
        shown = [f"picture '{path}' of sample '{users[path]}' does not exist" for path in missing[:_SHOWN]]
        hidden = len(missing) - len(shown)
        raise ProblemsError(
            f"'{self.image_folder}' (setting image_folder), {len(missing):,} of {len(users):,} pictures missing",
            [
                *shown,
                *([f"and {hidden:,} more; `xtuner check-dataset` finds all faults of the data"] if hidden else []),
            ],
        )

    def _survey(self) -> None:
        """Counts every sample's tokens; what passes the context without any box is left out."""
        text_lengths = column(self.text, "length").astype(np.int64)
        lengths = text_lengths.copy()
        fits = np.ones(len(lengths), dtype=bool)
        modality = np.zeros(len(lengths), dtype=bool)
        names = zip(_values(self.text, "id"), _values(self.text, "images"), strict=True)
        # every rank counts, one shows it
        hidden = os.environ.get("RANK", "0") != "0"
        watched = track(names, "Counting tokens", len(lengths), console=console, transient=True, disable=hidden)
        for row, (sample_id, paths) in enumerate(watched):
            num_ids = int(text_lengths[row])
            room = self._room(num_ids, len(paths))
            fits[row] = room is None or room >= 0
            if not fits[row] or not paths:
                continue
            modality[row] = True
            found = sum(self._count(path, sample_id, num_ids, len(paths)) for path in paths)
            objects = found if room is None else min(found, room)
            self.report["boxes cut for the context"] += found - objects
            lengths[row] += len(paths) * (self.image_processor.num_image_tokens - 1) + objects
        self.report["samples longer than the context left out"] += int((~fits).sum())
        self._refuse_foreign_boxes()
        self._rows = np.flatnonzero(fits)
        self.lengths, self.modality = lengths[fits], modality[fits]
        self._log_report()

    def _count(self, path: str, sample_id: str, num_ids: int, num_images: int) -> int:
        """Number of a picture's object tokens; what is odd about its boxes goes into the report."""
        self.report["pictures"] += 1
        boxes = self._box_record(path, sample_id, num_images)
        if boxes is None:
            self.report["pictures not in the box file"] += self.box_store is not None
            return 0
        if not len(boxes.found.labels):
            self.report["pictures without boxes"] += 1
            return 0
        self.report["inverted boxes left out"] += int((~valid_boxes(boxes.found.boxes)).sum())
        chosen = self._select(boxes, num_ids)
        if boxes.size is None:
            return len(chosen.labels)
        kept = self.image_processor.map_boxes(chosen.boxes, boxes.size)[1]
        self.report["boxes outside the picture left out"] += int((~kept).sum())
        return int(kept.sum())

    def _refuse_foreign_boxes(self) -> None:
        if self.box_store is not None and 0 < self.report["pictures"] == self.report["pictures not in the box file"]:
            raise XTunerError(no_match_message(self.box_store.path, self.report["pictures"]))

    def _log_report(self) -> None:
        if not len(self):
            raise XTunerError(
                f"no sample is left: text and pictures alone are longer than the language model's context of "
                f"{self.context_length} tokens; lower max_length or take a model with a longer context."
            )
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.report.items() if count)
        get_logger().info("Training data: %s samples%s", f"{len(self):,}", f"; {counts}" if counts else "")


def _values(dataset: Dataset, name: str) -> Iterator[Any]:
    """Yields a column's values one by one; they never stand in memory all at once."""
    return (value.as_py() for chunk in dataset.data.column(name).chunks for value in chunk)


def _context_length(llm_name_or_path: str | None) -> int | None:
    if llm_name_or_path is None:
        return None
    return getattr(read_llm_config(llm_name_or_path), "max_position_embeddings", None)


def _keep_best(found: Sequence[PictureBoxes], room: int) -> list[PictureBoxes]:
    """Keeps the `room` best boxes of all pictures of a sample, in their places."""
    counts = [len(picture.labels) for picture in found]
    kept = np.zeros(sum(counts), dtype=bool)
    kept[drop_lowest(np.concatenate([picture.scores for picture in found]), room)] = True
    ends = np.cumsum(counts)[:-1]
    return [picture.take(part) for picture, part in zip(found, np.split(kept, ends), strict=True)]
