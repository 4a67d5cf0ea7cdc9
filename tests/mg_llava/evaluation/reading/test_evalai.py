"""VQA accuracy against an installed package that carries EvalAI's answer processor: lmms-eval (extra ``lmms``).

Only one file of the package is loaded, so ``pip install --no-deps lmms-eval`` will do.
"""

from __future__ import annotations

import importlib.util
import random
from importlib.metadata import PackageNotFoundError, files
from types import ModuleType

import pytest

from mg_llava.evaluation.reading.vqa_answers import normalise, vqa_accuracy

FILE = "lmms_eval/tasks/_task_utils/vqa_eval_metric.py"
PAIRS = 1000
WORDS = (
    "yes no red blue a an the The A none zero one two ten eleven 2 3.5 1,000 1,00,000 10. .5 3.14. dont dont's cant "
    "couldnt've couldn'tve shouldnt somebodys somebody'd yall yall'll 'tis ma'am o'clock oclock Its it's cat's cats' "
    'St. U.S.A. e.g. half-way left/right (left) [1] {x} "quoted" `tick` a,b a, b ,c ? what? ?! hello! - -- _under_ '
    "x=1 2+2 <b> > @home a;b ; \\ $5 50% #1 café 狗 ½ I'd i'dve Id've Im Ive it'll youre wheres whos wont"
).split()
JOINTS = (" ", " ", " ", "  ", "\n", "\t", "-", ", ", ",", ". ", ".", "/", "? ", "'s ")


@pytest.fixture(scope="module")
def processor() -> ModuleType:
    try:
        path = next(file for file in files("lmms-eval") or () if str(file) == FILE)
    except (PackageNotFoundError, StopIteration):
        pytest.skip("lmms-eval is not installed: pip install -e '.[lmms]', or pip install --no-deps lmms-eval")
    spec = importlib.util.spec_from_file_location("evalai_processor", str(path.locate()))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EvalAIAnswerProcessor()


def answer(dice: random.Random) -> str:
    words = [dice.choice(WORDS) for _ in range(dice.randint(1, 5))]
    text = "".join(word + dice.choice(JOINTS) for word in words[:-1]) + words[-1]
    return dice.choice((text, text, text.upper(), text.capitalize(), f" {text} ", f"{text}.", f"{text},"))


def test_normalises_alike(processor: ModuleType) -> None:
    dice = random.Random(0)
    texts = list({answer(dice) for _ in range(2 * PAIRS)})
    assert len(texts) >= PAIRS
    assert {text: normalise(text) for text in texts} == {text: processor(text) for text in texts}


def test_scores_alike(processor: ModuleType) -> None:
    """The accuracy as EvalAI defines it, worked out here on the package's normalised answers."""
    dice = random.Random(1)
    seen = set()
    for _ in range(PAIRS):
        output = answer(dice)
        right = answer(dice) if dice.random() < 0.1 else output
        # people say nearly the same
        similar = [right, right.lower(), f"the {right}", f"{right}.", right.replace("'", "")]
        people = [dice.choice((*similar, answer(dice), "no")) for _ in range(10)]
        given = [processor(one) for one in people]
        accuracies = []
        for left_out in range(10):
            others = given[:left_out] + given[left_out + 1 :]
            accuracies.append(min(1.0, others.count(processor(output)) / 3))
        expected = sum(accuracies) / 10
        assert vqa_accuracy(normalise(output), people) == pytest.approx(expected, abs=1e-12), (output, people)
        seen.add(round(expected, 2))
    # all scores occur, from none right to all
    assert {0.0, 0.3, 0.6, 0.9, 1.0} <= seen
