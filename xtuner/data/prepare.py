"""LLaVA text to a memory-mapped Arrow folder, made once and opened in no time.

A folder holds ``data.arrow`` with columns ``id``, ``images`` (list of paths as the records give them),
``input_ids``, ``labels`` and ``length`` (ids, a picture counting as one), and ``settings.json``: what it
was made from and with, and a count of what was dropped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtuner.data.arrow_batches import BATCH, encoded_batches, schema
from xtuner.data.conversations import Conversation, iter_conversations
from xtuner.data.fingerprint import cache_folder, differences, fingerprint, text_settings
from xtuner.data.templates import PromptTemplate, get_template
from xtuner.errors import ProblemsError, XTunerError
from xtuner.log import console, get_logger

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_DATA = "data.arrow"
_SETTINGS = "settings.json"
_SHOWN_PROBLEMS = 50
_BYTES_PER_PROCESS = 64 << 20

Template = str | PromptTemplate | Mapping[str, Any]


def prepare_text(
    data_path: str,
    out_folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: Template,
    max_length: int,
    num_proc: int | None = None,
) -> dict[str, int]:
    """Tokenises a LLaVA file into `out_folder`, which appears only when it is complete.

    A folder that was made with the same settings is left as it is.

    Args:
        data_path: LLaVA JSON or JSONL.
        out_folder: new or empty folder, or one prepared before.
        tokenizer: see `xtuner.data.tokenizer.build_tokenizer`.
        prompt_template: name, template or config node.
        max_length: ids beyond it are cut off.
        num_proc: processes; None chooses by the file's size. The result is the same for any number.

    Returns:
        Counts: ``records``, ``kept``, ``dropped: ...`` per reason and ``cut off: ...`` per kind.

    Raises:
        ProblemsError: faulty records, all named; nothing is written.
        XTunerError: `out_folder` holds something else, the disk is full, or no sample is left.
    """
    template = get_template(prompt_template)
    settings = text_settings(data_path, tokenizer, template, max_length)
    out = Path(out_folder)
    if (out / _SETTINGS).is_file():
        return dict(_checked_settings(out, settings)["report"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise XTunerError(f"'{out}' exists and is no prepared data set: choose a new folder.")
    # beside the target, so that the final rename stays on one file system
    unfinished = out.parent / f".{out.name}.unfinished-{os.getpid()}"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        report = _write(data_path, unfinished / _DATA, tokenizer, template, max_length, num_proc)
        (unfinished / _SETTINGS).write_text(json.dumps({**settings, "report": report}, indent=2) + "\n")
        os.replace(unfinished, out)
    except OSError as error:
        raise XTunerError(
            f"the prepared data cannot be written to '{out}': {error}. Free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    get_logger().info("Prepared '%s': %s", out, ", ".join(f"{key} {count:,}" for key, count in report.items()))
    return report


def open_prepared(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> Dataset:
    """Opens a prepared folder, memory-mapped.

    Args:
        folder: made by `prepare_text`.
        settings: what it must have been made with, see `xtuner.data.fingerprint.text_settings`.

    Raises:
        XTunerError: no prepared folder, or made with other settings: the differences are named.
    """
    from datasets import Dataset

    _checked_settings(Path(folder), settings)
    return Dataset.from_file(str(Path(folder) / _DATA))


def load_text(
    data_path: str | None,
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: Template,
    max_length: int,
    offline_processed_text_folder: str | None = None,
) -> Dataset:
    """Opens the tokenised text of a LLaVA file, preparing it first where that was not done before.

    Args:
        data_path: LLaVA JSON or JSONL; may be None where `offline_processed_text_folder` is given.
        tokenizer: see `xtuner.data.tokenizer.build_tokenizer`.
        prompt_template: name, template or config node.
        max_length: ids beyond it are cut off.
        offline_processed_text_folder: use exactly this folder. None: the automatic cache. Of several
            processes one prepares while the others wait for its lock, however long that takes; no process
            group is involved.

    Raises:
        XTunerError: the folder does not exist or was made with other settings; or as `prepare_text`.
    """
    template = get_template(prompt_template)
    settings = text_settings(data_path, tokenizer, template, max_length)
    if offline_processed_text_folder is not None:
        return open_prepared(offline_processed_text_folder, settings)
    if data_path is None:
        raise XTunerError("no training data: set data_path (LLaVA JSON or JSONL) or offline_processed_text_folder.")
    from filelock import FileLock

    folder = cache_folder() / "text" / fingerprint(settings)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                for leftover in folder.parent.glob(f".{folder.name}.unfinished-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                prepare_text(data_path, folder, tokenizer, template, max_length)
    return open_prepared(folder, settings)


def column(dataset: Dataset, name: str) -> np.ndarray:
    """Returns a numeric column of a prepared data set as one array, without a Python object per value."""
    return dataset.data.column(name).to_numpy()


def _checked_settings(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if not (folder / _SETTINGS).is_file() or not (folder / _DATA).is_file():
        found = "is no prepared data set" if folder.exists() else "does not exist"
        raise XTunerError(
            f"offline_processed_text_folder '{folder}' {found}: expected {_DATA} and {_SETTINGS} in it. "
            f"Make it with: xtuner preprocess llava --config CONFIG --out {folder}"
        )
    prepared = json.loads((folder / _SETTINGS).read_text())
    found_differences = differences({key: value for key, value in prepared.items() if key != "report"}, wanted)
    if found_differences:
        raise XTunerError(
            f"'{folder}' was prepared with other settings: {'; '.join(found_differences)}. "
            "Change the settings back, or prepare another folder: "
            "xtuner preprocess llava --config CONFIG --out FOLDER"
        )
    return prepared


def _write(
    data_path: str,
    out_file: Path,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
    num_proc: int | None,
) -> dict[str, int]:
    import pyarrow as pa

    problems: list[str] = []
    report = Counter({"records": 0, "kept": 0})
    batches = _batches(data_path, problems, report)
    processes = num_proc or min(os.cpu_count() or 1, 1 + os.path.getsize(data_path) // _BYTES_PER_PROCESS)
    with pa.OSFile(str(out_file), "wb") as sink, pa.ipc.new_stream(sink, schema()) as writer:
        for batch, counts in encoded_batches(batches, tokenizer, template, max_length, processes):
            writer.write_batch(batch)
            report.update(counts)
    if problems:
        shown = problems[:_SHOWN_PROBLEMS]
        more = f" ({len(problems):,} in all, the first {len(shown)} shown)" if len(problems) > len(shown) else ""
        raise ProblemsError(f"data file '{data_path}'{more}", shown)
    if not report["kept"]:
        raise XTunerError(f"data file '{data_path}' gives no sample to train on: {dict(report)}.")
    return dict(report)


def _batches(data_path: str, problems: list[str], report: Counter[str]) -> Iterator[list[Conversation]]:
    """Parses the file; after the first problem only for finding the others."""
    from rich.progress import track

    batch: list[Conversation] = []
    conversations = iter_conversations(data_path, problems)
    for conversation in track(
        conversations, f"Tokenising {os.path.basename(data_path)}", console=console, transient=True
    ):
        report["records"] += 1
        if not conversation.turns:
            report["dropped: nobody answers"] += 1
        elif not problems:
            batch.append(conversation)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
