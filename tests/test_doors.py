"""Each folder is a room: which room may use which, no circle of files, no private name of another file, few files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mg_llava", "xtuner")
MOST_MODULES = 12
ONE_MODULE_A_COMMAND = "xtuner.tools"
EVERYWHERE = {"xtuner.errors", "xtuner.json_values", "xtuner.log", "xtuner.constants", "xtuner.registry"}
"""Small modules that every room may use."""

# the rooms and modules at the top of xtuner that a room uses, besides EVERYWHERE
WAYS = {
    "mg_llava.serving.page": {
        "mg_llava.boxes",
        "mg_llava.inference",
        "mg_llava.pictures",
        "mg_llava.serving.access",
        "mg_llava.serving.generation",
        "mg_llava.serving.requests",
        "mg_llava.videos",
    },
    "mg_llava.hf.llava": {
        "mg_llava.hf",
        "mg_llava.model.encoders",
        "mg_llava.pictures",
        "xtuner.model",
        "xtuner.model.files",
    },
    "mg_llava.serving.vllm": {
        "mg_llava.boxes",
        "mg_llava.hf",
        "mg_llava.inference",
        "mg_llava.model",
        "mg_llava.pictures",
        "mg_llava.serving.requests",
        "mg_llava.videos",
        "xtuner.data.text",
        "xtuner.engine.steps",
    },
    "mg_llava.model.encoders": {"mg_llava.pictures", "xtuner.model", "xtuner.model.files"},
    "xtuner.data.sources": {"xtuner.data.pictures", "xtuner.data.records", "xtuner.data.store", "xtuner.data.tables"},
    "mg_llava": {
        "mg_llava.boxes",
        "mg_llava.evaluation",
        "mg_llava.hf",
        "mg_llava.hf.llava",
        "mg_llava.inference",
        "mg_llava.model",
        "mg_llava.serving.vllm",
        "xtuner",
    },
    "mg_llava.boxes": {"xtuner.data.records", "xtuner.data.store"},
    "mg_llava.data": {
        "mg_llava.boxes",
        "mg_llava.pictures",
        "mg_llava.videos",
        "mg_llava.videos.cache",
        "xtuner.data.batches",
        "xtuner.data.pictures",
        "xtuner.data.records",
        "xtuner.data.sources",
        "xtuner.data.store",
        "xtuner.data.text",
        "xtuner.model",
    },
    "mg_llava.detectors": {
        "mg_llava.boxes",
        "mg_llava.pictures",
        "mg_llava.videos",
        "xtuner.data.pictures",
        "xtuner.data.records",
        "xtuner.data.sources",
        "xtuner.data.text",
        "xtuner.engine.processes",
        "xtuner.model",
        "xtuner.model.files",
    },
    "mg_llava.evaluation.benchmarks": {
        "mg_llava.boxes",
        "mg_llava.evaluation.reading",
        "mg_llava.pictures",
        "mg_llava.videos",
        "xtuner.data.pictures",
        "xtuner.data.text",
    },
    "mg_llava.evaluation.benchmarks.kinds": {
        "mg_llava.boxes",
        "mg_llava.evaluation.benchmarks",
        "mg_llava.evaluation.judging",
        "mg_llava.evaluation.reading",
        "mg_llava.evaluation.results",
        "mg_llava.videos",
        "xtuner.data.sources",
        "xtuner.data.text",
    },
    "mg_llava.evaluation.benchmarks.kinds.vqa": {
        "mg_llava.evaluation.benchmarks",
        "mg_llava.evaluation.reading",
    },
    "mg_llava.evaluation.benchmarks.kinds.video": {
        "mg_llava.evaluation.benchmarks",
        "mg_llava.evaluation.benchmarks.kinds",
        "mg_llava.evaluation.judging",
        "mg_llava.videos",
    },
    "mg_llava.evaluation.judging": {"mg_llava.evaluation.benchmarks", "xtuner.evaluation"},
    "mg_llava.evaluation.lmms_eval": {
        "mg_llava.inference",
        "mg_llava.pictures",
        "xtuner.data.text",
        "xtuner.tools.support",
    },
    "mg_llava.evaluation.results": {
        "mg_llava.boxes",
        "mg_llava.evaluation.benchmarks",
        "mg_llava.pictures",
    },
    "mg_llava.evaluation.run": {
        "mg_llava.boxes",
        "mg_llava.evaluation.benchmarks",
        "mg_llava.evaluation.judging",
        "mg_llava.evaluation.results",
        "mg_llava.inference",
        "mg_llava.model",
        "mg_llava.pictures",
        "xtuner",
        "xtuner.data.text",
        "xtuner.engine.processes",
        "xtuner.engine.steps",
        "xtuner.evaluation",
    },
    "mg_llava.hf": {
        "mg_llava.boxes",
        "mg_llava.inference",
        "mg_llava.model",
        "mg_llava.model.encoders",
        "mg_llava.pictures",
        "mg_llava.videos",
        "xtuner",
        "xtuner.data.records",
        "xtuner.data.text",
        "xtuner.model",
        "xtuner.model.files",
    },
    "mg_llava.inference": {
        "mg_llava.boxes",
        "mg_llava.model",
        "mg_llava.pictures",
        "mg_llava.videos",
        "xtuner.data.text",
        "xtuner.data.records",
    },
    "mg_llava.model": {
        "mg_llava.model.encoders",
        "mg_llava.pictures",
        "xtuner.memory_estimate",
        "xtuner.model",
        "xtuner.model.files",
    },
    "mg_llava.pictures": {"mg_llava.boxes", "xtuner.model"},
    "mg_llava.videos.cache": {"mg_llava.videos", "xtuner.data.store"},
    "mg_llava.videos": {"mg_llava.boxes", "mg_llava.pictures", "xtuner.data.pictures"},
    "mg_llava.serving": {
        "mg_llava.hf",
        "mg_llava.inference",
        "mg_llava.serving.access",
        "mg_llava.serving.generation",
        "mg_llava.serving.page",
        "mg_llava.serving.proxy",
        "mg_llava.serving.requests",
        "mg_llava.serving.vllm",
        "xtuner.tools.support",
    },
    "mg_llava.serving.access": {"mg_llava.serving.requests"},
    "mg_llava.serving.generation": {
        "mg_llava.inference",
        "mg_llava.model",
        "mg_llava.videos",
    },
    "mg_llava.serving.proxy": {
        "mg_llava.boxes",
        "mg_llava.hf",
        "mg_llava.inference",
        "mg_llava.serving.generation",
        "mg_llava.serving.vllm",
        "mg_llava.videos",
        "xtuner.data.records",
        "xtuner.data.text",
    },
    "mg_llava.serving.requests": {
        "mg_llava.boxes",
        "mg_llava.inference",
        "mg_llava.pictures",
        "mg_llava.serving.generation",
        "mg_llava.videos",
        "xtuner.data.records",
    },
    "xtuner.__main__": {"xtuner.cli"},
    "xtuner.cli": {
        "xtuner",
        "xtuner.model.files",
        "xtuner.threads",
    },
    "xtuner.config": {"xtuner", "xtuner.compat"},
    "xtuner.data.batches": {
        "xtuner.data.store",
        "xtuner.model",
    },
    "xtuner.data.pictures": {
        "xtuner.data.store",
        "xtuner.data.tables",
    },
    "xtuner.data.store": {"xtuner.data.records", "xtuner.data.text"},
    "xtuner.data.text": {"xtuner.data.records"},
    "xtuner.engine": {
        "xtuner",
        "xtuner.config",
        "xtuner.data.batches",
        "xtuner.data.sources",
        "xtuner.engine.checkpoints",
        "xtuner.engine.hooks",
        "xtuner.engine.processes",
        "xtuner.engine.steps",
        "xtuner.engine.strategies",
        "xtuner.model",
        "xtuner.model.files",
    },
    "xtuner.engine.checkpoints": {"xtuner.engine.processes", "xtuner.model.files"},
    "xtuner.engine.hooks": {
        "xtuner.data.batches",
        "xtuner.engine.checkpoints",
        "xtuner.engine.processes",
        "xtuner.engine.steps",
        "xtuner.evaluation",
        "xtuner.model",
        "xtuner.model.files",
    },
    "xtuner.engine.processes": {"xtuner.compat"},
    "xtuner.engine.steps": {
        "xtuner.data.batches",
        "xtuner.engine.processes",
        "xtuner.model",
        "xtuner.model.files",
    },
    "xtuner.engine.strategies": {
        "xtuner.compat",
        "xtuner.config",
        "xtuner.engine.checkpoints",
        "xtuner.engine.processes",
        "xtuner.engine.steps",
        "xtuner.model.files",
    },
    "xtuner.finetune": {
        "xtuner.config",
        "xtuner.data.pictures",
        "xtuner.data.records",
        "xtuner.data.sources",
        "xtuner.data.text",
        "xtuner.engine.steps",
        "xtuner.launch",
        "xtuner.memory_estimate",
        "xtuner.tools.support",
    },
    "xtuner.model": {"xtuner.model.files"},
    "xtuner.tools": {
        "xtuner",
        "xtuner.cli",
        "xtuner.config",
        "xtuner.data.records",
        "xtuner.data.sources",
        "xtuner.data.store",
        "xtuner.data.text",
        "xtuner.engine",
        "xtuner.engine.checkpoints",
        "xtuner.engine.processes",
        "xtuner.evaluation",
        "xtuner.finetune",
        "xtuner.launch",
        "xtuner.memory_estimate",
        "xtuner.tools.model_converters",
        "xtuner.tools.support",
    },
    "xtuner.tools.model_converters": {
        "xtuner.config",
        "xtuner.data.sources",
        "xtuner.engine.checkpoints",
        "xtuner.model",
        "xtuner.model.files",
        "xtuner.tools.support",
    },
    "xtuner.tools.support": {
        "xtuner.cli",
        "xtuner.config",
        "xtuner.data.text",
        "xtuner.engine.steps",
        "xtuner.engine.strategies",
        "xtuner.launch",
        "xtuner.memory_estimate",
        "xtuner.model",
        "xtuner.model.files",
    },
}

Modules = Mapping[str, str]
"""Source by dotted name; a room's ``__init__`` has the room's name with ``.__init__``."""


def read_modules() -> dict[str, str]:
    """Returns all files of both packages."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8") for path in paths}


