"""The documentation names only files, commands, options, settings and names that exist."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.docs import pages
from xtuner.cli import main
from xtuner.config import load_config
from xtuner.registry import import_object

ROOT = pages.ROOT
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
CHECKS = [
    pages.missing_files,
    pages.unknown_names,
    pages.faulty_python,
    pages.unknown_options,
    pages.unknown_settings,
    pages.unknown_assignments,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", PAGES)
def test_page_holds(name, check):
    assert check(PAGES[name].read_text("utf-8")) == []


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name):
    assert pages.broken_links(PAGES[name].read_text("utf-8"), PAGES[name].parent) == []


def test_settings_of_the_table_exist():
    rows = (ROOT / "docs/configs.md").read_text("utf-8").split("## Settings")[1].split("\n## ")[0]
    names = [name.strip(" `") for row in rows.split("\n")[4:] if row for name in row.split("|")[1].split(",")]
    written = load_config(pages.DEFAULT_CONFIG).as_written
    assert len(names) > 30
    assert [name for name in names if name not in written] == []


def test_lengths_of_the_examples_are_real():
    table = (ROOT / "docs/contributing.md").read_text("utf-8").split("## I want to add")[1].split("\n## ")[0]
    examples = re.findall(r"`([\w./]+)`, (\d+) lines", table)
    assert len(examples) >= 7
    for name, written in examples:
        source = (ROOT / name).read_text("utf-8") if "/" in name else inspect.getsource(import_object(name))
        # a few lines more or less mislead nobody
        assert len(source.splitlines()) == pytest.approx(int(written), rel=0.2), name


def test_facts_of_the_readme_name_what_shows_them():
    rows = (ROOT / "README.md").read_text("utf-8").split("## Why this")[1].split("\n## ")[0].split("\n")
    facts = [row for row in rows if row.startswith("| ")][1:]
    assert len(facts) >= 10
    assert [
        row for row in facts if not re.search(r"tests/\w|tools/(benchmarks|tiny_world)/\w", row.split("|")[-2])
    ] == []


def test_problems_read_as_in_the_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["copy-cfg", pages.DEFAULT_CONFIG, "my_configs"]) == 0
    (tmp_path / "my_configs/mine.py").write_text(
        "from mmengine.config import read_base\n\n"
        f"with read_base():\n    from .{pages.DEFAULT_CONFIG}_copy import *\n\n"
        'batch_sise = 4\nlr = "1e-3"\nmodel.projector.dpeth = 3\n'
    )
    assert main(["train", "my_configs/mine.py"]) == 1
    assert f"```\n{capsys.readouterr().err}```" in (ROOT / "docs/configs.md").read_text("utf-8")


class TestFaultsAreFound:
    """The checks themselves: a page with one fault of each kind."""

    @pytest.mark.parametrize(
        ("check", "page"),
        [
            (pages.missing_files, "See `mg_llava/model/nothing.py`."),
            (pages.missing_files, "`tools/benchmarks/{padding,nothing}.py`"),
            (pages.unknown_names, "`mg_llava.model.Nothing`"),
            (pages.unknown_names, "    xtuner train fuse_vicuna9b_clip_L_14_336_sft_padding"),
            (pages.faulty_python, "```python\nfrom mg_llava.model import Nothing\n```"),
            (pages.faulty_python, "1. One\n\n   ```python\n   a = = 1\n   ```"),
            (pages.unknown_options, "    xtuner trian CONFIG"),
            (pages.unknown_options, "```bash\nxtuner train CONFIG \\\n    --resumes auto\n```"),
            (pages.unknown_options, "`xtuner convert pth_to_fh CONFIG`"),
            (pages.unknown_options, "`python tools/benchmarks/padding.py --nothing`"),
            (pages.unknown_options, "With `--nothing`, it works."),
            (pages.unknown_settings, "    xtuner train CONFIG --cfg-options batch_sise=4"),
            (pages.unknown_settings, "`--cfg-options model.projector.dpeth=3`"),
            (pages.unknown_settings, "`--cfg-options max_epochs=three`"),
            (pages.unknown_assignments, "`pack=True max_tokens_per_bach=16384`"),
            (pages.unknown_assignments, '    SFT_OPTIONS="batch_sise=8" bash script/train_sft.sh'),
        ],
    )
    def test_in_text(self, check, page):
        assert len(check(page)) == 1

    @pytest.mark.parametrize("link", ["nothing.md", "configs.md#nothing", "#nothing"])
    def test_in_links(self, link):
        assert len(pages.broken_links(f"# Page\n[text]({link})", ROOT / "docs")) == 1

    def test_names_of_the_readers_own_pass(self):
        page = "    xtuner check-cfg my_sft.py\n\n`configs/my_llm/my_sft.py`, `https://huggingface.co/x/configs`"
        assert [fault for check in CHECKS for fault in check(page)] == []
