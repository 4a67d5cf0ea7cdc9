"""A row of ids cell by cell, beside what the LLM's own chat template makes of the same conversation."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from xtuner.data.text.fitting import own_ids
from xtuner.data.text.probing import NoTemplate
from xtuner.tools.support.rows import PICTURE, STYLES, Cell, read_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from xtuner.data.text.templates import Turn

OTHER = "reverse"
"""Style of what differs."""


def print_tokens(
    row: Sequence[Cell], turns: Sequence[Turn] | None, tokenizer: PreTrainedTokenizerBase, out: Console
) -> None:
    """Prints a row cell by cell, and what the tokenizer's own chat template makes of the same conversation."""
    reason, own = "its record is not in a data file", None
    if turns is not None:
        try:
            own = read_row(own_ids(turns, tokenizer), None, tokenizer)
        except NoTemplate as error:
            reason = str(error)
    if own is None:
        out.print(as_grid(row, out.width))
        out.print(f"Not compared with the LLM's own chat template: {reason}.", markup=False)
        return
    here, there = differences(row, own)
    out.print(as_grid(row, out.width, here))
    if not here and not there:
        out.print("The LLM's own chat template gives the same ids.")
        return
    out.print(Text("The LLM's own chat template:", "bold"))
    out.print(as_grid(own, out.width, there))


def as_grid(cells: Sequence[Cell], width: int, differing: frozenset[int] = frozenset()) -> Text:
    """Returns one cell a token, its text above its id, in lines of at most `width` columns where the tokens allow it.

    Args:
        cells: of a row.
        width: of the terminal.
        differing: numbers of cells that are marked, in colour and with ≠.
    """
    grid, above, below = Text(), Text(), Text()
    for number, cell in enumerate(cells):
        name = ("≠" if number in differing else "") + ("" if cell.kind == PICTURE else str(cell.id))
        size = max(cell_len(cell.shown), len(name))
        if above and cell_len(above.plain) + size >= width:
            grid.append_text(above).append("\n").append_text(below).append("\n")
            above, below = Text(), Text()
        style = f"{STYLES[cell.kind]} {OTHER if number in differing else ''}".strip()
        above.append(cell.shown + " " * (size - cell_len(cell.shown)), style).append("|", "dim")
        below.append(name.ljust(size), "dim").append("|", "dim")
    return grid.append_text(above).append("\n").append_text(below)


def differences(one: Sequence[Cell], other: Sequence[Cell]) -> tuple[frozenset[int], frozenset[int]]:
    """Returns the numbers of the cells of each row that the other does not have there."""
    matcher = SequenceMatcher(None, [cell.id for cell in one], [cell.id for cell in other], autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    here = frozenset(number for _, start, end, _, _ in changes for number in range(start, end))
    there = frozenset(number for _, _, _, start, end in changes for number in range(start, end))
    return here, there
