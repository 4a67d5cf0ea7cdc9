"""Does a checkpoint fit the run that would go on from it? All that does not, at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, counted
from xtuner.log import get_logger
from xtuner.model.files.base import differences

_SPLIT_WEIGHTS = 3
_FORMER_OPTIMIZER, _FORMER_GROUPS = "AdamW", 2


def check_resumable(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Compares a checkpoint's facts with those of the run that would go on.

    Args:
        found: of the checkpoint: ``parameters`` (shape by name), ``base`` (what it stands on, with marks),
            ``global_batch``, ``order`` (of a sampler), ``zero_stage``, ``precision``, ``max_iters``; and, but in older
            ones, ``optimizer``, ``groups`` (names of the weights in each) and ``schedule``.
        expected: of the run.
        path: of the checkpoint, for messages.

    Raises:
        XTunerError: other trained or frozen weights, other samples to come, or another form of DeepSpeed's; the message
            names all of them.
    """
    problems = [
        *_other_parameters(found["parameters"], expected["parameters"]),
        *_other_frozen_weights(found.get("base"), expected["base"], path),
        *_other_optimizer(found, expected),
        *_other_samples(found, expected),
        *_other_form(found, expected),
    ]
    if problems:
        raise XTunerError(
            f"{path} does not fit this run:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\nResume with the config and options of that run, or start a new run from its weights: drop "
            f"--resume and add --cfg-options pretrained_pth={path}"
        )
    if found["max_iters"] != expected["max_iters"]:
        get_logger().warning(
            "%s followed a schedule of %d steps, this run has %d: the learning rate follows the new one from here.",
            path,
            found["max_iters"],
            expected["max_iters"],
        )
    if found.get("schedule", expected["schedule"]) != expected["schedule"]:
        get_logger().warning(
            "%s followed %s; the learning rate follows %s from here.", path, found["schedule"], expected["schedule"]
        )
    if found["precision"] != expected["precision"]:
        get_logger().warning(
            "%s was trained in %s, this run continues in %s.", path, found["precision"], expected["precision"]
        )


def _other_parameters(theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> list[str]:
    missing = sorted(set(ours) - set(theirs))
    surplus = sorted(set(theirs) - set(ours))
    shapes = [
        f"{n}: {theirs[n]}, in this run {ours[n]}" for n in sorted(set(ours) & set(theirs)) if theirs[n] != ours[n]
    ]
    return [
        f"another model: {who}{counted(len(names), what)}, e.g. {names[0]}"
        for who, what, names in (
            ("this run alone trains ", "weights", missing),
            ("that run alone trained ", "weights", surplus),
            ("", "weights of another shape", shapes),
        )
        if names
    ]


def _other_frozen_weights(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any], path: Path) -> list[str]:
    # checkpoints leave them out, so that other ones would change the model in silence
    if theirs is None:
        get_logger().warning("%s does not record its frozen weights, so they are not compared.", path)
        return []
    found = differences(dict(theirs), {part: facts["marks"] for part, facts in ours["parts"].items()})
    return [f"other frozen weights (pretrained_pth, llm_name_or_path, visual_encoder_...): {s}" for s in found.values()]


def _other_optimizer(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    theirs, ours = found.get("optimizer", _FORMER_OPTIMIZER), expected["optimizer"]
    if theirs != ours:
        return [f"the optimizer {theirs}, this run has {ours}: its state is another one"]
    if "groups" not in found:
        # before rates by part: all weights, or those that decay and those that do not
        other = len(expected["groups"]) > _FORMER_GROUPS
    else:
        other = found["groups"] != expected["groups"]
    why = "its state is kept by group. Keep the entries of lr, weight_decay and layer_decay (their numbers may change)"
    return [f"weights grouped otherwise for the optimizer: {why}"] if other else []


def _other_samples(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    why = "the run would use samples twice or never"
    if found["global_batch"] != expected["global_batch"]:
        return [
            f"{found['global_batch']} samples per optimizer step, this run has {expected['global_batch']}: {why}. Keep "
            "the product processes x batch_size x accumulative_counts"
        ]
    theirs, ours = found["order"], expected["order"]
    problems = [
        f"{label} {theirs[key]}, this run has {ours[key]}: {why}"
        for key, label in (("seed", "seed"), ("samples", "samples in the data:"))
        if theirs[key] != ours[key]
    ]
    if not problems and theirs["checksum"] != ours["checksum"]:
        problems.append(f"another sample order: the data's lengths or the sampler's settings differ: {why}")
    return problems


def _other_form(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    theirs, ours = found["zero_stage"], expected["zero_stage"]
    if (theirs == _SPLIT_WEIGHTS) != (ours == _SPLIT_WEIGHTS):
        return [f"ZeRO stage {theirs}, this run has {ours}: the file formats differ"]
    if ours and found["precision"] != expected["precision"]:
        return [
            f"precision {found['precision']} under DeepSpeed, this run has {expected['precision']}: the files differ"
        ]
    return []
