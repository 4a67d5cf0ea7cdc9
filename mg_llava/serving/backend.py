"""What works out the answers of ``xtuner serve``: this project's own engine, or vLLM."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_llava.serving.requests.settings import Limits
from xtuner.errors import XTunerError
from xtuner.log import get_logger

if TYPE_CHECKING:
    from mg_llava.serving.generation.engine import Engine
    from mg_llava.serving.proxy import Child

OWN, VLLM, AUTO = "own", "vllm", "auto"
_BATCH = {OWN: Limits().max_batch, VLLM: 64}
"""Answers worked on together where ``--max-batch`` is not given."""
_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_OWN_ONLY = ("checkpoint", "base", "cfg_options", "quantization")
_DECIDED = tuple(
    f"--{name}"
    for name in (
        "model",
        "served-model-name",
        "host",
        "port",
        "uds",
        "api-key",
        "root-path",
        "ssl-keyfile",
        "ssl-certfile",
    )
)
"""Options of vLLM that say how it is reached, and what as."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which engine answers."""
    parser.add_argument(
        "--backend",
        choices=(OWN, VLLM, AUTO),
        help="what works out the answers: this project's own engine (default), vLLM as a child process, or vLLM where "
        "there is a GPU and vLLM is installed",
    )
    parser.add_argument("--backend-url", metavar="URL", help="the address of a vLLM server that runs already")
    parser.add_argument(
        "--backend-model", metavar="NAME", help="what that server calls the model (default: the folder's name)"
    )
    parser.add_argument(
        "--backend-args", metavar="WORDS", help="further options of vLLM, e.g. '--max-model-len 4096'; see `vllm serve`"
    )


def choose(args: argparse.Namespace) -> str:
    """Returns which engine answers, before anything is loaded.

    Raises:
        XTunerError: arguments that do not go together, vLLM of another version or absent, or a folder that it does not
            run.
    """
    _check_together(args)
    if args.backend == AUTO:
        backend, reason = _fastest(args)
        get_logger().info("--backend auto takes %s: %s", "vLLM" if backend == VLLM else "the own engine", reason)
        return backend
    if args.backend != VLLM and args.backend_url is None:
        return OWN
    _check_folder(args.model)
    if args.backend_url is None:
        from mg_llava.serving.vllm.versions import check_version

        check_version()
    return VLLM


def batch_of(backend: str, asked: int | None) -> int:
    """Returns how many answers are worked on together."""
    return _BATCH[backend] if asked is None else asked


@contextlib.contextmanager
def open_engine(
    backend: str, args: argparse.Namespace, limits: Limits, name: str
) -> Iterator[tuple[Engine, Child | None]]:
    """Yields what answers, and the process of vLLM where one was started, which ends with the context.

    Args:
        backend: of `choose`.
        args: of the command.
        limits: of the server.
        name: how the model is called.

    Raises:
        XTunerError: what answers could not be made; see `Child` and `find_model`.
    """
    sizes: dict[str, Any] = {
        "max_batch": limits.max_batch,
        "max_queue": limits.max_queue,
        "max_wait": limits.max_wait,
    }
    if backend == OWN:
        from mg_llava.serving.generation.batch_engine import BatchEngine
        from xtuner.tools.support.answering import load_assistant

        yield BatchEngine(load_assistant(args), **sizes), None
        return
    from mg_llava.serving.proxy.checks import check_reading, find_model
    from mg_llava.serving.proxy.child import Child
    from mg_llava.serving.proxy.engine import ProxyEngine
    from mg_llava.serving.proxy.prompts import PromptSender
    from mg_llava.serving.proxy.upstream import KEY_VARIABLE, Upstream

    folder = Path(args.model)
    sender = PromptSender(folder)
    with contextlib.ExitStack() as stack:
        child, wanted = None, args.backend_model
        if args.backend_url is None:
            child, wanted = stack.enter_context(Child(folder, name, vllm_options(args, limits))), name
            child.wait_until_ready()
            upstream = child.upstream
        else:
            upstream = Upstream(args.backend_url, os.environ.get(KEY_VARIABLE))
        model, context = find_model(upstream, folder, wanted)
        check_reading(upstream, model, sender)
        get_logger().info("vLLM answers at %s, with a context of %d tokens", upstream.url, context)
        yield ProxyEngine(sender, upstream, model, context, child, **sizes), child


def vllm_options(args: argparse.Namespace, limits: Limits) -> list[str]:
    """Returns the options of vLLM that follow from the command's."""
    most = f'{{"image": {limits.max_pictures}}}'
    options = ["--max-num-seqs", str(limits.max_batch), "--limit-mm-per-prompt", most]
    options += ["--dtype", _DTYPES[args.precision]]
    # the last one of an option counts
    return [*options, *shlex.split(args.backend_args or "")]


def _check_together(args: argparse.Namespace) -> None:
    if args.backend_url is not None and args.backend not in (None, VLLM):
        raise XTunerError(f"--backend-url is the address of a vLLM: drop --backend {args.backend}.")
    uses_vllm = args.backend == VLLM or args.backend_url is not None
    if uses_vllm and (given := [name for name in _OWN_ONLY if getattr(args, name)]):
        raise XTunerError(
            f"--{given[0].replace('_', '-')} is for the own engine: drop it, or --backend {VLLM}, which runs an "
            "exported folder as it is."
        )
    if args.backend_url is not None and (args.backend_args or args.precision != "auto"):
        raise XTunerError(
            "--backend-args and --precision are for a vLLM that is started here: give such options to the one at "
            "--backend-url when you start it."
        )
    if args.backend_model is not None and args.backend_url is None:
        raise XTunerError("--backend-model is a name at --backend-url: give both, or --name.")
    if args.backend_args is not None:
        if args.backend not in (VLLM, AUTO):
            raise XTunerError(f"--backend-args is for vLLM: add --backend {VLLM}, or drop it.")
        try:
            words = shlex.split(args.backend_args)
        except ValueError as error:
            raise XTunerError(f"--backend-args cannot be read as words ({error}): close its quotes.") from error
        for name in (word.partition("=")[0].replace("_", "-") for word in words):
            if name in _DECIDED:
                raise XTunerError(
                    f"--backend-args has {name}, by which this command reaches the vLLM that it starts: drop it; the "
                    "command's own --host, --port, --name and --api-key are for those who ask."
                )


def _check_folder(model: str) -> None:
    from mg_llava.hf import check_exported
    from xtuner.tools.support.families import family_of

    if not Path(model).is_dir():
        raise XTunerError(
            f"'{model}' is no folder: vLLM runs folders that `xtuner convert pth_to_hf` writes; convert the checkpoint "
            "first, or drop --backend."
        )
    family_of(Path(model))
    check_exported(Path(model))


def _fastest(args: argparse.Namespace) -> tuple[str, str]:
    """What answers faster here, by the table in docs/serving.md, and why."""
    import torch

    from mg_llava.serving.vllm.versions import check_version

    if not torch.cuda.is_available():
        return OWN, "there is no GPU, and on a CPU it answers faster"
    try:
        if given := [name for name in _OWN_ONLY if getattr(args, name)]:
            return OWN, f"--{given[0].replace('_', '-')} is for it"
        _check_folder(args.model)
        check_version()
    except XTunerError as error:
        return OWN, str(error)
    return VLLM, "there is a GPU"
