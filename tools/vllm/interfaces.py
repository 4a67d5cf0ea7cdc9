"""Compares what mg_llava/serving/vllm uses of vLLM between an installed vLLM and the wheel of another version.

    python tools/vllm/interfaces.py VLLM_FOLDER WHEEL      e.g. .../site-packages/vllm vllm-0.33.0-….whl

Reads sources only: nothing of either is imported. Prints each name that is absent, and each function, method or field
list that differs; the exit code is 1 where a name is absent.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOM = Path(__file__).resolve().parents[2] / "mg_llava" / "serving" / "vllm"
Read = Callable[[str], str | None]

METHODS = {
    "vllm.multimodal.processing.processor": {
        "BaseMultiModalProcessor": [
            "__init__",
            "apply",
            "_call_hf_processor",
            "_get_mm_fields_config",
            "_get_prompt_updates",
        ],
        "PromptReplacement": ["content"],
    },
    "vllm.multimodal.processing.context": {
        "BaseProcessingInfo": [
            "get_hf_config",
            "get_hf_processor",
            "get_supported_mm_limits",
            "get_supported_mm_processor_kwargs",
            "get_data_parser",
            "get_mm_max_tokens_per_item",
        ],
        "InputProcessingContext": ["get_hf_config", "get_hf_processor"],
    },
    "vllm.multimodal.processing.dummy_inputs": {"BaseDummyInputsBuilder": ["get_dummy_text", "get_dummy_mm_data"]},
    "vllm.multimodal.processing.inputs": {"ProcessorInputs": ["get_mm_hashes"]},
    "vllm.multimodal.parse": {
        "ModalityDataItems": [
            "__init__",
            "get_count",
            "get",
            "get_item_for_hash",
            "get_processor_data",
            "get_passthrough_data",
        ],
        "MultiModalDataParser": ["__init__", "_parse_image_data"],
    },
    "vllm.multimodal.inputs": {"MultiModalFieldConfig": ["batched", "flat_from_sizes"]},
    "vllm.multimodal.media.connector": {"MediaConnector": ["fetch_image", "fetch_image_async"]},
    "vllm.model_executor.models.interfaces": {
        "SupportsMultiModal": [
            "get_placeholder_str",
            "embed_multimodal",
            "configure_mm_token_handling",
            "_mark_tower_model",
            "_mark_language_model",
        ]
    },
    "vllm.model_executor.models.utils": {"AutoWeightsLoader": ["__init__", "load_weights"], "WeightsMapper": []},
    "vllm.model_executor.models.module_mapping": {"MultiModelKeys": ["from_string_field"]},
    "vllm.model_executor.models.config": {"VerifyAndUpdateConfig": ["verify_and_update_model_config"]},
    "vllm.tokenizers.registry": {"_TokenizerRegistry": ["register"]},
    "vllm.renderers.registry": {"RendererRegistry": ["register"]},
    "vllm.tokenizers.hf": {"CachedHfTokenizer": ["from_pretrained"]},
    "vllm.renderers.base": {"BaseRenderer": ["_tokenize_prompt", "_process_multimodal"]},
}
"""What is overridden or called, by the class that has it."""


def used_names() -> Iterator[tuple[str, str]]:
    """Yields (module, name) of every import of vLLM in the room."""
    for file in sorted(ROOM.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((str(node.module), alias.name) for alias in node.names)


def tree_of(read: Read, module: str) -> ast.Module | None:
    """Parses a module's file; None where there is none."""
    path = module.removeprefix("vllm").lstrip(".").replace(".", "/")
    source = read(f"{path}.py") or read(f"{path}/__init__.py")
    return None if source is None else ast.parse(source)


def defines(tree: ast.Module, name: str) -> bool:
    """True where a module has the name: defined, assigned, imported or handed on."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any(name in (a.asname, a.name) for a in node.names):
            return True
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return True
    return False


def shapes(tree: ast.Module | None, kind: str, methods: list[str]) -> dict[str, str]:
    """Signatures of a class's methods, and its fields, as source."""
    found = {method: "absent" for method in methods}
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == kind:
            fields = [ast.unparse(item.target) for item in node.body if isinstance(item, ast.AnnAssign)]
            found["its fields"] = ", ".join(fields)
            for item in node.body:
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and item.name in methods:
                    found[item.name] = ast.unparse(item.args)
    return found


def main(folder: str, wheel: str) -> int:
    """Prints the differences; returns the exit code."""

    def here(path: str) -> str | None:
        file = Path(folder) / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    archive = zipfile.ZipFile(wheel)
    members = set(archive.namelist())

    def there(path: str) -> str | None:
        return archive.read(f"vllm/{path}").decode() if f"vllm/{path}" in members else None

    absent = compared = 0
    for module, name in sorted(set(used_names())):
        compared += 1
        for place, read in (("installed", here), ("the wheel", there)):
            tree = tree_of(read, module)
            if tree is None or not defines(tree, name):
                absent += 1
                print(f"{module}.{name} is absent from {place}")
    for module, classes in METHODS.items():
        for kind, methods in classes.items():
            one, other = (shapes(tree_of(read, module), kind, methods) for read in (here, there))
            compared += len(one)
            absent += sum(shape == "absent" for shape in (*one.values(), *other.values()))
            for method in one:
                if one[method] != other.get(method):
                    print(f"{module}.{kind}.{method}\n  installed: {one[method]}\n  the wheel: {other.get(method)}")
    print(f"{compared} names, signatures and lists of fields compared, {absent} absent")
    return 1 if absent else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
