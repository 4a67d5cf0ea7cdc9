"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_cfg_options(parser: argparse.ArgumentParser, help_text: str = "settings of the config to override") -> None:
    """Adds ``--cfg-options KEY=VALUE ...``, which may be given more than once; see `xtuner.config.parse_overrides`."""
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help_text)


def add_base(parser: argparse.ArgumentParser) -> None:
    """Adds ``--base PATH``; see `xtuner.model.files.base`."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="where the checkpoint that the given one was trained on is now, if it has moved (adapters, frozen LLM)",
    )
