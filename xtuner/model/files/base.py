"""What a checkpoint stands on: the weights that its run used and did not save, by place and marks.

A checkpoint's ``base`` is made of plain values: ``checkpoint`` (None, or ``name``, ``place`` and ``beside``, the place
as seen from the run's folder) and ``parts``, for each part that was frozen or had adapters ``name``, ``place``,
``from_checkpoint`` (its weights are in ``checkpoint``, or in what that stands on) and ``marks``. ``new_parts``,
if there, are parts that the checkpoint's model had none of: who starts from it starts them anew.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.files.frozen import same_weights
from xtuner.model.files.pickles import load_pickle
from xtuner.model.files.weight_files import Weight, open_weights, pointed_at

TRAINER_FILE = "trainer.pt"
"""What a run adds to a DeepSpeed checkpoint's folder."""

_ADAPTER = ".lora_"
_PLACES = ("name_or_path", "path")
_DEPTH = 16
Base = dict[str, Any]
Renaming = Callable[[Mapping[str, Weight]], dict[str, Weight]]


class Opened(NamedTuple):
    """A checkpoint's weights together with those of the checkpoints that it stands on.

    Attributes:
        weights: by full name.
        base: what the checkpoint names; None where it names none.
        held: names within each part that the checkpoint holds itself.
        partial: parts that were trained in some of their weights: the others are in the parts' own files.
    """

    weights: dict[str, Weight]
    base: Base | None
    held: dict[str, set[str]]
    partial: set[str]


def describe_base(
    model_node: Mapping[str, Any], checkpoint: str | None, loaded: frozenset[str], parts: list[str], run: Path
) -> Base:
    """Returns a run's base, but for the marks.

    Args:
        model_node: resolved node of the model; its parts' nodes name what they are read from.
        checkpoint: what the run's model was started from.
        loaded: parts whose weights came from it.
        parts: that the run's checkpoints leave out, wholly or but for adapters.
        run: the run's folder.
    """
    found = {}
    for part in parts:
        node = model_node.get(part)
        places = [node[key] for key in _PLACES if node.get(key)] if isinstance(node, Mapping) else []
        found[part] = {**_place(places[0] if places else ""), "from_checkpoint": part in loaded}
    stands = None
    if checkpoint is not None:
        # a later run may point elsewhere
        checkpoint = str(pointed_at(checkpoint))
        stands = {**_place(checkpoint), "beside": os.path.relpath(checkpoint, run)}
    return {"checkpoint": stands, "parts": found}


def _place(name: str) -> dict[str, str]:
    path = Path(str(name))
    return {"name": path.name or str(name), "place": str(path.resolve()) if name and path.exists() else str(name)}


def read_base(path: str | Path) -> Base | None:
    """Returns the base that a checkpoint names; None where it names none: an older one, or weights alone."""
    path = Path(path)
    if path.is_dir():
        latest = path / "latest"
        tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
        file = path / tag / TRAINER_FILE
        content = load_pickle(file) if file.is_file() else {}
    else:
        content = load_pickle(path, mapped=True) if path.suffix != ".safetensors" and zipfile.is_zipfile(path) else {}
    if not isinstance(content, Mapping):
        return None
    trainer = content.get("trainer")
    base = trainer.get("base") if isinstance(trainer, Mapping) else content.get("base")
    return base if isinstance(base, Mapping) and "parts" in base else None  # type: ignore[return-value]


def open_on_base(
    path: str | Path, rename: Renaming, moved: str | Path | None = None, configured: str | Path | None = None
) -> Opened:
    """Finds a checkpoint's weights together with those that it stands on, in whatever checkpoints these are.

    Args:
        path: anything that `open_weights` reads.
        rename: brings weights under the model's names.
        moved: where the checkpoint that it stands on is now, if not where it was.
        configured: ``pretrained_pth`` of the config, another place to look at.

    Raises:
        XTunerError: nothing is at `moved`, or the checkpoint stands on none.
    """
    return _open(Path(path), rename, moved, configured, _DEPTH)


