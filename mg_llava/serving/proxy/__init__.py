"""vLLM behind this project's endpoint and page: an `Engine` that hands requests on to a vLLM server.

``engine`` is that engine, ``prompts`` what it sends, ``upstream`` the way there, ``child`` a vLLM that is started here,
``keeper`` what ends that when its starter ends, ``checks`` whether a server is the one for a folder. None of these
imports vLLM.
"""

from mg_llava.serving.proxy.child import Child
from mg_llava.serving.proxy.engine import ProxyEngine

__all__ = ["Child", "ProxyEngine"]
