"""What an exported folder sets in vLLM where its user has said nothing."""

from __future__ import annotations

import os
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from mg_llava.serving.vllm.names import MODE


class FolderDefaults(VerifyAndUpdateConfig):
    """Checks the folder, tokenises as training does, answers greedily, and reads boxes in the URLs of pictures."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Fills in a ``ModelConfig`` of vLLM.

        Raises:
            XTunerError: the folder is of another version, incomplete, or names classes of other packages.
        """
        model_config.hf_config.check(model_config.model)
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = MODE
        # the folder's generation_config.json says do_sample=false, which vLLM does not read
        model_config.override_generation_config.setdefault("temperature", 0.0)
        # read when the first picture comes, also in processes that are started later
        os.environ.setdefault("VLLM_MEDIA_CONNECTOR", MODE)
