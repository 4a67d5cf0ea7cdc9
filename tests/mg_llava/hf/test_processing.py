"""The processor: ids as in training, boxes in every form, templates as Jinja."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from mg_llava.hf import MGLLaVAProcessor
from mg_llava.hf.chat_template import to_jinja
from mg_llava.hf.picture_sources import read_source
from mg_llava.hf.processing import boxes_per_picture
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.pictures.remote import REFUSED
from tests.mg_llava.hf.conftest import Exported
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.rendered import BOUNDARY
from xtuner.data.text.templates import TEMPLATES, PieceKind, PromptTemplate, Turn
from xtuner.errors import XTunerError

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


IMAGE = {"type": "image", "image": PICTURE}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


class TestIds:
    def test_messages_are_the_prompt_of_training(self, exported: Exported, processor: MGLLaVAProcessor) -> None:
        turns = [Turn("<image>\nIs it red", "yes"), Turn("what")]
        prompt = exported.assistant.prepare(turns, [PICTURE], [None])
        messages = [user(IMAGE, text("Is it red")), {"role": "assistant", "content": "yes"}, user(text("what"))]
        ids = processor.apply_chat_template(messages, tokenize=True)[0].tolist()
        expected: list[int] = []
        for token in prompt.input_ids:
            expected += [processor.image_token_id] * 4 if token < 0 else [token]
        assert ids == expected

    def test_one_placeholder_per_image_token_and_box(self, processor: MGLLaVAProcessor) -> None:
        boxes = [[[1, 1, 20, 20], [5, 5, 30, 25], [0, 0, 40, 30]], None]
        batch = processor(images=[PICTURE, PICTURE], text=f"{IMAGE_TOKEN} {IMAGE_TOKEN} what", boxes=boxes)
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == 2 * 4 + 3
        assert batch["box_counts"].tolist() == [3, 0] and batch["boxes"].shape == (3, 4)
        assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["pixel_values"].dtype == torch.uint8

    def test_padding_stands_on_the_left(self, processor: MGLLaVAProcessor) -> None:
        batch = processor(text=["what", "Is it red dog"])
        assert batch["attention_mask"][0].tolist() == [0, 0, 0, 1, 1]
        assert batch["input_ids"][:, 0].tolist() == [processor.tokenizer.pad_token_id, processor.tokenizer.bos_token_id]

    def test_boxes_keep_their_numbers_when_the_batch_is_cast(self, processor: MGLLaVAProcessor) -> None:
        batch = processor(images=PICTURE, text=f"{IMAGE_TOKEN} what", boxes=[[3, 3, 37, 29]])
        before = batch["boxes"].clone()
        assert torch.equal(batch.to(dtype=torch.bfloat16)["boxes"], before)
        assert batch["boxes"].dtype == torch.float32

    def test_boxes_outside_the_picture_are_cut_or_left_out(self, processor: MGLLaVAProcessor) -> None:
        boxes = [[-50, -50, 20, 20], [100, 100, 200, 200]]
        batch = processor(images=PICTURE, text=f"{IMAGE_TOKEN} what", boxes=[boxes])
        assert batch["box_counts"].tolist() == [1]
        assert batch["boxes"].min() >= 0


class TestMistakes:
    def test_pictures(self, processor: MGLLaVAProcessor) -> None:
        with pytest.raises(XTunerError, match="pictures without a place in the text: 1"):
            processor(images=PICTURE, text="what")
        with pytest.raises(XTunerError, match="1 <image> placeholder, 0 pictures"):
            processor(text=f"{IMAGE_TOKEN} what")
        with pytest.raises(XTunerError, match="got no text"):
            processor(images=PICTURE)

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "no user message to answer"),
            ([{"role": "tool", "content": "x"}], "has the role 'tool'"),
            ([{"role": "assistant", "content": "x"}], "no user message to answer"),
            ([{"role": "user", "content": 3}], "'content' is int"),
            ([user({"type": "video"})], "a video is a NoneType: expected a path"),
            ([user({"type": "image"})], "expected one of image, url"),
            ([{"role": "system", "content": [IMAGE]}], "only user messages"),
            ([user(text("a")), {"role": "assistant", "content": "b"}], "end with an answer"),
        ],
    )
    def test_messages(self, processor: MGLLaVAProcessor, messages: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            processor.apply_chat_template(messages, tokenize=True)

    @pytest.mark.parametrize("boxes", [[[1, 2, 3]], {"boxes": [[1, 2, 3, 4]], "labels": ["a", "b"]}, {"x": 1}, "boxes"])
    def test_boxes(self, processor: MGLLaVAProcessor, boxes: Any) -> None:
        with pytest.raises(XTunerError, match="boxes cannot be read"):
            as_picture_boxes(boxes)


def test_ids_of_a_rendered_text(processor: MGLLaVAProcessor) -> None:
    text = str(processor.apply_chat_template([user(IMAGE, {"type": "text", "text": "Is it red"})]))
    ids = processor.text_ids(text)
    place = ids.index(processor.image_token_id)
    whole = processor(images=PICTURE, text=text)["input_ids"][0].tolist()
    assert [*ids[:place], *processor.picture_ids(0), *ids[place + 1 :]] == whole


class TestOnePicture:
    def test_is_what_a_batch_holds(self, processor: MGLLaVAProcessor) -> None:
        boxes = [[1, 1, 20, 20], [5, 5, 30, 25]]
        batch = processor(images=PICTURE, text=f"{IMAGE_TOKEN} what", boxes=[boxes])
        pixels, chosen = processor.prepare_picture(PICTURE, boxes)
        assert torch.equal(pixels[None], batch["pixel_values"]) and torch.equal(chosen, batch["boxes"])
        ids = batch["input_ids"][0].tolist()
        expected = processor.picture_ids(len(chosen))
        start = ids.index(processor.image_token_id)
        assert ids[start : start + len(expected)] == expected and processor.image_token_id not in ids[start:][6:]

    def test_without_object_tokens_no_box_is_left(self, exported: Exported) -> None:
        processor = MGLLaVAProcessor.from_pretrained(exported.folder)
        processor.with_objects = False
        assert processor.prepare_picture(PICTURE, [[1, 1, 20, 20]])[1].shape == (0, 4)

    @pytest.mark.parametrize(
        ("given", "count", "expected"),
        [
            (None, 2, [None, None]),
            ([[0, 0, 1, 1]], 1, [1]),
            ([[[0, 0, 1, 1]]], 1, [1]),
            ([[0, 0, 1, 1], [0, 0, 2, 2]], 1, [2]),
            ({"boxes": [[0, 0, 1, 1]], "labels": ["a"]}, 1, [1]),
            ([[[0, 0, 1, 1]], None], 2, [1, None]),
        ],
    )
    def test_boxes_of_each_picture(self, given: Any, count: int, expected: list[int | None]) -> None:
        found = boxes_per_picture(given, count)
        assert [None if boxes is None else len(boxes.boxes) for boxes in found] == expected

    def test_boxes_of_another_number_of_pictures(self) -> None:
        with pytest.raises(XTunerError, match="3 lists of boxes for 2 pictures"):
            boxes_per_picture([None, None, None], 2)


def test_boxes_without_labels_are_different_things() -> None:
    found = as_picture_boxes(np.array([[0, 0, 9, 9], [0, 0, 9, 9]]))
    assert found is not None and len(set(found.labels)) == 2


class TestChatTemplate:
    """The Jinja text equals the pieces that training tokenises, special tokens written out."""

    def rendered(self, template: PromptTemplate, turns: list[Turn]) -> str:
        words = {PieceKind.BOS: "<s>", PieceKind.EOS: "</s>", PieceKind.IMAGE: IMAGE_TOKEN}
        pieces = template.render(turns, add_generation_prompt=turns[-1].output is None)
        if template.input.endswith("{input}"):
            pieces = [
                replace(piece, text=BOUNDARY + piece.text) if piece.supervised and piece.text else piece
                for piece in pieces
            ]
        return "".join(words.get(piece.kind, piece.text) for piece in pieces)

    @pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
    def test_equals_render(self, template: PromptTemplate) -> None:
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
            to_jinja(template, "<s>", "</s>")
        )
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "Be brief."},
            user({"type": "image"}, text("Is it red")),
            {"role": "assistant", "content": "yes"},
            user(text("what")),
        ]
        turns = [Turn(f"{IMAGE_TOKEN}\nIs it red", "yes", "Be brief."), Turn("what")]
        assert jinja.render(messages=messages) == self.rendered(template, turns)
        assert jinja.render(messages=messages[1:2]) == self.rendered(template, [Turn(f"{IMAGE_TOKEN}\nIs it red")])

    def test_default_system_prompt(self) -> None:
        template = replace(TEMPLATES["vicuna"], default_system="Be kind.")
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
            to_jinja(template, "<s>", "</s>")
        )
        own = {"role": "system", "content": "Be brief."}
        for start, system in (([], ""), ([own], "Be brief.")):
            rendered = jinja.render(messages=[*start, user(text("a"))])
            assert rendered == self.rendered(template, [Turn("a", None, system)])
            assert ("Be kind." in rendered) == (not start)

    def test_bos_is_not_put_before_a_text_that_begins_with_it(self) -> None:
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
            to_jinja(TEMPLATES["chatml"], "<|im_start|>", "<|im_end|>")
        )
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}, user(text("b"))]
        for start in ([], [{"role": "system", "content": "Be brief."}]):
            rendered = jinja.render(messages=[*start, *messages])
            assert rendered.startswith("<|im_start|>") and "<|im_start|><|im_start|>" not in rendered

    @pytest.mark.parametrize(
        ("roles", "message"),
        [(["system"], "no user message to answer"), (["user", "assistant"], "end with an answer")],
    )
    def test_nothing_to_answer(self, processor: MGLLaVAProcessor, roles: list[str], message: str) -> None:
        messages = [{"role": role, "content": "red"} for role in roles]
        with pytest.raises(TemplateError, match=message):
            # as servers ask
            processor.tokenizer.apply_chat_template(
                messages, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
            )

    def test_of_the_folder(self, exported: Exported, processor: MGLLaVAProcessor) -> None:
        messages = [user(IMAGE, text("Is it red"))]
        text_of = processor.apply_chat_template(messages)
        assert text_of == "<s>USER: <image>\nIs it red ASSISTANT:"
        assert (exported.folder / "chat_template.jinja").is_file()
        continued = processor.apply_chat_template(
            [*messages, {"role": "assistant", "content": "It"}], continue_final_message=True
        )
        assert continued == text_of + "It"


class TestSources:
    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/a.png",
            "http://localhost/a.png",
            "http://[::1]/a.png",
            "http://169.254.169.254/latest/meta-data",
            "http://2130706433/a.png",
            "http://10.0.0.1/a.png",
            "https://user@127.0.0.1/a.png",
            "http://127.0.0.1:8080/a.png",
            "http://[/a.png",
            "http://",
        ],
    )
    def test_no_address_of_this_network_is_fetched(self, url: str) -> None:
        with pytest.raises(XTunerError) as error:
            read_source(url)
        assert str(error.value) == REFUSED

    def test_every_kind_of_source_is_one_picture(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (5, 4), (1, 2, 3))
        path = tmp_path / "a.png"
        picture.save(path)
        encoded = base64.b64encode(path.read_bytes()).decode()
        sources = [
            picture, np.asarray(picture), path, str(path), f"file://{path}", path.read_bytes(), encoded,
            f"data:image/png;base64,{encoded}",
        ]  # fmt: skip
        assert {read_source(source).tobytes() for source in sources} == {picture.tobytes()}
