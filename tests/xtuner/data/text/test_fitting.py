"""Templates against the chat format of the language model's own tokenizer."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny_tokenizers import CHATML, byte_level
from xtuner.data.text.fitting import build_template, misfits
from xtuner.data.text.probing import as_text, messages_of, own_rendering
from xtuner.data.text.templates import TEMPLATES, PromptTemplate, Turn
from xtuner.data.text.tokenizing import encode_prompt
from xtuner.errors import XTunerError

LOOP = "{% for message in messages %}"
SMOLLM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    LOOP + "{% set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim"
    " + '<|eot_id|>' %}{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
LLAMA2 = (
    LOOP + "{% if message.role == 'system' %}{{ raise_exception('no system prompt') }}"
    "{% elif message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    LOOP + "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")


def tokenizer(chat_template: str | None, bos: str | None = None, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    backend = byte_level()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    if eos == "<|eot_id|>":
        made.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    made.chat_template = chat_template
    return made


CASES = {
    "chatml": (CHATML, None, "<|im_end|>"),
    "chatml with a bos of its own": (CHATML, "<s>", "<|im_end|>"),
    "smollm": (SMOLLM, "<|im_start|>", "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "thinking": (THINKING, None, "<|im_end|>"),
}


class TestAuto:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("system", ["", "Be brief."])
    def test_asks_what_the_chat_template_asks(self, case: str, system: str) -> None:
        own = tokenizer(*CASES[case])
        made = build_template("auto", own)
        turns = [Turn("What is it?", "A bus.", system), Turn("Two?", "No."), Turn("a horse")]
        for count in (1, 2, 3):
            asked = [*turns[: count - 1], Turn(turns[count - 1].input, None, turns[count - 1].system)]
            wanted = own_rendering(own, messages_of(asked), True)
            ours = as_text(made, asked, own.bos_token or "", own.eos_token)
            assert ours.removeprefix("<s>") == wanted
            ids = encode_prompt(asked, own, made)
            assert ids[ids[0] == own.convert_tokens_to_ids("<s>") :] == own(wanted, add_special_tokens=False).input_ids
        assert not misfits(made, own) or case == "chatml with a bos of its own"

    def test_default_system_prompt(self) -> None:
        own = tokenizer(*CASES["smollm"])
        assert build_template("auto", own).default_system == "You are a helpful assistant"
        assert build_template("auto", own, "").default_system == ""
        assert build_template("auto", own, "Be brief.").default_system == "Be brief."

    def test_the_answer_is_ended_by_what_ends_it_there(self) -> None:
        made = build_template("auto", tokenizer(*CASES["llama3"]))
        assert (made.answer_suffix or "<|eot_id|>", made.sep) == ("<|eot_id|>", "")
        assert made.system == "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"

    @pytest.mark.parametrize(
        ("chat_template", "reason"),
        [
            (None, "no chat template"),
            ("{{ messages[0].nothing.at_all }}", "cannot be rendered"),
            (LOOP + "{{ message.content }}{% endfor %}", "end of an answer"),
            (LOOP + "{{ loop.index }}: {{ message.content }}<|im_end|>{% endfor %}", "does not begin"),
            ("Today is Monday." + CHATML, "no system prompt"),
            ("{{ messages[0].content }}" + CHATML, "2 times"),
        ],
    )
    def test_other_forms_are_refused_with_the_reason(self, chat_template: str | None, reason: str) -> None:
        with pytest.raises(XTunerError, match=f"'auto': no template can be made.*({reason})"):
            build_template("auto", tokenizer(chat_template))

    def test_bos_before_every_question(self) -> None:
        own = tokenizer(LLAMA2, "<s>", "</s>")
        made = build_template("auto", own)
        assert (made.input, made.answer_suffix) == ("[INST] {input} [/INST]", "")
        turns = [Turn("What?", "A bus."), Turn("Two?")]
        assert as_text(made, turns, "<s>", "</s>") == "<s>[INST] What? [/INST]A bus.</s><s>[INST] Two? [/INST]"
        assert not misfits(made, own)

    def test_a_space_before_the_answer_only(self) -> None:
        own = tokenizer(LLAMA2.replace("{{ message.content + eos", "{{ ' ' + message.content + eos"), "<s>", "</s>")
        with pytest.raises(XTunerError, match="does not begin"):
            build_template("auto", own)


class TestMisfits:
    def test_ids_that_are_equal(self) -> None:
        assert misfits(TEMPLATES["chatml"], tokenizer(CHATML)) == []
        assert misfits(TEMPLATES["llama3_chat"], tokenizer(*CASES["llama3"])) == []

    def test_another_models_template(self) -> None:
        cut, difference = misfits(TEMPLATES["llama3_chat"], tokenizer(CHATML))
        assert "cuts its marker <|start_header_id|> into pieces" in cut
        assert "nearest shipped template is 'chatml'" in difference and "'<|im_start|>user" in difference

    def test_a_default_system_prompt_that_is_left_out(self) -> None:
        (told,) = misfits(TEMPLATES["chatml"], tokenizer(*CASES["smollm"]))
        assert "system" in told and "prompt_template='auto' takes the LLM's own" in told

    def test_nothing_is_known(self) -> None:
        assert misfits(TEMPLATES["vicuna"], tokenizer(None)) == []


class TestSystemPrompt:
    def test_stands_before_the_first_turn_only(self) -> None:
        made = build_template("chatml", system_prompt="Be kind.")
        text = as_text(made, [Turn("a", "b"), Turn("c")], "", "</s>")
        assert (
            text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na") and text.count("kind") == 1
        )

    def test_gives_way_to_the_conversations_own(self) -> None:
        made = build_template("chatml", system_prompt="Be kind.")
        assert "kind" not in as_text(made, [Turn("a", None, "Be brief.")], "", "</s>")

    def test_templates_of_ones_own(self) -> None:
        mine = PromptTemplate(name="mine", input="Q: {input} A:", default_system="x")
        assert build_template(mine) == mine
        assert build_template(mine, system_prompt="").default_system == ""


@pytest.mark.parametrize(
    ("name", "told"), [("plain", "called 'bare'"), ("auto", "set it for the run"), ("x", "unknown")]
)
def test_names_that_are_no_template(name: str, told: str) -> None:
    with pytest.raises(XTunerError, match=told):
        build_template(name)
