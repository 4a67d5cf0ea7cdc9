"""Names from before a move: they load with one warning; a name that never was gets the nearest."""

from __future__ import annotations

import json
import logging
import pkgutil

import pytest
import torch

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.moved import MOVED as MODEL_MOVED
from xtuner import registry
from xtuner.config import dump_config, load_config, parse_overrides
from xtuner.errors import ProblemsError, XTunerError
from xtuner.log import get_logger
from xtuner.moved import MOVED as FRAMEWORK_MOVED
from xtuner.registry import current_types, import_object

# as the program dumped and exported them before the move
DUMPED = """
box_iou_threshold = 0.2
box_limit_mode = 'per_image'
box_limit_num = 100
evaluation = dict(
    batch_size=2,
    boxes=dict(
        iou_threshold='${box_iou_threshold}',
        limit_mode='${box_limit_mode}',
        limit_num='${box_limit_num}',
        type='mg_llava.boxes.BoxSelection'),
    image_processor=dict(name_or_path='clip', type='mg_llava.preprocess.ImageProcessor'),
    num_workers=0,
    prompt_template='vicuna',
    tokenizer=dict(name_or_path='tokenizer', type='xtuner.data.tokenizer.build_tokenizer'),
    type='mg_llava.evaluation.EvaluationRunner')
"""
PARTS = {
    "type": "mg_llava.model.MGLLaVA",
    "llm": {"type": "xtuner.model.llm.build_llm"},
    "low_res_encoder": {"type": "mg_llava.encoders.LowResEncoder"},
    "high_res_encoder": {"type": "mg_llava.encoders.HighResEncoder", "image_size": 64},
    "fusion": {"type": "mg_llava.fusion.ConvGateFusion"},
    "projector": {"type": "xtuner.model.projector.MLPProjector"},
    "object_encoder": {"type": "mg_llava.objects.ObjectEncoder"},
}


@pytest.fixture
def warnings(monkeypatch):
    """The texts of the warnings, in a process that has warned of nothing yet."""
    monkeypatch.setattr(registry, "_warned_of", set())
    texts: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            texts.append(record.getMessage())

    handler = Keep(logging.WARNING)
    get_logger().addHandler(handler)
    yield texts
    get_logger().removeHandler(handler)


@pytest.mark.parametrize("new", sorted({*MODEL_MOVED.values(), *FRAMEWORK_MOVED.values()}))
def test_each_new_place_is_there(new):
    if new != "mg_llava.evaluation.lmms_eval.model":  # needs lmms-eval
        assert pkgutil.resolve_name(new) is not None


@pytest.mark.parametrize(
    ("old", "module"),
    [
        ("mg_llava.dataset.MGLLaVADataset", "mg_llava.data.dataset"),
        ("mg_llava.evaluation.tables.DocVQA", "mg_llava.evaluation.benchmarks.kinds.open_tables"),
        ("mg_llava.evaluation.yes_no.YesNo", "mg_llava.evaluation.benchmarks.kinds.yes_no"),
        ("xtuner.data.samplers.ShuffledBatchSampler", "xtuner.data.batches.samplers"),
    ],
)
def test_an_old_name_gives_the_moved_object_with_one_warning(warnings, old, module):
    assert import_object(old) is import_object(old)
    assert import_object(old).__module__ == module
    assert len(warnings) == 1
    assert f"{old} → {module}" in warnings[0]


@pytest.mark.parametrize(
    "name",
    [
        "mg_llava.model.MGLLaVA",
        "mg_llava.model.encoders.LowResEncoder",
        "mg_llava.boxes.nms_per_class",
        "mg_llava.fusion.ConvGateFusion",
        "mg_llava.objects.pool_boxes",
        "xtuner.data.records.records.read_records",
        "torch.nn.Linear.forward",
    ],
)
def test_a_name_that_still_holds_is_kept_without_a_warning(warnings, name):
    assert current_types([{"type": name}]) == [{"type": name}]
    assert warnings == []


def test_a_dumped_config_of_before(tmp_path, warnings):
    (tmp_path / "old.py").write_text(DUMPED)
    cfg = load_config(tmp_path / "old.py")
    assert cfg.evaluation.image_processor.type == "mg_llava.pictures.preprocess.ImageProcessor"
    assert cfg.evaluation.tokenizer.type == "xtuner.data.text.tokenizer.build_tokenizer"
    assert len(warnings) == 1
    assert str(tmp_path / "old.py") in warnings[0]
    dump_config(cfg, tmp_path / "new.py")
    registry._warned_of.clear()
    assert load_config(tmp_path / "new.py").evaluation == cfg.evaluation
    assert len(warnings) == 1, "a new dump names the new places"


def test_imports_of_a_written_config_and_overrides(tmp_path, warnings):
    (tmp_path / "mine.py").write_text(
        "from mg_llava.preprocess import ImageProcessor\nfrom mg_llava.boxes import BoxSelection\n"
        "model = dict(type=ImageProcessor, image_size=32)\nboxes = dict(type=BoxSelection)\n"
    )
    overrides = parse_overrides(["boxes.type=mg_llava.preprocess.ImageProcessor", "boxes.image_size=64"])
    cfg = load_config(tmp_path / "mine.py", overrides, check=False)
    assert cfg.model.type == cfg.boxes.type == "mg_llava.pictures.preprocess.ImageProcessor"
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mg_llava.data.MGLLaVADatset", "mg_llava.MGLLaVADataset"),
        ("mg_llava.nowhere.EvaluationRunner", "mg_llava.evaluation.EvaluationRunner"),
        ("mg_lava.model.MGLLaVA", "mg_llava"),
        ("xtuner.modl.MLPProjector", "xtuner.model.MLPProjector"),
    ],
)
def test_a_name_that_never_was(tmp_path, warnings, name, hint):
    with pytest.raises(XTunerError, match=f"Did you mean '{hint}'"):
        import_object(name)
    (tmp_path / "typo.py").write_text(f"model = dict(type='{name}')\n")
    with pytest.raises(ProblemsError, match=f"Did you mean '{hint}'"):
        load_config(tmp_path / "typo.py")
    assert warnings == []


def test_a_folder_of_before(tmp_path, warnings):
    values = {
        "parts": PARTS,
        "text_config": {"model_type": "llama"},
        "vision_config": {"hidden_size": 8, "num_attention_heads": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mg_llava", "format_version": 2, **values}))
    config = MGLLaVAConfig.from_pretrained(tmp_path)
    config.check(str(tmp_path))
    assert config.parts["low_res_encoder"]["type"] == "mg_llava.model.encoders.LowResEncoder"
    assert config.parts["high_res_encoder"] == {"type": "mg_llava.model.encoders.HighResEncoder", "image_size": 64}
    assert len(warnings) == 1
    for part in config.parts.values():
        import_object(part if isinstance(part, str) else part["type"])


def test_the_thin_re_exports_are_the_same_objects():
    import mg_llava.fusion
    import mg_llava.model
    import mg_llava.objects

    assert mg_llava.fusion.ConvGateFusion is mg_llava.model.ConvGateFusion
    assert mg_llava.objects.pool_boxes is mg_llava.model.pool_boxes
    assert isinstance(mg_llava.fusion.ConvGateFusion(4, 4), torch.nn.Module)
