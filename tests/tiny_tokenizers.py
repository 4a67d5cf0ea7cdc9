"""Tokenizers like those of published models, trained on a few lines in a second."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "A man is riding a horse on the beach, and it's 12 o'clock.",
    "What colour is the bus? The bus is white and red, the horse is brown.",
    "def total(numbers):  return sum(numbers)    # deep    code",
    "|  name  |   count  |      |  two  three   four    |",
    "two  spaces   three    four     many        runs  of spaces",
    "a two  b two   c two    d two",
    "caf\u00e9 \u00fcber 2024-01-31 3.14",
]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>"]

_PARTS = (
    *(" ", "  ", "   ", "       ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\x1c", "\x0b", "\u2581", "\u200b"),
    *("the", "bus", "two", "it's", "'s", "A", "a", "horse", "xqz", ".", ",", "(", "|", "#", "12", "2024", "1"),
    *("\u00e9", "e\u0301", "\u0301", "\u6c49", "\u6f22\u5b57", "\ud55c", "\U0001f600", "\U0001f468\u200d\U0001f469"),
)


def random_texts(count: int, seed: int = 0, extra: tuple[str, ...] = ()) -> list[str]:
    """Texts of up to 12 parts: words, runs of spaces, other white space, U+2581, scripts, emoji and `extra`."""
    draw = random.Random(seed)
    parts = [*_PARTS, " ", " ", " ", *extra]
    return ["".join(draw.choices(parts, k=draw.randint(0, 12))) for _ in range(count)]


def sentencepiece_file(
    path: Path, model_type: str = "bpe", add_dummy_prefix: bool = True, symbols: tuple[str, ...] = ()
) -> Path:
    """Trains a sentencepiece file with the settings of Llama's, and `symbols` as pieces of their own."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=written,
        model_type=model_type,
        vocab_size=430 if model_type == "bpe" else 330,
        byte_fallback=True,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        max_sentence_length=4192,
        user_defined_symbols=list(symbols),
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
    return path


def llama_folder(
    folder: Path,
    model_type: str = "bpe",
    add_dummy_prefix: bool = True,
    symbols: tuple[str, ...] = (),
    **config: object,
) -> Path:
    """A folder as lmsys/vicuna-7b-v1.5 publishes it: tokenizer.model and tokenizer_config.json."""
    sentencepiece_file(folder / "tokenizer.model", model_type, add_dummy_prefix, symbols)
    fields = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": False}
    fields |= {"tokenizer_class": "LlamaTokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def byte_level(pattern: str | None = None, normalizer: object = None) -> Tokenizer:
    """Byte-level BPE after `pattern`; None = GPT-2's."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*SPECIAL, "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    made.train_from_iterator(LINES * 3, trainer)
    return made


def unigram() -> Tokenizer:
    """Unigram as T5 has it: words by U+2581."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(LINES * 3, trainer)
    return made


def wordpiece() -> Tokenizer:
    """WordPiece as BERT has it: lower case, accents dropped."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(LINES * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return made
