"""The check for a GPU: its report, its time limits, its sentences, and all of it once on the CPU with tiny parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpu import machine
from tools.gpu.check import Check, Clock, parse, verdict
from tools.gpu.report import DONE, FAILED, OUT_OF_MEMORY, OUT_OF_TIME, Outcome, Report

ROOT = Path(__file__).parents[2]
ABOUT = {"device": "cpu", "tiny": True, "torch": "2.11.0"}

# says what it is told to in place of the worker: name, then what happens in it
STUB = """
import json, os, sys, time
order = json.load(open(sys.argv[2]))
ROWS = {"facts": ["fine", "full", "dies", "last"], "mfu": ["first", "endless", "never"], "quickstart": ["end"]}
def tell(**event):
    with open(order["events"], "a") as file:
        file.write(json.dumps(event) + chr(10))
for stage in order["stages"]:
    for row in ROWS[stage]:
        if row in order["skip"][stage]:
            continue
        tell(stage=stage, row=row)
        if row == "dies":
            os._exit(7)
        if row == "endless":
            time.sleep(600)
        outcome = "out of memory" if row == "full" else "done"
        tell(stage=stage, row=row, outcome=outcome, said="", figures={"x": 1.5}, seconds=0.01)
        if row == "full":
            sys.exit(9)
    tell(stage=stage, ended=True)
"""


def stubbed(folder: Path, *stages: str, minutes: float = 60) -> Check:
    args = parse(["--device", "cpu", "--tiny", "--out", str(folder), "--minutes", str(minutes), "--stages", *stages])
    folder.mkdir(exist_ok=True)
    check = Check(args, dict(os.environ), Report.open(folder, ABOUT))
    check.worker = folder / "stub.py"
    check.worker.write_text(STUB)
    return check


def outcomes(check: Check) -> dict[str, str]:
    return {found.row: found.outcome for found in check.report.outcomes.values()}


class TestRows:
    def test_a_full_memory_and_a_dead_process_end_one_row_each(self, tmp_path: Path) -> None:
        check = stubbed(tmp_path, "facts", "quickstart")
        check.run()
        expected = {"fine": DONE, "full": OUT_OF_MEMORY, "dies": FAILED, "last": DONE, "end": DONE}
        assert outcomes(check) == expected
        assert verdict(check) == 1
        written = json.loads((tmp_path / "report.json").read_text())
        assert {row["row"]: row["outcome"] for row in written["rows"]} == expected
        text = (tmp_path / "report.md").read_text()
        assert "| fine | done | 0.0 | 1.5 |" in text
        assert "code 7" in text

    def test_a_stage_without_time_ends_and_the_next_goes_on(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check = stubbed(tmp_path, "mfu", "quickstart")
        # enough for a slow machine to start two processes; the endless row takes all that its stage has
        check.clock.open("mfu")
        check.clock.allowed = 3.0
        check.run()
        assert outcomes(check) == {"first": DONE, "endless": OUT_OF_TIME, "end": DONE}
        assert verdict(check) == 75
        assert "what is done stands" in capsys.readouterr().out

    def test_a_later_run_skips_what_is_done(self, tmp_path: Path) -> None:
        report = Report(tmp_path, ABOUT)
        report.add(Outcome("facts", "fine", DONE, figures={"x": 9.0}))
        report.add(Outcome("facts", "dies", DONE))
        report.add(Outcome("facts", "full", OUT_OF_MEMORY))
        check = stubbed(tmp_path, "facts")
        check.run()
        assert outcomes(check) == {"fine": DONE, "dies": DONE, "full": OUT_OF_MEMORY, "last": DONE}
        assert check.report.outcomes["facts", "fine"].figures == {"x": 9.0}

    def test_no_time_at_all(self, tmp_path: Path) -> None:
        check = stubbed(tmp_path, "facts", minutes=1e-9)
        check.run()
        assert outcomes(check) == {}
        assert verdict(check) == 75


def test_what_a_stage_leaves_over_goes_to_the_next() -> None:
    clock = Clock(8.0)
    clock.open("facts")
    assert clock.limit() == pytest.approx(20)
    clock.spent["facts"] = 5.0
    clock.open("correctness")
    assert clock.limit() == pytest.approx(95)
    clock.open("facts")
    assert clock.limit() == pytest.approx(95)


class TestBadInput:
    def test_report_of_another_machine(self, tmp_path: Path) -> None:
        Report(tmp_path, ABOUT).write()
        with pytest.raises(ValueError, match=r"is of torch 2.11.0, and this run of 2.14.1: give another --out"):
            Report.open(tmp_path, {**ABOUT, "torch": "2.14.1"})

    def test_no_wheels(self, tmp_path: Path) -> None:
        with pytest.raises(machine.BadInput, match=r"holds no \*.whl: make the folder by"):
            machine.prepare_packages(tmp_path, tmp_path, "cpu")

    def test_a_wheel_that_pip_refuses(self, tmp_path: Path) -> None:
        (tmp_path / "thing-1.0-cp27-none-any.whl").write_text("")
        with pytest.raises(machine.BadInput, match=r"pip does not install .*thing-1.0-cp27-none-any.whl"):
            machine.prepare_packages(tmp_path, tmp_path / "out", "cpu")

    def look(self, monkeypatch: pytest.MonkeyPatch, **found: object) -> None:
        """Has the machine look like this."""
        said = json.dumps(
            {"missing": [], "python": "3.12", "torch": "2.11.0+cu130", "cuda": True, "card": "H", **found}
        )
        monkeypatch.setattr(machine, "_LOOK", f"print({said!r})")

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.look(monkeypatch, cuda=False, card=None)
        with pytest.raises(machine.BadInput, match=r"finds no GPU: run on one, or give --device cpu --tiny"):
            machine.check_machine("cuda", None, dict(os.environ))
        assert machine.check_machine("cpu", None, dict(os.environ))["card"] == "CPU"

    def test_a_package_that_no_wheel_brings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.look(monkeypatch, missing=["mmengine", "open_clip"])
        with pytest.raises(machine.BadInput, match=r"does not have mmengine, open_clip_torch: .* give --wheels DIR"):
            machine.check_machine("cuda", None, dict(os.environ))

    @pytest.mark.parametrize(("name", "version"), [("torch", "2.9"), ("python", "3.11")])
    def test_another_torch_or_python(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, version: str
    ) -> None:
        made_for = {"python": "3.12", "torch": "2.11", name: version}
        (tmp_path / machine.MADE_FOR).write_text(json.dumps(made_for))
        self.look(monkeypatch)
        with pytest.raises(machine.BadInput, match=rf"^{name} is 3?.*, and the wheels of .* are for {version}"):
            machine.check_machine("cuda", tmp_path, dict(os.environ))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [(["--minutes", "0"], "--minutes is 0"), (["--device", "cpu"], "add --tiny"), (["--stages", "x"], "invalid")],
    )
    def test_arguments(self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
        with pytest.raises(SystemExit):
            parse(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.multi_process
def test_all_stages_on_the_cpu(tmp_path: Path) -> None:
    """What a GPU will run, with tiny parts; what needs a GPU is left out by name."""
    out = tmp_path / "out"
    command = ["bash", "tools/gpu/check.sh", "--device", "cpu", "--tiny", "--minutes", "30", "--out", str(out)]
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1800)
    log = out / "log.txt"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert {row["stage"] for row in rows} == {
        *("facts", "correctness", "engine", "mfu", "packed", "generation", "quickstart")
    }
    assert all("GPU" in row["said"] or "not installed" in row["said"] for row in rows if row["outcome"] == "left out")
