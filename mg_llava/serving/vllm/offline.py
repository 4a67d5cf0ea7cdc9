"""vLLM in this process: an exported folder answers prompts that this package has prepared, as evaluation asks them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.loading import check_exported
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.quantization import quantization_of
from mg_llava.inference.endings import Endings
from mg_llava.inference.generation import Draws
from mg_llava.inference.prompts import Prompt
from mg_llava.serving.vllm.prepared import token_prompt
from mg_llava.serving.vllm.versions import check_version, installed_version
from xtuner.engine.steps.precision import resolve_precision
from xtuner.errors import XTunerError, counted

_OURS = ("model", "dtype", "tokenizer", "tokenizer_mode")
"""Options of ``vllm.LLM`` that the folder and the config decide."""
_SHOWN = 300
_CPU_BITS, _CPU_KERNEL = 4, "cpu_gemm_wna16"


class OfflineEngine:
    """vLLM's ``LLM`` on an exported folder.

    Args:
        folder: as ``xtuner convert pth_to_hf`` or ``xtuner convert quantize`` writes it.
        precision: number format of all weights: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        options: further arguments of ``vllm.LLM``: ``max_model_len``, ``gpu_memory_utilization``,
            ``tensor_parallel_size``, …

    Attributes:
        tokenizer, image_processor: the folder's.
        end_ids: ids that end an answer by the folder's config.

    Raises:
        XTunerError: vLLM is absent or of another version, `folder` is no exported folder, or vLLM cannot start on it.
    """

    def __init__(self, folder: str | Path, precision: str = "auto", options: Mapping[str, Any] | None = None) -> None:
        check_version()
        folder, options = Path(folder), dict(options or {})
        check_exported(folder)
        for name in _OURS:
            if name in options:
                raise XTunerError(f"--backend-options has '{name}', which the folder and the config decide: drop it.")
        config = MGLLaVAConfig.from_pretrained(str(folder))
        config.check(str(folder))
        processor = MGLLaVAProcessor.from_pretrained(str(folder))
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.end_ids = tuple(config.stop_token_ids)
        self._processor = processor
        self._options = options
        # answers come back to the terminal that the progress bar is on
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            current_platform.import_kernels()
            _check_kernels(folder)
        # compiling takes minutes on a CPU, longer than most evaluations
        settings = {"enforce_eager": current_platform.is_cpu(), "seed": 0, **options}
        dtype = resolve_precision(precision, torch.device(current_platform.device_type)).dtype
        self._dtype = str(dtype).removeprefix("torch.")
        self._llm = _start(folder, dtype=self._dtype, **settings)
        self._context = int(self._llm.llm_engine.vllm_config.model_config.max_model_len)

    def facts(self) -> dict[str, Any]:
        """See `mg_llava.evaluation.run.offline.Engine.facts`."""
        return {"vllm": installed_version(), "dtype": self._dtype, "options": self._options}

    def answer(
        self, prompts: Sequence[Prompt], draws: Sequence[Draws | None], endings: Endings, max_new_tokens: int
    ) -> list[list[int] | str]:
        """See `mg_llava.evaluation.run.offline.Engine.answer`.

        Raises:
            XTunerError: vLLM fails.
        """
        found: list[list[int] | str] = [self._too_long(prompt) or [] for prompt in prompts]
        asked = [number for number, fault in enumerate(found) if not fault]
        settings: list[Any] = [_sampling(draws[number], endings, max_new_tokens) for number in asked]
        given: list[Any] = [token_prompt(prompts[number], self._processor.image_token_id) for number in asked]
        try:
            outputs = self._llm.generate(given, settings, use_tqdm=False) if given else []
        # vLLM's errors have no common class
        except Exception as error:
            raise XTunerError(f"vLLM failed: {_line(error)}") from error
        for number, output in zip(asked, outputs, strict=True):
            found[number] = list(output.outputs[0].token_ids)
        return found

    def close(self) -> None:
        """Ends vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _too_long(self, prompt: Prompt) -> str | None:
        """Why vLLM would refuse a prompt, which would stop all that are asked with it; None where it would not."""
        used = prompt.num_tokens(self._processor.image_tokens, self._processor.with_objects)
        if used < self._context:
            return None
        pictures = counted(len(prompt.boxes), "pictures")
        return (
            f"the prompt has {used} tokens ({pictures}), but the model's context is {self._context}: shorten it, or "
            "raise --backend-options max_model_len=N where the model allows it."
        )


def _check_kernels(folder: Path) -> None:
    """Refuses quantised weights that this CPU's vLLM would only stumble over when it computes.

    Args:
        folder: exported; vLLM's kernels are loaded.
    """
    groups = (quantization_of(folder) or {}).get("config_groups", {}).values()
    # quantised activations have a kernel on every CPU
    bits = {group["weights"]["num_bits"] for group in groups if not group.get("input_activations")}
    if bits and (bits != {_CPU_BITS} or not hasattr(torch.ops._C, _CPU_KERNEL)):
        raise XTunerError(
            f"'{folder}' has {min(bits)}-bit weights and whole activations, for which vLLM has no kernel on this CPU "
            f"(it has one for {_CPU_BITS} bits with AVX-512): quantise by --scheme W8A8, use a GPU, or leave --backend "
            "out."
        )


def _start(folder: Path, **settings: Any) -> Any:
    from vllm import LLM

    try:
        return LLM(str(folder), **settings)
    # vLLM's errors have no common class; those of its child processes stand in its log
    except Exception as error:
        raise XTunerError(
            f"vLLM cannot start on '{folder}': {_line(error)} What its processes said stands above; vLLM's settings go "
            "into --backend-options, e.g. max_model_len=2048 or gpu_memory_utilization=0.8."
        ) from error


def _sampling(draws: Draws | None, endings: Endings, max_new_tokens: int) -> Any:
    """`Endings.generation_config` in vLLM's words."""
    from vllm import SamplingParams

    drawn: dict[str, Any] = {"temperature": 0.0}
    if draws is not None:
        drawn = {"temperature": draws.temperature, "top_p": draws.top_p, "seed": draws.seed}
    return SamplingParams(
        max_tokens=max_new_tokens,
        stop_token_ids=endings.stop_ids(),
        # those of one token are among the ids; without the others an answer would go on to its last token
        stop=list(endings.template.stop_words),
        **drawn,
    )


def _line(error: Exception) -> str:
    """The first line of an error, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__)[:_SHOWN]
    return text if text.endswith((".", "!", "?")) else f"{text}."
