"""The model in lmms-eval: ``lmms-eval --model mg_llava --model_args pretrained=FOLDER --tasks pope``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from mg_llava.inference.assistant import Prompt
from mg_llava.pictures.colors import to_rgb
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.tools.support.trained_model import load_assistant

_DEFAULT_NEW_TOKENS = 256
_Request = tuple[str, dict[str, Any], Any, Any, str, str]


class MGLLaVALmms(lmms):
    """Answers lmms-eval's requests greedily, in batches of like length. Its tasks know no boxes: no object tokens.

    Args:
        pretrained: a folder that ``xtuner convert pth_to_hf`` wrote, or a config's name or path.
        checkpoint: with a config: its weights.
        batch_size: requests a batch.
        device: where the model computes; None or ``cuda`` = this process's GPU if there is one.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        max_batch_size: lmms-eval passes it to every model; not used.
    """

    def __init__(
        self,
        pretrained: str,
        checkpoint: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        precision: str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        try:
            self.batch_size = int(batch_size)
        except ValueError as error:
            raise XTunerError(f"batch_size is '{batch_size}': expected a number, 'auto' is not known here.") from error
        self.device = torch.device(device or "cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.assistant = load_assistant(pretrained, checkpoint, self.device, precision)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns an answer to each request, in their order, cut at its ``until`` texts.

        Raises:
            XTunerError: a picture is no picture, or a text names another number of pictures.
        """
        arguments: list[_Request] = [request.args for request in requests]
        # the longest first: batches of like length hold little padding
        order = sorted(range(len(arguments)), key=lambda number: -len(arguments[number][0]))
        answers = [""] * len(arguments)
        for numbers in self._batches(order, [_new_tokens(one[1]) for one in arguments]):
            prompts = [self._prompt(arguments[number]) for number in numbers]
            outputs = self.assistant.generate(prompts, _new_tokens(arguments[numbers[0]][1]))
            for number, output in zip(numbers, outputs, strict=True):
                context, options = arguments[number][:2]
                answers[number] = _cut(output, options.get("until") or ())
                self.cache_hook.add_partial("generate_until", (context, options), answers[number])
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raises XTunerError: tasks that compare likelihoods are not for a model that is asked in words."""
        raise XTunerError(
            "mg_llava answers in words: choose tasks whose output_type is generate_until, not loglikelihood."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises XTunerError: the model was trained to see all pictures in one prompt."""
        raise XTunerError("mg_llava has no multi-round tasks: choose tasks whose output_type is generate_until.")

    def _batches(self, order: Sequence[int], new_tokens: Sequence[int]) -> list[list[int]]:
        """Numbers of requests that are asked together: of one longest answer."""
        batches: list[list[int]] = []
        for length in sorted(set(new_tokens)):
            same = [number for number in order if new_tokens[number] == length]
            batches += [same[start : start + self.batch_size] for start in range(0, len(same), self.batch_size)]
        return batches

    def _prompt(self, request: _Request) -> Prompt:
        context, options, doc_to_visual, doc_id, task, split = request
        if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
            get_logger().warning("%s asks for sampling; mg_llava answers greedily.", task)
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        pictures = [self._picture(visual, task) for visual in (visuals if isinstance(visuals, list) else [visuals])]
        if context.count(IMAGE_TOKEN) != len(pictures):
            context = f"{IMAGE_TOKEN}\n" * len(pictures) + context.replace(IMAGE_TOKEN, "").strip()
        return self.assistant.prepare([Turn(context)], pictures)

    def _picture(self, visual: Any, task: str) -> Image.Image:
        if isinstance(visual, Image.Image):
            return to_rgb(visual)
        if isinstance(visual, str):
            return self.assistant.image_processor.open(visual)
        raise XTunerError(f"{task} gives a {type(visual).__name__}: expected a picture or its path, no video.")


def _new_tokens(options: dict[str, Any]) -> int:
    return int(options.get("max_new_tokens") or _DEFAULT_NEW_TOKENS)


def _cut(output: str, until: str | Sequence[str]) -> str:
    for text in [until] if isinstance(until, str) else until:
        # an empty stop text would cut everything
        output = output.split(text)[0] if text else output
    return output.strip()
