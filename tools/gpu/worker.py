"""Runs rows of the check in this process and writes a line when one begins and when it ends: see tools/gpu/check.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

from tools.gpu.report import DONE, FAILED, LEFT_OUT, OUT_OF_MEMORY  # noqa: E402

START_AFRESH = 9
"""Exit code that asks for another process: this one's GPU memory is not what it was at first."""


def one_line(error: BaseException) -> str:
    """Returns what an error says in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def run_row(run: Any) -> dict[str, Any]:
    """Runs a row; returns outcome, figures and what there is to say."""
    import torch

    from tools.gpu.setting import LeftOut, Unmet

    began = time.perf_counter()
    figures: Mapping[str, Any] = {}
    outcome, said = DONE, ""
    try:
        figures = run()
    except LeftOut as reason:
        outcome, said = LEFT_OUT, str(reason)
    except Unmet as found:
        outcome, said, figures = FAILED, str(found), found.figures
    except torch.OutOfMemoryError as error:
        outcome, said = OUT_OF_MEMORY, one_line(error)
    except Exception as error:  # whatever a row meets, the next one goes on
        outcome, said = FAILED, one_line(error)
        print(f"row failed: {said}", file=sys.stderr)
        sys.excepthook(type(error), error, error.__traceback__)
    return {"outcome": outcome, "said": said, "figures": dict(figures), "seconds": time.perf_counter() - began}


def main() -> int:
    """Runs the rows of the stages named, but for those to skip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", type=Path, required=True, help="JSON: device, tiny, folder, stages, skip, events")
    order = json.loads(parser.parse_args().order.read_text(encoding="utf-8"))

    def tell(**event: Any) -> None:
        with open(order["events"], "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    from tools.gpu.setting import Setting
    from tools.gpu.stages import rows_of

    setting = Setting(order["device"], order["tiny"], Path(order["folder"]))
    for stage in order["stages"]:
        try:
            rows = rows_of(stage, setting)
        except Exception as error:  # something that the stage imports is another one than here
            sys.excepthook(type(error), error, error.__traceback__)
            tell(stage=stage, row="its rows")
            tell(stage=stage, row="its rows", outcome=FAILED, said=one_line(error), figures={}, seconds=0.0)
            rows = []
        for name, run in rows:
            if name in order["skip"].get(stage, ()):
                continue
            tell(stage=stage, row=name)
            found = run_row(run)
            tell(stage=stage, row=name, **found)
            if found["outcome"] not in (DONE, LEFT_OUT) and order["device"] == "cuda":
                return START_AFRESH
        tell(stage=stage, ended=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
