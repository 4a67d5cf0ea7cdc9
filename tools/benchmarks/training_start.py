"""The start of a training on prepared samples, up to the first micro-batch's samples being known.

Usage: ``python tools/benchmarks/training_start.py [--samples 1300000] [--usual 10000] [--pictures 1300000]``

Prepared shards of the published data's size are made by this script (random ids and boxes; the pictures are files of no
bytes in folders of 10,000: nothing opens them before the first step).
One process after the other then builds data set, loader and the order of the first epoch, as each rank does; time and
memory are over the imports. The first start also looks for every picture. The usual way, parsing the records and the
box file and counting each sample's tokens and boxes in every rank, is measured on `--usual` samples and scaled up.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from own_process import in_own_process
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mg_llava.boxes.selection import BoxSelection
from mg_llava.data.box_columns import BoxColumns
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD
from xtuner.data.store.fingerprint import text_settings
from xtuner.data.store.prepared import SETTINGS
from xtuner.data.store.shards import BATCH, ShardWriter, write_json
from xtuner.data.text.encoder import INDEX, TEXT_SCHEMA, EncodedBatch
from xtuner.data.text.templates import get_template

BOXES, IDS = 13, 180
MAX_LENGTH = 1472


def picture(number: int) -> str:
    """Returns the path of a picture."""
    return f"{number // 10_000:03d}/{number:012d}.jpg"


def make_parts(folder: Path, pictures: int) -> None:
    """Writes a tokenizer, an encoder's two files and pictures."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "llm")
    (folder / "clip").mkdir()
    preprocessor = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
    (folder / "clip/preprocessor_config.json").write_text(json.dumps(preprocessor))
    config = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    (folder / "clip/config.json").write_text(json.dumps(config))
    for number in range(pictures):
        path = folder / "images" / picture(number)
        if number % 10_000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def node(folder: str) -> dict[str, Any]:
    """Returns the arguments of the data set."""
    return dict(
        data_path=None,
        image_folder=f"{folder}/images",
        tokenizer={"type": "xtuner.data.text.tokenizer.build_tokenizer", "name_or_path": f"{folder}/llm"},
        image_processor={"type": "mg_llava.pictures.preprocess.ImageProcessor", "name_or_path": f"{folder}/clip"},
        prompt_template="vicuna",
        max_length=MAX_LENGTH,
        offline_processed_text_folder=f"{folder}/prepared",
    )


def make_prepared(folder: Path, samples: int, pictures: int) -> None:
    """Writes a prepared folder as `xtuner preprocess llava` does, but of random samples."""
    from xtuner.data.text.tokenizer import build_tokenizer

    processor = ImageProcessor(str(folder / "clip"))
    columns = BoxColumns(None, BoxSelection(), processor, MAX_LENGTH, None)
    settings = text_settings(None, build_tokenizer(str(folder / "llm")), get_template("vicuna"), MAX_LENGTH)
    settings = {**settings, "samples": columns.settings()}
    schema = pa.schema([*TEXT_SCHEMA, *(pa.field(name, kind) for name, kind in columns.fields.items())])
    writer = ShardWriter(folder / "unfinished", settings, schema)
    batches = random_batches(samples, pictures, schema)
    while writer.write(batches):
        pass
    write_json(folder / "unfinished" / SETTINGS, {**settings, "report": {"kept": samples}, "shards": writer.finish()})
    os.replace(folder / "unfinished", folder / "prepared")


def random_batches(samples: int, pictures: int, schema: pa.Schema) -> Iterator[EncodedBatch]:
    """Yields batches whose ids repeat but for the names."""
    draw = np.random.default_rng(0)
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        lengths = draw.integers(40, 2 * IDS - 40, count)
        ids = [np.full(length, 3, np.int32) for length in lengths]
        values = {
            "id": [f"{start + row:012d}" for row in range(count)],
            "images": [[picture((start + row) % pictures)] for row in range(count)],
            "input_ids": ids,
            "labels": ids,
            "box_counts": [[BOXES]] * count,
            "box_sizes": [[64, 48]] * count,
            "boxes": [np.ones(4 * BOXES, np.float32)] * count,
            "box_scores": [np.ones(BOXES, np.float32)] * count,
            "box_labels": [["thing"] * BOXES] * count,
        }
        batch = pa.RecordBatch.from_arrays(
            [pa.array(values[field.name], field.type) for field in schema], schema=schema
        )
        index = np.zeros(count, INDEX)
        index["length"], index["tokens"], index["images"] = lengths, lengths + 575 + BOXES, 1
        yield EncodedBatch(batch, index, Counter(kept=count), [])


