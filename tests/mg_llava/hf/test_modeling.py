"""The model in transformers: Auto classes, pipeline, generate in all its ways, placement, quantisation, training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    TextIteratorStreamer,
    pipeline,
)

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.hf import MGLLaVAForConditionalGeneration, MGLLaVAProcessor, save_pretrained
from tests.mg_llava.hf.conftest import Exported
from tests.tiny_assistant import box_record, save_picture, tiny_assistant
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError

BOXES = {key: box_record("a")[key] for key in ("boxes", "labels", "scores")}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    return Image.open(save_picture(tmp_path_factory.mktemp("pictures") / "a.png"))


def ask(picture: Image.Image | None, words: str = "Is it red", **image: Any) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if picture is not None:
        parts.insert(0, {"type": "image", "image": picture, **image})
    return [{"role": "user", "content": parts}]


def inputs_of(processor: MGLLaVAProcessor, *conversations: Any, **arguments: Any) -> Any:
    return processor.apply_chat_template(list(conversations), tokenize=True, return_dict=True, **arguments)


def new_tokens(model: Any, inputs: Any, **arguments: Any) -> torch.Tensor:
    generated = model.generate(**inputs, max_new_tokens=6, **arguments)
    return generated[:, inputs["input_ids"].shape[1] :]


class TestSameAsTheAssistant:
    def test_logits_and_answer(
        self, exported: Exported, model: Any, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        assistant = exported.assistant
        found = PictureBoxes(*(list(map(tuple, BOXES["boxes"])), tuple(BOXES["labels"]), BOXES["scores"]))
        found = PictureBoxes(
            torch.tensor(found.boxes).float().numpy(), found.labels, torch.tensor(found.scores).numpy()
        )
        prompt = assistant.prepare([Turn("<image>\nIs it red")], [picture], [found])
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        with torch.inference_mode():
            batch = {"input_ids": torch.tensor([prompt.input_ids]), "pixel_values": prompt.pixel_values}
            batch = assistant.model.data_preprocessor({**batch, "boxes": prompt.boxes})
            expected = assistant.model(**batch, mode="logits")
            assert torch.equal(model(**inputs).logits, expected)
        (answer,) = assistant.generate([prompt], 6)
        assert assistant.decode(new_tokens(model, inputs)[0].tolist()) == answer

    def test_boxes_change_the_logits(self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image) -> None:
        with torch.inference_mode():
            without = model(**inputs_of(processor, ask(picture))).logits[0, -1]
            given = model(**inputs_of(processor, ask(picture), boxes=[BOXES])).logits[0, -1]
        assert (without - given).abs().max() > 1e-3


class TestAutoClasses:
    def test_in_a_process_that_only_imports_the_package(self, exported: Exported, picture: Image.Image) -> None:
        """As a user's server does, by names of transformers alone; the pipeline answers as the model does."""
        picture.save(exported.folder.parent / "picture.png")
        code = f"""
import mg_llava
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
folder, picture = {str(exported.folder)!r}, {str(exported.folder.parent / "picture.png")!r}
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
messages = [dict(role="user", content=[dict(type="image", image=picture), dict(type="text", text="Is it red")])]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
ids = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1]:]
answer = processor.decode(ids, skip_special_tokens=True)
pipe = pipeline("image-text-to-text", model=folder)
assert pipe(text=messages, max_new_tokens=5, return_full_text=False)[0]["generated_text"].strip() == answer.strip()
assert answer.strip()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    def test_loading_and_answering_say_nothing(self, exported: Exported, picture: Image.Image) -> None:
        """No weight newly initialised or unexpected, no setting that is deprecated, nothing to wonder about."""
        picture.save(exported.folder.parent / "silent.png")
        code = f"""
import sys
import mg_llava
from transformers import AutoModelForImageTextToText, AutoProcessor, logging, pipeline
logging.disable_progress_bar()
folder, picture = {str(exported.folder)!r}, {str(exported.folder.parent / "silent.png")!r}
AutoModelForImageTextToText.from_pretrained(folder)  # libraries that it imports may speak of themselves
print("BEGIN", file=sys.stderr, flush=True)
for arguments in (dict(), dict(device_map="cpu"), dict(device_map="auto"), dict(dtype="bfloat16")):
    model = AutoModelForImageTextToText.from_pretrained(folder, **arguments)
