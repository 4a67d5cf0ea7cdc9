"""Classes that the test configs name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn


class Part(nn.Module):
    """`width` comes from the model that holds the part; `num_tokens` as a vision part tells it."""

    provided_by_parent: ClassVar[tuple[str, ...]] = ("width",)
    num_tokens = 4

    def __init__(self, width: int, depth: int = 2, name: str | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class LLMConfig:
    """The sizes of a decoder, named as transformers names them."""

    num_hidden_layers = 2
    hidden_size = 8
    num_attention_heads = 2
    num_key_value_heads = 1
    intermediate_size = 16
    vocab_size = 10


class LLM(nn.Module):
    def __init__(self, name_or_path: str, dtype: str = "auto") -> None:
        super().__init__()
        self.config = LLMConfig()
        self.head = nn.Linear(8, 10, bias=False)


class Model(nn.Module):
    def __init__(
        self,
        llm: dict[str, Any],
        part: dict[str, Any],
        trainable: Sequence[str] = (),
        activation_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        self.llm = LLM(llm["name_or_path"])
        self.part = Part(8, depth=part.get("depth", 2))
        for name, child in self.parts().items():
            child.requires_grad_(name in trainable)

    def parts(self) -> dict[str, nn.Module]:
        assert all(p.device == torch.device("meta") for p in self.parameters())
        return {"llm": self.llm, "part": self.part}


class Dataset:
    def __init__(self, data_path: str, tokenizer: LLM, max_length: int, mode: Literal["flat", "deep"] = "flat") -> None:
        self.data_path = data_path


@dataclass
class Settings:
    seed: int = 0
    share: float = 0.5
    names: tuple[str, ...] = ()


def build_optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.999), precision: str = "auto"
) -> None:
    """Stands for an optimizer's builder."""


build_optimizer.provided_by_parent = ("model",)  # type: ignore[attr-defined]


def takes_anything(**kwargs: Any) -> dict[str, Any]:
    """Stands for a library's factory."""
    return kwargs
