"""A page of a benchmark's results that opens without a server: pictures, boxes, prompts, answers, verdicts."""

from __future__ import annotations

import html
import json
from pathlib import Path

from PIL import Image

from mg_llava.boxes.store import BoxRecord, BoxStore
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.pictures import find_boxes
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.errors import XTunerError

_LONGEST_SIDE = 320
_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
article {{ display: flex; gap: 1em; border-left: 6px solid #999; margin: 1em 0; padding: .5em 1em;
  content-visibility: auto; contain-intrinsic-size: auto 20em }}
article.right {{ border-color: #2a2 }} article.wrong {{ border-color: #c33 }} article.partly {{ border-color: #d90 }}
figure {{ margin: 0; flex: none; position: relative }} img {{ display: block }}
svg {{ position: absolute; inset: 0 }} pre {{ white-space: pre-wrap; margin: 0 }}
rect {{ fill: none; stroke: #f0f; stroke-width: 2 }}
dl {{ display: grid; grid-template-columns: 6em 1fr; gap: .3em; margin: 0; align-content: start; min-width: 0 }}
dt {{ color: #666 }} dd {{ margin: 0; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<p>Show <select id="show"><option value="">all</option><option>wrong</option><option>partly</option>
<option>right</option><option>unscored</option></select> <span id="count"></span></p>
{articles}
<script>
const show = document.getElementById('show'), all = [...document.querySelectorAll('article')];
show.onchange = () => {{
  let n = 0;
  for (const a of all) {{ a.hidden = show.value && !a.classList.contains(show.value);
    a.style.display = a.hidden ? 'none' : ''; n += !a.hidden }}
  document.getElementById('count').textContent = n + ' of ' + all.length;
}};
const wanted = decodeURIComponent(location.hash.slice(1));
if ([...show.options].some(o => o.value === wanted)) show.value = wanted;
show.onchange();
</script>
</html>
"""


def write_report(benchmark: Benchmark, folder: str | Path, image_processor: ImageProcessor) -> Path:
    """Writes ``report.html`` and its pictures (``report_images/``, made small) beside a benchmark's results.

    Args:
        benchmark: with its files in place.
        folder: of its results: ``predictions.jsonl`` and ``metrics.json``.
        image_processor: opens the pictures as the model got them.

    Returns:
        The page.

    Raises:
        XTunerError: `folder` holds no results.
    """
    folder = Path(folder)
    metrics_file = folder / "metrics.json"
    if not metrics_file.exists():
        raise XTunerError(f"'{folder}' holds no metrics.json to report on: evaluate first.")
    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    pairs = benchmark.pairs(PredictionFiles(folder, {}).read().values())
    (folder / "report_images").mkdir(exist_ok=True)
    articles = [
        _article(question, one, _figures(question, benchmark.boxes, image_processor, folder, f"report_images/{number}"))
        for number, (question, one) in enumerate(pairs)
    ]
    score = "not scored" if metrics["overall"] is None else f"{metrics['overall']:.1%}"
    facts = [
        benchmark.summary(metrics) or f"overall {score}",
        f"{len(pairs)} questions",
        str(metrics.get("config")),
        str(metrics.get("checkpoint")),
    ]
    page = folder / "report.html"
    text = _PAGE.format(
        title=html.escape(benchmark.name), summary=html.escape(" · ".join(facts)), articles="\n".join(articles)
    )
    page.write_text(text, encoding="utf-8")
    return page


def _article(question: Question, prediction: Prediction, figure: str) -> str:
    answer = question.answer if not isinstance(question.answer, dict) else question.answer.get("answer")
    verdict = _verdict(prediction.hit)
    rows = {
        "question": question.id,
        "prompt": prediction.prompt,
        "answer": prediction.output if prediction.error is None else prediction.error,
        "read as": prediction.parsed,
        "right is": answer,
        "verdict": verdict if prediction.hit is None else f"{verdict} ({prediction.hit:.2g})",
    }
    cells = "".join(
        f"<dt>{name}</dt><dd><pre>{html.escape('—' if value is None else str(value))}</pre></dd>"
        for name, value in rows.items()
    )
    return f'<article class="{verdict}">{figure}<dl>{cells}</dl></article>'


def _verdict(hit: float | None) -> str:
    if hit is None:
        return "unscored"
    return "right" if hit >= 1 else "wrong" if hit <= 0 else "partly"


def _figures(
    question: Question, store: BoxStore | None, image_processor: ImageProcessor, folder: Path, name: str
) -> str:
    """The question's pictures, made small, under their boxes."""
    figures = []
    for number, one in enumerate(question.pictures):
        try:
            picture = one.open(image_processor)
        except XTunerError:
            # the article says why there is no answer
            continue
        record = find_boxes(store, question, one)
        file = f"{name}.jpg" if number == 0 else f"{name}_{number + 1}.jpg"
        figures.append(_figure(picture, record, folder, file))
    return "".join(figures)


def _figure(picture: Image.Image, record: BoxRecord | None, folder: Path, name: str) -> str:
    width, height = picture.size
    small = picture.copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
    small.save(folder / name, quality=85)
    rects = ""
    if record is not None:
        found = record.found
        rects = "".join(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
            f'vector-effect="non-scaling-stroke"><title>{html.escape(label)} {score:.2f}</title></rect>'
            for (x0, y0, x1, y1), label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True)
        )
    # small pictures are shown larger, so that their boxes can be told apart
    scale = _LONGEST_SIDE / max(width, height)
    size = f'width="{width * scale:.0f}" height="{height * scale:.0f}"'
    return (
        f'<figure><img loading="lazy" src="{name}" {size} alt="">'
        f'<svg {size} viewBox="0 0 {width} {height}">{rects}</svg></figure>'
    )
