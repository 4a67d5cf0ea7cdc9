"""Training samples: tokenised text, 8-bit pictures and the boxes of their objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import BoxSelection, PictureBoxes, drop_lowest
from mg_llava.boxes.store import other_size_message
from mg_llava.data.box_columns import PreparedBoxes, object_room, read_boxes
from mg_llava.data.check import check_training_data, with_other_problems
from mg_llava.data.originals import find_turns
from mg_llava.data.prepared_sources import PreparedSources, make_samples, prepare_sources
from mg_llava.data.sharing import write_dataset
from mg_llava.data.sources import DataSource, Template, read_sources, sources_of
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.batches.bad_samples import BadSample, Replacements
from xtuner.data.batches.collate import collate
from xtuner.data.pictures.files import PictureFiles
from xtuner.data.records.findings import Findings
from xtuner.data.store.prepared import PreparedRow
from xtuner.data.text.specials import Policy
from xtuner.data.text.templates import Turn
from xtuner.errors import ProblemsError, SampleError, XTunerError, counted
from xtuner.log import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MODES = ("raise", "skip")


class MGLLaVADataset(torch.utils.data.Dataset[dict[str, Any]]):
    """LLaVA records with pictures and boxes.

    Text and boxes are prepared once and memory-mapped (see `xtuner.data.store.prepare`). Sample i is a dict of

    - ``sample_id``: the record's id; ``source``: number of its source;
    - ``input_ids``, ``labels``: (T,) int64, a picture as one `IMAGE_TOKEN_INDEX`;
    - ``pixel_values``: (n, 3, S, S) uint8 RGB, one per ``<image>``; n may be 0;
    - ``boxes``: n tensors (N, 4) float32, xyxy in pixels of the S x S frame, the objects that become tokens;
    - ``bad_samples``: what could not be read in its place, usually nothing.

    Where text, image and object tokens would pass the language model's context, the lowest-scored boxes of
    the sample go. What is dropped or cut is counted and logged.

    Args:
        data_path: records (see `xtuner list-dataset-format`) as JSON, Parquet, Arrow, WebDataset or a data set of the
            Hub, see `xtuner.data.sources.locate.locate`; or a list of such or of `DataSource` with their own folder,
            boxes, template and repeats; None where `offline_processed_text_folder` is given.
        image_folder: folder that the records' picture paths are relative to, or archives of pictures: see
            `xtuner.data.pictures.files.picture_files`. Pictures that stand in the records' own files need none.
        tokenizer: or the config node that builds it.
        image_processor: or the config node that builds it.
        prompt_template: name, template or config node; "auto" = made from the tokenizer's chat template.
        system_prompt: of conversations without one; None = the template's own.
        max_length: most text tokens of a sample, a picture counting as one.
        box_json_path: see `BoxStore`; None = only the boxes that records give of their own pictures; "" = no object
            tokens.
        boxes: which boxes become tokens, or the config node that builds it; None = the defaults of
            `BoxSelection`.
        llm_name_or_path: language model whose context length bounds a sample; None = no bound.
        offline_processed_text_folder: use exactly this prepared folder; None = prepare in the cache.
        on_bad_sample: what to do with a sample that cannot be read in training: "raise" ends the run; "skip" takes
            another of about its length, always the same one, and tells of it.
        special_tokens_in_text: what becomes of special tokens that a record's text holds, see
            `xtuner.data.text.specials.Policy`.
        strict_paths: refuse pictures outside their image folder: absolute paths, "..", symbolic links.
        allow_odd_boxes: take box files in which most boxes cannot be pixels, see `mg_llava.boxes.sense`.
        data_columns: the column of each field (``conversations``, ``image``, ...) that has another name in Parquet,
            Arrow or WebDataset, see `xtuner.data.sources.columns.FIELDS`.

    Attributes:
        lengths: (number of samples,) int64 tokens of each: text, image and object tokens. Exact where the box
            file gives the pictures' sizes; elsewhere boxes that lie outside their picture, or are cut off
            with its margins, count too.
        num_images: (number of samples,) pictures of each.
        modality: (number of samples,) bool: has a picture.
        source_names, repeats: of each source.
        source_of: (number of samples,) number of its source.
        report: what was dropped or cut, by kind.

    Raises:
        XTunerError: a file is missing, malformed or prepared with other settings, the box file knows none of the
            pictures, or no sample is left.
        ProblemsError: faulty records or boxes, or missing pictures: all of them in one message.
    """

    def __init__(
        self,
        data_path: str | Sequence[str | Mapping[str, Any] | DataSource] | None,
        image_folder: str,
        tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
        image_processor: ImageProcessor | Mapping[str, Any],
        prompt_template: Template,
        max_length: int,
        box_json_path: str | None = None,
        boxes: BoxSelection | Mapping[str, Any] | None = None,
        llm_name_or_path: str | None = None,
        offline_processed_text_folder: str | None = None,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        strict_paths: bool = False,
        allow_odd_boxes: bool = False,
        special_tokens_in_text: Policy = "split",
        system_prompt: str | None = None,
        data_columns: Mapping[str, str] | None = None,
    ) -> None:
        if on_bad_sample not in _MODES:
            raise XTunerError(f"on_bad_sample='{on_bad_sample}': expected one of {', '.join(_MODES)}.")
        self.on_bad_sample = on_bad_sample
        self.maker = make_samples(
            dict(
                tokenizer=tokenizer,
                max_length=max_length,
                boxes=boxes,
                image_processor=image_processor,
                llm_name_or_path=llm_name_or_path,
                strict_paths=strict_paths,
                allow_odd_boxes=allow_odd_boxes,
                system_prompt=system_prompt,
                special_tokens_in_text=special_tokens_in_text,
            )
        )
        self.tokenizer, self.image_processor = self.maker.tokenizer, self.maker.processor
        sources = read_sources(data_path, image_folder, box_json_path, prompt_template, data_columns)
        try:
            self.samples = PreparedSources(sources, self.maker, offline_processed_text_folder)
            self.samples.check_pictures()
        except ProblemsError as error:
            raise with_other_problems(error, sources) from error
        self.lengths, self.num_images = self.samples.tokens, self.samples.num_images
        self.modality = self.num_images > 0
        self.source_of = self.samples.source_of
        self.source_names = [str(source.name) for source in sources]
        self.repeats = [source.repeats for source in sources]
        self.report = self.samples.report
        self._replacements = Replacements(self.lengths)
        self._log_report()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def groups(self) -> np.ndarray:
        """A number per sample for samplers that keep kinds apart: 0 without a picture, 1 with one."""
        return self.modality.astype(np.int64)

    def __getitem__(self, index: int) -> dict[str, Any]:
        bad: list[BadSample] = []
        cause: Exception | None = None
        for number in self._replacements.of(index) if self.on_bad_sample == "skip" else (index,):
            row, files = self.samples.row(number)
            try:
                return {**self._sample(row, files), "source": int(self.source_of[number]), "bad_samples": bad}
            except Exception as error:  # whatever is wrong with one sample, the others can be trained on
                cause = error
                bad.append(BadSample(row["id"], number, *_fault(error)))
        first = bad[0]
        more = f" ({counted(len(bad) - 1, 'substitutes')} failed as well)" if len(bad) > 1 else ""
        raise XTunerError(f"sample '{first.sample_id}' (number {index}): {first.message}{more}") from cause

    def collate_fn(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Joins B samples.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` (B, T) and ``sample_ids`` as
            `xtuner.data.batches.collate.collate`; ``pixel_values`` (I, 3, S, S) uint8: all pictures in order of
            appearance, I may be 0; ``boxes``: I tensors (N, 4); ``bad_samples`` of all; ``sources`` (B,), numbers of
            the sources, where there are several, and their ``num_sources``.
        """
        batch = collate(samples, self.tokenizer.pad_token_id)
        # joined as they lie in memory, colours innermost: a plain copy
        pixels = torch.cat([sample["pixel_values"].permute(0, 2, 3, 1) for sample in samples])
        batch["pixel_values"] = pixels.permute(0, 3, 1, 2)
        batch["boxes"] = [boxes for sample in samples for boxes in sample["boxes"]]
        batch["bad_samples"] = [bad for sample in samples for bad in sample["bad_samples"]]
        if len(self.source_names) > 1:
            batch["sources"] = torch.tensor([sample["source"] for sample in samples])
            batch["num_sources"] = len(self.source_names)
        return batch

    def describe(self, index: int) -> str:
        """Returns a few lines on sample `index` for people: lengths, pictures, labels of the boxes."""
        row, files = self.samples.row(index)
        lines = [f"{self.lengths[index]} tokens with those of pictures and objects"]
        if len(self.source_names) > 1:
            lines.append(f"from {self.source_names[self.source_of[index]]}")
        _, found, sizes = self._pictures(row, files, with_labels=True)
        for path, picture, (width, height) in zip(row["images"], found, sizes, strict=True):
            counts = Counter(picture.labels).most_common()
            labels = ", ".join(f"{label} x{count}" if count > 1 else label for label, count in counts)
            lines.append(
                f"picture {path} ({width}x{height}): {self.image_processor.num_image_tokens} image tokens, "
                f"{len(picture.labels)} object tokens{f' ({labels})' if labels else ''}"
            )
        return "\n".join(lines)

    def find_turns(self, numbers: Sequence[int]) -> dict[int, tuple[Turn, ...]]:
        """Returns the turns of samples by their numbers; see `mg_llava.data.originals.find_turns`."""
        return find_turns(self.samples, self.maker, numbers)

    def draw(self, index: int) -> list[Image.Image]:
        """Returns the pictures of sample `index` as the encoders see them, boxes and labels drawn in."""
        row, files = self.samples.row(index)
        pixels, found, _ = self._pictures(row, files, with_labels=True)
        shown = [Image.fromarray(picture.contiguous().numpy()) for picture in pixels]
        return [draw_boxes(picture, boxes) for picture, boxes in zip(shown, found, strict=True)]

    def statistics(self) -> dict[str, np.ndarray]:
        """Returns numbers for histograms: tokens of each sample, text ids, object tokens of those with pictures."""
        text = self.samples.num_ids
        image_tokens = self.samples.num_images * (self.image_processor.num_image_tokens - 1)
        objects = (self.lengths - text - image_tokens)[self.modality]
        return {"tokens of a sample": self.lengths, "of them text": text, "object tokens, with picture": objects}

    @classmethod
    def check_records(cls, node: Mapping[str, Any], fast: bool = False) -> Findings:
        """Returns every problem of the data of a config's ``train_dataset``, and what training leaves out of it.

        With `fast` pictures are decoded, but not preprocessed.
        """
        return check_training_data(node, fast)

    @classmethod
    def prepare(cls, node: Mapping[str, Any], out_folder: str, num_proc: int | None = None) -> dict[str, int]:
        """Prepares the samples of a config's ``train_dataset`` in `out_folder`; returns counts.

        Raises:
            XTunerError: as `xtuner.data.store.prepare.prepare`.
            ProblemsError: faulty records or boxes: with all that a training would not start for.
        """
        sources = sources_of(node)
        try:
            return prepare_sources(sources, make_samples(node), out_folder, num_proc)
        except ProblemsError as error:
            raise with_other_problems(error, sources) from error

    @classmethod
    def write_records(
        cls, node: Mapping[str, Any], out_folder: str, shard_bytes: int, group_bytes: int
    ) -> dict[str, int]:
        """Writes the records of a config's ``train_dataset`` as Parquet; see `mg_llava.data.sharing.write_dataset`."""
        return write_dataset(sources_of(node), out_folder, shard_bytes, group_bytes)

    def _sample(self, row: PreparedRow, files: PictureFiles) -> dict[str, Any]:
        pixels, found, _ = self._pictures(row, files)
        size = self.image_processor.image_size
        stacked = torch.stack(pixels) if pixels else torch.zeros((0, size, size, 3), dtype=torch.uint8)
        return {
            "sample_id": row["id"],
            "input_ids": torch.from_numpy(row.numbers("input_ids").astype(np.int64)),
            "labels": torch.from_numpy(row.numbers("labels").astype(np.int64)),
            "pixel_values": stacked.permute(0, 3, 1, 2),
            "boxes": [torch.from_numpy(picture.boxes) for picture in found],
        }

    def _pictures(
        self, row: PreparedRow, files: PictureFiles, with_labels: bool = False
    ) -> tuple[list[torch.Tensor], list[PictureBoxes], list[tuple[int, int]]]:
        """Pixels (S, S, 3), boxes in the S x S frame, and (width, height) of a sample's pictures."""
        paths: list[str] = row["images"]
        pixels: list[torch.Tensor] = []
        found: list[PictureBoxes] = []
        sizes: list[tuple[int, int]] = []
        for path, boxes in zip(paths, read_boxes(row, with_labels), strict=True):
            image = self.image_processor.open(files.open(path))
            found.append(self._mapped(boxes, path, image.size))
            pixels.append(self.image_processor.pixels(image).permute(1, 2, 0))
            sizes.append(image.size)
        num_ids = len(row.numbers("input_ids"))
        room = object_room(self.maker.context_length, num_ids, len(paths), self.image_processor.num_image_tokens)
        if room is not None and sum(len(picture.labels) for picture in found) > room:
            found = _keep_best(found, room)
        return pixels, found, sizes

    def _mapped(self, boxes: PreparedBoxes, path: str, size: tuple[int, int]) -> PictureBoxes:
        """The boxes of a picture of `size` in the S x S frame."""
        if boxes.size is None:
            mapped, kept = self.image_processor.map_boxes(boxes.found.boxes, size)
            return boxes.found.take(kept)._replace(boxes=mapped)
        if boxes.size != size:
            raise SampleError("boxes of another size", other_size_message(path, size, boxes.size, "its box record"))
        return boxes.found

    def _log_report(self) -> None:
        told = {kind: count for kind, count in self.report.items() if count and kind not in ("records", "kept")}
        counts = ", ".join(counted(count, kind) for kind, count in told.items())
        get_logger().info("Training data: %s%s", counted(len(self), "samples"), f"; {counts}" if counts else "")


def _fault(error: Exception) -> tuple[str, str]:
    """Kind of a sample's fault, by which they are counted, and a sentence."""
    if isinstance(error, XTunerError):
        return error.kind if isinstance(error, SampleError) else "other", str(error)
    if isinstance(error, MemoryError):
        return "out of memory", "there is not enough memory to read it."
    return "cannot be read", f"it cannot be read ({type(error).__name__}: {error})."


def _keep_best(found: Sequence[PictureBoxes], room: int) -> list[PictureBoxes]:
    """Keeps the `room` best boxes of all pictures of a sample, in their places."""
    counts = [len(picture.labels) for picture in found]
    kept = np.zeros(sum(counts), dtype=bool)
    kept[drop_lowest(np.concatenate([picture.scores for picture in found]), room)] = True
    ends = np.cumsum(counts)[:-1]
    return [picture.take(part) for picture, part in zip(found, np.split(kept, ends), strict=True)]
