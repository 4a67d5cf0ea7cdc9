"""The model in lmms-eval, found by its entry point; skipped where lmms-eval is not installed (extra ``lmms``)."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mg_llava.hf import save_pretrained
from mg_llava.inference.assistant import Assistant
from tests.tiny_assistant import save_picture, tiny_assistant
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError

NEEDED = "lmms-eval is not installed: pip install -e '.[lmms]'"
QUESTIONS = ["Is it red", "what is it w1 w2 w3", "A or B", "<image> and <image> w5", "w6"]
PICTURES = [1, 1, 2, 2, 0]
"""Pictures of each question; the third shows its two in front, the fourth where its text says."""


def test_the_entry_point_names_the_model() -> None:
    """Also without lmms-eval: the installed package has the entry point, and it leads to the manifest."""
    (found,) = (point for point in entry_points(group="lmms_eval.models") if point.name == "mg_llava")
    assert found.value == "mg_llava.evaluation.lmms_eval:lmms_eval_manifest" and callable(found.load())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Assistant]:
    folder = tmp_path_factory.mktemp("lmms")
    assistant, node = tiny_assistant(folder / "parts")
    return save_pretrained(assistant, node, folder / "export"), assistant


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("pictures")
    return [Image.open(save_picture(folder / f"{number}.png", number)) for number in range(2)]


def model(folder: Path, pictures: list[Image.Image], **options: Any) -> Any:
    pytest.importorskip("lmms_eval", reason=NEEDED)
    from lmms_eval.models import get_model

    arguments = ",".join(f"{key}={value}" for key, value in {"pretrained": folder, "precision": "fp32"}.items())
    made = get_model("mg_llava").create_from_arg_string(arguments, {"device": "cpu", "max_batch_size": None, **options})
    made.task_dict["task"] = {"test": [{"pictures": pictures[:count]} for count in PICTURES]}
    return made


def requests(**options: Any) -> list[Any]:
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            request_type="generate_until",
            arguments=(text, options, lambda doc: doc["pictures"], number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": 1},
        )
        for number, text in enumerate(QUESTIONS)
    ]


def test_answers_are_the_assistants(exported: tuple[Path, Assistant], pictures: list[Image.Image]) -> None:
    folder, assistant = exported
    answers = {
        size: model(folder, pictures, batch_size=size).generate_until(requests(max_new_tokens=6)) for size in (1, 3)
    }
    words = [
        f"<image>\n{QUESTIONS[0]}",
        f"<image>\n{QUESTIONS[1]}",
        f"<image>\n<image>\n{QUESTIONS[2]}",
        *QUESTIONS[3:],
    ]
    expected = [
        assistant.generate([assistant.prepare([Turn(text)], pictures[:count])], 6)[0]
        for text, count in zip(words, PICTURES, strict=True)
    ]
    assert answers[1] == answers[3] == expected and len(set(expected)) > 1


def test_answers_are_cut_at_until(exported: tuple[Path, Assistant], pictures: list[Image.Image]) -> None:
    made = model(exported[0], pictures)
    whole = made.generate_until(requests(max_new_tokens=6))
    stop = whole[0].split()[1]
    assert made.generate_until(requests(max_new_tokens=6, until=["", stop]))[0] == whole[0].split(stop)[0].strip()


def test_what_it_cannot_do_is_said(exported: tuple[Path, Assistant], pictures: list[Image.Image]) -> None:
    made = model(exported[0], pictures)
    with pytest.raises(XTunerError, match="output_type is generate_until"):
        made.loglikelihood([])
    with pytest.raises(XTunerError, match="output_type is generate_until"):
        made.generate_until_multi_round([])
    made.task_dict["task"]["test"][0]["pictures"] = [b"video"]
    with pytest.raises(XTunerError, match="task gives a bytes: expected a picture"):
        made.generate_until(requests())
    with pytest.raises(XTunerError, match="batch_size is 'auto'"):
        model(exported[0], pictures, batch_size="auto")
