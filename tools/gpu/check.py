"""The check of tools/gpu/check.sh: stages in processes of their own, each with a time limit, results as they come.

Usage: ``bash tools/gpu/check.sh [--minutes 8] [--wheels DIR] [--out DIR] [--stages STAGE ...] [--device cpu --tiny]``

A stage is a list of rows. A worker runs one row after the other and tells of each; this process writes them down, ends
the worker where a stage has used its time, and starts another one where a row has taken it down. Rows that are done are
not run again by a later call. Exit code 0: all rows are done or left out; 1: some failed, or there was bad input; 75:
out of time, and the same command does the rest.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # also where not installed

from tools.gpu.machine import BadInput, check_machine, prepare_packages  # noqa: E402
from tools.gpu.report import DONE, FAILED, LEFT_OUT, OUT_OF_TIME, STAGES, Outcome, Report  # noqa: E402
from tools.gpu.worker import START_AFRESH  # noqa: E402

SHARES = {
    "facts": 20,
    "correctness": 80,
    "engine": 60,
    "mfu": 170,
    "packed": 60,
    "generation": 40,
    "quickstart": 50,
}
"""Seconds of each stage when there are 8 minutes; what a stage leaves over goes to those after it."""

OUT_OF_TIME_CODE = 75
_LOOK = 0.1


@dataclass
class Clock:
    """Time for all and for each stage.

    Args:
        minutes: for all.

    Attributes:
        allowed: seconds that stages had so far and have now.
        spent: seconds by stage.
    """

    minutes: float
    began: float = field(default_factory=time.monotonic)
    allowed: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def open(self, stage: str) -> None:
        """Gives a stage its share, once."""
        if stage not in self.spent:
            self.spent[stage] = 0.0
            self.allowed += SHARES[stage] * self.minutes * 60 / sum(SHARES.values())

    @property
    def left(self) -> float:
        """Seconds left for all."""
        return self.minutes * 60 - (time.monotonic() - self.began)

    def limit(self) -> float:
        """Seconds that the open stage may still take."""
        return min(self.allowed - sum(self.spent.values()), self.left)


class Check:
    """Runs stages in workers and writes what they find into the report.

    Args:
        args: of the command line.
        environ: of the workers.
        report: to write to.
    """

    def __init__(self, args: argparse.Namespace, environ: dict[str, str], report: Report) -> None:
        self.args, self.environ, self.report = args, environ, report
        self.clock = Clock(args.minutes)
        self.order = args.out / "order.json"
        self.events = args.out / "events.jsonl"
        self.log = args.out / "log.txt"
        self.worker = ROOT / "tools/gpu/worker.py"

    def run(self) -> None:
        """Runs all stages until they have ended or the time is up."""
        waiting = list(self.args.stages)
        tried: dict[str, list[str]] = {stage: self.report.settled(stage) for stage in waiting}
        while waiting and self.clock.left > 0:
            ended, row = self._work(waiting, tried)
            waiting = [stage for stage in waiting if stage not in ended]
            if row is not None:
                tried[row[0]].append(row[1])

    def _work(self, stages: list[str], tried: dict[str, list[str]]) -> tuple[set[str], tuple[str, str] | None]:
        """Runs one worker; returns the stages that have ended, and the row that ended the worker."""
        self.events.write_text("")
        order = {
            "device": self.args.device,
            "tiny": self.args.tiny,
            "folder": str(self.args.out / "scratch"),
            "stages": stages,
            "skip": tried,
            "events": str(self.events),
        }
        self.order.write_text(json.dumps(order))
        with open(self.log, "ab") as log:
            command = [sys.executable, str(self.worker), "--order", str(self.order)]
            worker = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ, cwd=ROOT)
        try:
            return self._watch(worker, stages, tried)
        finally:
            worker.kill()
            worker.wait()

    def _watch(
        self, worker: subprocess.Popen[bytes], stages: list[str], tried: dict[str, list[str]]
    ) -> tuple[set[str], tuple[str, str] | None]:
        seen, ended, begun = 0, set(), None
        while True:
            code = worker.poll()  # before the events are read: none comes after
            lines = self.events.read_text(encoding="utf-8").splitlines()
            for event in map(json.loads, lines[seen:]):
                begun = self._take(event, ended, begun, tried)
            seen = len(lines)
            if begun is not None and time.monotonic() - begun[2] > self.clock.limit():
                self._spend(begun)
                self._add(begun, OUT_OF_TIME, "its stage has no time left")
                return {*ended, begun[0]}, None
            if code is None and self.clock.left > 0:
                time.sleep(_LOOK)
                continue
            if begun is not None:
                self._spend(begun)
                said = f"its process ended with code {code}; see {self.log}"
                self._add(begun, FAILED, said)
                return ended, begun[:2]
            if code not in (0, START_AFRESH, None):
                raise BadInput(f"the rows could not begin (code {code}): {self._last_line()}")
            return (ended if code else set(stages)) if self.clock.left > 0 else ended, None

    def _take(
        self, event: dict[str, Any], ended: set[str], begun: tuple[str, str, float] | None, tried: dict[str, list[str]]
    ) -> tuple[str, str, float] | None:
        """Takes an event of the worker; returns the row that has begun and not ended."""
        stage = event["stage"]
        if event.get("ended"):
            ended.add(stage)
            return None
        if "outcome" not in event:
            self.clock.open(stage)
            return stage, event["row"], time.monotonic()
        self.clock.spent[stage] += event["seconds"]
        tried[stage].append(event["row"])
        outcome = Outcome(**event)
        self.report.add(outcome)
        said = f" ({outcome.said})" if outcome.said else ""
        print(f"{stage}: {outcome.row}: {outcome.outcome} in {outcome.seconds:.1f} s{said}", flush=True)
        return None

    def _spend(self, begun: tuple[str, str, float]) -> None:
        self.clock.spent[begun[0]] += time.monotonic() - begun[2]

    def _add(self, begun: tuple[str, str, float], outcome: str, said: str) -> None:
        self.report.add(Outcome(begun[0], begun[1], outcome, time.monotonic() - begun[2], said=said))
        print(f"{begun[0]}: {begun[1]}: {outcome} ({said})", flush=True)

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def verdict(check: Check) -> int:
    """Prints what is done and what is not; returns the exit code."""
    rows = [found for found in check.report.outcomes.values() if found.stage in check.args.stages]
    by = {outcome: sum(found.outcome == outcome for found in rows) for outcome in {found.outcome for found in rows}}
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(by.items()))
    print(f"{counts or 'nothing'}: {check.args.out / 'report.md'}")
    if check.clock.left <= 0 or OUT_OF_TIME in by:
        print(f"out of time ({check.args.minutes:g} minutes): what is done stands; the same command does the rest.")
        return OUT_OF_TIME_CODE
    return 0 if set(by) <= {DONE, LEFT_OUT} else 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages together (default: 8)")
    parser.add_argument("--wheels", type=Path, help="folder of tools/gpu/wheels.sh, for packages that are not here")
    parser.add_argument("--out", type=Path, help="folder of the report (default: work_dirs/gpu_check[_cpu][_tiny])")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="tests' tiny parts in the place of the real sizes")
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes:g}: expected more than 0")
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu runs the tiny sizes only: add --tiny")
    name = "gpu_check" + ("_cpu" if args.device == "cpu" else "") + ("_tiny" if args.tiny else "")
    args.out = (args.out or ROOT / "work_dirs" / name).resolve()
    args.stages = [stage for stage in STAGES if stage in args.stages]
    return args


def main() -> int:
    """Checks the machine, runs the stages, says what came of them."""
    args = parse()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        environ = prepare_packages(args.wheels, args.out, args.device)
        about = check_machine(args.device, args.wheels, environ)
        about |= {"tiny": args.tiny, "command": "bash tools/gpu/check.sh " + shlex.join(sys.argv[1:])}
        report = Report.open(args.out, about)
        check = Check(args, environ, report)
        check.run()
        return verdict(check)
    except (BadInput, ValueError, OSError) as error:
        print(f"check.sh: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