processor = AutoProcessor.from_pretrained(folder)
parts = [dict(type="image", image=picture, boxes={BOXES["boxes"]}), dict(type="text", text="Is it red")]
messages = [dict(role="user", content=parts)]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
model.generate(**inputs, max_new_tokens=2, num_beams=2)
pipe = pipeline("image-text-to-text", model=folder)
pipe(text=messages, max_new_tokens=2, return_full_text=False)
"""
        done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        first, rest = done.stderr.lower().split("begin\n")
        assert done.stdout == "" and rest == ""
        assert not any(word in first for word in ("initialized", "unexpected", "missing", "[transformers]")), first

    def test_classes(self, exported: Exported) -> None:
        assert type(AutoProcessor.from_pretrained(exported.folder)).__name__ == "MGLLaVAProcessor"
        model = AutoModelForImageTextToText.from_pretrained(exported.folder)
        assert isinstance(model, MGLLaVAForConditionalGeneration) and not model.training

    def test_pipeline_with_boxes_and_batches(
        self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        pipe = pipeline("image-text-to-text", model=model, processor=processor)
        found = pipe(text=ask(picture), boxes=[BOXES], max_new_tokens=6, return_full_text=False)
        expected = processor.decode(
            new_tokens(model, inputs_of(processor, ask(picture, boxes=BOXES)))[0], skip_special_tokens=True
        )
        assert found[0]["generated_text"].strip() == expected.strip()
        texts = pipe(images=[picture], text=["USER: <image> what ASSISTANT:"], max_new_tokens=3)
        assert texts[0]["generated_text"]


class TestGenerate:
    def test_a_batch_of_unlike_prompts_answers_as_each_alone(
        self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        prompts = [ask(picture, boxes=BOXES), ask(None, "what"), ask(picture, "Is it blue dog")]
        together = new_tokens(model, inputs_of(processor, *prompts))
        for row, prompt in zip(together, prompts, strict=True):
            alone = new_tokens(model, inputs_of(processor, prompt))[0]
            kept = row[: len(alone)]
            assert torch.equal(kept, alone)

    def test_with_and_without_cache(self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image) -> None:
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        assert torch.equal(new_tokens(model, inputs), new_tokens(model, inputs, use_cache=False))

    def test_beams_encode_the_picture_once(
        self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        encode = model.low_res_encoder.forward
        monkeypatch.setattr(model.low_res_encoder, "forward", lambda p: (seen.append(len(p)), encode(p))[1])
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        output = model.generate(
            **inputs,
            max_new_tokens=4,
            num_beams=3,
            num_return_sequences=2,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.sequences.shape[0] == 2 and seen == [1]
        assert output.sequences_scores[0] >= output.sequences_scores[1]

    def test_penalties_work_although_the_placeholder_is_beyond_the_table(
        self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        assert model.config.image_token_id >= model.get_input_embeddings().num_embeddings
        inputs = inputs_of(processor, ask(picture))
        assert new_tokens(model, inputs, repetition_penalty=1.3, no_repeat_ngram_size=2).shape[1] > 0

    def test_sampling_and_streaming(self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image) -> None:
        inputs = inputs_of(processor, ask(picture))
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        tokens = new_tokens(model, inputs, streamer=streamer)
        assert "".join(streamer).split() == processor.decode(tokens[0], skip_special_tokens=True).split()
        torch.manual_seed(1)
        assert new_tokens(model, inputs, do_sample=True, temperature=5.0).shape[0] == 1

    def test_the_answer_goes_on_from_a_given_beginning(self, model: Any, processor: MGLLaVAProcessor) -> None:
        messages = [*ask(None, "what"), {"role": "assistant", "content": "red dog"}]
        inputs = inputs_of(processor, messages, continue_final_message=True)
        ids = inputs["input_ids"][0].tolist()
        assert processor.tokenizer.decode(ids[-2:]) == "red dog"
        assert ids[:-2] == inputs_of(processor, ask(None, "what"))["input_ids"][0].tolist()

    def test_arguments_go_before_a_config_that_stays_as_it_is(
        self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        inputs = inputs_of(processor, ask(picture))
        config = GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0)
        length = inputs["input_ids"].shape[1]
        assert model.generate(**inputs, generation_config=config).shape[1] == length + 3
        assert model.generate(**inputs, generation_config=config, max_new_tokens=5).shape[1] == length + 5
        assert config.max_new_tokens == 3 and model.generation_config.max_new_tokens != 6

    def test_stops_where_the_folder_says(self, exported: Exported, model: Any) -> None:
        assert model.generation_config.eos_token_id == exported.assistant.stop_ids()
        assert model.generation_config.do_sample is not True


class TestSaveAndLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equal_logits(
        self,
        exported: Exported,
        processor: MGLLaVAProcessor,
        picture: Image.Image,
        tmp_path: Path,
        dtype: torch.dtype,
    ) -> None:
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        model = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder, dtype=dtype)
        model.save_pretrained(tmp_path, max_shard_size="100KB")
        processor.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert {p.dtype for p in again.parameters()} == {dtype}
        with torch.inference_mode():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        reread = AutoProcessor.from_pretrained(tmp_path)
        assert torch.equal(
            inputs_of(reread, ask(picture))["input_ids"], inputs_of(processor, ask(picture))["input_ids"]
        )

    def test_device_map(
        self, exported: Exported, processor: MGLLaVAProcessor, picture: Image.Image, tmp_path: Path
    ) -> None:
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        expected = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder)(**inputs).logits
        placed = dict.fromkeys(
            ("high_res_encoder", "fusion", "projector", "object_encoder", "llm", "data_preprocessor"), "cpu"
        )
        model = MGLLaVAForConditionalGeneration.from_pretrained(
            exported.folder, device_map={**placed, "low_res_encoder": "disk"}, offload_folder=tmp_path
        )
        assert model.hf_device_map["low_res_encoder"] == "disk"
        # 1e-6: the encoder's weights come from a mapped file, where kernels round differently
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-6)
        auto = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder, device_map="auto")
        torch.testing.assert_close(auto(**inputs).logits.cpu(), expected, rtol=0, atol=1e-5)

    @pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantised(self, picture: Image.Image, tmp_path: Path, bits: int) -> None:
        # the 4-bit kernels of CPUs take rows of 64 and more
        assistant, node = tiny_assistant(tmp_path / "parts", hidden_size=64)
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
        model = MGLLaVAForConditionalGeneration.from_pretrained(folder, quantization_config=settings)
        processor = MGLLaVAProcessor.from_pretrained(folder)
        kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        assert kinds["llm.model.layers.0.mlp.up_proj"] in ("Linear4bit", "Linear8bitLt")
        assert {kinds["llm.lm_head"], kinds["projector.layers.0"]} == {"Linear"}
        assert not any("bit" in kind for name, kind in kinds.items() if not name.startswith("llm."))
        assert new_tokens(model, inputs_of(processor, ask(picture, boxes=BOXES))).shape[1] > 0

    def test_made_from_the_config_alone(self, exported: Exported, model: Any) -> None:
        fresh = MGLLaVAForConditionalGeneration(model.config)
        assert not any(p.is_meta for p in fresh.parameters())
        assert fresh.state_dict().keys() == model.state_dict().keys()


class TestTraining:
    def test_gradients_with_checkpointing_equal_those_without(
        self, exported: Exported, processor: MGLLaVAProcessor, picture: Image.Image
    ) -> None:
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        gradients = []
        for recompute in (False, True):
            model = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder).train()
            if recompute:
                model.gradient_checkpointing_enable()
                assert model.is_gradient_checkpointing
            model(**inputs, labels=inputs["input_ids"].clone()).loss.backward()
            assert not model.low_res_encoder.training
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert {name.split(".")[0] for name in gradients[0]} == {"fusion", "projector", "object_encoder", "llm"}
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)

    def test_placeholders_carry_no_loss(self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image) -> None:
        inputs = inputs_of(processor, ask(picture))
        labels = inputs["input_ids"].clone()
        with torch.inference_mode():
            output = model(**inputs, labels=labels)
            labels[labels == model.config.image_token_id] = -100
            shifted = torch.nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:], ignore_index=-100)
        torch.testing.assert_close(output.loss, shifted)


class TestMistakes:
    def test_numbers_that_do_not_fit(self, model: Any, processor: MGLLaVAProcessor, picture: Image.Image) -> None:
        inputs = inputs_of(processor, ask(picture, boxes=BOXES))
        with pytest.raises(XTunerError, match="6 placeholders .* need 4"):
            model(**{**inputs, "box_counts": torch.tensor([0]), "boxes": torch.zeros(0, 4)})
        with pytest.raises(XTunerError, match="1 pictures, 1 box_counts of 1, 2 boxes and 1 is_frame"):
            model(**{**inputs, "box_counts": torch.tensor([1])})
        with pytest.raises(XTunerError, match="neither input_ids nor inputs_embeds"):
            model()
        with pytest.raises(XTunerError, match="generate has no input_ids"):
            model.generate()