def _open(path: Path, rename: Renaming, moved: str | Path | None, configured: str | Path | None, depth: int) -> Opened:
    path = pointed_at(path)
    own = rename(open_weights(path))
    held: dict[str, set[str]] = {}
    for name in own:
        part, _, inner = name.partition(".")
        held.setdefault(part, set()).add(inner)
    base = read_base(path)
    partial = set() if base is None else {part for part in base["parts"] if part in held}
    if base is None:
        source = moved or (configured if configured and Path(configured).exists() else None)
        _say_unknown(path, own, source)
        wanted = None
    else:
        wanted = {part for part, facts in base["parts"].items() if facts["from_checkpoint"]}
        source = _find_base(path, base, wanted, moved, configured)
    if source is None or pointed_at(source).resolve() == path.resolve():
        return Opened(own, base, held, partial)
    if not depth:
        raise XTunerError(f"'{path}' builds on checkpoints that build on one another in a circle: train it again.")
    below = _open(Path(source), rename, None, None, depth - 1)
    # a part of which the checkpoint holds more than adapters is complete in it
    complete = {part for name in own for part in [name.partition(".")[0]] if _ADAPTER not in name}

    def taken(part: str) -> bool:
        return part not in complete if wanted is None else part in wanted

    kept = {name: weight for name, weight in below.weights.items() if taken(name.partition(".")[0])}
    partial = {part for part in partial if wanted is None or part not in wanted}
    return Opened({**kept, **own}, base, held, partial | {part for part in below.partial if taken(part)})


def _find_base(
    path: Path, base: Base, wanted: set[str], moved: str | Path | None, configured: str | Path | None
) -> Path | None:
    """Returns the place of the checkpoint that holds the parts `wanted`; None where there are none."""
    if not wanted:
        if moved is not None:
            places = ", ".join(f"{part} from {facts['place']}" for part, facts in base["parts"].items())
            raise XTunerError(
                f"--base {moved}: '{path}' builds on no checkpoint but on {places}: leave --base out; where a folder "
                "has moved, set its place by --cfg-options, e.g. llm_name_or_path=PATH."
            )
        return None
    if moved is not None:
        if not Path(moved).exists():
            raise XTunerError(f"--base {moved}: there is no such checkpoint.")
        return Path(moved)
    stands = base["checkpoint"]
    for place in (stands["place"], path.resolve().parent / stands["beside"], configured):
        if place and Path(place).exists():
            return Path(place)
    # the folders of the config may hold the same: whoever loads compares the marks
    get_logger().warning(
        "%s builds on the checkpoint %s, which holds its %s; it was at '%s' and is gone.",
        *(path, stands["name"], ", ".join(sorted(wanted)), stands["place"]),
    )
    return None


def _say_unknown(path: Path, own: Mapping[str, Weight], source: str | Path | None) -> None:
    """Reports a checkpoint that does not say what its adapters, or the language model that it lacks, stand on."""
    adapted = sorted({name.partition(".")[0] for name in own if _ADAPTER in name})
    lacking = adapted or ([] if any(name.startswith("llm.") for name in own) else ["llm"])
    if lacking:
        where = "what the config names" if source is None else f"'{source}'"
        get_logger().warning(
            "%s does not record which weights its %s was trained on, so %s is used without a check.",
            *(path, ", ".join(lacking), where),
        )


def differences(base: Base, marks: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Returns for each part that is not what a checkpoint stands on one sentence of what was expected and where.

    Args:
        base: of the checkpoint.
        marks: of the parts as they are here; parts that are absent or None are not compared.
    """
    found: dict[str, str] = {}
    for part, facts in base["parts"].items():
        here, there = marks.get(part), facts.get("marks")
        if here is None or there is None:
            if part in marks:
                get_logger().warning("%s: nothing was recorded to compare its weights by.", part)
            continue
        same = same_weights(there, here)
        if same is None:
            get_logger().warning("%s: %s and %s cannot be compared.", part, there["formats"], here["formats"])
        if same is not False:
            continue
        size = "" if there["numbers"] == here["numbers"] else f" ({there['numbers']} numbers, here {here['numbers']})"
        stands = base["checkpoint"] if facts["from_checkpoint"] else facts
        place = f"'{stands['place']}'" + ("" if Path(stands["place"]).exists() else ", where nothing is now")
        found[part] = f"{part}: other weights than those of {stands['name']}{size}, expected at {place}"
    return found


def refuse(source: str | Path, found: Mapping[str, str]) -> XTunerError:
    """Returns the error for `differences`."""
    lines = "\n".join(f"  - {line}" for line in found.values())
    return XTunerError(
        f"'{source}' builds on other weights than those found here:\n{lines}\nGive the ones that it was trained on: "
        "--base PATH for a checkpoint, else --cfg-options llm_name_or_path=PATH, visual_encoder_name_or_path=PATH, "
        "visual_encoder_aux_path=PATH."
    )
