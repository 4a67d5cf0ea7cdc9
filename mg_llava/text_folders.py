"""Tokenised text of one or several data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtuner.data.prepare import Template, load_text, prepare_text
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def as_paths(data_path: str | Sequence[str] | None) -> list[str]:
    """Returns the data files of a config's `data_path`."""
    if data_path is None:
        return []
    return [data_path] if isinstance(data_path, str) else list(data_path)


def open_text(
    paths: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: Template,
    max_length: int,
    folder: str | None,
) -> Dataset:
    """Opens the text of all `paths`, in this order, as one data set; see `xtuner.data.prepare.load_text`."""
    from datasets import concatenate_datasets

    if len(paths) < 2:
        return load_text(paths[0] if paths else None, tokenizer, prompt_template, max_length, folder)
    folders: list[str | None] = [None] * len(paths)
    if folder is not None:
        folders = [str(part) for part in _parts(folder, len(paths))]
    return concatenate_datasets(
        [
            load_text(path, tokenizer, prompt_template, max_length, part)
            for path, part in zip(paths, folders, strict=True)
        ]
    )


def prepare_text_folders(
    paths: Sequence[str],
    out_folder: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: Template,
    max_length: int,
    num_proc: int | None,
) -> dict[str, int]:
    """Prepares the text of all `paths` and returns the counts.

    One file goes to `out_folder` itself, several to numbered folders below it.

    Raises:
        XTunerError: no path is given; or as `xtuner.data.prepare.prepare_text`.
    """
    if not paths:
        raise XTunerError("no training data to prepare: set data_path (LLaVA JSON or JSONL).")
    counts: Counter[str] = Counter()
    for path, part in zip(paths, _parts(out_folder, len(paths)), strict=True):
        counts.update(prepare_text(path, part, tokenizer, prompt_template, max_length, num_proc))
    return dict(counts)


def _parts(folder: str, number: int) -> list[Path]:
    if number == 1:
        return [Path(folder)]
    return [Path(folder) / f"{index:03d}" for index in range(number)]
