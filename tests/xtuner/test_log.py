"""The one logger: other ranks say warnings only, but for what one of them did for all."""

from __future__ import annotations

import logging

import pytest

from xtuner.log import get_logger, tell_from_any_rank


def test_other_ranks(framework_log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = get_logger()
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger._cache.clear()  # isEnabledFor remembers
    logger.info("loaded")
    logger.warning("odd")
    tell_from_any_rank("Prepared %s: %d kept", "a", 3)
    logger._cache.clear()
    assert [record.getMessage() for record in framework_log] == ["odd", "Prepared a: 3 kept"]
    assert framework_log[-1].levelname == "INFO"
