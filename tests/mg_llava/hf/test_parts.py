"""Parts built from the config.json of an exported folder alone."""

from __future__ import annotations

import torch

from mg_llava.hf import MGLLaVAConfig, MGLLaVAForConditionalGeneration
from mg_llava.hf.parts import build_vision
from tests.mg_llava.hf.conftest import Exported
from tests.tiny_parts import HIGH_SIZE

BOXES = [[4.0, 4.0, 40.0, 30.0], [0.0, 0.0, 64.0, 64.0], [10.0, 20.0, 12.0, 60.0]]


def test_a_folder_s_config_alone_builds_it(exported: Exported, model: MGLLaVAForConditionalGeneration) -> None:
    config = MGLLaVAConfig.from_pretrained(exported.folder)
    config.check(str(exported.folder))
    vision = build_vision(config)
    vision.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("llm.")})
    high, low = torch.rand(1, 3, HIGH_SIZE, HIGH_SIZE), torch.rand(1, 3, vision.low_res_size, vision.low_res_size)
    with torch.no_grad():
        found = vision.eval().encode(high, low, [torch.tensor(BOXES)])
        wanted = model.core.vision.encode(high, low, [torch.tensor(BOXES)])
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]) and len(found[1]) == len(BOXES)


def test_all_parts_in_one_number_format(exported: Exported) -> None:
    vision = build_vision(MGLLaVAConfig.from_pretrained(exported.folder), torch.bfloat16)
    assert {weight.dtype for weight in vision.parameters() if weight.is_floating_point()} == {torch.bfloat16}