def import_ours() -> None:
    """Imports what a rank imports before it builds its data."""
    import pandas  # noqa: F401  # pyarrow imports it with its first conversion
    import transformers.models.clip.configuration_clip
    import transformers.models.llama.tokenization_llama  # noqa: F401
    from transformers import AutoTokenizer, ImageProcessingMixin  # noqa: F401

    import xtuner.data.text.tokenizer
    import xtuner.engine.steps.loader  # noqa: F401


def start(folder: str, ranks: int) -> tuple[int, object]:
    """Builds data set and loader of one rank and looks at its first samples."""
    import torch

    from mg_llava.data.dataset import MGLLaVADataset
    from xtuner.data.batches.samplers import LengthGroupedBatchSampler
    from xtuner.engine.processes.environment import Environment
    from xtuner.engine.steps.loader import build_train_dataloader

    dataset = MGLLaVADataset(**node(folder))
    loader = build_train_dataloader(
        {"batch_size": 16, "num_workers": 0, "sampler": {"type": LengthGroupedBatchSampler}},
        dataset,
        grad_accum=1,
        environment=Environment("none", 0, ranks, 0, torch.device("cpu")),
        seed=0,
    )
    loader.batch_sampler.steps_in(1)
    return len(next(iter(loader.batch_sampler))), loader


def usual_start(folder: str, samples: int) -> tuple[int, object]:
    """Parses, tokenises and chooses boxes, as a rank without prepared data does at every start."""
    from xtuner.data.text.conversations import parse_record
    from xtuner.data.text.tokenizer import build_tokenizer
    from xtuner.data.text.tokenizing import encode_conversation

    tokenizer, template, select = build_tokenizer(f"{folder}/llm"), get_template("vicuna"), BoxSelection()
    with open(f"{folder}/data.json", encoding="utf-8") as file:
        talks = [parse_record(record, index) for index, record in enumerate(json.load(file))]
    with open(f"{folder}/boxes.json", encoding="utf-8") as file:
        found = {record["image"]: record for record in json.load(file)}
    lengths = []
    for talk in talks:
        ids = encode_conversation(talk, tokenizer, template, MAX_LENGTH).input_ids
        record = found[talk.images[0]]
        boxes = np.array(record["boxes"], np.float32)
        chosen = select(boxes, record["labels"], np.array(record["scores"], np.float32), len(ids), MAX_LENGTH, True)
        lengths.append(len(ids) + 575 + len(chosen.labels))
    return len(lengths), (talks, found)


def write_usual(folder: Path, samples: int) -> None:
    """Writes records and boxes for the usual side."""
    draw = np.random.default_rng(0)
    records, boxes = [], []
    for number in range(samples):
        question, answer = (" ".join(["a"] * int(draw.integers(10, 150))) for _ in range(2))
        messages = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": messages})
        corners = draw.uniform(0, 600, (BOXES, 2))
        values = np.concatenate([corners, corners + draw.uniform(1, 100, (BOXES, 2))], axis=1)
        labels = [f"thing {kind}" for kind in draw.integers(0, 8, BOXES)]
        scores = draw.uniform(0, 1, BOXES).tolist()
        boxes.append({"image": f"{number}.jpg", "boxes": values.tolist(), "labels": labels, "scores": scores})
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "boxes.json").write_text(json.dumps(boxes))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_300_000)
    parser.add_argument("--usual", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=1_300_000)
    args = parser.parse_args()
    out = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        os.environ["XTUNER_CACHE"] = f"{name}/cache"
        folder = Path(name)
        make_parts(folder, args.pictures)
        write_usual(folder, args.usual)
        cost = in_own_process(import_ours, usual_start, name, args.usual)
        scale = args.samples / args.usual
        out.print(
            f"the usual way, {args.usual:,} samples: {cost}; scaled to {args.samples:,}: "
            f"{cost.seconds * scale / 60:.0f} min, {cost.private * scale / 1e9:.1f} GB a rank"
        )
        began = time.perf_counter()
        make_prepared(folder, args.samples, args.pictures)
        size = sum(path.stat().st_size for path in (folder / "prepared").iterdir()) / 1e9
        out.print(f"{args.samples:,} samples ({size:.1f} GB) made in {time.perf_counter() - began:.0f} s")
        for which in ("first start, every picture looked for", "second start", "third start"):
            out.print(f"{which}: {in_own_process(import_ours, start, name, 8)}")


if __name__ == "__main__":
    main()
