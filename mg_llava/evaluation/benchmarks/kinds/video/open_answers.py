"""Short answers about videos, judged as Video-ChatGPT does: MSVD-QA, MSRVTT-QA, ActivityNet-QA, TGIF-QA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.benchmarks.base import id_text, unique_ids
from mg_llava.evaluation.benchmarks.files import read_records, refuse
from mg_llava.evaluation.benchmarks.kinds.video.find import find_video
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.judging.prompts import VIDEO_QA_RULE, video_qa_pair
from mg_llava.evaluation.judging.verdicts import JudgedBenchmark, with_verdict
from xtuner.errors import XTunerError

_BEST = 5.0
_WORD = re.compile(r"""["']?pred["']?\s*:\s*["']?(yes|no)\b""", re.IGNORECASE)
_SCORE = re.compile(r"""["']?score["']?\s*:\s*["']?(\d+(?:\.\d+)?)""")
_VERDICT = re.compile(r"(yes|no), (\d(?:\.\d+)?) of 5")


@dataclass(kw_only=True, eq=False)
class VideoQA(JudgedBenchmark):
    """``test_q.json`` and ``test_a.json`` of Video-ChatGPT: a judge says yes or no, and gives 0 to 5.

    Questions are ``{video_name, question, question_id}``, answers ``{answer, question_id, type?}``. ``overall`` is the
    share of yes, ``judge_score`` the mean score as a share of 5 (``judge_score_of_5`` as it is usually reported).

    Args:
        answer_file: ``test_a.json``, relative to `data_root`; None = predictions only.
        (others): see `Benchmark`; `image_folder` is that of the videos.
    """

    judge_max_tokens = 64

    answer_file: str | None = None
    max_new_tokens: int = 64

    def files(self) -> list[str]:
        """Returns question file, answers, folder of the videos and box file."""
        return [*super().files(), *([] if self.answer_file is None else [self.path(self.answer_file)])]

    def read_questions(self) -> list[Question]:
        """Reads questions and answers; a record without its fields, or without its answer, is named."""
        rows = read_records(self.data_path, ("video_name", "question", "question_id"))
        answers = self._answers([id_text(row["question_id"]) for row in rows])
        ids = unique_ids(row["question_id"] for row in rows)
        return [
            Question(
                id=unique_id,
                text=str(row["question"]),
                # ActivityNet's videos are called v_<name>
                pictures=(self.clip(find_video(self.videos, str(row["video_name"]), f"v_{row['video_name']}")),),
                box_id=id_text(row["question_id"]),
                answer=None if is_nothing(answer.get("answer")) else str(answer["answer"]),
                groups={} if is_nothing(answer.get("type")) else {"type": id_text(answer["type"])},
            )
            for unique_id, row, answer in zip(ids, rows, answers, strict=True)
        ]

    def _answers(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The answers to the questions of these ids: in the same order where both files have it, else by id."""
        if self.answer_file is None:
            return [{}] * len(ids)
        path = self.path(self.answer_file)
        rows = read_records(path, ("question_id", "answer"))
        if [id_text(row["question_id"]) for row in rows] == list(ids):
            return rows
        known = {id_text(row["question_id"]): row for row in rows}
        if len(known) < len(rows):
            raise XTunerError(
                f"'{path}' repeats question ids and is in another order than '{self.data_path}': download both files "
                "again, of the same version."
            )
        refuse([f"no answer to question {key}" for key in ids if key not in known], path)
        return [known[key] for key in ids]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer without outer spaces."""
        return output.strip() or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns None: only a judge can tell; an empty answer is wrong."""
        return None if question.answer is None or parsed is not None else 0.0

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns the rule and the pair of answers, in Video-ChatGPT's words."""
        if question.answer is None or not output.strip():
            return None
        return f"{VIDEO_QA_RULE}\n\n{video_qa_pair(question.text, question.answer, output.strip())}"

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the judge's verdict; one without yes or no, or a score of 0 to 5, is none."""
        word, score = _WORD.search(reply), _SCORE.search(reply)
        if word is None or score is None or float(score[1]) > _BEST:
            return prediction
        verdict = word[1].lower()
        return with_verdict(prediction, float(verdict == "yes"), f"{verdict}, {float(score[1]):g} of 5")

    def means(self, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Returns the judge's score as a share of 5; an answer that is wrong without a judge has 0."""
        scores = {}
        for question, one in self.pairs(predictions):
            found = _VERDICT.fullmatch(one.parsed or "")
            if found is not None and one.hit is not None:
                scores[question.id] = float(found[2]) / _BEST
            elif one.hit == 0:
                scores[question.id] = 0.0
        return {"judge_score": scores}

    def beside(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the mean score of 5."""
        scores = self.means(predictions)["judge_score"].values()
        return {"judge_score_of_5": _BEST * sum(scores) / len(scores) if scores else None}
