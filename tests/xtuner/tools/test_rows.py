"""Rows of ids as text, token by token: the texts are the decoded row, whatever the tokenizer does at its start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny_tokenizers import byte_level, llama_folder, random_texts, unigram
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.text.templates import TEMPLATES, Turn
from xtuner.data.text.tokenizer import build_tokenizer
from xtuner.data.text.tokenizing import encode_prompt
from xtuner.tools.support.rows import PICTURE, WITH_LOSS, Cell, as_html, read_row, styled
from xtuner.tools.support.token_grid import as_grid, differences

BYTE_LEVEL = PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return build_tokenizer(str(llama_folder(tmp_path_factory.mktemp("llama"))))


def text_of(cells: list[Cell]) -> str:
    return "".join(cell.text for cell in cells)


class TestReadRow:
    @given(st.lists(st.text(), min_size=1, max_size=4))
    def test_the_texts_are_the_decoded_row(self, texts: list[str]) -> None:
        ids = [BYTE_LEVEL(text, add_special_tokens=False).input_ids for text in texts]
        row = [one for part in ids for one in [*part, IMAGE_TOKEN_INDEX]]
        labels = [
            one for number, part in enumerate(ids) for one in [*(part if number else [IGNORE_INDEX] * len(part)), -100]
        ]
        cells = read_row(row, labels, BYTE_LEVEL)
        assert text_of(cells) == "".join(f"{text}<image>" for text in texts)
        assert [cell.id for cell in cells] == row
        assert [cell.kind == WITH_LOSS for cell in cells] == [label != IGNORE_INDEX for label in labels]

    @pytest.mark.parametrize("make", [lambda: BYTE_LEVEL, lambda: PreTrainedTokenizerFast(tokenizer_object=unigram())])
    def test_other_kinds_decode_as_a_whole(self, make: Callable[[], PreTrainedTokenizerBase]) -> None:
        tokenizer = make()
        for text in random_texts(200):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert text_of(read_row(ids, None, tokenizer)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def test_spaces_that_a_tokenizer_puts_before_each_piece_stay(self, llama: PreTrainedTokenizerBase) -> None:
        question = encode_prompt([Turn("<image>\na  horse\U0001f600")], llama, TEMPLATES["vicuna"])
        answer = llama("A bus.", add_special_tokens=False).input_ids
        labels = [IGNORE_INDEX] * len(question) + answer
        cells = read_row(question + answer, labels, llama)
        assert text_of(cells) == "<s> USER: <image> \na  horse\U0001f600 ASSISTANT: A bus."
        assert styled(cells).plain == text_of(cells)

    def test_a_character_of_several_tokens_stands_where_it_ends(self, llama: PreTrainedTokenizerBase) -> None:
        cells = read_row(llama("\U0001f600\U0001f600", add_special_tokens=False).input_ids, None, llama)
        texts = [cell.text for cell in cells if cell.piece.startswith("<0x")]
        assert texts == ["", "", "", "\U0001f600"] * 2
        assert [cell.shown for cell in cells if cell.piece.startswith("<0x")][:3] == ["<0xF0>", "<0x9F>", "<0x98>"]

    def test_a_cut_character(self, llama: PreTrainedTokenizerBase) -> None:
        ids = llama("a\U0001f600", add_special_tokens=False).input_ids[:-2]
        assert text_of(read_row(ids, None, llama)).startswith("a\ufffd")

    def test_an_empty_row(self) -> None:
        assert read_row([], [], BYTE_LEVEL) == []


class TestShowing:
    def test_white_space_and_invisible_characters_are_visible(self) -> None:
        cell = Cell(1, " a\n\t\u200b\u00a0\ufeff", "x", "")
        assert cell.shown == "␣a⏎⇥\\u200b\\xa0\\ufeff"

    def test_grid(self) -> None:
        row = [
            Cell(IMAGE_TOKEN_INDEX, "<image>", "<image>", PICTURE),
            Cell(17, " a", "x", ""),
            Cell(8, "汉字", "x", ""),
        ]
        row.append(Cell(5, "yes", "x", WITH_LOSS))
        grid = as_grid(row, 80, frozenset([1]))
        assert grid.plain == "<image>|␣a |汉字|yes|\n       |≠17|8   |5  |"
        styles = {grid.plain[span.start : span.end]: span.style for span in grid.spans}
        assert (styles["<image>"], str(styles["␣a "]).strip(), styles["yes"]) == (
            "bold magenta",
            "reverse",
            "bold green",
        )

    @given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(10, 100))
    def test_lines_are_no_wider_than_the_terminal(self, ids: list[int], width: int) -> None:
        grid = as_grid([Cell(one, "汉" * (one % 4), "p", "") for one in ids], width)
        lines = grid.plain.splitlines()
        assert all(cell_len(line) <= width for line in lines)
        assert [int(one) for line in lines[1::2] for one in line.split("|")[:-1]] == ids

    def test_html(self) -> None:
        row = [Cell(1, "<b>", "x", ""), Cell(2, " a", "x", WITH_LOSS), Cell(3, " &", "x", WITH_LOSS)]
        assert as_html(row) == '&lt;b&gt;<span class="with-loss"> a &amp;</span>'

    def test_differences(self) -> None:
        one, other = ([Cell(number, "", "", "") for number in ids] for ids in ([1, 2, 3, 4], [1, 3, 9, 4]))
        assert differences(one, other) == (frozenset([1]), frozenset([2]))
        assert differences(one, one) == (frozenset(), frozenset())
