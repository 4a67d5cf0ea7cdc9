"""Loading and saving by transformers without its bars and report: what matters of them is said by whoever loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' bars ("Loading weights", "Writing model shards") and its "LOAD REPORT" off the terminal.

    Absent weights are for the caller to refuse (``output_loading_info=True``); weights that a part has no use for, as
    those of CLIP's text tower, are no news. Bars of downloads, and every other warning, stay.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as hf_logging

    had_bars, had_downloads = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "utils.loading_report")]
    hf_logging.disable_progress_bar()
    if had_downloads:
        # transformers switches these off too
        enable_progress_bars()
    for logger in loggers:
        logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_report)
        if had_bars:
            hf_logging.enable_progress_bar()
            if not had_downloads:
                disable_progress_bars()


def _is_no_report(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    # where transformers goes on to fail, its message points at the report
    return "LOAD REPORT" not in text or "MISMATCH" in text or "CONVERSION" in text
