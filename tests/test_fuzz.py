"""Odd inputs at every reader: a value or a sentence, never another exception."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.benchmarks.fuzzing import DOORS, crash

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("door", DOORS)
class TestDoors:
    @settings(QUIET, max_examples=200)
    @given(seed=st.integers(0, 2**64))
    def test_a_value_or_a_sentence(self, door: str, seed: int, tmp_path: Path) -> None:
        assert crash(door, seed, tmp_path) is None

    @pytest.mark.slow
    def test_twenty_thousand(self, door: str, tmp_path: Path) -> None:
        assert [found for seed in range(20_000) if (found := crash(door, seed, tmp_path))] == []