def file_of(name: str, modules: Modules) -> str | None:
    """Returns the file that `name` (a module, a room or what one of them offers) is of."""
    candidates = (name, f"{name}.__init__", parent(name), f"{parent(name)}.__init__")
    return next((candidate for candidate in candidates if candidate in modules), None)


def parent(name: str) -> str:
    """Returns all but the last part of a dotted name."""
    return name.rpartition(".")[0]


def room_of(file: str) -> str:
    """Returns the folder of a file; a module at xtuner's top is a room of its own."""
    return file if parent(file) == "xtuner" and not file.endswith("__init__") else parent(file)


def imported(module: str, source: str) -> Iterator[str]:
    """Yields the dotted name of each import, those in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def graph(modules: Modules) -> dict[str, set[str]]:
    """Returns the files that each file imports from."""
    return {
        module: {
            file
            for name in imported(module, source)
            if name.split(".")[0] in PACKAGES and (file := file_of(name, modules)) and file != module
        }
        for module, source in modules.items()
    }


def ways(modules: Modules) -> dict[str, set[str]]:
    """Returns the rooms that each room uses, EVERYWHERE left out."""
    found: dict[str, set[str]] = {}
    for file, others in graph(modules).items():
        rooms = {room_of(other) for other in others} - {room_of(file)} - EVERYWHERE
        found.setdefault(room_of(file), set()).update(rooms)
    return {room: others for room, others in found.items() if others}


def circle(modules: Modules) -> list[str]:
    """Returns the files of a circle; empty without one."""
    try:
        TopologicalSorter(graph(modules)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def private_uses(modules: Modules) -> list[str]:
    """Returns each private name that a file imports or takes as an attribute from a module of the packages."""
    found = []
    for module, source in modules.items():
        names = [name for name in imported(module, source) if name.split(".")[0] in PACKAGES]
        own = {name.rpartition(".")[2]: name for name in names if name in modules or f"{name}.__init__" in modules}
        found += [f"{module}: {name}" for name in names if any(map(is_private, name.split(".")))]
        found += [
            f"{module}: {own[node.value.id]}.{node.attr}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in own
            and is_private(node.attr)
        ]
    return found


def is_private(name: str) -> bool:
    """True for `_x`; not for `__x__`."""
    return name.startswith("_") and not name.endswith("__")


def crowded(modules: Modules) -> dict[str, int]:
    """Returns the folders that hold too many modules."""
    counts: dict[str, int] = {}
    for file in modules:
        if not file.endswith("__init__"):
            counts[parent(file)] = counts.get(parent(file), 0) + 1
    return {room: n for room, n in counts.items() if n > MOST_MODULES and room != ONE_MODULE_A_COMMAND}


def test_rooms_use_only_the_rooms_of_the_table():
    assert ways(read_modules()) == WAYS, "a new way is a decision: write it in the table; drop one that is not used"


def test_no_circle_of_files():
    assert circle(read_modules()) == []


def test_no_circle_of_rooms():
    TopologicalSorter(ways(read_modules())).prepare()


def test_no_private_name_of_another_file():
    assert private_uses(read_modules()) == []


def test_no_folder_is_crowded():
    assert crowded(read_modules()) == {}


PLANTED = {"mg_llava.__init__": "", "mg_llava.a.__init__": "", "mg_llava.a.x": "", "mg_llava.b.y": "", "xtuner.log": ""}


@pytest.mark.parametrize(
    "source",
    [
        "from mg_llava.b.y import f",
        "import mg_llava.b.y",
        "from mg_llava.b import y",
        "from ..b import y",
        "from ..b.y import f",
        "def f():\n    from mg_llava.b.y import f",
        "if TYPE_CHECKING:\n    from mg_llava.b.y import f",
    ],
)
def test_a_planted_way_and_a_planted_circle_are_seen(source):
    planted = {**PLANTED, "mg_llava.a.x": source}
    assert ways(planted) == {"mg_llava.a": {"mg_llava.b"}}
    assert circle(planted) == []
    assert circle({**planted, "mg_llava.b.y": "from mg_llava.a import x"})


@pytest.mark.parametrize(
    "source", ["from mg_llava.b.y import _f", "from mg_llava.b import _y", "from mg_llava.b import y\ny._f()"]
)
def test_a_planted_private_name_is_seen(source):
    assert private_uses({**PLANTED, "mg_llava.a.x": source})


@pytest.mark.parametrize("source", ["from xtuner.log import f", "import torch._dynamo", "from torch import _C"])
def test_what_is_allowed_is_not_taken_for_a_way(source):
    planted = {**PLANTED, "mg_llava.a.x": source}
    assert (ways(planted), circle(planted), private_uses(planted)) == ({}, [], [])


def test_a_crowded_folder_is_seen():
    modules = {f"mg_llava.a.m{number}": "" for number in range(MOST_MODULES)}
    assert crowded({**modules, "mg_llava.a.__init__": ""}) == {}
    assert crowded({**modules, "mg_llava.a.more": ""}) == {"mg_llava.a": MOST_MODULES + 1}
