"""A tiny benchmark with pictures and boxes; as a script, one process (or one rank of several) that evaluates it."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from mg_llava.evaluation import EvaluationRunner, ShortAnswer
from mg_llava.inference.assistant import Assistant
from tests.tiny_assistant import box_record, save_picture, tiny_assistant
from xtuner.engine.processes.environment import Collective, close_environment, setup_environment

FACTS = {"checkpoint": "iter_1.pth", "config": "tiny"}
TEXTS = ["Is it red ?", "what", "Is it a dog or cat w1 w2 w3 w4 ?", "Is w5", "w6 w7", "Is it blue", "A or B"]


def make_world(folder: Path, texts: list[str] | None = None) -> Path:
    """Questions on three pictures; number 4 has no picture, the second picture no boxes."""
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts or TEXTS):
        row = {"id": f"q{number}", "question": text, "answer": "dog", "kind": "even" if number % 2 == 0 else "odd"}
        if number != 4:
            row["image"] = f"images/{number % 3}.png"
        rows.append(row)
    for number in range(3):
        save_picture(folder / "images" / f"{number}.png", number, (40 + 10 * number, 30))
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "boxes.json").write_text(json.dumps([box_record("images/0.png"), box_record("images/2.png")]))
    return folder


def bench(world: Path, **arguments: Any) -> ShortAnswer:
    """The world's benchmark."""
    values = {"image_folder": "", "box_json_path": "boxes.json", "max_new_tokens": 6, **arguments}
    return ShortAnswer(name="tiny", data_root=str(world), data_file="test.json", **values)


def runner(assistant: Assistant, batch_size: int = 3, **arguments: Any) -> EvaluationRunner:
    """A runner that asks `assistant`."""
    return EvaluationRunner(
        tokenizer=assistant.tokenizer,
        image_processor=assistant.image_processor,
        prompt_template=assistant.template,
        model=assistant.model,
        boxes=assistant.boxes,
        batch_size=batch_size,
        **arguments,
    )


def seeded_assistant(folder: Path) -> Assistant:
    """The same assistant in every process."""
    torch.manual_seed(0)
    return tiny_assistant(folder)[0]


def main() -> None:
    """Evaluates the world; `delay` seconds pass in each batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    # before the process group: within one, transformers has rank 0 write files only
    assistant = seeded_assistant(args.out.parent / f"parts_{args.out.name}_{os.environ.get('RANK', '0')}")
    environment = setup_environment()
    # of the class: the runner makes an assistant of its own
    generate, slow_rank = Assistant.generate, [1]

    def slow(self: Assistant, *arguments: Any, **keywords: Any) -> list[str]:
        # one rank takes five times as long
        time.sleep(args.delay * (5 if environment.rank == slow_rank[0] else 1))
        return generate(self, *arguments, **keywords)

    Assistant.generate = slow  # type: ignore[method-assign]
    collective = Collective()
    run = runner(assistant, 2, collective=collective, num_workers=args.workers)
    run.run(bench(args.world), args.out, FACTS)
    if collective.world_size > 1:
        locked = runner(assistant, 2, collective=collective, lockstep=True)
        locked.run(bench(args.world), args.out.with_name(f"{args.out.name}_locked"), FACTS)
        slow_rank[0] = 0  # rank 1 stops while there is work left
        stops = iter([False, collective.rank == 1])
        cut = args.out.with_name(f"{args.out.name}_cut")
        stopped = run.run(bench(args.world), cut, FACTS, should_stop=lambda: next(stops, collective.rank == 1))
        assert stopped == {}
        run.run(bench(args.world), cut, FACTS)
    close_environment()


if __name__ == "__main__":
    main()
