"""Training samples of a source that is too large for the disk: read, encoded and shuffled as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mg_llava.boxes.selection import BoxSelection
from mg_llava.data.length_check import why_left_out
from mg_llava.data.prepared_sources import make_samples
from mg_llava.data.samples import SampleReader, fault_of
from mg_llava.data.sources import DataSource, Template, read_sources
from mg_llava.data.video_frames import FrameExpander
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.batches.bad_samples import BadSample
from xtuner.data.batches.stream import Streamed, StreamOrder, StreamPart
from xtuner.data.records.findings import Findings
from xtuner.data.records.json_stream import Record
from xtuner.data.sources.streaming import Item, MemoryPictures, StreamShards
from xtuner.data.store.prepared import PreparedRow
from xtuner.data.text.encoder import RecordEncoder
from xtuner.data.text.specials import Policy
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MGLLaVAStream(IterableDataset[dict[str, Any]]):
    """Records with pictures and boxes, read from beginning to end where they lie, without preparing.

    The same encoder makes the same samples as `MGLLaVADataset`. What is not known beforehand is lost: the number of
    samples (a run needs ``max_iters``), batches of similar lengths, a mixture of sources, and the checks before the
    first step: faulty records and pictures are counted as bad samples instead, and so are records that teach nothing,
    which end no run.

    Args:
        data_path: one source of Parquet or WebDataset shards, see `StreamShards`.
        buffer: records that are shuffled at a time; they stand in memory with their pictures' bytes, in each worker.
        (others): as of `MGLLaVADataset`; `offline_processed_text_folder` must be None.

    Raises:
        XTunerError: several sources, or one that cannot be streamed.
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
        buffer: int = 1000,
        frame_sampling: FrameSampling | Mapping[str, Any] | None = None,
        frame_cache: str | None = None,
    ) -> None:
        sources = read_sources(data_path, image_folder, box_json_path, prompt_template, data_columns, frame_cache)
        if len(sources) != 1 or sources[0].data_path is None or offline_processed_text_folder is not None:
            raise XTunerError(
                "a stream takes one data_path and no prepared folder: write a mixture as one source by `xtuner convert "
                "dataset`, or train on prepared data (train_dataset.type=MGLLaVADataset)."
            )
        self.source = sources[0]
        self.name = str(self.source.data_path)
        self.buffer = buffer
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
        self.kept = self.source.kept_frames()
        if self.kept is not None:
            self.kept.check_sampling(self.maker.sampling)
        self.tokenizer = self.maker.tokenizer
        self.shards = StreamShards(self.name, self.source.columns)
        self.source_names = [str(self.source.name)]
        self._reader = SampleReader(self.maker)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields batches of one sample, in the order of a run with seed 0, one process and no workers."""
        yield from self.reader(StreamOrder(self.name, len(self.shards), self.buffer, 1))

    def reader(self, order: StreamOrder) -> IterableDataset[dict[str, Any]]:
        """Returns what yields a rank's micro-batches from the order's places on, in each worker its share."""
        return _Reader(self, order)

    @classmethod
    def check_records(cls, node: Mapping[str, Any], fast: bool = False) -> Findings:
        """Refuses: a stream is not read before training.

        Raises:
            XTunerError: always.
        """
        raise XTunerError(
            "a stream is not checked before training, since it would be read whole: set train_dataset.type="
            "mg_llava.data.MGLLaVADataset to check (and download) it."
        )

    def encode(self, encoder: RecordEncoder, block: Sequence[Item]) -> tuple[list[Streamed], list[BadSample]]:
        """Makes the samples of a block of records, and says which records are faulty, and which teach nothing."""
        records = [record for record, _ in block if isinstance(record, Record)]
        problems = [record for record, _ in block if isinstance(record, str)]
        contents = {place: content for _, pictures in block for place, content in pictures.items()}
        stored = MemoryPictures(contents, self.source.image_folder or "", self.maker.strict_paths)
        files = FrameFiles(stored, self.kept)
        if isinstance(encoder.videos, FrameExpander):
            encoder.videos.read_from(files)
        # one by one: a fault in one record must not cost the others
        encoded = [encoder([record]) for record in records]
        problems += [problem for one in encoded for problem in one.problems]
        if problems and self.on_bad_sample == "raise":
            raise XTunerError(f"'{self.name}': {problems[0]}")
        streamed = [
            Streamed(int(one.index["tokens"][0]), partial(self._reader.sample, PreparedRow(one.batch, 0), files))
            for one in encoded
            if one.batch.num_rows and not one.problems
        ]
        silent = [
            why_left_out(record, self.maker, encoder.template)
            for record, one in zip(records, encoded, strict=True)
            if not (one.batch.num_rows or one.problems)
        ]
        left_out = [BadSample("", -1, *_split(note), is_fault=False) for note in silent]
        return streamed, [*(BadSample("", -1, *_split(problem)) for problem in problems), *left_out]

    def judge(self, error: Exception) -> BadSample:
        """Says what is wrong with a sample.

        Raises:
            XTunerError: bad samples end the run.
        """
        if self.on_bad_sample == "raise":
            raise XTunerError(f"a sample of '{self.name}': {fault_of(error)[1]}") from error
        return BadSample("", -1, *fault_of(error))

    def collate(self, samples: Sequence[Mapping[str, Any]], bad: list[BadSample]) -> dict[str, Any]:
        """Joins the samples of a micro-batch; see `SampleReader.collate`."""
        batch = self._reader.collate([{**sample, "source": 0, "bad_samples": []} for sample in samples])
        return {**batch, "bad_samples": bad}


class _Reader(IterableDataset[dict[str, Any]]):
    """A rank's micro-batches; each worker reads a part of the rank's share."""

    def __init__(self, stream: MGLLaVAStream, order: StreamOrder) -> None:
        self.stream = stream
        self.order = order
        # as they are when the reading begins
        self.places, self.first = list(order.places), order.next_worker

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        order, stream = self.order, self.stream
        # the loader asks its first worker first: that one goes on with the part whose turn it is
        worker = ((0 if info is None else info.id) + self.first) % order.workers
        if info is not None:
            torch.set_num_threads(1)
        part = StreamPart(
            stream.shards,
            order.rank * order.workers + worker,
            order.world_size * order.workers,
            order.buffer,
            order.seed,
        )
        encode = partial(stream.encode, stream.maker.encoder(stream.source))
        batches = part.micro_batches(
            self.places[worker], encode, order.batch_size, order.max_tokens_per_batch, stream.judge
        )
        for samples, bad, place in batches:
            yield {**stream.collate(samples, bad), "stream_place": (worker, tuple(place))}


def _split(problem: str) -> tuple[str, str]:
    kind, colon, sentence = problem.partition(": ")
    return (kind, sentence) if colon else ("other", problem)
