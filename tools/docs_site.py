"""What ``mkdocs build`` adds to the pages of docs/: the home page from README.md, the reference from the docstrings.

`mkdocs.yml` names this file as its hook. The reference has a page for each room (a folder of the two packages), so
that a new module appears by itself.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = ("mg_llava", "xtuner")
FIRST_PAGES = ("usage", "finetune", "dataset_prepare", "data", "configs", "evaluation", "cluster", "gpu", "model_zoo")
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")


def home_page() -> str:
    """Returns README.md with its links as they are from within docs/; files of the repository become plain text."""

    def moved(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        if target.startswith(("http", "#")):
            return link[0]
        return f"{mark}[{text}]({target.removeprefix('docs/')})" if target.startswith("docs/") else text

    return _LINK.sub(moved, (ROOT / "README.md").read_text("utf-8"))


def rooms() -> dict[str, list[str]]:
    """Returns the dotted names of the modules of each room, `__init__` apart; rooms without modules are left out."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if not path.stem.startswith("__"):
                found.setdefault(module.rpartition(".")[0], []).append(module)
    return found


def room_page(room: str, modules: list[str]) -> str:
    """Returns the page of a room: what its ``__init__`` says, then all that its modules document."""
    source = ROOT.joinpath(*room.split("."), "__init__.py").read_text("utf-8")
    about = ast.get_docstring(ast.parse(source)) or ""
    return "\n\n".join([f"# {room}", about.replace("``", "`"), *(f"::: {module}" for module in modules)])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the navigation: the home page, the pages of docs/, the reference."""
    pages = [path.stem for path in sorted((ROOT / "docs").glob("*.md"))]
    ordered = [*FIRST_PAGES, *(page for page in pages if page not in FIRST_PAGES)]
    config.nav = [
        {"Home": "index.md"},
        {"Guide": [f"{page}.md" for page in ordered]},
        {"Reference": [{room: f"api/{room}.md"} for room in rooms()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the home page and the pages of the reference."""
    files.append(File.generated(config, "index.md", content=home_page()))
    for room, modules in rooms().items():
        files.append(File.generated(config, f"api/{room}.md", content=room_page(room, modules)))
    return files
