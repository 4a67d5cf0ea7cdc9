"""Settings for few records: steps, memory, and every setting with its reason."""

from __future__ import annotations

import pytest

from xtuner.finetune.recipe import ADAPTERS, STAGES, adapters_setting, choose_plan, choose_settings, settings_text

GIB = 1024**3


def memory(lora: bool, micro_batch: int, recompute: bool) -> float:
    """Weights 8 (2 with adapters), a sample 4, recomputed 1."""
    return ((2 if lora else 8) + micro_batch * (1 if recompute else 4)) * GIB


class TestPlan:
    @pytest.mark.parametrize(
        ("free", "lora", "micro_batch", "recompute", "fits"),
        [
            (100, False, 8, False, True),
            (30, False, 8, True, True),
            (14, False, 4, True, True),
            (10.1, False, 1, True, True),
            (9, True, 4, True, True),
            (3.4, True, 1, True, True),
            (3, True, 1, True, False),
        ],
    )
    def test_the_first_that_fits(self, free, lora, micro_batch, recompute, fits):
        plan = choose_plan(memory, free * GIB)
        assert (plan.lora, plan.micro_batch, plan.recompute, plan.fits) == (lora, micro_batch, recompute, fits)

    def test_asked_adapters_and_several_processes(self):
        plan = choose_plan(memory, 100 * GIB, processes=4, lora=True)
        assert (plan.lora, plan.micro_batch) == (True, 2)


class TestSettings:
    @pytest.mark.parametrize("records", [3, 54, 300, 1000, 50_000])
    @pytest.mark.parametrize("stage", STAGES)
    def test_steps_are_neither_few_nor_endless(self, stage, records):
        plan = choose_plan(memory, 14 * GIB)
        values = {one.name: one.value for one in choose_settings(stage, records, 10**8, plan)}
        assert values["batch_size"] * values["accumulative_counts"] == 8
        assert 2 <= values["max_epochs"] <= 30
        if 100 <= records <= 500:
            assert 1200 <= values["max_epochs"] * records <= 3000

    def test_rates(self):
        full, adapted = choose_plan(memory, 100 * GIB), choose_plan(memory, 4 * GIB)
        rates = {
            key: {one.name: one.value for one in choose_settings("sft", 100, size, plan)}["lr"]
            for key, size, plan in (("small", 10**8, full), ("large", 7 * 10**9, full), ("lora", 7 * 10**9, adapted))
        }
        assert rates == {"small": 3e-4, "large": 2e-5, "lora": 2e-4}

    def test_each_says_why_and_what_to_change(self):
        plan = choose_plan(memory, 14 * GIB)
        found = [adapters_setting(plan, asked=False), *choose_settings("sft", 60, 10**8, plan)]
        assert all(one.reason and one.change for one in found)
        text = settings_text(found)
        names = [line.split(" = ")[0] for line in text if not line.startswith("#")]
        assert ADAPTERS not in names
        assert names == [one.name for one in found if one.name != ADAPTERS]
