from __future__ import annotations

import pytest

from xtuner.data.text.templates import TEMPLATES, Piece, PieceKind, PromptTemplate, Turn, get_template
from xtuner.errors import XTunerError


def as_text(pieces: list[Piece]) -> str:
    """Supervised text in [], pictures, bos and eos by name."""
    words = [piece.text if piece.kind is PieceKind.TEXT else f"<{piece.kind.value}>" for piece in pieces]
    return "".join(f"[{word}]" if piece.supervised else word for word, piece in zip(words, pieces, strict=True))


TURNS = [Turn("<image>\nHi?", "Yes."), Turn("Why?", "So.")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vicuna",
            "<bos>USER: <image>\nHi? ASSISTANT:[Yes.][<eos>]\n<bos>USER: Why? ASSISTANT:[So.][<eos>]\n",
        ),
        (
            "phi3_chat",
            "<bos><|user|><image>\nHi?<|end|>\n<|assistant|>\n[Yes.<|end|>]\n"
            "<|user|>Why?<|end|>\n<|assistant|>\n[So.<|end|>]\n",
        ),
        (
            "llama3_chat",
            "<bos><|start_header_id|>user<|end_header_id|>\n\n<image>\nHi?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[Yes.<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[So.<|eot_id|>]",
        ),
        (
            "chatml",
            "<bos><|im_start|>user\n<image>\nHi?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n"
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n[So.<|im_end|>]\n",
        ),
        ("bare", "<bos><image>\nHi?[Yes.][<eos>]\n<bos>Why?[So.][<eos>]\n"),
        ("mistral", "<bos>[INST] <image>\nHi? [/INST][Yes.][<eos>]\n<bos>[INST] Why? [/INST][So.][<eos>]\n"),
    ],
)
def test_render(name: str, expected: str) -> None:
    assert as_text(get_template(name).render(TURNS)) == expected


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_prompt_is_the_beginning_of_the_whole(name: str) -> None:
    template = get_template(name)
    prompt = template.render([TURNS[0], Turn("Why?")], add_generation_prompt=True)
    whole = template.render(TURNS)
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt)].supervised


def test_a_system_prompt_stands_before_its_turn() -> None:
    pieces = get_template("chatml").render([Turn("Hi", "Yes", system="Be {kind}.")])
    assert as_text(pieces).startswith("<bos><|im_start|>system\nBe {kind}.<|im_end|>\n<|im_start|>user\nHi")


def test_braces_of_the_user_stay() -> None:
    assert "{input} {x}" in as_text(get_template("vicuna").render([Turn("{input} {x}", "a")]))


class TestFaults:
    def test_unknown_name_suggests_the_nearest(self) -> None:
        with pytest.raises(XTunerError, match="unknown prompt template 'vicunna' .did you mean 'vicuna'.*phi3_chat"):
            get_template("vicunna")

    def test_template_without_a_place_for_the_input(self) -> None:
        with pytest.raises(XTunerError, match="'mine'.*must hold {input} once"):
            PromptTemplate(name="mine", input="USER:")

    def test_missing_and_superfluous_answers(self) -> None:
        template = get_template("vicuna")
        with pytest.raises(XTunerError, match="turn 1 of 2 has no answer"):
            template.render([Turn("a"), Turn("b", "c")])
        with pytest.raises(XTunerError, match="turn 1 of 1 is already answered"):
            template.render([Turn("a", "b")], add_generation_prompt=True)
        with pytest.raises(XTunerError, match="without turns"):
            template.render([])


def test_a_config_node_describes_a_template() -> None:
    node = {"type": PromptTemplate, "name": "mine", "input": "Q {input} A", "stop_words": ["Q"]}
    assert get_template(node) == PromptTemplate(name="mine", input="Q {input} A", stop_words=("Q",))
