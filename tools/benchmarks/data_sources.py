"""The same pictures in a folder, Parquet, Arrow and WebDataset: start on prepared data, pictures per second, copies.

Usage: ``python tools/benchmarks/data_sources.py [--pictures 100000] [--read 600] [--groups 10MB] [--compressed]
[--folder DIR]``

Records with a picture each (JPEG, 320 x 240, made here), as JSON with a folder, and what ``xtuner convert dataset``,
``save_to_disk`` and a tar writer make of them. For each form: the first preparation; a second start up to the first
batch of 16, in a process of its own, over the imports; samples per second in a random order, all forms in turns in one
process on one core, with warm pages; and the bytes that the caches of this project and of `datasets` hold beside the
source. ``--groups`` takes several sizes of row groups; ``--compressed`` adds Parquet whose pictures are
compressed, 100 rows a group, as older versions of `datasets` wrote it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from own_process import in_own_process, seconds_of
from PIL import Image
from rich.console import Console
from training_start import import_ours, make_parts, node

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.data.sharing import write_dataset
from mg_llava.data.sources import DataSource
from xtuner.data.store.prepared import PreparedData
from xtuner.tools.model_converters.split import parse_size

_DISTINCT = 200
_PER_SHARD = 10_000
_BATCH = 16


def pictures() -> list[bytes]:
    """Returns distinct JPEG files of the size that photographs have."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(_DISTINCT):
        small = Image.fromarray(draw.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((320, 240), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + draw.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def records(count: int) -> Iterator[dict[str, Any]]:
    """Yields the records."""
    draw = np.random.default_rng(1)
    for number in range(count):
        answer = " ".join(["a"] * int(draw.integers(20, 150)))
        messages = [{"from": "human", "value": "<image>\na a"}, {"from": "gpt", "value": answer}]
        yield {"id": str(number), "image": f"{number // 1000:03d}/{number:06d}.jpg", "conversations": messages}


def write_folder(folder: Path, count: int) -> None:
    """Writes JSON and a folder of pictures."""
    contents = pictures()
    rows = list(records(count))
    for number, row in enumerate(rows):
        path = folder / "images" / row["image"]
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(contents[number % _DISTINCT])
    (folder / "data.json").write_text(json.dumps(rows))


def write_shards(folder: Path, count: int) -> None:
    """Writes WebDataset shards."""
    contents = pictures()
    (folder / "tar").mkdir()
    tar: tarfile.TarFile | None = None
    for number, row in enumerate(records(count)):
        if number % _PER_SHARD == 0:
            if tar is not None:
                tar.close()
            tar = tarfile.open(folder / "tar" / f"{number // _PER_SHARD:04d}.tar", "w")  # noqa: SIM115
        assert tar is not None
        for suffix, content in (("jpg", contents[number % _DISTINCT]), ("json", json.dumps(row).encode())):
            member = tarfile.TarInfo(f"{number:06d}.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if tar is not None:
        tar.close()


def arguments(folder: str, data_path: str, image_folder: str) -> dict[str, Any]:
    """Returns the arguments of the data set."""
    own = {"data_path": data_path, "image_folder": image_folder, "offline_processed_text_folder": None}
    return {**node(folder), **own}


def prepare(given: dict[str, Any]) -> tuple[int, object]:
    """Prepares the data and looks for its pictures."""
    return len(MGLLaVADataset(**given)), None


def first_batch(given: dict[str, Any]) -> tuple[int, object]:
    """Builds data set and loader and takes the first batch."""
    from xtuner.data.batches.samplers import LengthGroupedBatchSampler
    from xtuner.engine.processes.environment import Environment
    from xtuner.engine.steps.loader import build_train_dataloader

    dataset = MGLLaVADataset(**given)
    loader = build_train_dataloader(
        {"batch_size": _BATCH, "num_workers": 0, "sampler": {"type": LengthGroupedBatchSampler}},
        dataset,
        grad_accum=1,
        environment=Environment("none", 0, 1, 0, torch.device("cpu")),
        seed=0,
    )
    return len(next(iter(loader))["sample_ids"]), loader


def imports() -> None:
    """Imports what a rank imports."""
    import_ours()
    import datasets  # noqa: F401


def size_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder."""
    return sum((Path(at) / name).stat().st_size for at, _, names in os.walk(folder) for name in names)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--read", type=int, default=600)
    parser.add_argument("--groups", nargs="+", default=["10MB"])
    parser.add_argument("--compressed", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="keeps the data there, and takes what a former start left")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        name = str(folder)
        os.environ["HF_DATASETS_CACHE"] = f"{name}/hf"
        if not (folder / "llm").exists():
            make_parts(folder, 0)
        forms = make_forms(folder, args)
        for form, given in forms.items():
            os.environ["XTUNER_CACHE"] = f"{name}/cache {form}"
            began = time.perf_counter()
            in_own_process(imports, prepare, given)
            seconds = time.perf_counter() - began
            cost = in_own_process(imports, first_batch, given)
            copied = size_of(Path(os.environ["XTUNER_CACHE"])) + size_of(folder / "hf")
            out.print(
                f"{form}: first preparation {seconds:.1f} s with its imports; second start to the first batch of "
                f"{_BATCH}: {cost}; caches hold {copied / 1e6:.0f} MB"
            )
        for form, rate in rates(name, forms, args.read, args.repeats).items():
            out.print(f"{form}: {rate}")
        os.environ["XTUNER_CACHE"] = f"{name}/cache {next(iter(forms))}"
        out.print(rows(MGLLaVADataset(**next(iter(forms.values()))), 2000))


def make_forms(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Writes the data in every form; returns the arguments of each."""
    import datasets

    if not (folder / "data.json").exists():
        write_folder(folder, args.pictures)
    forms = {"JSON and a folder": arguments(str(folder), str(folder / "data.json"), str(folder / "images"))}
    source = DataSource(str(folder / "data.json"), str(folder / "images"))
    for size in args.groups:
        target = folder / f"parquet {size}"
        if not target.exists():
            write_dataset([source], str(target), 500_000_000, parse_size(size))
        forms[f"Parquet, row groups of {size}"] = arguments(str(folder), str(target), "")
    if not (folder / "tar").exists():
        write_shards(folder, args.pictures)
    forms["WebDataset"] = arguments(str(folder), f"{folder}/tar/*.tar", "")
    first = f"{folder}/parquet {args.groups[0]}/data/*.parquet"
    if not (folder / "arrow").exists():
        saved = datasets.load_dataset("parquet", data_files=first, split="train", cache_dir=str(folder / "making"))
        saved.save_to_disk(folder / "arrow")
    forms["Arrow by save_to_disk"] = arguments(str(folder), str(folder / "arrow"), "")
    if args.compressed:
        target = folder / "compressed" / "data.parquet"
        if not target.exists():
            target.parent.mkdir()
            table = datasets.load_from_disk(folder / "arrow").data.table
            pq.write_table(table, target, row_group_size=100, compression="snappy")
        forms["Parquet, compressed, 100 rows a group"] = arguments(str(folder), str(target), "")
    return forms


def rates(name: str, forms: dict[str, dict[str, Any]], number: int, repeats: int) -> dict[str, str]:
    """Returns what is to be told of each form's samples per second and of the reading of a picture alone."""
    sets = {}
    for form, given in forms.items():
        os.environ["XTUNER_CACHE"] = f"{name}/cache {form}"
        sets[form] = MGLLaVADataset(**given)
    chosen = np.random.default_rng(2).permutation(len(next(iter(sets.values()))))[:number].tolist()
    whole: dict[str, list[float]] = {form: [] for form in sets}
    alone: dict[str, list[float]] = {form: [] for form in sets}
    for turn in range(repeats + 1):
        for form, dataset in sets.items():
            seconds, _ = seconds_of(lambda one=dataset: [one[place] for place in chosen])
            rows = [dataset.samples.row(place) for place in chosen]
            raw, _ = seconds_of(lambda some=rows: [_content(files.open(row["images"][0])) for row, files in some])
            if turn:
                # the first turn warms the pages
                whole[form].append(seconds)
                alone[form].append(raw)
    return {
        form: f"{number / statistics.median(whole[form]):.1f} samples/s of a core; a picture's bytes take "
        f"{statistics.median(alone[form]) / number * 1e6:,.0f} us"
        for form in sets
    }


def rows(dataset: MGLLaVADataset, number: int) -> str:
    """Compares reading prepared rows here and through `datasets`."""
    import datasets
    import pyarrow as pa

    prepared = dataset.samples.part(0)
    files = sorted(prepared.folder.glob("*.arrow"))
    began = time.perf_counter()
    tables = [
        datasets.table.MemoryMappedTable(pa.ipc.open_file(pa.memory_map(str(f))).read_all(), str(f)) for f in files
    ]
    theirs = datasets.concatenate_datasets([datasets.Dataset(one) for one in tables])
    theirs = theirs.select_columns(["id", "images", "input_ids", "labels"]).with_format("numpy")
    opening = time.perf_counter() - began
    began = time.perf_counter()
    ours = PreparedData(prepared.folder)
    own_opening = time.perf_counter() - began
    chosen = np.random.default_rng(3).permutation(len(ours))[:number].tolist()

    def read(place: int) -> Any:
        row = ours.row(place)
        return row.numbers("input_ids"), row.numbers("labels"), row["images"], row["id"]

    seconds, _ = seconds_of(lambda: [theirs[place] for place in chosen])
    own_seconds, _ = seconds_of(lambda: [read(place) for place in chosen])
    return (
        f"prepared rows: open {own_opening * 1e3:.0f} ms, a row {own_seconds / number * 1e6:.0f} us; through datasets: "
        f"open {opening * 1e3:.0f} ms, a row {seconds / number * 1e6:.0f} us"
    )


def _content(found: Any) -> bytes:
    if isinstance(found, str):
        with open(found, "rb") as file:
            return file.read()
    return bytes(found.getvalue())


if __name__ == "__main__":
    main()
