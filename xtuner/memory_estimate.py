"""Estimating the memory that training takes on each GPU, as pure functions of sizes.

Units are bytes. F and T are the numbers of frozen and trainable parameters, N the number of GPUs, c the bytes
of the compute format (2 for bf16 and fp16, 4 for fp32).

**Plain** (no DeepSpeed): frozen weights in the compute format, trained ones in float32 plus the
half-precision copy that autocast keeps, float32 gradients and AdamW's two moments: ``weights = c·F + 4·T (+
2·T if c = 2)``, ``gradients = 4·T``, ``optimizer = 8·T``.

**DeepSpeed**, stage by stage (Rajbhandari et al., "ZeRO", arXiv 1910.02054, table 1):
``weights = c·(F + T)``, ``gradients = c·T``, ``optimizer = 12·T`` (float32 master copy and two moments);
stage 1 divides the optimizer by N, stage 2 the gradients too, stage 3 the weights too. What is offloaded
counts 0.

**Activations** of a decoder with L layers, width D, key/value width K, MLP width M, n tokens per micro-batch.
Kept for the backward pass of one layer (both norms' inputs and outputs, q, attention output; k, v; gate, its
activation, up, product; no attention matrix, as with sdpa): ``layer = c·n·(6·D + 2·K + 4·M)``. Without
checkpointing ``L·layer``; with it each layer's input and one layer at a time, ``c·n·D·L + layer``. The head
runs on the supervised positions s only: ``s·V·(c + 8)`` for the logits, their float32 copy and its gradient.

A trained encoder keeps what a pass of its shape shows (`xtuner.model.activations`), for each picture; frozen ones
keep nothing.

Not counted: the other vision parts' passing maps, temporary buffers, fragmentation and the CUDA context (a few GiB
in all).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtuner.errors import XTunerError

GIB = 1024**3


@dataclass(frozen=True)
class Zero:
    """A DeepSpeed setting, as far as memory goes: the ZeRO stage and what lives in host memory."""

    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder-only LLM: layers L, width D, key/value width K, MLP width M, vocabulary V."""

    layers: int
    width: int
    kv_width: int
    mlp_width: int
    vocabulary: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per GPU, by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def read_zero(settings: Mapping[str, Any]) -> Zero:
    """Reads what matters to memory from DeepSpeed's settings (its JSON file).

    Raises:
        XTunerError: a stage that does not exist.
    """
    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise XTunerError(f"DeepSpeed's settings ask for ZeRO stage {stage!r}: expected 0, 1, 2 or 3.")
    optimizer, weights = (
        zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")
    )
    return Zero(stage, optimizer, weights)


def read_decoder(config: Any) -> Decoder:
    """Reads the sizes from a transformers config of a causal LM."""
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Decoder(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        kv_width=head_width * (getattr(config, "num_key_value_heads", None) or heads),
        mlp_width=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def estimate_memory(
    frozen: int, trainable: int, zero: Zero | None, gpus: int, compute_bytes: int, activations: float
) -> MemoryEstimate:
    """Returns weights, gradients, optimizer states and activations per GPU, by the module's formulas.

    Args:
        frozen: number of frozen parameters F.
        trainable: number of trained parameters T.
        zero: the DeepSpeed setting; None for the plain runner.
        gpus: number of processes N.
        compute_bytes: c, 2 or 4.
        activations: of one micro-batch, from `estimate_activations`.
    """
    if zero is None:
        cached = 2 * trainable if compute_bytes == 2 else 0
        plain_weights = compute_bytes * frozen + 4 * trainable + cached
        return MemoryEstimate(plain_weights, 4 * trainable, 8 * trainable, activations)
    weights = compute_bytes * (frozen + trainable) / (gpus if zero.stage >= 3 else 1)
    gradients = compute_bytes * trainable / (gpus if zero.stage >= 2 else 1)
    optimizer = 12 * trainable / (gpus if zero.stage >= 1 else 1)
    return MemoryEstimate(
        weights=0 if zero.offload_weights else weights,
        gradients=gradients,
        optimizer=0 if zero.offload_optimizer else optimizer,
        activations=activations,
    )


def estimate_activations(
    decoder: Decoder, tokens: int, supervised: int, compute_bytes: int, checkpointing: bool
) -> float:
    """Returns what the decoder and its head keep for the backward pass, in bytes, by the module's formulas.

    Args:
        decoder: its sizes.
        tokens: positions of one micro-batch, all samples together (n).
        supervised: those of them with a label (s).
        compute_bytes: c, 2 or 4.
        checkpointing: activations are computed again, layer by layer.
    """
    widths = 6 * decoder.width + 2 * decoder.kv_width + 4 * decoder.mlp_width
    layer = compute_bytes * tokens * widths
    inputs = compute_bytes * tokens * decoder.width * decoder.layers
    head = supervised * decoder.vocabulary * (compute_bytes + 8)
    return (inputs + layer if checkpointing else decoder.layers * layer) + head
