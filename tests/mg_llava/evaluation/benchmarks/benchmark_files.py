"""Benchmarks on files that a test writes: each helper returns what makes one in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mg_llava.evaluation import MMVP, Benchmark

ENCODED = "iVBOR" + "A" * 100
"""What stands for a picture where none is opened."""


def lines(path: Path, rows: list[Any]) -> None:
    # an empty line, and the mark that some editors put first
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"\ufeff{text}\n", encoding="utf-8")


def tsv(kind: type[Benchmark], header: str, *rows: str, **arguments: Any) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        (folder / "t.tsv").write_text("\ufeff" + "\n".join([header, *rows]) + "\n", encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file="t.tsv", **arguments)

    return make


def jsonl(
    kind: type[Benchmark], rows: list[Any], more: dict[str, Any], **arguments: Any
) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        lines(folder / "t.jsonl", rows)
        for name, content in more.items():
            if name.endswith(".jsonl"):
                lines(folder / name, content)
            else:
                (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file="t.jsonl", image_folder="", **arguments)

    return make


def listed(kind: type[Benchmark], content: Any, name: str = "t.json", **arguments: Any) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file=name, image_folder="", **arguments)

    return make


def mmvp(folder: Path) -> Benchmark:
    header = "Index,Question,Options,Correct Answer"
    rows = [header, "1,狗在哪里？,(a) 左 (b) 右,(a)", "2.0,12,(a) 1 (b) 2,", "1,q,(a) x (b) y,(B)"]
    (folder / "Questions.csv").write_text("\n".join(rows), encoding="utf-8")
    return MMVP(name="t", data_root=str(folder), data_file="Questions.csv", image_folder="")
