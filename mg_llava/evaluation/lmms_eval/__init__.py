"""Our model in other evaluation tools; each needs its tool, an optional extra: ``pip install -e '.[lmms]'``."""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """Returns what lmms-eval's entry-point group ``lmms_eval.models`` wants: the model's name and class."""
    # only lmms-eval calls this
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mg_llava", simple_class_path="mg_llava.evaluation.lmms_eval.model.MGLLaVALmms")
