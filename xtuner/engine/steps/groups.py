"""Which weights learn at which rate: parameter groups by part, by pattern and by layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import nn

from xtuner.errors import ProblemsError, XTunerError
from xtuner.model.selection import match_some, matching

DEFAULT = "default"
"""The entry of a setting by part that stands for all weights that no other entry names."""

Rates = float | Mapping[str, float]
_LAYER = re.compile(r"(?:^|.*\.)(?:layers?|blocks?|stages|h|resblocks)\.\d+(?=\.)")


@dataclass
class Group:
    """Trained weights that are updated alike.

    Attributes:
        label: entry of ``lr`` that they follow.
        layer: from 0, the layer of their part, where the rate falls from layer to layer; None where it does not.
        lr: peak learning rate.
        weight_decay: as the optimizer takes it.
        names: full names, in the model's order.
        weights: in the same order.
    """

    label: str
    layer: int | None
    lr: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)


def parameter_groups(
    model: nn.Module,
    lr: Rates,
    weight_decay: Rates = 0.0,
    layer_decay: Mapping[str, float] | None = None,
    decay_norms_and_biases: bool = False,
) -> list[Group]:
    """Sorts the trained weights of `model` into groups: ``default``, parts, patterns; in each those that decay first.

    Args:
        model: its parts are those that a `TrainableParts` has, else its children.
        lr, weight_decay: a number for all; or by part and by pattern, see `xtuner.model.selection.matching`, with
            ``default`` for all else. A pattern goes before a part, two patterns may not name the same weight. Their
            order has no meaning: a dumped config has them sorted.
        layer_decay: by part: the rate of each layer is that of the layer above times this number. The topmost layer
            has the part's rate; what stands before the first layer counts as one more layer.
        decay_norms_and_biases: whether weight decay acts on weights with one dimension too.

    Raises:
        XTunerError: nothing is trained.
        ProblemsError: entries for what is absent, frozen or not there, without effect or out of range; all of them.
    """
    known = _Known(model)
    if not known.trained:
        raise XTunerError("No parameter of the model is trainable: name at least one part in the model's 'trainable'.")
    problems: list[str] = []
    rates = _by_weight("lr", lr, known, problems)
    decays = _by_weight("weight_decay", weight_decay, known, problems)
    layers = _layers_by_weight(layer_decay or {}, known, problems)
    if problems:
        raise ProblemsError("the settings of the optimizer", problems)
    found: dict[tuple[Any, ...], Group] = {}
    for name, weight in known.trained.items():
        place, label, rate = rates[name]
        _, _, decay = decays[name]
        # ZeRO-3 leaves a partitioned weight with one dimension and its true shape in ds_shape
        if len(getattr(weight, "ds_shape", weight.shape)) <= 1 and not decay_norms_and_biases:
            decay = 0.0
        layer, share = layers.get(name, (None, 1.0))
        key = (place, -1 if layer is None else layer, decay == 0, decay)
        group = found.setdefault(key, Group(label, layer, rate * share, decay))
        group.names.append(name)
        group.weights.append(weight)
    return [found[key] for key in sorted(found)]


class _Known:
    """The weights of a model by full name, trained ones apart, and the names of its parts."""

    def __init__(self, model: nn.Module) -> None:
        weights = dict(model.named_parameters())
        self.names = list(weights)
        self.trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        present = dict.fromkeys(name.partition(".")[0] for name in self.names)
        self.parts: Sequence[str] = getattr(model, "part_names", tuple(present))
        self.present: Collection[str] = present
        self.kind = type(model).__name__

    def hits(self, entry: str, setting: str) -> list[str]:
        """Names of the trained weights that an entry means.

        Raises:
            XTunerError: there are none, or an entry that is no part means all of them.
        """
        if entry in self.parts and entry not in self.present:
            raise XTunerError(f"{setting} names {entry}, which this model does not have: remove the entry.")
        found = matching(entry, list(self.trained))
        if not found:
            match_some(entry, self.names, self.parts, setting, self.kind)
            raise XTunerError(f"{setting} names {entry}, which is frozen: add it to trainable, or remove the entry.")
        if len(found) == len(self.trained) and entry not in self.parts:
            raise XTunerError(f"'{entry}' in {setting} matches every trained weight: set {DEFAULT} instead.")
        return found


def _by_weight(setting: str, value: Rates, known: _Known, problems: list[str]) -> dict[str, tuple[int, str, float]]:
    """Returns for each trained weight the place and name of the entry that counts for it, and its number."""
    if not isinstance(value, Mapping):
        value = {DEFAULT: value}
    for entry, number in value.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < float("inf"):
            problems.append(f"{setting} of {entry} is {number!r}: expected a number, 0 or more.")
    parts = [part for part in known.parts if part in value]
    entries = [*parts, *sorted(entry for entry in value if entry not in (DEFAULT, *parts))]
    found: dict[str, tuple[int, str, float]] = {}
    if DEFAULT in value:
        found = dict.fromkeys(known.trained, (0, DEFAULT, value[DEFAULT]))
    hits: dict[str, list[str]] = {}
    for place, entry in enumerate(entries, start=1):
        try:
            hits[entry] = known.hits(entry, setting)
        except XTunerError as error:
            problems.append(str(error))
            continue
        twice = next((name for name in hits[entry] if name in found and found[name][0] > len(parts)), None)
        if twice is not None:
            problems.append(f"{setting}: both '{found[twice][1]}' and '{entry}' match {twice}. Keep them apart.")
        found.update(dict.fromkeys(hits[entry], (place, entry, value[entry])))
    for part in parts:
        if all(found[name][1] != part for name in hits.get(part, ())) and part in hits:
            problems.append(f"{setting} of {part} has no effect: patterns name all its weights. Remove the entry.")
    without = [name for name in known.trained if name not in found]
    if without and len(hits) == len(entries):
        problems.append(f"{setting} says nothing of {without[0]}: add {DEFAULT}.")
    return found


def _layers_by_weight(
    settings: Mapping[str, float], known: _Known, problems: list[str]
) -> dict[str, tuple[int, float]]:
    """Returns the layer of each trained weight of the parts in `settings`, and the share of the rate it has."""
    found: dict[str, tuple[int, float]] = {}
    for part, decay in settings.items():
        if isinstance(decay, bool) or not isinstance(decay, Real) or not 0 < decay <= 1:
            problems.append(f"layer_decay of {part} is {decay!r}: expected a number above 0 and at most 1.")
        if part not in known.parts:
            problems.append(f"layer_decay names {part}: expected a part, of {', '.join(known.parts)}.")
            continue
        try:
            trained = known.hits(part, "layer_decay")
        except XTunerError as error:
            problems.append(str(error))
            continue
        layers = layer_numbers([name for name in known.names if name.startswith(f"{part}.")])
        top = max(layers.values())
        if not top:
            problems.append(f"layer_decay names {part}, which has no layers by name: remove the entry.")
        found |= {name: (layers[name], float(decay) ** (top - layers[name])) for name in trained}
    return found


def layer_numbers(names: Sequence[str]) -> dict[str, int]:
    """Returns the layer of each weight of a part: 0 before the first layer, then 1 and up.

    Layers are the innermost numbered modules that are called so (layers, blocks, ...), in the model's order. What
    leads into a stage belongs to its first block; what follows the last layer belongs to it.

    Args:
        names: of all weights of the part, in the model's order.

    Examples:
        >>> layer_numbers(["stem.0.w", "stages.0.blocks.0.w", "stages.1.downsample.w", "stages.1.blocks.0.w", "norm.w"])
        {'stem.0.w': 0, 'stages.0.blocks.0.w': 1, 'stages.1.downsample.w': 2, 'stages.1.blocks.0.w': 2, 'norm.w': 2}
    """
    innermost = {name: match.group() for name in names if (match := _LAYER.match(name))}
    layers = dict.fromkeys(innermost.values())
    # a stage that has blocks of its own is not a layer
    blocks = [layer for layer in layers if not any(other.startswith(f"{layer}.") for other in layers)]
    number = {layer: index + 1 for index, layer in enumerate(blocks)}
    found: dict[str, int] = {}
    last = 0
    for name in names:
        layer = innermost.get(name)
        if layer in number:
            last = number[layer]
        elif layer is not None:
            inside = [number[block] for block in blocks if block.startswith(f"{layer}.")]
            # before the stage's first block it leads into it
            last = max(last, inside[0])
        found[name] = last
    return found
