"""The memory formulas on numbers worked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xtuner.errors import XTunerError
from xtuner.memory_estimate import (
    Decoder,
    MemoryEstimate,
    Zero,
    estimate_activations,
    estimate_memory,
    read_decoder,
    read_zero,
)

FROZEN, TRAINED = 1000, 400


@pytest.mark.parametrize(
    ("zero", "compute_bytes", "expected"),
    [
        # frozen 2*1000, trained 4*400, autocast's copy 2*400; gradients 4*400; two moments 8*400
        (None, 2, (4400, 1600, 3200)),
        # no copy in float32: 4*1400
        (None, 4, (5600, 1600, 3200)),
        # 2*1400; 2*400; 12*400
        (Zero(0), 2, (2800, 800, 4800)),
        (Zero(1), 2, (2800, 800, 1200)),
        (Zero(2), 2, (2800, 200, 1200)),
        (Zero(3), 2, (700, 200, 1200)),
        (Zero(2, offload_optimizer=True), 2, (2800, 200, 0)),
        (Zero(3, True, True), 2, (0, 200, 0)),
        (Zero(2), 4, (5600, 400, 1200)),
    ],
)
def test_states_on_four_gpus(zero, compute_bytes, expected):
    estimate = estimate_memory(FROZEN, TRAINED, zero, gpus=4, compute_bytes=compute_bytes, activations=7)
    assert estimate == MemoryEstimate(*expected, activations=7)
    assert estimate.total == sum(expected) + 7


def test_seven_billion_fully_trained_under_zero_2_on_eight_gpus():
    # 7e9 parameters: 14 GB of weights, 14/8 GB of gradients, 84/8 GB of optimizer
    estimate = estimate_memory(0, 7_000_000_000, Zero(2), gpus=8, compute_bytes=2, activations=0)
    assert estimate.total == 14e9 + 1.75e9 + 10.5e9


class TestActivations:
    # one layer: 2 bytes * 5 tokens * (6*8 + 2*4 + 4*16) = 10 * 120; the head: 3 * 10 * (2 + 8)
    decoder = Decoder(layers=3, width=8, kv_width=4, mlp_width=16, vocabulary=10)

    def test_all_layers_kept(self):
        assert estimate_activations(self.decoder, 5, 3, 2, checkpointing=False) == 3 * 1200 + 300

    def test_checkpointing_keeps_inputs_and_one_layer(self):
        assert estimate_activations(self.decoder, 5, 3, 2, checkpointing=True) == 2 * 5 * 8 * 3 + 1200 + 300

    def test_float32(self):
        assert estimate_activations(self.decoder, 5, 3, 4, checkpointing=False) == 3 * 2400 + 3 * 10 * 12


class TestReading:
    def test_decoder_with_grouped_heads(self):
        config = SimpleNamespace(
            num_hidden_layers=3,
            hidden_size=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=16,
            vocab_size=10,
        )
        assert read_decoder(config) == Decoder(3, 8, 4, 16, 10)
        config.head_dim = 3
        assert read_decoder(config).kv_width == 6

    def test_deepspeed(self):
        settings = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
        assert read_zero(settings) == Zero(3, offload_optimizer=False, offload_weights=True)
        assert read_zero({}) == Zero(0)

    def test_unknown_stage(self):
        with pytest.raises(XTunerError, match="stage 4"):
            read_zero({"zero_optimization": {"stage": 4}})
