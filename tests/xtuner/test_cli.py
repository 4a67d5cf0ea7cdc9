"""The program: help at once, exit codes that mean something, one clear message for a mistake."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from xtuner import __version__, cli
from xtuner.constants import NEEDED_MODULES
from xtuner.errors import XTunerError, nearest


def command(run) -> ModuleType:
    module = ModuleType("command")
    module.HELP = "Does it."
    module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)
    module.run = run
    return module


@pytest.fixture
def with_command(monkeypatch):
    """Returns a function that makes `run` the command ``version``."""

    def put(run) -> None:
        monkeypatch.setitem(sys.modules, "xtuner.tools.version", command(run))

    return put


class TestHelp:
    def test_names_all_commands(self, capsys):
        assert cli.main(["--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"  {name}" in text for name in cli.COMMANDS)

    def test_nothing_given_is_wrong_usage(self, capsys):
        assert cli.main([]) == 2
        assert "usage: xtuner COMMAND" in capsys.readouterr().err

    def test_comes_at_once_and_imports_no_library(self):
        code = (
            "import sys; from xtuner.cli import main; code = main(['--help']);"
            "heavy = {'torch', 'mmengine', 'rich'} & set(sys.modules); sys.exit(code or len(heavy))"
        )
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        # 0.13 s alone; the limit leaves room for a busy machine
        assert time.perf_counter() - start < 5

    def test_of_a_command(self, capsys, with_command):
        with_command(lambda args: 0)
        assert cli.main(["version", "--help"]) == 0
        assert "Does it." in capsys.readouterr().out

    def test_module_form(self):
        done = subprocess.run([sys.executable, "-m", "xtuner", "version"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith(f"xtuner           {__version__}\n")


class TestExitCodes:
    def test_of_the_command(self, with_command):
        with_command(lambda args: args.number)
        assert cli.main(["version", "--number", "3"]) == 3

    def test_a_package_that_is_not_installed_is_one_sentence(self, capsys, with_command, monkeypatch):
        def run(args):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        with_command(run)
        with pytest.raises(ModuleNotFoundError):
            # it is there, so something else is wrong
            cli.main(["version"])
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert cli.main(["version"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("xtuner version: 'torch' is not installed for ") and said.count("\n") == 1

    def test_all_that_a_plain_install_brings_is_known_by_its_module(self):
        lines = (Path(__file__).parents[2] / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
        wanted = {re.split("[><=]", line)[0].lower().replace("-", "_") for line in lines if line}
        # what nothing here imports by itself
        wanted.discard("protobuf")
        modules = {"open_clip_torch": "open_clip", "pillow": "PIL"}
        assert {modules.get(name, name) for name in wanted} == NEEDED_MODULES

    def test_mistyped_command_suggests_the_nearest(self, capsys):
        assert cli.main(["chekc-cfg"]) == 2
        assert "Did you mean 'check-cfg'?" in capsys.readouterr().err

    def test_mistyped_option_suggests_the_nearest(self, capsys, with_command):
        with_command(lambda args: 0)
        assert cli.main(["version", "--numbre=3"]) == 2
        assert "unknown argument '--numbre=3'. Did you mean '--number'?" in capsys.readouterr().err

    def test_mistyped_choice_suggests_the_nearest(self, capsys):
        assert cli.main(["convert", "pth_hf"]) == 2
        assert "Did you mean 'pth_to_hf'?" in capsys.readouterr().err

    def test_a_part_of_a_name_suggests_the_whole(self):
        assert nearest("zero2", ["deepspeed_zero1", "deepspeed_zero2_offload", "deepspeed_zero2"]).endswith(
            "'deepspeed_zero2'?"
        )
        assert nearest("x", ["max_norm"]) == ""

    def test_abbreviated_option_is_not_taken_for_another(self, with_command):
        with_command(lambda args: 0)
        assert cli.main(["version", "--num", "3"]) == 2

    def test_users_mistake_gives_a_message_without_traceback(self, capsys, with_command):
        def run(args: argparse.Namespace) -> int:
            raise XTunerError("found a, expected b: do c")

        with_command(run)
        assert cli.main(["version"]) == 1
        assert capsys.readouterr().err == "xtuner version: found a, expected b: do c\n"

    def test_our_mistake_keeps_its_traceback(self, with_command):
        def run(args: argparse.Namespace) -> int:
            raise ZeroDivisionError

        with_command(run)
        with pytest.raises(ZeroDivisionError):
            cli.main(["version"])

    def test_interrupted(self, with_command):
        def run(args: argparse.Namespace) -> int:
            raise KeyboardInterrupt

        with_command(run)
        assert cli.main(["version"]) == 130


class TestPlugins:
    @pytest.fixture
    def plugin(self, monkeypatch):
        module = command(lambda args: 5)
        dist = SimpleNamespace(name="family")
        point = SimpleNamespace(name="boxes", module="family.boxes", dist=dist, load=lambda: module)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])

    def test_runs(self, plugin):
        assert cli.main(["boxes"]) == 5

    def test_is_in_the_help(self, plugin, capsys):
        cli.main(["--help"])
        assert "  boxes                 from family\n" in capsys.readouterr().out

    def test_its_own_line_is_read_and_not_imported(self, plugin, capsys, tmp_path, monkeypatch):
        package = tmp_path / "family"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "boxes.py").write_text('HELP = "Find boxes of " "objects. And more."\nraise RuntimeError')
        monkeypatch.syspath_prepend(tmp_path)
        cli.main(["--help"])
        assert "  boxes                 find boxes of objects\n" in capsys.readouterr().out

    def test_columns_are_apart(self, plugin, capsys):
        cli.main(["--help"])
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        assert len(rows) == len(cli.COMMANDS) + 1
        assert all(row[2:].split("  ")[0] in {*cli.COMMANDS, "boxes"} for row in rows)


def test_every_command_has_a_module():
    from importlib.util import find_spec

    missing = [name for name in cli.COMMANDS if find_spec(f"xtuner.tools.{name.replace('-', '_')}") is None]
    assert missing == []
