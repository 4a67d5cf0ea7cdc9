"""Conversations to ids and labels: one call of the tokenizer per message, against `encode_conversations`.

Usage: ``python tools/benchmarks/tokenising.py [--samples 20000] [--repeats 3]``

Both sides run in turns in one process on one core, on conversations with the turns and lengths of LLaVA's instruction
data and words that are as frequent as in English (Zipf). Two tokenizers of 32,000 entries are trained here: one like
those of Llama 2, Vicuna, Phi-3 and Yi (BPE over whole texts), one like those of Llama 3 and Qwen 2 (byte-level BPE).
Ids and labels of both sides must be equal. The cache of words starts empty in every repeat.
"""

from __future__ import annotations

import argparse
import inspect
import pydoc
import random
import re
import statistics
import sys
from functools import partial
from typing import Any

from own_process import seconds_of
from rich.console import Console
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from xtuner.data.text.conversations import Conversation, parse_record
from xtuner.data.text.templates import get_template
from xtuner.data.text.tokenizing import encode_conversations
from xtuner.data.text.word_cache import LLAMA3_PATTERN

BATCH = 500
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def words_of_this_python() -> list[str]:
    """Some ten thousand words from the documentation of the modules that are loaded."""
    texts = [
        pydoc.getdoc(thing)
        for module in list(sys.modules.values())
        for thing in vars(module).values()
        if inspect.isclass(thing) or inspect.isroutine(thing)
    ]
    return sorted({word for text in texts for word in re.findall(r"[A-Za-z]{2,14}", text)})


def make_records(number: int, words: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one to six turns, questions of about 12 words, of about 25; an answer in five is long."""
    draw = random.Random(seed)
    draw.shuffle(words)
    weights = [1 / (rank + 2.7) for rank in range(len(words))]

    def text(mean: float) -> str:
        chosen = draw.choices(words, weights, k=1 + int(draw.expovariate(1 / mean)))
        return " ".join(chosen).capitalize() + draw.choice(".?!")

    def answer() -> str:
        return " ".join(text(14) for _ in range(10)) if draw.random() < 0.2 else text(25)

    records = []
    for index in range(number):
        turns = [(text(12), answer()) for _ in range(draw.randint(1, 6))]
        turns[0] = (f"{IMAGE_TOKEN}\n{turns[0][0]}", turns[0][1])
        messages = [
            message for q, a in turns for message in ({"from": "human", "value": q}, {"from": "gpt", "value": a})
        ]
        records.append({"id": str(index), "image": f"{index}.jpg", "conversations": messages})
    return records


def like_llama2(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """BPE over whole texts, a space being a letter."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    # in training only: sentencepiece's merges stay within words too
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=tokens, show_progress=False))
    backend.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def like_llama3(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE within the words of a pattern."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def message_by_message(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[list[int], list[int]]]:
    """The usual way: the tokenizer is called for each text between pictures and answers."""
    template = get_template("vicuna")
    results = []
    for talk in talks:
        ids: list[int] = []
        labels: list[int] = []
        for piece in template.render(talk.turns):
            if piece.text:
                new = tokenizer.encode(piece.text, add_special_tokens=False)
            else:
                new = [
                    {"image": IMAGE_TOKEN_INDEX, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}[
                        piece.kind.value
                    ]
                ]
            ids += new
            labels += new if piece.supervised else [IGNORE_INDEX] * len(new)
        results.append((ids, labels))
    return results


def here(talks: list[Conversation], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """Ours, a batch as preparing makes them."""
    encoded = encode_conversations(talks, tokenizer, get_template("vicuna"), 100_000)
    return [(one.input_ids, one.labels) for one in encoded]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    args = parser.parse_args()
    words = words_of_this_python()
    talks = [parse_record(record, index) for index, record in enumerate(make_records(args.samples, words))]
    texts = [text for talk in talks for turn in talk.turns for text in (turn.input, turn.output)]
    out = Console(highlight=False)
    out.print(f"{len(talks):,} conversations, {len(texts):,} messages, {len(words):,} words", soft_wrap=True)
    for make in (like_llama2, like_llama3):
        tokenizer = make(texts, args.vocabulary)
        usual, ours, number = [], [], 0
        for _ in range(args.repeats):
            # a new object: its cache of words is empty
            copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            fresh = PreTrainedTokenizerFast(tokenizer_object=copy, **SPECIAL)
            sums, number = [0.0, 0.0], 0
            for start in range(0, len(talks), BATCH):
                batch = talks[start : start + BATCH]
                seconds, wanted = seconds_of(partial(message_by_message, batch, tokenizer))
                sums[0] += seconds
                seconds, got = seconds_of(partial(here, batch, fresh))
                sums[1] += seconds
                if got != wanted:
                    raise SystemExit("the two sides give different ids or labels")
                number += sum(len(ids) for ids, _ in got)
            usual.append(sums[0])
            ours.append(sums[1])
        before, now = (len(talks) / statistics.median(side) for side in (usual, ours))
        out.print(
            f"{make.__name__}: {number / len(talks):.0f} ids a sample; message by message {before:,.0f} samples/s, "
            f"here {now:,.0f} samples/s: {now / before:.1f}x",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
