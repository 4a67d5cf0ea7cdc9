"""The answer normalisation and the accuracy of the VQA challenges (EvalAI), as TextVQA and VQAv2 score.

Source: Antol et al., "VQA" (arXiv 1505.00468), https://visualqa.org/evaluation.html: lower case, contractions with
their apostrophe, number words as digits, no articles, no punctuation; accuracy = min(1, equal human answers / 3),
averaged over leaving out each of the ten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# the challenge's expression, `(?!<=\d)` and all: it was meant as a lookbehind, so a full stop after a digit goes too
_FULL_STOP = re.compile(r"(?!<=\d)\.(?!\d)")
_EQUAL_ANSWERS = 3
_FULL_STOPS_STRIPPED = 32
"""The challenge's code passes a flag where a count belongs: only so many full stops go. Kept, scores depend on it."""


def _contractions() -> dict[str, str]:
    """Spelling without (one) apostrophe → with it; the set that the challenge corrects.

    Its table has I'm, I've and I'd've with a capital, which answers in lower case never meet, and she's for itself:
    none of them is corrected, here as there.
    """
    one = (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll "
        "how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't "
        "shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd "
        "something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't "
        "what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're "
        "why's won't would've wouldn't y'all you'd you'll you're you've"
    )
    # of these each spelling that lacks just one of the apostrophes is corrected
    more = (
        "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've "
        "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've "
        "you'd've"
    )
    table = {word.replace("'", ""): word for word in one.split()}
    for word in more.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    # this one goes the other way in the challenge's table
    return table | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """Returns an answer as the challenge compares it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def without_punctuation(text: str) -> str:
    """Returns a text without punctuation as the challenge takes it out, some of it for a space."""
    result = text
    for mark in _PUNCTUATION:
        at_word_end = f"{mark} " in text or f" {mark}" in text
        joined = at_word_end or _COMMA_IN_NUMBER.search(text) is not None
        result = result.replace(mark, "" if joined else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_STRIPPED)


def vqa_accuracy(parsed: str, answers: Sequence[str]) -> float:
    """Returns the VQA accuracy, 0–1.

    With fewer than four answers, three equal ones cannot be among those left: all of them must be equal then, and a
    single answer must be met.

    Args:
        parsed: a `normalise`d answer.
        answers: what people answered, usually ten, one at least; not yet normalised.
    """
    given = [normalise(answer) for answer in answers]
    equal = given.count(parsed)
    if len(given) == 1:
        return float(equal)
    wanted = min(_EQUAL_ANSWERS, len(given) - 1)
    return fmean(min(1.0, (equal - (answer == parsed)) / wanted) for answer in given)


def vqa_formula(answers: int) -> str:
    """Returns in words by which formula a question with so many answers is scored."""
    if answers == 1:
        return "equal to the only answer"
    wanted = min(_EQUAL_ANSWERS, answers - 1)
    return f"mean over leaving out one of {answers} answers of min(1, equal answers / {wanted})"
