"""Training samples: tokenised text, 8-bit pictures and the boxes of their objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import BoxSelection
from mg_llava.data.check import check_training_data, with_other_problems
from mg_llava.data.originals import find_turns
from mg_llava.data.prepared_sources import PreparedSources, make_samples, prepare_sources
from mg_llava.data.samples import SampleReader, fault_of
from mg_llava.data.sharing import write_dataset
from mg_llava.data.sources import DataSource, Template, read_sources, sources_of
from mg_llava.data.video_frames import keep_source_frames
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.cache.formats import FrameFormat
from mg_llava.videos.places import read_frame_place
from mg_llava.videos.sampling import FrameSampling
from xtuner.constants import PICTURE_INDICES
from xtuner.data.batches.bad_samples import BadSample, Replacements
from xtuner.data.records.findings import Findings
from xtuner.data.text.specials import Policy
from xtuner.data.text.templates import Turn
from xtuner.errors import ProblemsError, XTunerError, counted
from xtuner.log import get_logger
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MODES = ("raise", "skip")


class MGLLaVADataset(torch.utils.data.Dataset[dict[str, Any]]):
    """LLaVA records with pictures or videos, and boxes.

    Text and boxes are prepared once and memory-mapped (see `xtuner.data.store.prepare`). Sample i is a dict of

    - ``sample_id``: the record's id; ``source``: number of its source;
    - ``input_ids``, ``labels``: (T,) int64, a picture as one `IMAGE_TOKEN_INDEX`, a frame of a video as one
      `FRAME_TOKEN_INDEX`;
    - ``pixel_values``: (n, 3, S, S) uint8 RGB, one per ``<image>`` and per frame of a ``<video>``; n may be 0;
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
        frame_sampling: which frames of a video are taken, or the config node that builds it; None = the defaults of
            `FrameSampling`.
        frame_cache: folder of frames that `xtuner preprocess video` kept (numbered ones below it for several sources);
            frames that are not there are decoded.
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
        frame_sampling: FrameSampling | Mapping[str, Any] | None = None,
        frame_cache: str | None = None,
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
                frame_sampling=frame_sampling,
            )
        )
        self.tokenizer, self.image_processor = self.maker.tokenizer, self.maker.processor
        sources = read_sources(data_path, image_folder, box_json_path, prompt_template, data_columns, frame_cache)
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
        self._reader = SampleReader(self.maker, len(sources))
        self._replacements = Replacements(self.lengths)

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
                return {**self._reader.sample(row, files), "source": int(self.source_of[number]), "bad_samples": bad}
            except Exception as error:  # whatever is wrong with one sample, the others can be trained on
                cause = error
                bad.append(BadSample(row["id"], number, *fault_of(error)))
        first = bad[0]
        more = f" ({counted(len(bad) - 1, 'substitutes')} failed as well)" if len(bad) > 1 else ""
        raise XTunerError(f"sample '{first.sample_id}' (number {index}): {first.message}{more}") from cause

    def collate_fn(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Joins B samples, see `SampleReader.collate`."""
        return self._reader.collate(samples)

    def describe(self, index: int) -> str:
        """Returns a few lines on sample `index` for people: lengths, pictures, labels of the boxes."""
        row, files = self.samples.row(index)
        lines = [f"{self.lengths[index]} tokens with those of pictures and objects"]
        if len(self.source_names) > 1:
            lines.append(f"from {self.source_names[self.source_of[index]]}")
        _, found, sizes = self._reader.pictures(row, files, with_labels=True)
        each = self.image_processor.image_tokens
        kinds = [one for one in row.numbers("input_ids").tolist() if one in PICTURE_INDICES]
        for path, kind, picture, (width, height) in zip(row["images"], kinds, found, sizes, strict=True):
            counts = Counter(picture.labels).most_common()
            labels = ", ".join(f"{label} x{count}" if count > 1 else label for label, count in counts)
            place = read_frame_place(path)
            shown = f"picture {path}" if place is None else place.words
            lines.append(
                f"{shown} ({width}x{height}): {each.count([kind])} image tokens, "
                f"{len(picture.labels)} object tokens{f' ({labels})' if labels else ''}"
            )
        return "\n".join(lines)

    def find_turns(self, numbers: Sequence[int]) -> dict[int, tuple[Turn, ...]]:
        """Returns the turns of samples by their numbers; see `mg_llava.data.originals.find_turns`."""
        return find_turns(self.samples, self.maker, numbers)

    def draw(self, index: int) -> list[Image.Image]:
        """Returns the pictures of sample `index` as the encoders see them, boxes and labels drawn in."""
        row, files = self.samples.row(index)
        pixels, found, _ = self._reader.pictures(row, files, with_labels=True)
        shown = [Image.fromarray(picture.contiguous().numpy()) for picture in pixels]
        return [draw_boxes(picture, boxes) for picture, boxes in zip(shown, found, strict=True)]

    def frames(self, index: int) -> list[tuple[int, str]]:
        """Returns which pictures of sample `index` are frames of a video: their places, and words for each."""
        row, _ = self.samples.row(index)
        places = [read_frame_place(path) for path in row["images"]]
        return [(number, place.words) for number, place in enumerate(places) if place is not None]

    def statistics(self) -> dict[str, np.ndarray]:
        """Returns numbers for histograms: tokens of each sample, text ids, object tokens of those with pictures."""
        text, each = self.samples.num_ids, self.image_processor.image_tokens
        images = text + self.samples.num_images * (each.picture - 1)
        if each.frame != each.picture:
            rows = (self.samples.row(number)[0] for number in range(len(self)))
            images = np.array([each.count(row.numbers("input_ids").tolist()) for row in rows])
        objects = (self.lengths - images)[self.modality]
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
    def keep_frames(
        cls, node: Mapping[str, Any], out_folder: str, picture_format: str, quality: int, num_proc: int | None = None
    ) -> dict[str, int]:
        """Keeps the sampled frames of the videos of a config's ``train_dataset``, see `keep_source_frames`.

        Raises:
            XTunerError: records cannot be read, or as `mg_llava.videos.cache.keep_frames`.
        """
        sampling = node.get("frame_sampling")
        rule = FrameSampling() if sampling is None else build(sampling)
        form = FrameFormat(picture_format, quality)  # type: ignore[arg-type]  # checked there
        return keep_source_frames(sources_of(node), rule, out_folder, form, bool(node.get("strict_paths")), num_proc)

    @classmethod
    def write_records(
        cls, node: Mapping[str, Any], out_folder: str, shard_bytes: int, group_bytes: int
    ) -> dict[str, int]:
        """Writes the records of a config's ``train_dataset`` as Parquet; see `mg_llava.data.sharing.write_dataset`."""
        return write_dataset(sources_of(node), out_folder, shard_bytes, group_bytes)

    def log_report(self) -> None:
        """Logs how many samples there are, what was left out or cut of how many, and what costs time in reading."""
        told = {kind: count for kind, count in self.report.items() if count and kind not in ("records", "kept")}
        counts = ", ".join(counted(count, kind) for kind, count in told.items())
        get_logger().info("Training data: %s%s", counted(len(self), "samples"), f"; {counts}" if counts else "")
        for note in (source.cost_note() for source in self.samples.sources):
            if note:
                get_logger().warning("%s", note)
