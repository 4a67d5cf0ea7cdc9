"""vLLM runs exported folders: ``pip install`` both, then ``vllm serve FOLDER``.

``register`` is the entry point; ``model`` and ``processing`` are vLLM's two interfaces, ``tokenizer`` and ``media`` go
into its registries, ``defaults`` is what a folder sets. Of these, ``model``, ``processing``, ``media`` and ``defaults``
import vLLM; ``boxed`` is what a request says, ``prepared`` what evaluation asks, ``names`` and ``versions``
are facts.
"""

from mg_llava.serving.vllm.registration import register

__all__ = ["register"]
