"""Each mend, asked whether it is still needed: a failure here means that the entry can go."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.specifiers import SpecifierSet

from xtuner.compat import MENDS, Mend, installed_path, is_importable, is_standard_library, mend
from xtuner.errors import XTunerError


@pytest.mark.parametrize("entry", MENDS, ids=lambda entry: entry.symbol)
class TestEntries:
    def test_still_needed(self, entry: Mend) -> None:
        installed = importlib.metadata.version(entry.distribution)
        if not SpecifierSet(entry.versions, prereleases=True).contains(installed):
            pytest.skip(f"not for {entry.distribution} {installed}")
        assert entry.is_needed(), f"{entry.symbol} is mended upstream since {installed}: end its version range"

    def test_says_why(self, entry: Mend) -> None:
        assert entry.reason and entry.versions


def test_no_symbol_twice() -> None:
    symbols = [entry.symbol for entry in MENDS]
    assert len(symbols) == len(set(symbols))


class TestMends:
    def test_deepspeed_strategy_can_be_registered(self) -> None:
        from mmengine._strategy import deepspeed

        mend("mmengine._strategy.deepspeed")
        assert deepspeed.register_deepspeed_optimizers() == []

    def test_shared_memory_operator_is_off(self) -> None:
        from deepspeed import ops

        mend("deepspeed.ops")
        assert ops.__compatible_ops__["deepspeed_shm_comm"] is False


class TestReplacements:
    def test_installed_path(self) -> None:
        assert installed_path("xtuner").endswith("xtuner")
        with pytest.raises(XTunerError, match="not installed"):
            installed_path("no_such_package")

    def test_is_importable(self) -> None:
        assert is_importable("mmengine") and not is_importable("no_such_package")

    @pytest.mark.parametrize(("name", "expected"), [("os.path", True), ("torch", False), ("._base_", False)])
    def test_is_standard_library(self, name: str, expected: bool) -> None:
        assert is_standard_library(name) is expected
