"""``xtuner serve FOLDER``: the web page and the OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_llava.serving import backend
from mg_llava.serving.access.settings import Access
from mg_llava.serving.requests.settings import Limits
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.tools.support.arguments import add_answering_model

if TYPE_CHECKING:
    import uvicorn

HELP = "serve a web page and an OpenAI-compatible endpoint for a model"
_EXTRA = "pip install 'mg-llava-xtuner[serve]' (from a clone: pip install -e '.[serve]')"
_LIMITS = Limits()
_LAST_PORT = 65535
_KEY_VARIABLE = "MG_LLAVA_API_KEY"
_SHORTEST_KEY = 16
_MOST_CONNECTIONS = 1000
"""More than these get 503 from uvicorn."""
_KEEP_ALIVE_SECONDS = 15
_EVERY_ADDRESS = ("0.0.0.0", "::", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner serve``."""
    add_answering_model(parser)
    backend.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen on, 0 for any that is free (default: 7860)"
    )
    parser.add_argument("--name", help="the model's name at the endpoint (default: the folder's name)")
    parser.add_argument("--no-page", action="store_true", help="serve the endpoint only")
    parser.add_argument(
        "--boxes",
        choices=("none", "detector"),
        default="none",
        help="where boxes come from for pictures sent without any",
    )
    parser.add_argument(
        "--detector", default="owlv2", metavar="CONFIG", help="the detector that --boxes detector uses (default: owlv2)"
    )
    parser.add_argument("--examples", metavar="DIR", help="folder of example pictures that the page offers")
    _add_limits(parser)
    _add_access(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """What one request, and all of them together, may take."""
    parser.add_argument("--max-batch", type=int, help="most answers generated together (default: 8, with vLLM 64)")
    parser.add_argument(
        "--max-queue", type=int, default=_LIMITS.max_queue, help="most requests that may wait (default: 32)"
    )
    parser.add_argument(
        "--max-wait",
        type=float,
        default=_LIMITS.max_wait,
        help="most seconds a request may wait in the queue (default: 30)",
    )
    parser.add_argument(
        "--max-upload-mb", type=float, default=_LIMITS.max_upload / 1e6, help="largest request (default: 20)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=_LIMITS.max_pixels / 1e6, help="largest picture (default: 40)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=_LIMITS.max_new_tokens, help="most tokens in an answer (default: 1024)"
    )
    parser.add_argument(
        "--max-boxes", type=int, default=_LIMITS.max_boxes, help="most boxes in a request (default: 1000)"
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Who may ask, and what the server fetches for them."""
    parser.add_argument(
        "--refuse-unknown", action="store_true", help="refuse fields that this server does not know, not only name them"
    )
    parser.add_argument("--allow-remote", action="store_true", help="fetch pictures from public http(s) addresses")
    parser.add_argument(
        "--remote-host",
        action="append",
        default=[],
        metavar="NAME",
        help="fetch pictures from this host only (repeatable)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this host name too, e.g. a proxy's (repeatable; * = any)",
    )
    parser.add_argument(
        "--api-key",
        nargs="?",
        const=_KEY_VARIABLE,
        metavar="VARIABLE",
        help=f"require the key in this environment variable for /v1 (default variable: {_KEY_VARIABLE})",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted; returns the exit code."""
    # 1. what would fail after minutes of loading
    _check(args)
    access = _access(args)
    chosen = backend.choose(args)
    listener = listen(args.host, args.port)
    limits = Limits(
        max_batch=backend.batch_of(chosen, args.max_batch),
        max_queue=args.max_queue,
        max_wait=args.max_wait,
        max_upload=int(args.max_upload_mb * 1e6),
        max_pixels=int(args.max_megapixels * 1e6),
        max_new_tokens=args.max_new_tokens,
        max_boxes=args.max_boxes,
        refuse_unknown=args.refuse_unknown,
        allow_remote=args.allow_remote or bool(args.remote_host),
        remote_hosts=tuple(name.lower() for name in args.remote_host),
    )

    # 2. the model
    import uvicorn

    from mg_llava.serving.app import make_app
    from xtuner.tools.support.answering import load_detector

    name = args.name or Path(args.model).name
    with backend.open_engine(chosen, args, limits, name) as (engine, child):
        detector = load_detector(args) if args.boxes == "detector" else None

        # 3. the server
        app = make_app(engine, limits, name, detector, _page(args), access)
        host, port = listener.getsockname()[:2]
        address = f"http://{host}:{port}"
        page = "" if args.no_page else f"page: {address}   "
        get_logger().info("%sendpoint: %s/v1   model: %s", page, address, name)
        server = uvicorn.Server(server_settings(app))
        if child is not None:
            child.when_ended(lambda: setattr(server, "should_exit", True))
            # SIGTERM ends this process right behind the server
            app.state.at_end.callback(child.stop)
        server.run(sockets=[listener])
        if child is not None:
            child.check()
    return 0


def server_settings(app: Any, log_level: str = "warning") -> uvicorn.Config:
    """Returns how uvicorn serves an application: no websockets, and limits on connections that bring no request."""
    import uvicorn

    from mg_llava.serving.access.half_open import TimedProtocol

    return uvicorn.Config(
        app,
        log_level=log_level,
        http=TimedProtocol,
        ws="none",
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
    )


def _access(args: argparse.Namespace) -> Access:
    if args.host in _EVERY_ADDRESS and not args.allowed_host:
        get_logger().warning(
            "--host %s listens on every address, but only this machine's own names are answered to: add "
            "--allowed-host NAME for each name under which others reach it.",
            args.host,
        )
    hosts = tuple(args.allowed_host) if args.host in _EVERY_ADDRESS else (args.host, *args.allowed_host)
    if args.api_key is None:
        return Access(hosts)
    key = os.environ.get(args.api_key, "")
    if len(key) < _SHORTEST_KEY:
        raise XTunerError(
            f"--api-key: the environment variable {args.api_key} holds {len(key)} characters: set it to a key of at "
            f"least {_SHORTEST_KEY}, e.g. from `openssl rand -hex 32`."
        )
    return Access(hosts, key)


def _check(args: argparse.Namespace) -> None:
    needed = ["fastapi", "uvicorn", *([] if args.no_page else ["gradio"])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        hint = "; the endpoint alone needs no gradio: pass --no-page" if absent == ["gradio"] else ""
        raise XTunerError(f"serving needs the package {absent[0]}: {_EXTRA}{hint}.")
    for option, least in (
        ("max_batch", 1),
        ("max_queue", 1),
        ("max_new_tokens", 1),
        ("max_boxes", 1),
        ("max_upload_mb", 1e-6),
        ("max_megapixels", 1e-6),
        ("max_wait", 0.1),
    ):
        if (value := getattr(args, option)) is not None and value < least:
            raise XTunerError(f"--{option.replace('_', '-')} is {getattr(args, option)}: expected at least {least:g}.")
    if not 0 <= args.port <= _LAST_PORT:
        # the system would take the rest of a division
        raise XTunerError(f"--port is {args.port}: expected 0 (any that is free) to {_LAST_PORT}.")
    if args.examples and not Path(args.examples).is_dir():
        raise XTunerError(f"the folder of --examples '{args.examples}' does not exist: check the path.")


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket, so that a taken port shows before the model is loaded.

    Raises:
        XTunerError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        raise XTunerError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): stop what uses it, or choose another --port."
        ) from error
    return listener


def _page(args: argparse.Namespace) -> Any:
    if args.no_page:
        return None
    from functools import partial

    from mg_llava.serving.page import add_page

    return partial(add_page, examples=args.examples)
