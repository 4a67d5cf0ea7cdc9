"""The conversations that prepared samples were made of, found again in the data files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mg_llava.data.prepared_sources import PreparedSources, SampleMaker
from mg_llava.data.sources import DataSource
from xtuner.data.store.prepared import PreparedRow
from xtuner.data.text.conversations import Conversation, iter_conversations
from xtuner.data.text.templates import Turn
from xtuner.data.text.tokenizing import encode_conversation
from xtuner.errors import XTunerError


def find_turns(samples: PreparedSources, maker: SampleMaker, numbers: Sequence[int]) -> dict[int, tuple[Turn, ...]]:
    """Returns the turns of samples by their numbers, the template's default system prompt filled in.

    Each data file is read once, as far as it takes. A sample is left out where no record of its file has its id and
    gives its token ids: prepared without a data file, or from another version of it.

    Args:
        samples: prepared.
        maker: what they were made with.
        numbers: which samples.
    """
    found: dict[int, tuple[Turn, ...]] = {}
    for index, source in enumerate(samples.sources):
        wanted = {number: samples.row(number)[0] for number in numbers if samples.source_of[number] == index}
        if wanted and source.data_path is not None:
            found |= _find(source, maker, wanted)
    return found


def _find(source: DataSource, maker: SampleMaker, wanted: dict[int, PreparedRow]) -> dict[int, tuple[Turn, ...]]:
    template = maker.template(source)
    by_id: dict[str, list[int]] = {}
    for number, row in wanted.items():
        by_id.setdefault(row["id"], []).append(number)
    found: dict[int, tuple[Turn, ...]] = {}
    try:
        expand = maker.expander(source)
        for record in iter_conversations(source.records().records(), [], videos=True):
            rest = [number for number in by_id.get(record.id, ()) if number not in found]
            if not rest or not record.turns:
                continue
            (talk,) = expand([record])
            if not isinstance(talk, Conversation):
                continue
            policy = maker.special_tokens_in_text
            ids = encode_conversation(talk, maker.tokenizer, template, maker.max_length, policy).input_ids
            found.update(
                (number, _with_system(talk.turns, template.default_system))
                for number in rest
                if wanted[number].numbers("input_ids").tolist() == ids
            )
            if len(found) == len(wanted):
                break
    # the samples are there, so what became of their file since is nothing to fail for
    except XTunerError:
        return found
    return found


def _with_system(turns: tuple[Turn, ...], default: str) -> tuple[Turn, ...]:
    first = turns[0]
    return turns if first.system or not default else (replace(first, system=default), *turns[1:])
