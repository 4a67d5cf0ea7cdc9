"""Naming some of a model's weights: by part, by a place within a part, or by a regular expression."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from xtuner.errors import XTunerError, nearest

_PLACE = re.compile(r"[\w.-]+")
_NUMBERS = re.compile(r"(\d*)-(\d*)")


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Returns those of `names` that `pattern` means, in their order.

    Args:
        pattern: a part (``low_res_encoder``); a part and a place in it, which may leave out what is above
            (``low_res_encoder.layers.20-``: layers 20 and up; ``-3`` and ``4-7`` also are numbers); or, with any sign
            that no name has, a regular expression that is searched in the full name.
        names: full names of weights, ``<part>.<name within it>``.

    Raises:
        XTunerError: a regular expression that cannot be read.

    Examples:
        >>> names = ["head.layers.0.weight", "head.layers.1.weight", "head.norm.bias"]
        >>> matching("head.layers.1-", names)
        ['head.layers.1.weight']
        >>> matching(r"norm|layers\\.0", names)
        ['head.layers.0.weight', 'head.norm.bias']
    """
    if not _PLACE.fullmatch(pattern):
        try:
            searched = re.compile(pattern)
        except re.error as error:
            raise XTunerError(f"the regular expression '{pattern}' cannot be read: {error}.") from error
        return [name for name in names if searched.search(name)]
    part, *place = pattern.split(".")
    found = []
    for name in names:
        first, *rest = name.split(".")
        if first == part and _holds(rest, place):
            found.append(name)
    return found


def _holds(segments: Sequence[str], place: Sequence[str]) -> bool:
    """True where the segments of `place` stand one after the other somewhere in `segments`."""
    starts = range(len(segments) - len(place) + 1)
    return any(all(map(_is, segments[start:], place)) for start in starts)


def _is(segment: str, wanted: str) -> bool:
    numbers = _NUMBERS.fullmatch(wanted)
    if numbers is None or not any(numbers.groups()):
        return segment == wanted
    first, last = numbers.groups()
    return segment.isdigit() and int(first or 0) <= int(segment) and (not last or int(segment) <= int(last))


def choose(
    selectors: Collection[str], part_names: Sequence[str], weights: Mapping[str, Sequence[str]], kind: str
) -> dict[str, frozenset[str] | None]:
    """Returns the parts that `selectors` mean: with None where all of a part is meant, else with some names within it.

    Args:
        selectors: parts and patterns, see `matching`.
        part_names: that a model of this kind may have; one that is named whole and absent is skipped.
        weights: names within each part that this model has.
        kind: of the model, for messages.

    Raises:
        XTunerError: a name that is no part, or a pattern that matches nothing or everything.
    """
    if isinstance(selectors, str):
        raise XTunerError(f"trainable is the text '{selectors}': expected a list, trainable=['{selectors}'].")
    names = [f"{part}.{name}" for part, inner in weights.items() for name in inner]
    found: dict[str, set[str]] = {}
    for selector in selectors:
        if selector in part_names:
            found.setdefault(selector, set()).update(weights.get(selector, ()))
            continue
        hits = match_some(selector, names, part_names, "trainable", kind)
        if len(hits) == len(names) and len(weights) > 1:
            raise XTunerError(
                f"'{selector}' in trainable matches every weight of the model: name the parts to train, of "
                f"{', '.join(weights)}."
            )
        for hit in hits:
            part, _, inner = hit.partition(".")
            found.setdefault(part, set()).add(inner)
    return {
        part: None if len(found[part]) == len(inner) else frozenset(found[part])
        for part, inner in weights.items()
        if part in found
    }


def match_some(selector: str, names: Sequence[str], part_names: Collection[str], setting: str, kind: str) -> list[str]:
    """`matching`, where something has to match.

    Args:
        selector: a part or a pattern.
        names: full names of weights.
        part_names: parts that the model may have.
        setting: where `selector` stands, for messages.
        kind: of the model, for messages.

    Raises:
        XTunerError: nothing matches; the message says what would.
    """
    hits = matching(selector, names)
    if hits:
        return hits
    part = selector.partition(".")[0]
    if _PLACE.fullmatch(selector) and part not in part_names:
        raise XTunerError(
            f"'{selector}' in {setting} is not a part of {kind}: expected one or more of "
            f"{', '.join(part_names)}, or a pattern of weights in one.{nearest(part, part_names)}"
        )
    inside = [name for name in names if name.startswith(f"{part}.")]
    if part in part_names and not inside:
        raise XTunerError(f"'{selector}' in {setting} matches nothing: this model has no {part}.")
    examples = inside or names
    shown = f"names run from '{examples[0]}' to '{examples[-1]}'" if examples else "there are none"
    raise XTunerError(f"'{selector}' in {setting} matches no weight: {shown}.")
