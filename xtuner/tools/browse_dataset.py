"""``xtuner browse-dataset CONFIG --out DIR``: samples as the model sees them, as a page to look through."""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from xtuner.config import load_config, parse_overrides
from xtuner.data.records.findings import Findings
from xtuner.errors import counted
from xtuner.registry import build
from xtuner.tools.support.arguments import add_cfg_options
from xtuner.tools.support.rows import as_html, read_row

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px sans-serif;margin:2em;max-width:1500px}} article{{border-top:1px solid #ccc;padding:1em 0}}
.sample{{display:flex;flex-wrap:wrap;gap:1em}} .sample>*{{flex:1 1 450px;min-width:0}} figure{{margin:0}}
.strip{{display:flex;gap:4px;overflow-x:auto;margin-bottom:1em}} .strip>*{{flex:1 0 160px;max-width:320px}}
img{{max-width:100%}} pre{{white-space:pre-wrap;margin-top:0}}
th{{text-align:left;vertical-align:top;padding-right:1em}}
.with-loss{{background:#d6f5d6}} .picture{{background:#f3d6f5}}</style>
<h1>{title}</h1><p>{summary}</p><p><span class="with-loss">with loss</span> <span class="picture">picture</span></p>
{found}{histograms}
{articles}
"""
_HISTOGRAMS = "histograms.png"
_SHOWN = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", help="path or name of the config whose train_dataset is shown")
    parser.add_argument("--out", required=True, help="folder for the page and its pictures")
    parser.add_argument("-n", "--num", type=int, default=20, help="number of samples to show (default: 20)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--spread", action="store_true", help="draw random samples instead of consecutive ones")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes ``index.html``, pictures with their boxes, and histograms."""
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    dataset: Any = build(cfg.train_dataset)
    dataset.log_report()
    step = max(1, (len(dataset) - args.start) // max(1, args.num)) if args.spread else 1
    numbers = range(args.start, len(dataset), step)[: args.num]
    page = write_page(args.config, Path(args.out), dataset, numbers)
    Console(soft_wrap=True, highlight=False).print(f"Open {page}")
    return 0


def write_page(config: str, out: Path, dataset: Any, numbers: Sequence[int], found: Findings | None = None) -> Path:
    """Writes the page and its pictures; returns its file.

    Args:
        config: its name or path, for the title.
        out: folder of the page.
        dataset: whose samples are shown; None where its faults keep it from being made.
        numbers: of these samples.
        found: what a check of the data found, shown above the samples.
    """
    out.mkdir(parents=True, exist_ok=True)
    histograms, articles, summary = "", [], "no samples: the data has faults"
    if dataset is not None:
        draw_histograms(dataset.statistics(), out / _HISTOGRAMS)
        histograms = f'<img src="{_HISTOGRAMS}" alt="histograms">'
        articles = [_article(dataset, number, dataset.tokenizer, out) for number in numbers]
        summary = f"{counted(len(dataset), 'samples')}, {len(articles)} shown"
    text = _PAGE.format(
        title=html.escape(Path(str(config)).stem),
        summary=summary,
        found="" if found is None else _findings(found),
        histograms=histograms,
        articles="\n".join(articles),
    )
    page = out / "index.html"
    page.write_text(text, encoding="utf-8", errors="backslashreplace")
    return page


def _findings(found: Findings) -> str:
    rows = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(value)}</tr>" for name, value in found.statistics)
    lists = []
    for title, sentences in (("Problems", found.problems), ("Left out, cut or read as text", found.notes)):
        shown = "".join(f"<li>{html.escape(sentence)}" for sentence in sentences[:_SHOWN])
        more = f"<li>and {len(sentences) - _SHOWN:,} more" if len(sentences) > _SHOWN else ""
        lists += [f"<h2>{title}: {len(sentences):,}</h2><ul>{shown}{more}</ul>"] if sentences else []
    return f"<table>{rows}</table>{''.join(lists)}"


def draw_histograms(statistics: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws a histogram of each of `statistics` (name: one number per sample or picture) into one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(statistics), figsize=(5 * len(statistics), 3.5), squeeze=False)
    for axis, (name, values) in zip(axes[0], statistics.items(), strict=True):
        if len(values):
            axis.hist(values, bins=_whole_number_bins(values), color="#4477aa")
        axis.set_title(f"{name}: mean {values.mean():.1f}, largest {values.max():,}" if len(values) else name)
        axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _whole_number_bins(values: np.ndarray) -> np.ndarray:
    """Returns edges between whole numbers, of at most 60 bins that hold equally many of them each."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // 60)
    return np.arange(low, high + width + 1, width) - 0.5


def _article(dataset: Any, number: int, tokenizer: Any, out: Path) -> str:
    sample = dataset[number]
    pictures, strip, frames = "", "", dict(dataset.frames(number))
    for place, picture in enumerate(dataset.draw(number)):
        name = f"{number:07d}_{place}.jpg"
        picture.save(out / name, quality=90)
        if place in frames:
            caption = f"<figcaption>{html.escape(frames[place])}</figcaption>"
            strip += f'<figure class="frame"><img src="{name}">{caption}</figure>'
        else:
            pictures += f'<figure><img src="{name}"></figure>'
    prompt = as_html(read_row(sample["input_ids"].tolist(), sample["labels"].tolist(), tokenizer))
    head = f"sample {number}, id {html.escape(str(sample['sample_id']))}"
    described = html.escape(dataset.describe(number))
    text = f"<div><pre>{prompt}</pre><pre>{described}</pre></div>"
    strip = f'<div class="strip">{strip}</div>' if strip else ""
    return f'<article><h3>{head}</h3>{strip}<div class="sample">{pictures}{text}</div></article>'
