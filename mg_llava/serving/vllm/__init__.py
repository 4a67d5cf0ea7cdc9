"""vLLM runs exported folders: ``pip install`` both, then ``vllm serve FOLDER``.

``register`` is the entry point; ``model`` and ``processing`` are vLLM's two interfaces, ``tokenizer`` and ``media`` go
into its registries, ``defaults`` is what a folder sets. These import vLLM; ``boxed``, ``names``, ``versions`` do not.
"""

from mg_llava.serving.vllm.registration import register

__all__ = ["register"]
