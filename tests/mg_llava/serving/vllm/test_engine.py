"""Exported folders of every family on a real vLLM, to the token as transformers answers.

Skipped where vLLM is not installed (some 3.5 GB): ``bash tools/check_vllm.sh`` makes an environment and runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.hf import MGLLaVAConfig, MGLLaVAProcessor, load_assistant, load_model
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.vllm.prepared import token_prompt
from tests.mg_llava.serving.vllm.families import FAMILIES, export
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError

pytest.importorskip("vllm", reason="needs vLLM, some 3.5 GB: bash tools/check_vllm.sh")
pytestmark = pytest.mark.slow

QUESTIONS = ["what", "Is it red", "A B C D", "dog cat yes", "w100 w101 blue"]
TOKENS = 12
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for seed in range(3)
]
BOXES = [[[2, 3, 20, 25], [10, 5, 38, 28], [0, 0, 40, 30]], None, [[5, 5, 15, 15]]]


class Both:
    """One folder in transformers and in vLLM.

    Args:
        folder: exported.
        options: of vLLM's ``LLM``.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        from vllm import LLM, SamplingParams

        self.folder = folder
        self.model = load_model(folder, dtype=torch.float32).eval()
        self.processor = MGLLaVAProcessor.from_pretrained(folder)
        values = {"dtype": "float32", "max_model_len": 256, "max_num_batched_tokens": 256, "max_num_seqs": 4, **options}
        self.llm = LLM(str(folder), enforce_eager=True, limit_mm_per_prompt={"image": 3}, seed=0, **values)
        self.sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)

    def text(self, question: str, pictures: int) -> str:
        parts = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        return str(self.processor.apply_chat_template([{"role": "user", "content": parts}]))

    def transformers(self, question: str, pictures: list[Any], boxes: list[Any]) -> list[int]:
        batch = self.processor(images=pictures or None, text=self.text(question, len(pictures)), boxes=boxes or None)
        output = self.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        return output[0, batch["input_ids"].shape[1] :].tolist()

    def vllm(self, question: str, pictures: list[Any], boxes: list[Any], **prompt: Any) -> list[int]:
        given = [{"image": picture, "boxes": found} for picture, found in zip(pictures, boxes, strict=True)]
        prompt = {"prompt": self.text(question, len(pictures)), **prompt}
        if given:
            prompt["multi_modal_data"] = {"image": given}
        return list(self.llm.generate([prompt], self.sampling, use_tqdm=False)[0].outputs[0].token_ids)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    pair = Both(export(tmp_path_factory.mktemp("family"), request.param))
    yield pair
    pair.llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_ids_are_those_of_transformers(both: Both, count: int) -> None:
    for question in QUESTIONS:
        expected = both.transformers(question, PICTURES[:count], BOXES[:count])
        assert both.vllm(question, PICTURES[:count], BOXES[:count]) == expected
        # once more, from the caches
        assert both.vllm(question, PICTURES[:count], BOXES[:count]) == expected


def test_boxes_matter_on_a_cached_picture(both: Both) -> None:
    found = []
    for boxes in (None, BOXES[0], BOXES[2], None):
        for name in (None, "my-picture"):
            prompt = {} if name is None else {"multi_modal_uuids": {"image": [name]}}
            answer = both.vllm("what", PICTURES[:1], [boxes], **prompt)
            assert answer == both.transformers("what", PICTURES[:1], [boxes])
            found.append(tuple(answer))
    assert len(set(found)) == (1 if not both.processor.with_objects else 3)


def test_boxes_as_an_option(both: Both) -> None:
    prompt = {
        "prompt": both.text("what", 2),
        "multi_modal_data": {"image": PICTURES[:2]},
        "mm_processor_kwargs": {"boxes": BOXES[:2]},
    }
    answer = both.llm.generate([prompt], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
    assert list(answer) == both.transformers("what", PICTURES[:2], BOXES[:2])


def test_prepared_prompts_of_evaluation(both: Both) -> None:
    assistant = load_assistant(both.folder)
    found = [as_picture_boxes(boxes) for boxes in BOXES[:2]]
    prompt = assistant.prepare([Turn("<image>\n<image> what")], PICTURES[:2], found)
    batch = both.processor.collate([prompt])
    output = both.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    made = token_prompt(prompt, both.processor.image_token_id)
    answer = both.llm.generate([made], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
    assert list(answer) == output[0, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"mm_processor_kwargs": {"boxes": [None, None, None]}}, "3 lists of boxes for 2 pictures"),
        ({"mm_processor_kwargs": {"crops": 3}}, "mm_processor_kwargs has 'crops'"),
        ({"multi_modal_data": {"image": [{"image": PICTURES[0], "boxes": [[50, 50, 60, 60]]}] * 2}}, "lie outside"),
        ({"multi_modal_data": {"image": ["/etc/passwd"] * 2}}, "a picture is a str"),
        ({"prompt": "<image> <image> " + "what " * 300}, "maximum context length|longer than the maximum"),
    ],
)
def test_refused_in_one_sentence(both: Both, prompt: dict[str, Any], message: str) -> None:
    values = {"prompt": both.text("what", 2), "multi_modal_data": {"image": PICTURES[:2]}, **prompt}
    # vLLM's own errors are no ValueError
    with pytest.raises(Exception, match=message):
        both.llm.generate([values], both.sampling, use_tqdm=False)


def test_a_folder_of_another_version(tmp_path: Path) -> None:
    from mg_llava.serving.vllm.defaults import FolderDefaults

    config = MGLLaVAConfig.from_pretrained(export(tmp_path, "llama"))
    config.format_version = 1
    with pytest.raises(XTunerError, match="format version 1, expected"):
        FolderDefaults.verify_and_update_model_config(SimpleNamespace(hf_config=config, model="folder"))
